"""Who subscribes: to what each may, and no more than so much; who is let in no more is hung up on."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

import zmq

from cf_messaged.complaints import Complaints
from cf_messaged.guard import Guard, descriptor_of, hang_up
from cf_messaged.intake import FORBIDDEN
from cf_messaged.metrics import Counters
from cf_messaged.publisher import SUBSCRIBED, Publisher
from cf_messaged.rights import WHERE
from cf_messaged.sockets import Socket

# Subscriptions that are read in one round; the rest is read in the next.
MAX_AT_ONCE = 1000
# That a connection may say, before it has to begin anew. libzmq keeps some 170 times as much for topics that have
# nothing in common.
MAX_SAID_BYTES = 128 * 1024
# For which each subscription counts beside its topic.
OVERHEAD_BYTES = 32


@dataclass
class _Connection:
    """inode: tells it from a later one with the same descriptor. last: what it said last."""

    inode: int
    last: zmq.Frame
    said_bytes: int = 0


class Subscribers:
    """Of the socket that publishes."""

    def __init__(self, socket: Socket, publisher: Publisher, guard: Guard | None, counters: Counters) -> None:
        """guard: without one, all may hear everything."""
        self._socket, self._publisher, self._guard = socket, publisher, guard
        self._counters, self._complaints = counters, Complaints()
        self._connections: dict[int, _Connection] = {}  # by descriptor

    def hear(self) -> None:
        """What they have said since."""
        for _ in range(MAX_AT_ONCE):
            try:
                frame = self._socket.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            self._heard(frame)

    def check(self) -> None:
        """To be called when other keys are let in."""
        for descriptor, connection in list(self._connections.items()):
            if self._guard and self._guard.name_of(connection.last) is None:
                del self._connections[descriptor]

    def hang_up(self) -> None:
        """On all. They come again, and hear what they may then."""
        for connection in self._connections.values():
            hang_up(connection.last)
        self._connections.clear()

    def _heard(self, frame: zmq.Frame) -> None:
        said = frame.bytes
        if descriptor_of(frame) < 0:  # the socket says it in the name of one that is gone
            self._publisher.heard(said, left=True)
            return
        is_wanted = said[:1] == SUBSCRIBED
        is_granted = self._has_room(frame) and (not is_wanted or self._may_subscribe(frame, said[1:]))
        # What is refused counts too, as the socket says so of it too when its connection ends.
        can_match = self._publisher.heard(said, refused=not is_granted)
        if can_match and is_granted:
            self._socket.setsockopt(zmq.SUBSCRIBE if is_wanted else zmq.UNSUBSCRIBE, said[1:])

    def _has_room(self, frame: zmq.Frame) -> bool:
        """Who has none is hung up on."""
        with suppress(OSError):  # it has left
            descriptor = descriptor_of(frame)
            inode = os.fstat(descriptor).st_ino
            connection = self._connections.get(descriptor)
            if connection is None or connection.inode != inode:
                connection = self._connections[descriptor] = _Connection(inode, frame)
            connection.last = frame
            connection.said_bytes += OVERHEAD_BYTES + len(frame)
            if connection.said_bytes <= MAX_SAID_BYTES:
                return True
            self._complaints.say(
                f"a subscriber at {frame.get('Peer-Address')} has said more than {MAX_SAID_BYTES} bytes in one"
                " connection, and has to begin anew: fewer or shorter topics will do"
            )
            hang_up(frame)
        return False

    def _may_subscribe(self, frame: zmq.Frame, topic: bytes) -> bool:
        if self._guard is None:
            return True
        name = self._guard.name_of(frame)
        if name is None or self._guard.rights.may_subscribe(name, topic):
            return name is not None
        self._counters.refused[FORBIDDEN] += 1
        shown = topic.decode("utf-8", "backslashreplace")
        self._complaints.say(f"refused: {name} may not subscribe to '{shown:.200}': {WHERE}")
        return False
