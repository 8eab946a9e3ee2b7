"""The connections of strangers to a socket where anybody may knock: none lasts, and none says much. libzmq keeps a
message until its last frame has come, however many those are, so what comes is counted by the kernel.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass

import zmq

from cf_messaged.connections import hang_up_on, inode_of, taken_bytes
from cf_messaged.sockets import Socket

# Some ten times what enrolling takes.
MAX_SAID_BYTES = 64 * 1024
MAX_STAY_S = 30.0
# How often they are looked at while there are some.
LOOK_S = 0.1
REST = 20  # times as long as it took: of thousands, that is some time


@dataclass
class _Visitor:
    """inode: tells it from a later one with the same descriptor."""

    inode: int
    since_s: float


class Visitors:
    """Of one socket, whose monitor tells who comes and goes."""

    def __init__(self, visited: Socket) -> None:
        self._visited = visited
        self.monitor: Socket = visited.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._there: dict[int, _Visitor] = {}  # by descriptor
        self._look_s = 0.0  # when they are looked at again

    @property
    def poll_s(self) -> float | None:
        return LOOK_S if self._there else None

    def check(self, ready: Container[object]) -> None:
        """Hang up on who has been here for too long, or has said too much. ready: what was polled."""
        if self.monitor in ready:
            self._hear()
        now_s = time.monotonic()
        if not self._there or now_s < self._look_s:
            return
        for descriptor, visitor in list(self._there.items()):
            if inode_of(descriptor) != visitor.inode:
                del self._there[descriptor]
            elif now_s - visitor.since_s > MAX_STAY_S or taken_bytes(descriptor) > MAX_SAID_BYTES:
                del self._there[descriptor]
                hang_up_on(descriptor)
        ended_s = time.monotonic()
        self._look_s = ended_s + max(LOOK_S, REST * (ended_s - now_s))

    def _hear(self) -> None:
        with suppress(zmq.Again):
            while True:
                told, _ = self.monitor.recv_multipart(zmq.DONTWAIT)
                event, descriptor = struct.unpack("=Hi", told)
                if event == zmq.EVENT_ACCEPTED:
                    self._there[descriptor] = _Visitor(inode_of(descriptor), time.monotonic())
                else:
                    self._there.pop(descriptor, None)
