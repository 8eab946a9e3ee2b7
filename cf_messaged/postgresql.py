"""A store in PostgreSQL: several listeners on several hosts are one service."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import errors

from cf_messaged.database import Limits

# A server that does not answer holds up the listener for as long; its nodes wait, or go to another listener.
CONNECT_S = 5
TIMEOUT_MS = 10_000
_WAIT = f"-c statement_timeout={TIMEOUT_MS} -c lock_timeout={TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
_CONNECT: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "tcp_user_timeout": TIMEOUT_MS,
    "application_name": "cf-messaged",
}

_REMEDIES: dict[type[Exception], str] = {
    errors.DiskFull: "the disk of its server is full: make room",
    errors.UndefinedTable: "it holds no store: `cf-messaged run` makes one, or upgrades an older one",
    errors.ReadOnlySqlTransaction: "it is read-only: is it a standby?",
    errors.QueryCanceled: f"it took longer than {TIMEOUT_MS // 1000} s",
}
# Two listeners had rows that each other wanted.
_IN_THE_WAY = (errors.DeadlockDetected, errors.SerializationFailure)


class PostgreSQL:
    errors: tuple[type[Exception], ...] = (sa.exc.DBAPIError, psycopg.Error, OSError)

    @staticmethod
    def takes(url: sa.URL) -> bool:
        return url.drivername == "postgresql" and bool(url.database)

    def __init__(self, url: sa.URL) -> None:
        self.name = url.render_as_string(hide_password=True)
        self._url = url

    # ---- to write

    def connect(self) -> sa.Connection:
        engine = sa.create_engine(
            self._url.set(drivername="postgresql+psycopg"),
            poolclass=sa.NullPool,
            connect_args={**_CONNECT, "options": f"{_WAIT} -c synchronous_commit=on"},
        )
        sa.event.listen(engine, "connect", _check_durable)
        return engine.connect()

    def opened(self) -> None:
        pass

    def committed(self) -> None:
        pass

    def abandoned(self) -> None:
        pass

    def passes(self, error: Exception) -> bool:
        return isinstance(_cause(error), _IN_THE_WAY)

    def in_words(self, error: Exception) -> str:
        cause = _cause(error)
        remedy = next((remedy for kind, remedy in _REMEDIES.items() if isinstance(cause, kind)), None)
        return remedy or " ".join(str(cause).split())

    # ---- to read

    @contextmanager
    def reading(self, limits: Limits) -> Iterator[psycopg.Connection]:
        options = f"-c default_transaction_read_only=on -c statement_timeout={max(1, int(limits.seconds * 1000))}"
        url = self._url.render_as_string(hide_password=False)
        with psycopg.connect(url, **_CONNECT, options=options) as connection:
            yield connection

    def ask(self, connection: psycopg.Connection, sql: str, given: Mapping[str, Any]) -> Any:
        """By a cursor of the server: it fetches no more than what is looked at."""
        cursor = connection.cursor(name="view")
        cursor.itersize = 1000
        return cursor.execute(_with_places(sql, given), given)

    def in_words_of_views(self, error: Exception, limits: Limits) -> str | None:
        if isinstance(error, errors.QueryCanceled):
            return f"took longer than {limits.seconds:g} s: ask for less"
        if isinstance(error, psycopg.ProgrammingError | psycopg.DataError | psycopg.InternalError) and not isinstance(
            error, errors.UndefinedTable
        ):
            return f"fails: {' '.join(str(error).split())}"
        return None

    def size(self, connection: psycopg.Connection) -> int:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0


def _with_places(sql: str, given: Mapping[str, Any]) -> str:
    """`:name` as the driver wants it; not in quotes or comments, nor `::type`."""

    def place(found: re.Match[str]) -> str:
        name = found[1]
        return f"%({name})s" if name in given else found[0].replace("%", "%%")

    return re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|::\w+|(?<!\w):([A-Za-z_]\w*)|%", place, sql)


def _check_durable(connection: psycopg.Connection, _: object) -> None:
    """What is acknowledged is on its disk. What is set is read back."""
    for name in ("synchronous_commit", "fsync"):
        value = connection.execute(f"SHOW {name}").fetchone()
        if value != ("on",):
            raise OSError(f"no durable database: its {name} is {value and value[0]}")
    connection.commit()


def _cause(error: Exception) -> Exception:
    inner = error.orig if isinstance(error, sa.exc.DBAPIError) else None
    return inner if isinstance(inner, Exception) else error
