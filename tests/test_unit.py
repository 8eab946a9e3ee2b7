"""The unit of systemd among the examples: systemd takes it, and what it starts gets on with what it says."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import tomllib
import zmq

import listener
from cf_messaged.config import Config
from cf_messaged.sockets import RESERVE
from cf_messaging.wire import ANSWERED, STORED
from listener import COMMAND, ROOT, Node, event
from peers import Socket, scaled
from test_cfengine import wait_for
from test_durable import strace  # noqa: F401 - a fixture
from test_metrics import scrape
from test_reload import systemd, told  # noqa: F401 - a fixture
from test_service import Start, start  # noqa: F401 - a fixture

UNIT = ROOT / "examples/cf-messaged.service"
OPERATE = (ROOT / "docs/operate.md").read_text("utf-8")
SETTINGS = dict(re.findall(r"^([A-Za-z]+)=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE))
PROGRAM, *WORDS = shlex.split(SETTINGS["ExecStart"])


def options(folder: Path) -> list[str]:
    """Those that the unit starts it with, but for a file of settings of this test."""
    settings = folder / "settings.toml"
    settings.write_text('metrics = "127.0.0.1:0"\n')
    assert WORDS == ["run", "--config", "/etc/cf-messaged.toml"]
    return ["--config", str(settings)]


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on PATH")
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=scaled(60))


@pytest.mark.parametrize(
    ("changed", "complaints"), [("", 0), ("ProtectSytem=strict", 1)], ids=["as it is", "with a misspelled setting"]
)
def test_systemd_takes_it(tmp_path: Path, changed: str, complaints: int) -> None:
    """Every setting is one that this systemd knows, with a value that it takes; another one is told."""
    unit = tmp_path / "cf-messaged.service"
    text = UNIT.read_text("utf-8").replace(PROGRAM, "/bin/true").replace("[Install]", f"{changed}\n[Install]")
    unit.write_text(text)
    told = systemd_analyze("verify", str(unit)).stderr.splitlines()
    assert len([line for line in told if unit.name in line]) == complaints, told  # other units may have their own


def test_it_fits_the_defaults() -> None:
    """The store is where it may write, and there are descriptors for all the connections."""
    assert Config().store == f"sqlite:////var/lib/{SETTINGS['StateDirectory']}/store.db"
    assert int(SETTINGS["LimitNOFILE"]) > Config().connections + RESERVE


def test_the_document_says_the_same() -> None:
    """Where docs/operate.md installs the program, its settings and its user, the unit looks for them."""
    home = f"useradd --system --home-dir /var/lib/{SETTINGS['StateDirectory']}"
    wanted = [PROGRAM.rpartition("/")[0], home, *WORDS, f"{UNIT.parent.name}/{UNIT.name}"]
    assert [words for words in wanted if words not in OPERATE] == []
    assert re.search(rf"^useradd .* {SETTINGS['User']}$", OPERATE, re.MULTILINE)


def test_the_settings_of_the_document() -> None:
    """It shows every setting with its default, but one; of keys and of the operator's views, where they may be; rights
    are shown by rules that hold.
    """
    [block] = re.findall(r"```\n(store = .*?)```", OPERATE, re.DOTALL)
    defaults = asdict(Config())
    del defaults["insecure"], defaults["rights"]
    places = {"keys_dir": "/var/lib/cf-messaged/keys", "views_dir": "/etc/cf-messaged/views"}
    assert tomllib.loads(block) == {**defaults, **places}
    [rules] = re.findall(r"```\n(\[\[rights\]\].*?)```", OPERATE, re.DOTALL)
    assert len(Config(**tomllib.loads(rules)).rights) == 2


def test_what_it_starts(
    start: Start,  # noqa: F811
    systemd: socket.socket,  # noqa: F811
    tmp_path: Path,
    plain: zmq.Context[Socket],
) -> None:
    """It gets ready with these options, serves, reads its settings again when told as the unit says, and ends well."""
    running = start(*options(tmp_path))
    told(systemd, "READY=1")
    told(systemd, "WATCHDOG=1")
    assert Node(plain, running.endpoint).say(event()).status == STORED
    assert running.endpoints["metrics"].startswith("127.0.0.1:")
    wait_for(lambda: scrape(running.endpoints["metrics"])["cf_messaged_stored_total", ""] == 1)
    subprocess.run(shlex.split(SETTINGS["ExecReload"].replace("$MAINPID", str(running.process.pid))), check=True)
    told(systemd, "RELOADING=1")
    told(systemd, "READY=1")
    running.wait_for("the settings are read again")
    assert running.end(signal.SIGTERM) == 0  # or it would be started again
    told(systemd, "STOPPING=1")


def allowed_calls() -> set[str]:
    """The system calls that the unit allows."""
    calls, sets = set(), [SETTINGS["SystemCallFilter"]]
    while sets:
        listed = systemd_analyze("syscall-filter", sets.pop()).stdout
        names = re.findall(r"^ +(@?[a-z0-9_-]+)$", listed, re.MULTILINE)
        sets += [name for name in names if name.startswith("@")]
        calls.update(names)
    return calls


def test_its_system_calls_are_allowed(
    start: Start,  # noqa: F811
    strace: list[str],  # noqa: F811
    tmp_path: Path,
    plain: zmq.Context[Socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it does from its start to its end, with events, a view, a scrape and a reload, the unit lets it do."""
    allowed, trace = allowed_calls(), tmp_path / "calls"
    monkeypatch.setattr(listener, "COMMAND", ["strace", "-D", "-f", "-o", str(trace), *COMMAND])
    running = start(*options(tmp_path))
    node = Node(plain, running.endpoint)
    assert {node.say(event()).status, node.ask("nodes").status} == {STORED, ANSWERED}
    assert scrape(running.endpoints["metrics"])
    running.process.send_signal(signal.SIGHUP)
    running.wait_for("the settings are read again")
    assert running.end() == 0
    made = set(re.findall(r"^[0-9]+ +([a-z0-9_]+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    assert {"fdatasync", "setrlimit", "execve"} & made and made <= allowed, made - allowed
