"""Messages without an end. libzmq keeps what has come of one until its last frame, however many those are, and shows
nothing of it: so where memory grows, what it has taken is compared with the messages that have ended.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import zmq

from cf_messaged.complaints import Complaints
from cf_messaged.connections import connections_to, descriptor_of, hang_up_on, inode_of, taken_bytes
from cf_messaged.sockets import MAX_FRAME_BYTES, Socket

# No message that is understood has as many.
MAX_UNENDED_BYTES = 2 * MAX_FRAME_BYTES
# How often memory is looked at; connections, while it has grown by so much since all was in order.
LOOK_S = 0.2
GROWN_BYTES = 64 * 1024 * 1024
# After so long without an endless message all is in order: what has grown is something else.
CALM_S = 5.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
REST = 20  # times as long as a look took: of thousands of connections, that is some time


class _Unended(NamedTuple):
    """Of a connection by which no message has ended since. taken: bytes that libzmq had taken from it by then. inode:
    tells it from a later one with the same descriptor.
    """

    inode: int
    taken: int


class Endless:
    def __init__(self, sockets: Sequence[Socket], endpoints: Iterable[str]) -> None:
        """sockets: whose messages `check` is told of. endpoints: where these, and what else is guarded, are bound."""
        self._sockets = sockets
        self._ports = frozenset(int(each.rpartition(":")[2]) for each in endpoints if each.startswith("tcp://"))
        self.poll_s = LOOK_S if self._ports else None
        self._unended: dict[int, _Unended] = {}  # by descriptor
        self._used = memory_bytes()
        self._look_s = 0.0
        self._calm_s: float | None = None  # None: all is in order
        self._complaints = Complaints()

    def check(self, ended: Iterable[zmq.Frame]) -> int:
        """Hang up on who says such a message; returns on how many. ended: last frames of all that was just taken."""
        if self._unended:
            for frame in ended:
                self._unended.pop(descriptor_of(frame), None)
        began_s = time.monotonic()
        if self.poll_s is None or began_s < self._look_s:
            return 0
        found = self._look(began_s)
        ended_s = time.monotonic()
        self._look_s = ended_s + max(LOOK_S, REST * (ended_s - began_s))
        return found

    def _look(self, now_s: float) -> int:
        used = memory_bytes()
        if used - self._used < GROWN_BYTES:
            self._in_order(min(used, self._used))
            return 0
        found = self._hang_up()
        if found or self._calm_s is None:
            self._calm_s = now_s + CALM_S
        elif now_s >= self._calm_s:
            give_back_memory()
            self._in_order(memory_bytes())
        return found

    def _in_order(self, used: int) -> None:
        self._used, self._calm_s = used, None
        self._unended.clear()

    def _hang_up(self) -> int:
        """Not where a message waits that has ended: it may be of anybody."""
        if any(each.poll(0) for each in self._sockets):
            return 0
        return sum(self._is_hung_up_on(descriptor, peer) for descriptor, peer in connections_to(self._ports))

    def _is_hung_up_on(self, descriptor: int, peer: str) -> bool:
        now, before = _Unended(inode_of(descriptor), taken_bytes(descriptor)), self._unended.get(descriptor)
        if before is None or before.inode != now.inode:
            self._unended[descriptor] = now
            return False
        if now.taken - before.taken <= MAX_UNENDED_BYTES:
            return False
        del self._unended[descriptor]
        hang_up_on(descriptor)
        line = f"{peer} was hung up on: it said more than {MAX_UNENDED_BYTES} bytes of a message, and not its end"
        self._complaints.say(peer.rpartition(":")[0], line)
        return True


def memory_bytes() -> int:
    """Of this process, as far as it is in memory; 0 where that cannot be told."""
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE_BYTES
    return 0


def give_back_memory() -> None:
    """What is free; the allocator keeps it, and the next such message would take it unnoticed. glibc alone can."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
