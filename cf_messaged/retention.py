"""What is too old is removed between batches, in small steps: how much in one, and when the next is due."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import lru_cache
from typing import NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPICursor

from cf_messaged import old_rows, partitions
from cf_messaged.database import StoreUnavailable
from cf_messaged.old_rows import Place, Turn
from cf_messaged.partitions import DAY_US, Partitions

log = logging.getLogger(__name__)

# A node says an event again until it is answered: for `expire`, at most 43200 minutes or 30 days, and once more then.
# Who forgets before that it was stored, stores it twice.
SEEN_DAYS = 45.0
# A step holds up what comes meanwhile, like a batch.
STEP_S = 0.002
# Rows of a statement: of the first in a step, when nobody knows yet how long they take, and of any.
FIRST, MOST = 16, 2048
# From a step to the next, in times of what it took: so few events come into one that 99 of 100 do not notice. It is due
# after so many events too, or more would come than goes: an event leaves two rows, a step removes some hundred.
PAUSE, EVENTS = 30, 32
# After nothing was left, or nothing could be removed.
LOOK_S = 60.0


class Keep(NamedTuple):
    """Days. changes: of static information, and of keys."""

    state: float = 30
    dynamic: float = 365
    changes: float = 365
    seen: float = SEEN_DAYS

    @property
    def longest(self) -> float:
        """After which nothing is left of what was said, but the latest values."""
        return max(self)


class Task(Protocol):
    @property
    def kept(self) -> str:
        """What of Keep it goes by."""

    def run(self, cursor: DBAPICursor, place: Place, turn: Turn) -> Place | None:
        """Where to go on; None: there is nothing left to do."""


class Swept(NamedTuple):
    """place: where the task goes on; None: it is done. tasks: how many there are."""

    place: Place | None
    tasks: int


class Sweepable(Protocol):
    """A store. Raises StoreUnavailable; None: it is not open."""

    def sweep(self, work: Callable[[sa.Connection], Swept]) -> Swept | None: ...


class Sweeper:
    """To be called after each round of a loop, by `step`; the loop waits no longer than `poll_s`."""

    def __init__(self, store: Sweepable, keep: Keep) -> None:
        self.keep = keep
        self._store = store
        self._task, self._place = 0, Place()
        self._look_s = self._ended_s = self._took_s = 0.0
        self._events = 0
        self._complaint = ""

    def poll_s(self, now_s: float) -> float:
        return max(0.0, self._look_s - now_s, self._ended_s + PAUSE * self._took_s - now_s)

    def step(self, now_us: int, events: int = 0) -> None:
        """Does nothing until it is due. events: how many came in this round."""
        began_s = time.monotonic()
        self._events += events
        if began_s < self._look_s or (self._events < EVENTS and self.poll_s(began_s) > 0):
            return
        self._events = 0
        is_left = self._try(now_us)
        self._ended_s = time.monotonic()
        self._took_s = self._ended_s - began_s
        if not is_left:
            self._look_s = self._ended_s + LOOK_S

    def _try(self, now_us: int) -> bool:
        """Whether there is something left to do now."""
        try:
            swept = self._store.sweep(lambda connection: self._sweep(connection, now_us))
        except StoreUnavailable as error:
            self._fail(str(error))
            return False
        if swept is None:
            return False
        self._place = swept.place or Place()
        self._task += swept.place is None
        return self._task < swept.tasks

    def _fail(self, complaint: str) -> None:
        """The other tasks have their turn next. It is said once, until it is something else."""
        if complaint != self._complaint:
            log.error("what is too old cannot be removed: %s", complaint)
        self._complaint = complaint
        self._task, self._place = self._task + 1, Place()

    def _sweep(self, connection: sa.Connection, now_us: int) -> Swept:
        there_are = tasks(connection.dialect)
        self._task %= len(there_are)
        task = there_are[self._task]
        before_us = now_us - int(getattr(self.keep, task.kept) * DAY_US)
        with closing(connection.connection.cursor()) as cursor:

            def work() -> Place | None:
                return in_chunks(task, cursor, self._place, Turn(now_us, before_us, FIRST))

            place = partitions.alone(cursor, work) if connection.dialect.name == "postgresql" else work()
        return Swept(place, len(there_are))


def in_chunks(task: Task, cursor: DBAPICursor, place: Place, turn: Turn) -> Place | None:
    """Each of twice as many rows as the one before, as long as it can be expected to end in time."""
    began_s = ended_s = time.monotonic()
    while True:
        chunk_s = ended_s
        after = task.run(cursor, place, turn)
        ended_s = time.monotonic()
        if after is None or ended_s - began_s + 2 * (ended_s - chunk_s) > STEP_S:
            return after
        place, turn = after, turn._replace(most=min(2 * turn.most, MOST))


@lru_cache(4)
def tasks(dialect: sa.Dialect) -> Sequence[Task]:
    kinds = ("state", "dynamic")
    of_history: list[Task] = [old_rows.history(dialect, kind) for kind in kinds]
    if dialect.name == "postgresql":
        of_history = [*(Partitions(kind) for kind in kinds), *(old_rows.rest(dialect, kind) for kind in kinds)]
    others = old_rows.changes, old_rows.key_changes, old_rows.seen, old_rows.streams
    return [*of_history, *(each(dialect) for each in others)]
