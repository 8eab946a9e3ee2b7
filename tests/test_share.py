"""The examples of information and views: several nodes, each a cf-agent of its own, and a real cf-messaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import Agent, Run
from demo import REPOSITORY, restrict
from listener import Listener

RunExample = Callable[[str, str, str], Run]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """Where the examples expect it, on an address of its own."""
    host = ".".join(str(random.randint(1, 254)) for _ in range(3))
    started = Listener(tmp_path, "--request", f"tcp://127.{host}:5309")
    yield started
    started.end()


@pytest.fixture
def run(tmp_path: Path, agent_template: Path, listener: Listener) -> Iterator[RunExample]:
    """Runs a bundle of an example as a node of this name."""
    agents: dict[str, Agent] = {}

    def run(node: str, example: str, bundle: str) -> Run:
        examples = tmp_path / node / "examples"
        if node not in agents:
            agents[node] = Agent(tmp_path / node, agent_template)
            shutil.copytree(REPOSITORY / "examples", examples)
            hub = listener.endpoint.removesuffix(":5309")
            (examples / "def.json").write_text(json.dumps({"vars": {"messages_hub": hub, "messages_node": node}}))
            restrict(examples)
        return agents[node].run_file(examples / f"{example}.cf", options=["-b", bundle, "--inform"])

    yield run
    for agent in agents.values():
        agent.close()


def counted(listener: Listener) -> int:
    """How many events the listener has of all nodes."""
    view = listener.view("nodes")
    return sum(row["events"] for row in view)


def test_nodes_share_what_they_are(run: RunExample, listener: Listener) -> None:
    """Three nodes tell what they are; told once, nothing of it is said again."""
    for node in ("web1", "web2", "db1"):
        assert run(node, "share", "share").reports == ["share: the listener has what this node is"]
    said = counted(listener)
    assert {row["node"] for row in listener.view("latest")} == {"web1", "web2", "db1"}
    again = run("web1", "share", "share")
    assert again.reports == ["share: the listener has what this node is"]
    assert [text for text in again.infos if "load" not in text and "messages '" in text] == []
    assert counted(listener) - said == sum("messages 'load'" in text for text in again.infos)


def test_a_heartbeat(run: RunExample, listener: Listener) -> None:
    """Each run is a sign of life."""
    for _ in range(2):
        assert run("web1", "heartbeat", "heartbeat").reports == ["heartbeat: heard"]
    assert counted(listener) == 2


def test_common_information(run: RunExample) -> None:
    """What one says, everyone uses in the run that asks for it."""
    run("hub", "common", "common_says")
    for node in ("web1", "db1"):
        assert run(node, "common", "common_uses").reports == ["node: name servers are 192.0.2.1 and 192.0.2.2"]


def test_web_servers(run: RunExample) -> None:
    """A view of those who said so is data in the same run."""
    for node in ("web1", "web2"):
        run(node, "web_servers", "web_server_says")
    run("db1", "heartbeat", "heartbeat")
    assert run("proxy", "web_servers", "web_servers").reports == ["proxy: web servers are web1, web2"]
