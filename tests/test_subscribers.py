"""Who subscribes at a cf-messaged: gets the last values at once, then each new one, and holds up nobody.

MESSAGES_SUBSCRIBERS=1000 is how many join and leave, a hundred a second.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import zmq

import fuzz
from cf_messaged.publisher import INTERVAL_S
from cf_messaging.wire import MAX_TOPIC_BYTES, STORED, Event, decode_event
from joiners import Joiners
from listener import Listener, Node, event, subscriber
from peers import Socket, scaled
from test_service import Start, start, statuses  # noqa: F401 - a fixture

Subscribe = Callable[..., Socket]
KINDS = ("static", "dynamic", "state", "common")

JOINERS = int(os.environ.get("MESSAGES_SUBSCRIBERS", "100"))
JOINERS_A_SECOND = 100
PROCESSES = 4  # that the joiners are in
VALUES = 20


@pytest.fixture
def running(start: Start) -> Listener:  # noqa: F811
    return start()


@pytest.fixture
def node(running: Listener, plain: zmq.Context[Socket]) -> Node:
    return Node(plain, running.endpoint)


@pytest.fixture
def subscribe(running: Listener, plain: zmq.Context[Socket]) -> Subscribe:
    """A plain SUB with such prefixes."""

    def subscribe(*prefixes: bytes, **options: int) -> Socket:
        subscriber = plain.socket(zmq.SUB)
        subscriber.rcvtimeo, subscriber.linger = int(scaled(30) * 1000), 0
        for name, value in options.items():
            setattr(subscriber, name, value)
        subscriber.connect(running.endpoints["subscribe"])
        for prefix in prefixes:
            subscriber.subscribe(prefix)
        return subscriber

    return subscribe


def heard(subscriber: Socket) -> Event:
    """The event of a message whose topic is the event's."""
    topic, frame = subscriber.recv_multipart()
    said = decode_event(frame)
    assert topic == f"{said.kind}/{said.name}/{said.node}/".encode()
    return said


def test_the_last_values_then_each_new_one(node: Node, subscribe: Subscribe) -> None:
    """Of every kind and node, as they were said; of what comes later each value, in order."""
    said = [event(number, kind, name=f"a {kind}", data=[number, "é"]) for number, kind in enumerate(KINDS, 1)]
    node.say_all([event(9, name="old", node="web2"), event(10, name="old", node="web2"), *said])
    late = subscribe(b"")
    last = [event(10, name="old", node="web2"), *said]
    got = sorted((heard(late) for _ in last), key=lambda each: each.id)
    assert [each._replace(time="") for each in got] == [each._replace(time="") for each in sorted(last)]
    new = [event(number, name="new", data=number) for number in range(11, 60)]
    assert set(statuses(node.say_all(new))) == {STORED}
    assert [heard(late).data for _ in new] == list(range(11, 60))


def test_what_comes_late_is_new_if_nothing_newer_is_there(
    fresh: Callable[..., str],
    start: Start,  # noqa: F811
    plain: zmq.Context[Socket],
) -> None:
    """By name: a higher number of the same stream, of another name, takes nothing from it."""
    listener = start(url=fresh())
    node, late = Node(plain, listener.endpoint), subscriber(plain, listener, None, b"")
    node.say_all([event(1, "common", "dns", "old"), event(4, name="load")])
    assert {heard(late).name for _ in range(2)} == {"dns", "load"}
    for said in (event(3, "common", "dns", "new"), event(2, "common", "dns", "older"), event(5, name="the end")):
        assert node.say(said).status == STORED
    assert [row["data"] for row in node.ask("common").rows] == ["new"]
    assert [(each.name, each.data) for each in (heard(late), heard(late))] == [("dns", "new"), ("the end", 1)]


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        (b"common/", ["dns", "é/x"]),
        (b"common/dns/", ["dns"]),
        (b"common/dns/web1/", ["dns"]),
        (b"com", ["dns", "é/x"]),
        ("common/é/".encode(), ["é/x"]),
        ("common/é".encode()[:-1], ["é/x"]),
    ],
)
def test_a_prefix(node: Node, subscribe: Subscribe, prefix: bytes, names: list[str]) -> None:
    """What begins with it, and nothing else; also where it ends in the middle of a character."""
    node.say_all([event(1, "common", name="dns"), event(2, "common", name="é/x"), event(3, name="load")])
    late = subscribe(prefix)
    assert sorted(heard(late).name for _ in names) == sorted(names)
    node.say_all([event(4, name="load"), event(5, "common", name=names[0], data="new")])
    while (said := heard(late)).data != "new":
        assert said.name in names  # again, as another one may have come


@pytest.fixture
def joiners(running: Listener) -> Iterator[list[Joiners]]:
    """In processes of their own, ready to join."""
    options = {
        "--connect": running.endpoints["subscribe"],
        "--joiners": JOINERS // PROCESSES,
        "--seconds": JOINERS / JOINERS_A_SECOND,
        "--values": VALUES,
    }
    words = [str(word) for option in options.items() for word in option]
    with ExitStack() as stack:
        yield [stack.enter_context(Joiners.start("state", *words)) for _ in range(PROCESSES)]


def test_those_who_join_and_leave_cost_a_standing_one_little(
    node: Node, subscribe: Subscribe, joiners: list[Joiners]
) -> None:
    """However many do, each gets every last value, and one that stays gets each again at most once an interval."""
    numbers = range(1, VALUES + 1)
    node.say_all(event(number, name=f"load {number}", data="old") for number in numbers)
    node.say_all(event(VALUES + number, name=f"load {number}", data=number) for number in numbers)
    standing = subscribe(b"state/", rcvhwm=0)
    assert {heard(standing).data for _ in numbers} == set(numbers)
    began_s = time.monotonic()
    join_and_leave(joiners)
    node.say(event(3 * VALUES, name="end"))
    intervals = int((time.monotonic() - began_s) / INTERVAL_S) + 1
    again = Counter(said.name for said in until_end(standing))
    most = max(again.values())
    for number in range(intervals):
        fuzz.count("intervals", *["in which a standing subscriber was said a value again"] * (number < most))
    assert again.keys() == {f"load {number}" for number in numbers}
    assert most <= intervals


def join_and_leave(joiners: list[Joiners]) -> None:
    for each in joiners:
        each.begin()
    for each in joiners:
        for _ in each.wait_for(JOINERS // PROCESSES, "left", timeout_s=120):
            fuzz.count("subscribers that joined", "left with every last value")


def until_end(subscriber: Socket) -> Iterator[Event]:
    while (said := heard(subscriber)).name != "end":
        yield said


def test_a_subscriber_that_does_not_read_stops_nobody(node: Node, subscribe: Subscribe) -> None:
    """It loses what does not fit; nodes are answered, and others get everything."""
    subscribe(b"", rcvhwm=1, rcvbuf=4096)
    reader = subscribe(b"state/")
    node.say(event(1, name="first"))
    assert heard(reader).name == "first"
    for first in range(2, 4002, 100):
        assert set(statuses(node.say_all(event(number, data="x" * 2000) for number in range(first, first + 100)))) == {
            STORED
        }
    got: set[str] = set()
    while len(got) < 4000:  # one may come again, for the subscriber that came last
        got.add(heard(reader).id)


def test_hostile_subscriptions(node: Node, running: Listener, subscribe: Subscribe) -> None:
    """Many, long, or of nothing that there is: they are harmless, and who comes then is served."""
    hostile = subscribe(
        b"\xff\xfe", b"x" * MAX_TOPIC_BYTES, *(b"state/%d" % number for number in range(12_000)), sndhwm=0
    )
    running.wait_for("127.0.0.1 has said more than 131072 bytes of subscriptions in one connection")
    assert node.say(event(1, name="load")).status == STORED
    assert heard(subscribe(b"state/load/")).name == "load"
    hostile.close()
    assert node.say(event(2, name="load")).status == STORED
    assert running.end() == 0
    assert not [line for line in running.heard if "a bug" in line]
