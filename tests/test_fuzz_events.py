"""Whatever may come as an event or as an answer, to the codec, to a cf-messaged and to a node: understood, or refused
with a reason; nobody else is harmed, and nothing is stored, or forgotten, by halves.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import pytest
import zmq
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import fuzz
from cf_messaging import wire
from cf_messaging.outcomes import Reason
from cf_messaging.promise import MessagesPromise
from cf_messaging.wire import Malformed, decode_answer, decode_event, encode_answer, encode_event
from conftest import needs_listener
from listener import HISTORY, TELLS, Listener, Node, Teller, event
from peers import Socket, scaled
from test_cfengine import wait_for
from test_exchange import in_background
from test_information import sql
from test_wire import (
    ID,
    PLAIN,
    STREAM,
    TIME,
    UNSOUND,
    WHOLE,
    answers,
    events,
    fields_of,
    frame_of,
    names,
    nested,
    questions,
    texts,
    values,
)

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")]
Fields = dict[str, Any]
T = TypeVar("T")

GIVEN = "events and answers"
ON_DISK = (wire.STORED, wire.DUPLICATE)
LINE = re.compile(r"\S+Z (info|warning): [^\x00-\x1f]+\n")  # of a log in which nothing is an error


# ---- anything, and what is almost an event or an answer

SQL = [
    "'; DROP TABLE latest; --",
    '" OR ""="',
    "1); DELETE FROM seen; --",
    "' UNION SELECT store, 1 FROM identity --",
    ":now ?1 %s {0} -- if :node",
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=20,
)
unsound = [value for each in UNSOUND.values() for value in each if value is not ...]
odd = st.sampled_from([*unsound, *SQL]) | anything
keys = st.sampled_from(["specversion", "datacontenttype", "data", "source", "type", "subject", *WHOLE, "status"])


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def changed(fields: Fields, changes: Fields) -> bytes:
    return dumped({**fields, **changes})


def without(fields: Fields, name: str) -> bytes:
    return dumped({key: value for key, value in fields.items() if key != name})


def spliced(frame: bytes, at: int, gone: int, new: bytes) -> bytes:
    at %= len(frame) + 1
    return frame[:at] + new + frame[at + gone :]


nonsense = st.one_of(st.binary(), st.text('{}[]":,\\u0d8 \n', max_size=200).map(str.encode), anything.map(dumped))


def weighed(*choices: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """One of these, so many times as often as another; one_of() counts a strategy that is there twice once."""
    return st.sampled_from([choice for times, choice in choices for _ in range(times)]).flatmap(lambda choice: choice)


def almost(sound: st.SearchStrategy[Fields]) -> st.SearchStrategy[bytes]:
    """With a few other fields, without one, with other bytes somewhere, or just sound."""
    return st.one_of(
        st.builds(changed, sound, st.dictionaries(keys, odd, max_size=3)),
        st.builds(without, sound, keys),
        st.builds(spliced, sound.map(dumped), st.integers(0, 500), st.integers(0, 9), st.binary(max_size=9)),
        sound.map(dumped),
    )


def mangled(frame: bytes, lot: random.Random) -> bytes:
    """With some of it cut off, left out, said twice, or overwritten."""
    begin, end = sorted(lot.randrange(len(frame) + 1) for _ in "12")
    if lot.random() < 0.7:
        end = min(end, begin + 9)
    ways = (
        frame[:begin],
        frame[:begin] + frame[end:],
        frame[:end] + frame[begin:],
        frame[:begin] + lot.choice(SIGNS).encode("utf-8", "surrogateescape") + frame[begin:],
        frame[:begin] + bytes([lot.randrange(256)]) + frame[begin + 1 :],
    )
    return lot.choice(ways)


SIGNS = '\0 \n " \\ \\u {} {"": [ ]] , : é NaN 1e999 null \u2028 \udcff'.split(" ")
# Of each that hypothesis makes, so many are made that are nearly the same: it takes its time for the first.
MORE = 9
lots = st.randoms(use_true_random=True)
LOT = random.Random(1)
a_half = settings(max_examples=max(1, settings().max_examples // 2))


# ---- to the codec


def read(frame: bytes) -> None:
    """Both decoders: what they return can be encoded again, or they say why not."""
    fuzz.count(GIVEN, "to the codec")
    for decode, encode, kind in ((decode_event, encode_event, "events"), (decode_answer, encode_answer, "answers")):
        try:
            decoded: Any = decode(frame)
        except Malformed as malformed:
            decoded = malformed
        if isinstance(decoded, Malformed):
            assert str(decoded) and isinstance(decoded.id, str) and len(decoded.id) <= 80
        else:
            fuzz.count("read by the codec", kind)
            assert decode(encode(decoded)) == decoded  # it can be stored, and said again to the same effect


any_frame = weighed(
    (1, nonsense),
    (2, almost((events | questions).map(encode_event).map(fields_of))),
    (2, almost(answers.map(encode_answer).map(fields_of))),
)


@given(frame=any_frame, lot=lots)
@example(frame=encode_event(PLAIN).replace(b"[1,", b"[1e999,"), lot=LOT)
@example(frame=frame_of().replace(b"[1,", b"[1e999,"), lot=LOT)
@example(frame=frame_of(data="\x00").replace(b"facts", b"f\\u0061cts").replace(b'"\\u0000"', b"1e999"), lot=LOT)
@example(frame=dumped({**WHOLE, "status": "answered", "rows": [{"a": 10**400}]}), lot=LOT)
@example(frame=dumped({**WHOLE, "status": "later", "retry_after": 10**400}), lot=LOT)
@example(frame=dumped({**WHOLE, "status": "stored", "have": 10**400}), lot=LOT)
def test_any_frame(frame: bytes, lot: random.Random) -> None:
    """Whatever comes is an event or an answer that can be said again, or Malformed; nothing else is ever raised."""
    fuzz.watch()
    read(frame)
    for _ in range(MORE):
        read(mangled(frame, lot))


# ---- to a cf-messaged


class Message(NamedTuple):
    """frames: those that come after the number that each message has. blanks: at the end of the last one."""

    kind: str
    frames: list[bytes]
    blanks: int = 0

    def varied(self, lot: random.Random) -> Message:
        """Mangled; what is sound is only said with another id, every other time."""
        if self.kind == SOUND and lot.random() < 0.5:
            id = wire.event_id(f"{lot.getrandbits(128):032x}", lot.randrange(1, 10**12)).encode()
            return Message(SOUND, [*self.frames[:-1], re.sub(rb"[0-9a-f]{32}-[0-9]{12}", id, self.frames[-1])])
        return Message("mangled", [*self.frames[:-1], mangled(self.frames[-1], lot)])


few_nodes = st.sampled_from(["web1", "web2", "a.b_c-d:1"])
# Some are said again, by the same node or by another.
known_ids = st.builds(wire.event_id, st.sampled_from([STREAM, STREAM[::-1]]), st.integers(1, 9))
new_ids = st.builds(wire.event_id, st.binary(min_size=16, max_size=16).map(bytes.hex), st.integers(1, 10**12 - 1))
words = st.sampled_from(SQL) | texts
said_names = st.sampled_from(["load", "os", *SQL]) | names
said_values = values | st.dictionaries(st.sampled_from(SQL), st.sampled_from(SQL), max_size=2)
sound_events = st.builds(
    wire.Event,
    weighed((1, known_ids), (4, new_ids)),
    st.sampled_from(list(wire.KINDS)),
    few_nodes,
    said_names,
    st.just(TIME),
    said_values,
    st.none() | words,
    st.none() | words,
    st.none() | st.integers(1, wire.MAX_REFRESH_S),
)
# Views and their parameters, and what is no value of them; the last two have no such parameter.
WRONG: dict[tuple[str, str], list[Any]] = {
    ("nodes", "alive_within"): [None, True, [], {}, "x", "1e5", 10**400, *SQL],
    ("latest", "alive"): [1, 0.5, [], {}, "", "perhaps", *SQL],
    ("latest", "node"): [1, 0.5, True, [], {}, ["web1"], "web1\0"],
    ("history", "limit"): [None, 1.5, True, [], {}, "x", 2**63, *SQL],
    ("history", "since"): [1, True, [], {}, "", "yesterday", "2026-02-30T00:00:00Z", *SQL],
    ("common", "nmae"): [None, "ntp", 1, [], *SQL],
    ("silent", "now"): [None, 1, *SQL],
}


def asked(view: str, parameters: Fields) -> wire.Event:
    return wire.Event("q", wire.VIEW, "web1", view, TIME, parameters)


asked_words = words.filter(lambda text: "\0" not in text)
sound_questions = st.one_of(
    st.builds(lambda node: asked("latest", {"node": node}), few_nodes | asked_words),
    st.builds(lambda name: asked("history", {"name": name, "limit": 20}), said_names | asked_words),
    st.builds(lambda name: asked("common", {"name": name}), said_names | asked_words),
    st.builds(asked, st.sampled_from(["nodes", "silent"]), st.just({})),
)
sound = weighed((9, sound_events), (1, sound_questions)).map(encode_event).map(fields_of)
other_versions = st.sampled_from(["0.3", "1.1", "2.0", "", 1.0, 1, None, *SQL]) | anything
foreign = st.builds(
    lambda fields, version: changed(fields, {"specversion": version if version != "1.0" else 1.0}),
    sound,
    other_versions,
)
long_names = st.builds(
    lambda fields, name, before, text, size: changed(fields, {name: before + text * (size // len(text) + 1)}),
    sound,
    st.sampled_from(["subject", "source"]),
    st.sampled_from(["", "cfengine://"]),
    st.sampled_from(["x", "é", *SQL]),
    st.integers(10_000, 20_000),
)
too_many = st.integers(wire.MAX_EVENT_BYTES, wire.MAX_EVENT_BYTES * 3 // 2)
deep = st.builds(
    lambda fields, depth, brackets: dumped({**fields, "data": "DEEP"}).replace(b'"DEEP"', nested(depth, *brackets)),
    sound,
    st.sampled_from([10_000, 64, 65, 1000]) | st.integers(64, 10_000),
    st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")]),
)
twice = st.builds(
    lambda fields, name, value: (
        dumped(fields)[:-1] + b"," + dumped({name: fields[name] if value is ... else value})[1:]
    ),
    sound,
    st.sampled_from(["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"]),
    st.just(...) | odd,
)
twice_in_data = st.builds(
    lambda fields, value: changed(fields, {"data": "TWICE"}).replace(b'"TWICE"', b'[{"a":1,"a":%s}]' % dumped(value)),
    sound_events.map(encode_event).map(fields_of),
    values,
)
not_utf8 = st.builds(
    lambda fields, name, bad: changed(fields, {name: "BAD"}).replace(b"BAD", bad),
    sound,
    st.sampled_from(["id", "source", "subject", "data", "handle", "unknown"]),
    st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\\ud800", b"\\udfff\\ud800"]),
)
no_views = (said_names | st.sampled_from(["../sql/nodes", "nodes.sql", "/etc/passwd", "LATEST"])).map(
    lambda name: encode_event(asked(name, {}))
)
wrong_parameters = st.sampled_from(
    [encode_event(asked(view, {name: value})) for (view, name), each in WRONG.items() for value in each]
)
some = st.one_of(nonsense, sound.map(dumped)).filter(bool)


def enveloped(kind: str, bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[Message]:
    return bodies.map(lambda body: Message(kind, [b"", body]))


def otherwise(kind: str, frames: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[Message]:
    return frames.map(lambda frames: Message(kind, frames))


# What is always refused.
BAD = {
    "no event": nonsense,
    "a foreign specversion": foreign,
    "a name of 10 kB": long_names,
    "nested deeply": deep,
    "no UTF-8": not_utf8,
    "an unknown view": no_views,
    "wrong parameters": wrong_parameters,
}
BAD_FRAMES = {
    "no delimiter": st.lists(some, min_size=1, max_size=3),
    "several frames": st.lists(some | st.just(b""), min_size=2, max_size=4).map(lambda frames: [b"", *frames]),
    "no frame": st.sampled_from([[b""], [b"more", b""]]),
}
TOO_LARGE, SOUND, ALMOST = "too large", "sound", "almost sound"
ANOTHER_NUMBER, QUESTION = "another number of frames", "a question"  # where nobody is answered
ALWAYS_REFUSED = {*BAD, *BAD_FRAMES, TOO_LARGE, ANOTHER_NUMBER, QUESTION}
messages = weighed(
    *[(2, enveloped(kind, bodies)) for kind, bodies in BAD.items()],
    *[(2, otherwise(kind, frames)) for kind, frames in BAD_FRAMES.items()],
    (1, st.builds(Message, st.just(TOO_LARGE), sound.map(lambda fields: [b"", dumped(fields)]), too_many)),
    (10, enveloped(ALMOST, almost(sound))),
    (2, enveloped(ALMOST, twice | twice_in_data)),  # the last counts
    (10, enveloped(SOUND, sound.map(dumped))),
    (1, otherwise(SOUND, sound.map(dumped).map(lambda body: [b"more", b"", body]))),
)
_ID = "streams.stream || '-' || printf('%012d', sequence)"
OF_SEEN = f"SELECT streams.node, {_ID} FROM seen JOIN streams ON streams.id = stream_id"
OF_HISTORY = f"SELECT node, id, kind, name, data FROM {HISTORY}"
OF_LATEST = f"SELECT latest.node, {_ID}, kind, name, data FROM latest JOIN streams ON streams.id = stream_id"
OF_NODES = "SELECT node, events FROM nodes WHERE events > 0"


class Store:
    """What a cf-messaged said that it stored, beside what is in its store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: dict[tuple[str, str], tuple[str, ...]] = {}  # by node and id

    def note(self, body: bytes, status: str) -> None:
        said = json.loads(body)
        node, kind = said["source"].partition("://")[2], said["type"].rpartition(".")[2]
        assert ((node, said["id"]) in self._said) == (status == wire.DUPLICATE)
        row = node, said["id"], kind, said["subject"], wire.canonical(said["data"])
        self._said.setdefault((node, said["id"]), row)

    def check(self) -> None:
        """All of it is there once, as it was said, and nothing else."""
        said, latest = self._said.values(), rows_of(self._path, OF_LATEST)
        assert sorted(sql(self._path, OF_SEEN)) == sorted(self._said)
        assert sorted(rows_of(self._path, OF_HISTORY)) == sorted(row for row in said if row[2] in ("dynamic", "state"))
        assert dict(sql(self._path, OF_NODES)) == Counter(node for node, _ in self._said)
        assert set(latest) <= set(said)
        assert sorted(map(of_whom, latest)) == sorted(set(map(of_whom, said)))
        common = [name for _, _, kind, name, _ in latest if kind == "common"]
        assert len(common) == len(set(common))


def rows_of(path: Path, query: str) -> list[tuple[str, ...]]:
    """The same value may be written otherwise."""
    return [(*row, wire.canonical(json.loads(data))) for *row, data in sql(path, query)]


def of_whom(row: tuple[str, ...]) -> tuple[str, ...]:
    node, _, kind, name, _ = row
    return node, kind, name


class Speaker:
    """Says anything to a cf-messaged, while another node says sound events."""

    def __init__(self, context: zmq.Context[Socket], listener: Listener) -> None:
        self.store = Store(listener.store)
        self._context, self._endpoint = context, listener.endpoint
        self._other = Node(context, listener.endpoint)
        self._numbers = count(1)

    def say(self, said: list[Message]) -> None:
        """All at once; returns when each was answered, once, and so were the sound events beside them."""
        node, half = Node(self._context, self._endpoint), len(said) // 2
        unanswered: defaultdict[tuple[bytes, ...], list[Message]] = defaultdict(list)  # by envelope
        with closing(node.socket):
            for message in said[:half]:
                unanswered[self._send(node, message)].append(message)
            self._other.send(self._sound())
            for message in said[half:]:
                unanswered[self._send(node, message)].append(message)
            for _ in said:
                assert node.socket.poll(int(scaled(30_000))), (
                    f"not answered: {[each for each in unanswered.values() if each]}"
                )
                *envelope, frame = node.socket.recv_multipart()
                self._check(unanswered[tuple(envelope)].pop(), decode_answer(frame))
            assert self._other.receive()[1].status == wire.STORED
            assert node.say(self._sound()).status == wire.STORED  # and nothing else was said twice before that

    def _sound(self) -> wire.Event:
        sound = event(next(self._numbers), node="other")
        self.store.note(encode_event(sound), wire.STORED)
        return sound

    def _send(self, node: Node, message: Message) -> tuple[bytes, ...]:
        """Returns the envelope of the answer: all up to the empty frame."""
        frames = [b"n%d" % next(self._numbers), *message.frames]
        frames[-1] += b" " * message.blanks
        node.socket.send_multipart(frames)
        fuzz.count(GIVEN, "to a cf-messaged")
        fuzz.count("said to a cf_messaged", message.kind)
        return tuple(frames[: frames.index(b"") + 1] if b"" in frames else [])

    def _check(self, message: Message, answer: wire.Answer) -> None:
        fuzz.count("answered by a cf_messaged", answer.status)
        check_answer(message, answer)
        if answer.status in ON_DISK:
            assert answer.id
            self.store.note(message.frames[-1], answer.status)


def check_answer(message: Message, answer: wire.Answer) -> None:
    """Bad is refused; sound is not, but for what the other node or an earlier event has taken."""
    if message.kind in ALWAYS_REFUSED:
        assert answer.status == wire.REFUSED
    elif message.kind == SOUND:
        assert answer.status != wire.REFUSED or re.search("^promised by|is .* a clone", answer.reason)
    assert answer.status in (*ON_DISK, wire.ANSWERED) or answer.reason
    # Nothing is wrong with the store; and these do not wait for one answer before the next question.
    assert answer.status != wire.LATER or "views of this node wait already" in answer.reason
    assert answer.id in ("", id_of(message.frames[-1]))


def id_of(body: bytes) -> Any:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return fields.get("id") if isinstance(fields, dict) else ""


@needs_listener
def test_a_cf_messaged(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """Whatever it is sent, by one node among others, is answered; what it stores is what it says that it stores."""
    listener = Listener(tmp_path)
    speaker = Speaker(plain, listener)

    @given(said=st.lists(messages, min_size=5, max_size=15), lot=lots)
    @settings(a_half, phases=[Phase.generate])  # each builds on those before, so none can be told apart and shrunk
    def say(said: list[Message], lot: random.Random) -> None:
        fuzz.watch()
        speaker.say([*said, *(message.varied(lot) for message in said for _ in range(MORE))])

    with ending_well(listener):
        say()
        speaker.store.check()
        assert Node(plain, listener.endpoint).ask("nodes").status == wire.ANSWERED


@contextmanager
def ending_well(listener: Listener) -> Iterator[None]:
    """It ends by itself when it is told to, and nothing in its log is an error."""
    try:
        yield
    finally:
        status = listener.end()
    assert status == 0
    assert [line for line in listener.heard if not LINE.fullmatch(line)] == []


# ---- to a cf-messaged, where nobody is answered

# Of each socket, the kind of a socket that may say something there.
FITTING = {"request": zmq.DEALER, "push": zmq.PUSH, "publish": zmq.XPUB, "subscribe": zmq.XSUB}
ALL_SOCKETS = ("--pair", "tcp://127.0.0.1:*", "--metrics", "127.0.0.1:0")
VERDICTS = (wire.STORED, "duplicates", "malformed", "cloned", "promised", wire.REFUSED)  # as they are counted


class Told(NamedTuple):
    """message: with all its frames, the topic among them."""

    role: str
    message: Message


def told_by(role: str) -> st.SearchStrategy[Told]:
    topic = [st.binary(max_size=300) | said_names.map(str.encode)] if role == "publish" else []

    def framed(kind: str, bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[Message]:
        return st.tuples(*topic, bodies).map(lambda frames: Message(kind, list(frames)))

    frames = st.lists(some | st.just(b""), min_size=1, max_size=4).filter(lambda each: len(each) != len(topic) + 1)
    large = st.tuples(framed(TOO_LARGE, sound.map(dumped)), too_many)
    return weighed(
        *[(1, framed(kind, bodies)) for kind, bodies in BAD.items()],
        (1, framed(QUESTION, sound_questions.map(encode_event))),
        (1, large.map(lambda pair: pair[0]._replace(blanks=pair[1]))),
        (2, otherwise(ANOTHER_NUMBER, frames)),
        (6, framed(ALMOST, almost(sound) | twice | twice_in_data)),
        (6, framed(SOUND, sound_events.map(encode_event))),
    ).map(lambda message: Told(role, message))


tellings = st.one_of([told_by(role) for role in TELLS])


def counted(listener: Listener) -> Counter[str]:
    """What it counts, by the name of a counter or, where it has labels, by its label."""
    from test_metrics import scrape  # wants cf-messaged's packages

    found = {
        (re.fullmatch("cf_messaged_(.*)_total", name), label): int(value)
        for (name, label), value in scrape(listener.endpoints["metrics"]).items()
    }
    return Counter({label or name[1]: value for (name, label), value in found.items() if name})


class Tellers:
    """Tell a cf-messaged anything where nobody is answered, while a node says sound events."""

    def __init__(self, context: zmq.Context[Socket], listener: Listener) -> None:
        self._listener = listener
        self._node = Node(context, listener.endpoint)
        self._tellers = {role: Teller(context, listener, role) for role in TELLS}
        self._numbers = count(1)
        self._said: Counter[str] = Counter()  # by role
        self._bad = self._no_doubt = 0  # what has to be refused as malformed, and what must not be
        self._rows: set[tuple[str, ...]] = set()
        self._sound: set[tuple[str, ...]] = set()  # node and id of what nothing can refuse

    def tell(self, told: list[Told]) -> None:
        """All at once, and a sound event on each socket; returns when all of it was stored or refused."""
        sound_ones = [Told(role, Message(SOUND, [b""] * (role == "publish") + [self._next()])) for role in TELLS]
        for role, message in [*told, *sound_ones]:
            *before, body = message.frames
            body += b" " * message.blanks
            self._tellers[role].socket.send_multipart([*before, body])
            self._note(role, message, body)
        requested = self._next()
        assert self._node.say(requested).status == wire.STORED
        self._note("request", Message(SOUND, [requested]), requested)
        wait_for(lambda: self._settled() == sum(self._said.values()))

    def check(self) -> None:
        """Each was counted once, as stored or as refused; what is stored is what was told."""
        found, seen = counted(self._listener), set(sql(self._listener.store, OF_SEEN))
        assert {role: found[role] for role in self._said} == self._said
        assert found["later"] == found["lost"] == 0
        assert self._bad <= found["malformed"] <= sum(self._said.values()) - self._no_doubt
        assert found["stored"] == len(seen) and self._sound <= seen <= {row[:2] for row in self._rows}
        for query in (OF_HISTORY, OF_LATEST):
            assert self._rows.issuperset(rows_of(self._listener.store, query))

    def _settled(self) -> int:
        found = counted(self._listener)
        return sum(found[verdict] for verdict in VERDICTS)

    def _next(self) -> bytes:
        return encode_event(event(next(self._numbers), node="other"))

    def _note(self, role: str, message: Message, body: bytes) -> None:
        self._said[role] += 1
        fuzz.count(GIVEN, "to a cf-messaged that does not answer")
        fuzz.count("told a cf_messaged", f"by {role}", message.kind)
        said = event_of(message, body) if len(message.frames) == 1 + (role == "publish") else None
        if said is None:
            self._bad += 1
            return
        self._rows.add((said.node, said.id, said.kind, said.name, wire.canonical(said.data)))
        self._no_doubt += message.kind == SOUND
        if message.kind == SOUND and said.kind != "common":  # that another node may have promised
            self._sound.add((said.node, said.id))


def event_of(message: Message, body: bytes) -> wire.Event | None:
    """None if there is none that could be stored."""
    with suppress(Malformed):
        said = decode_event(body)
        if message.kind not in ALWAYS_REFUSED and said.kind != wire.VIEW:
            return said
    return None


def say_far_too_much(context: zmq.Context[Socket], listener: Listener, role: str) -> None:
    """By somebody who is cut off for it."""
    stranger = context.socket(FITTING[role])
    stranger.linger = 0
    cut_off = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    stranger.connect(listener.endpoints[role])
    assert role != "publish" or stranger.poll(int(scaled(60_000)))  # the listener has subscribed
    stranger.send(b" " * (2 * wire.MAX_EVENT_BYTES + 1))
    assert cut_off.poll(int(scaled(60_000)))
    stranger.disable_monitor()
    stranger.close()


@needs_listener
def test_a_cf_messaged_that_does_not_answer(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """Whatever is pushed, published or said by a pair is stored, or refused and counted, with some lines of log."""
    listener = Listener(tmp_path, *ALL_SOCKETS)
    tellers = Tellers(plain, listener)

    @given(
        told=st.lists(tellings, min_size=5, max_size=15), lot=lots, role=st.sampled_from(["request", "push", "publish"])
    )
    @settings(max_examples=max(1, settings().max_examples // 4), phases=[Phase.generate])
    def tell(told: list[Told], lot: random.Random, role: str) -> None:
        fuzz.watch()
        say_far_too_much(plain, listener, role)
        varied = [each._replace(message=each.message.varied(lot)) for each in told for _ in range(MORE)]
        tellers.tell([*told, *varied])

    with ending_well(listener):
        tell()
        tellers.check()
    ended = re.search("refused ([0-9]+)", listener.heard[-1])
    assert ended and 0 < sum("warning: refused" in line for line in listener.heard) <= int(ended[1])


# ---- to a cf-messaged, which publishes

SENTINEL = b"state/load/other/"
signs = st.sampled_from([b"\1", b"\1", b"\0", b"\2", b""])
prefixes = st.one_of(
    st.sampled_from([b"", b"s", b"state/", b"state/load", b"common/", b"view/", b"state//", b"state/\0", SENTINEL]),
    st.binary(max_size=30),
    said_names.map(lambda name: f"state/{name}/".encode()[: wire.MAX_TOPIC_BYTES]),
    st.integers(wire.MAX_TOPIC_BYTES - 50, wire.MAX_TOPIC_BYTES + 50).map(lambda size: b"state/".ljust(size, b"x")),
)
subscriptions = weighed(
    (9, st.builds(bytes.__add__, signs, prefixes)),
    (1, (nonsense | sound.map(dumped)).map(lambda body: body[: wire.MAX_TOPIC_BYTES])),
)


class Subscribers:
    """Say a cf-messaged anything where it publishes; beside them is one that only wants what a node says."""

    def __init__(self, context: zmq.Context[Socket], listener: Listener) -> None:
        self._context, self._endpoint = context, listener.endpoints["subscribe"]
        self._node = Node(context, listener.endpoint)
        self._node.say_all(event(number, kind, f"a {kind}") for number, kind in enumerate(wire.KINDS, 1))
        self._sound = self._connected(zmq.SUB)
        self._sound.subscribe(SENTINEL)
        self._numbers = count(1)

    def say(self, said: list[list[bytes]]) -> None:
        """By one that comes for it; in the end it subscribes like the other, and both hear what they want alone."""
        wanted = {frame[1:] for frames in said for frame in frames if frame[:1] == b"\1"} | {SENTINEL}
        with closing(self._connected(zmq.XSUB)) as odd:
            for frames in [*said, [b"\1" + SENTINEL]]:
                odd.send_multipart(frames)
                fuzz.count(GIVEN, "to a cf-messaged that publishes")
            number = next(self._numbers)
            assert self._node.say(event(number, data=number, node="other")).status == wire.STORED
            assert all(topic.startswith(tuple(wanted)) for topic in topics_until(number, odd))
            assert topics_until(number, self._sound) == {SENTINEL}

    def _connected(self, kind: int) -> Socket:
        subscriber = self._context.socket(kind)
        subscriber.rcvtimeo, subscriber.linger = int(scaled(60) * 1000), 0
        subscriber.connect(self._endpoint)
        return subscriber


def topics_until(number: int, subscriber: Socket) -> set[bytes]:
    """What comes up to this number of the other node's."""
    topics = set()
    while True:
        topic, frame = subscriber.recv_multipart()
        topics.add(topic)
        said = decode_event(frame)
        if (said.node, said.data) == ("other", number):
            return topics


@needs_listener
def test_a_cf_messaged_that_publishes(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """Whatever its subscribers say, each hears what it wants and nothing else, and nothing of it is stored."""
    listener = Listener(tmp_path, *ALL_SOCKETS)
    subscribers = Subscribers(plain, listener)

    @given(said=st.lists(st.lists(subscriptions, min_size=1, max_size=3), min_size=20, max_size=60))
    @settings(max_examples=max(1, settings().max_examples // 10), phases=[Phase.generate])
    def say(said: list[list[bytes]]) -> None:
        fuzz.watch()
        say_far_too_much(plain, listener, "subscribe")
        subscribers.say(said)

    with ending_well(listener):
        say()
        found = counted(listener)
        assert found["stored"] == found["request"] and not any(found[role] for role in TELLS)
    assert [line for line in listener.heard if "warning" in line] == []


# ---- to a node


class Odd(NamedTuple):
    """An answer; in its bytes, "<id>" stands for the id of the event, and "<have>" for its sequence."""

    how: str
    body: bytes

    def frames(self, envelope: list[bytes], id: str) -> list[list[bytes]]:
        """The messages that it is sent as."""
        sequence = id.partition("-")[2].lstrip("0") or "0"
        body = self.body.replace(b"<id>", id.encode()).replace(b'"<have>"', sequence.encode())
        if self.how == "twice" and id.encode() in body:  # without the id, it may be an answer to what is said next
            return [[*envelope, body]] * 2
        ways = {"no envelope": [envelope[0], body], "several frames": [*envelope, body, b"more"]}
        ways["another number"] = [envelope[0], b"999999", b"", body]
        return [] if self.how == "not at all" else [ways.get(self.how, [*envelope, body])]


usual_answers = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["<id>"] * 20 + ["", ID, "<id> "]),
        "store": st.sampled_from(["S"] * 10 + ["T", ""]),
        "have": st.sampled_from(["<have>"] * 20 + [0, 1, 2, 10**12 - 1]),
        "status": st.sampled_from([*ON_DISK, wire.STORED, wire.REFUSED, wire.REFUSED, wire.LATER, wire.ANSWERED]),
        "reason": words,
        "retry_after": st.integers(0, 3600) | st.floats(0, 3600),
        "view": said_names,
        "rows": st.lists(st.dictionaries(words, values, max_size=3), max_size=3),
        "time": st.just(TIME),
    }
)
answer_bodies = weighed((1, nonsense), (2, almost(usual_answers)), (12, usual_answers.map(dumped)))
ways = st.sampled_from(
    ["as wanted"] * 24 + ["twice", "twice", "several frames", "no envelope", "another number", "not at all"]
)
odd_answers = st.builds(Odd, ways, answer_bodies)
later = {"id": "<id>", "store": "S", "have": 0, "status": wire.LATER, "reason": "the disk is full", "retry_after": 1}
PUT_OFF = Odd("as wanted", dumped(later))


class Peer:
    """Answers what nodes say with what was generated, in turn, and notes which names that settles."""

    def __init__(self, context: zmq.Context[Socket], endpoint: str) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        self._over = threading.Event()
        self._answers: Iterator[Odd] = iter(())
        self.settled: dict[str, str] = {}

    def begin(self, answers: list[Odd]) -> None:
        self._answers = cycle(answers)

    @contextmanager
    def answering(self) -> Iterator[None]:
        thread = in_background(self._serve)
        try:
            yield
        finally:
            self._over.set()
            thread.join(scaled(60))

    def _serve(self) -> None:
        while not self._over.is_set():
            if self._socket.poll(10):
                self._answer(self._socket.recv_multipart())

    def _answer(self, frames: list[bytes]) -> None:
        *envelope, body = frames
        event = json.loads(body)
        messages = next(self._answers).frames(envelope, event["id"])
        for message in messages[:1]:
            fuzz.count(GIVEN, "to a node")
            if message[:-1] == envelope:
                self.settled.update(settled(message[-1], event))
        for message in messages:
            self._socket.send_multipart(message)


def settled(answer: bytes, event: Fields) -> dict[str, str]:
    """The event's name and how it was settled, if it was: by its own id, or as what could not be read."""
    try:
        read = decode_answer(answer)
    except Malformed:
        return {}
    own = read.id == event["id"] and read.status in (*ON_DISK, wire.REFUSED)
    unread = read.id == "" and read.status == wire.REFUSED
    return {event["subject"]: read.status} if own or unread else {}


class Runs:
    """Agent runs of a node that has nothing to remember yet."""

    def __init__(self, folder: Path, endpoint: str, peer: Peer) -> None:
        self._memory, self._file, self._peer = folder / "messages/memory.db", folder / "rows", peer
        self._common = {"endpoint": endpoint, "timeout": "0.2", "node": "web1"}
        self._of = {"information": {"state_dir": str(folder)}, "view": {"file": str(self._file)}}
        self._module = MessagesPromise()
        self._said: set[str] = set()

    def close(self) -> None:
        self._module.close()

    def begin_next(self) -> None:
        self._module.close()
        self._module = MessagesPromise()

    def keep(self, name: str, attributes: Fields) -> None:
        """The outcome is one of ours; what is no more in the queue was settled."""
        before, place = self._rows(), self._of["view" if "view" in attributes else "information"]
        result, classes = self._module.evaluate_promise(name, {**self._common, **attributes, **place}, {})
        outcome = result, {each[len(name) + 1 :] for each in classes}
        fuzz.count("promises of a node", result, *outcome[1])
        if "view" in attributes:
            assert outcome[1] == {"delivered", "received"} or (is_failure(*outcome) and "local" not in outcome[1])
            assert self._rows() == before if result == "not_kept" else isinstance(json.loads(self._rows()), list)
        else:
            self._said.add(name)
            self._check_said(name, *outcome)
        assert self._said - self._waiting() <= self._peer.settled.keys()

    def _check_said(self, name: str, result: str, suffixes: set[str]) -> None:
        if result == "not_kept":
            assert is_failure(result, suffixes - {"queued"})
            assert ("queued" in suffixes) == (name in self._waiting())
        else:
            assert (result, suffixes) == ("repaired", {"delivered"}) and self._peer.settled[name] in ON_DISK

    def _rows(self) -> bytes:
        return self._file.read_bytes() if self._file.exists() else b""

    def _waiting(self) -> set[str]:
        if not self._memory.exists():
            return set()
        return {name for (name,) in sql(self._memory, "SELECT name FROM queue")}


def is_failure(result: str, suffixes: set[str]) -> bool:
    reasons = {reason.suffix for reason in Reason} & suffixes
    return result == "not_kept" and len(reasons) == 1 and suffixes == {"failed", *reasons}


information = st.builds(
    lambda kind, pattern: {"information": kind, "pattern": pattern, "payload": "said"},
    st.sampled_from(list(wire.KINDS)),
    st.sampled_from(["async_request", "async_request", "request"]),
)
promises = st.lists(weighed((5, information), (1, st.just({"view": "latest"}))), max_size=4)


def test_a_node(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """Whatever it is answered, each promise has an outcome, and what was not settled still waits."""
    endpoint = f"ipc://{tmp_path}/peer"
    peer, numbers = Peer(plain, endpoint), count()

    @a_half
    @given(before=promises, promised=promises, said=st.lists(odd_answers, min_size=5, max_size=15))
    def run(before: list[Fields], promised: list[Fields], said: list[Odd]) -> None:
        fuzz.watch()
        with TemporaryDirectory(dir=tmp_path) as folder, closing(Runs(Path(folder), endpoint, peer)) as runs:
            for attributes, answers in ((before, [PUT_OFF]), (promised, said)):
                peer.begin(answers)
                for each in attributes:
                    runs.keep(f"n{next(numbers)}", each)
                runs.begin_next()

    with peer.answering():
        run()
