"""The codec of events and answers, checked against docs/wire.md and by an independent reader of CloudEvents.

Whatever else may come to it: see test_fuzz_events.py.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cf_messaging import wire
from cf_messaging.wire import Answer, Event, Malformed, decode_answer, decode_event, encode_answer, encode_event
from demo import REPOSITORY
from peers import scaled

WIRE = (REPOSITORY / "docs/wire.md").read_text()
STREAM = "0123456789abcdef" * 2
ID = f"{STREAM}-000000000012"
TIME = "2026-11-24T12:00:00.123456Z"
PLAIN = Event(ID, "static", "web1", "facts", TIME, {"a": [1, "é"]})
STORED = Answer(ID, "S", 12, "stored")


def table(columns: str) -> list[list[str]]:
    """The rows of the table of docs/wire.md that has these columns."""
    (found,) = re.findall(rf"^\| {re.escape(columns)} \|\n\|---.*\n((?:\|.*\n)+)", WIRE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


def fields_of(frame: bytes) -> dict[str, Any]:
    return dict(json.loads(frame))


def frame_of(**changes: Any) -> bytes:
    """A sound event with other fields; ... leaves one out."""
    fields = {**fields_of(encode_event(PLAIN)), **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def refusal(decode: Callable[[bytes], object], frame: bytes) -> Malformed:
    """With what a frame is refused; always in words, in one line."""
    with pytest.raises(Malformed) as caught:
        decode(frame)
    assert str(caught.value) and len(str(caught.value)) < 400
    return caught.value


# ---- the page and the code


def test_the_fields_of_events_are_those_of_the_page() -> None:
    """An event has every field of the table, those that are not required only where they are given."""
    rows = {row[0].strip("`"): row[-1] for row in table("field | value | required")}
    whole = PLAIN._replace(policy="/p.cf:12", handle="h", refresh=60)
    assert set(fields_of(encode_event(whole))) == set(rows)
    assert set(fields_of(encode_event(PLAIN))) == {name for name, required in rows.items() if required == "yes"}


def test_the_kinds_are_those_of_the_page() -> None:
    """Names, and what is kept of whom."""
    rows = {row[0].strip("`"): row[1:] for row in table("`type` ends in | what is kept | of whom")}
    assert list(rows) == list(wire.KINDS)
    for name, (kept, whom) in rows.items():
        kind = wire.KINDS[name]
        assert kind.name == name
        assert kind.history == ("before" in kept) and kind.single == ("one node" in whom)
        assert kind.remembered == (name != "state")


def test_the_limits_are_those_of_the_page() -> None:
    """Each limit of the table has its value in the code."""
    for name, value, _ in table("name | value | why"):
        limit = int(value.replace(",", ""))
        if name.strip("`") == "MAX_NODE_BYTES":
            wire.check_node("n" * limit)
            with pytest.raises(ValueError, match=r"253"):
                wire.check_node("n" * (limit + 1))
        else:
            assert getattr(wire, name.strip("`")) == limit, name


def test_the_statuses_are_those_of_the_page() -> None:
    """Each status has the fields that the page gives it."""
    statuses = [row[0].strip("`") for row in table("`status` | means | the node")]
    assert statuses == [wire.STORED, wire.DUPLICATE, wire.ANSWERED, wire.REFUSED, wire.LATER]
    enrolling = [row[0].strip("`") for row in table("`status` here | means | the node")]
    assert enrolling == [wire.CHALLENGED, wire.ENROLLED, wire.WAITS, wire.REFUSED, wire.LATER]
    common = {"id", "store", "have", "status"}
    more = {"answered": {"view", "rows", "time"}, "refused": {"reason"}, "later": {"reason", "retry_after"}}
    more |= {"challenged": {"challenge"}, "waits": {"reason"}}
    for status in (*statuses, *enrolling):
        answer = Answer(ID, "S", 1, status, "why", 2, "v", [], TIME, "00")
        assert set(fields_of(encode_answer(answer))) == common | more.get(status, set())


# ---- round trips

texts = st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=50)
streams = st.text("0123456789abcdef", min_size=32, max_size=32)
ids = st.builds(wire.event_id, streams, st.integers(1, 10**12 - 1))
nodes = st.from_regex(r"[A-Za-z0-9._:-]{1,253}", fullmatch=True)
times = st.from_regex(
    r"2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z",
    fullmatch=True,
)
optional = {
    "policy": st.none() | texts,
    "handle": st.none() | texts,
    "refresh": st.none() | st.integers(1, wire.MAX_REFRESH_S),
}
events = st.builds(Event, ids, st.sampled_from(list(wire.KINDS)), nodes, names, times, values, **optional)
questions = st.builds(
    Event,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.just("view"),
    nodes,
    names,
    times,
    st.dictionaries(texts, values, max_size=4),
)
haves = st.integers(0, 10**12 - 1)
answers = st.one_of(
    st.builds(Answer, texts, texts, haves, st.sampled_from(["stored", "duplicate"])),
    st.builds(Answer, texts, texts, haves, st.just("refused"), texts),
    st.builds(Answer, texts, texts, haves, st.just("later"), texts, st.integers(0, 3600) | st.floats(0, 3600)),
    st.builds(
        Answer,
        texts,
        texts,
        haves,
        st.just("answered"),
        st.none(),
        st.none(),
        names,
        st.lists(st.dictionaries(texts, values, max_size=3), max_size=3),
        texts,
    ),
)


@given(event=events | questions)
def test_an_event_comes_back(event: Event) -> None:
    """What is encoded is decoded to the same, and encoded to the same bytes again."""
    frame = encode_event(event)
    assert decode_event(frame) == event and encode_event(decode_event(frame)) == frame


@given(answer=answers)
def test_an_answer_comes_back(answer: Answer) -> None:
    """Likewise."""
    frame = encode_answer(answer)
    assert decode_answer(frame) == answer and encode_answer(decode_answer(frame)) == frame


@given(stream=streams, sequence=st.integers(1, 10**12 - 1))
def test_an_id_comes_back(stream: str, sequence: int) -> None:
    """Ids of one stream are ordered as text."""
    assert wire.parse_id(wire.event_id(stream, sequence)) == (stream, sequence)
    assert wire.event_id(stream, sequence) < wire.event_id(stream, sequence + 1) or sequence + 1 == 10**12


@given(value=values)
def test_one_text_of_a_value(value: Any) -> None:
    """Equal values have one text, whatever the order of their keys; another text is another value."""

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(each) for each in value] if isinstance(value, list) else value

    assert wire.canonical(turned(value)) == wire.canonical(value)
    assert json.loads(wire.canonical(value)) == value


def test_what_has_no_text() -> None:
    """NaN and infinity have none; a list in another order has another one."""
    for value in (math.nan, math.inf, [{"a": -math.inf}]):
        with pytest.raises(ValueError, match=r"JSON"):
            wire.canonical(value)
    assert wire.canonical([1, 2]) != wire.canonical([2, 1]) and wire.canonical(1) != wire.canonical("1")


# ---- what an event must be

SOUND: list[dict[str, Any]] = [
    {"unknown": {"a": 1}},
    {"source": "cfengine://" + "n" * 253},
    {"source": "cfengine://a.b_c-d:1"},
    {"subject": "x" * 200},
    {"subject": "é" * 100},
    {"subject": "two words"},
    {"type": "cfengine.messages.view", "id": "x" * 80},
    {"type": "cfengine.messages.view", "id": "é" * 40},
    {"time": "2024-02-29T23:59:59Z"},
    {"time": "2024-02-29T23:59:59.123456789Z"},
    {"data": None},
    {"data": "text"},
    {"data": "text", "datacontenttype": "text/plain"},
    {"refresh": 1},
]


@pytest.mark.parametrize("changes", SOUND, ids=str)
def test_sound_events(changes: dict[str, Any]) -> None:
    """They are read, whatever fields nobody knows."""
    event = decode_event(frame_of(**changes))
    assert event.data == changes.get("data", PLAIN.data) and event.refresh == changes.get("refresh")


UNSOUND: dict[str, list[Any]] = {
    "specversion": [..., None, 1.0, "0.3", "1.1", ""],
    "id": [..., None, 7, "", "x", STREAM, f"{STREAM}-12", f"{STREAM}-0000000000012", ID.upper(), f"{ID}\n", f" {ID}"],
    "source": [
        ...,
        None,
        7,
        "",
        "web1",
        "cfengine://",
        "http://web1",
        "cfengine://a b",
        "cfengine://" + "n" * 254,
        "cfengine://é",
        "cfengine://a/b",
        "cfengine://a\n",
    ],
    "type": [
        ...,
        None,
        7,
        "",
        "static",
        "cfengine.messages.",
        "cfengine.messages.STATIC",
        "cfengine.messages.enroll",
        "org.example.static",
    ],
    "subject": [..., None, 7, "", "x" * 201, "é" * 101, "a\nb", "a\0", "\x7f", "a\x85", [], "x" * 10_000],
    "time": [
        ...,
        None,
        7,
        "",
        "2026-11-24",
        "2026-11-24T12:00:00",
        "2026-11-24T12:00:00+00:00",
        "24.11.2026",
        "2026-11-24 12:00:00Z",
        "2026-13-24T12:00:00Z",
        "2026-11-32T12:00:00Z",
        "2026-11-24T25:00:00Z",
        f"{TIME}\n",
        "2026-11-24T12:00:00.Z",
    ],
    "datacontenttype": [..., None, 7, "", "text/html", "application/JSON", ["application/json"], {}],
    "data": [...],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in UNSOUND for value in UNSOUND[field]], ids=repr
)
def test_unsound_events(field: str, value: Any) -> None:
    """Each is refused in words that name what is wrong, with the id where that is text."""
    malformed = refusal(decode_event, frame_of(**{field: value}))
    words = {"type": "type", "subject": "name|subject", "source": "node|source", "id": "id"}
    assert re.search(words.get(field, field), str(malformed)), str(malformed)
    own = value if field == "id" and isinstance(value, str) and len(value) <= 80 else "" if field == "id" else ID
    assert malformed.id == own


def test_unsupported_types() -> None:
    """A type that is not known is refused in the words that the page promises."""
    malformed = refusal(decode_event, frame_of(type="cfengine.messages.weather"))
    assert str(malformed).startswith("unsupported type") and "weather" in str(malformed)


@pytest.mark.parametrize("id", ["", "x" * 81, "é" * 41])
def test_ids_of_views(id: str) -> None:
    """Of 1 to 80 bytes."""
    refusal(decode_event, frame_of(type="cfengine.messages.view", id=id))


@pytest.mark.parametrize("data", [None, 1, "x", [{}]])
def test_parameters_are_an_object(data: Any) -> None:
    """Of a view; and text/plain is a string."""
    assert "object" in str(refusal(decode_event, frame_of(type="cfengine.messages.view", data=data)))
    if not isinstance(data, str):
        assert "string" in str(refusal(decode_event, frame_of(datacontenttype="text/plain", data=data)))


@pytest.mark.parametrize("sequence", [0])
def test_sequences_begin_with_1(sequence: int) -> None:
    """The page: counted in the stream from 1."""
    refusal(decode_event, frame_of(id=wire.event_id(STREAM, sequence)))


@pytest.mark.parametrize("refresh", [0, -1, 10**30])
def test_a_refresh_that_no_clock_has(refresh: int) -> None:
    """It is refused."""
    assert refusal(decode_event, frame_of(refresh=refresh)).id == ID


NO_JSON = {
    "nothing": b"",
    "text": b"Hello",
    "half": encode_event(PLAIN)[:-1],
    "more": encode_event(PLAIN) + b"x",
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "text in quotes": b'"x"',
    "no UTF-8": encode_event(PLAIN).replace(b"facts", b"fa\xffts"),
    "UTF-16": encode_event(PLAIN).decode().encode("utf-16"),
    "NUL": b"\0" * 100,
    "a mark": b"\xef\xbb\xbf" + encode_event(PLAIN),
    "NaN": encode_event(PLAIN).replace(b"[1,", b"[NaN,"),
    "Infinity": encode_event(PLAIN).replace(b"[1,", b"[-Infinity,"),
    "half a pair": encode_event(PLAIN).replace(b"facts", b"\\ud800"),
    "half a pair in a key": encode_event(PLAIN).replace(b'"a"', b'"\\udfff"'),
    "a long number": encode_event(PLAIN).replace(b"[1,", b"[" + b"9" * 5000 + b","),
    "unescaped": encode_event(PLAIN).replace(b"facts", b"fa\nts"),
}


@pytest.mark.parametrize("case", NO_JSON)
def test_no_json(case: str) -> None:
    """What is no JSON object by the rules of the page is refused as an event and as an answer."""
    refusal(decode_event, NO_JSON[case])
    refusal(decode_answer, NO_JSON[case].replace(b'"type"', b'"status"'))


def test_the_last_of_a_key_that_appears_twice() -> None:
    """It counts, in an event, in its data and in an answer."""
    assert decode_event(encode_event(PLAIN).replace(b"{", b'{"id":"x",', 1)) == PLAIN
    assert decode_event(encode_event(PLAIN).replace(b'{"a":', b'{"a":1,"a":')) == PLAIN
    assert decode_answer(encode_answer(STORED).replace(b"{", b'{"status":"later",', 1)) == STORED


def nested(depth: int, opened: str = "[", closed: str = "]") -> bytes:
    return (opened * depth + "1" + closed * depth).encode()


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_depth(opened: str, closed: str) -> None:
    """64 levels, the event's own included, are read, one more is refused; a million are refused without a crash."""
    frame = encode_event(PLAIN._replace(data=7)).decode()

    def event(depth: int) -> bytes:
        return frame.replace(":7", ":" + nested(depth, opened, closed).decode()).encode()

    decode_event(event(wire.MAX_DEPTH - 1))
    for depth in (wire.MAX_DEPTH, 1000, 10_000):
        assert "64" in str(refusal(decode_event, event(depth)))
    refusal(decode_event, (opened * 100_000).encode())
    decode_event(encode_event(PLAIN._replace(data="[" * 1000 + '\\"{{' * 100)))  # brackets in text nest nothing


PONDER = """
import sys
from cf_messaging.wire import MAX_EVENT_BYTES, Malformed, decode_event
head, text, tail = (part.encode() for part in sys.argv[1:])
try:
    decode_event(head + text * ((MAX_EVENT_BYTES - len(head + tail)) // len(text)) + tail)
except Malformed as malformed:
    print("refused")
"""
HOSTILE = {
    "escaped quotes": ('{"a":"' + "[" * 100, '\\"', ""),
    "escaped quotes, ended": ('{"a":"' + "[" * 100, '\\"', '"'),
    "quotes": ("{" + "[" * 100, '"', ""),
    "backslashes": ('{"a":"' + "[" * 100, "\\", ""),
    "quotes and brackets": ('{"a":', '"[', ""),
    "brackets": ("", "[", ""),
    "objects": ("", '{"a":', ""),
    "digits": ('{"a":', "9", "}"),
    "blanks": ("", " ", "{}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_megabyte(case: str) -> None:
    """However brackets, quotes and escapes are mixed, an event of the full size is refused, not pondered for hours."""
    command = [sys.executable, "-c", PONDER, *HOSTILE[case]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=scaled(30))
    assert done.stdout == "refused\n"


# ---- limits


def test_the_largest_event() -> None:
    """MAX_EVENT_BYTES are encoded and decoded, one more is not."""
    room = wire.MAX_EVENT_BYTES - len(encode_event(PLAIN._replace(data="")))
    frame = encode_event(PLAIN._replace(data="x" * room))
    assert len(frame) == wire.MAX_EVENT_BYTES == 1_048_576 and len(decode_event(frame).data) == room
    with pytest.raises(ValueError, match=r"MAX_EVENT_BYTES"):
        encode_event(PLAIN._replace(data="x" * (room + 1)))
    assert "1048576" in str(refusal(decode_event, frame + b" "))


def test_the_largest_answer() -> None:
    """MAX_ANSWER_BYTES likewise."""
    answer = Answer(ID, "S", 1, "refused", "")
    room = wire.MAX_ANSWER_BYTES - len(encode_answer(answer))
    frame = encode_answer(answer._replace(reason="x" * room))
    assert len(frame) == wire.MAX_ANSWER_BYTES == 16_777_216 and len(decode_answer(frame).reason) == room
    with pytest.raises(ValueError, match=r"MAX_ANSWER_BYTES"):
        encode_answer(answer._replace(reason="x" * (room + 1)))
    refusal(decode_answer, frame + b" ")


DEEP: Any = []
for _ in range(wire.MAX_DEPTH):
    DEEP = [DEEP]
UNSPEAKABLE: list[Any] = ["\ud800", ["\udcff"], {"\udfff": 1}, math.nan, [math.inf], DEEP, {"a": DEEP}]


@pytest.mark.parametrize("data", UNSPEAKABLE, ids=lambda value: repr(value)[:20])
def test_what_no_event_can_carry(data: Any) -> None:
    """What no reader could read is not encoded: a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        encode_event(PLAIN._replace(data=data))


@given(name=st.text(st.characters(exclude_categories=()), max_size=300))
@example(name="\ud800")
@example(name="é" * 101)
def test_names(name: str) -> None:
    """A name is good if and only if it has 1 to 200 bytes of UTF-8 and no control character."""
    try:
        good = 1 <= len(name.encode()) <= 200 and not re.search(r"[\x00-\x1f\x7f-\x9f]", name)
    except UnicodeEncodeError:
        good = False
    assert accepted(wire.check_name, name) == good


@given(node=nodes | st.text(max_size=300))
def test_nodes(node: str) -> None:
    """A node is good if and only if it has 1 to 253 of the characters of the page."""
    good = 1 <= len(node) <= 253 and set(node) <= {
        *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-:"
    }
    assert accepted(wire.check_node, node) == good


def accepted(check: Callable[[str], None], text: str) -> bool:
    """Whether a check lets it pass; it says why not."""
    try:
        check(text)
    except ValueError as error:
        return not str(error)
    return True


# ---- answers


ANSWERS: dict[str, dict[str, list[Any]]] = {
    "stored": {
        "id": [..., None, 7, [], True],
        "store": [..., None, 7, {}],
        "have": [..., None, "1", 1.0, 1.5, True, -1, 10**30],
        "status": [..., None, "", "STORED", "eaten", 7, ["stored"], {}],
    },
    "refused": {"reason": [..., None, 7, []]},
    "later": {"reason": [..., None, 7], "retry_after": [..., None, "1", True, []]},
    "answered": {
        "view": [..., None, 7],
        "rows": [..., None, {}, "x", [1], [[]], [{}, None]],
        "time": [..., None, 7],
    },
}
WHOLE = {"id": ID, "store": "S", "have": 1, "reason": "why", "retry_after": 1, "view": "v", "rows": [], "time": TIME}


@pytest.mark.parametrize(
    ("status", "field", "value"),
    [(status, field, value) for status in ANSWERS for field in ANSWERS[status] for value in ANSWERS[status][field]],
    ids=repr,
)
def test_unsound_answers(status: str, field: str, value: Any) -> None:
    """A field that is missing, or of another kind, makes an answer none; the text names the field."""
    fields = {**WHOLE, "status": status}
    decode_answer(json.dumps(fields).encode())
    changed = {name: each for name, each in {**fields, field: value}.items() if each is not ...}
    assert re.search(field.replace("rows", "row"), str(refusal(decode_answer, json.dumps(changed).encode())))


def test_answers_ignore_what_they_do_not_need() -> None:
    """Unknown fields, and those of another status, whatever they are."""
    fields = {**WHOLE, "status": "stored", "reason": 7, "rows": 7, "news": [1]}
    assert decode_answer(json.dumps(fields).encode()) == Answer(ID, "S", 1, "stored")


# ---- an independent reader


@pytest.fixture(scope="module")
def cloudevents() -> Any:
    """The official package's codec of version 1.0."""
    return pytest.importorskip("cloudevents.core.formats.json", reason="cloudevents wants a newer Python").JSONFormat()


CASES = {
    "object": PLAIN._replace(policy="/p.cf:12", handle="my_handle", refresh=3600),
    "text": PLAIN._replace(kind="state", data="line 1\nline é"),
    "list": PLAIN._replace(kind="common", data=[1, None, "é", {"a": 1.5}]),
    "number": PLAIN._replace(kind="dynamic", data=7),
    "view": Event("q1", "view", "web1", "latest", TIME, {"node": "web2"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_official_package_reads_ours(cloudevents: Any, case: str) -> None:
    """Every field of an event arrives, with the value that it had."""
    event = CASES[case]
    theirs = cloudevents.read(None, encode_event(event))
    assert (theirs.get_specversion(), theirs.get_id()) == ("1.0", event.id)
    assert theirs.get_source() == "cfengine://web1" and theirs.get_subject() == event.name
    assert theirs.get_type() == f"cfengine.messages.{event.kind}"
    assert theirs.get_time().isoformat() == "2026-11-24T12:00:00.123456+00:00"
    assert theirs.get_data() == event.data
    assert theirs.get_datacontenttype() == ("text/plain" if isinstance(event.data, str) else "application/json")
    for name in ("policy", "handle", "refresh"):
        assert theirs.get_extension(name) == getattr(event, name)


@pytest.mark.parametrize("case", CASES)
def test_ours_reads_the_official_package(cloudevents: Any, case: str) -> None:
    """What it writes of such an event is the same event to us."""
    assert decode_event(cloudevents.write(cloudevents.read(None, encode_event(CASES[case])))) == CASES[case]


@given(event=events | questions)
def test_the_official_package_there_and_back(cloudevents: Any, event: Event) -> None:
    """Any event that we write, it reads and writes so that we read the same, but for parts of a microsecond."""
    assume(event.data is not None)  # it leaves null out
    assume(len(event.time) <= len(TIME) and event.policy != "" and event.handle != "")
    theirs = cloudevents.read(None, encode_event(event))
    back = decode_event(cloudevents.write(theirs))
    assert back._replace(time="") == event._replace(time="")
    assert theirs.get_data() == event.data


def test_the_page_names_this_code() -> None:
    """Who reads the page finds the codec; beside it there is only the listener's fast one, see test_codec.py."""
    assert "`cf_messaging/wire.py`" in WIRE
    knowing = [path.name for path in Path(REPOSITORY).glob("cf_mess*/*.py") if "specversion" in path.read_text()]
    assert sorted(knowing) == ["codec.py", "wire.py"]
