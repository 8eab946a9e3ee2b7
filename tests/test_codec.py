"""The listener's fast codec is wire.py's, but for the time it takes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from cf_messaged import codec
from cf_messaging import wire
from cf_messaging.wire import Answer, Event, Malformed, encode_event
from test_fuzz_events import MORE, any_frame, lots, mangled
from test_wire import answers, events, questions

more = settings(max_examples=4 * settings().max_examples)


def read(frame: bytes) -> tuple[Event | None, Event | str]:
    """What the fast codec says alone; what both say together."""
    try:
        return codec._vouched(frame), codec.decode_event(frame)
    except Malformed as malformed:
        return None, f"{malformed} {malformed.id}"


def by_wire(frame: bytes) -> Event | str:
    try:
        return wire.decode_event(frame)
    except Malformed as malformed:
        return f"{malformed} {malformed.id}"


@more
@given(frame=any_frame, lot=lots)
def test_any_frame(frame: bytes, lot: random.Random) -> None:
    """It is the same event, down to the types in its data, or refused in the same words."""
    for each in (frame, *(mangled(frame, lot) for _ in range(MORE))):
        assert repr(read(each)[1]) == repr(by_wire(each))


@more
@given(event=events | questions)
def test_any_event(event: Event) -> None:
    """What a node says is read as what it said."""
    vouched, said = read(encode_event(event))
    assert said == event and vouched in (None, event)


def test_it_is_the_fast_one_that_reads() -> None:
    """What nodes say every day needs no second look: else all of it would be slow, and nobody would notice."""
    for kind, data in (("static", {"os": ["linux", "é"]}), ("dynamic", "text"), ("state", 1.5), ("common", None)):
        event = Event(wire.event_id("0" * 32, 1), kind, "web1", "é facts", "2026-11-24T12:00:00.123456Z", data)
        for said in (event, event._replace(policy="/p.cf:1", handle="h", refresh=60)):
            assert read(encode_event(said))[0] == said


@more
@given(answer=answers)
def test_any_answer(answer: Answer) -> None:
    """To the byte."""
    assert codec.encode_answer(answer) == wire.encode_answer(answer)


@more
@given(event=events)
def test_what_is_published(event: Event) -> None:
    """An event that is encoded here is the same event to everybody."""
    assert wire.decode_event(codec.encode_event(event)) == event


@pytest.mark.parametrize("value", [{"b": 1, "a": [{"d": 2, "c": None}]}, "é\n", 1.5, True, None, 2**70])
def test_one_text_of_a_value(value: object) -> None:
    """The keys are sorted at every depth: equal values have equal digests."""
    assert codec.text_of(value) == wire.canonical(value)
