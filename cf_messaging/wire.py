"""What crosses the network: payloads, events and answers, and their limits. No I/O. docs/wire.md is the grammar."""

from __future__ import annotations

import json
import re
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A message is held in memory several times on its way, on small nodes too; larger things are files:, not messages:.
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
# What one promise may receive in all: it is kept in memory until it is written to its file.
MAX_RECEIVED_BYTES = 64 * 1024 * 1024
# What Python holds of a message beside its bytes; counted, so that a flood of empty messages ends too.
MESSAGE_OVERHEAD_BYTES = 64
# Subscriptions and topics travel with every message and are compared for each.
MAX_TOPIC_BYTES = 1024

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":")).encode

# payload, topic: bytes as they came; topic is empty for patterns that have none.
Message = namedtuple("Message", "payload topic")


def encode(value: Any) -> bytes:
    """A payload as its bytes: a string as it is (bytes that were no UTF-8 included), everything else as JSON."""
    text = value if isinstance(value, str) else _JSON(value)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("text with half a surrogate pair, which no message can carry") from None


# ---- information and views

MAX_EVENT_BYTES = 1024 * 1024  # a listener holds many at once
MAX_ANSWER_BYTES = MAX_PAYLOAD_BYTES
MAX_NAME_BYTES = 200  # names are keys and topics
MAX_REFRESH_S = 366 * 86400
MAX_DEPTH = 64  # readers recurse, cf-agent's among them

# remembered: a node says a value again only when it is due. history: the listener keeps what was before.
# single: one node says it for all.
Kind = namedtuple("Kind", "name remembered history single")

KINDS = {
    kind.name: kind
    for kind in (
        Kind("static", remembered=True, history=False, single=False),
        Kind("dynamic", remembered=True, history=True, single=False),
        Kind("state", remembered=False, history=True, single=False),
        Kind("common", remembered=True, history=False, single=True),
    )
}
VIEW = "view"
SELF = "self"  # the view that is no view: what the listener knows of who asks, and whether it can store
ENROL = "enrol"  # what an unknown node says, on a socket of its own
# What it says there, as the name of the event: that it is there, who it is, or the latter without any effect.
HELLO, CLAIM, CHECK = "hello", "claim", "check"
MAX_ENROL_BYTES = 4096

# data: the value; of a VIEW its parameters, of ENROL a claim. time: RFC 3339, UTC. policy: file:line. refresh: seconds.
Event = namedtuple("Event", "id kind node name time data policy handle refresh", defaults=(None, None, None))

STORED, DUPLICATE, ANSWERED, REFUSED, LATER = "stored", "duplicate", "answered", "refused", "later"
CHALLENGED, ENROLLED, WAITS = "challenged", "enrolled", "waits"  # of ENROL alone
# have: the highest sequence of the event's source and stream that the store had before. rows: a list of objects.
# challenge: for a claim. next_key: the listener's, in hex, while it is to be replaced.
Answer = namedtuple(
    "Answer",
    "id store have status reason retry_after view rows time challenge next_key",
    defaults=(None, None, None, None, None, None, None),
)

_TYPE = "cfengine.messages."
_SOURCE = "cfengine://"
# Compiled when they are used: most agent runs only keep promises, and read no event.
_NODE = r"[A-Za-z0-9._:-]{1,253}"
_ID = r"([0-9a-f]{32})-([0-9]{12})"
_STRING = r'(?s)"[^"\\]*(?:\\.[^"\\]*)*"?'  # one that never ends is one too: each character is looked at once
_TIME = (
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)"
    r"(\.[0-9]{1,9})?Z"
)
_OPTIONAL = {"policy": str, "handle": str, "refresh": int}
_OF_STATUS = {STORED: (), DUPLICATE: (), ANSWERED: ("view", "rows", "time"), REFUSED: ("reason",)}
_OF_STATUS[LATER] = ("reason", "retry_after")
_OF_STATUS.update({CHALLENGED: ("challenge",), ENROLLED: (), WAITS: ("reason",)})
_ANSWER_TYPES = {"id": str, "store": str, "have": int, "reason": str, "view": str, "rows": list, "time": str}
_ANSWER_TYPES["challenge"] = str


class Malformed(ValueError):
    """What was received is no event, or no answer; id: whose, as far as it could be read."""

    def __init__(self, reason: str, id: str = "") -> None:
        super().__init__(reason)
        self.id = id


def event_id(stream: str, sequence: int) -> str:
    return f"{stream}-{sequence:012d}"


def parse_id(id: str) -> tuple[str, int]:
    """Stream and sequence of an event of information. Raises ValueError."""
    parts = re.fullmatch(_ID, id)
    if not parts or parts[2] == "0" * 12:
        raise ValueError(f"'{id:.100}' is no id: allowed are 32 hexadecimal digits, '-' and 12 digits from 1")
    return parts[1], int(parts[2])


def check_name(name: str) -> None:
    """Raises ValueError unless it may name information."""
    if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES:
        raise ValueError(f"a name has 1 to MAX_NAME_BYTES, {MAX_NAME_BYTES} bytes")
    if name.isprintable():
        return
    if any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in name):
        raise ValueError("a name has no control characters, and is UTF-8")


def check_node(node: str) -> None:
    """Raises ValueError unless it may name a node."""
    if not re.fullmatch(_NODE, node):
        raise ValueError("a node is named by 1 to 253 letters, digits and . _ - :")


def canonical(value: Any) -> str:
    """The one JSON text of a value: equal values have equal texts. Raises ValueError if JSON has none for it."""
    return _CANONICAL(value)


def encode_event(event: Event) -> bytes:
    """Raises ValueError if it is larger than MAX_EVENT_BYTES, or no UTF-8."""
    content = "text/plain" if isinstance(event.data, str) else "application/json"
    fields = {
        "specversion": "1.0",
        "id": event.id,
        "source": _SOURCE + event.node,
        "type": _TYPE + event.kind,
        "subject": event.name,
        "time": event.time,
        "datacontenttype": content,
        "data": event.data,
        **{name: getattr(event, name) for name in _OPTIONAL if getattr(event, name) is not None},
    }
    return _encoded(fields, "MAX_EVENT_BYTES", MAX_EVENT_BYTES)


def decode_event(frame: bytes) -> Event:
    """Raises Malformed, which says why."""
    fields = _decoded(frame, "event", MAX_EVENT_BYTES)
    try:
        return _event(fields)
    except ValueError as error:
        id = fields.get("id")
        raise Malformed(str(error), id if isinstance(id, str) and len(id) <= 80 else "") from None


def _event(fields: dict[str, Any]) -> Event:
    if fields.get("specversion") != "1.0":
        raise ValueError('specversion is not "1.0"')
    id, source, type, name, time = (_text(fields, key) for key in ("id", "source", "type", "subject", "time"))
    kind = type[len(_TYPE) :] if type.startswith(_TYPE) else ""
    if kind not in KINDS and kind not in (VIEW, ENROL):
        raise ValueError(f"unsupported type '{type:.100}'")
    if kind in KINDS:
        parse_id(id)
    elif not 1 <= len(id.encode("utf-8", "surrogatepass")) <= 80:
        raise ValueError("id has more than 80 bytes, or none")
    node = source[len(_SOURCE) :] if source.startswith(_SOURCE) else ""
    check_node(node)
    check_name(name)
    if not re.fullmatch(_TIME, time):
        raise ValueError(f"time is no RFC 3339 in UTC: '{time:.100}'")
    optional = {key: fields[key] for key, kind_of in _OPTIONAL.items() if _is(fields.get(key), kind_of)}
    if not 1 <= optional.get("refresh", 1) <= MAX_REFRESH_S:
        raise ValueError(f"refresh is not 1 to MAX_REFRESH_S, {MAX_REFRESH_S}")
    return Event(id, kind, node, name, time, _data(fields, kind), **optional)


def _data(fields: dict[str, Any], kind: str) -> Any:
    if "data" not in fields:
        raise ValueError("data is missing")
    data, content = fields["data"], fields.get("datacontenttype")
    if content not in ("application/json", "text/plain"):
        raise ValueError("datacontenttype is neither application/json nor text/plain")
    if content == "text/plain" and not isinstance(data, str):
        raise ValueError("data of text/plain is no string")
    if kind not in KINDS and not isinstance(data, dict):
        raise ValueError(f"data of type {kind} is no object")
    return data


def encode_answer(answer: Answer) -> bytes:
    """Raises ValueError if it is larger than MAX_ANSWER_BYTES."""
    names = ("id", "store", "have", "status", *_OF_STATUS[answer.status], *(("next_key",) if answer.next_key else ()))
    return _encoded({name: getattr(answer, name) for name in names}, "MAX_ANSWER_BYTES", MAX_ANSWER_BYTES)


def decode_answer(frame: bytes) -> Answer:
    """Raises Malformed, which says why."""
    fields = _decoded(frame, "answer", MAX_ANSWER_BYTES)
    status = fields.get("status")
    if not isinstance(status, str) or status not in _OF_STATUS:
        raise Malformed(f"unknown status {status!r:.100}")
    names = ("id", "store", "have", *_OF_STATUS[status])
    for name in names:
        value = fields.get(name)
        if not (_is(value, _ANSWER_TYPES[name]) if name in _ANSWER_TYPES else _is(value, int) or _is(value, float)):
            raise Malformed(f"'{name}' of an answer '{status}' is {value!r:.100}")
    if not 0 <= fields["have"] < 10**12:
        raise Malformed(f"'have' of an answer is {fields['have']!r:.100}")
    if status == ANSWERED and not all(isinstance(row, dict) for row in fields["rows"]):
        raise Malformed("a row of a view is no object")
    next_key = fields["next_key"] if _is(fields.get("next_key"), str) else None
    return Answer(status=status, next_key=next_key, **{name: fields[name] for name in names})


# ---- the greeting of ZMTP 3, RFC 23, by which every ZeroMQ socket begins

SIGNATURE, GREETING_BYTES = b"\xff" + bytes(8) + b"\x7f", 32  # as far as it is read here


def read_greeting(said: bytes) -> tuple[str, str] | None:
    """The version of ZMTP, "3.1", and the mechanism of security, "NULL", "CURVE" or another, of what a peer has said
    first; None if that is no greeting, or not all of one: an older one, say.
    """
    is_signed = said[:1] + said[9:10] == SIGNATURE[:1] + SIGNATURE[9:]
    if not is_signed or len(said) < GREETING_BYTES or said[10] < 3:
        return None
    return f"{said[10]}.{said[11]}", said[12:GREETING_BYTES].rstrip(b"\0").decode("ascii", "replace")


# ---- JSON that is read from others


def _encoded(fields: dict[str, Any], limit_name: str, limit: int) -> bytes:
    text = canonical(fields)
    if _is_too_deep(text):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    frame = text.encode("utf-8")  # half a surrogate pair is a ValueError too
    if len(frame) > limit:
        raise ValueError(f"{len(frame)} bytes, where {limit_name}, {limit}, are allowed")
    return frame


def _decoded(frame: bytes, what: str, limit: int) -> dict[str, Any]:
    if len(frame) > limit:
        raise Malformed(f"{len(frame)} bytes, where an {what} may have {limit}")
    try:
        text = frame.decode("utf-8")
        if _is_too_deep(text):
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        fields = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\u" in text:  # an escape may be half a surrogate pair
            canonical(fields).encode("utf-8")
    except UnicodeError:
        raise Malformed(f"an {what} that is no UTF-8") from None
    except ValueError as error:
        raise Malformed(f"no {what}: {error}") from None
    if not isinstance(fields, dict):
        raise Malformed(f"no {what}: not an object")
    return fields


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in re.finditer(r"[\[{\]}]", re.sub(_STRING, "", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _finite(literal: str) -> float:
    number = float(literal)
    if number - number != 0:
        raise ValueError(f"{literal:.100} is no number of JSON, or too large for one")
    return number


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing" if value is None else f"{name} is no text")
    return value


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
