"""What a store asks of the database that it is kept in; sqlite.py and postgresql.py are those that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import sqlalchemy as sa

from cf_messaging.wire import MAX_ANSWER_BYTES, Event

if TYPE_CHECKING:
    from cf_messaged.postgresql import PostgreSQL
    from cf_messaged.sqlite import SQLite

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


class News(Protocol):
    """What becomes the latest, for those who publish it: of one name the older value never after the newer one."""

    def stored(self, events: Sequence[Event]) -> None:
        """This process has committed them, and each was the latest of its name then."""

    def begin(self) -> None:
        """From now on: what is committed later is told by `take`. Harmless when it has begun."""

    def take(self) -> list[Event]:
        """What there is since the last call; costs nothing where nothing can be new. Begins if it has not."""

    def end(self) -> None:
        """Nobody wants them until the next `begin`."""

    def files(self) -> list[int]:
        """Descriptors that can be read from when `take` has something."""

    @property
    def poll_s(self) -> float | None:
        """After how long `take` is to be called in any case; None: after a batch, or when a file is ready."""


class Database(Protocol):
    @property
    def name(self) -> str:
        """For people; without a password."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What is raised, by all that follows too, where it cannot be used."""

    def connect(self) -> sa.Connection:
        """To write, each statement by itself but in a `transaction`."""

    def opened(self) -> None:
        """The connection has found its tables there, or made them."""

    def transaction(self, connection: sa.Connection, synced: bool = True) -> AbstractContextManager[Any]:
        """Commits at its end, or undoes all of it; raises if it is not in what was opened. synced: what is committed is
        on disk, which is read back, not only set; else it ends sooner, and a loss of power may undo it.
        """

    def closing(self) -> None:
        """The connection is closed next; harmless where there is none."""

    def abandoned(self) -> None:
        """The connection was closed, since something went wrong: nothing of it must get into what is opened next."""

    def news(self) -> News:
        """Of all that is stored in it."""

    def passes(self, error: Exception) -> bool:
        """Whether the same transaction can be tried again at once: others were in its way."""

    def is_lost(self, error: Exception) -> bool:
        """Whether the connection has ended, which tells nothing of the next one."""

    def in_words(self, error: Exception) -> str:
        """One line."""

    def reading(self, limits: Limits) -> AbstractContextManager[Any]:
        """A connection of its driver that cannot write, and is cut by the limits; beside a daemon that runs."""

    def ask(self, connection: Any, sql: str, given: Mapping[str, Any], types: Mapping[str, str]) -> Any:
        """A cursor of such a connection, to be closed. Values come by name, `:name`; types: of parameters.py."""

    def in_words_of_views(self, error: Exception, limits: Limits) -> str | None:
        """What is wrong with a view that failed by this; None if it is not the view's fault."""

    def watching(self) -> AbstractContextManager[Callable[[], object]]:
        """What it gives tells something else after each change, and perhaps without one."""

    def size(self, connection: Any) -> int:
        """Bytes on disk; of a connection that reads."""


def database(url: str) -> Database:
    """Of a store's URL. Raises ValueError, which says what is allowed."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        told = "what is there" if "@" in url or "=" in url else f"'{url:.100}'"  # there may be a password in it
        raise ValueError(f"store: {told} is no URL; allowed is {ALLOWED}") from None
    kind = _kind(parsed.drivername)
    if not kind.takes(parsed):
        raise ValueError(f"store: {without_password(parsed)} cannot be used; allowed is {ALLOWED}")
    return kind(parsed)


def _kind(driver: str) -> type[SQLite | PostgreSQL]:
    """Loaded only where it is used: the driver of PostgreSQL takes longer than all of SQLite."""
    if driver == "sqlite":
        from cf_messaged.sqlite import SQLite

        return SQLite
    from cf_messaged.postgresql import PostgreSQL

    return PostgreSQL


def without_password(url: sa.URL) -> str:
    """For people. libpq takes passwords among the parameters too."""
    hidden = {name: "***" for name in url.query if "password" in name}
    return url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
