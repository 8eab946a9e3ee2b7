"""A bound on the time of work that waits for nobody: a regular expression that finds no end, a huge text."""

from __future__ import annotations

import signal
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")

# At least: the messages themselves may have taken all the time that there was.
LEAST_S = 2.0


class Overdue(Exception):
    """The work took too long, and was ended in the middle."""


def done_by(deadline: float, work: Callable[[], _T]) -> _T:
    """Raises Overdue. deadline: by the monotonic clock. Only in the main thread, since nobody else gets a signal."""
    try:
        before = signal.signal(signal.SIGALRM, _ring)
    except ValueError:
        return work()
    try:
        signal.setitimer(signal.ITIMER_REAL, max(deadline - monotonic(), LEAST_S))
        try:
            return work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def _ring(_signum: int, _frame: object) -> None:
    raise Overdue
