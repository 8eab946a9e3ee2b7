"""What becomes of the events of one transaction: the rules of docs/wire.md over the tables of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from cf_messaged.intake import CLONED, PROMISED, Verdict
from cf_messaged.tables import changes, history, latest, nodes, seen, streams
from cf_messaged.times import microseconds
from cf_messaging.wire import DUPLICATE, KINDS, REFUSED, STORED, Event, canonical, parse_id


class Arrival(NamedTuple):
    """An event, and what is computed of it once. digest: 16 bytes."""

    event: Event
    received: int
    stream: str
    sequence: int
    data: str
    digest: bytes


def arrival(event: Event, received_us: int) -> Arrival:
    data = canonical(event.data)
    digest = hashlib.blake2b("\0".join((event.kind, event.name, data)).encode(), digest_size=16).digest()
    return Arrival(event, received_us, *parse_id(event.id), data, digest)


@dataclass(slots=True)
class _Stream:
    id: int
    have: int


# One question for all streams of a batch; a clone of another name can have the same stream.
_STREAMS = sa.select(streams).where(streams.c.stream.in_(sa.bindparam("wanted", expanding=True)))
_DIGEST = sa.select(seen.c.digest).where(
    seen.c.stream_id == sa.bindparam("of_stream"), seen.c.sequence == sa.bindparam("of_sequence")
)
_LATEST = sa.select(latest.c.data, latest.c.stream_id, latest.c.sequence).where(
    latest.c.kind == sa.bindparam("kind"), latest.c.name == sa.bindparam("name"), latest.c.node == sa.bindparam("node")
)
_SPEAKER = sa.select(latest.c.node).where(latest.c.kind == "common", latest.c.name == sa.bindparam("of_name"))
_SET_LATEST = insert(latest)
_SET_LATEST = _SET_LATEST.on_conflict_do_update(
    index_elements=["kind", "name", "node"],
    set_={column.name: _SET_LATEST.excluded[column.name] for column in latest.c if not column.primary_key},
    where=sa.or_(
        latest.c.stream_id != _SET_LATEST.excluded.stream_id, latest.c.sequence < _SET_LATEST.excluded.sequence
    ),
)
_HEARD = insert(nodes)
_HEARD = _HEARD.on_conflict_do_update(
    index_elements=["node"],
    set_={"last_seen": _HEARD.excluded.last_seen, "events": nodes.c.events + _HEARD.excluded.events},
)
_HAVE = sa.update(streams).where(streams.c.id == sa.bindparam("of_stream")).values(have=sa.bindparam("highest"))


class Batch:
    """Decide of every event in order, then write what came of it. Nothing holds unless the caller commits."""

    def __init__(self, connection: sa.Connection, alive_within_us: int, said: Sequence[tuple[Event, int]]) -> None:
        self._connection = connection
        self._alive_within_us = alive_within_us
        self._arrivals = [arrival(event, received_us) for event, received_us in said]
        self._streams = self._load_streams()
        self._digests: dict[tuple[int, int], bytes] = {}
        self._speakers: dict[str, str | None] = {}
        self._heard: dict[str, dict[str, Any]] = {}
        # Rows that are written at the end, many a statement.
        self._seen: list[dict[str, Any]] = []
        self._latest: list[dict[str, Any]] = []
        self._history: list[dict[str, Any]] = []

    def take(self) -> list[Verdict]:
        verdicts = []
        for new in self._arrivals:
            had = self._stream(new).have
            verdicts.append(self._decide(new)._replace(have=had))
        self._write()
        return verdicts

    def _load_streams(self) -> dict[tuple[str, str], _Stream]:
        keys = {(new.event.node, new.stream) for new in self._arrivals}
        rows = self._connection.execute(_STREAMS, {"wanted": list({stream for _, stream in keys})})
        found = {(row.node, row.stream): _Stream(row.id, row.have) for row in rows}
        for node, stream in keys - found.keys():
            made = sa.insert(streams).values(node=node, stream=stream, have=0).returning(streams.c.id)
            found[node, stream] = _Stream(self._connection.execute(made).scalar_one(), 0)
        return {key: found[key] for key in keys}

    def _stream(self, new: Arrival) -> _Stream:
        return self._streams[new.event.node, new.stream]

    def _decide(self, new: Arrival) -> Verdict:
        event = new.event
        digest = self._digest(new)
        if digest is not None and digest != new.digest:
            reason = f"{event.id} was said before with another value: is {event.node} a clone that kept its memory?"
            return Verdict(REFUSED, reason=reason, kind=CLONED)
        speaker = self._other_speaker(new) if digest is None and KINDS[event.kind].single else None
        self._hear(new, stored=digest is None and speaker is None)
        if digest is not None:
            return Verdict(DUPLICATE)
        if speaker:
            return Verdict(REFUSED, reason=f"promised by {speaker}", kind=PROMISED)
        return Verdict(STORED, note=self._keep(new))

    def _digest(self, new: Arrival) -> bytes | None:
        """Of what took effect under this id, if anything did: nothing can have that is higher than all before."""
        stream = self._stream(new)
        if new.sequence > stream.have:
            return None
        if (stream.id, new.sequence) in self._digests:
            return self._digests[stream.id, new.sequence]
        return self._connection.execute(_DIGEST, {"of_stream": stream.id, "of_sequence": new.sequence}).scalar()

    def _hear(self, new: Arrival, stored: bool) -> None:
        """A clock that was set back sets last_seen back, else the node would seem alive until the clock is there."""
        heard = self._heard.setdefault(
            new.event.node, {"node": new.event.node, "first_seen": new.received, "events": 0}
        )
        heard["last_seen"] = new.received
        heard["events"] += stored

    def _other_speaker(self, new: Arrival) -> str | None:
        """Who says this common information, unless it is silent: then what it said is removed."""
        name = new.event.name
        if name not in self._speakers:
            self._speakers[name] = self._connection.execute(_SPEAKER, {"of_name": name}).scalar()
        speaker = self._speakers[name]
        if speaker in (None, new.event.node):
            return None
        last = self._last_seen(speaker)
        if last is not None and new.received - last <= self._alive_within_us:
            return speaker
        silent = latest.c.kind == "common", latest.c.name == name, latest.c.node == speaker
        self._connection.execute(sa.delete(latest).where(*silent))
        return None

    def _last_seen(self, node: str) -> int | None:
        if node in self._heard:
            return int(self._heard[node]["last_seen"])
        return self._connection.execute(sa.select(nodes.c.last_seen).where(nodes.c.node == node)).scalar()

    def _keep(self, new: Arrival) -> str | None:
        """Returns a note of static information that changed."""
        stream = self._stream(new)
        stream.have = max(stream.have, new.sequence)
        self._digests[stream.id, new.sequence] = new.digest
        row = {"stream_id": stream.id, "sequence": new.sequence, "digest": new.digest, "received": new.received}
        self._seen.append(row)
        if KINDS[new.event.kind].history:
            self._history.append({"id": new.event.id, "kind": new.event.kind, "data": new.data, **_said(new)})
            self._latest.append(_latest(new, stream.id))
            return None
        if KINDS[new.event.kind].single:
            self._speakers[new.event.name] = new.event.node
        return self._replace(new, stream.id)

    def _replace(self, new: Arrival, stream_id: int) -> str | None:
        """At once, since what comes next in this batch compares itself with it."""
        event = new.event
        before = self._connection.execute(_LATEST, {"kind": event.kind, "name": event.name, "node": event.node}).first()
        self._connection.execute(_SET_LATEST, _latest(new, stream_id))
        older = before is not None and before.stream_id == stream_id and before.sequence > new.sequence
        if before is None or older or before.data == new.data or event.kind != "static":
            return None
        self._connection.execute(sa.insert(changes), {**_said(new), "before": before.data, "after": new.data})
        return f"static information {event.name} of {event.node} changed"

    def _write(self) -> None:
        highest = [{"of_stream": stream.id, "highest": stream.have} for stream in self._streams.values()]
        for statement, rows in (
            (_HEARD, list(self._heard.values())),
            (_HAVE, highest),
            (_SET_LATEST, self._latest),
            (sa.insert(seen), self._seen),
            (sa.insert(history), self._history),
        ):
            if rows:
                self._connection.execute(statement, rows)


def _latest(new: Arrival, stream_id: int) -> dict[str, Any]:
    return {
        "kind": new.event.kind,
        "data": new.data,
        "refresh": new.event.refresh,
        "policy": new.event.policy,
        "handle": new.event.handle,
        "stream_id": stream_id,
        "sequence": new.sequence,
        **_said(new),
    }


def _said(new: Arrival) -> dict[str, Any]:
    """The columns that every table of values has, but for the value."""
    event = new.event
    return {"node": event.node, "name": event.name, "time": microseconds(event.time), "received": new.received}
