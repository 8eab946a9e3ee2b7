"""What is kept: opened, made and migrated here, written to in one transaction a batch. batch.py has the rules."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from cf_messaged.batch import Batch
from cf_messaged.codec import encode_event
from cf_messaged.database import Limits, StoreUnavailable, database
from cf_messaged.intake import Verdict
from cf_messaged.publisher import Key, Value, bounds
from cf_messaged.statements import statements
from cf_messaged.tables import changes, history, identity, latest, nodes, streams
from cf_messaged.times import rfc3339
from cf_messaging.wire import Event, event_id

ALIVE_WITHIN_S = 93600  # the default refresh of a node, and two hours
MIGRATIONS = Path(__file__).parent / "migrations"
# How often a batch is tried while other listeners are in its way, and the first pause between.
TRIES = 8
PAUSE_S = 0.01


_LAST = sa.select(latest, streams.c.stream).join(streams, streams.c.id == latest.c.stream_id)


class Summary(NamedTuple):
    """size: bytes. last_seen: UTC microseconds, None before the first event."""

    name: str
    store: str
    size: int
    nodes: int
    events: int
    last_seen: int | None


class _InTheWay(StoreUnavailable):
    """Another listener was; the transaction may be tried again."""


class Store:
    """Opens by itself, and again after it was lost: every method raises StoreUnavailable and may be called again."""

    def __init__(self, url: str, alive_within_s: float = ALIVE_WITHIN_S) -> None:
        self._database = database(url)
        self.name = self._database.name
        self.id = ""
        self.alive_within_s = alive_within_s
        self._connection: sa.Connection | None = None
        self._news: list[Event] = []
        self._last_row = 0
        with self._transaction():
            pass

    def add(self, arrivals: Sequence[tuple[Event, int]]) -> list[Verdict]:
        """Stores events, with when they were received, in one transaction; a verdict for each, in order."""
        for tried in range(1, TRIES):
            with suppress(_InTheWay):
                return self._add(arrivals)
            time.sleep(tried * PAUSE_S)
        return self._add(arrivals)

    def news(self) -> list[Event]:
        """What has become the latest since the last call."""
        news, self._news = self._news, []
        return news

    def last(self, prefix: bytes, after: Key | None, limit: int) -> list[Value]:
        """A page of the latest values that may match, as publisher.Last wants it."""
        begun = bounds(prefix)
        if not begun.kinds:
            return []
        key = latest.c.kind, latest.c.name, latest.c.node
        wanted = [latest.c.kind.in_(begun.kinds), latest.c.name >= begun.first]
        wanted += [latest.c.name < begun.end] if begun.end is not None else []
        wanted += [sa.tuple_(*key) > sa.tuple_(*map(sa.literal, after))] if after else []
        with self._transaction() as connection:
            page = connection.execute(
                _LAST.where(*wanted).order_by(latest.c.kind, latest.c.name, latest.c.node).limit(limit)
            )
            return [Value(row.kind, row.name, row.node, encode_event(_event(row))) for row in page]

    def forget(self, node: str, name: str | None = None) -> int:
        """Removes what is kept of a node, or of one name of it; returns how many values. Ids stay taken."""
        removed = 0
        with self._transaction() as connection:
            for table in (latest, history, changes):
                of_name = [table.c.name == name] if name is not None else []
                removed += connection.execute(sa.delete(table).where(table.c.node == node, *of_name)).rowcount
            if name is None:
                removed += connection.execute(sa.delete(nodes).where(nodes.c.node == node)).rowcount
        return removed

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            connection.engine.dispose()

    def _add(self, arrivals: Sequence[tuple[Event, int]]) -> list[Verdict]:
        # An open cursor would keep a lost connection from being closed.
        with self._transaction() as connection, closing(connection.connection.cursor()) as cursor:
            sql, alive_within_us = statements(connection.dialect), int(self.alive_within_s * 1_000_000)
            batch = Batch(sql, cursor, alive_within_us, arrivals, self._last_row)
            verdicts = batch.take()
        self._news += batch.news
        self._last_row = batch.last_row
        return verdicts

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Commits at its end; whatever goes wrong closes the database, and the next one opens it again."""
        try:
            connection = self._connection = self._connection or self._opened()
            with connection.begin():
                yield connection
            self._database.committed()
        except self._database.errors as error:
            words = f"{self.name}: {self._database.in_words(error)}"
            if self._database.passes(error):
                raise _InTheWay(words) from None
            self._abandon()
            raise StoreUnavailable(words) from None
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        try:
            self.close()
        except self._database.errors:
            self._connection = None
        self._database.abandoned()

    def _opened(self) -> sa.Connection:
        connection = self._database.connect()
        try:
            with connection.begin():
                migrate(connection)
                self.id = connection.execute(sa.select(identity.c.store)).scalar_one()
                self._last_row = connection.execute(sa.select(sa.func.max(history.c.row))).scalar() or 0
        except BaseException:
            connection.close()
            connection.engine.dispose()
            raise
        self._database.opened()
        return connection


def _event(row: Any) -> Event:
    id, time = event_id(row.stream, row.sequence), rfc3339(row.time)
    return Event(id, row.kind, row.node, row.name, time, json.loads(row.data), row.policy, row.handle, row.refresh)


def migrate(connection: sa.Connection) -> None:
    """Make or upgrade the tables. Raises OSError if they are of another cf-messaged."""
    from alembic import command  # only where a store is opened to write: views and `status` start faster
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    if connection.dialect.name == "postgresql":  # several listeners may start at once
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5309)")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    found = MigrationContext.configure(connection).get_current_revision()
    if found == scripts.get_current_head():
        return
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise OSError(f"another cf-messaged made it (revision {found}): use that one, or set it aside")
    command.upgrade(config, "head")


def summary(url: str) -> Summary:
    """Read beside a daemon that runs. Raises StoreUnavailable."""
    kept = database(url)
    try:
        with kept.reading(Limits()) as connection:
            [store] = kept.ask(connection, "SELECT store FROM identity", {}).fetchone()
            counted = "SELECT count(*), coalesce(sum(events), 0), max(last_seen) FROM nodes"
            nodes, events, last_seen = kept.ask(connection, counted, {}).fetchone()
            return Summary(kept.name, store, kept.size(connection), nodes, int(events), last_seen)
    except kept.errors as error:
        raise StoreUnavailable(f"{kept.name}: {kept.in_words(error)}") from None
