"""The loop: nodes under a real cf-agent tell a real cf-messaged, which may fail, and read its views back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent import Agent
from demo import any_loopback
from listener import Listener
from test_dry_run import RECORDER, imported
from test_failures import policy
from test_information import KEPT, REPAIRED, asks, every_kind, queued, read_back, result, says, sql, waiting
from test_unhealthy import Clock, clock  # noqa: F401 - a fixture

Node = Callable[[str], Agent]

NODES = ("web1", "web2", "db1")


class Hub:
    """A cf-messaged that may be ended and started again, at one endpoint and with one store."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"{any_loopback()}:5309"
        self.folder = folder
        self.listener: Listener | None = None

    def start(self) -> Listener:
        self.end()
        self.listener = Listener(self.folder, "--request", self.endpoint)
        return self.listener

    def end(self) -> None:
        if self.listener:
            self.listener.end()
        self.listener = None

    @property
    def store(self) -> Path:
        return self.folder / "store.db"

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement answers in the store."""
        return sql(self.store, statement)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path)
    yield hub
    hub.end()


@pytest.fixture
def node(tmp_path: Path, agent_template: Path) -> Iterator[Node]:
    """The cf-agent of the node of this name, always the same one."""
    agents: dict[str, Agent] = {}

    def get(name: str) -> Agent:
        if name not in agents:
            agents[name] = Agent(tmp_path / name, agent_template)
        return agents[name]

    yield get
    for agent in agents.values():
        agent.close()


def told(name: str, kinds: dict[str, str]) -> str:
    """A policy in which the node of this name says these."""
    return policy({promiser: f'{attributes}, node => "{name}"' for promiser, attributes in kinds.items()})


def test_what_is_unchanged_is_not_said(hub: Hub, node: Node, clock: Clock) -> None:  # noqa: F811
    """Unchanged static and dynamic information, in another minute and at another log level: kept, no zmq, no word."""
    listener, agent = hub.start(), node("web1")
    agent.install("messages_promise.py", RECORDER)
    promises = told("web1", {kind: says(kind, hub.endpoint) for kind in ("static", "dynamic")})
    first = agent.run(promises, interpreter=clock.interpreter)
    assert {kind: result(first, kind) for kind in ("static", "dynamic")} == {"static": REPAIRED, "dynamic": REPAIRED}
    assert "zmq" in imported(agent)
    (before,) = listener.view("nodes")
    for minutes, options in ((1, ["--verbose"]), (7, ["--inform"])):
        clock.jump(minutes * 60)
        again = agent.run(promises, interpreter=clock.interpreter, options=options)
        assert {kind: result(again, kind) for kind in ("static", "dynamic")} == {"static": KEPT, "dynamic": KEPT}
        assert "cf_messaging.memory" in imported(agent) and "zmq" not in imported(agent)
    (after,) = listener.view("nodes")
    assert (after["events"], after["last_seen"]) == (before["events"], before["last_seen"]) and before["events"] == 2


def test_a_listener_that_is_down_for_five_runs(hub: Hub, node: Node) -> None:
    """All wait, bounded in time; then all arrive in order, once: of state every sample, of the rest the newest."""
    for number in range(5):
        for name in NODES:
            kinds = {f"{kind}_of_{name}": text for kind, text in every_kind(hub.endpoint, f'"{number}"', 0.5).items()}
            run = node(name).run(told(name, kinds))
            assert {kind: result(run, kind)[0] for kind in kinds} == dict.fromkeys(kinds, "not_kept")
            assert all(f"{kind}_queued" in run.classes for kind in kinds)
    hub.start()
    for name in NODES:
        kinds = {f"{kind}_of_{name}": text for kind, text in every_kind(hub.endpoint, '"5"').items()}
        run = node(name).run(told(name, kinds))
        assert not run.errors and not waiting(node(name))
        samples = hub.rows(f"SELECT data FROM history WHERE node = '{name}' AND kind = 'state' ORDER BY row")
        assert [json.loads(data) for (data,) in samples] == [str(number) for number in range(6)]
        latest = hub.rows(f"SELECT kind, data FROM latest WHERE node = '{name}' ORDER BY kind")
        assert latest == [(kind, '"5"') for kind in ("common", "dynamic", "state", "static")]
        dynamic = hub.rows(f"SELECT data FROM history WHERE node = '{name}' AND kind = 'dynamic' ORDER BY row")
        assert dynamic in ([('"5"',)], [('"4"',), ('"5"',)])


@pytest.mark.parametrize("loss", ["deleted", "restored"])
def test_a_listener_that_lost_its_database(hub: Hub, node: Node, tmp_path: Path, loss: str) -> None:
    """Deleted, or set back to an old backup: the node notices at its next word, and in the next run says all again."""
    agent = node("web1")
    hub.start()
    agent.run(told("web1", {"old": says("static", hub.endpoint, '"before"')}))
    hub.end()
    shutil.copy(hub.store, tmp_path / "backup.db")
    hub.start()
    facts = told("web1", {name: says("static", hub.endpoint) for name in ("old", "a", "b")})
    agent.run(facts)
    hub.end()
    for suffix in ("", "-wal", "-shm"):
        hub.store.with_name(f"store.db{suffix}").unlink(missing_ok=True)
    if loss == "restored":
        shutil.copy(tmp_path / "backup.db", hub.store)
    hub.start()
    assert {name: result(agent.run(facts), name) for name in ("old", "a", "b")} == dict.fromkeys(
        ("old", "a", "b"), KEPT
    )
    run = agent.run(told("web1", {"load": says("state", hub.endpoint)}), options=["--inform"])
    assert result(run, "load") == REPAIRED and [text for text in run.infos if "said again" in text]
    run = agent.run(facts)
    assert {name: result(run, name) for name in ("old", "a", "b")} == dict.fromkeys(("old", "a", "b"), REPAIRED)
    assert hub.rows("SELECT name, data FROM latest WHERE kind = 'static' ORDER BY name") == [
        (name, '"said"') for name in ("a", "b", "old")
    ]


def test_a_value_that_comes_back_after_a_lost_answer(hub: Hub, node: Node) -> None:
    """A, then B whose answer is lost, then A: it ends as A at the listener, and is not called kept before."""
    agent = node("web1")
    hub.start()

    def run(value: str, timeout_s: float = 30) -> tuple[str, set[str]]:
        promises = told("web1", {"value": says("static", hub.endpoint, f'"{value}"', timeout_s=timeout_s)})
        return result(agent.run(promises), "value")

    assert run("A") == REPAIRED
    # Stored, but the node does not hear of it: its memory is set back to where B waits.
    memory = agent.work / "state/messages/memory.db"
    hub.end()
    assert run("B", 0.5) == queued("unreachable")
    with closing(sqlite3.connect(memory)) as connection, closing(sqlite3.connect(memory.with_name("kept.db"))) as copy:
        connection.backup(copy)
    hub.start()
    assert run("B") == REPAIRED
    os.replace(memory.with_name("kept.db"), memory)
    for suffix in ("-wal", "-shm"):
        memory.with_name(memory.name + suffix).unlink(missing_ok=True)
    assert hub.rows("SELECT data FROM latest") == [('"B"',)]
    assert run("A") != KEPT
    while run("A") != KEPT:
        pass
    assert hub.rows("SELECT data FROM latest") == [('"A"',)]


HOSTILE = {
    "small": "[1e-05]",
    "wide": f"[{2**63}]",
    "deep": "[" * 40 + "1" + "]" * 40,
    "expansion": '["$(sys.workdir) @{x}"]',
    "nested": '{"${sys.workdir}": ["$(x)"], "a": 1e-05}',
    "sound": '["sound"]',
}


def test_hostile_data_harms_no_reader(hub: Hub, node: Node, tmp_path: Path) -> None:
    """Numbers that end a cf-agent, and what it would expand, come to a policy that reads the view as text or null."""
    hub.start()
    for name, data in HOSTILE.items():
        (tmp_path / name).write_text(data)
    facts = {
        name: says("static", hub.endpoint, "", f'payload_file => "{tmp_path}/{name}", node => "evil"')
        for name in HOSTILE
    }
    run = node("evil").run(policy(facts))
    assert {name: result(run, name) for name in facts} == dict.fromkeys(facts, REPAIRED)
    file = tmp_path / "view"
    view = policy({"all": asks("latest", hub.endpoint, file, 'node => "reader"')})
    run = node("reader").run(read_back("all", file) + view)
    assert result(run, "all") == ("repaired", {"delivered", "received"}) and not run.errors
    assert run.reports == [f"{len(HOSTILE)} rows"]
    found = {row["name"]: row["data"] for row in json.loads(file.read_text())}
    assert (found["sound"], found["small"], found["wide"]) == (["sound"], ["1e-05"], [str(2**63)])
    assert found["expansion"] is None and "sys.workdir" not in file.read_text()
    assert all("'evil'" in text for text in run.warnings) and run.warnings
