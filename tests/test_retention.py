"""What is too old goes, in small steps, and what is young stays; the file and its log level off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from cf_messaged import checkpoints, retention, sqlite
from cf_messaged.database import StoreUnavailable
from cf_messaged.old_rows import Place
from cf_messaged.partitions import DAY_US
from cf_messaged.retention import Keep, Sweeper
from cf_messaging.wire import DUPLICATE, STORED
from listener import HISTORY, OTHER_STREAM, STREAM, Listener, Node, event
from peers import Socket
from postgres import Kept
from test_cfengine import wait_for
from test_service import Start, select, start, statuses  # noqa: F401 - a fixture

NOW_US = 1_800_000_000_000_000
KEEP = Keep(state=10, dynamic=20, changes=30, seen=45)


@pytest.fixture
def store(fresh: Callable[..., str]) -> Iterator[Kept]:
    """Of either kind."""
    store = Kept(fresh())
    yield store
    store.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is due."""
    monkeypatch.setattr(retention, "PAUSE", 0)
    monkeypatch.setattr(retention, "LOOK_S", 0)


def say(store: Kept, day: float, kind: str, sequence: int, data: object = None) -> str:
    """An event that was received so many days ago; returns what became of it."""
    said = event(sequence, kind, name=f"a {kind}", data=sequence if data is None else data)
    [verdict] = store.add([(said, NOW_US - int(day * DAY_US))])
    return verdict.status


def sweep(store: Kept, keep: Keep = KEEP, steps: int = 50) -> None:
    sweeper = Sweeper(store, keep)
    for _ in range(steps):
        sweeper.step(NOW_US)


def sequences(store: Kept, table: str = "history") -> list[int]:
    return [number for (number,) in store.rows(f"SELECT sequence FROM {table} ORDER BY sequence")]


@pytest.mark.usefixtures("at_once")
def test_each_kind_has_its_time(store: Kept) -> None:
    """Of history what is older than its kind is kept goes; the latest value of a name never does."""
    for sequence, (day, kind) in enumerate([(21, "dynamic"), (19, "dynamic"), (11, "state"), (9, "state")], 1):
        say(store, day, kind, sequence)
    sweep(store)
    assert sequences(store) == [2, 4]
    say(store, 0, "static", 5)
    sweep(store, Keep(0.001, 0.001, 0.001, 45))
    assert sequences(store) == []
    assert len(store.rows("SELECT * FROM latest")) == 3


@pytest.mark.usefixtures("at_once")
def test_changes_and_the_record_of_ids(store: Kept) -> None:
    """Changes go by their own time; an id is known for 45 days, longer than any node says it again."""
    for sequence, day in enumerate([60, 50, 44, 29], 1):
        say(store, day, "static", sequence)
    assert len(store.rows("SELECT * FROM changes")) == 3
    sweep(store)
    assert len(store.rows("SELECT * FROM changes")) == 1
    assert sequences(store, "seen") == [3, 4]
    assert [say(store, 0, "static", sequence) for sequence in (3, 4)] == [DUPLICATE, DUPLICATE]
    assert retention.SEEN_DAYS * 24 * 60 > 43_200  # the largest `expire`, in minutes
    assert Keep().seen == retention.SEEN_DAYS


@pytest.mark.usefixtures("at_once")
def test_a_stream_that_is_forgotten_is_known_by_its_end(store: Kept) -> None:
    """With all its ids gone, `have` still tells the node that its listener has lost nothing."""
    say(store, 60, "state", 7)
    sweep(store)
    assert sequences(store, "seen") == []
    [verdict] = store.add([(event(8), NOW_US)])
    assert (verdict.status, verdict.have) == (STORED, 7)


def streams(store: Kept) -> list[str]:
    return [stream for (stream,) in store.rows("SELECT stream FROM streams ORDER BY stream")]


@pytest.mark.usefixtures("at_once")
def test_a_stream_of_which_nothing_is_kept_goes(store: Kept) -> None:
    """But for those with an id, a latest value, or a row of the history. A node that goes on with one is told that
    nothing is known of it; what it says is stored, once.
    """
    ended = [f"{number:032x}" for number in range(40)]
    store.add([(event(7, stream=stream), NOW_US - 60 * DAY_US) for stream in ended])
    store.add([(event(7, stream=OTHER_STREAM), NOW_US - 50 * DAY_US)])  # the latest value
    store.add([(event(7, name="other", stream=STREAM), NOW_US - 44 * DAY_US)])
    store.add([(event(1, name="other", stream=OTHER_STREAM), NOW_US - 43 * DAY_US)])
    sweep(store, KEEP._replace(state=61))
    assert streams(store) == sorted([*ended, STREAM, OTHER_STREAM]) and len(store.rows(HISTORY_IDS)) == 43
    sweep(store)
    assert streams(store) == sorted([STREAM, OTHER_STREAM])
    again = event(8, stream=ended[0])
    verdicts = [verdict for _ in range(2) for verdict in store.add([(again, NOW_US)])]
    assert [(verdict.status, verdict.have) for verdict in verdicts] == [(STORED, 0), (DUPLICATE, 8)]


HISTORY_IDS = f"SELECT id FROM {HISTORY}"


@pytest.mark.usefixtures("at_once")
def test_a_node_that_was_forgotten_is_named_as_long_as_its_ids_are_known(store: Kept) -> None:
    """Not as long as a history would be kept, of which nothing is left."""
    for day, node in ((46, "web1"), (44, "web2")):
        store.add([(event(1, node=node), NOW_US - day * DAY_US)])
        store.forget(node)
    store.add([(event(1, node="web3"), NOW_US - 46 * DAY_US)])
    sweep(store, Keep())
    assert store.rows("SELECT node FROM streams ORDER BY node") == [("web2",), ("web3",)]
    assert [verdict.status for verdict in store.add([(event(1, node="web2"), NOW_US)])] == [DUPLICATE]


@pytest.mark.usefixtures("at_once")
def test_a_step_is_small(store: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows take their time, one step removes no more than the least; many steps remove all."""
    monkeypatch.setattr(retention, "STEP_S", 0.0)
    store.add([(event(sequence), NOW_US - 11 * DAY_US) for sequence in range(1, 101)])
    if "sqlite" in store.url:
        sweeper = Sweeper(store, KEEP)
        for left in (100 - retention.FIRST, 100 - 2 * retention.FIRST):
            sweeper.step(NOW_US)
            assert len(sequences(store)) == left
    sweep(store)
    assert sequences(store) == []


def test_a_step_is_paid_for_with_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is due after some times what one took, or after so many events; and seldom if nothing is left."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    took: list[float] = []

    class Slow:
        left = True

        def sweep(self, work: object) -> retention.Swept:
            clock[0] += 1.0
            took.append(clock[0])
            return retention.Swept(Place(0, 1) if self.left else None, 1)

    slow = Slow()
    sweeper = Sweeper(slow, KEEP)
    sweeper.step(NOW_US)
    assert sweeper.poll_s(clock[0]) == retention.PAUSE
    clock[0] += retention.PAUSE - 0.1
    for events in (0, 1, retention.EVENTS - 2):
        sweeper.step(NOW_US, events)
    assert len(took) == 1
    sweeper.step(NOW_US, 1)
    assert len(took) == 2
    slow.left = False
    clock[0] += retention.PAUSE
    sweeper.step(NOW_US)
    assert len(took) == 3 and sweeper.poll_s(clock[0]) == retention.LOOK_S
    sweeper.step(NOW_US, retention.EVENTS)
    assert len(took) == 3


@pytest.mark.usefixtures("at_once")
def test_what_fails_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told `later` because of it."""

    class Lost:
        tried = 0

        def sweep(self, work: object) -> retention.Swept:
            self.tried += 1
            raise StoreUnavailable("it is gone")

    lost = Lost()
    sweeper = Sweeper(lost, KEEP)
    sweeper.step(NOW_US)
    sweeper.step(NOW_US)
    assert lost.tried == 2
    assert [record.getMessage() for record in caplog.records] == ["what is too old cannot be removed: it is gone"]


@pytest.mark.usefixtures("at_once")
def test_what_fails_is_left_out(shared: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where partitions cannot be dropped, since somebody has made a view of them, all else goes."""
    with closing(Kept(shared)) as store:
        sweep(store, Keep(state=10), steps=20)  # makes partitions
        of_state = "pg_inherits WHERE inhparent = 'history_state'::regclass"
        for (name,) in store.rows(f"SELECT inhrelid::regclass::text FROM {of_state}"):
            store.rows(f"CREATE VIEW of_{name} AS SELECT * FROM {name}")
        for sequence, day in enumerate([60, 50, 44], 1):
            say(store, day, "static", sequence)
        sweeper = Sweeper(store, Keep(state=-400))
        for _ in range(50):
            sweeper.step(NOW_US)
            store.add([])  # opens it again
        assert sequences(store, "seen") == [3]
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == {"what is too old cannot be removed"}


@pytest.mark.usefixtures("at_once")
def test_the_file_levels_off(tmp_path: Path) -> None:
    """Of each day as much comes as goes: the file has its size after the first days."""
    sizes = []
    with closing(Kept(f"sqlite:///{tmp_path}/store.db")) as store:
        for day in range(12):
            received = NOW_US + day * DAY_US
            sequence = 1 + day * 500
            store.add([(event(sequence + each, data="x" * 500), received) for each in range(500)])
            sweeper = Sweeper(store, Keep(state=2, seen=2))
            for _ in range(60):
                sweeper.step(received)
            sizes.append(store.rows("PRAGMA page_count")[0][0])
    assert sizes[1] > 1.5 * sizes[0]  # so it would grow
    assert max(sizes[5:]) <= 1.1 * max(sizes[:5])


def test_the_log_levels_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a writer that never rests; and when a view has held it up, once that has ended."""
    monkeypatch.setattr(checkpoints, "PAUSE_S", 0.01)
    path = tmp_path / "store.db"
    log = Path(f"{path}-wal")
    with closing(Kept(f"sqlite:///{path}")) as store:
        sequence = 0

        def write(count: int) -> None:
            nonlocal sequence
            for _ in range(count):
                store.add([(event(sequence + each + 1, data="x" * 1000), NOW_US) for each in range(100)])
                sequence += 100

        written = 0
        while written < 4 * checkpoints.LOG_BYTES:
            before = os.stat(path).st_size + log.stat().st_size
            write(10)
            written += max(500_000, os.stat(path).st_size + log.stat().st_size - before)
        assert log.stat().st_size < 3 * checkpoints.LOG_BYTES


def test_the_log_levels_off_beside_small_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of which ends while each checkpoint runs."""
    size = 256 * 1024
    monkeypatch.setattr(checkpoints, "PAUSE_S", 0.01)
    for module in (checkpoints, sqlite):
        monkeypatch.setattr(module, "LOG_BYTES", size)
    path = tmp_path / "store.db"
    with closing(Kept(f"sqlite:///{path}")) as store:
        largest = 0
        for sequence in range(1, 2001):
            store.add([(event(sequence), NOW_US)])
            largest = max(largest, os.stat(f"{path}-wal").st_size)
    assert largest < 20 * size < 2000 * 20_000  # a checkpoint has its turn sooner or later


def test_a_listener_keeps_what_it_should(start: Start, plain: zmq.Context[Socket], tmp_path: Path) -> None:  # noqa: F811
    """What is older than a moment goes while it runs; all that is said meanwhile is acknowledged, and stays."""
    old_us = time.time_ns() // 1000 - DAY_US
    with closing(Kept(f"sqlite:///{tmp_path}/store.db")) as store:
        store.add([(event(sequence), old_us) for sequence in range(1, 5001)])
    listener: Listener = start(keep_state_days=0.5)
    node = Node(plain, listener.endpoint)
    assert statuses(node.say_all(event(sequence) for sequence in range(5001, 5501))) == [STORED] * 500
    wait_for(lambda: select(listener, f"SELECT count(*) FROM history WHERE received = {old_us}") == [(0,)])
    assert select(listener, "SELECT count(*) FROM history") == [(500,)]
