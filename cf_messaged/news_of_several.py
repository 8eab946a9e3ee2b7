"""What becomes the latest where several listeners store: read from the PostgreSQL that they share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from cf_messaged.news import event_of
from cf_messaged.tables import CHANNEL
from cf_messaging.wire import Event

# Whoever stores something tells of it at once; this is for what nobody told of.
POLL_S = 1.0
# While a transaction runs that may hold back what is committed after it.
HELD_BACK_S = 0.05
# What a round of the loop reads at most, in rows and in characters (but for the last page): events come meanwhile.
MAX_ROWS = 1024
MAX_CHARS = 8 * 1024 * 1024
PAGE = 64


class Place(NamedTuple):
    """Of a row of `latest`, as they are read one after the other. batch: of the transaction that wrote it last."""

    batch: int
    kind: str = ""
    name: str = ""
    node: str = ""


# The lowest number of a transaction that still runs, and whether there is one. All rows of lower ones are there to be
# seen; of higher ones they may be too, but then a lower one may come later, and whoever is past it would miss it.
_RUNNING = """
    SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmin(now) < pg_snapshot_xmax(now)
    FROM pg_current_snapshot() AS now
"""
_HIGHEST = "SELECT coalesce(max(batch), 0) FROM latest WHERE batch < %s"
_ROWS = f"""
    SELECT latest.*, stream
    FROM latest JOIN streams ON streams.id = stream_id
    WHERE batch >= %(batch)s AND batch < %(running)s
    AND (batch, kind, name, latest.node) > (%(batch)s, %(kind)s, %(name)s, %(node)s)
    ORDER BY batch, kind, name, latest.node
    LIMIT {PAGE}
"""


class Read:
    """Where several listeners store: what any of them has, read from the table, in the order of their transactions.

    What was replaced before it was read is not told, as the newer value is.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        """connect: raises psycopg.Error, OSError; so do all the others then."""
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._place: Place | None = None  # what comes after it is not told yet; None while nobody wants it
        self._due_s = math.inf

    def stored(self, events: Sequence[Event]) -> None:
        """This listener is told of them as the others are."""

    def begin(self) -> None:
        if self._place is None:
            with self._connected() as connection:
                [highest] = connection.execute(_HIGHEST, [_running(connection)[0]]).fetchone() or [0]
                self._place = Place(highest + 1)
                self._due_s = time.monotonic() + POLL_S

    def take(self) -> list[Event]:
        self.begin()
        if time.monotonic() < self._due_s and not self._is_told():
            return []
        with self._connected() as connection:
            return [event_of(row) for row in self._read(connection)]

    def end(self) -> None:
        """A connection that is not read from would fill up, and then hold up all who tell."""
        self._close()
        self._place, self._due_s = None, math.inf

    def files(self) -> list[int]:
        return [self._connection.fileno()] if self._connection else []

    @property
    def poll_s(self) -> float | None:
        return None if self._due_s == math.inf else max(0.0, self._due_s - time.monotonic())

    def _is_told(self) -> bool:
        if self._connection is None:
            return False
        with self._connected() as connection:
            return bool(list(connection.notifies(timeout=0)))

    def _read(self, connection: psycopg.Connection[Any]) -> list[Any]:
        running, others = _running(connection)
        place = self._place or Place(0)
        if running < place.batch:  # the server was set back to a backup: rather all of it again
            place = Place(0)
        rows, ended = _rows_after(connection, place, running)
        if rows:
            last = rows[-1]
            place = Place(last.batch + 1) if ended else Place(last.batch, last.kind, last.name, last.node)
        self._place = place
        self._due_s = time.monotonic() + (POLL_S if ended and not others else HELD_BACK_S if ended else 0)
        return rows

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        """After whatever goes wrong there is another one, but not at once; its place is kept."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.row_factory = namedtuple_row
                self._connection.execute(f"LISTEN {CHANNEL}")
            yield self._connection
        except BaseException:
            self._close()
            self._due_s = time.monotonic() + POLL_S
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _running(connection: psycopg.Connection[Any]) -> tuple[int, bool]:
    number, others = connection.execute(_RUNNING).fetchone() or (0, False)
    return int(number), bool(others)


def _rows_after(connection: psycopg.Connection[Any], place: Place, running: int) -> tuple[list[Any], bool]:
    """And whether these are all."""
    rows: list[Any] = []
    chars = 0
    while len(rows) < MAX_ROWS and chars < MAX_CHARS:
        page = connection.execute(_ROWS, {**place._asdict(), "running": running}).fetchall()
        rows += page
        if len(page) < PAGE:
            return rows, True
        chars += sum(len(row.data) for row in page)
        place = Place(page[-1].batch, page[-1].kind, page[-1].name, page[-1].node)
    return rows, False
