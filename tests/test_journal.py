"""What happens to keys is a row each: noted whole or not at all, shown newest first, kept for its time."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cf_messaged import journal, retention, views
from cf_messaged import store as store_module
from cf_messaged.database import Limits, StoreUnavailable
from cf_messaged.journal import LET_IN, LET_OUT, KeyChange
from cf_messaged.key_log import MAX_WAITING, KeyLog
from cf_messaged.partitions import DAY_US
from cf_messaged.retention import Sweeper
from cf_messaged.times import rfc3339
from cf_messaging.wire import STORED
from listener import STREAM, event
from postgres import Kept, Server, rows
from test_postgresql import server  # noqa: F401 - a fixture
from test_retention import KEEP, NOW_US, at_once, sweep  # noqa: F401 - a fixture among them

SECOND = 1_000_000
KEY, OTHER_KEY = "ab" * 32, "cd" * 32
HOST_KEY = f"SHA={'ef' * 32}"


@pytest.fixture
def store(fresh: Callable[..., str]) -> Iterator[Kept]:
    """Of either kind."""
    with closing(Kept(fresh())) as store:
        yield store


def change(second: float, what: str = "accepted", node: str = "web1", key: str = KEY, reason: str = "") -> KeyChange:
    return KeyChange(int(second * SECOND), what, node, key, HOST_KEY, "192.0.2.1", reason)


def ask(store: Kept, **asked: Any) -> list[views.Row]:
    view = views.load("key_changes", None)
    return views.rows(store.url, view, views.values(view, asked, {}, NOW_US), Limits())


def whats(found: list[views.Row]) -> list[str]:
    return [row["what"] for row in found]


# ---- noted and shown


def test_what_is_noted_is_shown(store: Kept) -> None:
    """All of it, the newest first; what happened at the same time, in the order in which it was noted."""
    waits = KeyChange(5 * SECOND, "waits", "", KEY)
    store.note_keys([waits, change(9, "enrolled")])
    store.note_keys([change(9, "let in", reason="it's :now; --")])
    assert ask(store) == [
        shown(change(9, "let in", reason="it's :now; --")),
        shown(change(9, "enrolled")),
        shown(waits),
    ]
    assert ask(store)[-1]["host_key"] == ask(store)[-1]["address"] == ask(store)[-1]["reason"] == ""


def shown(change: KeyChange) -> views.Row:
    told = change._asdict()
    return {"time": rfc3339(told.pop("received")), **told}


def test_some_are_asked_for(store: Kept) -> None:
    """Of a node, since a time, and no more than the limit, which is 1000."""
    store.note_keys([change(1, "first"), change(2, "second", "web2"), change(3, "third")])
    assert whats(ask(store, node="web1")) == ["third", "first"]
    assert whats(ask(store, since=rfc3339(2 * SECOND))) == ["third", "second"]
    assert whats(ask(store, node="web1", since=rfc3339(2 * SECOND))) == ["third"]
    assert whats(ask(store, limit=1)) == ["third"]
    store.note_keys([change(4)] * 1000)
    assert len(ask(store)) == 1000 and len(ask(store, limit=2000)) == 1003


def test_nothing_is_noted(store: Kept) -> None:
    """No change is no row, and no error."""
    store.note_keys([])
    assert ask(store) == []


def test_what_no_database_takes_keeps_nothing_else_out(store: Kept) -> None:
    """A name of a file that is no UTF-8, and a NUL, are noted as far as they can be."""
    store.note_keys([change(1), change(2, node="web\udcff", reason="a\0b"), change(3)])
    assert [(row["node"], row["reason"]) for row in ask(store)] == [("web1", ""), ("web?", "a\ufffdb"), ("web1", "")]


def test_all_are_noted_or_none(store: Kept) -> None:
    """One that cannot be a row takes those of its call with it; those of the next are noted."""
    store.note_keys([change(1)])
    with pytest.raises(StoreUnavailable):
        store.note_keys([change(2), change(3)._replace(key=None)])  # type: ignore[arg-type]
    store.note_keys([change(4)])
    assert [row["time"] for row in ask(store)] == [rfc3339(4 * SECOND), rfc3339(SECOND)]


def test_a_node_that_is_forgotten_leaves_its_trace(store: Kept) -> None:
    """What is kept of it goes, and is counted; what happened to its key stays."""
    store.note_keys([change(1)])
    assert [verdict.status for verdict in store.add([(event(1), SECOND)])] == [STORED]
    assert store.forget("web1") == 3  # of latest, history and nodes
    assert len(ask(store, node="web1")) == 1
    assert store.forget("web1") == 0


# ---- who was let in


def test_the_last_that_let_a_key_in_or_out(store: Kept) -> None:
    """By key, whatever else happened to it since; of keys that were never let in or out there is none."""
    store.note_keys([change(1, LET_IN), change(2, LET_OUT, key=OTHER_KEY), change(3, "waits", key="00" * 32)])
    store.note_keys([change(4, LET_OUT), change(5, "refused"), change(6, LET_IN, "web2", OTHER_KEY), change(7)])
    assert store.last_key_changes() == {KEY: change(4, LET_OUT), OTHER_KEY: change(6, LET_IN, "web2", OTHER_KEY)}


def test_many_at_once(store: Kept) -> None:
    """Each is a row, though no more than MAX_WAITING wait where the store is away."""
    names = {number.to_bytes(32): f"web{number}" for number in range(2 * MAX_WAITING + 1)}
    log = KeyLog(store)
    log.let_in(names, SECOND)
    log.write()
    assert store.rows("SELECT count(*) FROM key_changes") == [(len(names),)]


def test_a_clock_that_was_set_back(store: Kept) -> None:
    """What was noted last is the last, whenever it seems to have happened; also of two within a call."""
    store.note_keys([change(9, LET_IN)])
    store.note_keys([change(2, LET_OUT), change(1, LET_IN, "web2")])
    assert store.last_key_changes() == {KEY: change(1, LET_IN, "web2")}


def test_a_store_without_any(store: Kept) -> None:
    """As each store is before the first key."""
    assert store.last_key_changes() == {}


def test_a_fleet(store: Kept) -> None:
    """Of 20,000 keys each has its own."""
    keys = [f"{number:064x}" for number in range(20_000)]
    for second, what in enumerate((LET_IN, LET_OUT, LET_IN)):
        store.note_keys([change(second, what, f"node{key[-5:]}", key) for key in keys])
    found = store.last_key_changes()
    assert found == {key: change(2, LET_IN, f"node{key[-5:]}", key) for key in keys}


def test_they_are_found_by_an_index(store: Kept) -> None:
    """However many others there are, which were refused, say: those are not even looked at."""
    with store._transaction() as connection:
        statement = str(journal.LAST.compile(dialect=connection.dialect))
        explain = "EXPLAIN QUERY PLAN"
        if connection.dialect.name == "postgresql":  # with so few rows it would read them all
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
            explain = "EXPLAIN"
        plan = str(connection.exec_driver_sql(f"{explain} {statement}").fetchall())
    assert "key_changes_let" in plan and "Seq Scan" not in plan and "'SCAN key_changes'" not in plan


# ---- for how long


@pytest.mark.usefixtures("at_once")
def test_they_are_kept_as_long_as_changes_are(store: Kept) -> None:
    """What is older goes, from the oldest on, and what is young stays."""
    days = [60, 31, 29, 0]
    store.note_keys([change(NOW_US / SECOND - day * DAY_US / SECOND, f"{day} days") for day in days])
    sweep(store, KEEP._replace(changes=30))
    assert whats(ask(store)) == ["0 days", "29 days"]
    sweep(store, KEEP._replace(changes=10))
    assert whats(ask(store)) == ["0 days"]


@pytest.mark.usefixtures("at_once")
def test_many_go_in_steps(store: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows take their time, none removes more than the least."""
    monkeypatch.setattr(retention, "STEP_S", 0.0)
    store.note_keys([change(1)] * 100)
    sweeper, left = Sweeper(store, KEEP), [100]
    for _ in range(100):
        sweeper.step(NOW_US)
        left += [count for (count,) in store.rows("SELECT count(*) FROM key_changes")]
    assert left[-1] == 0
    assert {before - after for before, after in zip(left, left[1:])} == {0, retention.FIRST, 100 % retention.FIRST}


# ---- a store of before


@pytest.fixture
def older(fresh: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store that a cf-messaged made, and filled, which knew the first migration alone."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", first_migration(tmp_path))
        with closing(Kept(fresh(empty=True))) as store:
            for table, row in FILLED.items():
                store.rows(f"INSERT INTO {table} VALUES ({row})")
            assert store.rows("SELECT version_num FROM alembic_version") == [("1",)]
            with pytest.raises(StoreUnavailable):
                store.note_keys([change(1)])
        return store.url


def first_migration(folder: Path) -> Path:
    """A folder of migrations with no other in it."""
    made = folder / "migrations"
    (made / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/0001_first.py"):
        shutil.copy(store_module.MIGRATIONS / name, made / name)
    return made


FILLED = {
    "nodes": "'web1', 5, 5, 3",
    "streams": f"1, 'web1', '{STREAM}', 3",
    "seen": "1, 3, 'digest', 5",
    "latest": "'static', 'os', 'web1', '13', 5, 5, NULL, NULL, NULL, 1, 2, 0",
    "history": "5, 1, 3, 'web1', 'state', 'load', '1', 5, 5",
    "changes": "1, 'web1', 'os', '12', '13', 5, 5",
}


def contents(url: str) -> dict[str, list[Any]]:
    """Of all tables, but for what columns there are since."""
    tables = {"identity": "*", **dict.fromkeys(FILLED, "*"), "streams": "id, node, stream, have"}
    return {table: rows(url, f"SELECT {columns} FROM {table}") for table, columns in tables.items()}


def test_an_older_store_is_upgraded(older: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it has is there as it was, keys are noted, and the older cf-messaged leaves it alone from then on."""
    before = contents(older)
    with closing(Kept(older)) as store:
        assert contents(older) == before and all(before.values())
        store.note_keys([change(1, LET_IN)])
        assert len(ask(store)) == 1 and store.last_key_changes() == {KEY: change(1, LET_IN)}
        assert [verdict.status for verdict in store.add([(event(4), NOW_US)])] == [STORED]
    newest = store_module.newest_revision()
    monkeypatch.setattr(store_module, "MIGRATIONS", tmp_path / "migrations")
    with pytest.raises(StoreUnavailable, match=rf"another cf-messaged made it \(revision {newest}\)"):
        Kept(older)


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(older: str) -> None:
    """Its tables, and the record of its revision."""
    rows(older, "CREATE TABLE key_changes (mine TEXT)")
    before = contents(older)
    with pytest.raises(StoreUnavailable, match=r'key_changes"? already exists'):
        Kept(older)
    assert contents(older) == before
    assert rows(older, "SELECT version_num FROM alembic_version") == [("1",)]
    rows(older, "DROP TABLE key_changes")
    Kept(older).close()


# ---- a store that is away


def is_away(store: Kept) -> None:
    """Neither method does anything but say so."""
    with pytest.raises(StoreUnavailable):
        store.note_keys([change(2)])
    with pytest.raises(StoreUnavailable):
        store.last_key_changes()


def test_a_file_that_is_held_locked(tmp_path: Path) -> None:
    """Nothing is noted meanwhile; then it goes on."""
    with closing(Kept(f"sqlite:///{tmp_path}/store.db")) as store:
        store.note_keys([change(1)])
        with closing(sqlite3.connect(store.name, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            is_away(store)
        store.note_keys([change(3)])
        assert [row["time"] for row in ask(store)] == [rfc3339(3 * SECOND), rfc3339(SECOND)]


def test_a_server_that_is_away(server: Server) -> None:  # noqa: F811
    """Nothing is noted meanwhile; when it is back it goes on, with all that was noted before."""
    with closing(Kept(server.new())) as store:
        store.note_keys([change(1)])
        server.stop()
        is_away(store)
        server.start()
        store.note_keys([change(3)])
        assert [row["time"] for row in ask(store)] == [rfc3339(3 * SECOND), rfc3339(SECOND)]


def test_listeners_of_one_store_note_what_each_saw(stores: Callable[[], Kept]) -> None:
    """And each knows what another one has noted."""
    first, second = stores(), stores()
    first.note_keys([change(1, LET_IN)])
    second.note_keys([change(2, LET_OUT)])
    assert first.last_key_changes() == second.last_key_changes() == {KEY: change(2, LET_OUT)}
