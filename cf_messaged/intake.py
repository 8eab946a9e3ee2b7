"""From frames to events, and from what became of them to answers. Any frames are understood or refused with a reason;
nothing is raised. No socket, clock or database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cf_messaged.codec import decode_event
from cf_messaged.rights import WHERE, Rights
from cf_messaged.times import microseconds
from cf_messaging.wire import ENROL, LATER, MAX_DEPTH, REFUSED, SELF, VIEW, Answer, Event, Malformed

# An answer holds data in a row, the row in a list, the list in an object; what no answer could hold is not stored.
MAX_DATA_DEPTH = MAX_DEPTH - 3
# Why something is refused, as it is counted.
MALFORMED, CLONED, PROMISED = "malformed", "cloned", "promised"
NAMED, REVOKED, FORBIDDEN = "named", "revoked", "forbidden"
FLOODING, ENDLESS = "flooding", "endless"


class Verdict(NamedTuple):
    """have: the highest sequence of the stream before it. kind: which rule refused. note: worth a line of log."""

    status: str
    have: int = 0
    reason: str | None = None
    kind: str | None = None
    note: str | None = None


class Delivery(NamedTuple):
    """envelope: the frames that an answer begins with, None where nobody waits for one. said: the event, or the refusal
    of what was none; kind: which rule refused.
    """

    envelope: list[bytes] | None
    said: Event | Answer
    kind: str = MALFORMED


def read(frames: Sequence[bytes], store: str, enrols: bool = False) -> Delivery:
    """frames: of one message of a ROUTER, the routing id first. store: the id of the store, for a refusal. enrols:
    whether this is where nodes enrol.
    """
    envelope, body = _parted(frames)
    try:
        if len(body) != 1:
            raise Malformed(f"{len(body)} frames after the empty one, where one is allowed")
        if envelope[-1:] != [b""] or len(envelope) < 2:
            raise Malformed("no empty frame before the event")
        return Delivery(envelope, _checked(decode_event(body[0]), enrols))
    except Malformed as error:
        return Delivery(envelope, Answer(error.id, store, 0, REFUSED, reason=str(error)))


def read_unanswered(frames: Sequence[bytes], before: int, store: str) -> Delivery:
    """frames: of one message of a socket on which nobody is answered; so many come before the event."""
    try:
        if len(frames) != before + 1:
            raise Malformed(f"{len(frames)} frames, where {before + 1} are allowed")
        event = _checked(decode_event(frames[before]))
        if is_question(event):
            raise Malformed("a question for a view, where nobody is answered", event.id)
        return Delivery(None, event)
    except Malformed as error:
        return Delivery(None, Answer(error.id, store, 0, REFUSED, reason=str(error)))


def permitted(delivery: Delivery, name: str, rights: Rights, store: str) -> Delivery:
    """The same, if it is said by who it says it is, and who may. name: of the key that it came with."""
    said = delivery.said
    if isinstance(said, Answer) or is_about_self(said):
        return delivery
    if said.node != name:
        kind = NAMED
        reason = f"by its key it is {name}, not {said.node}: its promises need node => '{name}', or its key that name"
    elif not is_question(said) and not rights.may_say(name, said.kind, said.name):
        kind, reason = FORBIDDEN, f"{name} may not say {said.kind} information '{said.name}': {WHERE}"
    else:
        return delivery
    return Delivery(delivery.envelope, Answer(said.id, store, 0, REFUSED, reason=reason), kind)


def put_off(delivery: Delivery, store: str, reason: str, wait_s: float) -> Delivery:
    """The same, but what can be understood is to come later."""
    said = delivery.said
    return delivery if isinstance(said, Answer) else Delivery(delivery.envelope, later(said, store, reason, wait_s))


def _parted(frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Everything up to the empty frame after the routing id; without one, the routing id."""
    parts = list(frames)
    after = parts.index(b"", 1) + 1 if b"" in parts[1:] else 1
    return parts[:after], parts[after:]


def _checked(event: Event, enrols: bool = False) -> Event:
    """What the codec lets through, but the store cannot keep. Raises Malformed."""
    if (event.kind == ENROL) is not enrols:
        where = "here nodes enrol, and do nothing else" if enrols else "enrolment has a socket of its own"
        raise Malformed(f"unsupported type: {where}", event.id)
    try:
        microseconds(event.time)
    except ValueError as error:
        raise Malformed(str(error), event.id) from None
    if _is_deeper(event.data, MAX_DATA_DEPTH):
        raise Malformed(f"data is nested deeper than {MAX_DATA_DEPTH}: no view could show it", event.id)
    return event


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return False
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner if isinstance(one, (dict, list)))


def is_question(said: Event) -> bool:
    return bool(said.kind == VIEW)


def is_about_self(said: Event) -> bool:
    """Whether who asks wants to know what is known of him, whatever name he has for himself: everybody may."""
    return is_question(said) and bool(said.name == SELF)


def answer(event: Event, store: str, verdict: Verdict, next_key: str | None = None) -> Answer:
    """next_key: the listener's, if it is to be told."""
    return Answer(event.id, store, verdict.have, verdict.status, verdict.reason, next_key=next_key)


def later(event: Event, store: str, reason: str, retry_after_s: float) -> Answer:
    """have is 0: what the store has is not known."""
    return Answer(event.id, store, 0, LATER, reason=reason, retry_after=retry_after_s)
