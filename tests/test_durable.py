"""On disk before a word is said of it: what strace sees of a cf-messaged that acknowledges, and of a node that says.

A loss of power cannot be tried here. That what was written before a sync survives it is the kernel's promise; that the
sync is there, and in time, is ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

import listener
from agent import MODULE_PYTHON
from cf_messaging.wire import STORED
from listener import COMMAND, HISTORY, ROOT, Node, event
from peers import Socket, scaled
from test_cfengine import HEADER, TERMINATE, evaluate, read_answers
from test_information import sql
from test_service import Start, start, statuses  # noqa: F401 - a fixture

# ---- what a trace tells

WRITES = "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg".split(",")
SYNCS = ["fsync", "fdatasync"]
ID = re.compile(r"[0-9a-f]{32}-[0-9]{12}")
BEGUN = re.compile(r"(?P<thread>[0-9]+) +(?P<name>[a-z0-9]+)\([0-9]+<(?P<file>[^>]*)>(?P<more>.*)")
RESUMED = re.compile(r"(?P<thread>[0-9]+) +<\.\.\. [a-z0-9]+ resumed>")
DONE = re.compile(r"\) += [0-9]+$")  # not -1, nor ? where the process was killed in it


class Call(NamedTuple):
    """A system call that has begun. ids: that it writes; logged: that were in the log by then."""

    name: str
    file: str
    ids: frozenset[str]
    logged: frozenset[str]


class Disk:
    """What of the ids in a trace is in the log of the database, and what of that is synced, line after line."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}  # by thread
        self._logged: set[str] = set()
        self._synced: set[str] = set()
        self._ends: defaultdict[str, str] = defaultdict(str)  # of what was sent on each socket, where an id may begin
        self.unsynced: list[str] = []

    def read(self, line: str) -> None:
        begun = BEGUN.match(line)
        if begun:
            self._begin(**begun.groupdict())
        called = begun or RESUMED.match(line)
        if called and not line.endswith("<unfinished ...>"):
            self._return(self._calls.pop(called["thread"]), done=bool(DONE.search(line)))

    def _begin(self, thread: str, name: str, file: str, more: str) -> None:
        self._calls[thread] = Call(name, file, frozenset(ID.findall(more)), frozenset(self._logged))
        if file.startswith("socket:"):
            self._send(file, more)

    def _send(self, socket: str, more: str) -> None:
        sent = self._ends[socket] + more.partition('"')[2].rpartition('"')[0]
        self._ends[socket] = sent[-44:]  # an id, less a character
        self.unsynced += [id for id in ID.findall(sent) if id not in self._synced]

    def _return(self, call: Call, done: bool) -> None:
        if not done or not call.file.endswith("-wal"):
            return
        if call.name in SYNCS:
            self._synced |= call.logged
        else:
            self._logged |= call.ids


def unsynced(trace: list[str]) -> list[str]:
    """The ids that left on a socket, though no sync of the log had begun after they were in it, and returned."""
    disk = Disk()
    for line in trace:
        disk.read(line)
    return disk.unsynced


def said(text: str) -> str:
    return f'8 sendto(9<socket:[1]>, "{text}", 60, 0, NULL, 0) = 60'


ONE = "0123456789abcdef" * 2 + "-000000000001"
LOGGED = rf'7 pwrite64(3</store.db-wal>, "\0\7{ONE}web1", 4096, 56) = 4096'
SYNCED = "7 fdatasync(3</store.db-wal>) = 0"
SYNC_BEGUN = "7 fdatasync(3</store.db-wal> <unfinished ...>"
SAID = said(rf"{{\"id\":\"{ONE}\"}}")
TRACES = {
    "synced": ([LOGGED, SYNCED, SAID], []),
    "never synced": ([LOGGED, SAID], [ONE]),
    "never written": ([SYNCED, SAID], [ONE]),
    "synced before it was written": ([SYNCED, LOGGED, SAID], [ONE]),
    "synced after it was said": ([LOGGED, SAID, SYNCED], [ONE]),
    "another file was synced": ([LOGGED, SYNCED.replace("-wal", ""), SAID], [ONE]),
    "the sync failed": ([LOGGED, SYNCED.replace("0", "-1 EIO (Input/output error)"), SAID], [ONE]),
    "killed in the sync": ([LOGGED, SYNC_BEGUN, "7 <... fdatasync resumed>) = ?", SAID], [ONE]),
    "the sync returned": ([LOGGED, SYNC_BEGUN, "7 <... fdatasync resumed>) = 0", SAID], []),
    "the sync returned later": ([LOGGED, SYNC_BEGUN, SAID, "7 <... fdatasync resumed>) = 0"], [ONE]),
    "the sync began before it was written": (
        [SYNC_BEGUN, LOGGED.replace("7 ", "6 "), "7 <... fdatasync resumed>) = 0", SAID],
        [ONE],
    ),
    "the sync began while it was written": (
        [
            LOGGED.replace(") = 4096", " <unfinished ...>"),
            SYNCED.replace("7", "6"),
            "7 <... pwrite64 resumed>) = 9",
            SAID,
        ],
        [ONE],
    ),
    "said in two pieces": ([LOGGED, said(rf"{{\"id\":\"{ONE[:9]}"), said(rf"{ONE[9:]}\"}}")], [ONE]),
}


@pytest.mark.parametrize("case", TRACES)
def test_the_check(case: str) -> None:
    """It sees a sync that is missing, too early, too late, that failed, or is of another file."""
    trace, wanted = TRACES[case]
    assert unsynced(trace) == wanted


# ---- strace


@pytest.fixture
def strace(tmp_path: Path) -> list[str]:
    """The command that puts what follows it on trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not on PATH")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace cannot trace here: {tried.stderr.strip()}")
    calls = ",".join(WRITES + SYNCS)
    return ["strace", "-f", "-y", "-s", "65536", "-e", f"trace={calls}", "-o", str(tmp_path / "trace")]


def traced(folder: Path) -> list[str]:
    """The lines of a trace that is whole."""
    lines = (folder / "trace").read_text("ascii").splitlines()
    assert lines[-1].endswith("+++ exited with 0 +++")
    return lines


def without_syncs(trace: list[str]) -> list[str]:
    return [line for line in trace if not re.match(r"[0-9]+ +(<\.\.\. )?f(data)?sync\b", line)]


# ---- the listener

# Each says its own id, which is numbers in the log, in its data too.
EVENTS = [event(sequence, data=event(sequence).id) for sequence in range(1, 301)]
UNSAFE_LISTENER = """
from cf_messaged import cli, sqlite
def unsafe(connection):
    connection.execute("PRAGMA synchronous = OFF")
sqlite._sync = unsafe
cli.main()
"""


@pytest.fixture
def acknowledge(
    start: Start,  # noqa: F811
    plain: zmq.Context[Socket],
    monkeypatch: pytest.MonkeyPatch,
    strace: list[str],
) -> Callable[..., list[str]]:
    """The trace of a cf-messaged, started so, that acknowledges all events, some one by one and some together."""

    def acknowledge(*command: str) -> list[str]:
        # By -D it is the listener that is ended, and strace thereby; what reads the listener's stderr waits for both.
        monkeypatch.setattr(listener, "COMMAND", [*strace, "-D", *command])
        running = start()
        node = Node(plain, running.endpoint)
        answers = [*map(node.say, EVENTS[:100]), *node.say_all(EVENTS[100:])]
        assert set(statuses(answers)) == {STORED}
        assert running.end() == 0
        return traced(running.store.parent)

    return acknowledge


def test_acknowledged_when_synced(acknowledge: Callable[..., list[str]]) -> None:
    """No acknowledgement leaves before the transaction of its event is synced."""
    trace = acknowledge(*COMMAND)
    assert unsynced(trace) == []
    assert set(unsynced(without_syncs(trace))) == {each.id for each in EVENTS}  # so it saw them all


def test_acknowledged_without_syncs(acknowledge: Callable[..., list[str]]) -> None:
    """The check fails for every event where SQLite does not sync."""
    trace = acknowledge(sys.executable, "-c", UNSAFE_LISTENER)
    assert set(unsynced(trace)) == {each.id for each in EVENTS}


# ---- the node

PROMISES = [f"load {number}" for number in range(150)]
UNSAFE_NODE = """
from cf_messaging import memory, promise
checked = memory._checked
def unsafe(*arguments):
    connection = checked(*arguments)
    connection.execute("PRAGMA synchronous = OFF")
    return connection
memory._checked = unsafe
promise.run()
"""


def saying(endpoint: str, folder: Path, command: list[str]) -> list[str]:
    """The trace of a node whose promises are all delivered."""
    common = {"information": "state", "endpoint": endpoint, "timeout": str(scaled(30)), "state_dir": str(folder)}
    sent = b"".join(evaluate(name, payload=name, node="web1", **common) for name in PROMISES)
    done = subprocess.run(
        command, input=HEADER + sent + TERMINATE, check=True, capture_output=True, cwd=ROOT, timeout=scaled(120)
    )
    *answers, _ = read_answers(done.stdout)
    assert [answer.result for answer in answers] == ["repaired"] * len(PROMISES)
    return traced(folder)


def ids(store: Path) -> set[str]:
    return {id for (id,) in sql(store, f"SELECT id FROM {HISTORY}")}


def test_said_when_synced(start: Start, tmp_path: Path, strace: list[str]) -> None:  # noqa: F811
    """No event leaves before it is synced in the queue."""
    running = start()
    trace = saying(running.endpoint, tmp_path, [*strace, MODULE_PYTHON, str(ROOT / "messages_promise.py")])
    assert unsynced(trace) == []
    said = ids(running.store)
    assert len(said) == len(PROMISES) and set(unsynced(without_syncs(trace))) == said  # so it saw them all


def test_said_without_syncs(start: Start, tmp_path: Path, strace: list[str]) -> None:  # noqa: F811
    """The check fails for every event where SQLite does not sync."""
    running = start()
    trace = saying(running.endpoint, tmp_path, [*strace, MODULE_PYTHON, "-c", UNSAFE_NODE])
    assert set(unsynced(trace)) == ids(running.store)
