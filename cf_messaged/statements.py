"""The SQL of a batch, made once for the dialect of its database. Each takes its values by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cf_messaged.codec import text_of
from cf_messaged.tables import CHANNEL, changes, history, latest, nodes, seen, streams

# Who speaks for all is looked up, then written: two listeners must not do so at once.
_SPEAKERS = 5309
_STREAM = streams.c.stream, streams.c.node, streams.c.id, streams.c.have, streams.c.heard


class Statements(NamedTuple):
    """list_of: makes a list a value of a statement. lock_streams: as `streams`, whose rows nobody else writes then.
    Empty: what this database needs not.
    """

    list_of: Callable[[Iterable[str]], Any]
    lock_speakers: str
    tell_others: str
    streams: str
    lock_streams: str
    add_stream: str
    digest: str
    speaker: str
    remove_latest: str
    last_seen: str
    latest_value: str
    set_stream: str
    hear: str
    set_latest: str
    add_seen: str
    add_history: str
    add_change: str


@lru_cache(4)
def statements(dialect: sa.Dialect) -> Statements:
    def text(statement: Any) -> str:
        return str(statement.compile(dialect=dialect))

    special = _OF_DIALECT[dialect.name]()
    made: dict[str, Any] = special.pop("as_they_are")
    made |= {name: text(each) for name, each in {**_common(), **special}.items()}
    return Statements(**made)


def _of_key(table: sa.Table, *names: str) -> list[Any]:
    return [table.c[name] == sa.bindparam(name) for name in names]


def _all(table: sa.Table, *without: str) -> dict[str, Any]:
    """A value for each column that does not count itself."""
    names = [column.name for column in table.c if column.name not in without]
    return {name: sa.bindparam(name) for name in names}


def _common() -> dict[str, Any]:
    key = ("kind", "name", "node")
    value = sa.select(latest.c.data, latest.c.stream_id, latest.c.sequence)
    speaker = sa.select(latest.c.node).where(latest.c.kind == sa.literal_column("'common'"))
    return {
        "digest": sa.select(seen.c.digest).where(*_of_key(seen, "stream_id", "sequence")),
        "speaker": speaker.where(*_of_key(latest, "name")),
        "remove_latest": sa.delete(latest).where(*_of_key(latest, *key)),
        "last_seen": sa.select(nodes.c.last_seen).where(*_of_key(nodes, "node")),
        "latest_value": value.where(*_of_key(latest, *key)),
        "set_stream": sa.update(streams)
        .where(streams.c.id == sa.bindparam("stream_id"))
        .values(have=sa.bindparam("highest"), heard=sa.bindparam("received")),
        "add_seen": sa.insert(seen).values(_all(seen)),
        "add_history": sa.insert(history).values(_all(history)),
        "add_change": sa.insert(changes).values(_all(changes, "row")),
    }


def _upserts(insert: Any, batch: Any) -> dict[str, Any]:
    """batch: what latest.batch becomes."""
    hear = insert(nodes).values(_all(nodes))
    events = nodes.c.events + hear.excluded.events
    set_latest = insert(latest).values({**_all(latest), "batch": batch})
    new = set_latest.excluded
    return {
        "add_stream": insert(streams).values(_all(streams, "id")).on_conflict_do_nothing(),
        "hear": hear.on_conflict_do_update(
            index_elements=["node"], set_={"last_seen": hear.excluded.last_seen, "events": events}
        ),
        "set_latest": set_latest.on_conflict_do_update(
            index_elements=["kind", "name", "node"],
            set_={column.name: new[column.name] for column in latest.c if not column.primary_key},
        ),
    }


def _of_sqlite() -> dict[str, Any]:
    wanted = sa.select(sa.func.json_each(sa.bindparam("wanted", type_=sa.Text)).table_valued("value").c.value)
    found = sa.select(*_STREAM)
    return {
        "as_they_are": {
            "list_of": lambda texts: text_of(list(texts)),
            "lock_speakers": "",
            "lock_streams": "",
            "tell_others": "",
        },
        "streams": found.where(streams.c.stream.in_(wanted)),
        **_upserts(sqlite.insert, sa.literal_column("0")),
    }


def _of_postgresql() -> dict[str, Any]:
    wanted = sa.any_(sa.bindparam("wanted", type_=postgresql.ARRAY(sa.Text)))
    found = sa.select(*_STREAM).where(streams.c.stream == wanted)
    return {
        "as_they_are": {
            "list_of": list,
            "lock_speakers": f"SELECT pg_advisory_xact_lock({_SPEAKERS})",
            "tell_others": f"NOTIFY {CHANNEL}",
        },
        "streams": found,
        "lock_streams": found.order_by(streams.c.id).with_for_update(),
        **_upserts(postgresql.insert, sa.literal_column("pg_current_xact_id()::text::bigint")),
    }


_OF_DIALECT: dict[str, Callable[[], dict[str, Any]]] = {"sqlite": _of_sqlite, "postgresql": _of_postgresql}
