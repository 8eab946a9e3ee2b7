"""What is kept: opened, made and migrated here, written to in one transaction a batch. batch.py has the rules."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from cf_messaged import journal
from cf_messaged.batch import Batch
from cf_messaged.codec import encode_event
from cf_messaged.database import Database, Limits, StoreUnavailable, database
from cf_messaged.forgetting import Forgetting
from cf_messaged.intake import Verdict
from cf_messaged.journal import KeyChange
from cf_messaged.news import LAST, event_of
from cf_messaged.publisher import CHUNK_BYTES, Bounds, Key, Value, bounds
from cf_messaged.statements import statements
from cf_messaged.tables import history, identity, latest
from cf_messaging.wire import Event

ALIVE_WITHIN_S = 93600  # the default refresh of a node, and two hours
MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION = 5311  # the number of its lock: one listener at a time
# How often a batch is tried while something is in its way, and the first pause between.
TRIES = 8
PAUSE_S = 0.01

_T = TypeVar("_T")


class Summary(NamedTuple):
    """size: bytes. last_seen: UTC microseconds, None before the first event."""

    name: str
    store: str
    size: int
    nodes: int
    events: int
    last_seen: int | None


class Heard(NamedTuple):
    """Of a node. last_seen: UTC microseconds. events: how many were stored, in all."""

    last_seen: int
    events: int


class _InTheWay(StoreUnavailable):
    """Another listener was, or a connection that had ended; the transaction may be tried again."""


class Store:
    """Opens by itself, and again after it was lost: every method raises StoreUnavailable and may be called again."""

    def __init__(self, url: str, alive_within_s: float = ALIVE_WITHIN_S) -> None:
        self._database = database(url)
        self.name = self._database.name
        self.id = ""
        self.alive_within_s = alive_within_s
        self._connection: sa.Connection | None = None
        self._news = self._database.news()
        self._last_row = 0
        with self._transaction():
            pass

    def add(self, arrivals: Sequence[tuple[Event, int]]) -> list[Verdict]:
        """Stores events, with when they were received, in one transaction; a verdict for each, in order."""
        return self._tried(lambda: self._add(arrivals))

    def news(self, wanted: bool) -> list[Event]:
        """What has become the latest since the last call, or since `last` was asked first. wanted: by anybody; if not,
        it costs nothing.
        """
        with self._in_words():
            if wanted:
                return self._news.take()
            self._news.end()
            return []

    def files(self) -> list[int]:
        """Descriptors that can be read from when there are news."""
        return self._news.files()

    @property
    def poll_s(self) -> float | None:
        """After how long news may be there of which no descriptor tells."""
        return self._news.poll_s

    def last(self, prefix: bytes, after: Key | None, limit: int) -> list[Value]:
        """A page of the latest values that may match, as publisher.Last wants it; what is newer will be news."""
        with self._in_words():
            self._news.begin()
        begun = bounds(prefix)
        kinds = [kind for kind in sorted(begun.kinds) if after is None or kind >= after[0]]
        with self._transaction() as connection:
            pages = (_page(connection, _values(kind, begun, after).limit(limit)) for kind in kinds)
            return next(filter(None, pages), [])

    def forget(self, node: str, name: str | None = None, told: Callable[[int], None] = lambda _: None) -> int:
        """Removes what is kept of a node, or of one name of it; returns how many rows. Ids stay taken. told: how many
        are gone so far, each time that others have their turn.
        """
        return Forgetting(node, name).run(self._transact, told)

    def note_keys(self, changes: Sequence[KeyChange]) -> None:
        """A row each, in one transaction and in their order. Where a connection ends just then they may be there twice,
        since nobody can tell whether they are there.
        """
        if changes:
            self._transact(lambda connection: journal.note(connection, changes))

    def last_key_changes(self) -> dict[str, KeyChange]:
        """By key, the last change that let it in or out; of those that are not too old to be kept."""
        return self._transact(journal.last)

    def check(self) -> None:
        """Begins to store something, and stores nothing: so a disk that is full goes unnoticed."""
        self._transact(lambda connection: None)

    def sweep(self, work: Callable[[sa.Connection], _T]) -> _T | None:
        """A transaction that a loss of power may undo. None while it is not open, which is for who stores something, or
        if something was in the way.
        """
        if self._connection is None:
            return None
        with suppress(_InTheWay), self._transaction(synced=False) as connection:
            return work(connection)
        return None

    def _transact(self, work: Callable[[sa.Connection], _T]) -> _T:
        def transaction() -> _T:
            with self._transaction() as connection:
                return work(connection)

        return self._tried(transaction)

    def close(self) -> None:
        self._news.end()
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._database.closing()
        if connection is not None:
            connection.close()
            connection.engine.dispose()

    def _tried(self, work: Callable[[], _T]) -> _T:
        """Again while something is in the way: nobody is answered before."""
        for tried in range(1, TRIES):
            with suppress(_InTheWay):
                return work()
            time.sleep(tried * PAUSE_S)
        return work()

    def _add(self, arrivals: Sequence[tuple[Event, int]]) -> list[Verdict]:
        # An open cursor would keep a lost connection from being closed.
        with self._transaction() as connection, closing(connection.connection.cursor()) as cursor:
            sql, alive_within_us = statements(connection.dialect), int(self.alive_within_s * 1_000_000)
            batch = Batch(sql, cursor, alive_within_us, arrivals, self._last_row)
            verdicts = batch.take()
        self._news.stored(batch.news)
        self._last_row = batch.last_row
        return verdicts

    @contextmanager
    def _transaction(self, synced: bool = True) -> Iterator[sa.Connection]:
        """Commits at its end; whatever goes wrong, but for who is in the way, closes the database, and the next one
        opens it again: at once, where nothing but the connection is known to be lost.
        """
        was_there = self._connection is not None
        try:
            connection = self._connection = self._connection or self._opened()
            with self._database.transaction(connection, synced):
                yield connection
        except self._database.errors as error:
            words = f"{self.name}: {self._database.in_words(error)}"
            if self._database.passes(error):
                raise _InTheWay(words) from None
            is_lost = was_there and self._database.is_lost(error)
            self._abandon()
            raise (_InTheWay if is_lost else StoreUnavailable)(words) from None
        except BaseException:
            self._abandon()
            raise

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except self._database.errors as error:
            raise StoreUnavailable(f"{self.name}: {self._database.in_words(error)}") from None

    def _abandon(self) -> None:
        try:
            self._close()
        except self._database.errors:
            self._connection = None
        with suppress(*self._database.errors):  # what is wrong with its files is told when it is opened
            self._database.abandoned()

    def _opened(self) -> sa.Connection:
        connection = self._database.connect()
        try:
            with self._database.transaction(connection):
                migrate(connection)
                self.id = connection.execute(sa.select(identity.c.store)).scalar_one()
                self._last_row = connection.execute(sa.select(sa.func.max(history.c.row))).scalar() or 0
            self._database.opened()
        except BaseException:
            connection.close()
            connection.engine.dispose()
            raise
        return connection


def _values(kind: str, begun: Bounds, after: Key | None) -> sa.Select[Any]:
    """Of one kind, whose index is entered where they begin; of several, all that comes before would be read too."""
    name, node = after[1:] if after and after[0] == kind else (begun.first, "")
    place = latest.c.name, latest.c.node
    wanted = [latest.c.kind == kind, sa.tuple_(*place) > sa.tuple_(sa.literal(name), sa.literal(node))]
    wanted += [latest.c.name < begun.end] if begun.end is not None else []
    return LAST.where(*wanted).order_by(*place)


def _page(connection: sa.Connection, wanted: sa.Select[Any]) -> list[Value]:
    """As many as are not too large together, but one at least if there is one; nor are they fetched as a whole."""
    page: list[Value] = []
    size = 0
    with connection.execute(wanted.execution_options(stream_results=True, max_row_buffer=16)) as rows:
        for row in rows:
            page.append(Value(row.kind, row.name, row.node, encode_event(event_of(row))))
            size += len(page[-1].frame)
            if size > CHUNK_BYTES:
                break
    return page


def migrate(connection: sa.Connection) -> None:
    """Make or upgrade the tables. Raises OSError if they are of another cf-messaged."""
    if connection.dialect.name == "postgresql":  # several listeners may start at once
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # a large table takes what it takes
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION})")
    found = _revision(connection)
    if found != newest_revision():
        _upgrade(connection, found)


def newest_revision() -> str:
    """As the names of the files tell: 0002_key_changes.py is 2."""
    return str(max(int(path.name.partition("_")[0]) for path in MIGRATIONS.glob("versions/[0-9]*_*.py")))


def _revision(connection: sa.Connection) -> str | None:
    """None: there are no tables yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found


def _upgrade(connection: sa.Connection, found: str | None) -> None:
    from alembic import command  # it takes a third of a start, and is wanted once in a store's life
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise OSError(f"another cf-messaged made it (revision {found}): use that one, or set it aside")
    command.upgrade(config, "head")


def summary(url: str) -> Summary:
    """Read beside a daemon that runs. Raises StoreUnavailable."""
    counted = "SELECT count(*), coalesce(sum(events), 0), max(last_seen) FROM nodes"
    with _reading(url) as (kept, connection):
        with closing(kept.ask(connection, f"SELECT store, n.* FROM identity, ({counted}) AS n", {}, {})) as cursor:
            store, nodes, events, last_seen = cursor.fetchone()
        return Summary(kept.name, store, kept.size(connection), nodes, int(events), last_seen)


def heard(url: str, node: str) -> Heard | None:
    """None: nothing of this node is kept. Read beside a daemon that runs. Raises StoreUnavailable."""
    sql, given = "SELECT last_seen, events FROM nodes WHERE node = :node", {"node": node}
    with _reading(url) as (kept, connection), closing(kept.ask(connection, sql, given, {"node": "text"})) as cursor:
        row = cursor.fetchone()
    return Heard(*row) if row else None


@contextmanager
def _reading(url: str) -> Iterator[tuple[Database, Any]]:
    kept = database(url)
    try:
        with kept.reading(Limits()) as connection:
            yield kept, connection
    except kept.errors as error:
        raise StoreUnavailable(f"{kept.name}: {kept.in_words(error)}") from None
