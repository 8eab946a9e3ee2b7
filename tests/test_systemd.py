"""What systemd is told, through a real socket of the kind that it listens on."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns

import pytest

from cf_messaged import systemd
from cf_messaged.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The end of systemd; reading from it when nothing was said is an error, not a wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(str(tmp_path / "n"))
        yield manager


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time of the notifier, in seconds."""

    def set_to(moment_s: float) -> None:
        monkeypatch.setattr(systemd, "monotonic", lambda: moment_s)

    set_to(0)
    return set_to


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def heard(manager: socket.socket) -> list[str]:
    """All that was said since the last time."""
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def fill(manager: socket.socket) -> None:
    """Until it takes no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"noise", manager.getsockname())


def test_the_life_of_a_service_is_told(manager: socket.socket) -> None:
    """Each state is one message, in order; a status of several lines stays one, so that it cannot say anything else."""
    notifier = Notifier(environment(manager))
    notifier.ready("serves\ntcp://127.0.0.1:5309\nSTOPPING=1")
    notifier.stopping()
    assert heard(manager) == ["READY=1\nSTATUS=serves tcp://127.0.0.1:5309 STOPPING=1", "STOPPING=1"]


def test_a_status_of_any_text_is_sent(manager: socket.socket) -> None:
    """What is no Unicode is replaced: a path may have any bytes."""
    Notifier(environment(manager)).ready(os.fsdecode(b"store \xff \xc3\xa4"))
    assert heard(manager) == ["READY=1\nSTATUS=store ? ä"]


def test_a_reload_is_told_with_its_time(manager: socket.socket) -> None:
    """In microseconds of CLOCK_MONOTONIC, between the moments before and after."""
    notifier = Notifier(environment(manager))
    before = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    [message] = heard(manager)
    state, time = message.split("\n")
    assert state == "RELOADING=1"
    assert time.startswith("MONOTONIC_USEC=") and before <= int(time.removeprefix("MONOTONIC_USEC=")) <= after


def test_an_abstract_socket_is_reached() -> None:
    """An address that begins with @ is one without a file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind("")  # the kernel finds an abstract name that is free
        name = manager.getsockname()
        assert name[:1] == b"\0"
        Notifier({"NOTIFY_SOCKET": f"@{name[1:].decode()}"}).ready("serves")
        assert heard(manager) == ["READY=1\nSTATUS=serves"]


# ---- the watchdog


def test_a_beat_comes_each_third_of_the_watchdog_time(manager: socket.socket, clock: Callable[[float], None]) -> None:
    """The first at once, then one a third, however often the loop goes round."""
    notifier = Notifier(environment(manager, WATCHDOG_USEC="30000000"))
    told = []
    for moment_s in (0, 0, 9.9, 10, 10.1, 19.9, 20, 65, 65.1):
        clock(moment_s)
        notifier.alive()
        told.append((moment_s, heard(manager)))
    assert [moment_s for moment_s, messages in told if messages == ["WATCHDOG=1"]] == [0, 10, 20, 65]
    assert [moment_s for moment_s, messages in told if messages == []] == [0, 9.9, 10.1, 19.9, 65.1]


def test_a_loop_that_waits_as_long_as_it_may_is_alive(manager: socket.socket, clock: Callable[[float], None]) -> None:
    """Whenever its rounds begin, beats are at most half the watchdog time apart."""
    for woken_s in range(100):
        notifier = Notifier(environment(manager, WATCHDOG_USEC="30000000"))
        assert notifier.poll_s is not None
        moments_s = [0, woken_s / 10, *(woken_s / 10 + n * notifier.poll_s for n in range(1, 20))]
        beats_s = []
        for moment_s in moments_s:
            clock(moment_s)
            notifier.alive()
            beats_s += [moment_s for _ in heard(manager)]
        assert max(later - sooner for sooner, later in zip(beats_s, beats_s[1:], strict=False)) <= 15
        assert beats_s[-1] > moments_s[-1] - 15


@pytest.mark.parametrize("pid", ["", str(os.getpid())], ids=["none", "this one"])  # as each worker collects them
def test_a_watchdog_for_this_process(manager: socket.socket, pid: str) -> None:
    """It is heeded with WATCHDOG_PID of this process, and without any."""
    notifier = Notifier(environment(manager, WATCHDOG_USEC="6000000", **({"WATCHDOG_PID": pid} if pid else {})))
    notifier.alive()
    assert (notifier.poll_s, heard(manager)) == (1, ["WATCHDOG=1"])


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": str(os.getppid())},
        {"WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "me"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-6000000"},
        {"WATCHDOG_USEC": "6s"},
        {"WATCHDOG_USEC": "9" * 400},
        {"WATCHDOG_USEC": "9" * 5000},
    ],
    ids=lambda variables: " ".join(f"{name}={value:.20}" for name, value in variables.items()) or "none",
)
def test_no_watchdog(manager: socket.socket, variables: dict[str, str]) -> None:
    """None asked for, one for another process, or a time that is none: no beats, and the loop may wait for ever."""
    notifier = Notifier(environment(manager, **variables))
    notifier.alive()
    assert (notifier.poll_s, heard(manager)) == (None, [])
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1"]


# ---- nobody there


def test_without_systemd_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY_SOCKET no socket is made, and the loop may wait for ever, whatever is said of a watchdog."""
    monkeypatch.setattr(socket, "socket", None)
    notifier = Notifier({"WATCHDOG_USEC": "6000000"})
    call_all(notifier)
    assert notifier.poll_s is None


@pytest.mark.parametrize("address", ["/nowhere/notify", "/", "@nobody-is-there", "vsock:2:1", "/" + "x" * 200])
def test_a_manager_that_is_not_there_harms_nobody(address: str) -> None:
    """What cannot be sent is no error; the loop goes on with its beats."""
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "6000000"})
    call_all(notifier)
    assert notifier.poll_s == 1


def test_a_manager_that_is_busy_stops_nobody(
    manager: socket.socket, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket full, nothing waits without an end; a beat that was lost comes with the next round."""
    monkeypatch.setattr(systemd, "PATIENCE_S", 0.01)
    notifier = Notifier(environment(manager, WATCHDOG_USEC="6000000"))
    fill(manager)
    call_all(notifier)
    assert set(heard(manager)) == {"noise"}
    notifier.alive()
    assert heard(manager) == ["WATCHDOG=1"]


def call_all(notifier: Notifier) -> None:
    notifier.ready("serves")
    notifier.alive()
    notifier.reloading()
    notifier.stopping()


def test_children_inherit_nothing(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there is a notifier, a child has neither the socket nor the watchdog, and all the rest."""
    for name, value in environment(manager, WATCHDOG_USEC="6000000", WATCHDOG_PID=str(os.getpid()), OTHER="x").items():
        monkeypatch.setenv(name, value)
    Notifier(os.environ)
    names = "NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID OTHER".split()
    code = f"import os; print([name for name in {names} if name in os.environ])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "['OTHER']\n"


SAYS_SOMETHING = """
import logging
from cf_messaged.cli import _log_to_stderr
_log_to_stderr()
log = logging.getLogger("cf_messaged.service")
log.info("begun")
log.warning("two\\nlines")
log.error("ended")
"""


def environment_of(reader: str, path: Path) -> dict[str, str]:
    """What systemd gives a service, one whose stderr is something else, and what nobody does."""
    path.touch()
    status = path.stat()
    streams = {"journal": f"{status.st_dev}:{status.st_ino}", "another": f"{status.st_dev}:1"}
    return {"JOURNAL_STREAM": streams.get(reader, "")}


@pytest.mark.parametrize("reader", ["journal", "another", "nobody"])
def test_lines_for_the_journal(tmp_path: Path, reader: str) -> None:
    """With their priority and without a time, if it is the journal that reads them; else as everybody wants them."""
    path, told = tmp_path / "lines", environment_of(reader, tmp_path / "lines")
    command = [sys.executable, "-c", SAYS_SOMETHING]
    with path.open("wb") as lines:
        subprocess.run(command, env={**os.environ, **told}, stderr=lines, check=True)
    begin = ["<6>", "<4>", "<3>"] if reader == "journal" else 3 * [r"20\d\d-\d\d-\d\dT\S+Z "]
    said = ["info: begun", r"warning: two\\nlines", "error: ended"]
    for line, *wanted in zip(path.read_text().splitlines(), begin, said, strict=True):
        assert re.fullmatch("".join(wanted), line)
