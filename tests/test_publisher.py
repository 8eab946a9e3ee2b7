"""The publisher: who wants what, and what is said again for those who came late; and XPUB, that it is as assumed."""

from __future__ import annotations

import os
import pickle
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from time import sleep
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

import zmtp
from cf_messaged import publisher as module
from cf_messaged.metrics import Counters
from cf_messaged.publisher import INTERVAL_S, Bounds, Key, Publisher, Resend, Value, bounds, topic_of
from cf_messaged.subscribers import Subscribers
from cf_messaging.wire import KINDS, MAX_TOPIC_BYTES
from peers import Socket, scaled
from test_cfengine import wait_for

NAMES = ["a", "a/", "a/b", "a-b", "a/b/n", "/", "//", "/a", "b", "é", "ê", "éa/日本", "𝄞/x", "\ud7ff", "\U0010ffff"]
NODES = ["n", "n1", "b", "a.b:1"]
OVERSIZED = b"state/" + b"x" * MAX_TOPIC_BYTES


@contextmanager
def limits(**values: int) -> Iterator[None]:
    """The limits of the publisher, small enough to be met."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield


def publisher(*joined: bytes) -> Publisher:
    made = Publisher()
    for prefix in joined:
        made.heard(b"\1" + prefix)
    return made


def values(*names: str, kind: str = "state", node: str = "n") -> list[Value]:
    return [Value(kind, name, node, b"the event") for name in sorted(names)]


class Last:
    """What a store has, and how it was asked. page: the most it returns at once. sloppy: others too, not only those
    within the bounds of the prefix.
    """

    def __init__(self, kept: Sequence[Value] = (), page: int = 1000, sloppy: bool = False) -> None:
        self.kept = {value.key: value for value in kept}
        self.asked: list[tuple[bytes, Key | None, int]] = []
        self._page = page
        self._sloppy = sloppy

    def __call__(self, prefix: bytes, after: Key | None, limit: int) -> list[Value]:
        self.asked.append((prefix, after, limit))
        there = [value for key, value in sorted(self.kept.items()) if after is None or key > after]
        within = [value for value in there if self._sloppy or may_match(value.key, bounds(prefix))]
        return within[: min(limit, self._page)]


def may_match(key: Key, found: Bounds) -> bool:
    kind, name, node = key
    in_range = found.first <= name and (found.end is None or name < found.end)
    return kind in found.kinds and in_range and f"{name}/{node}/".startswith(found.text)


def drained(made: Publisher, last: module.Last, now_s: float = 0) -> list[list[Value]]:
    """All that is resent, of each round, until nothing waits."""
    rounds = []
    while (wait_s := made.poll_s(now_s)) is not None:
        now_s += wait_s
        rounds.append(made.resend(now_s, last))
    return rounds


def sent(made: Publisher, last: module.Last, now_s: float = 0) -> list[Value]:
    return [value for values in drained(made, last, now_s) for value in values]


def prefixes_of(topic: bytes) -> st.SearchStrategy[bytes]:
    """Cut anywhere; or with more behind it."""
    cut = st.integers(0, len(topic)).map(lambda length: topic[:length])
    return cut | st.tuples(cut, st.binary(max_size=3)).map(b"".join)


keys = st.tuples(
    st.sampled_from([*KINDS]), st.sampled_from(NAMES) | st.text("a/é𝄞", min_size=1), st.sampled_from(NODES)
)
topics = keys.map(lambda key: topic_of(*key))
prefixes = topics.flatmap(prefixes_of) | st.binary(max_size=5) | st.sampled_from([b"", b"state/", OVERSIZED])
many_values = st.lists(keys, max_size=12, unique=True).map(lambda keys: [Value(*key, b"the event") for key in keys])


# ---- topics and bounds


def test_a_topic_is_kind_name_and_node() -> None:
    """In UTF-8, each ended by a slash, so that a name is not taken for a longer one."""
    assert Value("common", "a/é", "web1", b"").topic == topic_of("common", "a/é", "web1") == b"common/a/\xc3\xa9/web1/"


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        (b"", Bounds(("static", "dynamic", "state", "common"))),
        (b"sta", Bounds(("static", "state"))),
        (b"state", Bounds(("state",))),
        (b"state/", Bounds(("state",))),
        (b"state/lo", Bounds(("state",), "lo", "lo", "lp")),
        (b"state/load/", Bounds(("state",), "load/", "load", "load0")),
        (b"state/load/we", Bounds(("state",), "load/we", "load", "load/wf")),
        (b"state/load/web1/", Bounds(("state",), "load/web1/", "load", "load/web10")),
        (b"state/a/b/n/", Bounds(("state",), "a/b/n/", "a/b", "a/b/n0")),
        (b"state/\xc3", Bounds(("state",))),
        (b"state/a\xf0\x9d\x84", Bounds(("state",), "a", "a", "b")),
        ("state/\ud7ff".encode(), Bounds(("state",), "\ud7ff", "\ud7ff", "\ue000")),
        ("state/a\U0010ffff".encode(), Bounds(("state",), "a\U0010ffff", "a\U0010ffff", "b")),
        ("state/\U0010ffff".encode(), Bounds(("state",), "\U0010ffff", "\U0010ffff", None)),
    ],
)
def test_bounds_tell_where_in_the_store_to_look(prefix: bytes, found: Bounds) -> None:
    """Kinds, what is fixed of NAME/NODE/ without a character that is cut, and where names can lie."""
    assert bounds(prefix) == found


GARBAGE = [
    b"x",
    b"/",
    b"State/",
    b"stat/",
    b"states",
    b"state/\xff",
    b"state/\xc3a",
    b"state/\xed\xa0\x80",
    b"state/a\0",
]


@pytest.mark.parametrize("prefix", [*GARBAGE, OVERSIZED])
def test_garbage_has_no_bounds(prefix: bytes) -> None:
    """What no topic can begin with is not looked up, and not counted."""
    made = publisher(prefix)
    assert bounds(prefix).kinds == ()
    assert made.subscriptions == 0 and made.poll_s(0) is None


@given(keys, st.data())
def test_bounds_leave_out_nothing_that_matches(key: Key, data: st.DataObject) -> None:
    """Wherever its topic is cut, the value lies within the bounds."""
    topic = topic_of(*key)
    assert may_match(key, bounds(topic[: data.draw(st.integers(0, len(topic)))]))


@given(prefixes)
def test_bounds_of_anything_are_values_that_a_database_takes(prefix: bytes) -> None:
    """UTF-8 without NUL; nothing is raised."""
    found = bounds(prefix)
    texts = [found.text, found.first, found.end or ""]
    assert all(b"\0" not in text.encode() for text in texts) and (found.end is None or found.first < found.end)


# ---- who wants what


def test_nobody_wants_anything_at_first() -> None:
    """No subscription, nothing due, nothing to wait for."""
    made = Publisher()
    assert (made.subscriptions, made.wants(b"state/load/n/"), made.poll_s(0), made.resend(0, Last())) == (
        0,
        False,
        None,
        [],
    )


@pytest.mark.parametrize("frame", [b"", b"\2common/", b"common/", b"\2state/", b"\xff\1state/"])
def test_other_frames_are_ignored(frame: bytes) -> None:
    """A subscriber can send any message; it subscribes to nothing, and ends nothing."""
    made = publisher(b"common/")
    made.heard(frame)
    made.heard(frame, left=True)
    assert (made.subscriptions, made.wants(b"state/load/n/"), made.wants(b"common/")) == (1, False, True)


@given(st.lists(prefixes, max_size=8), topics)
def test_wants_is_whether_a_prefix_matches(joined: list[bytes], topic: bytes) -> None:
    """As long as there is room to count every prefix singly, exactly then."""
    assert publisher(*joined).wants(topic) == any(topic.startswith(prefix) for prefix in joined)


def test_who_leaves_is_counted_out() -> None:
    """Of two with one subscription the first that leaves takes nothing from the other."""
    made = publisher(b"state/", b"state/", b"stat")
    counted = []
    for prefix in (b"state/", b"stat", b"state/"):
        made.heard(b"\0" + prefix, left=True)
        counted.append((made.subscriptions, made.wants(b"state/a/n/"), made.wants(b"static/a/n/")))
    assert counted == [(2, True, True), (1, True, False), (0, False, False)]


def test_who_leaves_takes_nothing_from_who_wants_something_else() -> None:
    """Though it is as long; nor does one that was never there."""
    made = publisher(b"state/a", b"state/b")
    made.heard(b"\0state/a", left=True)
    made.heard(b"\0common/", left=True)
    assert (made.subscriptions, made.wants(b"state/a/n/"), made.wants(b"state/b/n/")) == (1, False, True)


def test_unsubscriptions_that_a_peer_says_are_not_believed() -> None:
    """It need not have subscribed: others lose nothing by what it says."""
    made = publisher(b"state/")
    made.heard(b"\0state/")
    assert made.subscriptions == 1 and made.wants(b"state/a/n/")


def test_too_many_prefixes_are_everything() -> None:
    """Who subscribes beyond the limit still gets all, and the others too; when they left, nothing is wanted in vain."""
    with limits(MAX_PREFIXES=3):
        joined = [b"common/%d" % number for number in range(5)]
        made = publisher(*joined, joined[0])
        assert made.subscriptions == 6 and made.wants(b"common/4/n/") and made.wants(b"state/a/n/")
        for prefix in joined[3:]:
            made.heard(b"\0" + prefix, left=True)
        assert made.subscriptions == 4 and made.wants(b"common/2/n/") and not made.wants(b"common/4/n/")


def test_memory_is_bounded() -> None:
    """A million prefixes take no more than those up to the limit."""
    with limits(MAX_PREFIXES=100):
        made, sizes = Publisher(), []
        for number in range(2000):
            made.heard(b"\1state/%06d" % number)
            sizes.append(len(pickle.dumps(made)))
    assert sizes[0] < sizes[50] < sizes[99] and max(sizes) < sizes[99] + 20
    assert [value.name for value in sent(made, Last(values("a", "b")))] == ["a", "b"]


def test_memory_is_given_back() -> None:
    """Once all have left, and what they wanted was resent, a publisher is as small as it was."""
    made = publisher()
    before = len(pickle.dumps(made))
    for sign in (b"\1", b"\0"):
        for length in range(200):
            made.heard(sign + b"state/" + length * b"x", left=True)
    sent(made, Last())
    assert len(pickle.dumps(made)) < before + 100


# ---- resends


def test_the_first_does_not_wait_and_the_next_are_collected() -> None:
    """At once after a pause; then once an interval, however many come."""
    made, last = publisher(b"state/"), Last(values("load"))
    assert len(made.resend(5, last)) == 1
    for number in range(100):
        made.heard(b"\1state/")
        wait_s = made.poll_s(5 + number / 1001)
        assert wait_s == pytest.approx(INTERVAL_S - number / 1001) and made.resend(5 + number / 1001, last) == []
    assert len(made.resend(5 + INTERVAL_S, last)) == 1
    assert made.poll_s(5 + INTERVAL_S) is None and made.resend(9, last) == []


def test_who_leaves_or_is_there_already_is_no_reason_to_resend() -> None:
    """Only a subscription is."""
    made = publisher(b"state/")
    assert len(sent(made, Last(values("load")))) == 1
    made.heard(b"\0state/", left=True)
    made.heard(b"\0state/")
    made.heard(b"\1state/", refused=True)
    assert made.poll_s(0) is None


def test_joining_without_a_match_costs_nothing() -> None:
    """Nothing is sent, and the store is asked once."""
    made, last = publisher(b"state/cpu/"), Last(values("load", "cpu2"))
    assert sent(made, last) == [] and len(last.asked) == 1


@given(
    st.lists(prefixes, max_size=6), many_values, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.booleans()
)
def test_a_resend_is_every_value_that_matches_once(
    joined: list[bytes], kept: list[Value], page: int, chunk: int, reads: int, sloppy: bool
) -> None:
    """However the store pages, whatever else it returns; never more in a round than a chunk, and so many reads."""
    last = Last(kept, page, sloppy)
    with limits(CHUNK=chunk, MAX_READS=reads):
        rounds = drained(publisher(*joined), last)
    wanted = [value for value in kept if any(value.topic.startswith(prefix) for prefix in joined)]
    assert sorted(value for values in rounds for value in values) == sorted(wanted)
    assert all(len(values) <= chunk for values in rounds)
    assert all(1 <= limit <= chunk for _, _, limit in last.asked) and len(last.asked) <= reads * len(rounds)


def test_each_prefix_is_read_from_its_beginning() -> None:
    """Topics and keys have not the same order: "a-b/" comes before "a/", but "a" before "a-b"."""
    kept = values("a", "a-b")
    assert sorted(sent(publisher(b"state/a-", b"state/a/"), Last(kept))) == kept


def test_a_round_reads_only_so_much() -> None:
    """Of values that are large, of values that do not match, and of prefixes that match nothing."""
    large = [value._replace(frame=bytes(600)) for value in values(*"abcdef")]
    with limits(CHUNK_BYTES=1000):
        assert [len(values) for values in drained(publisher(b"state/"), Last(large, page=1))] == [2, 2, 2, 0]
    with limits(CHUNK=3):
        assert [len(values) for values in drained(publisher(b"state/"), Last(large, page=2))] == [3, 3, 0]
    with limits(CHUNK=2):
        rounds = drained(publisher(b"state/e"), Last(large, sloppy=True))
        assert [[value.name for value in values] for values in rounds] == [[], [], ["e"], []]
    with limits(MAX_READS=10):
        assert len(drained(publisher(*(b"state/%d" % number for number in range(10, 35))), Last(large))) == 3


def test_who_joins_meanwhile_waits_for_the_next() -> None:
    """It begins an interval after the one that is under way ended, as each value is resent at most once an interval."""
    made, last = publisher(b"state/"), Last(values(*"abcd"))
    with limits(CHUNK=3):
        assert len(made.resend(0, last)) == 3
        made.heard(b"\1state/d")
        assert made.poll_s(0.01) == 0 and [value.name for value in made.resend(0.01, last)] == ["d"]
        assert made.poll_s(0.01) == pytest.approx(INTERVAL_S) and made.resend(0.1, last) == []
        assert [value.name for value in made.resend(0.01 + INTERVAL_S, last)] == ["d"]


@given(st.integers(0, 9), st.integers(1, 8))
def test_a_store_that_fails_loses_nothing(fails_at: int, chunk: int) -> None:
    """What it raises comes through; it is asked again after an interval, and every value comes once."""
    kept = [*values(*"ab", kind="dynamic"), *values(*"cde")]
    made, last, came, failed = publisher(b"dynamic/", b"state/"), Last(kept, page=1), [], 0
    now_s = 0.0

    def failing(prefix: bytes, after: Key | None, limit: int) -> list[Value]:
        page = last(prefix, after, limit)
        if len(last.asked) == fails_at + 1:
            raise OSError("the store is lost")
        return page

    with limits(CHUNK=chunk):
        while (wait_s := made.poll_s(now_s)) is not None:
            now_s += wait_s
            try:
                came += made.resend(now_s, failing)
            except OSError:
                failed += 1
                assert made.poll_s(now_s) == pytest.approx(INTERVAL_S) and made.resend(now_s, failing) == []
    assert came == kept and failed == (fails_at < len(last.asked))


def test_a_resend_of_nothing_has_ended() -> None:
    """It reads nothing."""
    last = Last(values("a"))
    assert Resend([]).ended and Resend([]).take(last) == [] and last.asked == []


# ---- all of it, against subscribers who keep to nothing


class World:
    """A publisher, its store, and an XPUB as it is: it passes on what peers say, and who matches is decided by what
    they really subscribed to. Every value is a number, higher than that before.
    """

    def __init__(self) -> None:
        self.publisher = Publisher()
        self.last = Last(page=2)
        self.now_s = 0.0
        self.subscribed: defaultdict[int, set[bytes]] = defaultdict(set)
        self.refused: defaultdict[int, set[bytes]] = defaultdict(set)
        self.heard: defaultdict[int, dict[Key, int]] = defaultdict(dict)
        self.sent: defaultdict[Key, list[int]] = defaultdict(list)
        self.resent_s: defaultdict[Key, list[float]] = defaultdict(list)
        self.honest = True

    def subscribe(self, peer: int, prefix: bytes) -> None:
        self.honest &= prefix not in self.subscribed[peer] | self.refused[peer]
        self.subscribed[peer].add(prefix)
        self.publisher.heard(b"\1" + prefix)

    def refuse(self, peer: int, prefix: bytes) -> None:
        """Its subscription has no effect, but the socket says it too when the peer leaves."""
        self.honest &= prefix not in self.subscribed[peer] | self.refused[peer]
        self.refused[peer].add(prefix)
        self.publisher.heard(b"\1" + prefix, refused=True)

    def unsubscribe(self, peer: int, prefix: bytes) -> None:
        self.honest = False
        self.subscribed[peer].discard(prefix)
        self.refused[peer].discard(prefix)
        self.publisher.heard(b"\0" + prefix)

    def leave(self, peer: int) -> None:
        self.heard.pop(peer, None)
        for prefix in self.subscribed.pop(peer, set()) | self.refused.pop(peer, set()):
            self.publisher.heard(b"\0" + prefix, left=True)

    def news(self, key: Key) -> None:
        before = int(self.last.kept[key].frame) if key in self.last.kept else 0
        value = self.last.kept[key] = Value(*key, b"%d" % (before + 1))
        if self.publisher.wants(value.topic):
            self._send(value)

    def wait(self, wait_s: float) -> None:
        self.now_s += wait_s
        for value in self.publisher.resend(self.now_s, self.last):
            self.resent_s[value.key].append(self.now_s)
            self._send(value)

    def settle(self) -> None:
        """Until nothing waits: each time the loop is told to wait, there is something to do then."""
        while (wait_s := self.publisher.poll_s(self.now_s)) is not None:
            asked = len(self.last.asked)
            self.wait(wait_s)
            assert len(self.last.asked) > asked

    def _send(self, value: Value) -> None:
        self.sent[value.key].append(int(value.frame))
        for peer in self.subscribed:
            if self.matches(peer, value):
                self.heard[peer][value.key] = int(value.frame)

    def matches(self, peer: int, value: Value) -> bool:
        return any(value.topic.startswith(prefix) for prefix in self.subscribed[peer])


peers = st.integers(0, 2)
few_keys = st.tuples(st.sampled_from(["state", "static"]), st.sampled_from(NAMES[:4]), st.just("n"))
deeds = st.one_of(
    st.tuples(st.just(World.news), few_keys),
    st.tuples(st.just(World.news), few_keys),
    st.tuples(st.just(World.subscribe), peers, few_keys.flatmap(lambda key: prefixes_of(topic_of(*key))) | prefixes),
    st.tuples(st.just(World.refuse), peers, few_keys.flatmap(lambda key: prefixes_of(topic_of(*key)))),
    st.tuples(st.just(World.unsubscribe), peers, few_keys.flatmap(lambda key: prefixes_of(topic_of(*key)))),
    st.tuples(st.just(World.leave), peers),
    st.tuples(st.just(World.wait), st.sampled_from([0, 0.01, INTERVAL_S / 2, INTERVAL_S, 1])),
)
Deed = tuple[Callable[..., None], Any]


@given(st.lists(deeds, min_size=5, max_size=60), st.integers(1, 3), st.integers(1, 5))
def test_subscribers_have_what_is_newest(done: list[Deed], chunk: int, room: int) -> None:
    """Whatever others do, in the end each has the last value of every name that it subscribed to; no value is sent
    after a newer one, and none is resent twice within an interval.
    """
    world = World()
    with limits(CHUNK=chunk, MAX_READS=2, MAX_PREFIXES=room):
        for deed, *given_to_it in done:
            deed(world, *given_to_it)
        world.settle()
    for peer in world.subscribed:
        newest = {key: int(value.frame) for key, value in world.last.kept.items() if world.matches(peer, value)}
        assert {key: world.heard[peer].get(key) for key in newest} == newest
    assert all(numbers == sorted(numbers) for numbers in world.sent.values())
    for times in world.resent_s.values():
        assert all(later - before > INTERVAL_S - 1e-6 for before, later in zip(times, times[1:], strict=False))


@given(st.lists(deeds, max_size=60), st.integers(1, 5))
def test_counts_are_never_too_low(done: list[Deed], room: int) -> None:
    """At least one for each subscription that there is, and that is wanted; of peers that only subscribe once and leave
    exactly so many, and nothing is wanted when all have left.
    """
    world = World()
    with limits(MAX_PREFIXES=room):
        for deed, *given_to_it in done:
            deed(world, *given_to_it)
        told = [*world.subscribed.values(), *world.refused.values()]
        there = [prefix for prefixes in told for prefix in prefixes if bounds(prefix).kinds]
        assert world.publisher.subscriptions >= len(there) and all(map(world.publisher.wants, there))
        if world.honest:
            assert world.publisher.subscriptions == len(there)
            for peer in range(3):
                world.leave(peer)
            assert world.publisher.subscriptions == 0 and not world.publisher.wants(b"state/a/n/")


# ---- XPUB is as is assumed


def hear(xpub: Socket, made: Publisher) -> None:
    assert xpub.poll(int(scaled(30) * 1000)), "nothing was heard"
    Subscribers(xpub, made, None, Counters()).hear()


def hear_until(xpub: Socket, made: Publisher, subscriptions: int) -> None:
    while made.subscriptions != subscriptions:
        hear(xpub, made)


@pytest.fixture
def xpub(plain: zmq.Context[Socket]) -> Socket:
    bound = plain.socket(zmq.XPUB)
    bound.setsockopt(zmq.XPUB_MANUAL, 1)
    bound.bind("tcp://127.0.0.1:*")
    return bound


def endpoint_of(bound: Socket) -> str:
    return bound.getsockopt_string(zmq.LAST_ENDPOINT)


def subscriber(plain: zmq.Context[Socket], xpub: Socket, prefix: bytes) -> Socket:
    made = plain.socket(zmq.SUB)
    made.connect(endpoint_of(xpub))
    made.subscribe(prefix)
    return made


def unfiltered(plain: zmq.Context[Socket], xpub: Socket, prefix: bytes) -> Socket:
    """A subscriber that shows all that it is sent."""
    made = plain.socket(zmq.XSUB)
    made.connect(endpoint_of(xpub))
    made.send(b"\1" + prefix)
    return made


def say(xpub: Socket, frame: bytes) -> socket.socket:
    """Of a peer that waits for the greeting before it goes on: XPUB would else end the connection."""
    hostile = socket.create_connection(("127.0.0.1", int(endpoint_of(xpub).rsplit(":")[-1])), scaled(30))
    hostile.sendall(zmtp.greeting())
    with hostile.makefile("rb") as heard:
        assert len(heard.read(64)) == 64
    hostile.sendall(zmtp.ready(b"SUB") + zmtp.message("3.0", [frame]))
    return hostile


def test_peers_of_a_real_socket_are_counted(xpub: Socket, plain: zmq.Context[Socket]) -> None:
    """Each that subscribes is heard, also to the same; so is each that leaves, which is told from what a peer says."""
    made = Publisher()
    subscribers = [subscriber(plain, xpub, b"state/") for _ in range(3)]
    hear_until(xpub, made, 3)
    for others in (2, 1, 0):
        assert made.wants(b"state/a/n/")
        subscribers.pop().close(linger=0)
        hear_until(xpub, made, others)
    assert not made.wants(b"state/a/n/")


def test_a_real_peer_cannot_unsubscribe_others(xpub: Socket, plain: zmq.Context[Socket]) -> None:
    """XPUB passes on what it says, though the subscription stays: so does the publisher's. It is not even an error."""
    made = Publisher()
    subscribed = subscriber(plain, xpub, b"state/")
    hear_until(xpub, made, 1)
    with closing(say(xpub, b"\0state/")):
        hear(xpub, made)
    assert made.wants(b"state/a/n/")
    xpub.send_multipart([b"state/a/n/", b"the event"])
    assert subscribed.poll(int(scaled(30) * 1000)) and subscribed.recv_multipart() == [b"state/a/n/", b"the event"]


def test_nobody_is_granted_what_another_one_wants(xpub: Socket, plain: zmq.Context[Socket]) -> None:
    """After a message that is no subscription XPUB would grant each to who comes next. All have theirs."""
    subscribers = Subscribers(xpub, Publisher(), None, Counters())
    junk = plain.socket(zmq.XSUB)
    junk.connect(endpoint_of(xpub))
    junk.send(b"\2")
    assert xpub.poll(int(scaled(30) * 1000))
    standing = [unfiltered(plain, xpub, prefix) for prefix in (b"state/", b"common/")]
    sleep(0.2)  # they are all there when they are heard; otherwise there is nothing to be confused
    assert xpub.poll(0)

    def have_all_heard() -> bool:
        subscribers.hear()
        for topic in (b"state/a/n/", b"common/a/n/"):
            xpub.send_multipart([topic, b"the event"])
        return all(each.poll(50) for each in standing)

    wait_for(have_all_heard)
    topics = [{each.recv_multipart()[0] for _ in iter(partial(each.poll, 50), 0)} for each in standing]
    assert topics == [{b"state/a/n/"}, {b"common/a/n/"}]


def test_nobody_else_is_hung_up_on(xpub: Socket, plain: zmq.Context[Socket]) -> None:
    """Who has left has also left its descriptor, to another connection of this process say."""
    made = Publisher()
    subscribers = Subscribers(xpub, made, None, Counters())
    leaving = subscriber(plain, xpub, b"state/")
    assert xpub.poll(int(scaled(30) * 1000))
    subscribers.hear()
    [descriptor] = subscribers._connections
    leaving.close(linger=0)
    wait_for(lambda: not os.path.exists(f"/proc/self/fd/{descriptor}"))
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection(server.getsockname())) for _ in range(20)]
        assert descriptor in {other.fileno() for other in others}
        subscribers.hang_up()
        for other in others:
            other.sendall(b"as before")
