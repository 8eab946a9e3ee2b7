"""Where only warnings are promised nothing is said, bound or written; and what a run pays that has nothing to say."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import MODULE_PYTHON, Agent, Run, environment, standard_library
from peers import Peer

PATTERNS = ("request", "reply", "async_request", "async_reply", "publish", "subscribe", "push", "pull", "pair")
SPEAKING = ("request", "reply", "async_request", "async_reply", "publish", "push", "pair")
HEARING = ("request", "reply", "async_request", "async_reply", "subscribe", "pull", "pair")
SIDES = {"connect": "false", "bind": "true"}

MODES = {
    "--dry-run": ("", ["--dry-run"]),
    "--simulate=diff": ("", ["--simulate=diff"]),
    "warn": (', action => policy("warn")', []),
    "nop": (', action => policy("nop")', []),
}
ACTION = 'body action policy(it) { action_policy => "$(it)"; }\n'

# In place of messages_promise.py; at the end it writes the names of all modules that were imported.
RECORDER = """
import atexit, os, sys

@atexit.register
def record():
    with open(os.path.join(sys.path[0], "imported"), "w") as file:
        file.write("\\n".join(sys.modules))

from cf_messaging.promise import run
sys.exit(run())
"""

# Modules that cost an agent run milliseconds, and of which nothing is needed to say that there is nothing to say.
SLOW = {"argparse", "asyncio", "contextlib", "ctypes", "dataclasses", "difflib", "hashlib", "inspect", "ipaddress"}
SLOW |= {"logging", "pathlib", "pickle", "platform", "random", "shutil", "socket", "sqlite3", "subprocess", "tempfile"}
SLOW |= {"threading", "traceback", "typing", "urllib", "uuid", "zmq"}


@pytest.fixture
def recorded(agent: Agent) -> Agent:
    """An agent whose module tells what it has imported."""
    agent.install("messages_promise.py", RECORDER)
    return agent


def imported(agent: Agent) -> set[str]:
    """The modules that were imported in the last run, but for those of an interpreter that does nothing."""
    command = [MODULE_PYTHON, "-c", "import sys; print(*sys.modules)"]
    bare = subprocess.run(command, env=environment(agent.work), check=True, capture_output=True, text=True).stdout
    return set((agent.work / "modules/promises/imported").read_text().split("\n")) - set(bare.split())


def promises(peer: Peer, folder: Path, more: str = "") -> str:
    """Every pattern on both sides; what is bound and what is written is below the folder."""
    lines = ["messages:"]
    for pattern in PATTERNS:
        for side, bind in SIDES.items():
            name = f"{pattern}_{side}"
            endpoint = f"ipc://{folder}/{name}.ipc" if side == "bind" else peer.endpoint
            lines.append(f'"do {name}" pattern => "{pattern}", endpoint => "{endpoint}", bind => "{bind}",')
            if pattern in SPEAKING:
                lines.append('  payload => "said",')
            if pattern in HEARING:
                lines.append(f'  file => "{folder}/{name}",')
            lines.append(f'  timeout => "0.05", classes => outcome("{name}"){more};')
    return "\n".join(lines)


def empty_promises(peer: Peer, more: str = "") -> str:
    """Every pattern that speaks, with nothing to say."""
    return "messages:\n" + "".join(
        f'"empty {pattern}" pattern => "{pattern}", endpoint => "{peer.endpoint}", payload => {{}},\n'
        f'  classes => outcome("empty_{pattern}"){more};\n'
        for pattern in SPEAKING
    )


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Whatever is made, written or removed in the folder, for a moment only too, changes this."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.iterdir())}


def warnings(run: Run) -> list[str]:
    """All but the agent's own, of a simulation."""
    return [text for text in run.warnings if not text.startswith("All changes in files will be made in the ")]


def connections(silent: Peer) -> int:
    """How many there were before this one, which the peer, who accepts them in their order, sees last."""
    host, _, port = silent.endpoint.removeprefix("tcp://").rpartition(":")
    before = len(silent.events("accepted"))
    with socket.create_connection((host, int(port)), 30):
        return len(silent.wait_for(before + 1, "accepted")) - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some of the files that are promised are there already, with other contents."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("request_connect", "pull_connect", "subscribe_bind"):
        (folder / name).write_text("as it was")
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_dry_run(recorded: Agent, peer: Callable[..., Peer], folder: Path, mode: str) -> None:
    """Nothing leaves, is bound or written, nor is zmq imported; each promise warns once and sets no class."""
    silent, before = peer("tcp-silent"), contents(folder)
    more, options = MODES[mode]
    run = recorded.run(promises(silent, folder, more), before=ACTION, options=options)
    assert contents(folder) == before
    assert connections(silent) == 0
    assert "zmq" not in imported(recorded)
    assert run.classes == {f"{pattern}_{side}_not_kept" for pattern in PATTERNS for side in SIDES}
    assert not run.errors and not run.infos
    assert len(warnings(run)) == len(PATTERNS) * len(SIDES)
    for pattern in PATTERNS:
        for side in SIDES:
            assert_warned(run, recorded.root / "policy-0.cf", f"do {pattern}_{side}")


def assert_warned(run: Run, policy: Path, promiser: str) -> None:
    (warning,) = [text for text in warnings(run) if f"'{promiser}'" in text]
    line = next(n for n, text in enumerate(policy.read_text().splitlines(), start=1) if f'"{promiser}"' in text)
    assert warning.startswith(f"messages '{promiser}' ({policy}:{line}): Should ")
    assert warning.endswith(", but only warnings promised")


def test_without_dry_run(recorded: Agent, peer: Callable[..., Peer], folder: Path) -> None:
    """The same promises are seen to be acted upon otherwise: the test above would notice."""
    silent, before = peer("tcp-silent"), contents(folder)
    run = recorded.run(promises(silent, folder))
    assert contents(folder) != before
    assert connections(silent) > 0
    assert "zmq" in imported(recorded)
    assert not warnings(run)
    for name in (f"do_{pattern}_{side}_failed" for pattern in PATTERNS for side in SIDES):
        assert name in run.classes


@pytest.mark.parametrize("mode", ["as ever", *MODES])
def test_nothing_to_say(recorded: Agent, peer: Callable[..., Peer], mode: str) -> None:
    """An empty payload list is kept in any mode, without a word, a connection, a class or an import of zmq."""
    silent = peer("tcp-silent")
    more, options = MODES.get(mode, ("", []))
    run = recorded.run(empty_promises(silent, more), before=ACTION, options=options)
    assert run.classes == {f"empty_{pattern}_kept" for pattern in SPEAKING}
    assert not run.errors and not warnings(run) and not run.infos
    assert connections(silent) == 0
    assert "zmq" not in imported(recorded)


@pytest.mark.parametrize("mode", MODES)
def test_validation_in_a_dry_run(agent: Agent, mode: str) -> None:
    """A promise that could never be kept is an error in a dry run as well, and the only one."""
    more, options = MODES[mode]
    run = agent.run(
        f"""
      messages:
        "bad" pattern => "pubilsh", endpoint => "tcp://127.0.0.1:9", classes => outcome("bad"){more};
        "good" pattern => "pull", endpoint => "tcp://127.0.0.1:9", classes => outcome("good"){more};
        """,
        before=ACTION,
        options=options,
    )
    assert run.classes == {"bad_not_kept", "good_not_kept"}
    assert len([text for text in run.errors if "'bad'" in text]) == len(run.errors) == 1
    assert len(warnings(run)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_what_fails_in_a_dry_run(agent: Agent, mode: str) -> None:
    """A value that cannot be read, or that differs from another of its name, is an error, and sets no class."""
    more, options = MODES[mode]
    fact = 'information => "static", endpoint => "tcp://127.0.0.1:9"'
    run = agent.run(
        f"""
      messages:
        "file" {fact}, payload_file => "/none/there", classes => outcome("file"){more};
        "os" {fact}, payload => "1", classes => outcome("one"){more};
        "os" {fact}, payload => "2", classes => outcome("other"){more};
        """,
        before=ACTION,
        options=options,
    )
    assert run.classes == {"file_not_kept", "one_not_kept", "other_not_kept"}
    assert len(run.errors) == 2 and len(warnings(run)) == 1


def test_fix_is_no_dry_run(agent: Agent, peer: Callable[..., Peer]) -> None:
    """action_policy "fix" is how things are anyway; a promise beside one that only warns is kept."""
    puller = peer("pull")
    run = agent.run(
        """
      messages:
        "no"
          pattern => "push", endpoint => "$(peer)", payload => "no",
          action => policy("warn"), classes => outcome("n");
        "yes"
          pattern => "push", endpoint => "$(peer)", payload => "yes",
          action => policy("fix"), classes => outcome("y");
        """,
        before=ACTION,
        vars={"peer": puller.endpoint},
    )
    assert run.classes == {"n_not_kept", "y_repaired", "yes_sent"}
    assert [event.frames for event in puller.wait_for(1)] == [(b"yes",)]


def test_what_a_kept_promise_imports(recorded: Agent, peer: Callable[..., Peer]) -> None:
    """Nothing slow, and nothing that is neither ours nor the standard library's."""
    recorded.run(empty_promises(peer("tcp-silent")))
    names = imported(recorded)
    packages = {name.split(".")[0] for name in names}
    assert not packages & SLOW, sorted(names)
    assert packages <= {"original", "cfengine", "cf_messaging"} | standard_library(), sorted(names)
    assert "cf_messaging.patterns" in names and "cf_messaging.exchange" not in names
