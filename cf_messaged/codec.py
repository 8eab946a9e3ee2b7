"""The wire as wire.py has it, at the speed of a listener: what it does not vouch for, wire.py reads or refuses."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cf_messaging import wire
from cf_messaging.wire import DUPLICATE, KINDS, MAX_DEPTH, MAX_EVENT_BYTES, MAX_REFRESH_S, STORED, Answer, Event


# A decoder that skips what it does not know does not read it either: unknown fields are left to wire.py.
class _Fields(msgspec.Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    data: Any
    policy: Any = None
    handle: Any = None
    refresh: Any = None


_decode = msgspec.json.Decoder(_Fields).decode
_encode = msgspec.json.Encoder(order="deterministic").encode
_kinds = {f"cfengine.messages.{name}": name for name in KINDS}
# The grammar of docs/wire.md, or less than it.
_is_id = re.compile(r"[0-9a-f]{32}-(?!0{12})[0-9]{12}").fullmatch
_is_source = re.compile(r"cfengine://[A-Za-z0-9._:-]{1,253}").fullmatch
_is_time = re.compile(
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,9})?Z"
).fullmatch
# So few characters are no more bytes than a name may have.
_SHORT = wire.MAX_NAME_BYTES // 4


def decode_event(frame: bytes) -> Event:
    """As wire.decode_event()."""
    return _vouched(frame) or wire.decode_event(frame)


def _vouched(frame: bytes) -> Event | None:
    """The event, if it is one beyond doubt; a question for a view is left to wire.py."""
    if len(frame) > MAX_EVENT_BYTES or frame.count(b"[") + frame.count(b"{") > MAX_DEPTH:
        return None
    try:
        said = _decode(frame)
    except (msgspec.MsgspecError, ValueError):
        return None
    sound = (
        said.specversion == "1.0"
        and said.type in _kinds
        and _is_id(said.id)
        and _is_source(said.source)
        and _is_time(said.time)
        and 0 < len(said.subject) <= _SHORT
        and said.subject.isprintable()
        and (said.datacontenttype == "application/json" or (said.datacontenttype == "text/plain" and _is_text(said)))
    )
    return _event(said) if sound else None


def _is_text(said: _Fields) -> bool:
    return isinstance(said.data, str)


def _event(said: _Fields) -> Event | None:
    policy = said.policy if isinstance(said.policy, str) else None
    handle = said.handle if isinstance(said.handle, str) else None
    refresh = said.refresh if type(said.refresh) is int else None  # True is no number of seconds
    if refresh is not None and not 1 <= refresh <= MAX_REFRESH_S:
        return None
    return Event(
        said.id, _kinds[said.type], said.source[11:], said.subject, said.time, said.data, policy, handle, refresh
    )


def encode_answer(answer: Answer) -> bytes:
    """As wire.encode_answer()."""
    if answer.status not in (STORED, DUPLICATE) or answer.next_key:
        return wire.encode_answer(answer)
    return _encode({"have": answer.have, "id": answer.id, "status": answer.status, "store": answer.store})


def encode_event(event: Event) -> bytes:
    """Of what was stored, to publish it: it has fitted once, and may be a few bytes longer now."""
    content = "text/plain" if isinstance(event.data, str) else "application/json"
    source, type = f"cfengine://{event.node}", f"cfengine.messages.{event.kind}"
    said = _Fields("1.0", event.id, source, type, event.name, event.time, content, event.data)
    said.policy, said.handle, said.refresh = event.policy, event.handle, event.refresh
    return _encode(said)


def text_of(value: Any) -> str:
    """The one JSON text of a value that came in an event."""
    return _encode(value).decode()
