"""Nodes whose CFEngine keys a hub trusts enrol by themselves: real cf-agents, each with a host key of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import Agent, Run, environment, program
from cf_messaged.host_keys import read_host_key
from cf_messaged.keyring import listed
from listener import Listener, cf_messaged
from peers import scaled
from test_curve import body
from test_failures import policy
from test_information import says
from test_service import Start, select, start  # noqa: F401 - a fixture


class Hub:
    """A listener with keys, whose nodes enrol; and its operator."""

    def __init__(self, start: Start, folder: Path, settings: str = "") -> None:  # noqa: F811
        self.directory, self._start = folder / "keys", start
        self._settings = folder / "settings.toml"
        self._settings.write_text(settings)
        self.listener = self.started()
        self.server = self.operate("show").stdout.strip()

    def started(self) -> Listener:
        self.listener = self._start("--keys-dir", str(self.directory), "--config", str(self._settings))
        return self.listener

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return cf_messaged("keys", "--keys-dir", str(self.directory), *arguments)

    def trust(self, host: Host) -> None:
        shutil.copy(host.agent.work / "ppkeys/localhost.pub", self.directory / f"trusted/{host.name}.pub")

    def rows(self, view: str = "key_changes") -> list[dict[str, Any]]:
        return self.listener.view(view)

    def states(self) -> dict[str, str]:
        """Of keys, by node; of one that says no name, by its key."""
        return {row["node"] or row["key"]: row["state"] for row in listed(str(self.directory))}


class Host:
    """A machine with cf-agent on it, and a host key that no other has."""

    def __init__(self, agent: Agent, name: str) -> None:
        self.agent, self.name = agent, name
        for file in (agent.work / "ppkeys").iterdir():
            file.unlink()
        make = [program("cf-key")]
        subprocess.run(make, env=environment(agent.work), check=True, stdout=subprocess.DEVNULL, timeout=scaled(120))

    @property
    def digest(self) -> str:
        return read_host_key(self.agent.work / "ppkeys/localhost.pub").digest

    @property
    def key_file(self) -> Path:
        return self.agent.work / "state/messages/node.key"

    def run(self, hub: Hub, value: str = '"debian"', **curve: str) -> Run:
        """Of an agent that says what it is, with what its listener needs to be known by."""
        given = {"server_key": hub.server, "enrol": hub.listener.endpoints["enrolment"], **curve}
        more = f'node => "{self.name}", curve => keys'
        promises = policy({"os": says("static", hub.listener.endpoint, value, more)})
        return self.agent.run(promises, before=body("keys", **given))


@pytest.fixture
def hub(start: Start, tmp_path: Path) -> Hub:  # noqa: F811
    return Hub(start, tmp_path)


@pytest.fixture
def host(tmp_path: Path, agent_template: Path) -> Iterator[Callable[[str], Host]]:
    hosts: list[Host] = []

    def make(name: str) -> Host:
        hosts.append(Host(Agent(tmp_path / f"host{len(hosts)}", agent_template), name))
        return hosts[-1]

    yield make
    for each in hosts:
        each.agent.close()


def test_nodes_enrol_by_themselves(hub: Hub, host: Callable[[str], Host]) -> None:
    """Three that the hub trusts deliver in their first run; a fourth does not, and says why in one line."""
    hosts = [host(name) for name in ("web1", "web2", "web3")]
    for each in hosts:
        hub.trust(each)
    for each in hosts:
        run = each.run(hub)
        assert {"os_repaired", "os_delivered"} <= run.classes and not run.errors, run.output
    stranger = host("web4")
    [error] = stranger.run(hub).errors
    assert f"host key {stranger.digest} is not trusted" in error and "1 event waits" in error
    assert {row["node"] for row in hub.rows("nodes")} == {"web1", "web2", "web3"}
    assert [(row["what"], row["node"]) for row in hub.rows()] == [
        ("refused", "web4"),
        ("enrolled", "web3"),
        ("enrolled", "web2"),
        ("enrolled", "web1"),
    ]
