"""One ZeroMQ socket at one address, and what its monitor tells: is somebody there, and if not, why not."""

from __future__ import annotations

import os
from collections import namedtuple
from itertools import count
from struct import unpack
from time import monotonic

import zmq

from .addresses import mechanism, why_unreachable
from .outcomes import Failure, Reason
from .patterns import listens
from .wire import MAX_PAYLOAD_BYTES, MAX_RECEIVED_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .patterns import Conversation

# Of a link with CURVE. server_key: of who is connected to, empty where it is bound; domain: of ZAP, of who is let in.
Security = namedtuple("Security", "pair server_key domain")

# Plain numbers: pyzmq's enums cost more than what is done with them.
READ, WRITE = int(zmq.POLLIN), int(zmq.POLLOUT)  # for Link.wait()
_DONTWAIT = int(zmq.DONTWAIT)
_MORE_TO_SEND = int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS_NOW, _MORE_TO_RECEIVE = int(zmq.EVENTS), int(zmq.RCVMORE)
_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_DENIED = 400  # ZAP's status of who is not known
_MECHANISM_MISMATCH = 0x11000002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
# Between two tries to connect, at first and at last; not the same for all nodes, who find a listener gone together.
_RECONNECT_MS = 50 + os.getpid() % 50
_RECONNECT_MAX_MS = 1_000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LOOK_MS = 100  # while nothing comes, whether it is something too large
_AT_ONCE_S = 0.02  # for an answer, before the monitor is looked at
_FETCHED = 2  # messages that nobody has asked for yet
_FRESH_S = 0.005  # a peer that was there so short a time ago is there; if not, the wait for its answer tells
_serial = count()  # of monitors: libzmq frees their names late
_NOT_A_PEER = "accepts connections, but ZeroMQ's handshake does not succeed: is this a ZeroMQ socket?"
# libzmq cuts a peer off whose message is too large, and does not say so.
CLOSED = f"the peer closed it, or sent more than MAX_PAYLOAD_BYTES, {MAX_PAYLOAD_BYTES} bytes"
_OTHER_MECHANISM = "uses another security mechanism than this node: it wants CURVE or PLAIN"
_NO_CURVE = "uses another security mechanism than this node: it does not want CURVE"
_CURVE_BYTES = 33  # by which each frame is longer
_SILENT_ENOUGH = 2  # one may be a peer that was just ending
_ZAP_ENFORCE_DOMAIN = 93  # pyzmq has no name for it in all its versions


class NotLetIn(Failure):
    """By who has the right key, and asks for another one of this node."""


class Link:
    """A socket that connects to, or is bound at, one address; deadlines are of time.monotonic()."""

    __slots__ = (
        "_attempted",
        "_checked",
        "_connected",
        "_connections",
        "_failing",
        "_mechanism",
        "_monitor",
        "_resident",
        "_security",
        "_silent",
        "_trouble",
        "address",
        "connects",
        "endpoint",
        "is_flooded",
        "kind",
        "losses",
        "owed",
        "peers",
        "serial",
        "socket",
        "subscriptions",
    )

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        talk: Conversation,
        endpoint: str,
        address: str,
        deadline: float,
        security: Security | None = None,
    ) -> None:
        """Endpoint: as policy wrote it, for messages; address: the same, resolved; security: None if all is plain."""
        self.endpoint = endpoint
        self.address = address
        self.peers = 0  # connections whose handshake succeeded and that were not seen to end
        self.losses = 0  # connections that ended after their handshake
        self.owed = 0  # answers of a PAIR that may still come: its peer might not hear a new connection instead
        self.serial = 0  # of the numbered requests that were asked here
        self.subscriptions: dict[int, set[bytes]] = {}  # XPUB: file descriptor of a subscriber -> its prefixes
        self.connects = not talk.bind
        self._checked = 0.0  # when a peer was last seen to be there
        self._connected = False
        self._connections: set[int] = set()  # by file descriptor, before their handshake too
        self._failing = 0  # connections whose handshake failed and whose end the monitor has still to tell
        self._attempted = ""  # what came of a connection attempt that failed
        self._trouble: Failure | None = None
        self._security = security
        self._mechanism = ""  # of the peer, once it was asked for
        self._resident = 0  # bytes of this process, since nothing comes
        self.is_flooded = False  # by what will never be a message: nothing else will come
        self._silent = 0  # handshakes that failed without a word
        self.kind = talk.pattern.socket
        self.socket = context.socket(getattr(zmq, self.kind))
        self._monitor = _watched(context, self.socket)
        _configure(self.socket, talk)
        if security:
            _secure(self.socket, security)
        try:
            self._attach(deadline)
        except BaseException:
            self.close()
            raise

    def _attach(self, deadline: float) -> None:
        if self.connects:
            try:
                self.socket.connect(self.address)
            except zmq.ZMQError as error:
                raise Failure(Reason.LOCAL, f"cannot connect to {self.endpoint}: {error.strerror}") from error
            return
        while True:
            try:
                self.socket.bind(self.address)
                return
            except zmq.ZMQError as error:
                # Another run, or a socket of this run that is being closed, may be about to leave the address.
                if error.errno != zmq.EADDRINUSE or monotonic() >= deadline:
                    raise Failure(Reason.LOCAL, f"cannot bind {self.endpoint}: {error.strerror}") from error
                self._monitor.poll(10)

    def close(self, linger_ms: int = 0) -> None:
        """Let go of the socket; what was handed over may go on to leave for linger_ms."""
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(linger_ms)

    def await_peer(self, deadline: float, patient: bool, or_message: bool = False) -> None:
        """Return once somebody is there. Raises Failure with what is known when time is over, or waiting no use.

        patient: also wait for a peer that is not there yet; or_message: what a peer that left has said is enough.
        """
        now = monotonic()
        if self.peers and self.kind in ("REQ", "DEALER") and now - self._checked < _FRESH_S:
            return
        self.observe(deadline)
        while not self.peers and not (or_message and self.socket.poll(0)):
            if not self.wait(READ if or_message else 0, deadline) or (self._attempted and not patient):
                raise self.absence()
        self._checked = now

    def wait(self, flags: int, deadline: float) -> bool:
        """True when it is worth another look, at the socket for flags and at what is known; False when time is over.
        Raises Failure as observe(), and if a message comes that will never fit.
        """
        left_ms = max(0, int((deadline - monotonic()) * 1000) + 1)
        ready = dict(zmq.zmq_poll([(self.socket, flags), (self._monitor, READ)], min(left_ms, _LOOK_MS)))
        if self._monitor in ready:
            self.observe(deadline)
        if not ready:
            self._check_size()
        return bool(ready) or monotonic() < deadline

    def _check_size(self) -> None:
        """libzmq bounds a frame, and keeps any number of them until the last has come: only this process grows."""
        now = _resident_bytes()
        self._resident = self._resident or now
        if now - self._resident > MAX_RECEIVED_BYTES:
            self.is_flooded = True
            detail = f"a message that grows beyond MAX_RECEIVED_BYTES, {MAX_RECEIVED_BYTES} bytes"
            raise Failure(Reason.INVALID_REPLY, detail, self.endpoint)

    def observe(self, deadline: float) -> None:
        """Take in what the monitor has told. Raises Failure if no peer will ever be here."""
        while int(self._monitor.getsockopt(_EVENTS_NOW)) & READ:  # poll(0) takes twice as long
            event, value = unpack("=Hi", self._monitor.recv_multipart()[0])
            self._take(event, value, deadline)
        if self._trouble and self.connects:
            raise self._trouble

    def _take(self, event: int, value: int, deadline: float) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.peers += 1
        elif event in (zmq.EVENT_CONNECTED, zmq.EVENT_ACCEPTED):
            self._connected = True
            self._connections.add(value)
        elif event == zmq.EVENT_DISCONNECTED:
            self._lose(value)
        elif event != zmq.EVENT_CONNECT_RETRIED:
            self._failing += 1
            self._judge(event, value, deadline)
        elif not self._connected and not self._attempted:
            self._attempted = why_unreachable(self.address, deadline)

    def _judge(self, event: int, value: int, deadline: float) -> None:
        """Of a failed handshake. One without detail may be a peer that was just ending, and is tried again."""
        mismatch = _NO_CURVE if self._security else _OTHER_MECHANISM
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refuse(self._denied(value), NotLetIn if self._security and value == _DENIED else Failure)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._refuse(mismatch if value == _MECHANISM_MISMATCH else _NOT_A_PEER)
        elif self.connects and self._is_other_mechanism(deadline):
            self._refuse(mismatch)
        elif self._security:
            self._silent += 1
            if self._silent >= _SILENT_ENOUGH:
                key = self._security.server_key.hex()
                wrong = f"its key is not {key}" if self.connects else "it takes this node for another"
                self._refuse(f"ends CURVE's handshake: {wrong}, or it does not use CURVE or has let in enough for now")

    def _is_other_mechanism(self, deadline: float) -> bool:
        self._mechanism = self._mechanism or mechanism(self.address, deadline)
        return self._mechanism not in ("", "CURVE" if self._security else "NULL")

    def _denied(self, status: int) -> str:
        if not self.connects:
            return "has a key that is not in 'accept'"
        own = f": accept its key there, {self._security.pair.public.hex()}" if self._security else ""
        return f"its access control does not let this node in (ZAP status {status}){own}"

    def _lose(self, descriptor: int) -> None:
        self.subscriptions.pop(descriptor, None)
        self._connections.discard(descriptor)
        if self._failing:
            self._failing -= 1
        elif self.peers:
            self.peers -= 1
            self.losses += 1
        else:  # libzmq reports no failed handshake when the socket types do not fit each other
            self._refuse(
                "ends ZeroMQ's handshake: a socket of a kind that does not fit this pattern, or older than ZMTP 3;"
                " is this a ZeroMQ socket?"
            )

    def _refuse(self, detail: str, kind: type[Failure] = Failure) -> None:
        self._trouble = kind(Reason.REFUSED, detail if self.connects else f"somebody {detail}", self.endpoint)

    def absence(self) -> Failure:
        """Why nobody is there, as far as it can be told."""
        if self._trouble:
            return self._trouble
        if not self.connects:
            detail = "all who had connected have left" if self.losses else "nobody has connected"
            return Failure(Reason.UNREACHABLE, detail, self.endpoint)
        if self._connected and not self.losses:
            return Failure(Reason.REFUSED, _NOT_A_PEER, self.endpoint)
        if self.losses:
            return Failure(Reason.UNREACHABLE, f"the connection ended: {CLOSED}", self.endpoint)
        return Failure(Reason.UNREACHABLE, self._attempted or "no answer to the connection attempt", self.endpoint)

    def try_send(self, frames: list[bytes]) -> bool:
        """Hand frames over if there is room; False if there is none now."""
        try:
            for frame in frames[:-1]:
                self.socket.send(frame, _MORE_TO_SEND)
            self.socket.send(frames[-1], _DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):  # the latter: a ROUTER whose peer has left
                raise
            return False
        return True

    def send(self, frames: list[bytes], deadline: float) -> bool:
        """As try_send(), but wait for room until the deadline."""
        while not self.try_send(frames):
            if not self._wait_for_room(deadline):
                return False
        return True

    def _wait_for_room(self, deadline: float) -> bool:
        if self.kind != "XPUB":
            return self.wait(WRITE, deadline)
        # An XPUB says that it has room even when a subscriber has none: look again soon.
        now = monotonic()
        self.wait(0, min(deadline, now + 0.005))
        return now < deadline

    def try_receive(self) -> list[bytes] | None:
        """The frames of the next message, None if there is none now."""
        return self._frames(_DONTWAIT)

    def receive_at_once(self, deadline: float) -> list[bytes] | None:
        """The frames of a message that comes within milliseconds, else None. Takes a third of wait()'s system calls."""
        return self._frames(0) if monotonic() + _AT_ONCE_S < deadline else None

    def _frames(self, flags: int) -> list[bytes] | None:
        try:
            frames = [self.socket.recv(flags)]
        except zmq.Again:
            return None
        self._resident = 0
        while self.socket.getsockopt(_MORE_TO_RECEIVE):  # not recv_multipart(): its casts take longer than its work
            frames.append(self.socket.recv())
        return frames

    def receive(self, deadline: float) -> list[bytes] | None:
        """The frames of the next message, None if none comes until the deadline."""
        while monotonic() < deadline:  # also when messages keep coming
            frames = self.try_receive()
            if frames is not None:
                return frames
            self.wait(READ, deadline)
        return None

    def take_subscriptions(self) -> None:
        """Of an XPUB: note new subscriptions by connection, since one subscriber may have several that match."""
        for _ in range(1000):  # then the caller looks at the clock
            try:
                frame = self.socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                return
            try:
                prefixes = self.subscriptions.setdefault(frame.get(zmq.SRCFD), set())
            except zmq.ZMQError:
                continue  # of a connection that has ended, which the monitor tells with its descriptor
            change = prefixes.add if frame.bytes[:1] == b"\1" else prefixes.discard
            change(frame.bytes[1:])

    def subscribers(self, topic: bytes) -> int:
        """How many who are there want the topic: what one wanted who has left may have been read after he was lost."""
        there = [prefixes for descriptor, prefixes in self.subscriptions.items() if descriptor in self._connections]
        return sum(any(map(topic.startswith, prefixes)) for prefixes in there)


def _resident_bytes() -> int:
    """Of this process; 0 where that cannot be told."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _configure(socket: zmq.Socket[bytes], talk: Conversation) -> None:
    socket.linger = 0  # until something was handed over, nothing is worth waiting for
    socket.ipv6 = True
    socket.rcvtimeo = int(1000 * _AT_ONCE_S)
    # Not IMMEDIATE: with it libzmq drops received, unread messages when their sender leaves. Link.await_peer() does
    # what it would be for: nothing is sent into a queue that nobody empties.
    socket.reconnect_ivl = _RECONNECT_MS
    socket.reconnect_ivl_max = _RECONNECT_MAX_MS
    socket.maxmsgsize = MAX_PAYLOAD_BYTES
    # With a domain, and nobody who asks for it, libzmq refuses peers of before ZMTP 3: HTTP sent to a bound PULL looks
    # like one of those, and some of what they may say makes it abort the process.
    socket.zap_domain = b"messages"
    kind = talk.pattern.socket
    if kind == "SUB":
        socket.subscribe(talk.topic)
    elif kind == "XPUB":
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # tell of every subscriber, not only of new prefixes
        socket.setsockopt(zmq.XPUB_NODROP, 1)
    elif kind == "ROUTER":
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if listens(talk):
        # What is fetched beyond what is wanted is lost when the run ends, and until then it takes memory, which others
        # of the run would be blamed for. No more than fits into MAX_RECEIVED_BYTES, with one that is half here.
        socket.rcvhwm = min(talk.answers or _FETCHED, _FETCHED)


def _secure(socket: zmq.Socket[bytes], security: Security) -> None:
    socket.maxmsgsize = MAX_PAYLOAD_BYTES + _CURVE_BYTES
    socket.curve_publickey = security.pair.public
    socket.curve_secretkey = security.pair.secret
    if security.server_key:
        socket.curve_serverkey = security.server_key
    else:
        socket.curve_server = True
        socket.zap_domain = security.domain
        socket.setsockopt(_ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in unless somebody is asked


def _watched(context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    # Not pyzmq's get_monitor_socket(): it asks for all events, and its reader imports more than the run costs.
    address = f"inproc://monitor-{next(_serial)}"
    socket.monitor(address, _EVENTS)
    monitor = context.socket(zmq.PAIR)
    monitor.linger = 0
    monitor.connect(address)
    return monitor
