"""Lines of log that others can cause, at any rate: so many in a minute of each, and of all together."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Hashable

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
OF_EACH, OF_ALL = 10, 100


class Complaints:
    def __init__(self) -> None:
        self._until_s = 0.0
        self._said: set[tuple[Hashable, str]] = set()
        self._count: Counter[Hashable] = Counter()

    def say(self, who: Hashable, line: str, level: int = logging.WARNING) -> None:
        """Unless it was said of the same one in this minute. who: as far as he is known."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._until_s = now_s + INTERVAL_S
            self._said.clear()
            self._count.clear()
        if (who, line) in self._said or self._count[who] >= OF_EACH or len(self._said) >= OF_ALL:
            return
        self._said.add((who, line))
        self._count[who] += 1
        log.log(level, "%s%s", line, self._end(who))

    def _end(self, who: Hashable) -> str:
        if len(self._said) == OF_ALL:
            return "; the log is full of such lines, and no more of them are written in this minute"
        return "; no more lines of it are written in this minute" if self._count[who] == OF_EACH else ""
