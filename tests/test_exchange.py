"""What one agent run exchanges, against plain sockets: sockets used again, memory of peers, shares of time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from cf_messaging import addresses
from cf_messaging import exchange as exchange_module
from cf_messaging.conversations import Exchanged
from cf_messaging.exchange import Exchange
from cf_messaging.link import READ, Link
from cf_messaging.outcomes import Failure, Reason
from cf_messaging.patterns import PATTERNS, Conversation
from cf_messaging.wire import Message
from peers import Context, Peer, Socket, bound, in_time, refused_endpoint, scaled

Start = Callable[..., Peer]

SEEN_BEFORE = "seen before in this run"
FOR_EVER = 300  # seconds; a test that waits for so long has failed


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    exchange = Exchange()
    yield exchange
    exchange.close()


def talk(
    pattern: str,
    *endpoints: str,
    payloads: Sequence[bytes] = (b"x",),
    answers: int | None = 1,
    topic: bytes = b"",
    retries: int = 0,
    subscribers: int = 1,
    bind: bool = False,
) -> Conversation:
    said = [] if PATTERNS[pattern].payload == "refused" else list(payloads)
    wanted = 0 if PATTERNS[pattern].conversation == "say" else answers
    return Conversation(PATTERNS[pattern], endpoints, bind, said, topic, wanted, retries, subscribers)


def payloads_of(done: Exchanged) -> list[bytes]:
    """What was received, of a conversation that went well."""
    assert not done.failures, [str(failure) for failure in done.failures]
    return [message.payload for message in done.received]


def failed(done: Exchanged) -> Failure:
    assert len(done.failures) == 1, done.failures
    return done.failures[0]


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def echo(peer: Socket, times: int) -> threading.Thread:
    """A peer that answers; the test joins it."""
    return in_background(lambda: [peer.send_multipart(peer.recv_multipart()) for _ in range(times)])


def serve_five(peer: Socket) -> None:
    """What a peer does in five promises: a pusher pushes numbers, a puller takes them, the others send them back."""
    for number in range(5):
        if peer.type == zmq.PUSH:
            peer.send(b"%d" % number)
        elif peer.type == zmq.PULL:
            peer.recv()
        else:
            peer.send_multipart(peer.recv_multipart())


def links_of(exchange: Exchange) -> list[Link]:
    return list(exchange._links.values())


def wait_until_told(link: Link) -> None:
    """Returns once the monitor has something to tell that the link has not looked at yet."""
    assert link._monitor.poll(int(scaled(30) * 1000))


# ---- sockets are used again


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("request", zmq.REP), ("async_request", zmq.ROUTER), ("push", zmq.PULL), ("pull", zmq.PUSH), ("pair", zmq.PAIR)],
)
def test_promises_of_one_endpoint_share_a_connection(
    exchange: Exchange, plain: Context, pattern: str, kind: int
) -> None:
    """The peer sees one connection in the run, and every message."""
    peer = plain.socket(kind)
    accepted = peer.get_monitor_socket(zmq.EVENT_ACCEPTED)
    endpoint = f"tcp://127.0.0.1:{peer.bind_to_random_port('tcp://127.0.0.1')}"
    serving = in_background(partial(serve_five, peer))
    for number in range(5):
        done = exchange.converse(talk(pattern, endpoint, payloads=[b"%d" % number]), in_time())
        assert payloads_of(done) == ([] if pattern == "push" else [b"%d" % number])
    serving.join(scaled(30))
    assert not serving.is_alive()
    assert recv_monitor_message(accepted, zmq.DONTWAIT)["event"] == zmq.EVENT_ACCEPTED
    assert not accepted.poll(0)
    peer.disable_monitor()


def test_subscribers_of_different_topics_have_different_sockets(exchange: Exchange, plain: Context) -> None:
    """What one subscribes does not reach the other."""
    publisher, endpoint = bound(plain, zmq.XPUB)

    def publish() -> None:
        for _ in range(2):
            topic = publisher.recv()[1:]
            publisher.send_multipart([b"other", b"no"])
            publisher.send_multipart([topic, b"yes"])

    publishing = in_background(publish)
    for topic in (b"a", b"b"):
        done = exchange.converse(talk("subscribe", endpoint, topic=topic), in_time())
        assert done.received == [Message(b"yes", topic)]
    publishing.join(scaled(30))
    assert len(links_of(exchange)) == 2


def ask_until_answered(context: Context, address: str, answers: list[bytes]) -> None:
    """The first one may still meet the socket of the promise before, which takes its question along."""
    until = in_time()
    while not answers and monotonic() < until:
        with context.socket(zmq.REQ) as asker:
            asker.linger = 0
            asker.connect(address)
            asker.send(b"question")
            answers.extend([asker.recv()] if asker.poll(int(scaled(0.25) * 1000)) else [])


def test_a_bound_address_changes_its_pattern(exchange: Exchange, plain: Context, tmp_path: Path) -> None:
    """One promise replies at an address, the next one there too, as a ROUTER, the next one as a REP again."""
    address = f"ipc://{tmp_path}/s"
    for pattern in ("reply", "async_reply") * 3:
        answers: list[bytes] = []
        asking = in_background(partial(ask_until_answered, plain, address, answers))
        done = exchange.converse(talk(pattern, address, bind=True, payloads=[b"answer"]), in_time())
        asking.join(scaled(30))
        assert payloads_of(done) == [b"question"] and answers == [b"answer"]
        (link,) = links_of(exchange)
        assert link.kind == PATTERNS[pattern].socket


def test_a_socket_after_a_failed_request_is_a_new_one(exchange: Exchange, plain: Context) -> None:
    """The late answer to a request that timed out is not taken for the answer of the next."""
    router, endpoint = bound(plain, zmq.ROUTER)
    assert failed(exchange.converse(talk("request", endpoint), monotonic() + 0.2)).reason is Reason.TIMED_OUT
    first = router.recv_multipart()

    def serve() -> None:
        second = router.recv_multipart()
        router.send_multipart([*first[:-1], b"late"])
        router.send_multipart([*second[:-1], b"in time"])

    serving = in_background(serve)
    assert payloads_of(exchange.converse(talk("request", endpoint), in_time())) == [b"in time"]
    serving.join(scaled(30))


@pytest.mark.parametrize("pattern", ["request", "async_request"])
def test_a_retry_is_a_new_socket(exchange: Exchange, plain: Context, pattern: str) -> None:
    """The peer is asked again from another identity; the late first answer does not count."""
    router, endpoint = bound(plain, zmq.ROUTER)
    identities: list[bytes] = []

    def serve() -> None:
        first, second = router.recv_multipart(), router.recv_multipart()
        identities.extend((first[0], second[0]))
        router.send_multipart([*first[:-1], b"late"])
        router.send_multipart([*second[:-1], b"in time"])

    serving = in_background(serve)
    done = exchange.converse(talk(pattern, endpoint, retries=1), in_time(2))
    assert payloads_of(done) == [b"in time"]
    serving.join(scaled(30))
    assert identities[0] != identities[1]


def test_a_retry_of_several_asks_for_all_answers(exchange: Exchange, plain: Context) -> None:
    """What was not answered is asked again; answers stand in the order of the payloads."""
    router, endpoint = bound(plain, zmq.ROUTER)
    seen: list[bytes] = []

    def serve() -> None:
        while len(set(seen)) < 3 or seen.count(b"b") < 2:
            *envelope, body = router.recv_multipart()
            seen.append(body)
            if body != b"b" or seen.count(b"b") > 1:
                router.send_multipart([*envelope, body.upper()])

    serving = in_background(serve)
    done = exchange.converse(talk("async_request", endpoint, payloads=[b"a", b"b", b"c"], retries=1), in_time(2))
    assert payloads_of(done) == [b"A", b"B", b"C"] and done.said == 3
    serving.join(scaled(30))


def test_numbers_are_not_used_twice_on_a_socket(exchange: Exchange, plain: Context) -> None:
    """So a second answer to an earlier request is never an answer to a later one."""
    router, endpoint = bound(plain, zmq.ROUTER)
    numbers: list[bytes] = []

    def serve() -> None:
        for _ in range(6):
            frames = router.recv_multipart()
            numbers.append(frames[1])
            router.send_multipart(frames)
            router.send_multipart(frames)

    serving = in_background(serve)
    for word in (b"a", b"b", b"c"):
        done = exchange.converse(talk("async_request", endpoint, payloads=[word + b"1", word + b"2"]), in_time())
        assert payloads_of(done) == [word + b"1", word + b"2"]
    serving.join(scaled(30))
    assert len(set(numbers)) == 6


def test_second_answers_to_one_question_do_no_harm(exchange: Exchange, plain: Context) -> None:
    """A ROUTER that says the same a thousand times has answered; what is left over is not the next answer."""
    router, endpoint = bound(plain, zmq.ROUTER)

    def serve(times: int) -> None:
        *envelope, body = router.recv_multipart()
        for _ in range(times):
            router.send_multipart([*envelope, body])

    for word, times in ((b"a", 1000), (b"b", 1000), (b"c", 1)):
        serving = in_background(partial(serve, times))
        done = exchange.converse(talk("async_request", endpoint, payloads=[word]), in_time())
        serving.join(scaled(30))
        assert payloads_of(done) == [word]
        for link in links_of(exchange):  # all of them are there before the next question
            while link.socket.poll(100) and word != b"c" and link.socket.recv_multipart()[-1] == word:
                pass


# ---- what was learned about peers


@pytest.mark.parametrize("pattern", ["request", "subscribe", "push", "pair", "async_reply"])
def test_a_dead_endpoint_is_waited_for_once(exchange: Exchange, pattern: str) -> None:
    """Then every pattern that connects fails at once, though it has minutes, and says why."""
    endpoint = refused_endpoint()
    first = failed(exchange.converse(talk(pattern, endpoint), monotonic() + 0.1))
    assert first.reason is Reason.UNREACHABLE and SEEN_BEFORE not in str(first)
    for other in PATTERNS:
        later = failed(exchange.converse(talk(other, endpoint), monotonic() + FOR_EVER))
        assert later.reason is Reason.UNREACHABLE and SEEN_BEFORE in str(later) and endpoint in str(later)


@pytest.mark.parametrize(("pattern", "kind"), [("request", zmq.ROUTER), ("pull", zmq.PUSH), ("publish", zmq.SUB)])
def test_silence_is_waited_for_twice(exchange: Exchange, plain: Context, pattern: str, kind: int) -> None:
    """Two promises meet silence; the third fails at once though it has minutes."""
    peer, endpoint = bound(plain, kind)
    for _ in range(2):
        silent = failed(exchange.converse(talk(pattern, endpoint), monotonic() + 0.2))
        assert silent.reason is Reason.TIMED_OUT and SEEN_BEFORE not in str(silent)
    later = failed(exchange.converse(talk(pattern, endpoint), monotonic() + FOR_EVER))
    assert later.reason is Reason.TIMED_OUT and SEEN_BEFORE in str(later)
    assert "waited in vain" in str(later) and "0 of" not in str(later)  # not the words of another promise
    peer.close(0)


def test_an_answer_ends_a_silence(exchange: Exchange, plain: Context) -> None:
    """Who speaks between two silences is waited for again, each time."""
    pusher, endpoint = bound(plain, zmq.PUSH)
    for number in range(4):
        sending = in_background(partial(pusher.send, b"%d" % number))
        assert payloads_of(exchange.converse(talk("pull", endpoint), in_time())) == [b"%d" % number]
        sending.join(scaled(30))
        silent = failed(exchange.converse(talk("pull", endpoint), monotonic() + 0.01))
        assert silent.reason is Reason.TIMED_OUT and SEEN_BEFORE not in str(silent)


def test_silence_is_of_one_topic(exchange: Exchange, plain: Context) -> None:
    """A publisher that has nothing of two topics, and of one of them never, is listened to for the third."""
    publisher, endpoint = bound(plain, zmq.XPUB)

    def say_to_subscriber(topic: bytes) -> None:
        assert publisher.recv() == b"\1" + topic
        publisher.send_multipart([topic, b"value"])

    for topic in (b"a", b"b", b"c"):
        saying = in_background(partial(say_to_subscriber, topic))
        assert payloads_of(exchange.converse(talk("subscribe", endpoint, topic=topic), in_time())) == [b"value"]
        saying.join(scaled(30))
    for topic in (b"a", b"b", b"b"):
        silent = failed(exchange.converse(talk("subscribe", endpoint, topic=topic), monotonic() + 0.01))
        assert silent.reason is Reason.TIMED_OUT and SEEN_BEFORE not in str(silent)
    later = failed(exchange.converse(talk("subscribe", endpoint, topic=b"b"), monotonic() + FOR_EVER))
    assert later.reason is Reason.TIMED_OUT and SEEN_BEFORE in str(later)
    publisher.send_multipart([b"c", b"news"])
    assert payloads_of(exchange.converse(talk("subscribe", endpoint, topic=b"c"), in_time())) == [b"news"]


def test_a_handshake_without_end_is_waited_for_twice(exchange: Exchange) -> None:
    """The same for a listener that accepts and is silent: _refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(2):
            silent = failed(exchange.converse(talk("request", endpoint), monotonic() + 0.2))
            assert silent.reason is Reason.REFUSED and SEEN_BEFORE not in str(silent)
        later = failed(exchange.converse(talk("request", endpoint), monotonic() + FOR_EVER))
        assert later.reason is Reason.REFUSED and SEEN_BEFORE in str(later)


def test_some_messages_are_no_silence(exchange: Exchange, plain: Context) -> None:
    """A pusher that says less than was wanted is listened to again and again."""
    pusher, endpoint = bound(plain, zmq.PUSH)
    for number in range(4):
        sending = in_background(partial(pusher.send, b"%d" % number))
        done = exchange.converse(talk("pull", endpoint, answers=2), monotonic() + scaled(0.3))
        sending.join(scaled(30))
        assert [message.payload for message in done.received] == [b"%d" % number]
        assert failed(done).reason is Reason.TIMED_OUT and SEEN_BEFORE not in str(failed(done))


def test_one_dead_endpoint_says_nothing_about_another(exchange: Exchange, plain: Context) -> None:
    """Memory is by address: the neighbour on the same host is asked."""
    exchange.converse(talk("request", refused_endpoint()), monotonic() + 0.1)
    peer, endpoint = bound(plain, zmq.REP)
    serving = echo(peer, 1)
    assert payloads_of(exchange.converse(talk("request", endpoint), in_time())) == [b"x"]
    serving.join(scaled(30))


def test_a_bound_socket_is_looked_at_once_more(exchange: Exchange, plain: Context, tmp_path: Path) -> None:
    """Nobody came before, so it is not waited for; but who has come meanwhile is heard."""
    address = f"ipc://{tmp_path}/s"
    assert failed(exchange.converse(talk("pull", address, bind=True), monotonic() + 0.1)).reason is Reason.UNREACHABLE
    again = failed(exchange.converse(talk("pull", address, bind=True), monotonic() + FOR_EVER))
    assert again.reason is Reason.UNREACHABLE
    pusher = plain.socket(zmq.PUSH)
    pusher.connect(address)
    pusher.send(b"late")
    (link,) = links_of(exchange)
    assert link.socket.poll(int(scaled(30) * 1000))
    assert payloads_of(exchange.converse(talk("pull", address, bind=True), monotonic() + FOR_EVER)) == [b"late"]


def test_an_address_that_cannot_be_bound_is_tried_once(exchange: Exchange, plain: Context) -> None:
    """_local; the next promise does not wait for it to become free."""
    owner, endpoint = bound(plain, zmq.REP)
    for deadline in (0.1, FOR_EVER):
        done = exchange.converse(talk("pull", endpoint, bind=True), monotonic() + deadline)
        assert failed(done).reason is Reason.LOCAL
    owner.close(0)


@pytest.mark.parametrize("bind", [False, True])
def test_a_late_answer_of_a_pair_is_not_the_next_ones(
    exchange: Exchange, plain: Context, tmp_path: Path, bind: bool
) -> None:
    """It comes when its promise has given up; those that follow have their own, and who listens does not hear it."""
    other, address = plain.socket(zmq.PAIR), f"ipc://{tmp_path}/s"
    other.rcvtimeo = int(scaled(30) * 1000)
    (other.connect if bind else other.bind)(address)

    def asked(*payloads: bytes, seconds: float = 30) -> Exchanged:
        answers = len(payloads) or 1
        return exchange.converse(talk("pair", address, payloads=payloads, answers=answers, bind=bind), in_time(seconds))

    serving = echo(other, 1)
    assert payloads_of(asked(b"first")) == [b"first"]
    serving.join(scaled(30))
    for number in range(2):
        late = [b"late %d" % number, b"later %d" % number]
        failure = failed(asked(*late, seconds=0.1))
        assert failure.reason is Reason.TIMED_OUT and "0 of 2" in str(failure)
        assert [other.recv(), other.recv()] == late
        for answer in late:
            other.send(answer)
        serving = echo(other, 1)
        assert payloads_of(asked(b"now %d" % number)) == [b"now %d" % number]
        serving.join(scaled(30))
    assert not asked(b"last", seconds=0.1).received
    other.send(other.recv())
    other.send(b"news")
    assert payloads_of(asked()) == [b"news"]


# ---- several endpoints, several addresses


def test_the_next_endpoint_is_tried_at_once_after_a_refusal(exchange: Exchange, plain: Context) -> None:
    """Three that refuse take none of the minutes; the one that answered is named."""
    peer, endpoint = bound(plain, zmq.REP)
    serving = echo(peer, 1)
    dead = [refused_endpoint() for _ in range(3)]
    done = exchange.converse(talk("request", *dead, endpoint), monotonic() + FOR_EVER)
    assert payloads_of(done) == [b"x"] and done.endpoint == endpoint
    serving.join(scaled(30))


def test_silent_endpoints_share_the_time(exchange: Exchange, plain: Context) -> None:
    """None uses up the time of the others: all are connected to, and the last one answers."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    peer, endpoint = bound(plain, zmq.REP)
    serving = echo(peer, 1)
    silent = [f"tcp://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    done = exchange.converse(talk("request", *silent, endpoint), in_time(2))
    assert payloads_of(done) == [b"x"] and done.endpoint == endpoint
    serving.join(scaled(30))
    for listener in listeners:
        listener.setblocking(False)
        listener.accept()[0].close()
        listener.close()


def test_all_endpoints_are_in_the_text(exchange: Exchange, plain: Context) -> None:
    """Each with its own words, and the worst reason of them."""
    silent, other_kind = bound(plain, zmq.ROUTER), bound(plain, zmq.PUB)
    endpoints = (refused_endpoint(), silent[1], other_kind[1])
    failure = failed(exchange.converse(talk("request", *endpoints), monotonic() + scaled(1)))
    assert failure.reason is Reason.REFUSED
    assert all(endpoint in str(failure) for endpoint in endpoints)


def test_an_endpoint_that_dies_during_the_request(exchange: Exchange, plain: Context, peer: Start) -> None:
    """It had the request, but no answer came: the next endpoint is asked at once."""
    dying = peer("silent-router")
    alive, endpoint = bound(plain, zmq.REP)
    serving = echo(alive, 1)
    results: list[Exchanged] = []
    asking = in_background(
        lambda: results.append(exchange.converse(talk("request", dying.endpoint, endpoint), monotonic() + FOR_EVER))
    )
    dying.wait_for(1)
    dying.kill()
    asking.join(scaled(30))
    serving.join(scaled(30))
    assert payloads_of(results[0]) == [b"x"] and results[0].endpoint == endpoint


@pytest.mark.parametrize(("pattern", "kind", "other"), [("push", "pull", zmq.PULL), ("pair", "pair-silent", zmq.PAIR)])
def test_what_one_peer_was_handed_is_not_told_to_the_next(
    exchange: Exchange,
    plain: Context,
    peer: Start,
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    kind: str,
    other: int,
) -> None:
    """It left while it was told: what it has of it nobody knows, and the next endpoint has none of it."""
    leaving, original = peer(kind), Link.send

    def send(link: Link, frames: list[bytes], deadline: float) -> bool:
        is_sent = original(link, frames, deadline)
        leaving.kill()
        wait_until_told(link)
        return is_sent

    monkeypatch.setattr(Link, "send", send)
    next_one, endpoint = bound(plain, other)
    done = exchange.converse(
        talk(pattern, leaving.endpoint, endpoint, payloads=[b"1", b"2"], answers=0), monotonic() + FOR_EVER
    )
    failure = failed(done)
    assert failure.reason is Reason.UNREACHABLE and "some may be lost" in str(failure)
    assert done.endpoint == leaving.endpoint and endpoint not in str(failure)
    next_one.close()


def test_the_last_endpoint_is_waited_for(
    exchange: Exchange, plain: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody there at first: who comes within the time is asked."""
    refused, original = threading.Event(), addresses.why_unreachable

    def told(address: str, deadline: float) -> str:
        refused.set()
        return original(address, deadline)

    monkeypatch.setattr("cf_messaging.link.why_unreachable", told)
    address = f"ipc://{tmp_path}/s"
    results: list[Exchanged] = []
    asking = in_background(lambda: results.append(exchange.converse(talk("request", address), in_time())))
    assert refused.wait(scaled(30))
    peer = plain.socket(zmq.REP)
    peer.bind(address)
    serving = echo(peer, 1)
    asking.join(scaled(30))
    serving.join(scaled(30))
    assert payloads_of(results[0]) == [b"x"]


def test_all_addresses_of_a_name_are_tried(exchange: Exchange, plain: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn, as if they were endpoints; the name is looked up once in the run, and it is what the text names."""
    peer, endpoint = bound(plain, zmq.REP)
    port = int(endpoint.rpartition(":")[2])
    looked_up: list[object] = []

    def look_up(host: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (3, 2, 1)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    serving = echo(peer, 3)
    for _ in range(3):
        done = exchange.converse(talk("request", f"tcp://hub:{port}"), monotonic() + FOR_EVER)
        assert payloads_of(done) == [b"x"] and done.endpoint == f"tcp://hub:{port}"
    serving.join(scaled(30))
    assert looked_up == ["hub"]


def test_a_slow_name_service_does_not_stop_the_others(
    exchange: Exchange, plain: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its share of the time, once; then the next endpoint is asked."""
    peer, endpoint = bound(plain, zmq.REP)
    serving = echo(peer, 2)
    answered = threading.Event()
    lookups: list[object] = []

    def slow(host: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        answered.wait(scaled(60))
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        for _ in range(2):
            assert payloads_of(exchange.converse(talk("request", "tcp://hub:1", endpoint), in_time(1))) == [b"x"]
    finally:
        answered.set()
    serving.join(scaled(30))
    assert lookups == ["hub"]


# ---- subscribers


def subscribe(context: Context, endpoint: str, *prefixes: bytes) -> Socket:
    subscriber = context.socket(zmq.SUB)
    subscriber.rcvtimeo = int(scaled(30) * 1000)
    for prefix in prefixes:
        subscriber.subscribe(prefix)
    subscriber.connect(endpoint)
    return subscriber


def test_matching_subscribers_are_counted(exchange: Exchange, plain: Context, tmp_path: Path) -> None:
    """One with two matching prefixes is one; one who wants another topic is none; who leaves does not count."""
    address = f"ipc://{tmp_path}/s"
    say = talk("publish", address, bind=True, topic=b"load", subscribers=2)
    first = subscribe(plain, address, b"lo", b"", b"load")
    other = subscribe(plain, address, b"loud")
    lonely = failed(exchange.converse(say, monotonic() + 0.5))
    assert lonely.reason is Reason.TIMED_OUT and "1 of 2" in str(lonely)
    second = subscribe(plain, address, b"load")
    done = exchange.converse(say, in_time())
    assert not done.failures and done.said == 1
    assert first.recv_multipart() == second.recv_multipart() == [b"load", b"x"]
    assert not other.poll(0)
    (link,) = links_of(exchange)
    second.close(0)
    wait_until_told(link)
    left = failed(exchange.converse(say, monotonic() + 0.5))
    assert left.reason is Reason.TIMED_OUT and "1 of 2" in str(left)


def test_a_subscriber_that_came_and_left_between_promises(exchange: Exchange, plain: Context, tmp_path: Path) -> None:
    """It is read of only after its connection was seen to end, and does not count."""
    address = f"ipc://{tmp_path}/s"
    stays = subscribe(plain, address, b"other")
    assert not exchange.converse(talk("publish", address, bind=True, topic=b"other"), in_time()).failures
    (link,) = links_of(exchange)
    leaves = subscribe(plain, address, b"load")
    assert link.socket.poll(int(scaled(30) * 1000))
    leaves.close(0)
    while not link.losses:
        wait_until_told(link)
        link.observe(in_time())
    alone = failed(exchange.converse(talk("publish", address, bind=True, topic=b"load"), monotonic() + 0.1))
    assert alone.reason is Reason.TIMED_OUT and "0 of 1" in str(alone)
    assert stays.recv_multipart() == [b"other", b"x"]


def test_a_subscriber_in_the_place_of_one_who_left(exchange: Exchange, peer: Start, tmp_path: Path) -> None:
    """The kernel gives it the same descriptor while nobody looks: it counts, the one that left does not."""
    address = f"ipc://{tmp_path}/s"
    say = talk("publish", address, bind=True, topic=b"load")
    for number in range(3):
        subscriber = peer("sub", "--connect", address)
        if number:
            (link,) = links_of(exchange)
            until = in_time()
            while link.socket.poll(50) != READ and monotonic() < until:
                pass
        done = exchange.converse(say, in_time(5))
        assert not done.failures, str(done.failures[0])
        subscriber.wait_for(1)
        subscriber.kill()
        (link,) = links_of(exchange)
        wait_until_told(link)


# ---- the end of the run


def test_more_endpoints_than_sockets(exchange: Exchange, plain: Context, tmp_path: Path) -> None:
    """The oldest sockets make room, and what they handed over arrives all the same."""
    number = exchange_module._MAX_LINKS + 5
    pullers = [plain.socket(zmq.PULL) for _ in range(number)]
    for index, puller in enumerate(pullers):
        puller.rcvtimeo = int(scaled(30) * 1000)
        puller.bind(f"ipc://{tmp_path}/{index}")
    for index in range(number):
        assert not exchange.converse(talk("push", f"ipc://{tmp_path}/{index}", payloads=[b"1"]), in_time()).failures
    assert len(links_of(exchange)) == exchange_module._MAX_LINKS
    assert not exchange.converse(talk("push", f"ipc://{tmp_path}/0", payloads=[b"2"]), in_time()).failures
    assert [puller.recv() for puller in pullers] == [b"1"] * number and pullers[0].recv() == b"2"


def test_nothing_is_lost_when_nothing_is_in_flight(plain: Context) -> None:
    """Answered requests, pushes that were taken, silence and dead endpoints leave nothing to say at the end."""
    exchange = Exchange()
    puller, pull_endpoint = bound(plain, zmq.PULL)
    answerer, answer_endpoint = bound(plain, zmq.REP)
    silent = bound(plain, zmq.ROUTER)
    serving = echo(answerer, 1)
    exchange.converse(talk("request", answer_endpoint), in_time())
    exchange.converse(talk("push", pull_endpoint), in_time())
    exchange.converse(talk("request", silent[1]), monotonic() + 0.1)
    exchange.converse(talk("request", refused_endpoint()), monotonic() + 0.1)
    serving.join(scaled(30))
    assert exchange.close() == [] and puller.recv() == b"x"
    assert exchange.close() == []


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("request", "rep"), ("async_request", "router"), ("push", "pull"), ("pair", "pair"), ("subscribe", "pub")],
)
def test_a_peer_that_left_has_not_lost_anything(peer: Start, pattern: str, kind: str) -> None:
    """What it was to have it had, so the end of the run has nothing to say and nobody to wait for."""
    exchange, other = Exchange(), peer(kind)
    assert not exchange.converse(talk(pattern, other.endpoint), in_time()).failures
    if pattern == "push":
        other.wait_for(1)
    other.kill()
    (link,) = links_of(exchange)
    wait_until_told(link)
    link.observe(in_time())
    wait_until_told(link)  # that it tries to connect again
    assert exchange.close() == []


def test_what_a_peer_does_not_take_is_told(peer: Start) -> None:
    """A stopped puller: the end waits for a bounded time, then says that messages may not have left."""
    exchange, puller = Exchange(), peer("pull")
    exchange.converse(talk("push", puller.endpoint), in_time())
    puller.wait_for(1)
    puller.stop()
    done = exchange.converse(talk("push", puller.endpoint, payloads=[b"x" * 8_000_000] * 6), in_time())
    assert done.said == 6 and not done.failures
    lost = exchange.close()
    puller.cont()
    assert len(lost) == 1 and "may not have left" in lost[0]


def test_the_end_is_bounded_whatever_libzmq_waits_for(plain: Context) -> None:
    """A socket that libzmq does not let go of, here since it is still open, does not hold up the end of the run."""
    exchange = Exchange()
    _puller, endpoint = bound(plain, zmq.PULL)
    assert not exchange.converse(talk("push", endpoint), in_time()).failures
    stuck = exchange._context.socket(zmq.PAIR)
    (lost,) = exchange.close()
    assert "may not have left" in lost
    stuck.close()


def test_what_was_fetched_in_vain_is_told(plain: Context) -> None:
    """A puller that wanted fewer than its peer gave: the tasks are lost, and the text says how many and where."""
    exchange = Exchange()
    pusher, endpoint = bound(plain, zmq.PUSH)
    sending = in_background(lambda: [pusher.send(b"%d" % number) for number in range(3)])
    assert payloads_of(exchange.converse(talk("pull", endpoint), in_time())) == [b"0"]
    sending.join(scaled(30))
    (link,) = links_of(exchange)
    assert link.socket.poll(int(scaled(30) * 1000))
    lost = exchange.close()
    assert len(lost) == 1 and endpoint in lost[0] and "more than wanted" in lost[0]
