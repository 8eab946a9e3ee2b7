"""The store: what takes effect, once; what is the latest; what happens when the database is not healthy."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cf_messaged.database import Limits, StoreUnavailable, database
from cf_messaged.intake import Verdict
from cf_messaged.publisher import topic_of
from cf_messaged.store import Store, newest_revision, summary
from cf_messaged.tables import metadata
from cf_messaging.wire import DUPLICATE, KINDS, REFUSED, STORED, Event
from listener import OTHER_STREAM, STREAM, event
from postgres import Kept, Server, rows
from test_publisher import NAMES, NODES, prefixes

SECOND = 1_000_000
HOSTILE = "'; DROP TABLE latest; --\" \\ % :name ? \u0000 \u202e 💥"


@pytest.fixture
def store(fresh: Callable[..., str]) -> Iterator[Kept]:
    """Of either kind."""
    store = Kept(fresh())
    yield store
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Kept]:
    """A store in a file of SQLite."""
    store = Kept(f"sqlite:///{tmp_path}/store.db")
    yield store
    store.close()


def add(store: Store, *events: Event, at: int = SECOND) -> list[Verdict]:
    return store.add([(event, at) for event in events])


def statuses(verdicts: list[Verdict]) -> list[str]:
    return [verdict.status for verdict in verdicts]


def latest(store: Kept) -> list[Any]:
    return store.rows("SELECT node, name, data FROM latest ORDER BY node, name")


def test_what_is_added_is_stored_in_order_with_the_highest_sequence(store: Kept) -> None:
    """Each event gets its verdict, and the highest sequence that there was of its stream before it."""
    verdicts = add(store, event(2), event(1, stream=OTHER_STREAM), event(3), event(1), event(3))
    assert [verdict.status for verdict in verdicts] == [STORED, STORED, STORED, STORED, DUPLICATE]
    assert [verdict.have for verdict in verdicts] == [0, 0, 2, 3, 3]


def test_nothing_is_added(store: Kept) -> None:
    """An empty batch is no error."""
    assert add(store) == []


def test_an_event_takes_effect_once(store: Kept) -> None:
    """The same event again, in the same batch or after the store was opened anew, is a duplicate and counts once."""
    assert statuses(add(store, event(1), event(1))) == [STORED, DUPLICATE]
    again = Store(store.url)
    assert statuses(add(again, event(1), event(2), event(1))) == [DUPLICATE, STORED, DUPLICATE]
    again.close()
    assert store.rows("SELECT count(*) FROM history") == [(2,)]
    assert store.rows("SELECT events FROM nodes") == [(2,)]


@pytest.mark.parametrize(
    "other", [event(1, data=2), event(1, name="other"), event(1, kind="dynamic"), event(1, data=True)]
)
def test_a_clone_is_refused(store: Kept, other: Event) -> None:
    """The same id with another value, name or kind is refused with a reason that speaks of a clone."""
    add(store, event(1, data=1))
    for _ in range(2):
        [verdict] = add(store, other)
        assert (verdict.status, verdict.kind) == (REFUSED, "cloned")
        assert verdict.reason and "clone" in verdict.reason
    assert latest(store) == [("web1", "load", "1")]


def test_a_clone_within_a_batch_is_refused(store: Kept) -> None:
    """Two values under one id in one batch: the first is stored, the second refused."""
    assert statuses(add(store, event(1, data=1), event(1, data=2))) == [STORED, REFUSED]


def test_two_nodes_may_have_one_stream(store: Kept) -> None:
    """A clone that was renamed is another source: nothing of it is a duplicate, and `have` is its own."""
    verdicts = add(store, event(5, node="web1"), event(1, node="web2"), event(2, node="web2"))
    assert [(verdict.status, verdict.have) for verdict in verdicts] == [(STORED, 0), (STORED, 0), (STORED, 1)]


def test_the_higher_sequence_is_the_latest(store: Kept) -> None:
    """Of one stream, a value that comes late does not replace a newer one, but is part of the history."""
    add(store, event(2, "dynamic", data="new"))
    add(store, event(1, "dynamic", data="old"))
    assert latest(store) == [("web1", "load", '"new"')]
    assert store.rows('SELECT data FROM history ORDER BY "row"') == [('"new"',), ('"old"',)]


@pytest.mark.parametrize("kind", ["static", "dynamic", "state", "common"])
def test_out_of_order_in_one_batch(store: Kept, kind: str) -> None:
    """The order within a batch changes nothing about which value is the latest."""
    add(store, event(2, kind, data=2), event(3, kind, data=3), event(1, kind, data=1))
    assert latest(store) == [("web1", "load", "3")]


def test_of_two_streams_what_arrived_later_is_the_latest(store: Kept) -> None:
    """A node that lost its memory begins at 1 again, and what it says then counts."""
    add(store, event(9, data="before"))
    add(store, event(1, data="after", stream=OTHER_STREAM))
    assert latest(store) == [("web1", "load", '"after"')]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example is of another node
@given(st.permutations(range(1, 7)), st.integers(1, 6), st.uuids())
def test_any_order_and_any_batches_end_the_same(store: Kept, order: list[int], size: int, node: UUID) -> None:
    """However events of one stream arrive, each is stored once and the highest sequence is the latest."""
    events = [event(sequence, data=sequence, node=str(node), stream=node.hex) for sequence in order]
    known = statuses(add(store, events[0])) == [DUPLICATE]
    for first in range(0, len(events), size):
        add(store, *events[first : first + size])
    assert statuses(add(store, *events)) == [DUPLICATE] * 6
    assert known or [row for row in latest(store) if row[0] == str(node)] == [(str(node), "load", "6")]


@pytest.mark.parametrize(("kind", "rows"), [("static", 0), ("common", 0), ("dynamic", 2), ("state", 2)])
def test_history_is_kept_of_dynamic_and_state(store: Kept, kind: str, rows: int) -> None:
    """Static and common information have no history."""
    add(store, event(1, kind, data=1), event(2, kind, data=2))
    assert store.rows("SELECT count(*) FROM history") == [(rows,)]


def test_static_information_that_changes_is_noted(store: Kept) -> None:
    """A change is recorded with both values; the same value again is none, nor is one that came late."""
    add(store, event(1, "static", data="a"), event(2, "static", data="a"))
    [verdict] = add(store, event(4, "static", data="b"))
    assert verdict.note == "static information load of web1 changed"
    assert add(store, event(3, "static", data="c"))[0].note is None
    assert store.rows("SELECT before, after FROM changes") == [('"a"', '"b"')]


def test_the_order_of_keys_is_no_change(store: Kept) -> None:
    """Objects are compared without the order of their keys."""
    assert not any(
        verdict.note
        for verdict in add(store, event(1, "static", data={"a": 1, "b": 2}), event(2, "static", data={"b": 2, "a": 1}))
    )


def test_common_information_has_one_speaker(store: Kept) -> None:
    """A second node is refused with the name of the first, also in the same batch; another name is free."""
    first, second = event(1, "common"), event(1, "common", node="web2", stream=OTHER_STREAM)
    free = event(2, "common", name="ntp", node="web2", stream=OTHER_STREAM)
    verdicts = add(store, first, second, free)
    assert statuses(verdicts) == [STORED, REFUSED, STORED]
    assert verdicts[1].reason == "promised by web1"
    assert statuses(add(store, second)) == [REFUSED]
    assert [node for node, *_ in latest(store)] == ["web1", "web2"]


def test_a_silent_speaker_is_replaced(store: Kept) -> None:
    """The second node is accepted once the first was not heard for longer than alive_within, and not before."""
    store.alive_within_s = 60
    second = event(1, "common", data=2, node="web2", stream=OTHER_STREAM)
    add(store, event(1, "common"), at=0)
    assert statuses(add(store, second, at=60 * SECOND)) == [REFUSED]
    assert statuses(add(store, event(2, "state"), at=61 * SECOND)) == [STORED]  # web1 is heard
    assert statuses(add(store, second, at=121 * SECOND)) == [REFUSED]
    assert statuses(add(store, second, at=122 * SECOND)) == [STORED]
    assert [row for row in latest(store) if row[2] == "2"] == [("web2", "load", "2")]
    assert store.rows("SELECT count(*) FROM latest WHERE kind = 'common'") == [(1,)]


def test_a_forgotten_speaker_is_replaced(store: Kept) -> None:
    """Once the first node, or that name of it, is forgotten, the second may speak."""
    for name, forgotten in (("a", None), ("b", "b")):
        number = ord(name)
        add(store, event(number, "common", name=name))
        store.forget("web1", forgotten)
        second = event(number, "common", name=name, node="web2", stream=OTHER_STREAM)
        assert statuses(add(store, second)) == [STORED]


def test_forgetting_removes_what_is_kept_but_no_id(store: Kept) -> None:
    """What was forgotten does not come back with a retry of the same event; other nodes stay."""
    said = [event(1), event(2, "static", data=1), event(3, "static", data=2), event(4, name="other")]
    add(store, *said, event(1, node="web2"))
    assert store.forget("web1", "load") == 4  # two of latest, one of history, one change
    assert latest(store) == [("web1", "other", "1"), ("web2", "load", "1")]
    assert store.forget("web1") == 3
    assert store.forget("web1") == 0
    assert statuses(add(store, *said)) == [DUPLICATE] * 4
    assert latest(store) == [("web2", "load", "1")]


def test_nodes_are_counted_as_they_are_heard(store: Kept) -> None:
    """first_seen stays, last_seen moves with duplicates too, only what is stored is counted."""
    add(store, event(1), at=10)
    add(store, event(2), event(1), at=20)
    add(store, event(1), at=30)
    assert store.rows("SELECT node, first_seen, last_seen, events FROM nodes") == [("web1", 10, 30, 2)]


def test_sql_in_every_string_is_only_text(store: Kept) -> None:
    """Strings of others are values, never statements; only a NUL, which no PostgreSQL takes, is changed."""
    name, shown = HOSTILE.replace("\u0000", ""), HOSTILE.replace("\u0000", "\ufffd")
    said = event(1, "static", name=name, data={HOSTILE: [HOSTILE]})._replace(policy=HOSTILE, handle=HOSTILE)
    assert statuses(add(store, said, said._replace(id=event(2).id))) == [STORED, STORED]
    assert store.rows("SELECT name, policy, handle FROM latest") == [(name, shown, shown)]
    assert store.forget(name) == 0
    assert store.forget("web1", name) == 1


def test_a_file_is_durable_and_private(file: Kept) -> None:
    """WAL, synced at every commit, foreign keys on, readable by its owner alone."""
    with file._transaction() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 2, 1, 2000]
    assert {stat.S_IMODE(os.stat(file.name + end).st_mode) for end in ("", "-wal")} == {0o600}


def test_a_store_keeps_its_id(store: Kept, fresh: Callable[..., str]) -> None:
    """32 hexadecimal digits, made with the database, another in another database."""
    assert len(bytes.fromhex(store.id)) == 16
    for url, is_the_same in ((store.url, True), (fresh(empty=True), False)):
        other = Store(url)
        assert (other.id == store.id) is is_the_same
        other.close()


def test_the_migrations_make_what_the_code_expects(store: Kept) -> None:
    """Tables, columns and indexes after all migrations are those of tables.py; the last of them is known."""
    assert store.rows("SELECT version_num FROM alembic_version") == [(newest_revision(),)]
    with store._transaction() as connection:
        options = {"include_object": is_of_both if connection.dialect.name == "postgresql" else None}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def is_of_both(object: Any, name: str | None, type: str, *_: object) -> bool:
    """PostgreSQL has partitions, other indexes of the history, and one by which news are found."""
    if type == "index":
        return object.table.name != "history" and name != "latest_of_batch"
    return not (name or "").startswith(("history_state", "history_dynamic"))


def test_a_start_loads_what_it_uses(tmp_path: Path) -> None:
    """Not what makes tables where they are there, nor the driver of the other database."""
    code = """if True:
        import sys
        from cf_messaged import cli, service
        from cf_messaged.store import Store
        Store(sys.argv[1]).close()
        print(*sorted({"alembic", "psycopg"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/store.db"]
    loaded = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert "alembic" in loaded[0] and loaded[1] == []


def test_a_newer_database_is_left_alone(store: Kept) -> None:
    """A database of a newer cf-messaged is refused in one line, and not changed."""
    store.rows("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnavailable, match=r"another cf-messaged made it \(revision 9999\)"):
        Store(store.url)
    assert store.rows("SELECT version_num FROM alembic_version") == [("9999",)]


def test_a_failed_migration_leaves_nothing(fresh: Callable[..., str]) -> None:
    """Tables and the record of their revision are made in one transaction."""
    url = fresh(empty=True)
    rows(url, "CREATE TABLE history (mine TEXT)")
    with pytest.raises(StoreUnavailable, match=r'history"? already exists'):
        Store(url)
    for table in ("nodes", "alembic_version"):
        with pytest.raises(sa.exc.DBAPIError):
            rows(url, f"SELECT * FROM {table}")
    assert rows(url, "SELECT mine FROM history") == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://user:secret@host/db", r"mysql://user:\*\*\*@host/db cannot be used"),
        ("postgresql://user:secret@host", r"postgresql://user:\*\*\*@host cannot be used"),
        ("postgresql:///?password=secret", r"password=\*\*\* cannot be used"),
        ("postgresql:/user:secret@host/db", "what is there is no URL"),
        ("sqlite://", "cannot be used"),
        ("sqlite:///:memory:", "cannot be used"),
        ("sqlite:////x?mode=memory", "cannot be used"),
        ("/var/lib/store.db", "is no URL"),
        ("", "is no URL"),
    ],
)
def test_other_urls_are_refused(url: str, reason: str) -> None:
    """Files of SQLite and databases of PostgreSQL are stores; the error says what is allowed, and no password."""
    with pytest.raises(ValueError, match=f"{reason}.*allowed is sqlite:///PATH") as error:
        database(url)
    assert "secret" not in str(error.value)


def test_a_locked_database(file: Kept) -> None:
    """While another program holds the database nothing is stored, and afterwards all goes on."""
    other = sqlite3.connect(file.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another program holds it locked"):
        add(file, event(1))
    other.close()
    assert statuses(add(file, event(1))) == [STORED]


def test_whether_something_could_be_stored(store: Kept) -> None:
    """It is looked at, and nothing is stored by that."""
    add(store, event(1))
    tables = [name for (name,) in store.rows(_TABLES[store.url.partition(":")[0]])]
    before = [store.rows(f"SELECT * FROM {name}") for name in tables]
    store.check()
    assert before == [store.rows(f"SELECT * FROM {name}") for name in tables] and ["nodes"] in [
        [each] for each in tables
    ]


_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
    "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename",
}


def test_that_nothing_could_be_stored(file: Kept) -> None:
    """Where another program holds it, or it is gone; and not for longer than that."""
    other = sqlite3.connect(file.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another program holds it locked"):
        file.check()
    other.close()
    file.check()
    folder = Path(file.name).parent
    folder.rename(folder.with_name("away"))
    with pytest.raises(StoreUnavailable, match="it was removed or replaced"):
        file.check()
    with pytest.raises(StoreUnavailable, match="it, or its directory, does not exist"):
        file.check()
    folder.with_name("away").rename(folder)
    file.check()


def test_that_nothing_could_be_stored_by_a_server(postgresql: Callable[..., str], postgres: Server) -> None:
    """Whose database is gone."""
    served = Kept(postgresql())
    served.check()
    postgres.drop(served.url)
    with pytest.raises(StoreUnavailable, match="does not exist"):
        served.check()
    served.close()


def test_a_deleted_database(file: Kept) -> None:
    """What went into a file that was removed is never called stored; then a new store with a new id begins."""
    before = file.id
    add(file, event(1))
    os.unlink(file.name)
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        add(file, event(2))
    [verdict] = add(file, event(2))
    assert (verdict.status, verdict.have) == (STORED, 0)
    assert file.id != before
    assert file.rows("SELECT count(*) FROM history") == [(1,)]


def test_a_restored_backup(file: Kept, tmp_path: Path) -> None:
    """After an older copy was put in place of the database, it is as it was copied, and `have` tells how old it is."""
    add(file, event(1))
    backup = tmp_path / "backup.db"
    connection = sqlite3.connect(file.name)
    connection.execute("VACUUM INTO ?", [str(backup)])
    connection.close()
    add(file, event(2), event(3))
    os.replace(backup, file.name)
    with pytest.raises(StoreUnavailable):
        add(file, event(4))
    [verdict] = add(file, event(5))
    assert (verdict.status, verdict.have) == (STORED, 1)
    assert file.rows("SELECT sequence FROM history") == [(1,), (5,)]
    assert file.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_backup_that_is_restored_while_another_program_holds_the_database(file: Kept, tmp_path: Path) -> None:
    """The log of what was there before does not get into it."""
    add(file, event(1))
    backup = tmp_path / "backup.db"
    other = sqlite3.connect(file.name, isolation_level=None)
    other.execute("VACUUM INTO ?", [str(backup)])
    add(file, event(2), event(3))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another program holds it locked"):
        add(file, event(4))
    os.replace(backup, file.name)
    assert statuses(add(file, event(5))) == [STORED]
    other.close()
    assert file.rows("SELECT sequence FROM history") == [(1,), (5,)]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """It is reported, and not changed."""
    path = tmp_path / "store.db"
    path.write_text("something else, longer than the header of a database: " + "x" * 200)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="it is no database of SQLite"):
        Store(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_bad_batch_leaves_nothing(store: Kept) -> None:
    """An event that cannot be stored fails its whole batch, and the store goes on."""
    with pytest.raises(ValueError, match="invalid literal"):
        add(store, event(1), event(2)._replace(id="none"))
    assert latest(store) == []
    assert statuses(add(store, event(1))) == [STORED]


def test_the_summary_is_read_beside_a_writer(store: Kept) -> None:
    """Counts are kept, not counted; where there is no database it says so, and makes none."""
    add(store, event(1), event(2), event(1, node="web2"), at=5)
    found = summary(store.url)
    assert (found.store, found.nodes, found.events, found.last_seen) == (store.id, 2, 3, 5)
    url = sa.make_url(store.url)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="does not exist"):
            summary(url.set(database=f"{url.database}none").render_as_string())


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT digest FROM seen WHERE stream_id = 1 AND sequence = 1", "PRIMARY KEY"),
        (f"SELECT id FROM streams WHERE stream IN ('{STREAM}')", "sqlite_autoindex_streams"),
        ("SELECT node FROM latest WHERE kind = 'common' AND name = 'x'", "sqlite_autoindex_latest"),
        ("SELECT data FROM latest WHERE kind = 'a' AND name = 'b' AND node = 'c'", "sqlite_autoindex_latest"),
        ("DELETE FROM history WHERE node = 'a' AND name = 'b'", "history_of_both"),
        ("DELETE FROM changes WHERE node = 'a'", "changes_of_node"),
        ("DELETE FROM latest WHERE node = 'a'", "latest_of_node"),
    ],
)
def test_no_question_of_the_intake_scans(file: Kept, query: str, index: str) -> None:
    """What is asked for each batch finds its rows by an index, however many there are."""
    [plan] = file.rows(f"EXPLAIN QUERY PLAN {query}")
    assert "SEARCH" in plan[3] and index in plan[3]


def test_a_page_of_last_values_is_bounded(store: Kept) -> None:
    """By bytes too; page after page all values come, in the order of their keys."""
    add(store, *(event(number, name=f"{number:02d}", data="x" * 1_000_000) for number in range(1, 21)))
    pages, after = [], None
    while page := store.last(b"", after, 256):
        pages.append([value.name for value in page])
        after = page[-1].key
    assert len(pages) > 1 and [name for page in pages for name in page] == [f"{number:02d}" for number in range(1, 21)]
    assert store.last(b"state/0", None, 256)[0].name == "01" and store.last(b"nothing/", None, 256) == []


EVERYTHING = [
    (kind, name, node) for kind in KINDS for name in NAMES for node in NODES[: 1 if kind == "common" else None]
]


@pytest.fixture
def full(store: Kept) -> Kept:
    """With a value of each kind, name and node."""
    streams = {node: f"{number:032x}" for number, node in enumerate(NODES)}
    said = enumerate(EVERYTHING, 1)
    add(store, *(event(number, *key[:2], node=key[2], stream=streams[key[2]]) for number, key in said))
    return store


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # nothing is written
@given(prefixes, st.integers(1, 40))
def test_pages_are_all_that_matches_in_order(full: Kept, prefix: bytes, limit: int) -> None:
    """Whatever begins or ends in the middle of a page, of a name, or of a kind."""
    pages, after = [], None
    while page := full.last(prefix, after, limit):
        pages.append([value.key for value in page])
        after = page[-1].key
    found = [key for page in pages for key in page]
    assert found == sorted(set(found)) and all(len(page) <= limit for page in pages)
    wanted = sorted(key for key in EVERYTHING if topic_of(*key).startswith(prefix))
    assert [key for key in found if topic_of(*key).startswith(prefix)] == wanted


def asked_first(work: Callable[[], object]) -> tuple[str, Any]:
    """The statement that it begins with, and its values."""
    asked: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, values: object, *_: object) -> None:
        asked.append((statement, values))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    work()
    sa.event.remove(sa.Engine, "before_cursor_execute", note)
    return asked[0]


@pytest.mark.parametrize("prefix", [b"", b"st", b"state/", b"state/a", b"state/a/n"])
def test_a_page_reads_nothing_that_comes_before_it(store: Kept, prefix: bytes) -> None:
    """Its index is entered where it begins, in the middle of a kind, and has its order."""
    statement, values = asked_first(lambda: store.last(prefix, ("state", "a", "b"), 10))
    with database(store.url).reading(Limits()) as connection:
        if isinstance(connection, sqlite3.Connection):
            plan = str(connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall())
            entered = "sqlite_autoindex_latest_1 (kind=? AND (name,node)>(?,?)"
        else:
            connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
            plan = str(connection.execute(f"EXPLAIN {statement}", values).fetchall())
            entered = "AND (ROW(name, node) > ROW("
        assert entered in plan and "TEMP B-TREE" not in plan and "Sort" not in plan
