"""The examples of information and views: several nodes, each a cf-agent of its own, and a real cf-messaged."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from agent import Agent, Run
from cf_messaged.keyring import write
from cf_messaging.keys import certificate, own_pair, public_key
from demo import REPOSITORY, any_loopback, copy_examples
from listener import Listener
from test_cfengine import wait_for

RunExample = Callable[[str, str, str], Run]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """Where the examples expect it, on an address of its own."""
    hub = any_loopback()
    endpoints = ("--request", f"{hub}:5309", "--subscribe", f"{hub}:5312")
    config = tmp_path / "cf-messaged.toml"
    config.write_text(f"""
        keys_dir = "{tmp_path}/keys"
        [[rights]]
        nodes = ["hub.example.org", "proxy.example.org"]
        say = ["*"]
        ask = ["*"]
    """)
    started = Listener(tmp_path, *endpoints, "--config", str(config))
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
            hub = listener.endpoint.removesuffix(":5309")
            own = own_pair(str(agents[node].work / "state/messages/node.key"), zmq.curve_keypair)
            write(tmp_path / f"keys/accepted/{node}.key", certificate(own.public))
            key = public_key(str(tmp_path / "keys/listener.key")).hex()
            copy_examples(examples, {"messages_hub": hub, "messages_node": node, "messages_hub_key": key})
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
    run("hub.example.org", "common", "common_says")
    for node in ("web1", "db1"):
        assert run(node, "common", "common_uses").reports == ["node: name servers are 192.0.2.1 and 192.0.2.2"]


def test_maintenance(run: RunExample) -> None:
    """What one says, a node hears by a subscription and acts upon in the same run; before that, it does neither."""
    assert run("web1.example.org", "maintenance", "maintenance_heeds").reports == []
    run("hub.example.org", "maintenance", "maintenance_says")
    for _ in range(2):  # heard again, it is the same
        meant, other = (run(f"{node}.example.org", "maintenance", "maintenance_heeds") for node in ("web2", "web1"))
        assert meant.reports == ["node: in maintenance, nothing is restarted"]
        assert other.reports == ["node: at work"]


def test_web_servers(run: RunExample) -> None:
    """A view of those who said so is data in the same run, and policy takes those of its own domain."""
    for node in ("web1.example.org", "web2.example.org", "web3.example.net", "web4"):
        run(node, "web_servers", "web_server_says")
    run("db1.example.org", "heartbeat", "heartbeat")
    asked = run("proxy.example.org", "web_servers", "web_servers")
    assert asked.reports == ["proxy: web servers are web1.example.org, web2.example.org"]


STARTED = ["listener: it was down, and was started"]
# As pip makes it, but for the path.
# The processes of views read it too, and must not start another listener.
PROGRAM = f"""import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from cf_messaged.cli import main
if __name__ == "__main__":
    main()
"""


class Hub:
    """Runs examples/listener.cf, which is told how to start a cf-messaged without systemd, and of its settings."""

    def __init__(self, folder: Path, template: Path) -> None:
        self._agent = Agent(folder, template)
        self._policy = folder / "examples/listener.cf"
        self._log = folder / "log"
        self._config = folder / "cf-messaged.toml"
        self._config.write_text(f'store = "sqlite:///{folder}/store.db"\nrequest = "tcp://127.0.0.1:*"\n')
        (folder / "cf-messaged").write_text(PROGRAM)
        command = f"{sys.executable} {folder}/cf-messaged run --config {self._config}"
        (folder / "start").write_text(f"exec setsid --fork {command} </dev/null >>{self._log} 2>&1\n")
        start = f"/bin/sh {folder}/start"
        copy_examples(self._policy.parent, {"listener_config": str(self._config), "listener_start": start})

    def run(self) -> Run:
        run = self._agent.run_file(self._policy, options=["-b", "listener"])
        assert run.errors == []
        return run

    def forget_settings(self) -> None:
        self._config.unlink()

    def daemons(self) -> set[int]:
        """The processes that listen by these settings."""
        words = f"cf-messaged\0run\0--config\0{self._config}\0".encode()
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if words in (process / "cmdline").read_bytes():
                    found.add(int(process.name))
        return found

    def starts(self) -> int:
        """How many daemons have come as far as listening."""
        return self._log.read_text().count("listens on")

    def kill(self) -> None:
        for daemon in self.daemons():
            os.kill(daemon, signal.SIGKILL)
        wait_for(lambda: not self.daemons())

    def close(self) -> None:
        self.kill()
        self._agent.close()


@pytest.fixture
def hub(tmp_path: Path, agent_template: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub", agent_template)
    yield hub
    hub.close()


def test_cf_messaged_is_kept_running(hub: Hub) -> None:
    """It is started where it is down, left alone where it runs, and started again when it was killed."""
    assert hub.run().reports == STARTED
    wait_for(lambda: hub.starts() == 1)
    first = hub.daemons()
    assert hub.run().reports == []
    assert hub.daemons() == first and len(first) == 1
    hub.kill()
    assert hub.run().reports == STARTED
    wait_for(lambda: hub.starts() == 2)
    assert len(hub.daemons()) == 1


def test_nothing_is_started_without_settings(hub: Hub) -> None:
    """As on each node that has the policy of its hub."""
    hub.forget_settings()
    assert hub.run().reports == [] and not hub.daemons()


def test_keys_that_are_trusted(tmp_path: Path, agent_template: Path) -> None:
    """All of the hub's are copied, its own under both its names; what goes there goes here too."""
    hub, folder = Agent(tmp_path / "hub", agent_template), tmp_path / "trusted"
    keys = hub.work / "ppkeys"
    [digest] = hub.run('  reports:\n    "$(sys.key_digest)";\n').reports
    os.link(keys / "localhost.pub", keys / f"root-{digest}.pub")  # as `cf-agent --bootstrap` does
    for name in ("stays", "goes"):
        (keys / f"root-MD5={name}.pub").write_text(name)
    copy_examples(tmp_path / "examples", {"listener_trusted": str(folder)})

    def run() -> list[str]:
        run = hub.run_file(tmp_path / "examples/trusted_keys.cf", options=["-b", "trusted_keys"])
        assert run.errors == []
        return run.reports

    assert run() == []  # no listener has made the folder
    folder.mkdir()
    assert run() == run() == ["trusted keys: 4"]
    (keys / "root-MD5=goes.pub").unlink()
    assert run() == ["trusted keys: 3"]
    own = {name: (keys / "localhost.pub").read_text() for name in ("localhost.pub", f"root-{digest}.pub")}
    assert {path.name: path.read_text() for path in folder.iterdir()} == {**own, "root-MD5=stays.pub": "stays"}
    hub.close()
