"""Which promises can be kept at all: every attribute by itself, and which go together; checked against the design."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_messaging.attributes import ATTRIBUTES, COMMON_ATTRIBUTES, Curve, Promise, read_promise
from cf_messaging.patterns import PATTERNS
from cf_messaging.wire import KINDS, MAX_PAYLOAD_BYTES, MAX_TOPIC_BYTES

HUB = "tcp://hub:5309"
HERE = "tcp://127.0.0.1:5309"  # where information needs no keys
KEY, OTHER_KEY = "0123456789abcdef" * 4, "FEDCBA9876543210" * 4
KEY_BYTES, OTHER_KEY_BYTES = bytes.fromhex(KEY), bytes.fromhex(OTHER_KEY)
Z85_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"

# pattern: what it must be given besides an endpoint, so that nothing is missing.
NEEDED: dict[str, dict[str, Any]] = {
    "request": {"payload": "x"},
    "reply": {"payload": "x"},
    "async_request": {"payload": "x"},
    "async_reply": {"payload": "x"},
    "publish": {"payload": "x"},
    "subscribe": {},
    "push": {"payload": "x"},
    "pull": {},
    "pair": {},
}

# The design's table "attribute allowed with": attribute, patterns.
_PAYLOAD = {"request", "async_request", "reply", "async_reply", "publish", "push", "pair"}
_FILE = {"request", "async_request", "reply", "async_reply", "subscribe", "pull", "pair"}
ALLOWED_WITH = {
    "pattern": set(NEEDED),
    "endpoint": set(NEEDED),
    "bind": set(NEEDED),
    "timeout": set(NEEDED),
    "curve": set(NEEDED),
    "payload": _PAYLOAD,
    "payload_file": _PAYLOAD,
    "topic": {"publish", "subscribe"},
    "file": _FILE,
    "format": _FILE,
    "count": {"reply", "async_reply", "subscribe", "pull", "pair"},
    "expect": {"request", "async_request", "pair"},
    "retries": {"request", "async_request"},
    "subscribers": {"publish"},
    **{name: set() for name in ("refresh", "expire", "node", "state_dir", "parameters")},
}
# What makes of it a promise of information, or for a view, which have attributes of their own.
MEANT: dict[str, dict[str, Any]] = {
    "information": {"information": "static", "payload": "x"},
    "view": {"view": "latest", "file": "/heard"},
}
# attribute: what it goes with, of these two
MEANT_WITH = {
    "information": {"information"},
    "refresh": {"information"},
    "expire": {"information"},
    "state_dir": {"information"},
    "node": {"information", "view"},
    "view": {"view"},
    "parameters": {"view"},
}

# attribute: a value that is valid by itself.
SOUND: dict[str, Any] = {
    "endpoint": "ipc:///other",
    "bind": "true",
    "timeout": "7",
    "payload": "said",
    "payload_file": "/said",
    "topic": "load",
    "file": "/heard",
    "format": "json",
    "count": "9",
    "expect": "o.*k",
    "retries": "9",
    "subscribers": "9",
    "information": "common",
    "refresh": "9",
    "expire": "9",
    "view": "nodes",
    "parameters": '{"a": 1}',
    "node": "web1",
    "curve": {"server_key": KEY},
    "state_dir": "/state",
}

# attribute: values from policy and what they mean.
VALID: dict[str, list[tuple[Any, Any]]] = {
    "pattern": [(name, PATTERNS[name]) for name in NEEDED],
    "endpoint": [
        (text, (text,))
        for text in (
            "tcp://hub:5309",
            "tcp://hub-2.example.org:1",
            "tcp://127.0.0.1:65535",
            "tcp://[::1]:5309",
            "tcp://[fe80::1%eth0]:5309",
            "tcp://[::ffff:10.0.0.1]:5309",
            "ipc:///run/cf messages/hub",
            "ipc://@abstract",
        )
    ]
    + [(["tcp://a:1"], ("tcp://a:1",)), (["tcp://a:1", "ipc:///b"], ("tcp://a:1", "ipc:///b"))],
    "bind": [
        *((word, True) for word in ("true", "yes", "on", True)),
        *((word, False) for word in ("false", "no", "off", False)),
    ],
    "payload": [
        ("", [b""]),
        ("é", ["é".encode()]),
        ("\udcff", [b"\xff"]),
        ('{"a":1}', [b'{"a":1}']),
        ([], []),
        (["a", "b"], [b"a", b"b"]),
        (["a", 1, 1.5, True, None, [], ["é"], {"b": "c"}], None),
        ({}, [b"{}"]),
        ({"é": [1]}, None),
        ("x" * MAX_PAYLOAD_BYTES, [b"x" * MAX_PAYLOAD_BYTES]),
    ],
    "payload_file": [("/etc/os-release", "/etc/os-release"), ("/a b/é", "/a b/é")],
    "topic": [("", b""), ("é/", "é/".encode()), ("x" * MAX_TOPIC_BYTES, b"x" * MAX_TOPIC_BYTES)],
    "file": [("/var/tmp/answer", "/var/tmp/answer")],
    "format": [("text", "text"), ("json", "json")],
    "count": [("0", 0), ("1", 1), ("1000000", 1_000_000)],
    "expect": [("", None), ("(?i)ok|o+", None)],
    "timeout": [("0.01", 0.01), ("0.5", 0.5), ("5", 5.0), ("300", 300.0), ("300.0", 300.0)],
    "retries": [("0", 0), ("100", 100)],
    "subscribers": [("1", 1), ("100000", 100_000)],
    "information": [(name, KINDS[name]) for name in ("static", "dynamic", "state", "common")],
    "refresh": [("1", 1), ("525600", 525_600)],
    "expire": [("1", 1), ("43200", 43_200)],
    "view": [(name, name) for name in ("x", "two words", "é" * 100)],
    "parameters": [({}, {}), ({"é": ["1"]}, {"é": ["1"]}), ("{}", {}), ('{"a": 1}', {"a": 1})],
    "node": [(name, name) for name in ("a", "web-1.example.org", "a_b:c", "n" * 253)],
    "curve": [
        ({"server_key": KEY}, Curve((KEY_BYTES,), None, None)),
        ({"server_key": OTHER_KEY, "key_file": "/a b/é"}, Curve((OTHER_KEY_BYTES,), "/a b/é", None)),
        ({"server_key": "/keys/hub.key"}, Curve(("/keys/hub.key",), None, None)),
        ({"server_key": [KEY, "/keys/hub.key"]}, Curve((KEY_BYTES, "/keys/hub.key"), None, None)),
        (f'{{"server_key": "{KEY}"}}', Curve((KEY_BYTES,), None, None)),
        ({"accept": [KEY, OTHER_KEY]}, Curve(None, None, (KEY_BYTES, OTHER_KEY_BYTES))),
        ({"accept": KEY, "key_file": "/k"}, Curve(None, "/k", (KEY_BYTES,))),
        ({"accept": []}, Curve(None, None, ())),
        ({"accept": "/keys"}, Curve(None, None, "/keys")),
        ({"accept": "/keys/"}, Curve(None, None, "/keys")),
        ('{"accept": "/keys"}', Curve(None, None, "/keys")),
    ],
    "state_dir": [("/var/lib/state", "/var/lib/state")],
}

_ARABIC_5 = "\u0665"  # a digit, but not one of ours
_NO_INT: list[Any] = ["-1", "+1", "1.5", "1k", "", " 1", "1 ", "1\n", "1_0", "0x1", "one", _ARABIC_5, "9" * 5000]
_NO_INT += [None, [], ["1"], {}, True]
_NO_PATH: list[Any] = ["", "relative", "./a", "../a", "~/a", "$(x)", "C:\\a", "/a/", "/", "/a\0b"]
_NO_PATH += [None, 1, [], ["/a"], {}]
_NO_KEY: list[Any] = ["", KEY[1:], KEY + "0", KEY + "\n", f" {KEY}", "g" * 64, _ARABIC_5 * 64, f"0x{KEY[2:]}", Z85_KEY]
_NO_KEY += [None, 1, True, {}, {"a": KEY}]
INVALID: dict[str, list[Any]] = {
    "pattern": ["", "req", "REQUEST", "request ", "pub/sub", None, 1, [], ["request"], {}],
    "endpoint": [
        *("", "hub", "hub:5309", "tcp://", "tcp://hub", "tcp://hub:", "tcp://hub:port", "tcp://:5309"),
        *("tcp://hub:0", "tcp://hub:65536", "tcp://hub:99999999999", "tcp://hub:-1", f"tcp://hub:{_ARABIC_5}"),
        *("tcp://hub:5309/", "tcp://hub:5309 ", "tcp://hub:5309\n", " tcp://hub:5309", "tcp://a b:1", "tcp://a,b:1"),
        *("tcp://::1:5309", "tcp://[::1]", "tcp://[::1]5309", "tcp://[hub]:5309", "tcp://[]:5309", "tcp://hub:*"),
        *("tcp://hub:1;tcp://hub:2", "tcp://a\0b:1", "udp://hub:1", "inproc://x", "pgm://hub:1", "http://hub:1"),
        *("ipc://", "ipc://relative", "ipc:///a\0b", "ipc:///" + "x" * 200, "ipc://@"),
        *([], [""], ["tcp://hub:1", "hub"], ["tcp://hub:1", 2], [["tcp://hub:1"]], {}, {"a": "tcp://a:1"}, None, 1),
    ],
    "bind": ["", "maybe", "True", "1", "yes ", None, 1, 0, [], ["true"], {}],
    "payload": [None, 1, 1.5, True, "x" * (MAX_PAYLOAD_BYTES + 1), ["x", "é" * (MAX_PAYLOAD_BYTES // 2 + 1)]],
    "payload_file": _NO_PATH,
    "topic": ["a\0b", "\0", "x" * (MAX_TOPIC_BYTES + 1), "é" * (MAX_TOPIC_BYTES // 2 + 1), None, 1, [], ["a"], {}],
    "file": _NO_PATH,
    "format": ["", "JSON", "xml", None, 1, [], ["json"], {}],
    "count": ["1000001", *_NO_INT],
    "expect": ["(", "[", "*", "(?P<a>", "a{2,1}", "(?z)", "(?:" * 9000 + ")" * 9000, "a{99999999999}", None, 1, [], {}],
    "timeout": [
        *("0", "0.009", "301", "300.1", "31536000", "-1", "-0.5", "", " 5", "5 ", "5s", "five", "nan", "inf", "1e400"),
        *(_ARABIC_5, "9" * 5000, None, [], ["5"], {}, True),
    ],
    "retries": ["101", *_NO_INT],
    "subscribers": ["0", "100001", *_NO_INT],
    "information": ["", "State", "states", "view", None, 1, [], ["state"], {}],
    "refresh": ["0", "525601", *_NO_INT],
    "expire": ["0", "43201", *_NO_INT],
    "view": ["", "x" * 201, "a\nb", "a\0", "\x85", "\ud800", None, 1, [], ["x"], {}],
    "parameters": ["", "x", "[]", "1", "null", '"{}"', "{", None, 1, [], [{}]],
    "node": ["", "a b", "é", "a/b", "a\n", "n" * 254, "\udcff", None, 1, [], ["a"], {}],
    "curve": [
        *("", "x", KEY, "/keys/hub.key", "[]", "1", "null", "{", None, 1, True, [], [KEY], [{}]),
        *(
            {"server_key": value}
            for value in (*_NO_KEY, [], [KEY] * 9, [KEY, "hub"], "a/b", "./hub.key", "/", "/a/", "/a\0b")
        ),
        *({"server_key": KEY, "key_file": value} for value in _NO_PATH),
        *({"accept": value} for value in (*_NO_KEY, [KEY, ""], [[KEY]], ["/keys"], ["cf_null"], "keys/", "/", "/a\0b")),
        *({"server_key": KEY, "accept": value} for value in ([OTHER_KEY], [], "/keys")),
        *({**given, "serverkey": KEY} for given in ({}, {"server_key": KEY})),
    ],
    "state_dir": _NO_PATH,
}


def attributes_for(pattern: str, /, **more: Any) -> dict[str, Any]:
    """A sound promise of this pattern, changed by what is given."""
    return {"pattern": pattern, "endpoint": HUB, **NEEDED[pattern], **more}


def with_attribute(name: str, value: Any) -> dict[str, Any]:
    """A promise in which everything but this value is sound."""
    if name == "pattern":
        needed = NEEDED[value] if isinstance(value, str) and value in NEEDED else {}
        return {"endpoint": HUB, **needed, "pattern": value}
    if name in MEANT_WITH:
        return {"endpoint": HERE, **MEANT[min(MEANT_WITH[name])], name: value}
    pattern = next(each for each in NEEDED if each in ALLOWED_WITH[name])
    return completed(attributes_for(pattern, **{name: value}), name)


def completed(attributes: dict[str, Any], name: str) -> dict[str, Any]:
    """The same with what the attribute cannot do without, and without what it excludes."""
    if name == "payload_file":
        attributes.pop("payload", None)
    if name == "format":
        attributes["file"] = "/heard"
    if name == "expect" and attributes.get("pattern") == "pair":
        attributes["payload"] = "said"
    if name == "curve" and isinstance(attributes[name], (str, dict)) and "accept" in attributes[name]:
        attributes["bind"] = "true"
    return attributes


def refusal(attributes: dict[str, Any], promiser: str = "p") -> str:
    """The text with which the promise is refused."""
    with pytest.raises(ValueError, match=r".") as caught:
        read_promise(promiser, attributes)
    return str(caught.value)


def read_or_refused(attributes: dict[str, Any], promiser: str = "p") -> Promise | str:
    """The promise, or the text with which it is refused; anything else that is raised is a bug."""
    try:
        return read_promise(promiser, attributes)
    except ValueError as error:
        return str(error)


def short(value: Any) -> str:
    """The id of a test case."""
    return re.sub(r"[^ -~]", "?", repr(value))[:30]


def cases(table: dict[str, list[Any]]) -> Any:
    return [pytest.param(name, value, id=f"{name}-{short(value)}") for name in table for value in table[name]]


# ---- each attribute by itself


def test_the_attributes_are_those_of_the_design() -> None:
    """No attribute is missing and none is unheard of."""
    assert set(ATTRIBUTES) == set(ALLOWED_WITH) | set(MEANT_WITH)


@pytest.mark.parametrize(("name", "pair"), cases(VALID))
def test_valid_value(name: str, pair: tuple[Any, Any]) -> None:
    """A valid value is accepted, and read as what it means."""
    value, meaning = pair
    read = getattr(read_promise("p", with_attribute(name, value)), name)
    assert meaning is None or read == meaning


@pytest.mark.parametrize(("name", "value"), cases(INVALID))
def test_invalid_value(name: str, value: Any) -> None:
    """An invalid value is refused in a text that names attribute and value, says what is allowed, and stays short."""
    text = refusal(with_attribute(name, value))
    assert f"'{name}'" in text
    assert repr(value)[:60] in text or (isinstance(value, str) and value[:60] in text)
    told = "allowed|may have at most|must be|regular expression|longer than|a name has|is named by|64 hex digits"
    assert re.search(told, text)
    assert len(text) < 1000 and "\n" not in text and "\0" not in text


def test_elements_that_are_no_strings_are_said_as_json() -> None:
    """A string of a list is said as it is, everything else and an object as JSON in UTF-8."""
    said = read_promise("p", attributes_for("push", payload=['"a"', 1, 1.5, True, None, [], ["é"], {"b": "c"}])).payload
    assert said == [b'"a"', b"1", b"1.5", b"true", b"null", b"[]", '["é"]'.encode(), b'{"b":"c"}']
    assert read_promise("p", attributes_for("push", payload={"é": [1]})).payload == ['{"é":[1]}'.encode()]


@pytest.mark.parametrize("payload", ["\ud800", ["\udfff"], {"a": "\ud800"}])
def test_text_that_no_message_can_carry(payload: Any) -> None:
    """Half a surrogate pair is refused before anything is said; topics likewise, and paths of keys."""
    assert "'payload'" in refusal(attributes_for("push", payload=payload))
    assert "'topic'" in refusal(attributes_for("publish", topic="\ud800"))
    for curve in ({"server_key": "/\ud800"}, {"server_key": KEY, "key_file": "/\ud800"}, {"accept": "/\ud800"}):
        assert "'curve'" in refusal(attributes_for("push", curve=curve))


@pytest.mark.parametrize("pattern", NEEDED)
def test_defaults(pattern: str) -> None:
    """What is not given has the design's default."""
    promise = read_promise("p", {"pattern": pattern, "endpoint": HUB, **NEEDED[pattern]})
    assert (promise.bind, promise.topic, promise.format, promise.count) == (False, b"", "text", 1)
    assert (promise.timeout, promise.retries, promise.subscribers) == (5.0, 0, 1)
    assert (promise.file, promise.payload_file, promise.expect, promise.dry_run) == (None, None, None, False)
    assert (promise.information, promise.view, promise.parameters) == (None, None, {})
    assert (promise.refresh, promise.expire, promise.node, promise.state_dir) == (1440, 10_080, None, None)
    assert promise.curve is None


@pytest.mark.parametrize("expression", ["[[a]", "[a||b]", "[a&&b]", "[a~~b]"])
def test_an_expression_causes_no_warnings(expression: str) -> None:
    """Python warns about some sound expressions, on standard error: the agent's terminal is no place for that."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_promise("p", attributes_for("request", expect=expression))


# ---- the promiser


def test_the_promiser_may_be_the_endpoint() -> None:
    """A promiser with :// is the endpoint, unless there is an attribute of that name."""
    assert read_promise("ipc:///a", {"pattern": "pull"}).endpoint == ("ipc:///a",)
    assert read_promise("ipc:///a", {"pattern": "pull", "endpoint": HUB}).endpoint == (HUB,)
    assert "'tcp://hub'" in refusal({"pattern": "pull"}, "tcp://hub")


@pytest.mark.parametrize("promiser", ["", "load", "hub:5309"])
def test_no_endpoint(promiser: str) -> None:
    """Any other promiser needs the attribute."""
    assert "'endpoint'" in refusal({"pattern": "pull"}, promiser)


@pytest.mark.parametrize("given", [{}, {"payload": "x"}])
def test_no_pattern(given: dict[str, Any]) -> None:
    """Without a pattern the text names all nine."""
    text = refusal({"endpoint": HUB, **given})
    assert "'pattern'" in text and all(name in text for name in NEEDED)


# ---- which go together


@pytest.mark.parametrize("name", sorted(set(ALLOWED_WITH) - {"pattern"}))
@pytest.mark.parametrize("pattern", NEEDED)
def test_allowed_with(pattern: str, name: str) -> None:
    """An attribute is accepted with the patterns of the design's table, and refused with the others."""
    attributes = completed(attributes_for(pattern, **{name: SOUND[name]}), name)
    if pattern in ALLOWED_WITH[name]:
        assert getattr(read_promise("p", attributes), name) is not None
    else:
        text = refusal(attributes)
        assert f"'{name}'" in text and f"'{pattern}'" in text
        goes_with = ALLOWED_WITH[name] | MEANT_WITH.get(name, set())
        assert all(re.search(rf"\b{each}\b", text) for each in goes_with)


# The design's table again, for information and views.
INFORMATION_BY = {
    **{kind: {"async_request", "request"} for kind in ("static", "dynamic", "common")},
    "state": {"async_request", "request", "push", "publish", "pair"},
}
INFORMATION_TAKES = {"timeout", "endpoint", "payload", "payload_file", "expire", "node", "state_dir", "curve"}
VIEW_TAKES = {"timeout", "endpoint", "file", "parameters", "node", "curve"}


@pytest.mark.parametrize("pattern", NEEDED)
@pytest.mark.parametrize("kind", INFORMATION_BY)
def test_patterns_of_information(kind: str, pattern: str) -> None:
    """By async_request, which is the default, or request; state also by what nobody answers."""
    attributes = {"information": kind, "payload": "x", "endpoint": HERE}
    assert read_promise("p", attributes).pattern.name == "async_request"
    if pattern in INFORMATION_BY[kind]:
        assert read_promise("p", {**attributes, "pattern": pattern}).pattern.name == pattern
    else:
        text = refusal({**attributes, "pattern": pattern})
        assert f"'{pattern}'" in text and all(name in text for name in INFORMATION_BY[kind])


@pytest.mark.parametrize("name", sorted({*ALLOWED_WITH, *MEANT_WITH} - {"pattern", "information"}))
@pytest.mark.parametrize("kind", INFORMATION_BY)
def test_attributes_of_information(kind: str, name: str) -> None:
    """Those of the design's table; refresh with what is remembered alone; expire with what may wait."""
    attributes = completed({"information": kind, "payload": "x", "endpoint": HERE, name: SOUND[name]}, name)
    if name in INFORMATION_TAKES or (name == "refresh" and kind != "state"):
        assert getattr(read_promise("p", attributes), name) is not None
    else:
        text = refusal(attributes)
        assert f"'{name}'" in text and ("'information'" in text or "state" in text)


@pytest.mark.parametrize("name", sorted({*ALLOWED_WITH, *MEANT_WITH} - {"pattern", "information", "view"}))
def test_attributes_of_views(name: str) -> None:
    """Those of the design's table."""
    attributes = {**MEANT["view"], "endpoint": HERE, name: SOUND[name]}
    if name in VIEW_TAKES:
        assert getattr(read_promise("p", attributes), name) is not None
    else:
        text = refusal(attributes)
        assert f"'{name}'" in text and "'view'" in text


@pytest.mark.parametrize("pattern", NEEDED)
def test_patterns_of_views(pattern: str) -> None:
    """By async_request, which is the default, or request; a file is needed."""
    view = {**MEANT["view"], "endpoint": HERE}
    assert read_promise("p", view).pattern.name == "async_request"
    if pattern in ("request", "async_request"):
        assert read_promise("p", {**view, "pattern": pattern}).pattern.name == pattern
    else:
        assert f"'{pattern}'" in refusal({**view, "pattern": pattern})
    assert "'file'" in refusal({"view": "latest", "endpoint": HERE})


@pytest.mark.parametrize("pattern", ["push", "publish", "pair"])
def test_expire_without_a_queue(pattern: str) -> None:
    """What is never queued cannot expire."""
    state = {"information": "state", "payload": "x", "endpoint": HERE, "pattern": pattern}
    assert f"'{pattern}'" in refusal({**state, "expire": "5"}) and "'expire'" in refusal({**state, "expire": "5"})


@pytest.mark.parametrize("promiser", ["", "x" * 201, "a\nb", "\udcff"])
def test_the_promiser_names_the_information(promiser: str) -> None:
    """It must be fit to; for a view any promiser will do."""
    text = refusal({**MEANT["information"], "endpoint": HERE}, promiser)
    assert "names the information" in text and len(text) < 1000
    assert read_promise(promiser, {**MEANT["view"], "endpoint": HERE}).view == "latest"


def test_the_value_of_information_is_one() -> None:
    """It is kept as it came, a list included."""
    for value in ("x", ["x", {"a": "b"}], {"a": ["b"]}, ["cf_null"]):
        assert read_promise("p", {"information": "state", "payload": value, "endpoint": HERE}).value == value


@pytest.mark.parametrize("pattern", NEEDED)
def test_payload_exactly_one(pattern: str) -> None:
    """payload and payload_file exclude each other; patterns that speak need one of them, pair may have one."""
    assert "payload" in refusal(attributes_for(pattern, payload="x", payload_file="/x"))
    bare = {"pattern": pattern, "endpoint": HUB}
    if NEEDED[pattern]:
        text = refusal(bare)
        assert f"'{pattern}'" in text and "'payload'" in text and "'payload_file'" in text
    else:
        read_promise("p", bare)


def test_pair_with_and_without_payload() -> None:
    """A pair that speaks is answered once a payload: it takes expect, and no count; one that listens, the reverse."""
    for said in ({"payload": "x"}, {"payload_file": "/x"}):
        read_promise("p", attributes_for("pair", **said, expect="x", file="/heard"))
        text = refusal(attributes_for("pair", **said, count="17"))
        assert "'count'" in text and "'pair'" in text and "payload" in text
    read_promise("p", attributes_for("pair", count="17"))
    text = refusal(attributes_for("pair", expect="seventeen"))
    assert "'expect'" in text and "'pair'" in text and "payload" in text


def test_format_without_file() -> None:
    """A format with nothing to write is a mistake."""
    text = refusal(attributes_for("pull", format="json"))
    assert "'format'" in text and "'file'" in text


COMBINATIONS = {
    "unknown": (attributes_for("push", payloda="seventeen"), "seventeen"),
    "topic with push": (attributes_for("push", topic="seventeen"), "seventeen"),
    "payload with pull": (attributes_for("pull", payload="seventeen"), "seventeen"),
    "format without file": (attributes_for("pull", format="json"), "json"),
    "count of a pair with payload": (attributes_for("pair", payload="x", count="17"), "17"),
    "expect of a pair without": (attributes_for("pair", expect="seventeen"), "seventeen"),
    "two endpoints to bind": (attributes_for("pull", bind="true", endpoint=[HUB, "ipc:///a"]), "ipc:///a"),
}


@pytest.mark.parametrize("case", COMBINATIONS)
def test_a_forbidden_combination_names_the_value(case: str) -> None:
    """The design: unknown attributes, wrong types and impossible combinations name the value too."""
    attributes, value = COMBINATIONS[case]
    assert value in refusal(attributes)


def test_bind_takes_one_endpoint() -> None:
    """Several endpoints are for the connecting side."""
    several = ["tcp://a:1", "tcp://b:1"]
    assert read_promise("p", attributes_for("pull", endpoint=several)).endpoint == tuple(several)
    text = refusal(attributes_for("pull", endpoint=several, bind="true"))
    assert "'endpoint'" in text and "'bind'" in text and "exactly one" in text


def test_any_host_is_for_bind() -> None:
    """Nobody connects to the host *."""
    assert read_promise("tcp://*:5309", {"pattern": "pull", "bind": "true"}).bind
    text = refusal(attributes_for("pull", endpoint=["tcp://hub:5309", "tcp://*:5309"]))
    assert "'endpoint'" in text and "tcp://*:5309" in text and "'bind'" in text


# ---- keys


@pytest.mark.parametrize("wrong", [{"server_key": Z85_KEY}, {"accept": [KEY, Z85_KEY]}, {"accept": Z85_KEY}])
def test_a_key_in_z85(wrong: dict[str, Any]) -> None:
    """It is refused, since cf-agent takes some of them for variables; the text says where it is told in hex."""
    text = refusal(with_attribute("curve", wrong))
    assert "Z85" in text and "cf-messaged keys show" in text and "hex" in text and f"'{min(wrong)}'" in text


@pytest.mark.parametrize(
    ("wrong", "likely"),
    [("serverkey", "server_key"), ("server-key", "server_key"), ("keyfile", "key_file"), ("accepts", "accept")],
)
def test_near_miss_of_a_key(wrong: str, likely: str) -> None:
    """A misspelt word in `curve` is answered with the likely one; one far from all, with all."""
    text = refusal(attributes_for("push", curve={wrong: KEY}))
    assert f"'{wrong}'" in text and f"did you mean '{likely}'" in text
    text = refusal(attributes_for("push", curve={"zzz": KEY}))
    assert "did you mean" not in text and all(name in text for name in ("server_key", "key_file", "accept"))


@pytest.mark.parametrize("pattern", NEEDED)
def test_keys_of_either_side(pattern: str) -> None:
    """Who connects names whom he talks to, who binds whom he lets in; never both, never neither, never the other's."""
    knows, lets_in, own = {"server_key": KEY}, {"accept": [KEY]}, {"key_file": "/k"}
    for curve, bind in ((knows, "false"), (lets_in, "true")):
        read_promise("p", attributes_for(pattern, curve={**curve, **own}, bind=bind))
    for bind, needed, side in (("false", "server_key", "without 'bind'"), ("true", "accept", "with 'bind'")):
        for curve in ({}, own, lets_in if bind == "false" else knows):
            text = refusal(attributes_for(pattern, curve=curve, bind=bind))
            assert "'curve'" in text and f"{side} it needs '{needed}'" in text
        text = refusal(attributes_for(pattern, curve={**knows, **lets_in}, bind=bind))
        assert "'server_key'" in text and "'accept'" in text


ON_THIS_MACHINE = [
    *("tcp://127.0.0.1:5309", "tcp://127.229.238.91:1", "tcp://localhost:5309", "tcp://[::1]:5309"),
    *("ipc:///run/hub", "ipc://@abstract"),
]
BEYOND = [
    *("tcp://hub:5309", "tcp://192.0.2.1:5309", "tcp://[2001:db8::1]:5309", "tcp://[fe80::1%eth0]:5309"),
    *("tcp://127.evil.example:5309", "tcp://127.0.0.1.evil.example:1", "tcp://localhost.evil.example:1"),
    *("tcp://128.0.0.1:1", "tcp://1.127.0.0:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://[::2]:1"),
]
MEANT_CASES = [*MEANT.values(), {**MEANT["information"], "pattern": "request"}]
MEANT_CASES += [{**MEANT["information"], "information": "state", "pattern": by} for by in ("push", "publish", "pair")]


@pytest.mark.parametrize("meant", MEANT_CASES, ids=short)
def test_information_beyond_this_machine_has_keys(meant: dict[str, Any]) -> None:
    """Without `curve`, information and views are said on this machine alone; a name is no address."""
    for endpoint in ON_THIS_MACHINE:
        assert read_promise("p", {**meant, "endpoint": endpoint}).curve is None
    for endpoint in BEYOND:
        text = refusal({**meant, "endpoint": endpoint})
        assert "'endpoint'" in text and endpoint in text and "'curve' is needed" in text
        assert read_promise("p", {**meant, "endpoint": endpoint, "curve": {"server_key": KEY}}).curve


def test_one_endpoint_of_several_beyond_this_machine() -> None:
    """It is enough to be refused, wherever it stands, and so is the promiser in its place."""
    for endpoints in ([HERE, HUB], [HUB, HERE]):
        assert "'curve' is needed" in refusal({**MEANT["information"], "endpoint": endpoints})
    assert HUB in refusal(MEANT["view"], promiser=HUB)
    assert read_promise(HERE, MEANT["view"]).endpoint == (HERE,)


@pytest.mark.parametrize("pattern", NEEDED)
def test_other_promises_need_no_keys(pattern: str) -> None:
    """What is said beyond this machine without them is the policy's decision."""
    for endpoint in BEYOND:
        assert read_promise("p", attributes_for(pattern, endpoint=endpoint)).curve is None


# ---- near misses, and what is the agent's own


@pytest.mark.parametrize(
    ("wrong", "likely"),
    [("req", "request"), ("pubilsh", "publish"), ("Request", "request"), ("subscriber", "subscribe"), ("pus", "push")],
)
def test_near_miss_of_a_pattern(wrong: str, likely: str) -> None:
    """A misspelt pattern is answered with the likely one."""
    assert f"did you mean '{likely}'" in refusal(attributes_for("push", pattern=wrong))


@pytest.mark.parametrize(
    ("wrong", "likely"),
    [("payloda", "payload"), ("endpoints", "endpoint"), ("time_out", "timeout"), ("payloadfile", "payload_file")],
)
def test_near_miss_of_an_attribute(wrong: str, likely: str) -> None:
    """A misspelt attribute is answered with the likely one."""
    text = refusal(attributes_for("push", **{wrong: "x"}))
    assert f"'{wrong}'" in text and f"did you mean '{likely}'" in text


def test_what_is_far_from_everything() -> None:
    """Without a likely word the text lists what there is."""
    text = refusal(attributes_for("push", zzz="x"))
    assert "did you mean" not in text and all(name in text for name in ATTRIBUTES)


@pytest.mark.parametrize("value", ["x", "", [], {"a": 1}, None])
@pytest.mark.parametrize("name", sorted(COMMON_ATTRIBUTES - {"action_policy", "handle"}))
def test_common_attributes_never_count(name: str, value: Any) -> None:
    """What the agent lets through with any promise changes nothing; handle and action_policy have their meaning."""
    assert vars(read_promise("p", attributes_for("push", **{name: value}))) == vars(
        read_promise("p", attributes_for("push"))
    )


def test_the_common_attributes_are_those_that_reach_a_module() -> None:
    """The list of what was seen to come from an agent."""
    seen = "comment handle action_policy ifelapsed audit background log_failed log_kept log_priority log_repaired"
    assert set(COMMON_ATTRIBUTES) == {*seen.split(), "log_string", "measurement_class", "report_level", "expireafter"}


@pytest.mark.parametrize(("policy", "dry"), [("fix", False), ("warn", True), ("nop", True)])
def test_action_policy(policy: str, dry: bool) -> None:
    """warn and nop are dry runs."""
    assert read_promise("p", attributes_for("push", action_policy=policy)).dry_run is dry


# ---- whatever comes

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from([value for values in INVALID.values() for value in values if len(repr(value)) < 1000]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner),
    max_leaves=20,
)
sound_values = st.fixed_dictionaries(
    {"pattern": st.sampled_from(list(NEEDED))},
    optional={"endpoint": st.just(HUB), **{name: st.just(value) for name, value in SOUND.items()}},
)
names = st.sampled_from([*ATTRIBUTES, *COMMON_ATTRIBUTES]) | st.text(st.characters(exclude_categories=()))


def is_sound(promise: Promise) -> bool:
    said = [given for given in (promise.payload, promise.payload_file) if given is not None]
    wanted = "required" if promise.information else "refused" if promise.view else promise.pattern.payload
    return (
        0.01 <= promise.timeout <= 300
        and 0 <= promise.count <= 1_000_000
        and bool(promise.endpoint)
        and (not promise.bind or len(promise.endpoint) == 1)
        and (len(said) == 1 if wanted == "required" else not said if wanted == "refused" else len(said) <= 1)
        and all(
            path is None or path.startswith("/") for path in (promise.file, promise.payload_file, promise.state_dir)
        )
        and (not promise.curve or (promise.curve.accept is not None) == promise.bind)
        and (not promise.curve or (promise.curve.server_key is None) == promise.bind)
        and (promise.view is None or promise.file is not None)
    )


@given(promiser=st.sampled_from(["p", HUB]) | st.text(), sound=sound_values, other=st.dictionaries(names, anything))
def test_any_attributes_are_a_promise_or_refused(promiser: str, sound: dict[str, Any], other: dict[str, Any]) -> None:
    """Whatever JSON comes is a promise that can be kept, or refused in words; it is left as it was."""
    attributes = {**sound, **other}
    before = copy.deepcopy(attributes)
    came = read_or_refused(attributes, promiser)
    assert came and (isinstance(came, str) or is_sound(came))
    assert repr(attributes) == repr(before)


@pytest.mark.parametrize("name", [*ATTRIBUTES, "payloda"])
def test_deep_values(name: str) -> None:
    """However deep a value is nested, it is a promise or refused, not the end of the module."""
    for depth in (100, 980, 5_000):
        deep: Any = "x"
        for _ in range(depth):
            deep = [deep]
        for value in (deep, {"a": deep}, {"server_key": deep}, {"accept": deep}):
            came = read_or_refused(completed(attributes_for("push", **{name: value}), name))
            assert isinstance(came, Promise) or len(came) < 1000


@pytest.mark.parametrize("name", [*ATTRIBUTES, "payloda"])
def test_huge_values(name: str) -> None:
    """A huge value is a promise, or refused in a text of reasonable length."""
    for value in ("x" * 200_000, ["x" * 10] * 100_000, {str(i): i for i in range(50_000)}):
        came = read_or_refused(completed(attributes_for("push", **{name: value}), name))
        assert isinstance(came, Promise) or len(came) < 1000
