"""The intake: any frames become an event or a refusal with a reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_messaged import intake
from cf_messaged.intake import Verdict
from cf_messaged.rights import Rights
from cf_messaging.wire import (
    LATER,
    MAX_EVENT_BYTES,
    REFUSED,
    STORED,
    Answer,
    Event,
    decode_answer,
    encode_answer,
    encode_event,
)
from listener import event, question

STORE = "a" * 32
VALID = json.loads(encode_event(event()))


def body(**changes: Any) -> bytes:
    return json.dumps({**VALID, **changes}).encode()


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth > 1 else []


def refused(frames: list[bytes]) -> Answer:
    said = intake.read(frames, STORE).said
    assert isinstance(said, Answer)
    assert said.status == REFUSED and said.store == STORE and said.reason
    return said


@pytest.mark.parametrize(
    "envelope", [[b"id", b""], [b"id", b"7", b""], [b"id", b"proxy", b"7", b""], [b"\0\0\0\1\2", b""]]
)
def test_the_envelope_comes_back_as_it_was(envelope: list[bytes]) -> None:
    """Everything up to the empty frame is the envelope, of a REQ and of a DEALER with a number."""
    assert intake.read([*envelope, encode_event(event())], STORE)[:2] == (envelope, event())


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"id"], "0 frames after the empty one"),
        ([b"id", b""], "0 frames after the empty one"),
        ([b"id", b"", b"{}", b"{}"], "2 frames after the empty one"),
        ([b"id", encode_event(event())], "no empty frame"),
        ([b"id", b"", b""], "no event"),
        ([b"id", b"", b"\xff"], "no UTF-8"),
        ([b"id", b"", b"[]"], "not an object"),
        ([b"id", b"", b"[" * 10_000], "nested deeper"),
        ([b"id", b"", b" " * (MAX_EVENT_BYTES + 1)], "1048577 bytes"),
        ([b"id", b"", b"9" * 5000], "no event"),
        ([b"id", b"", body(specversion="2.0")], "specversion"),
        ([b"id", b"", body(type="cfengine.messages.gossip")], "unsupported type"),
        ([b"id", b"", body(subject="x" * 10_000)], "MAX_NAME_BYTES"),
        ([b"id", b"", body(source="cfengine://a/b")], "a node is named by"),
        ([b"id", b"", body(time="2026-02-30T00:00:00Z")], "no time of the calendar"),
        ([b"id", b"", body(time="0000-01-01T00:00:00Z")], "no time of the calendar"),
        ([b"id", b"", body(refresh=2**63)], "refresh is not"),
        ([b"id", b"", body(refresh=-1)], "refresh is not"),
        ([b"id", b"", body().replace(b'"data": 1', b'"data": 1e400')], "too large"),
        ([b"id", b"", body(data=nested(62))], "data is nested deeper than 61"),
        ([b"id", b"", body(data="\ud800")], "no UTF-8"),
    ],
)
def test_what_is_no_event_is_refused_with_a_reason(frames: list[bytes], reason: str) -> None:
    """The reason says what is wrong, and the answer can be sent."""
    assert re.search(reason, str(refused(frames).reason))
    assert decode_answer(encode_answer(refused(frames))).status == REFUSED


def test_a_refusal_carries_the_id_where_it_could_be_read() -> None:
    """So that it settles the event at the node."""
    assert refused([b"id", b"", body(time="yesterday")]).id == event().id
    assert refused([b"id", b"", body(refresh=-1)]).id == event().id
    assert refused([b"id", b"", b"nonsense"]).id == ""


def test_a_leap_second_is_a_time() -> None:
    """23:59:60 exists."""
    said = event()._replace(time="2016-12-31T23:59:60Z")
    assert intake.read([b"id", b"", encode_event(said)], STORE).said == said


def test_questions_are_told_from_information() -> None:
    """A view is a question; every kind of information is none."""
    assert intake.is_question(question("nodes"))
    assert not any(intake.is_question(event(kind=kind)) for kind in ("static", "dynamic", "state", "common"))


def test_verdicts_become_answers() -> None:
    """An answer settles the id of its event and no other."""
    stored = intake.answer(event(5), STORE, Verdict(STORED, 7))
    assert decode_answer(encode_answer(stored)) == Answer(event(5).id, STORE, 7, STORED)
    later = intake.later(event(5), STORE, "the disk is full", 10.0)
    assert decode_answer(encode_answer(later)) == Answer(
        event(5).id, STORE, 0, LATER, reason="the disk is full", retry_after=10.0
    )


@pytest.mark.parametrize(
    ("said", "name", "kind", "reason"),
    [
        (event(), "web1", None, ""),
        (question("nodes"), "web1", None, ""),  # what of it may be seen is for who runs the view
        (event(), "web2", intake.NAMED, "by its key it is web2, not web1"),
        (question("nodes"), "web2", intake.NAMED, "by its key it is web2, not web1"),
        (event(kind="common"), "web1", intake.FORBIDDEN, "web1 may not say common information 'load'"),
    ],
)
def test_what_is_said_is_permitted_or_refused(said: Event, name: str, kind: str | None, reason: str) -> None:
    """By the name of the key, then by its rights; the answer goes to who has said it, with the id of what he said."""
    before = intake.Delivery([b"id", b""], said)
    after = intake.permitted(before, name, Rights(), STORE)
    if kind is None:
        assert after is before
        return
    assert isinstance(after.said, Answer) and after.said.reason
    assert (after.envelope, after.kind) == (before.envelope, kind)
    assert (after.said.id, after.said.store, after.said.status) == (said.id, STORE, REFUSED)
    assert after.said.reason.startswith(reason)


def is_understood(frames: list[bytes]) -> None:
    envelope, said, _ = intake.read(frames, STORE)
    assert envelope and envelope == frames[: len(envelope)]
    assert isinstance(said, Event) or decode_answer(encode_answer(said)).reason


@given(st.lists(st.one_of(st.just(b""), st.binary(max_size=50), st.just(encode_event(event()))), max_size=6))
def test_any_frames_are_understood(frames: list[bytes]) -> None:
    """Whatever comes after the routing id is an event or a refusal that can be sent; nothing is raised."""
    is_understood([b"id", *frames])


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*VALID, "refresh", "policy", "handle"]), JSON, max_size=3))
def test_any_fields_are_understood(changes: dict[str, Any]) -> None:
    """An event with any values in its fields, those that JSON should not have among them."""
    is_understood([b"id", b"", body(**changes)])


@given(st.integers(0, len(body())), st.binary(min_size=1, max_size=4))
def test_any_damage_is_understood(place: int, damage: bytes) -> None:
    """An event with other bytes somewhere in it."""
    whole = body()
    is_understood([b"id", b"", whole[:place] + damage + whole[place + len(damage) :]])
