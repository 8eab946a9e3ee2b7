"""So much for each, and for all, in a minute. No clock: it is told the time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable

INTERVAL_S = 60.0


class Budget:
    """Who has spent all of his has to wait for the next minute, in which everybody has as much again."""

    def __init__(self, each: float, all: float = math.inf) -> None:
        self.each, self._all = each, all
        self._until_s = 0.0
        self._spent: Counter[Hashable] = Counter()
        self._total = 0.0

    def wait_s(self, who: Hashable, now_s: float, times: float = 1) -> float:
        """Until there is something left; 0 if there is. times: how often he may have his share."""
        if now_s >= self._until_s:
            self._until_s, self._total = now_s + INTERVAL_S, 0
            self._spent.clear()
        has_some = self._total < self._all and self._spent[who] < times * self.each
        return 0.0 if has_some else max(1.0, self._until_s - now_s)

    def spend(self, who: Hashable, amount: int) -> None:
        self._spent[who] += amount
        self._total += amount
