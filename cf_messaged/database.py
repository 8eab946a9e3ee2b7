"""What a store asks of the database that it is kept in; sqlite.py and postgresql.py are those that there are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from cf_messaging.wire import MAX_ANSWER_BYTES

ALLOWED = "sqlite:///PATH, of an absolute path sqlite:////PATH, or postgresql://[USER@]HOST[:PORT]/DATABASE"
# A view's rows are a part of its answer; the rest, its name among it, is far smaller than this.
MAX_ROWS_BYTES = MAX_ANSWER_BYTES - 65536


class StoreUnavailable(Exception):
    """The database cannot be used now. One line: why, and where known what to do. Nothing of the batch is stored."""


class Limits(NamedTuple):
    """Of a view."""

    seconds: float = 10
    rows: int = 10_000
    bytes: int = MAX_ROWS_BYTES


class Database(Protocol):
    @property
    def name(self) -> str:
        """For people; without a password."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What is raised, by all that follows too, where it cannot be used."""

    def connect(self) -> sa.Connection:
        """To write, so that what is committed is on disk: that is read back, not only set."""

    def opened(self) -> None:
        """The connection has found its tables there, or made them."""

    def committed(self) -> None:
        """After each commit; raises if that is not in what was opened."""

    def abandoned(self) -> None:
        """The connection was closed, since something went wrong."""

    def passes(self, error: Exception) -> bool:
        """Whether the same transaction can be tried again at once: others were in its way."""

    def in_words(self, error: Exception) -> str:
        """One line."""

    def reading(self, limits: Limits) -> AbstractContextManager[Any]:
        """A connection of its driver that cannot write, and is cut by the limits; beside a daemon that runs."""

    def ask(self, connection: Any, sql: str, given: Mapping[str, Any]) -> Any:
        """A cursor of such a connection; values come by name, `:name`."""

    def in_words_of_views(self, error: Exception, limits: Limits) -> str | None:
        """What is wrong with a view that failed by this; None if it is not the view's fault."""

    def size(self, connection: Any) -> int:
        """Bytes on disk; of a connection that reads."""


def database(url: str) -> Database:
    """Of a store's URL. Raises ValueError, which says what is allowed."""
    from cf_messaged import postgresql, sqlite

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ValueError(f"store: '{url:.100}' is no URL; allowed is {ALLOWED}") from None
    for kind in (sqlite.SQLite, postgresql.PostgreSQL):
        if kind.takes(parsed):
            return kind(parsed)
    raise ValueError(f"store: {parsed.render_as_string(hide_password=True)} cannot be used; allowed is {ALLOWED}")
