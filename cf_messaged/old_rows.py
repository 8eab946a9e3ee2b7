"""Which rows are too old, and the SQL that removes them: a few at a time, of each table in the order of its key."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPICursor


class Turn(NamedTuple):
    """now, before: UTC microseconds; what was received before is too old. most: rows to look at."""

    now: int
    before: int
    most: int

    def is_young(self, received: int) -> bool:
        """What seems to come from the future, by a clock that was ahead, tells nothing of what comes after it."""
        return self.before <= received <= self.now


class Place(NamedTuple):
    """Of the last row that was looked at. stream: of `seen` alone. after: its key; None: at a beginning."""

    stream: int = 0
    after: int | None = None


class InOrder(NamedTuple):
    """SQL of rows whose key almost tells the order in which they were received."""

    page: str
    remove: str

    def run(self, cursor: DBAPICursor, place: Place, turn: Turn) -> int | None:
        """The key of the last row that was looked at; None: what is left is young."""
        given = {"stream": place.stream, "after": -1 if place.after is None else place.after}
        cursor.execute(self.page, {**given, "most": turn.most})
        rows = takewhile(lambda row: not turn.is_young(row[1]), iter(cursor.fetchone, None))
        keys = [key for key, _ in rows]
        if keys:
            cursor.execute(self.remove, {**given, "last": keys[-1], "before": turn.before})
        return keys[-1] if len(keys) == turn.most else None


class Rows(NamedTuple):
    """Of one table. kept: what of retention.Keep it goes by."""

    kept: str
    rows: InOrder

    def run(self, cursor: DBAPICursor, place: Place, turn: Turn) -> Place | None:
        """Where to go on; None: what is left is young."""
        last = self.rows.run(cursor, place, turn)
        return None if last is None else Place(after=last)


class Streams(NamedTuple):
    """Of `seen`, one stream after the other: an index of when they were received would cost each event something."""

    kept: str
    oldest: str
    rows: InOrder

    def run(self, cursor: DBAPICursor, place: Place, turn: Turn) -> Place | None:
        """Where to go on; None: what is left is young."""
        if place.after is None:
            return self._next(cursor, place, turn)
        return Place(place.stream, self.rows.run(cursor, place, turn))

    def _next(self, cursor: DBAPICursor, place: Place, turn: Turn) -> Place | None:
        """A stream whose first row is not young, or else behind those that were looked at."""
        cursor.execute(self.oldest, {"stream": place.stream, "most": turn.most})
        found = cursor.fetchall()
        for stream, received in found:
            if received is not None and not turn.is_young(received):
                return Place(stream, -1)
        return Place(found[-1][0]) if len(found) == turn.most else None


# ---- the SQL


def history(dialect: sa.Dialect, kind: str) -> Rows:
    return Rows(kind, _in_order(dialect, "history", '"row"', f"kind = '{kind}' AND"))


def rest(dialect: sa.Dialect, kind: str) -> Rows:
    """Of PostgreSQL's history, what is in no partition of some days."""
    return Rows(kind, _in_order(dialect, f"history_{kind}_rest", '"row"'))


def changes(dialect: sa.Dialect) -> Rows:
    return Rows("changes", _in_order(dialect, "changes", '"row"'))


def key_changes(dialect: sa.Dialect) -> Rows:
    return Rows("changes", _in_order(dialect, "key_changes", '"row"'))


def seen(dialect: sa.Dialect) -> Streams:
    first = "SELECT received FROM seen WHERE stream_id = streams.id ORDER BY sequence LIMIT 1"
    oldest = f"SELECT id, ({first}) FROM streams WHERE id > :stream ORDER BY id LIMIT :most"
    return Streams("seen", _text(dialect, oldest), _in_order(dialect, "seen", "sequence", "stream_id = :stream AND"))


def streams(dialect: sa.Dialect) -> Rows:
    """Of which nothing else is kept: any may be one, whatever its id. The rest is looked for stream by stream, by an
    index; of a join a server may read all rows.
    """
    of_seen = "SELECT 1 FROM seen WHERE stream_id = streams.id LIMIT 1"
    of_latest = "SELECT 1 FROM latest WHERE latest.node = streams.node AND stream_id = streams.id LIMIT 1"
    unused = f"heard < :before AND ({of_seen}) IS NULL AND ({of_latest}) IS NULL"
    return Rows(
        "longest",
        InOrder(
            _text(dialect, "SELECT id, -1 FROM streams WHERE id > :after ORDER BY id LIMIT :most"),
            _text(dialect, f"DELETE FROM streams WHERE id > :after AND id <= :last AND {unused}"),
        ),
    )


def _in_order(dialect: sa.Dialect, table: str, key: str, where: str = "") -> InOrder:
    """key: a column of integers from 0 on."""
    after = f"FROM {table} WHERE {where} {key} > :after"
    return InOrder(
        _text(dialect, f"SELECT {key}, received {after} ORDER BY {key} LIMIT :most"),
        _text(dialect, f"DELETE {after} AND {key} <= :last AND received < :before"),
    )


def _text(dialect: sa.Dialect, statement: str) -> str:
    return str(sa.text(statement).compile(dialect=dialect))
