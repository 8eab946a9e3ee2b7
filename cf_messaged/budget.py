"""How many bytes of views may be on their way to nodes. No clock: it is told the time."""

from __future__ import annotations

from collections import Counter

# An answer that a node does not read stays in memory, and libzmq counts messages, not bytes. Whoever reads nothing
# misses heartbeats, is cut off after three of them (sockets.py), and what he was answered is freed: so what was said
# in such a time is all that there can be.
INTERVAL_S = 60.0
BYTES_TO_A_NODE = 64 * 1024 * 1024
BYTES_TO_ALL = 512 * 1024 * 1024


class Budget:
    """What was answered in this interval, in all and to each peer; who has had too much is to come later."""

    def __init__(self) -> None:
        self._until_s = 0.0
        self._spent: Counter[bytes] = Counter()
        self._total = 0

    def left(self, peer: bytes, now_s: float) -> bool:
        if now_s >= self._until_s:
            self._until_s, self._total = now_s + INTERVAL_S, 0
            self._spent.clear()
        return self._total < BYTES_TO_ALL and self._spent[peer] < BYTES_TO_A_NODE

    def spend(self, peer: bytes, size: int) -> None:
        self._spent[peer] += size
        self._total += size

    def wait_s(self, now_s: float) -> float:
        """Until there is enough again."""
        return max(1.0, self._until_s - now_s)
