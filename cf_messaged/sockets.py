"""The sockets of the listener: what each of them is bound to, and what bounds it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from errno import EADDRINUSE
from socket import AF_UNIX
from socket import socket as open_socket
from threading import Thread
from typing import NamedTuple

import zmq

from cf_messaged.budget import Budget
from cf_messaged.config import Config
from cf_messaged.keyring import LISTENER, Keyring, Strangers
from cf_messaged.zap import DOMAIN, ENROLS, Handler
from cf_messaging.keys import BadKey, Pair, own_pair
from cf_messaging.wire import MAX_ENROL_BYTES, MAX_EVENT_BYTES, MAX_TOPIC_BYTES

Socket = zmq.Socket[bytes]
Frames = list[bytes]

# Twice what is allowed, so that a node that says too much is told so; one that says more is cut off.
MAX_FRAME_BYTES = 2 * MAX_EVENT_BYTES
# No message that is understood has as many.
MAX_FRAMES = 64
# Messages of each peer that wait here; the rest waits at the peer.
RECEIVE_HIGH_WATER_MARK = 64
# Messages to each peer: answers to all that it can have in flight at once, or a node that reads would lose some.
SEND_HIGH_WATER_MARK = 2048
# To each subscriber: who joins a large fleet gets all of its last values at once, and would lose what is beyond.
PUBLISHED_HIGH_WATER_MARK = 10_000
# Of a stranger, who says one thing after the other. With 4, answers were lost: libzmq learns only a few messages later
# that what it has to send was sent.
STRANGERS_HIGH_WATER_MARK = 32
CURVE_BYTES = 33  # by which each frame is longer
# Connections that wait to be accepted: after a power cut all nodes come at once. The kernel's somaxconn caps it.
BACKLOG = 4096
# Somebody who connects and says nothing is let go of, as he holds a descriptor.
HANDSHAKE_MS = 5_000
# A node that lost its power holds one too, until the kernel has asked in vain for so long; and so does one that takes
# nothing of what it is sent. Not by heartbeats of ZMTP: one that is due while what a gone peer has said still waits to
# be taken makes libzmq abort the process.
GONE_AFTER_S = 60
# Descriptors beside those of connections: the store, the processes of views, libzmq's own, scrapes.
RESERVE = 128
# Answers that are on their way at the end.
LINGER_MS = 1_000


# Plain numbers: pyzmq's enums, and its multipart calls with them, cost three times as much as what is done with them.
_DONTWAIT = int(zmq.DONTWAIT)
_MORE_TO_SEND = int(zmq.DONTWAIT | zmq.SNDMORE)


class CannotListen(Exception):
    """One line: which endpoint, and why."""


class Role(NamedTuple):
    """setting: of the configuration, where it is bound. before: frames before the event, where nobody is answered;
    None where an envelope comes before, or no event.
    """

    setting: str
    type: int
    before: int | None


REQUEST = Role("request", zmq.ROUTER, None)
PUSH = Role("push", zmq.PULL, 0)
PUBLISH = Role("publish", zmq.SUB, 1)
SUBSCRIBE = Role("subscribe", zmq.XPUB, None)
PAIR = Role("pair", zmq.PAIR, 0)
ENROLMENT = Role("enrolment", zmq.ROUTER, None)
ROLES = (REQUEST, PUSH, PUBLISH, SUBSCRIBE, PAIR, ENROLMENT)
EVENTS = (REQUEST, PUSH, PUBLISH, PAIR)  # where information comes


class Sockets:
    """Those that are not off, bound."""

    def __init__(self, config: Config, keyring: Keyring | None = None) -> None:
        """keyring: without one, whoever reaches them may say and ask everything. Raises CannotListen."""
        self._context: zmq.Context[Socket] = zmq.Context()
        self.pair: Pair | None = None
        if keyring is not None:
            self.pair = _own_key(keyring.directory)
            handshakes = Budget(config.node_handshakes_a_minute)
            Handler(self._context, keyring, Strangers(keyring.directory), handshakes)
        self._sockets: dict[Role, Socket] = {}
        try:
            for role in ROLES:
                if config.listens(role.setting):
                    self._sockets[role] = self._bound(role, getattr(config, role.setting))
        except CannotListen:
            self.close()
            raise

    @property
    def endpoints(self) -> dict[str, str]:
        """By setting, as they are bound: a wildcard port is resolved."""
        return {role.setting: each.getsockopt_string(zmq.LAST_ENDPOINT) for role, each in self._sockets.items()}

    def get(self, role: Role) -> Socket | None:
        return self._sockets.get(role)

    def __iter__(self) -> Iterator[tuple[Role, Socket]]:
        return iter(self._sockets.items())

    def close(self) -> None:
        """In a thread, as libzmq may wait for ever for a socket whose connection ended half-way through a message."""
        ending = Thread(target=self._context.destroy, kwargs={"linger": LINGER_MS}, daemon=True)
        ending.start()
        ending.join(2 * LINGER_MS / 1000)

    def _bound(self, role: Role, endpoint: str) -> Socket:
        socket = self._context.socket(role.type)
        _bound_in_size(socket)
        # With a domain, libzmq refuses peers of before ZMTP 3, some of whose words make it abort the process.
        socket.zap_domain = (ENROLS if role is ENROLMENT else DOMAIN).encode()
        if self.pair:
            _secure(socket, self.pair)
        # Serves both; not for an IPv4 address, which would be shown as [::ffff:127.0.0.1].
        socket.setsockopt(zmq.IPV6, int(endpoint.startswith(("tcp://[", "tcp://*"))))
        _of_its_type(socket, role)
        try:
            if _is_served(endpoint):
                raise zmq.ZMQError(EADDRINUSE)
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            reason = zmq.strerror(error.errno or 0)
            raise CannotListen(f"cannot listen on {endpoint} for {role.setting}: {reason}") from None
        return socket


def _own_key(directory: str) -> Pair:
    try:
        return own_pair(os.path.join(directory, LISTENER), zmq.curve_keypair)
    except BadKey as error:
        raise CannotListen(str(error)) from None


def _secure(socket: Socket, pair: Pair) -> None:
    socket.curve_server = True
    socket.curve_publickey = pair.public
    socket.curve_secretkey = pair.secret
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # where nobody answers who may come in, nobody may


def _is_served(endpoint: str) -> bool:
    """Whether somebody listens on a path: libzmq would take it away from him without a word."""
    if not endpoint.startswith("ipc://"):
        return False
    with open_socket(AF_UNIX) as caller:
        return caller.connect_ex(endpoint.removeprefix("ipc://")) == 0


def _bound_in_size(socket: Socket) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, GONE_AFTER_S // 3)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, GONE_AFTER_S // 3)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 2)
    socket.setsockopt(zmq.TCP_MAXRT, 1000 * GONE_AFTER_S)
    socket.setsockopt(zmq.LINGER, LINGER_MS)


def _of_its_type(socket: Socket, role: Role) -> None:
    if role is REQUEST:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that cannot be sent is an error, so it can be counted
    elif role is ENROLMENT:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_ENROL_BYTES + CURVE_BYTES)
        socket.setsockopt(zmq.SNDHWM, STRANGERS_HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, STRANGERS_HIGH_WATER_MARK)
    elif role is PUBLISH:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    elif role is SUBSCRIBE:
        socket.setsockopt(zmq.XPUB_MANUAL, 1)  # each subscription is heard, and only then has an effect, or none
        socket.setsockopt(zmq.SNDHWM, PUBLISHED_HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_TOPIC_BYTES + 64)  # nothing but subscriptions comes here


def receive(source: Socket) -> tuple[Frames, zmq.Frame]:
    """A message that is there, and its last frame, for the guard; frames beyond MAX_FRAMES are shown empty. Raises
    zmq.Again if none is.
    """
    frame = source.recv(_DONTWAIT, copy=False)
    frames = [frame.bytes]
    while frame.more:
        frame = source.recv(_DONTWAIT, copy=False)
        frames.append(frame.bytes if len(frames) < MAX_FRAMES else b"")
    return frames, frame


def send(target: Socket, frames: Frames) -> None:
    """Never waits. Raises zmq.ZMQError, with nothing sent."""
    *before, last = frames
    for frame in before:
        target.send(frame, _MORE_TO_SEND)
    target.send(last, _DONTWAIT)


def raise_limits(connections: int) -> None:
    """Each node is a descriptor, and a listener that has none left spins at a full core. Raises CannotListen."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = connections + RESERVE
    if hard != resource.RLIM_INFINITY and hard < need:
        otherwise = f", or set connections to {hard - RESERVE}" if hard > RESERVE else ""
        raise CannotListen(
            f"{connections} connections need {need} open files, and {hard} are allowed: raise the limit"
            f" (LimitNOFILE={need} in the unit of systemd){otherwise}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
