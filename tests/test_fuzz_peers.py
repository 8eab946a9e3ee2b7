"""Whatever peers may say to the exchange: messages, or failures with a reason.

Some say it with a ZeroMQ socket; others are plain TCP sockets that speak ZMTP by hand, as well as they please, all at
once or byte by byte.
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import zip_longest
from time import monotonic, sleep
from typing import NamedTuple
from unittest.mock import patch

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz
import zmtp
from cf_messaging.conversations import Exchanged
from cf_messaging.exchange import Exchange
from cf_messaging.link import Link
from cf_messaging.outcomes import Failure, Reason
from cf_messaging.patterns import PATTERNS, Conversation
from cf_messaging.wire import MAX_PAYLOAD_BYTES
from peers import Context, Socket, bound, free_port, in_time, scaled
from test_exchange import in_background, talk

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")]


# ---- by a ZeroMQ socket


FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"", b"0", b"1", b"-1", b"007", b"\xb2", b"9" * 5000, b"\x01", b"\x00", b"\xff\xfe"]),
    ),
    min_size=1,
    max_size=5,
)
MESSAGES = st.lists(FRAMES, max_size=6)
RECEIVING = {
    "request": zmq.ROUTER,
    "async_request": zmq.ROUTER,
    "reply": zmq.DEALER,
    "async_reply": zmq.DEALER,
    "subscribe": zmq.XPUB,
    "pull": zmq.PUSH,
    "pair": zmq.PAIR,
}


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    """Of all that speak with a ZeroMQ socket."""
    context: Context = zmq.Context()
    yield context
    # Not waited for: after tens of thousands of connections that ended anyhow, libzmq may wait for one for ever.
    threading.Thread(target=context.destroy, args=[0], daemon=True).start()


def babble(peer: Socket, pattern: str, asked: int, messages: list[list[bytes]], over: threading.Event) -> None:
    """Says anything, and then what ends the conversation, as long as it is not over."""
    envelopes: list[list[bytes]] = [[]] * (len(messages) + 1)
    if pattern == "subscribe":
        peer.recv()
    elif PATTERNS[pattern].conversation in ("ask", "pair"):
        envelopes = [peer.recv_multipart()[:-1] for _ in range(asked)]
    end = [b"", b"end"] if "reply" in pattern else [b"end"]
    for frames in [envelopes[0][:1] + frames for frames in messages] + [envelope + end for envelope in envelopes]:
        while not over.is_set():
            try:
                peer.send_multipart(frames, zmq.DONTWAIT)
                break
            except zmq.Again:
                peer.poll(10, zmq.POLLOUT)


@pytest.mark.parametrize("pattern", RECEIVING)
@given(asked=st.sampled_from([1, 3]), messages=MESSAGES)
def test_whatever_a_peer_says_is_understood_or_a_failure(
    context: Context, pattern: str, asked: int, messages: list[list[bytes]]
) -> None:
    """Messages of bytes, or a Failure; no exception, and no wait: the last words end each conversation.

    An answer without its envelope makes libzmq's REQ end the connection.
    """
    fuzz.watch()
    said = 1 if pattern == "request" else asked
    wanted = asked if pattern == "pair" else len(messages) + 1
    exchange, over = Exchange(), threading.Event()
    peer, endpoint = bound(context, RECEIVING[pattern])
    babbling = in_background(partial(babble, peer, pattern, said, messages, over))
    try:
        done = exchange.converse(talk(pattern, endpoint, payloads=[b"x"] * said, answers=wanted), in_time())
    finally:
        over.set()
        exchange.close()
        babbling.join(scaled(30))
        # Without linger libzmq aborts (session_base.cpp:233) if the connection ends while it closes a socket whose
        # message of several frames is half on its way.
        peer.close(10_000)
    fuzz.count(fuzz.FRAME_SEQUENCES, "by a ZeroMQ socket")
    reasons = {failure.reason for failure in done.failures} - {Reason.INVALID_REPLY}
    assert reasons <= ({Reason.UNREACHABLE} if pattern == "request" else set())
    check(done)
    assert done.received or done.failures


def check(done: Exchanged) -> None:
    """Nothing but bytes was received, and what failed has a reason; both are counted."""
    assert all(isinstance(part, bytes) for message in done.received for part in message)
    assert all(isinstance(failure, Failure) for failure in done.failures)
    reasons = {failure.reason.suffix for failure in done.failures}
    fuzz.count("conversations with them", *reasons, *["received"] * bool(done.received), *["sound"] * (not reasons))


# ---- by hand: the peers


class Wire(NamedTuple):
    """What a peer says over TCP."""

    opening: bytes  # greeting and handshake
    rest: bytes = b""
    byte_wise: bool = False
    end: str = "stays"  # until the conversation is over; or "shuts", "closes", "resets"
    awaits: bytes = b""  # what it wants to hear before it says the rest
    patience_s: float = 30


def speak(connections: list[socket.socket], wires: list[Wire]) -> None:
    """All say what they have to say at the same time, and end as they please."""
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    in_turn(connections, [chunks(wire.opening, wire.byte_wise) for wire in wires])
    hear(dict(zip(connections, wires)))
    in_turn(connections, [chunks(wire.rest, wire.byte_wise) for wire in wires])
    for connection, wire in zip(connections, wires):
        end(connection, wire)


def chunks(text: bytes, byte_wise: bool) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))] if byte_wise else [text]


def in_turn(connections: list[socket.socket], texts: list[list[bytes]]) -> None:
    for parts in zip_longest(*texts, fillvalue=b""):
        for connection, part in zip(connections, parts):
            with suppress(OSError):  # the other side may have had enough
                connection.sendall(part)


def hear(waiting: dict[socket.socket, Wire]) -> None:
    """Until each has heard what it awaits, or the other side has left, or patience is over."""
    until = in_time(max((wire.patience_s for wire in waiting.values()), default=0))
    heard = {connection: b"" for connection, wire in waiting.items() if wire.awaits}
    while heard and monotonic() < until:
        for connection in select.select(heard, (), (), max(0, until - monotonic()))[0]:
            text = b""
            with suppress(OSError):
                text = connection.recv(65536)
            heard[connection] += text
            if not text or waiting[connection].awaits in heard[connection]:
                del heard[connection]


def end(connection: socket.socket, wire: Wire) -> None:
    fuzz.count(fuzz.FRAME_SEQUENCES, *["byte by byte"] * wire.byte_wise)
    if wire.end == "resets":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if wire.end in ("closes", "resets"):
        connection.close()
    elif wire.end == "shuts":
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


@contextmanager
def guests(endpoint: str, wires: list[Wire]) -> Iterator[None]:
    """Peers that connect to an endpoint as soon as it is bound."""
    host, _, port = endpoint[len("tcp://") :].rpartition(":")
    over, connections = threading.Event(), list[socket.socket]()

    def visit() -> None:
        while len(connections) < len(wires) and not over.is_set():
            try:
                connections.append(socket.create_connection((host, int(port)), scaled(30)))
            except OSError:
                sleep(0.0005)
        speak(connections, wires)

    visiting = in_background(visit)
    try:
        yield
    finally:
        over.set()
        visiting.join(scaled(60))
        for connection in connections:
            connection.close()


@contextmanager
def hosts(wires: list[Wire]) -> Iterator[list[str]]:
    """Peers that are bound; yields their endpoints. Each has one caller."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in wires]
    callers: list[socket.socket] = []
    receiving = [in_background(partial(receive, listener, wire, callers)) for listener, wire in zip(listeners, wires)]
    try:
        yield [f"tcp://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    finally:
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        for thread in receiving:
            thread.join(scaled(60))
        for each in listeners + callers:
            each.close()


def receive(listener: socket.socket, wire: Wire, callers: list[socket.socket]) -> None:
    """Say what there is to say to one caller, and refuse all others."""
    with suppress(OSError):  # nobody came
        caller, _ = listener.accept()
        callers.append(caller)
        listener.shutdown(socket.SHUT_RDWR)
        speak([caller], [wire])


def own_endpoint() -> str:
    """An endpoint to bind that nobody takes meanwhile: each process has an address of its own."""
    pid = os.getpid()
    host = f"127.{64 + pid % 128}.{pid // 128 % 256}.1"
    return f"tcp://{host}:{free_port(host)}"


# ---- by hand: sound


VERSIONS = ("3.0", "3.1")
OLD_VERSIONS = ("2.0", "1.0")
PONGS = (b"", b"", b"", zmtp.command(b"PING", b"\0\0ctx"), zmtp.command(b"PONG"), zmtp.command(b"UNKNOWN", b"x" * 99))


class Speech(NamedTuple):
    """What a sound peer says and how; the last message is of one frame."""

    version: str
    kind: int  # which of the sockets that fit
    messages: list[list[bytes]]
    flags: int  # LONG where it need not be
    between: bytes  # commands between messages
    byte_wise: bool
    end: str

    def wire(self, pattern: str, awaits: bytes = b"") -> Wire:
        fitting = zmtp.FITTING[PATTERNS[pattern].socket]
        between = self.between if self.version[0] == "3" else b""
        rest = b"".join(between + zmtp.message(self.version, frames, self.flags) for frames in self.messages)
        opening = zmtp.handshake(self.version, fitting[self.kind % len(fitting)])
        # Who is answered stays for the answer.
        end = "stays" if "reply" in pattern else self.end
        # Messages begin when both sides are ready.
        awaits = awaits or (b"READY" if self.version[0] == "3" else b"")
        return Wire(opening, rest, self.byte_wise, end, awaits)

    def enveloped(self, envelope: list[bytes]) -> Speech:
        return self._replace(messages=[envelope + frames for frames in self.messages])

    def number(self, pattern: str) -> int:
        """How many messages are wanted of it: all that are answered, or all that are understood."""
        return len(self.messages if "reply" in pattern else self.singles())

    def singles(self) -> list[bytes]:
        return [frames[0] for frames in self.messages if len(frames) == 1]


bodies = st.binary(max_size=6) | st.sampled_from([b"", b"x" * 254, b"x" * 255, b"x" * 256])


def speeches(*versions: str) -> st.SearchStrategy[list[Speech]]:
    """Of several peers."""
    texts = st.lists(st.lists(bodies, min_size=1, max_size=3), max_size=4)
    speech = st.builds(
        Speech,
        version=st.sampled_from(versions),
        kind=st.integers(0, 2),
        messages=texts.map(lambda messages: [*messages, [b"end"]]),
        flags=st.sampled_from([0, 0, zmtp.LONG]),
        between=st.sampled_from(PONGS),
        byte_wise=st.booleans(),
        end=st.sampled_from(["stays", "shuts"]),
    )
    return st.lists(speech, min_size=1, max_size=4)


ENVELOPES = {
    "subscribe": [b"topic"],
    "reply": [b""],
    "async_reply": [b""],
    "pull": list[bytes](),
    "pair": list[bytes](),
}
a_quarter = settings(max_examples=max(1, settings().max_examples // 4))


@pytest.fixture(autouse=True)
def handshakes_are_counted() -> Iterator[None]:
    """As the product sees them."""
    original = Link._take

    def take(self: Link, event: int, value: int, deadline: float) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            fuzz.count("handshakes that succeeded")
        original(self, event, value, deadline)

    with patch.object(Link, "_take", take):
        yield


def listening(pattern: str, endpoint: str, number: int, bind: bool = False) -> Conversation:
    """A PAIR listens where it has nothing to say."""
    return talk(pattern, endpoint, payloads=[b"answer"] * (pattern != "pair"), answers=number, bind=bind)


@pytest.mark.parametrize("pattern", ENVELOPES)
@given(said=speeches(*VERSIONS))
@a_quarter
def test_sound_peers_are_heard_by_who_is_bound(pattern: str, said: list[Speech]) -> None:
    """All that several peers say at the same time is received, each peer's in its order; a PAIR has one peer."""
    fuzz.watch()
    said = said[:1] if pattern == "pair" else said
    wanted = [payload for speech in said for payload in speech.singles()]
    number = sum(speech.number(pattern) for speech in said)
    exchange, endpoint = Exchange(), own_endpoint()
    with guests(endpoint, [speech.enveloped(ENVELOPES[pattern]).wire(pattern) for speech in said]):
        done = exchange.converse(listening(pattern, endpoint, number, bind=True), in_time(60))
        exchange.close()
    check(done)
    assert {failure.reason for failure in done.failures} <= {Reason.INVALID_REPLY}, list(map(str, done.failures))
    heard = [message.payload for message in done.received]
    assert Counter(heard) == Counter(wanted)
    assert all(is_within(speech.singles(), heard) for speech in said)


@pytest.mark.parametrize("pattern", ENVELOPES)
@given(said=speeches(*OLD_VERSIONS))
@a_quarter
def test_peers_of_before_zmtp_3_are_refused(pattern: str, said: list[Speech]) -> None:
    """Some of what they may say makes libzmq abort the process, and HTTP looks like one of them."""
    fuzz.watch()
    exchange = Exchange()
    with hosts([speech.enveloped(ENVELOPES[pattern]).wire(pattern) for speech in said]) as endpoints:
        for endpoint in endpoints:
            done = exchange.converse(listening(pattern, endpoint, 1), in_time(10))
            check(done)
            assert not done.received and [failure.reason for failure in done.failures] == [Reason.REFUSED]
        exchange.close()


def is_within(some: list[bytes], others: list[bytes]) -> bool:
    """Whether the others hold these in this order."""
    waiting = iter(others)
    return all(each in waiting for each in some)


@pytest.mark.parametrize("pattern", ENVELOPES)
@given(said=speeches(*VERSIONS))
@a_quarter
def test_sound_peers_are_heard_by_who_connects(pattern: str, said: list[Speech]) -> None:
    """All that a peer says is received in its order; what is no message of one frame is a failure of its own."""
    fuzz.watch()
    exchange = Exchange()
    with hosts([speech.enveloped(ENVELOPES[pattern]).wire(pattern) for speech in said]) as endpoints:
        for speech, endpoint in zip(said, endpoints):
            done = exchange.converse(listening(pattern, endpoint, speech.number(pattern)), in_time(60))
            check(done)
            assert [message.payload for message in done.received] == speech.singles()
            assert len(done.failures) == len(speech.messages) - len(speech.singles())
        exchange.close()


@pytest.mark.parametrize("pattern", ["request", "async_request"])
@given(said=speeches(*VERSIONS), number=st.integers(1, 4), order=st.randoms())
@a_quarter
def test_sound_answers_are_received(pattern: str, said: list[Speech], number: int, order: random.Random) -> None:
    """Each answer is that of its request, in whatever order they come."""
    fuzz.watch()
    exchange = Exchange()
    number = 1 if pattern == "request" else number
    questions = [b"question %d" % index for index in range(number)]
    answers = [(speech.singles() * number)[:number] for speech in said]
    wires = [
        speech._replace(messages=order.sample(numbered(answer), number)).wire(pattern, questions[-1])
        for speech, answer in zip(said, answers)
    ]
    with hosts(wires) as endpoints:
        for endpoint, answer in zip(endpoints, answers):
            done = exchange.converse(talk(pattern, endpoint, payloads=questions), in_time(60))
            check(done)
            assert not done.failures and [message.payload for message in done.received] == answer
        exchange.close()


def numbered(answers: list[bytes]) -> list[list[bytes]]:
    """With the envelopes of their requests; a single one has no number."""
    return [[b"%d" % index] * (len(answers) > 1) + [b"", answer] for index, answer in enumerate(answers)]


# ---- by hand: anything


class Case(NamedTuple):
    pattern: str
    bind: bool
    wires: list[Wire]
    together: bool  # all endpoints in one promise; else one after the other, at the same exchange
    asked: int  # how many payloads; none: a PAIR listens, others have one
    answers: int | None
    again: bool  # a second promise at the same endpoints


HTTP = b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n"
SIZES = (0, 1, 255, 256, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1)
SUBSCRIPTIONS = (b"\1", b"\1t", b"\1topic", b"\1topics", b"\0", b"\0t", b"\0topic", b"\2topic", b"\1" + b"t" * 300)
COMMANDS = (b"READY", b"ERROR", b"SUBSCRIBE", b"CANCEL", b"PING", b"PONG", b"HELLO", b"INITIATE", b"", b"\xff")

versions = st.sampled_from((*VERSIONS, *VERSIONS, *OLD_VERSIONS))
lengths = st.none() | st.none() | st.sampled_from(SIZES)
flags = st.integers(0, 7) | st.integers(0, 255)
envelopes = st.sampled_from([[], [b""], [b"0", b""], [b"1", b""], [b"topic"], [b"topics"], [b"", b""]])
messages = st.builds(
    lambda version, envelope, frames, flags: zmtp.message(version, envelope + frames, flags),
    versions,
    envelopes,
    st.lists(bodies, min_size=1, max_size=3),
    st.sampled_from([0, 0, 0, zmtp.LONG, zmtp.MORE]),
)
commands = st.builds(zmtp.command, st.sampled_from(COMMANDS), bodies)
anything = st.one_of(
    messages,
    messages,
    st.sampled_from(SUBSCRIPTIONS).map(zmtp.frame),
    st.builds(zmtp.frame, bodies, flags, lengths),
    commands,
    st.binary(max_size=20),
)
metadata = st.builds(zmtp.metadata, st.sampled_from([b"Identity", b"Socket-Type", b"Resource", b"X", b""]), bodies)
odd_greetings = st.one_of(
    st.builds(zmtp.greeting, st.integers(0, 4), st.integers(0, 4), st.sampled_from([b"NULL", b"PLAIN", b"CURVE", b""])),
    st.builds(
        zmtp.greeting,
        st.integers(0, 255),
        st.integers(0, 255),
        st.binary(max_size=20),
        st.binary(min_size=32, max_size=32),
    ),
    st.builds(lambda text, at: text[:at], st.just(zmtp.greeting()), st.integers(0, 64)),
    st.sampled_from([b"", HTTP, b"SSH-2.0-OpenSSH\r\n", b"\xff" * 64, bytes(64), zmtp.SIGNATURE, b"\x16\3\1"]),
    st.binary(max_size=80),
)
odd_ready = st.one_of(
    st.builds(
        zmtp.ready,
        st.sampled_from([*map(str.encode, zmtp.TYPES), b"STREAM", b"", b"\xff"]),
        metadata | st.binary(max_size=20),
    ),
    commands,
    st.builds(zmtp.frame, bodies, flags, lengths),
    st.just(b""),
)


def openings(kind: str) -> st.SearchStrategy[bytes]:
    """Handshakes with a socket of this kind: two in three are sound, most of them of a kind that fits."""
    sound = st.builds(zmtp.handshake, versions, st.sampled_from(zmtp.FITTING[kind]))
    other = st.builds(zmtp.handshake, versions, st.sampled_from(zmtp.TYPES))
    odd = st.builds(bytes.__add__, odd_greetings, odd_ready) | st.builds(
        bytes.__add__, st.just(zmtp.greeting()), odd_ready
    )
    return st.one_of(sound, sound, sound, other, odd)


def cases(pattern: str) -> st.SearchStrategy[Case]:
    awaited = b"question" if PATTERNS[pattern].conversation == "ask" else b"READY"
    wires = st.builds(
        Wire,
        opening=openings(PATTERNS[pattern].socket),
        rest=st.lists(anything, max_size=4).map(b"".join),
        byte_wise=st.booleans(),
        end=st.sampled_from(["shuts", "closes", "closes", "resets", "stays"]),
        awaits=st.sampled_from([b"", b"READY", b"READY", awaited]),
        patience_s=st.just(0.02),
    )
    return st.builds(
        Case,
        pattern=st.just(pattern),
        bind=st.sampled_from([True, True, False]),
        wires=st.lists(wires, min_size=4, max_size=16),
        together=st.sampled_from([True, True, False]),
        asked=st.sampled_from([0, 1, 3]),
        answers=st.sampled_from([None, 1, 3]),
        again=st.booleans(),
    )


WAIT_S = 0.05  # where nothing ends the wait


@given(case=st.one_of([cases(pattern) for pattern in PATTERNS]))
@settings(max_examples=settings().max_examples * 3 // 2)
def test_whatever_is_said_over_tcp_is_understood_or_a_failure(case: Case) -> None:
    """Messages of bytes that were really sent, or a Failure; no exception, no wait beyond the timeout, a clean end."""
    fuzz.watch()
    exchange = Exchange()
    for done in held_bound(exchange, case) if case.bind else held_connecting(exchange, case):
        check(done)
        assert done.received or done.failures or done.said or case.answers is None
        for part in (part for message in done.received for part in message):
            assert any(part in wire.opening + wire.rest for wire in case.wires)
    started = monotonic()
    with patch("cf_messaging.exchange._LINGER_MS", int(1000 * WAIT_S)):
        exchange.close()
    assert monotonic() < started + scaled(5)


def held_bound(exchange: Exchange, case: Case) -> Iterator[Exchanged]:
    endpoint = own_endpoint()
    with guests(endpoint, case.wires):
        for _ in range(1 + case.again):
            yield held(exchange, case, [endpoint], WAIT_S)


def held_connecting(exchange: Exchange, case: Case) -> Iterator[Exchanged]:
    with hosts(case.wires) as endpoints:
        for tried in [endpoints] if case.together else [[endpoint] for endpoint in endpoints]:
            for _ in range(1 + case.again):
                yield held(exchange, case, tried, WAIT_S if case.together else WAIT_S / 3)


def held(exchange: Exchange, case: Case, endpoints: list[str], wait_s: float) -> Exchanged:
    said = [b"question %d" % index for index in range(max(case.asked, case.pattern != "pair"))]
    deadline = monotonic() + wait_s
    done = exchange.converse(
        talk(case.pattern, *endpoints, payloads=said, answers=case.answers, topic=b"t", bind=case.bind), deadline
    )
    assert monotonic() < deadline + scaled(5)
    return done
