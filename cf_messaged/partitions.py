"""The partitions of PostgreSQL's history, each of some days: made before they are needed, dropped when they are old."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar

from sqlalchemy.engine.interfaces import DBAPICursor

from cf_messaged.old_rows import Place, Turn
from cf_messaged.times import EPOCH

MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
# A partition has this part of the time that its rows are kept; they are kept for so much longer at most.
PARTS = 30
# For as long it may be impossible to make one, since views read all the time.
AHEAD_US = 7 * DAY_US
# What is made or dropped needs its table alone. While it waits for a view to end, all others wait for it.
LOCK_TIMEOUT = "50ms"
# To make one, the rows without a partition are read: hardly any, unless something went wrong.
STATEMENT_TIMEOUT = "1s"
# Of all who sweep one database, one at a time.
_SWEEPER = 5310

_THERE = """
    SELECT c.oid::regclass::text, pg_get_expr(c.relpartbound, c.oid)
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
    WHERE inhparent = %s::regclass
"""
_BOUND = r"FOR VALUES FROM \('(\d+)'\) TO \('(\d+)'\)"

_T = TypeVar("_T")


class Range(NamedTuple):
    """UTC microseconds. end: the first that is not in it. name: quoted for SQL, "" before it has one."""

    begin: int
    end: int
    name: str = ""


class Partitions(NamedTuple):
    """Of a kind, which is also the field of retention.Keep that it goes by."""

    kept: str

    def run(self, cursor: DBAPICursor, place: Place, turn: Turn) -> Place | None:
        """Makes or drops one; None: there is nothing to do."""
        there = self._there(cursor)
        old = [each for each in there if each.end <= turn.before]
        if old:
            cursor.execute(f"DROP TABLE {min(old).name}")
            return place
        wanted = next(filter(None, (self._free(cursor, gap, turn.now) for gap in gaps(there, turn))), None)
        if wanted is None:
            return None
        self._add(cursor, wanted)
        return place

    def _there(self, cursor: DBAPICursor) -> list[Range]:
        cursor.execute(_THERE, [f"history_{self.kept}"])
        bounds = [(name, re.fullmatch(_BOUND, bound)) for name, bound in cursor.fetchall()]
        return [Range(int(bound[1]), int(bound[2]), name) for name, bound in bounds if bound]

    def _free(self, cursor: DBAPICursor, gap: Range, now: int) -> Range | None:
        """What of it no row is in, since a row cannot move to a partition: all, or what begins soon."""
        soon = (now // MINUTE_US + 2) * MINUTE_US
        for begin in (gap.begin, max(gap.begin, soon)):
            if begin < gap.end and not self._has_rows(cursor, begin, gap.end):
                return Range(begin, gap.end)
        return None

    def _has_rows(self, cursor: DBAPICursor, begin: int, end: int) -> bool:
        """Outside of partitions. A row has at least the number of when it was received."""
        given = {"begin": begin, "end": end}
        received = '"row" >= %(begin)s AND received >= %(begin)s AND received < %(end)s'
        cursor.execute(f"SELECT FROM history_{self.kept}_rest WHERE {received} LIMIT 1", given)
        return cursor.fetchone() is not None

    def _add(self, cursor: DBAPICursor, wanted: Range) -> None:
        """Made first and then attached: so others that write are not locked out."""
        parent, begin = f"history_{self.kept}", EPOCH + timedelta(microseconds=wanted.begin)
        name = f"{parent}_{begin:%Y%m%d_%H%M}"
        cursor.execute(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)")
        bounds = f"FROM ({wanted.begin}) TO ({wanted.end})"
        cursor.execute(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES {bounds}")


def gaps(there: Sequence[Range], turn: Turn) -> Iterator[Range]:
    """What has no partition, from today on and as far ahead as it should; in pieces of as many days as one has."""
    width = max(1, round((turn.now - turn.before) / PARTS / DAY_US)) * DAY_US
    begin, until = turn.now - turn.now % DAY_US, turn.now + max(AHEAD_US, 2 * width)
    for each in [*sorted(there), Range(until + width, until + width)]:
        while begin < min(each.begin, until):
            end = min(begin + width, each.begin)
            yield Range(begin, end)
            begin = end
        begin = max(begin, each.end)


def alone(cursor: DBAPICursor, work: Callable[[], _T]) -> _T | None:
    """None: another one sweeps, or is in the way, and nothing was done."""
    from psycopg import errors  # here, as a listener on SQLite needs it not

    cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_SWEEPER])
    if not cursor.fetchall()[0][0]:
        return None
    cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    cursor.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
    cursor.execute("SAVEPOINT sweep")
    try:
        return work()
    except (errors.LockNotAvailable, errors.QueryCanceled, errors.CheckViolation):  # tried again at the next look
        cursor.execute("ROLLBACK TO SAVEPOINT sweep")
        return None
