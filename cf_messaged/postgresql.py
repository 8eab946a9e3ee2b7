"""A store in PostgreSQL: several listeners on several hosts are one service."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import errors
from psycopg.types.string import TextLoader

from cf_messaged.database import Limits, without_password
from cf_messaged.news_of_several import Read

OLDEST = 130000  # whose transactions have numbers that never come again
# A server that does not answer holds up the listener for as long; its nodes wait, or go to another listener.
CONNECT_S = 5
TIMEOUT_MS = 10_000
# What another program has locked is waited for as long as in SQLite; longer than a server looks for deadlocks (1 s).
LOCK_TIMEOUT_MS = 2000
_CONNECT: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    # A host that is gone without a word is noticed.
    "tcp_user_timeout": TIMEOUT_MS,
    "keepalives_idle": CONNECT_S,
    "keepalives_interval": CONNECT_S,
    "client_encoding": "utf8",
    "application_name": "cf-messaged",
}
# What is set for the session counts more than what the server, the database or the role has.
_ALWAYS = {"TimeZone": "UTC"}
_TO_WRITE = {
    **_ALWAYS,
    "synchronous_commit": "on",
    "default_transaction_isolation": r"read\ committed",  # a batch that waited for another one sees what that wrote
    "statement_timeout": TIMEOUT_MS,
    "lock_timeout": LOCK_TIMEOUT_MS,
    "idle_in_transaction_session_timeout": TIMEOUT_MS,  # a listener that was stopped holds up the others no longer
}
# Without the first two, what was acknowledged could be gone after a loss of power.
_READ_BACK = {"synchronous_commit": "on", "fsync": "on", "server_encoding": "UTF8"}

_REMEDIES: dict[type[Exception], str] = {
    errors.DiskFull: "the disk of its server is full: make room",
    errors.UndefinedTable: "it holds no store: `cf-messaged run` makes one, or upgrades an older one",
    errors.ReadOnlySqlTransaction: "it is read-only: is it a standby?",
    errors.LockNotAvailable: "another program holds it locked",
    errors.QueryCanceled: f"it took longer than {TIMEOUT_MS // 1000} s",
}
# Two listeners had rows that each other wanted.
_IN_THE_WAY = (errors.DeadlockDetected, errors.SerializationFailure)
# How the SQLSTATE of a lost connection begins; the driver gives none where the server has said nothing.
_OF_CONNECTIONS = ("08", "57P")
# How a SQLSTATE begins that no view is to blame for: connection, resources, an operator's hand, the system.
_OF_THE_SERVER = ("08", "53", "57", "58")
# The types of parameters.py.
_TYPES = {"text": "text", "int": "bigint", "real": "float8", "boolean": "boolean", "time": "bigint"}
# What JSON has no text for is shown as the server writes it; JSON too, so that a view's columns say what it is.
_SHOWN_AS_TEXT = "json jsonb date time timetz timestamp timestamptz interval uuid".split()


class PostgreSQL:
    errors: tuple[type[Exception], ...] = (sa.exc.DBAPIError, psycopg.Error, OSError)

    @staticmethod
    def takes(url: sa.URL) -> bool:
        return url.drivername == "postgresql" and bool(url.database)

    def __init__(self, url: sa.URL) -> None:
        self.name = without_password(url)
        _, given = url.set(drivername="postgresql+psycopg").get_dialect()().create_connect_args(url)
        self._given: dict[str, Any] = {**_CONNECT, **given}
        self._gone = Gone()

    # ---- to write

    def connect(self) -> sa.Connection:
        engine = sa.create_engine(
            "postgresql+psycopg://",
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            creator=self._connect_to_write,
        )
        return engine.connect()

    def _connect_to_write(self) -> psycopg.Connection[Any]:
        with self._gone.noticed():
            connection = psycopg.connect(
                **self._arguments(_TO_WRITE, target_session_attrs="read-write"), autocommit=True
            )
        try:
            _read_back(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _arguments(self, settings: Mapping[str, Any], **others: Any) -> dict[str, Any]:
        """What the URL says counts more, but for what is set for the session."""
        ours = [f"-c {name}={value}" for name, value in settings.items()]
        options = " ".join([self._given.get("options", ""), *ours])
        return {**others, **self._given, "options": options}

    def opened(self) -> None:
        pass

    @contextmanager
    def transaction(self, connection: sa.Connection, synced: bool = True) -> Iterator[None]:
        driver: Any = connection.connection.driver_connection
        with driver.transaction():
            if not synced:
                driver.execute("SET LOCAL synchronous_commit = off")
            yield

    def closing(self) -> None:
        pass

    def abandoned(self) -> None:
        pass

    def news(self) -> Read:
        return Read(self._connect_to_write)

    def passes(self, error: Exception) -> bool:
        return isinstance(_cause(error), _IN_THE_WAY)

    def is_lost(self, error: Exception) -> bool:
        """As after a restart of the server, or where a firewall forgets who is silent."""
        cause = _cause(error)
        return isinstance(cause, psycopg.OperationalError) and (cause.sqlstate or "57P").startswith(_OF_CONNECTIONS)

    def in_words(self, error: Exception) -> str:
        cause = _cause(error)
        remedy = next((remedy for kind, remedy in _REMEDIES.items() if isinstance(cause, kind)), None)
        return remedy or " ".join(str(cause).split())

    # ---- to read

    @contextmanager
    def reading(self, limits: Limits) -> Iterator[psycopg.Connection[Any]]:
        settings = {
            **_ALWAYS,
            "default_transaction_read_only": "on",
            "statement_timeout": max(1, int(limits.seconds * 1000)),
        }
        with psycopg.connect(**self._arguments(settings)) as connection:
            for type in _SHOWN_AS_TEXT:
                connection.adapters.register_loader(type, TextLoader)
            yield connection

    def ask(
        self, connection: psycopg.Connection[Any], sql: str, given: Mapping[str, Any], types: Mapping[str, str]
    ) -> Any:
        """By a cursor of the server: it fetches no more than what is looked at."""
        cursor = connection.cursor(name="view")
        cursor.itersize = 100  # a value may have a megabyte
        try:
            return cursor.execute(with_places(sql, given, types), given)
        except BaseException:
            cursor.close()
            raise

    def in_words_of_views(self, error: Exception, limits: Limits) -> str | None:
        if isinstance(error, errors.QueryCanceled):
            return f"took longer than {limits.seconds:g} s: ask for less"
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        told_by_driver = isinstance(error, psycopg.ProgrammingError | psycopg.DataError)
        if told_by_driver or (state and not state.startswith(_OF_THE_SERVER)):
            return f"fails: {' '.join(str(error).split())}"
        return None

    @contextmanager
    def watching(self) -> Iterator[Callable[[], object]]:
        """To know whether anything was committed would cost as much as to ask."""
        yield time.monotonic

    def size(self, connection: psycopg.Connection[Any]) -> int:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0


class Gone:
    """A server that cannot be reached is asked again only after as long as it took to find that out: so not more than
    half of the listener's time is lost.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._until_s = 0.0

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Around what reaches for it."""
        if self._error is not None and time.monotonic() < self._until_s:
            raise psycopg.OperationalError(str(self._error))
        began_s = time.monotonic()
        try:
            yield
        except psycopg.OperationalError as error:
            self._error = error
            self._until_s = 2 * time.monotonic() - began_s
            raise


def with_places(sql: str, given: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """`:name` as the driver wants it, but not in quotes, nor in comments, nor `::type`."""

    def place(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in given:
            return found[0].replace("%", "%%")
        return f"CAST(%({name})s AS {_TYPES[types[name]]})" if name in types else f"%({name})s"

    return _PLACE.sub(place, sql)


_PLACE = re.compile(
    r"""[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"[^"]*"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|/\*.*?\*/"""
    r"""|::\w+|(?<!\w):(?P<name>[A-Za-z_]\w*)|%""",
    re.DOTALL,
)


def _read_back(connection: psycopg.Connection[Any]) -> None:
    """What is acknowledged is on the server's disk: what is set is read back. Raises OSError."""
    if connection.info.server_version < OLDEST:
        raise OSError(f"PostgreSQL {connection.info.server_version // 10000} is too old: {OLDEST // 10000} is needed")
    for name, wanted in _READ_BACK.items():
        [value] = connection.execute(f"SHOW {name}").fetchone() or [None]
        if value != wanted:
            raise OSError(f"its {name} is {value}: nothing is stored there, since only {wanted} keeps what was said")


def _cause(error: Exception) -> Exception:
    inner = error.orig if isinstance(error, sa.exc.DBAPIError) else None
    return inner if isinstance(inner, Exception) else error
