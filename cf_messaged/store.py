"""The database: opened, made and migrated here, written to in one transaction a batch. batch.py has the rules."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from cf_messaged.batch import Batch
from cf_messaged.intake import Verdict
from cf_messaged.tables import changes, history, identity, latest, nodes
from cf_messaging.wire import Event

ALIVE_WITHIN_S = 93600  # the default refresh of a node, and two hours
BUSY_TIMEOUT_S = 2  # a writer beside us is an operator's `forget`; intake waits as long
_ALLOWED = "sqlite:///PATH, of an absolute path sqlite:////PATH"
MIGRATIONS = Path(__file__).parent / "migrations"


_FileId = tuple[int, int]  # device and inode


class StoreUnavailable(Exception):
    """The database cannot be used now. One line: why, and where known what to do. Nothing of the batch is stored."""


class Summary(NamedTuple):
    """size: bytes. last_seen: UTC microseconds, None before the first event."""

    path: str
    store: str
    size: int
    nodes: int
    events: int
    last_seen: int | None


def sqlite_path(url: str) -> str:
    """The file of a store's URL. Raises ValueError, which says what is allowed."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ValueError(f"store: '{url:.100}' is no URL; allowed is {_ALLOWED}") from None
    if parsed.drivername != "sqlite" or parsed.database in (None, "", ":memory:") or parsed.query or parsed.host:
        raise ValueError(f"store: {parsed.render_as_string(hide_password=True)} cannot be used; allowed is {_ALLOWED}")
    return str(parsed.database)


class Store:
    """Opens by itself, and again after it was lost: every method raises StoreUnavailable and may be called again."""

    def __init__(self, url: str, alive_within_s: float = ALIVE_WITHIN_S) -> None:
        self.path = sqlite_path(url)
        self.id = ""
        self._alive_within_us = int(alive_within_s * 1_000_000)
        self._connection: sa.Connection | None = None
        self._files: dict[str, _FileId | None] = {}
        with self._transaction():
            pass

    def add(self, arrivals: Sequence[tuple[Event, int]]) -> list[Verdict]:
        """Stores events, with when they were received, in one transaction; a verdict for each, in order."""
        with self._transaction() as connection:
            return Batch(connection, self._alive_within_us, arrivals).take()

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

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Commits at its end; whatever goes wrong closes the database, and the next one opens it again."""
        try:
            connection = self._connection = self._connection or self._opened()
            with connection.begin():
                yield connection
            self._check_same_file()
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
            self._abandon()
            raise StoreUnavailable(f"{self.path}: {in_words(error)}") from None
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        try:
            self.close()
        except (sa.exc.DBAPIError, sqlite3.Error):
            self._connection = None
        if self._files and _file_ids(self.path)[""] != self._files[""]:
            self._remove_rests()

    def _remove_rests(self) -> None:
        """The log of a database that was replaced: SQLite would apply it to what is there now, and damage that."""
        for end, found in _file_ids(self.path).items():
            if end and found is not None and found == self._files[end]:
                os.unlink(self.path + end)
        self._files = {}

    def _opened(self) -> sa.Connection:
        # Made first, so that only its owner may read it; SQLite gives the files beside it the same mode.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        engine = _engine(self.path)
        connection = engine.connect()
        try:
            with connection.begin():
                _migrate(connection)
                self.id = connection.execute(sa.select(identity.c.store)).scalar_one()
        except BaseException:
            connection.close()
            engine.dispose()
            raise
        self._files = _file_ids(self.path)
        return connection

    def _check_same_file(self) -> None:
        """SQLite writes on into a file that was removed; an acknowledgement of that would be a lie."""
        if _file_ids(self.path)[""] != self._files[""]:
            raise OSError("it was removed or replaced; what is there now is opened, or made, at the next event")


def _file_ids(path: str) -> dict[str, _FileId | None]:
    """Of the database, its log, and the index of that; None for what is not there."""
    return {end: _file_id(path + end) for end in ("", "-wal", "-shm")}


def _file_id(path: str) -> _FileId | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _engine(path: str) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=path), poolclass=sa.NullPool, connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    """Durable: without FULL an acknowledged transaction can be gone after a loss of power. What is set is read back."""
    connection.isolation_level = None  # transactions are begun below, not guessed by the driver
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    if (mode, level) != ("wal", 2):
        raise sqlite3.OperationalError(f"no durable database: journal_mode {mode}, synchronous {level}")


def _begin(connection: sa.Connection) -> None:
    """Locks at once: a transaction that begins by reading may find later that it cannot write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: sa.Connection) -> None:
    from alembic import command  # only where a store is opened to write: views and `status` start faster
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    found = MigrationContext.configure(connection).get_current_revision()
    if found == scripts.get_current_head():
        return
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise OSError(f"a newer cf-messaged made it (revision {found}): upgrade this one")
    command.upgrade(config, "head")


# How what SQLite says begins, and what an operator can do about it.
_REMEDIES = {
    "No such file or directory": "it, or its directory, does not exist",
    "database or disk is full": "the disk is full: make room",
    "database is locked": "another program holds it locked",
    "attempt to write a readonly database": "it is read-only",
    "unable to open database file": "it cannot be opened: its directory must exist, and be writable",
    "file is not a database": "it is no database of SQLite: set it aside",
    "no such table": "it is no store of this cf-messaged: `cf-messaged run` makes one, or upgrades an older one",
    "database disk image is malformed": "it is damaged: restore a backup",
}


def in_words(error: Exception) -> str:
    """One line."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    remedy = next((remedy for said, remedy in _REMEDIES.items() if text.startswith(said)), text)
    return " ".join(remedy.split())


def summary(path: str) -> Summary:
    """Read beside a daemon that runs. Raises StoreUnavailable."""
    try:
        with reading(path) as connection:
            store = connection.execute("SELECT store FROM identity").fetchone()[0]
            row = connection.execute("SELECT count(*), coalesce(sum(events), 0), max(last_seen) FROM nodes").fetchone()
        sizes = [os.stat(path + end).st_size for end in ("", "-wal") if os.path.exists(path + end)]
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{path}: {in_words(error)}") from None
    return Summary(path, store, sum(sizes), *row)


@contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write. Raises sqlite3.Error, OSError."""
    os.stat(path)  # a clearer error than SQLite's
    uri = Path(path).absolute().as_uri() + "?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA query_only = ON")
        yield connection
    finally:
        connection.close()
