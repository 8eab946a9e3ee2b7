"""A store in a file of SQLite, the default: one listener writes it, views read it."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cf_messaged.checkpoints import LOG_BYTES, Checkpoints
from cf_messaged.database import Limits
from cf_messaged.news import Told
from cf_messaging.wire import MAX_ANSWER_BYTES

BUSY_TIMEOUT_S = 2  # a writer beside us is an operator's `forget`; intake waits as long
# How many steps of a view go by between two looks at the clock: some 100 microseconds.
_STEPS = 10_000

FULL = 2  # of SQLite's `synchronous`

# Of a database that is made. An event changes a page in each of nine trees, and all of them are synced before it is
# acknowledged: the smaller they are, the sooner.
PAGE_BYTES = 1024

_FileId = tuple[int, int]  # device and inode

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


class SQLite:
    errors: tuple[type[Exception], ...] = (sa.exc.DBAPIError, sqlite3.Error, sqlite3.Warning, OSError)

    @staticmethod
    def takes(url: sa.URL) -> bool:
        return url.database not in (None, "", ":memory:") and not url.query and not url.host

    def __init__(self, url: sa.URL) -> None:
        self.name = str(url.database)
        self._files: dict[str, _FileId | None] = {}
        self._writer: sqlite3.Connection | None = None
        self._checkpoints: Checkpoints | None = None

    # ---- to write

    def connect(self) -> sa.Connection:
        self.abandoned()  # it may have been replaced since
        # Made first, so that only its owner may read it; SQLite gives the files beside it the same mode.
        os.close(os.open(self.name, os.O_CREAT | os.O_RDWR, 0o600))
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=self.name),
            poolclass=sa.NullPool,
            paramstyle="named",
            isolation_level="AUTOCOMMIT",  # transactions are begun by us, not guessed by the driver
            connect_args={"timeout": BUSY_TIMEOUT_S},
        )
        sa.event.listen(engine, "connect", self._prepare)
        return engine.connect()

    def _prepare(self, connection: sqlite3.Connection, _: object) -> None:
        _prepare(connection)
        self._writer = connection

    def opened(self) -> None:
        self._files = _file_ids(self.name)
        if self._writer is not None:
            self._checkpoints = Checkpoints(self.name, self._writer)

    @contextmanager
    def transaction(self, connection: sa.Connection, synced: bool = True) -> Iterator[None]:
        """By the driver: SQLAlchemy would take as long for it as all of a small one takes."""
        if self._writer is None:
            raise sqlite3.ProgrammingError("it is closed")
        if self._checkpoints is not None:
            self._checkpoints.begin()
        if not synced:
            self._writer.execute("PRAGMA synchronous = NORMAL")
        # Locks at once: one that begins by reading may find later that it cannot write.
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._writer.rollback()
            raise
        self._writer.commit()
        self._check_file()
        if self._checkpoints is not None:
            self._checkpoints.committed()
        if not synced:
            _sync(self._writer)

    def _check_file(self) -> None:
        """SQLite writes on into a file that was removed; an acknowledgement of that would be a lie."""
        if self._files and _file_id(self.name) != self._files[""]:
            raise OSError("it was removed or replaced; what is there now is opened, or made, at the next event")

    def closing(self) -> None:
        checkpoints, self._checkpoints = self._checkpoints, None
        if checkpoints is not None:
            checkpoints.stop()

    def abandoned(self) -> None:
        if self._files and _file_ids(self.name)[""] != self._files[""]:
            self._remove_rests()

    def _remove_rests(self) -> None:
        """The log of a database that was replaced: SQLite would apply it to what is there now, and damage that."""
        for end, found in _file_ids(self.name).items():
            if end and found is not None and found == self._files[end]:
                os.unlink(self.name + end)
        self._files = {}

    def news(self) -> Told:
        return Told()

    def passes(self, error: Exception) -> bool:
        """It has waited for who was in the way already."""
        return False

    def is_lost(self, error: Exception) -> bool:
        return False

    def in_words(self, error: Exception) -> str:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        remedy = next((remedy for said, remedy in _REMEDIES.items() if text.startswith(said)), text)
        return " ".join(remedy.split())

    # ---- to read

    @contextmanager
    def reading(self, limits: Limits) -> Iterator[sqlite3.Connection]:
        os.stat(self.name)  # a clearer error than SQLite's
        deadline = time.monotonic() + limits.seconds
        uri = Path(self.name).absolute().as_uri() + "?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ANSWER_BYTES)  # one value cannot use up the memory
            yield connection
        finally:
            connection.close()

    def ask(
        self, connection: sqlite3.Connection, sql: str, given: Mapping[str, Any], types: Mapping[str, str]
    ) -> sqlite3.Cursor:
        return connection.execute(sql, given)

    def in_words_of_views(self, error: Exception, limits: Limits) -> str | None:
        name = getattr(error, "sqlite_errorname", None)
        if name == "SQLITE_INTERRUPT":
            return f"took longer than {limits.seconds:g} s: ask for less"
        if name == "SQLITE_TOOBIG":
            return f"has a value of more than {MAX_ANSWER_BYTES} bytes"
        if name in ("SQLITE_ERROR", "SQLITE_READONLY", "SQLITE_AUTH") or isinstance(
            error, sqlite3.ProgrammingError | sqlite3.Warning
        ):
            return f"fails: {' '.join(str(error).split())}"
        return None

    @contextmanager
    def watching(self) -> Iterator[Callable[[], object]]:
        opened = _file_id(self.name)

        def version() -> object:
            if _file_id(self.name) != opened:
                raise OSError("it was removed or replaced")
            return connection.execute("PRAGMA data_version").fetchone()

        with self.reading(Limits(seconds=math.inf)) as connection:
            yield version

    def size(self, connection: sqlite3.Connection) -> int:
        return sum(os.stat(self.name + end).st_size for end in ("", "-wal") if os.path.exists(self.name + end))


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # checkpoints.py makes them
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"no durable database: journal_mode {mode}")
    _sync(connection)


def _sync(connection: sqlite3.Connection) -> None:
    """At each commit: else an acknowledged transaction can be gone after a loss of power. What is set is read back."""
    connection.execute("PRAGMA synchronous = FULL")
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    if level != FULL:
        raise sqlite3.OperationalError(f"no durable database: synchronous {level}")


def _file_ids(path: str) -> dict[str, _FileId | None]:
    """Of the database, its log, and the index of that; None for what is not there."""
    return {end: _file_id(path + end) for end in ("", "-wal", "-shm")}


def _file_id(path: str) -> _FileId | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
