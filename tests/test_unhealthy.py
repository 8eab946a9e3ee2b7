"""A machine that is not healthy: what it can do is done, for the rest there is one clear error, and the run goes on."""

from __future__ import annotations

import ast
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agent import MODULE_PYTHON, Agent, Run, Running, environment, program
from peers import Gate, Peer, refused_endpoint, scaled
from test_failures import Failed, Start, failure, outcome, policy, promise
from test_house import NODE_FILES, each_node_file, imports
from test_time import module_of

Mount = Callable[..., None]


def wrapped_python(folder: Path, before: str = "", options: str = "") -> str:
    """An interpreter for the module: a shell script that does something and then becomes Python."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\n{before}\nexec {MODULE_PYTHON} {options} "$@"\n')
    script.chmod(0o700)
    return str(script)


def check_local(run: Run, names: Sequence[str], *words: str) -> None:
    """Each failed for a reason that lies on this node, in one error line with these words."""
    for name in names:
        failed = failure(run, name)
        assert failed.reason == "local" and all(word.lower() in failed.text.lower() for word in words), failed


def outcomes(run: Run, names: Sequence[str]) -> list[str]:
    return [outcome(run, name) for name in names]


def folder_of(user: int, path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, user, user)
    return path


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to mount, and to be another user")


@pytest.fixture
def mount(root: None) -> Iterator[Mount]:
    """Mounts, `mount(folder, "-t", "tmpfs", "none")`, and unmounts with the test, the last one first."""
    with ExitStack() as mounted:

        def mount(folder: Path, *options: str) -> None:
            done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"cannot mount: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield mount


# ---- a full disk


def fill(folder: Path, filler: bytes) -> None:
    """Makes files until there is no room for another one."""
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - which of the two it is depends on the filler
        for number in range(10_000):
            with (folder / f"filler-{number}").open("wb", buffering=0) as file:
                while filler and file.write(filler):
                    pass


@pytest.mark.parametrize("filler", [b"x" * 4096, b""], ids=["blocks", "inodes"])
def test_a_full_disk(agent: Agent, peer: Start, mount: Mount, tmp_path: Path, filler: bytes) -> None:
    """Of either format: _local, the old file stays whole or none is made, and no rest of the attempt stays beside it.

    An answer that the file holds already needs no room, and is kept.
    """
    disk = folder_of(os.getuid(), tmp_path / "disk")
    mount(disk, "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "none")
    text = "x" * 5000
    for name, content in {"text": "old", "json": '["old"]', "equal": text}.items():
        (disk / name).write_text(content)
    fill(disk, filler)
    before = {path.name: path.read_bytes() for path in disk.iterdir()}

    listener = peer("rep", "--answer", text)
    files = {name: f'file => "{disk}/{name}"' for name in ("text", "json", "fresh", "equal")}
    files["json"] += ', format => "json"'
    asked = {name: promise("request", listener.endpoint, more, 20) for name, more in files.items()}
    run = agent.run(policy({**asked, "last": promise("request", listener.endpoint, "", 20)}))

    for name in ("text", "json", "fresh"):
        check_local(run, [name], f"{disk}/{name} ", "No space left")
    assert outcomes(run, ["equal", "last"]) == ["kept", "repaired"] and "equal_received" in run.classes
    assert len(run.errors) == 3 and {path.name: path.read_bytes() for path in disk.iterdir()} == before


# ---- a read-only file system


@pytest.mark.parametrize("part", ["modules", "."])
def test_a_read_only_work_directory(agent: Agent, peer: Start, mount: Mount, part: str) -> None:
    """What writes nothing there is kept as ever, without compiled modules too; a file there is _local, and says why.

    Of a work directory that is read-only as a whole cf-agent complains itself, of its locks even as CRITICAL.
    """
    shutil.rmtree(agent.work / "modules/promises/__pycache__", ignore_errors=True)
    shutil.rmtree(agent.work / "modules/promises/cf_messaging/__pycache__", ignore_errors=True)
    place = agent.work / part
    (agent.work / "modules/old").write_text("old")
    mount(place, "-o", "bind,ro", str(place))

    listener = peer("rep")
    files = {name: f'file => "{agent.work}/modules/{name}"' for name in ("old", "new")}
    asked = {name: promise("request", listener.endpoint, more, 20) for name, more in files.items()}
    for name in ("first", "last"):
        asked[name] = promise("request", listener.endpoint, f'payload => "{name}", file => "{agent.root}/{name}"', 20)
    run = agent.run(policy(asked), allow_critical=part == ".")

    assert outcomes(run, ["first", "last"]) == ["repaired", "repaired"]
    assert [(agent.root / name).read_text() for name in ("first", "last")] == ["first", "last"]
    assert listener.received == [(b"first",), (b"last",)] and (agent.work / "modules/old").read_text() == "old"
    assert not [text for text in (*run.critical, *run.stray) if "romise module" in text or "Traceback" in text]
    check_local(run, ["old"], f"{agent.work}/modules/old ", "read-only")
    check_local(run, ["new"], f"{agent.work}/modules/new ", "read-only")


# ---- no zmq


def test_python_without_zmq(agent: Agent, peer: Start) -> None:
    """Each promise that needs zmq is _local and names the package and for which Python; a wrong one is told so."""
    listener = peer("rep")
    promises = {
        "asked": promise("request", listener.endpoint),
        "heard": promise("pull", listener.endpoint, f'file => "{agent.root}/heard"'),
        "wrong": promise("pubilsh", listener.endpoint),
        "nothing": promise("push", listener.endpoint, "payload => { }"),
    }
    # -S: without its site directories Python has only its standard library.
    run = agent.run(policy(promises), interpreter=wrapped_python(agent.root, options="-S"))
    check_local(run, ["asked", "heard"], "No module named 'zmq'", "install", "python3-zmq", MODULE_PYTHON)
    assert outcomes(run, ["wrong", "nothing"]) == ["not_kept", "kept"]
    (invalid,) = [text for text in run.errors if "'wrong'" in text]
    assert "did you mean 'publish'" in invalid and "python3-zmq" not in invalid
    assert len(run.errors) == 3 and listener.received == [] and not (agent.root / "heard").exists()


# ---- no file descriptors

ENOUGH = 128
LIMITS = (*range(3, 40), ENOUGH)
HEALTHY = {"nothing": "kept", "bound": "repaired", "asked": "repaired", "dead": "not_kept", "after": "kept"}


def starved_promises(folder: Path, listener: Peer) -> dict[str, str]:
    """Promises that need none, many, some, and again no descriptors."""
    nothing = promise("push", listener.endpoint, "payload => { }")
    return {
        "nothing": nothing,
        "bound": promise("reply", f"ipc://{folder}/bound", 'bind => "true"', 30),
        "asked": promise("request", listener.endpoint, f'file => "{folder}/asked"', 30),
        "dead": promise("push", refused_endpoint()),
        "after": nothing,
    }


@pytest.fixture(scope="module")
def starved(agent_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Run]]:
    """The same run for each limit on the descriptors of the module, all at once."""
    root = tmp_path_factory.mktemp("starved")
    with ExitStack() as stack:
        listener = stack.enter_context(Peer.start("rep"))
        running = {}
        for limit in LIMITS:
            agent = stack.enter_context(closing(Agent(root / str(limit), agent_template)))
            stack.enter_context(Peer.start("req", "--connect", f"ipc://{agent.root}/bound"))
            interpreter = wrapped_python(agent.root, f"ulimit -n {limit}")
            running[limit] = agent.start(policy(starved_promises(agent.root, listener)), interpreter=interpreter)
        yield {limit: run.finish(allow_critical=True) for limit, run in running.items()}


def starts(run: Run) -> bool:
    """Whether Python and the module had enough to begin."""
    return "nothing_kept" in run.classes


@pytest.mark.parametrize("limit", LIMITS)
def test_too_few_descriptors(starved: Mapping[int, Run], limit: int) -> None:
    """Each promise ends as on a healthy machine, or is _local because of too many open files; the module never dies.

    Where it cannot even start, cf-agent says so of each promise, goes on, and our own code leaves no traceback.
    """
    run = starved[limit]
    assert run.status == 0 and not run.critical, run.output
    assert "/modules/promises/" not in "".join(run.stray), run.output  # a traceback would name our files
    if not starts(run):
        assert outcomes(run, [*HEALTHY]) == ["not_kept"] * len(HEALTHY), run.output
        assert all("Did not receive header from promise module" in text for text in run.errors), run.output
        return
    short = [
        name for name, healthy in HEALTHY.items() if outcome(run, name) != healthy or f"{name}_local" in run.classes
    ]
    check_local(run, short, "too many open files")
    assert not {"nothing", "after"} & {*short} and failure(run, "dead").reason in ("unreachable", "local")
    assert len(run.errors) == len({*short, "dead"}) and not run.stray


def test_enough_descriptors(starved: Mapping[int, Run]) -> None:
    """With the most all is well, with some the module starts but has too few, with the fewest it does not start."""
    enough = starved[ENOUGH]
    assert {name: outcome(enough, name) for name in HEALTHY} == HEALTHY
    assert failure(enough, "dead").reason == "unreachable"
    assert not starts(starved[LIMITS[0]])
    assert any(starts(run) and outcome(run, "asked") == "not_kept" for run in starved.values())


# ---- other users

NOBODY = pwd.getpwnam("nobody").pw_uid
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def give(path: Path, user: int) -> None:
    """All of it belongs to the user from now on."""
    for folder, _, names in os.walk(path):
        for name in (".", *names):
            os.chown(os.path.join(folder, name), user, user, follow_symlinks=False)


class NobodysAgent(Agent):
    """Runs as nobody, to whom all below its root belongs."""

    def _launch(self, policy: Path, options: Sequence[str], env: Mapping[str, str], seen: Path | None) -> Running:
        give(self.root, NOBODY)
        command = [*AS_NOBODY, program("cf-agent"), "--no-lock", "-K", *options, "-f", str(policy)]
        output = self.root / f"output-{len(self._runs)}"
        running = Running(command, {**environment(self.work), **env}, output, seen)
        self._runs.append(running)
        return running


@pytest.fixture
def common(root: None) -> Iterator[Path]:
    """A folder that nobody can reach, which tmp_path is not; skips where nobody could not run the module there."""
    with tempfile.TemporaryDirectory(prefix="messages-test-") as name:
        os.chmod(name, 0o755)
        probe = [*AS_NOBODY, MODULE_PYTHON, "-c", f"import os, zmq; os.chdir({name!r})"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nobody cannot run {MODULE_PYTHON} in {name}: {done.stderr.strip()[-200:]}")
        yield Path(name)


def test_modules_and_folders_of_another_user(agent: Agent, peer: Start, root: None, tmp_path: Path) -> None:
    """cf-agent of root runs modules whosever they are, and they write into anybody's folder, a file of root's own."""
    give(agent.work / "modules", NOBODY)
    theirs = folder_of(NOBODY, tmp_path / "theirs", 0o700)
    (theirs / "old").write_text("old")
    os.chown(theirs / "old", NOBODY, NOBODY)
    listener = peer("rep", "--answer", "World")
    names = ["old", "new"]
    files = {name: promise("request", listener.endpoint, f'file => "{theirs}/{name}"', 20) for name in names}
    run = agent.run(policy(files))
    assert outcomes(run, names) == ["repaired", "repaired"] and not run.errors and not run.warnings
    assert sorted(path.name for path in theirs.iterdir()) == ["new", "old"]
    assert {(path.read_text(), path.stat().st_uid, path.stat().st_mode) for path in theirs.iterdir()} == {
        ("World", 0, 0o100600)
    }


def test_an_agent_that_is_not_root(peer: Start, common: Path, agent_template: Path) -> None:
    """On a work directory of its own it keeps promises; what it may not write or read is _local, and says so.

    In a folder like /tmp, where everybody may write but replace only what is his own, that is seen only at the end.
    """
    theirs = folder_of(0, common / "theirs")
    sticky = folder_of(0, common / "sticky", 0o1777)
    for secret in (theirs / "secret", sticky / "file"):
        secret.write_text("old")
        secret.chmod(0o600)
    listener = peer("rep", "--answer", "World")
    with closing(NobodysAgent(common / "agent", agent_template)) as agent:
        files = {"own": agent.root / "own", "foreign": theirs / "file", "sticky": sticky / "file"}
        asked = {
            name: promise("request", listener.endpoint, f'payload => "{name}", file => "{path}"', 20)
            for name, path in files.items()
        }
        asked["secret"] = promise("request", listener.endpoint, f'payload_file => "{theirs}/secret"', 20)
        run = agent.run(policy({**asked, "last": promise("request", listener.endpoint, 'payload => "last"', 20)}))
    assert outcomes(run, ["own", "last"]) == ["repaired", "repaired"] and len(run.errors) == 3
    check_local(run, ["foreign"], f"{theirs}/file ", "no permission")
    check_local(run, ["sticky"], f"{sticky}/file ", "not permitted")
    check_local(run, ["secret"], f"{theirs}/secret ", "permission denied")
    assert (files["own"].read_text(), files["own"].stat().st_uid) == ("World", NOBODY)
    assert listener.received == [(b"own",), (b"sticky",), (b"last",)]
    assert [path.name for path in sticky.iterdir()] == ["file"] and (sticky / "file").read_text() == "old"


# ---- a peer that is stopped

STOPPED_S = 10


def test_a_stopped_peer(agent: Agent, peer: Start, agent_template: Path, tmp_path: Path) -> None:
    """SIGSTOP: a short request to a peer that was there is _timed_out; a long one is answered once it goes on.

    It is answered whether the peer stopped before or after the connection was made. Of one that stops before, a short
    request sees no ZeroMQ at all, and cannot tell it from a listener that is none: _refused.
    """
    peers = {name: peer("rep") for name in ("short", "long", "short_new", "long_new")}

    def asked(*names: str, timeout_s: float, prefix: str = "") -> str:
        return policy({prefix + name: promise("request", peers[name].endpoint, "", timeout_s) for name in names})

    with Gate() as before, Gate() as between, closing(Agent(tmp_path / "other", agent_template)) as other:
        greetings = asked("short", "long", timeout_s=30, prefix="greet_")
        short, long = asked("short", "short_new", timeout_s=2), asked("long", timeout_s=30)
        running = agent.start(greetings + before.promise + short + between.promise + long)
        before.reached()
        for each in peers.values():
            each.stop()
        before.open()
        between.reached()
        running_new = other.start(asked("long_new", timeout_s=30))
        between.open()
        time.sleep(STOPPED_S)  # not to wait for anything: this is how long they are stopped
        heard = [len(each.received) for each in peers.values()]
        for each in peers.values():
            each.cont()
        run, run_new = running.finish(), running_new.finish()
    assert heard == [1, 1, 0, 0] and len(peers["long"].received) == 2 and len(peers["long_new"].received) == 1
    assert outcomes(run, ["greet_short", "greet_long", "long"]) == ["repaired"] * 3
    assert outcome(run_new, "long_new") == "repaired" and not run_new.errors and len(run.errors) == 2
    seen = f"timed out: connected, but no answer in time (timeout {scaled(2):g} s)"
    assert failure(run, "short") == Failed("timed_out", f"{peers['short'].endpoint} {seen}")
    refused = failure(run, "short_new")
    assert refused.reason == "refused" and "handshake does not succeed" in refused.text


# ---- a clock that is set

# Between a process and the wall clock: whoever asks for the time, Python, libzmq or any other library, is told so many
# seconds more as the symbolic link $CLOCK_OFFSET says. The monotonic clock is left alone, as by who sets a clock.
SHIFTED_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t offset(void)
{
    char text[32] = "";
    const char *link = getenv("CLOCK_OFFSET");
    return link && readlink(link, text, sizeof text - 1) > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return status;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone)
{
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    (void)zone;
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return status;
}
"""


class Clock:
    """The wall clock of a Python that is started as `interpreter`."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.library = library
        self._link = folder / "offset"
        self._offset_s = 0
        self.interpreter = wrapped_python(folder, f"export LD_PRELOAD={library} CLOCK_OFFSET={self._link}")

    def jump(self, seconds: int) -> None:
        self._offset_s += seconds
        self._link.with_suffix(".new").symlink_to(str(self._offset_s))
        os.replace(self._link.with_suffix(".new"), self._link)

    def times(self) -> tuple[float, float]:
        """What such a Python reads, of the wall clock and the monotonic one."""
        code = "import time; print(time.time(), time.monotonic())"
        wall, monotonic = subprocess.check_output([self.interpreter, "-c", code], text=True).split()
        return float(wall), float(monotonic)

    def serves(self, process: int) -> bool:
        return str(self.library) in Path(f"/proc/{process}/maps").read_text()


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a library that shifts the clock of one process")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(SHIFTED_CLOCK)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return Clock(tmp_path, library)


@pytest.mark.parametrize("jump_s", [-3600, 3600], ids=["back", "forward"])
def test_the_clock_is_set_during_a_wait(agent: Agent, peer: Start, clock: Clock, jump_s: int) -> None:
    """By an hour, while the module waits for an answer: a slow one is still awaited, a missing one not for ever.

    Proven for all that the module's process reads of the wall clock; the machine's own clock stays as it is, so what
    the kernel itself would do with a deadline of the wall clock is not.
    """
    slow, silent = peer("rep", "--delay", "0.5"), peer("silent-router")
    # The second request of the first promise is said, and waited for, by a clock that is an hour off.
    promises = {
        "slow": promise("request", slow.endpoint, 'payload => { "a", "b" }', 60),
        "silent": promise("request", silent.endpoint, "", 2),
    }
    with Gate() as gate:
        running = agent.start(policy(promises) + gate.promise, interpreter=clock.interpreter)
        for waited_for in (slow, silent):
            waited_for.wait_for(1)
            clock.jump(jump_s)
        gate.reached()
        assert clock.serves(module_of(running.pid))
        gate.open()
        run = running.finish()
    wall, monotonic = clock.times()
    assert abs(wall - time.time() - 2 * jump_s) < 600 and abs(monotonic - time.monotonic()) < 600
    assert outcome(run, "slow") == "repaired" and "gate_delivered" in run.classes
    assert failure(run, "silent").reason == "timed_out" and len(run.errors) == 1


@each_node_file
def test_no_node_file_asks_for_the_wall_clock(path: Path) -> None:
    """Of all clocks, node files know the monotonic one alone; but for what is stored and said, its deadlines apart."""
    clocks = {name for name in imports(path) if name.split(".")[0] in ("time", "datetime")}
    assert clocks <= ({"time"} if path.stem in KNOW_THE_TIME else {"time.monotonic"})


def test_no_deadline_is_of_the_wall_clock() -> None:
    """Where the wall clock is known, no deadline is reckoned from it: deadlines come from the start of the promise."""
    trees = [ast.parse(path.read_bytes()) for path in NODE_FILES if path.stem in KNOW_THE_TIME]
    tree = ast.Module([statement for each in trees for statement in each.body], [])
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in CONVERSES]
    assert len(calls) >= 3
    for call in calls:
        assert "time" not in names_in(call.args[-1]) and "now" not in names_in(call.args[-1]), ast.unparse(call)
    deadlines = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and "deadline" in names_in(node)]
    assert not [ast.unparse(value) for value in deadlines if {"now"} & names_in(value)]


KNOW_THE_TIME = ("information", "delivery", "enrolment", "explain", "keys")
CONVERSES = {"self._converse", "self._ask"}


def names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def test_deadlines_are_of_the_monotonic_clock() -> None:
    """The test before this one reads what it should: there are node files with deadlines."""
    assert any("time.monotonic" in imports(path) for path in NODE_FILES)
