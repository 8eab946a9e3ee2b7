"""One socket and its monitor, against plain sockets of this process: who is there, who left, and why nobody comes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest
import zmq
from zmq.utils import z85

from cf_messaging.keys import Pair
from cf_messaging.link import READ, Link, Security
from cf_messaging.outcomes import Failure, Reason
from cf_messaging.patterns import PATTERNS, Conversation
from cf_messaging.wire import MAX_PAYLOAD_BYTES, MAX_RECEIVED_BYTES
from peers import Context, Socket, bound, in_time, refused_endpoint, scaled


@pytest.fixture
def context() -> Iterator[Context]:
    """Of the links under test."""
    context: Context = zmq.Context()
    yield context
    context.destroy(linger=0)


def connected(context: Context, kind: int, endpoint: str) -> Socket:
    peer = context.socket(kind)
    peer.rcvtimeo = peer.sndtimeo = int(scaled(30) * 1000)
    peer.reconnect_ivl = 20
    peer.connect(endpoint)
    return peer


def linked(context: Context, pattern: str, endpoint: str, bind: bool = False, answers: int | None = 1) -> Link:
    topic = b"mine" if pattern in ("publish", "subscribe") else b""
    talk = Conversation(PATTERNS[pattern], (endpoint,), bind, [b"x"], topic, answers, 0, 1)
    return Link(context, talk, endpoint, endpoint, in_time())


def wait_until_lost(link: Link) -> None:
    """Returns once the link has seen a peer leave."""
    losses, until = link.losses, in_time()
    while link.losses == losses and monotonic() < until:
        link.wait(0, until)
    assert link.losses > losses


# ---- who is there


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("request", zmq.REP),
        ("async_request", zmq.ROUTER),
        ("reply", zmq.DEALER),
        ("async_reply", zmq.REQ),
        ("publish", zmq.SUB),
        ("subscribe", zmq.XPUB),
        ("push", zmq.PULL),
        ("pull", zmq.PUSH),
        ("pair", zmq.PAIR),
    ],
)
def test_a_peer_is_seen_to_come_and_to_leave(context: Context, plain: Context, pattern: str, kind: int) -> None:
    """Of every pattern: there once the handshake is done, gone once the connection has ended."""
    peer, endpoint = bound(plain, kind)
    link = linked(context, pattern, endpoint)
    link.await_peer(in_time(), patient=True)
    assert (link.peers, link.losses) == (1, 0)
    peer.close(0)
    wait_until_lost(link)
    assert (link.peers, link.losses) == (0, 1)
    assert link.absence().reason is Reason.UNREACHABLE
    link.close()


def test_peers_of_a_bound_socket_are_counted(context: Context, plain: Context, tmp_path: Path) -> None:
    """Each one that comes and each one that leaves."""
    link = linked(context, "pull", f"ipc://{tmp_path}/s", bind=True)
    assert not link.connects and "nobody has connected" in str(link.absence())
    pushers = [connected(plain, zmq.PUSH, f"ipc://{tmp_path}/s") for _ in range(3)]
    until = in_time()
    while link.peers < 3 and link.wait(0, until):
        pass
    pushers[0].close(0)
    wait_until_lost(link)
    assert (link.peers, link.losses) == (2, 1)
    link.close()


def test_a_peer_that_comes_late_is_waited_for(context: Context, plain: Context, tmp_path: Path) -> None:
    """Patience: the first attempt was refused, a later one succeeds."""
    link = linked(context, "request", f"ipc://{tmp_path}/s")
    with pytest.raises(Failure, match="no such file"):
        link.await_peer(in_time(), patient=False)
    peer = plain.socket(zmq.REP)
    peer.bind(f"ipc://{tmp_path}/s")
    link.await_peer(in_time(), patient=True)
    assert link.peers == 1
    link.close()


def test_without_patience_a_refused_connection_is_not_waited_for(context: Context) -> None:
    """Another endpoint may be better: the deadline of minutes is not used."""
    link = linked(context, "push", refused_endpoint())
    with pytest.raises(Failure, match="connection refused") as caught:
        link.await_peer(in_time(300), patient=False)
    assert caught.value.reason is Reason.UNREACHABLE
    link.close()


@pytest.mark.parametrize(
    ("pattern", "kind"), [("request", zmq.PUB), ("subscribe", zmq.REP), ("push", zmq.ROUTER), ("pair", zmq.PULL)]
)
def test_a_socket_that_does_not_fit_ends_the_wait(context: Context, plain: Context, pattern: str, kind: int) -> None:
    """It will never fit: even with patience the deadline of minutes is not used."""
    _, endpoint = bound(plain, kind)
    link = linked(context, pattern, endpoint)
    with pytest.raises(Failure, match="does not fit") as caught:
        link.await_peer(in_time(300), patient=True)
    assert caught.value.reason is Reason.REFUSED
    link.close()


def test_another_mechanism_ends_the_wait(context: Context, plain: Context) -> None:
    """A server that wants CURVE is told from one that is no ZeroMQ socket."""
    peer = plain.socket(zmq.REP)
    _, peer.curve_secretkey = zmq.curve_keypair()
    peer.curve_server = True
    link = linked(context, "request", f"tcp://127.0.0.1:{peer.bind_to_random_port('tcp://127.0.0.1')}")
    with pytest.raises(Failure, match="CURVE") as caught:
        link.await_peer(in_time(300), patient=True)
    assert caught.value.reason is Reason.REFUSED
    link.close()


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-OpenSSH_9.2p1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_no_zeromq_peer_is_refused(context: Context, words: bytes) -> None:
    """Whatever it says, or nothing: it accepted, but there was no handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = linked(context, "request", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        caller, _ = listener.accept()
        caller.sendall(words)
        with pytest.raises(Failure, match="is this a ZeroMQ socket") as caught:
            link.await_peer(monotonic() + 0.3, patient=True)
        assert caught.value.reason is Reason.REFUSED
        link.close()
        caller.close()


def test_strangers_do_not_disturb_a_bound_socket(context: Context, plain: Context, tmp_path: Path) -> None:
    """One caller is silent, one hangs up, one is a socket of another kind, one wants CURVE: the pusher is heard."""
    link = linked(context, "pull", f"ipc://{tmp_path}/s", bind=True)
    silent, hurried = (socket.socket(socket.AF_UNIX) for _ in range(2))
    for caller in (silent, hurried):
        caller.connect(f"{tmp_path}/s")
    hurried.close()
    subscriber = connected(plain, zmq.SUB, f"ipc://{tmp_path}/s")
    secretive = plain.socket(zmq.PUSH)
    public, secret = zmq.curve_keypair()
    secretive.curve_publickey = secretive.curve_serverkey = public
    secretive.curve_secretkey = secret
    secretive.connect(f"ipc://{tmp_path}/s")
    pusher = connected(plain, zmq.PUSH, f"ipc://{tmp_path}/s")
    pusher.send(b"task")
    assert link.receive(in_time()) == [b"task"]
    for each in (subscriber, secretive, silent):
        each.close()
    link.close()


# ---- where it is


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_address_in_use_is_local(context: Context, plain: Context, pattern: str) -> None:
    """The text names endpoint and cause; the deadline bounds how long it is tried."""
    _, endpoint = bound(plain, zmq.REP)
    talk = Conversation(PATTERNS[pattern], (endpoint,), True, [], b"", 1, 0, 1)
    with pytest.raises(Failure, match="in use") as caught:
        Link(context, talk, endpoint, endpoint, monotonic() + 0.05)
    assert caught.value.reason is Reason.LOCAL and endpoint in str(caught.value)


def test_an_address_that_becomes_free_is_bound(context: Context, plain: Context) -> None:
    """Another run may be about to leave it."""
    owner, endpoint = bound(plain, zmq.REP)
    threading.Timer(0.1, owner.close, [0]).start()
    link = linked(context, "reply", endpoint, bind=True)
    link.close()


def test_bound_and_closed_again_and_again(context: Context, tmp_path: Path) -> None:
    """An address is free for the next link at once, or soon enough."""
    for _ in range(50):
        linked(context, "reply", f"ipc://{tmp_path}/s", bind=True).close()


def test_many_links_one_after_the_other(context: Context) -> None:
    """Each has a monitor of its own, also when the last one was closed a moment ago."""
    endpoint = refused_endpoint()
    for _ in range(300):
        linked(context, "request", endpoint).close()


def test_abstract_and_ipv6_addresses(context: Context, plain: Context, tmp_path: Path) -> None:
    """Both sides, where the host has IPv6."""
    endpoints = [f"ipc://@{tmp_path}"]
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
            endpoints.append(f"tcp://[::1]:{probe.getsockname()[1]}")
        except OSError:
            print("no IPv6 here")
    for endpoint in endpoints:
        link = linked(context, "pull", endpoint, bind=True)
        pusher = linked(context, "push", endpoint)
        pusher.await_peer(in_time(), patient=True)
        assert pusher.send([b"x"], in_time()) and link.receive(in_time()) == [b"x"]
        pusher.close()
        link.close()


# ---- what it carries


def test_nothing_comes_until_the_deadline(context: Context, plain: Context) -> None:
    """None, and the peer is still there."""
    _, endpoint = bound(plain, zmq.PUSH)
    link = linked(context, "pull", endpoint)
    link.await_peer(in_time(), patient=True)
    assert link.receive(monotonic() + 0.02) is None and link.try_receive() is None
    assert link.peers == 1
    link.close()


def test_a_peer_that_takes_no_more(context: Context, plain: Context, tmp_path: Path) -> None:
    """`send` waits for room until the deadline, then says so; once there is room it goes on."""
    link = linked(context, "pair", f"ipc://{tmp_path}/s", bind=True)
    peer = plain.socket(zmq.PAIR)
    peer.rcvhwm, peer.rcvtimeo = 1, int(scaled(30) * 1000)
    peer.connect(f"ipc://{tmp_path}/s")
    link.await_peer(in_time(), patient=True)
    sent, until = 0, in_time()
    while link.send([b"%d" % sent, b"x" * 10_000], monotonic() + 0.1):
        assert monotonic() < until
        sent += 1
    received = [peer.recv_multipart()[0] for _ in range(sent)]
    assert received == [b"%d" % number for number in range(sent)]
    assert link.send([b"last"], in_time()) and peer.recv() == b"last"
    link.close()


def test_a_slow_subscriber_is_waited_for(context: Context, plain: Context, tmp_path: Path) -> None:
    """Nothing is dropped by a publisher whose subscriber has no room: it is handed over later, or not at all."""
    link = linked(context, "publish", f"ipc://{tmp_path}/s", bind=True)
    subscriber = plain.socket(zmq.SUB)
    subscriber.rcvhwm, subscriber.rcvtimeo = 1, int(scaled(30) * 1000)
    subscriber.subscribe(b"")
    subscriber.connect(f"ipc://{tmp_path}/s")
    sent, until = 0, in_time()
    while not link.subscriptions and link.wait(READ, until):
        link.take_subscriptions()
    while link.send([b"mine", b"%d" % sent, b"x" * 10_000], monotonic() + 0.1):
        assert monotonic() < until
        sent += 1
    received = [subscriber.recv_multipart()[1] for _ in range(sent)]
    assert sent and received == [b"%d" % number for number in range(sent)]
    link.close()


def test_an_answer_to_one_who_has_left(context: Context, plain: Context, tmp_path: Path) -> None:
    """A ROUTER says that it could not be handed over, instead of dropping it silently or raising."""
    link = linked(context, "async_reply", f"ipc://{tmp_path}/s", bind=True)
    asker = connected(plain, zmq.DEALER, f"ipc://{tmp_path}/s")
    asker.send(b"question")
    frames = link.receive(in_time())
    assert frames is not None and link.try_send([frames[0], b"answer"])
    asker.close(0)
    wait_until_lost(link)
    until = in_time()
    while link.try_send([frames[0], b"answer"]):  # the loss is told a moment before it takes effect
        assert monotonic() < until
    link.close()


def test_what_was_handed_over_leaves_after_the_close(plain: Context) -> None:
    """Linger: 50 tasks arrive although link and context are closed at once."""
    peer, endpoint = bound(plain, zmq.PULL)
    context: Context = zmq.Context()
    link = linked(context, "push", endpoint)
    link.await_peer(in_time(), patient=True)
    assert all(link.send([b"%d" % number], in_time()) for number in range(50))
    link.close(linger_ms=int(scaled(10) * 1000))
    context.term()
    assert [peer.recv() for _ in range(50)] == [b"%d" % number for number in range(50)]


def test_messages_of_a_pusher_that_left_are_there(context: Context) -> None:
    """Not yet read, and not even fetched: they outlive their sender."""
    other: Context = zmq.Context()
    peer, endpoint = bound(other, zmq.PUSH)
    link = linked(context, "pull", endpoint, answers=None)
    for number in range(10):
        peer.send(b"%d" % number)
    peer.close(int(scaled(10) * 1000))
    other.term()  # returns once it has ended, and its connection with it
    assert [link.receive(in_time()) for _ in range(10)] == [[b"%d" % number] for number in range(10)]
    until = in_time()
    while not link.losses and link.wait(0, until):
        pass
    assert link.losses == 1
    link.close()


@pytest.mark.parametrize("answers", [1, None])
@pytest.mark.parametrize(("pattern", "kind"), [("subscribe", zmq.XPUB), ("pull", zmq.PUSH), ("pair", zmq.PAIR)])
def test_what_nobody_reads_stays_with_the_peer(
    context: Context, plain: Context, pattern: str, kind: int, answers: int | None
) -> None:
    """Of a peer that goes on speaking no more is fetched than may be received, whatever the size of its messages."""
    talk = Conversation(PATTERNS[pattern], (), False, [], b"", answers, 0, 1)
    peer, endpoint = plain.socket(kind), "ipc://@" + os.urandom(16).hex()
    peer.sndhwm, peer.sndtimeo = 1, 500
    if kind == zmq.XPUB:
        peer.setsockopt(zmq.XPUB_NODROP, 1)
    peer.bind(endpoint)
    link = Link(context, talk, endpoint, endpoint, in_time())
    link.await_peer(in_time(), patient=True)
    if kind == zmq.XPUB:
        peer.recv()
    said = 0
    with suppress(zmq.Again):
        while said * 2**20 <= MAX_RECEIVED_BYTES:
            peer.send(b"x" * 2**20)
            said += 1
    assert 0 < said * 2**20 < MAX_RECEIVED_BYTES
    # All of it is read: libzmq may not let go of a peer whose connection ends half-way through a message.
    assert [link.receive(in_time()) for _ in range(said)] == [[b"x" * 2**20]] * said
    link.close()


def test_a_message_over_the_limit_cuts_the_connection(context: Context, plain: Context) -> None:
    """The limit itself goes through; one byte more is a loss, and a new link still works."""
    peer, endpoint = bound(plain, zmq.PUSH)
    link = linked(context, "pull", endpoint, answers=None)
    peer.send(b"x" * MAX_PAYLOAD_BYTES)
    frames = link.receive(in_time())
    assert frames is not None and [len(frame) for frame in frames] == [MAX_PAYLOAD_BYTES]
    peer.send(b"x" * (MAX_PAYLOAD_BYTES + 1))
    wait_until_lost(link)
    assert "MAX_PAYLOAD_BYTES" in str(link.absence())
    link.close()
    link = linked(context, "pull", endpoint, answers=None)
    until = in_time()
    while (frames := link.receive(monotonic() + 0.1)) is None:
        assert monotonic() < until
        peer.send(b"small")  # the first may be lost with the connection that was cut
    assert frames == [b"small"]
    link.close()


# ---- subscribers


def matching(link: Link) -> list[set[bytes]]:
    return sorted(link.subscriptions.values(), key=sorted)


def take(link: Link, *prefixes: set[bytes]) -> None:
    """Returns once exactly these subscribers are known."""
    until = in_time()
    while matching(link) != sorted(prefixes, key=sorted) and link.wait(READ, until):
        link.take_subscriptions()
        link.observe(until)
    assert matching(link) == sorted(prefixes, key=sorted)


def test_subscriptions_are_known_by_subscriber(context: Context, plain: Context, tmp_path: Path) -> None:
    """Several prefixes of one, the same prefix of two, one taken back, and one who leaves."""
    link = linked(context, "publish", f"ipc://{tmp_path}/s", bind=True)
    first, second = (connected(plain, zmq.SUB, f"ipc://{tmp_path}/s") for _ in range(2))
    for subscriber, prefix in ((first, b"a"), (first, b"b"), (second, b"a"), (second, b"")):
        subscriber.subscribe(prefix)
    take(link, {b"a", b"b"}, {b"a", b""})
    first.unsubscribe(b"b")
    second.unsubscribe(b"")
    take(link, {b"a"}, {b"a"})
    second.close(0)
    take(link, {b"a"})
    link.close()


# ---- with keys


def test_the_largest_payload_fits_with_keys(context: Context, plain: Context) -> None:
    """CURVE makes each frame longer: what may be said without keys may be said with them too."""
    public, secret = (z85.decode(key) for key in zmq.curve_keypair())
    peer = plain.socket(zmq.REP)
    peer.rcvtimeo = peer.sndtimeo = int(scaled(30) * 1000)
    peer.curve_server, peer.curve_secretkey = True, secret
    endpoint = f"tcp://127.0.0.1:{peer.bind_to_random_port('tcp://127.0.0.1')}"
    payload = b"x" * MAX_PAYLOAD_BYTES
    talk = Conversation(PATTERNS["request"], (endpoint,), False, [payload], b"", 1, 0, 1)
    own_public, own_secret = (z85.decode(key) for key in zmq.curve_keypair())
    security = Security(Pair(own_public, own_secret), public, b"")
    link = Link(context, talk, endpoint, endpoint, in_time(), security)
    link.await_peer(in_time(), patient=True)
    assert link.send([payload], in_time())
    peer.send(peer.recv())
    assert link.receive(in_time()) == [payload]
    link.close()
