"""Nodes whose CFEngine keys a hub trusts enrol by themselves: real cf-agents, each with a host key of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import Agent, Run
from cf_messaged.host_keys import read_host_key
from cf_messaged.keyring import listed
from cf_messaging.keys import public_key, public_keys
from demo import any_loopback
from listener import Listener, cf_messaged
from test_cfengine import wait_for
from test_curve import body
from test_failures import policy
from test_information import asks, says
from test_service import Start, select, start  # noqa: F401 - a fixture


class Hub:
    """A listener with keys, whose nodes enrol; and its operator."""

    def __init__(self, start: Start, folder: Path, settings: str = "", where: str = "") -> None:  # noqa: F811
        """where: an endpoint without its port, at the ports where all listen; any free ones where there is none."""
        self.directory, self._start = folder / "keys", start
        self._bound = [f"--request={where}:5309", f"--enrol={where}:5313"] if where else []
        self._settings = folder / "settings.toml"
        self._settings.write_text(settings)
        self.listener = self.started()
        self.server = self.operate("show").stdout.strip()

    def started(self) -> Listener:
        options = ("--keys-dir", str(self.directory), "--config", str(self._settings), *self._bound)
        self.listener = self._start(*options)
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
        agent.make_host_key()

    @property
    def digest(self) -> str:
        return read_host_key(self.agent.work / "ppkeys/localhost.pub").digest

    @property
    def key_file(self) -> Path:
        return self.agent.work / "state/messages/node.key"

    def run(self, hub: Hub, value: str = '"debian"', **curve: str | list[str]) -> Run:
        """Of an agent that says what it is, with what its listener needs to be known by."""
        given: dict[str, str | Path | list[str]] = {
            "server_key": hub.server,
            "enrol": hub.listener.endpoints["enrolment"],
            **curve,
        }
        given = {name: value for name, value in given.items() if value}
        more = f'node => "{self.name}", curve => keys'
        promises = policy({"os": says("static", hub.listener.endpoint, value, more)})
        return self.agent.run(promises, before=body("keys", **given), options=["-I"])


def age(path: Path) -> None:
    """Two hours."""
    os.utime(path, (path.stat().st_mtime - 7200,) * 2)


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


@pytest.mark.parametrize("pattern", ["request", "push", "publish", "pair"])
def test_by_every_pattern(
    start: Start,  # noqa: F811
    tmp_path: Path,
    host: Callable[[str], Host],
    pattern: str,
) -> None:
    """State is said by them, by a node that nobody knew before."""
    hub, web1 = Hub(start, tmp_path, "pair = 'tcp://127.0.0.1:*'"), host("web1")
    hub.trust(web1)
    endpoint = hub.listener.endpoints[pattern]
    before = body("keys", server_key=hub.server, enrol=hub.listener.endpoints["enrolment"])
    more = f'node => "web1", curve => keys, pattern => "{pattern}"'
    run = web1.agent.run(policy({"load": says("state", endpoint, '"1"', more)}), before=before)
    assert "load_repaired" in run.classes and not run.errors, run.output
    wait_for(lambda: [row["data"] for row in hub.rows("latest")] == ["1"])


def test_who_asks_for_a_view_first(hub: Hub, host: Callable[[str], Host]) -> None:
    """It is enrolled by that too."""
    web1 = host("web1")
    hub.trust(web1)
    before = body("keys", server_key=hub.server, enrol=hub.listener.endpoints["enrolment"])
    file = web1.agent.work / "nodes.json"
    promises = policy({"all": asks("common", hub.listener.endpoint, file, 'node => "web1", curve => keys')})
    run = web1.agent.run(promises, before=before)
    assert "all_received" in run.classes and not run.errors and json.loads(file.read_text()) == []


def test_a_node_is_enrolled_once(hub: Hub, host: Callable[[str], Host]) -> None:
    """Later runs, with other values, just speak; so does one whose answer to its claim was lost."""
    web1 = host("web1")
    hub.trust(web1)
    web1.run(hub)
    for value in ('"other"', '"another"'):
        run = web1.run(hub, value)
        assert "os_repaired" in run.classes and not any("enrolled" in line for line in run.infos)
    assert [row["what"] for row in hub.rows()] == ["enrolled"]
    assert hub.states() == {"web1": "accepted"}


def test_what_waited_goes_out_first(hub: Hub, host: Callable[[str], Host]) -> None:
    """What a node could not say before it was trusted is said in the run in which it is."""
    web1 = host("web1")
    assert "os_queued" in web1.run(hub, '"old"').classes
    hub.trust(web1)
    run = web1.run(hub, '"new"')
    assert "os_delivered" in run.classes and not run.errors
    assert [row["data"] for row in hub.rows("latest")] == ["new"]


def test_nothing_is_enrolled_where_policy_says_off(hub: Hub, host: Callable[[str], Host]) -> None:
    """Then a key is carried by hand, as ever."""
    web1 = host("web1")
    hub.trust(web1)
    [error] = web1.run(hub, enrol="off").errors
    assert re.search(r"accept its key there, [0-9a-f]{64}; 1 event waits", error)
    assert hub.states()[next(iter(hub.states()))] == "unknown" and not hub.rows()


def test_an_enrolment_socket_that_is_away(hub: Hub, host: Callable[[str], Host]) -> None:
    """The line says both: that the key is not known, and that nobody enrols there."""
    web1 = host("web1")
    [error] = web1.run(hub, enrol="tcp://127.0.0.1:1").errors
    assert "does not let this node in" in error and "tcp://127.0.0.1:1 unreachable: connection refused" in error


def test_by_default_the_port_is_known(start: Start, tmp_path: Path, host: Callable[[str], Host]) -> None:  # noqa: F811
    """Policy need not say where nodes enrol, if the hub listens there where all do."""
    hub = Hub(start, tmp_path, where=any_loopback())
    web1 = host("web1")
    hub.trust(web1)
    run = web1.run(hub, enrol="")
    assert "os_delivered" in run.classes and not run.errors


def test_a_reinstalled_node(hub: Hub, host: Callable[[str], Host]) -> None:
    """Its new host key has the old name once the old one is trusted no more; before, it waits, listed with both."""
    old, new = host("web1"), host("web1")
    hub.trust(old)
    old.run(hub)
    (hub.directory / "trusted/new.pub").write_bytes((new.agent.work / "ppkeys/localhost.pub").read_bytes())
    [error] = new.run(hub).errors
    assert "waits there for an operator" in error and old.digest in error and new.digest in error
    told = hub.operate("list").stdout
    assert old.digest in told and new.digest in told and "waiting" in told
    (hub.directory / "trusted/web1.pub").unlink()
    run = new.run(hub)
    assert "os_delivered" in run.classes and not run.errors
    assert old.run(hub, '"again"').errors
    assert [(row["state"], row["host_key"]) for row in listed(str(hub.directory)) if row["node"] == "web1"] == [
        ("accepted", new.digest)
    ]


def test_an_operator_lets_a_new_host_have_an_old_name(hub: Hub, host: Callable[[str], Host]) -> None:
    """By the first digits of its key, with `--replace`."""
    old, new = host("web1"), host("web1")
    hub.trust(old)
    old.run(hub)
    (hub.directory / "trusted/new.pub").write_bytes((new.agent.work / "ppkeys/localhost.pub").read_bytes())
    assert new.run(hub).errors
    key = public_key(str(new.key_file)).hex()
    ended = hub.operate("accept", key[:12], "--replace")
    assert ended.returncode == 0 and "is let in no more" in ended.stdout, ended.stderr
    assert not new.run(hub).errors
    assert old.run(hub, '"again"').errors
    assert hub.states() == {"web1": "accepted"}


# ---- keys that are replaced


def test_a_node_renews_its_key(hub: Hub, host: Callable[[str], Host]) -> None:
    """When it is old, by the same claim; its listener knows both for a while, and never more than two."""
    web1 = host("web1")
    hub.trust(web1)
    web1.run(hub)
    seen = [public_key(str(web1.key_file))]
    for number in range(3):
        age(web1.key_file)
        run = web1.run(hub, f'"{number}"', renew="60")
        assert "os_delivered" in run.classes and not run.errors and not run.warnings, run.output
        assert any("has a new key" in line for line in run.infos)
        seen.append(public_key(str(web1.key_file)))
    assert len(set(seen)) == 4
    assert {row["key"] for row in listed(str(hub.directory)) if row["state"] == "accepted"} == {
        key.hex() for key in seen[-2:]
    }
    assert [row["what"] for row in hub.rows() if row["what"] != "let out"] == [*["renewed"] * 3, "enrolled"]
    assert not any("has a new key" in line for line in web1.run(hub, '"last"', renew="60").infos)


def with_an_old_key(hub: Hub, host: Callable[[str], Host]) -> tuple[Host, bytes]:
    """A node that is let in, and its key."""
    web1 = host("web1")
    hub.trust(web1)
    web1.run(hub)
    age(web1.key_file)
    return web1, public_key(str(web1.key_file))


def test_a_node_renews_its_key_by_the_right_key_of_its_listener(hub: Hub, host: Callable[[str], Host]) -> None:
    """Where policy still has one that the listener has no more, before the one that it has."""
    web1, before = with_an_old_key(hub, host)
    run = web1.run(hub, '"new"', renew="60", server_key=[before.hex(), hub.server])
    assert "os_delivered" in run.classes and not run.errors and not run.warnings, run.output
    assert public_key(str(web1.key_file)) != before
    assert not web1.run(hub, '"newer"').errors


def test_a_key_that_cannot_be_renewed_stays(hub: Hub, host: Callable[[str], Host]) -> None:
    """The old one goes on to be used, and a line says why."""
    web1, before = with_an_old_key(hub, host)
    run = web1.run(hub, '"new"', renew="60", enrol="tcp://127.0.0.1:1")
    [warning] = run.warnings
    assert "the key of this node is old, and stays: tcp://127.0.0.1:1 unreachable" in warning
    assert "os_delivered" in run.classes and public_key(str(web1.key_file)) == before


def test_a_listener_tells_its_next_key(hub: Hub, host: Callable[[str], Host]) -> None:
    """Under the old one; a node writes both into a file that policy may give to all, which then know either."""
    web1 = host("web1")
    hub.trust(web1)
    web1.run(hub)
    made = hub.operate("renew")
    assert made.returncode == 0, made.stderr
    run = web1.run(hub, '"new"')
    [warning] = run.warnings
    told = web1.agent.work / "state/messages/listener.key"
    assert f"{told}" in warning and "os_delivered" in run.classes
    exported = hub.operate("export").stdout
    assert public_keys(str(told)) == [bytes.fromhex(key) for key in (hub.server, made.stdout[:64])]
    assert [line for line in told.read_text().split("\n") if "public-key" in line] == [
        line for line in exported.split("\n") if "public-key" in line
    ]
    assert not web1.run(hub, '"newer"', server_key=str(told)).warnings
    assert hub.operate("renew", "--now").returncode == 0
    hub.listener.end()
    hub.started()
    run = web1.run(hub, '"newest"', server_key=str(told))
    assert "os_delivered" in run.classes and not run.errors
    [error] = web1.run(hub, '"lost"').errors
    assert "its key is not" in error
