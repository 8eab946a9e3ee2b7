"""A node is forgotten in steps: a listener beside it has its turn, and in the end nothing is left."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import zmq

from cf_messaged import forgetting
from cf_messaged.store import Store
from cf_messaging.wire import STORED
from listener import COMMAND, ROOT, Listener, Node, event
from peers import Socket, scaled
from test_information import sql

KEPT_OF = "SELECT count(*) FROM {table} WHERE node = '{node}'"
TABLES = "latest", "history", "changes", "nodes"


def kept(path: Path, node: str) -> list[int]:
    """How many rows each table has of it."""
    return [sql(path, KEPT_OF.format(table=table, node=node))[0][0] for table in TABLES]


def fill(path: Path, rounds: int) -> None:
    """Of two nodes, in turn, so many values of state and so many of static information, which has changed."""
    store = Store(f"sqlite:///{path}")
    names, now_us = [("web1", "0" * 32), ("web2", "1" * 32)], time.time_ns() // 1000
    said = [
        (event(number, "static" if number % 2 else "state", f"name {number % 2}", number, node, stream), now_us)
        for number in range(1, 2 * rounds + 1)
        for node, stream in names
    ]
    for first in range(0, len(said), 1000):
        store.add(said[first : first + 1000])
    store.close()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in which each node has 1000 rows of history and 999 changes; steps have 100 rows, and no rest."""
    monkeypatch.setattr(forgetting, "FIRST", 100)
    monkeypatch.setattr(forgetting, "MOST", 100)
    monkeypatch.setattr(forgetting, "TURN_S", 0)
    fill(tmp_path / "store.db", 1000)
    return tmp_path / "store.db"


def test_nothing_is_left(path: Path) -> None:
    """Of the node; another one keeps all, and each row was counted."""
    other = kept(path, "web2")
    assert Store(f"sqlite:///{path}").forget("web1") == 2 + 1000 + 999 + 1
    assert kept(path, "web1") == [0, 0, 0, 0] and kept(path, "web2") == other


def test_a_name_is_forgotten(path: Path) -> None:
    """And the other name of the node is kept."""
    assert Store(f"sqlite:///{path}").forget("web1", "name 0") == 1 + 1000
    assert kept(path, "web1") == [1, 0, 999, 1]
    assert Store(f"sqlite:///{path}").forget("web1", "name 1") == 1 + 999
    assert kept(path, "web1") == [0, 0, 0, 1]


def test_steps_are_small_and_others_have_their_turn(path: Path) -> None:
    """After each step another one can write; no step removes more than it may."""
    gone, store, other = [0], Store(f"sqlite:///{path}"), Store(f"sqlite:///{path}")

    def told(removed: int) -> None:
        gone.append(removed)
        [verdict] = other.add([(event(len(gone), node="web3", stream="2" * 32), 1)])
        assert verdict.status == STORED

    store.forget("web1", told=told)
    assert [after - before for before, after in zip(gone, gone[1:])] == [100] * 19
    assert kept(path, "web3") == [1, 19, 0, 1]


def test_what_is_said_meanwhile_is_whole_or_gone(path: Path) -> None:
    """What a node says up to the last step goes too, from all tables: views join them."""
    store, other = Store(f"sqlite:///{path}"), Store(f"sqlite:///{path}")

    def told(removed: int) -> None:
        other.add([(event(9000 + removed, stream="0" * 32), time.time_ns() // 1000)])

    store.forget("web1", told=told)
    assert kept(path, "web1") == [0, 0, 0, 0]


def test_what_is_interrupted_can_be_repeated(path: Path) -> None:
    """A part is gone then, and the node is still there."""

    def interrupt(_gone: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(f"sqlite:///{path}").forget("web1", told=interrupt)
    assert kept(path, "web1") == [2, 900, 999, 1]
    Store(f"sqlite:///{path}").forget("web1")
    assert kept(path, "web1") == [0, 0, 0, 0]


def test_a_listener_goes_on(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """It stores what comes while a large node is forgotten, and never answers `later`."""
    fill(tmp_path / "store.db", 10_000)
    listener = Listener(tmp_path)
    node = Node(plain, listener.endpoint)
    command = [*COMMAND, "forget", "web1", "--store", f"sqlite:///{listener.store}"]
    forget = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    statuses: list[str] = []
    deadline = time.monotonic() + scaled(60)
    while forget.poll() is None and time.monotonic() < deadline:
        statuses.append(node.say(event(len(statuses) + 1, node="web3", stream="2" * 32)).status)
    assert forget.communicate()[0] == "forgot web1: 20002 rows\n"
    assert set(statuses) == {STORED}
    assert kept(listener.store, "web1") == [0, 0, 0, 0] and kept(listener.store, "web3")[1] == len(statuses)
    assert listener.end() == 0
