"""Keys are replaced while nodes speak: real cf-agents run again and again, and nothing is lost or counted twice."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest
import zmq

from agent import Agent, Run
from cf_messaged.keyring import LISTENER, listed, write
from cf_messaging.keys import certificate, own_pair, public_key
from demo import any_loopback
from listener import cf_messaged
from test_cfengine import wait_for
from test_curve import body
from test_failures import policy
from test_information import PATIENT_S, says, waiting
from test_service import Start, select, start  # noqa: F401 - a fixture

# script/proof has more of them.
NODES = [f"web{number}" for number in range(1, 1 + int(os.environ.get("MESSAGES_NODES", "3")))]
STATES = ("load", "users")
IMPATIENT_S = 1  # for runs that are to end while nobody answers

# How errors end, of what is in the queue; and those of nodes whom nobody answers.
WAITS = r".*; [0-9]+ events? waits? \(oldest [0-9]+ min\)"
DOWN = f"(unreachable|timed out): {WAITS}"


class Given(NamedTuple):
    """By policy. key_file: a name in the node's own folder. renew: minutes, empty for never."""

    server_keys: Sequence[str]
    timeout_s: float = PATIENT_S
    key_file: str = "node.key"
    renew: str = ""


class Ended(NamedTuple):
    """A run, and what policy gave it."""

    given: Given
    run: Run


class Hub:
    """A listener with keys, found at the same endpoint when it is started again; and its operator."""

    def __init__(self, start: Start, folder: Path) -> None:  # noqa: F811
        self.endpoint = f"{any_loopback()}:5309"
        self.directory = folder / "keys"
        self._start = start
        self.start()

    def start(self) -> None:
        where = ("--request", self.endpoint, "--enrol", self.endpoint.replace("5309", "5313"))
        self.listener = self._start(*where, "--keys-dir", str(self.directory))

    def key(self) -> str:
        return public_key(str(self.directory / LISTENER)).hex()

    def operate(self, *arguments: str) -> None:
        ended = cf_messaged("keys", "--keys-dir", str(self.directory), *arguments)
        assert ended.returncode == 0, ended.stderr

    def knocks(self) -> list[dict[str, object]]:
        return [row for row in listed(str(self.directory)) if row["state"] == "unknown"]


class BusyNode:
    """Runs cf-agent again and again: each run says a number under the name of each state, and what never changes."""

    def __init__(self, name: str, agent: Agent, hub: Hub) -> None:
        self.name, self.agent = name, agent
        self._hub = hub
        self.given = Given([hub.key()])
        self.obeyed: Given | None = None  # by the run that began last
        self.ended: list[Ended] = []

    def is_accepted(self) -> None:
        """By hand."""
        write(self._hub.directory / f"accepted/{self.name}.key", certificate(self.key()))

    def is_trusted(self) -> None:
        """Its host."""
        self.agent.make_host_key()
        shutil.copy(self.agent.work / "ppkeys/localhost.pub", self._hub.directory / f"trusted/{self.name}.pub")

    def key(self, file: str = "node.key") -> bytes:
        """Made if there is none."""
        return own_pair(str(self.key_file(file)), zmq.curve_keypair).public

    def key_file(self, file: str = "node.key") -> Path:
        return self.agent.work / "state/messages" / file

    def live(self, over: Event) -> None:
        while not over.is_set():
            given = self.obeyed = self.given
            more = {"renew": given.renew} if given.renew else {}
            before = body("rotated", server_key=list(given.server_keys), key_file=self.key_file(given.key_file), **more)
            self.ended.append(Ended(given, self.agent.run(self._promises(given), before=before)))

    def said(self) -> list[tuple[str, str]]:
        """Names and data of all states of all runs, in order."""
        return [(name, json.dumps(str(run))) for run in range(len(self.ended)) for name in STATES]

    def waits(self) -> bool:
        """Whether what the run said that ended last is in the queue."""
        return {f"{name}_queued" for name in STATES} <= self.ended[-1].run.classes

    def errors(self) -> list[str]:
        """Of all runs."""
        return [text for ended in self.ended for text in ended.run.errors]

    def _promises(self, given: Given) -> str:
        more = f'node => "{self.name}", curve => rotated'
        number = f'"{len(self.ended)}"'
        states = {name: says("state", self._hub.endpoint, number, more, given.timeout_s) for name in STATES}
        return policy({"os": says("static", self._hub.endpoint, '"debian"', more, given.timeout_s), **states})


@pytest.fixture
def hub(start: Start, tmp_path: Path) -> Hub:  # noqa: F811
    return Hub(start, tmp_path)


@pytest.fixture
def strangers(hub: Hub, tmp_path: Path, agent_template: Path) -> Iterator[list[BusyNode]]:
    """Whom nobody knows yet."""
    agents = [Agent(tmp_path / name, agent_template) for name in NODES]
    yield [BusyNode(name, agent, hub) for name, agent in zip(NODES, agents)]
    for agent in agents:
        agent.close()


@pytest.fixture
def nodes(strangers: list[BusyNode]) -> list[BusyNode]:
    for node in strangers:
        node.is_accepted()
    return strangers


@contextmanager
def at_work(nodes: list[BusyNode]) -> Iterator[None]:
    """All of them run again and again meanwhile; the last run of each is one by what was given last."""
    over = Event()
    with ThreadPoolExecutor(len(nodes)) as pool:
        lives = [pool.submit(node.live, over) for node in nodes]
        try:
            wait_for(lambda: all(node.obeyed for node in nodes))
            yield
        finally:
            over.set()
            for life in lives:
                life.result()


def give(nodes: list[BusyNode], given: Given) -> None:
    """Returns once a run of each has begun by it, so that those by what was given before are over."""
    given = given._replace()  # another one, also where nothing has changed
    for node in nodes:
        node.given = given
    wait_for(lambda: all(node.obeyed is given for node in nodes))


def check_nothing_is_lost_or_there_twice(hub: Hub, nodes: list[BusyNode]) -> None:
    """In the order in which it was said; and of what never changes each node was counted once."""
    for node in nodes:
        there = select(hub.listener, f"SELECT name, data FROM history WHERE node = '{node.name}' ORDER BY row")
        assert there == node.said()
        assert waiting(node.agent) == [] and node.ended[-1].run.errors == []
    counted = dict(select(hub.listener, "SELECT node, events FROM nodes"))
    assert counted == {node.name: len(node.said()) + 1 for node in nodes}


def check_errors(nodes: list[BusyNode], allowed: str) -> None:
    for node in nodes:
        assert [text for text in node.errors() if not re.search(f"{allowed}$", text)] == []


# ---- the listener's


def test_the_listeners_key_with_an_overlap(hub: Hub, nodes: list[BusyNode], tmp_path: Path) -> None:
    """Nobody is refused, as policy has both keys when it is replaced; what is said while the listener is down waits."""
    old, new = hub.key(), own_pair(str(tmp_path / "next" / LISTENER), zmq.curve_keypair).public.hex()
    both, hurried = Given([old, new]), Given([old, new], IMPATIENT_S)
    with at_work(nodes):
        give(nodes, both)
        give(nodes, hurried)
        assert hub.listener.end() == 0
        give(nodes, hurried)
        give(nodes, both)
        assert all(node.waits() for node in nodes)
        os.replace(tmp_path / "next" / LISTENER, hub.directory / LISTENER)
        hub.start()
        give(nodes, both)
        give(nodes, Given([new]))
    check_nothing_is_lost_or_there_twice(hub, nodes)
    check_errors(nodes, DOWN)
    patient = [ended.run for node in nodes for ended in node.ended if ended.given != hurried]
    assert [run.errors for run in patient if run.errors] == []


def test_the_listeners_key_at_once(hub: Hub, nodes: list[BusyNode]) -> None:
    """The old one was lost: nodes speak to nobody with another key, and what they say waits until policy has it."""
    old = Given([hub.key()])
    wrong = f"its key is not {hub.key()}"
    with at_work(nodes):
        give(nodes, old)
        assert hub.listener.end() == 0
        (hub.directory / LISTENER).unlink()
        hub.start()
        give(nodes, old)
        give(nodes, old)
        assert all(node.waits() and wrong in node.errors()[-1] for node in nodes)
        give(nodes, Given([hub.key()]))
    check_nothing_is_lost_or_there_twice(hub, nodes)
    check_errors(nodes, f"({DOWN}|{wrong}{WAITS})")


# ---- a node's


def test_a_nodes_key_in_another_file(hub: Hub, nodes: list[BusyNode]) -> None:
    """It is accepted before policy moves the node to it, and the old one is revoked after that: nobody is refused."""
    old, new = Given([hub.key()]), Given([hub.key()], key_file="new.key")
    with at_work(nodes):
        give(nodes, old)
        hub.operate("accept", nodes[0].key("new.key").hex(), nodes[0].name)
        give(nodes[:1], new)
        hub.operate("revoke", nodes[0].key().hex())
        give(nodes[:1], new)
    check_nothing_is_lost_or_there_twice(hub, nodes)
    assert [text for node in nodes for text in node.errors()] == []


def test_a_nodes_key_that_is_removed(hub: Hub, nodes: list[BusyNode]) -> None:
    """The next run makes another one, with which it is refused; what is said waits until that is accepted."""
    given, old = Given([hub.key()]), nodes[0].key().hex()
    with at_work(nodes):
        give(nodes, given)
        nodes[0].key_file().unlink()
        wait_for(lambda: bool(hub.knocks()))
        hub.operate("accept", nodes[0].key().hex()[:8], nodes[0].name)
        hub.operate("revoke", old)
        give(nodes, given)
    check_nothing_is_lost_or_there_twice(hub, nodes)
    check_errors(nodes[:1], f"does not let this node in .*: accept its key there, {nodes[0].key().hex()}; .*{WAITS}")
    assert nodes[0].errors() and [text for node in nodes[1:] for text in node.errors()] == []


# ---- both, by promise


def renewed(nodes: list[BusyNode], given: Given) -> None:
    """Returns once each has another key than it had, which was old."""
    before = {node.name: node.key() for node in nodes}
    for node in nodes:
        moment = node.key_file().stat().st_mtime - 7200
        os.utime(node.key_file(), (moment, moment))
    wait_for(lambda: all(public_key(str(node.key_file())) != before[node.name] for node in nodes))
    give(nodes, given)


def test_both_keys_by_promise(hub: Hub, strangers: list[BusyNode], tmp_path: Path) -> None:
    """Nodes enrol, and renew their keys; the listener's next key comes in the file that all of them have."""
    nodes, file = strangers, tmp_path / "cf-messaged.key"
    for node in nodes:
        node.is_trusted()
    hub.operate("export", str(file))
    given, hurried = (Given([str(file)], seconds, renew="60") for seconds in (PATIENT_S, IMPATIENT_S))
    for node in nodes:
        node.given = given
    with at_work(nodes):
        give(nodes, given)
        renewed(nodes, given)
        hub.operate("renew")
        hub.operate("export", str(file))
        give(nodes, given)
        give(nodes, hurried)
        hub.operate("renew", "--now")
        assert hub.listener.end() == 0
        give(nodes, hurried)
        hub.start()
        give(nodes, given)
        hub.operate("export", str(file))
        renewed(nodes, given)
        give(nodes, given)
    check_nothing_is_lost_or_there_twice(hub, nodes)
    ended = "refused: accepts connections, but ZeroMQ's handshake does not succeed"  # it was going just then
    check_errors(nodes, f"({DOWN}|{ended}.*{WAITS})")
    rows = [row["what"] for row in hub.listener.view("key_changes")]
    assert rows.count("enrolled") == len(nodes) and rows.count("renewed") == 2 * len(nodes)
    assert not {"refused", "clone", "waits"}.intersection(rows)
