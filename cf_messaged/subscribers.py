"""Who subscribes: to what each may, and no more than so much; who is let in no more is hung up on."""

from __future__ import annotations

from dataclasses import dataclass

import zmq

from cf_messaged.complaints import Complaints
from cf_messaged.connections import descriptor_of, hang_up, inode_of
from cf_messaged.guard import Guard
from cf_messaged.intake import FORBIDDEN
from cf_messaged.metrics import Counters
from cf_messaged.publisher import SUBSCRIBED, UNSUBSCRIBED, Publisher
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
    """inode: tells it from a later one with the same descriptor. name: of the node, as it was. last: what it said."""

    inode: int
    name: str | None
    last: zmq.Frame
    said_bytes: int = 0

    def hang_up(self) -> None:
        if inode_of(descriptor_of(self.last)) == self.inode:
            hang_up(self.last)


class Subscribers:
    """Of the socket that publishes."""

    def __init__(self, socket: Socket, publisher: Publisher, guard: Guard | None, counters: Counters) -> None:
        """guard: without one, all may hear everything."""
        self._socket, self._publisher, self._guard = socket, publisher, guard
        self._counters, self._complaints = counters, Complaints()
        self._connections: dict[int, _Connection] = {}  # by descriptor
        self._is_astray = False

    def hear(self) -> None:
        """What they have said since."""
        for _ in range(MAX_AT_ONCE):
            try:
                frame = self._socket.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                self._is_astray = False
                break
            self._heard(frame)

    def check(self) -> None:
        """To be called when other keys are let in, or under other names: who is another now is hung up on."""
        for descriptor, connection in list(self._connections.items()):
            if self._guard and self._guard.name_of(connection.last) != connection.name:
                self._connections.pop(descriptor).hang_up()

    def hang_up(self) -> None:
        """On all. They come again, and hear what they may then."""
        for connection in self._connections.values():
            connection.hang_up()
        self._connections.clear()

    def _heard(self, frame: zmq.Frame) -> None:
        said = frame.bytes
        if descriptor_of(frame) < 0:  # the socket says it in the name of one that is gone
            self._publisher.heard(said, left=True)
            return
        # libzmq takes what it grants to be for the peer of the subscription that it has told of last, and counts those
        # without what is none: after one of that kind it would grant to the wrong ones, until nothing waits any more.
        self._is_astray |= said[:1] not in (SUBSCRIBED, UNSUBSCRIBED)
        is_granted = not self._is_astray and self._is_granted(frame, said)
        # What is refused counts too, as the socket says so of it too when its connection ends.
        can_match = self._publisher.heard(said, refused=not is_granted)
        if self._is_astray:
            hang_up(frame)
        elif can_match and is_granted:
            self._socket.setsockopt(zmq.SUBSCRIBE if said[:1] == SUBSCRIBED else zmq.UNSUBSCRIBE, said[1:])

    def _is_granted(self, frame: zmq.Frame, said: bytes) -> bool:
        name = self._guard.name_of(frame) if self._guard else None
        if self._guard and name is None:
            hang_up(frame)
            return False
        return self._has_room(frame, name) and (said[:1] == UNSUBSCRIBED or self._may_subscribe(name, said[1:]))

    def _has_room(self, frame: zmq.Frame, name: str | None) -> bool:
        """Who has said too much is hung up on."""
        connection = self._connection(frame, name)
        connection.said_bytes += OVERHEAD_BYTES + len(frame)
        if connection.said_bytes <= MAX_SAID_BYTES:
            return True
        who = name or frame.get("Peer-Address")
        self._complaints.say(
            who,
            f"{who} has said more than {MAX_SAID_BYTES} bytes of subscriptions in one connection, and has to begin"
            " anew: fewer or shorter topics will do",
        )
        hang_up(frame)
        return False

    def _connection(self, frame: zmq.Frame, name: str | None) -> _Connection:
        """By which it came."""
        descriptor = descriptor_of(frame)
        inode, connection = inode_of(descriptor), self._connections.get(descriptor)
        if connection is None or connection.inode != inode:
            connection = self._connections[descriptor] = _Connection(inode, name, frame)
        connection.last = frame
        return connection

    def _may_subscribe(self, name: str | None, topic: bytes) -> bool:
        if self._guard is None or name is None or self._guard.rights.may_subscribe(name, topic):
            return True
        self._counters.refused[FORBIDDEN] += 1
        shown = topic.decode("utf-8", "backslashreplace")
        self._complaints.say(name, f"refused: {name} may not subscribe to '{shown:.200}': {WHERE}")
        return False
