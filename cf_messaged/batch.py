"""What becomes of the events of one transaction: the rules of docs/wire.md over the tables of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.engine.interfaces import DBAPICursor

from cf_messaged.codec import text_of
from cf_messaged.intake import CLONED, PROMISED, Verdict
from cf_messaged.statements import Statements
from cf_messaged.times import microseconds
from cf_messaging.wire import DUPLICATE, KINDS, REFUSED, STORED, Event

_Row = dict[str, Any]
_Key = tuple[str, str, str]  # kind, name, node: of what there is one latest value


class Arrival(NamedTuple):
    """An event, and what is computed of it once. digest: 16 bytes."""

    event: Event
    received: int
    stream: str
    sequence: int
    data: str
    digest: bytes

    @property
    def key(self) -> _Key:
        return self.event.kind, self.event.name, self.event.node


def arrival(event: Event, received_us: int) -> Arrival:
    data = text_of(event.data)
    digest = hashlib.blake2b("\0".join((event.kind, event.name, data)).encode(), digest_size=16).digest()
    return Arrival(event, received_us, event.id[:32], int(event.id[33:]), data, digest)


@dataclass(slots=True)
class _Stream:
    id: int
    have: int
    heard: int


class Batch:
    """Decide of every event in order, then write what came of it. Nothing holds unless the caller commits.

    Rows are locked, and written, in the order of their keys: two listeners on one database would else lock each other
    out for ever.
    """

    def __init__(
        self,
        sql: Statements,
        cursor: DBAPICursor,
        alive_within_us: int,
        said: Sequence[tuple[Event, int]],
        last_row: int,
    ) -> None:
        """cursor: of the driver, since a batch has too many rows for anything above it. last_row: of the history."""
        self._sql = sql
        self._cursor = cursor
        self.last_row = last_row
        self._alive_within_us = alive_within_us
        self._arrivals = [arrival(event, received_us) for event, received_us in said]
        if any(KINDS[new.event.kind].single for new in self._arrivals):
            self._run(self._sql.lock_speakers)
        self._streams = self._load_streams()
        self._digests: dict[tuple[int, int], bytes] = {}
        self._speakers: dict[str, str | None] = {}
        # Rows that are written at the end, many a statement.
        self._heard: dict[str, _Row] = {}
        self._latest: dict[_Key, _Row] = {}
        self._seen: list[_Row] = []
        self._history: list[_Row] = []
        self._changes: list[_Row] = []
        self.news: list[Event] = []  # what has become the latest of its name

    def take(self) -> list[Verdict]:
        verdicts = [self._decide(new, self._stream(new).have) for new in self._arrivals]
        self._write()
        return verdicts

    def _load_streams(self) -> dict[tuple[str, str], _Stream]:
        """A clone that was renamed can have the stream of another node: of both it is asked for.

        Those that are missing are added before any is locked: who adds one may have to wait for another listener that
        adds it too, and must have nothing that this one waits for.
        """
        keys = sorted({(new.stream, new.event.node) for new in self._arrivals})
        wanted = self._sql.list_of({stream for stream, _ in keys})
        found = self._found_streams(self._sql.streams, wanted)
        missing = [key for key in keys if key not in found]
        if missing:
            new = [{"stream": stream, "node": node, "have": 0, "heard": 0} for stream, node in missing]
            self._run(self._sql.add_stream, new)
        last = self._sql.lock_streams or (missing and self._sql.streams)
        found = self._found_streams(last, wanted) if last else found
        # One that was there may have been removed as old, before it was locked.
        return found if found.keys() >= set(keys) else self._load_streams()

    def _found_streams(self, statement: str, wanted: object) -> dict[tuple[str, str], _Stream]:
        rows = self._run(statement, {"wanted": wanted})
        return {(stream, node): _Stream(*values) for stream, node, *values in rows}

    def _stream(self, new: Arrival) -> _Stream:
        return self._streams[new.stream, new.event.node]

    def _decide(self, new: Arrival, had: int) -> Verdict:
        event = new.event
        digest = self._digest(new)
        if digest is not None and digest != new.digest:
            reason = f"{event.id} was said before with another value: is {event.node} a clone that kept its memory?"
            return Verdict(REFUSED, had, reason, CLONED)
        speaker = self._other_speaker(new) if digest is None and KINDS[event.kind].single else None
        self._hear(new, stored=digest is None and speaker is None)
        if digest is not None:
            return Verdict(DUPLICATE, had)
        if speaker:
            return Verdict(REFUSED, had, f"promised by {speaker}", PROMISED)
        return Verdict(STORED, had, note=self._keep(new))

    def _digest(self, new: Arrival) -> bytes | None:
        """Of what took effect under this id, if anything did: nothing can have that is higher than all before."""
        stream = self._stream(new)
        if new.sequence > stream.have:
            return None
        if (stream.id, new.sequence) in self._digests:
            return self._digests[stream.id, new.sequence]
        found: bytes | None = self._value(self._sql.digest, {"stream_id": stream.id, "sequence": new.sequence})
        return found

    def _hear(self, new: Arrival, stored: bool) -> None:
        """A clock that was set back sets last_seen back, else the node would seem alive until the clock is there."""
        node = new.event.node
        heard = self._heard.setdefault(node, {"node": node, "first_seen": new.received, "events": 0})
        heard["last_seen"] = self._stream(new).heard = new.received
        heard["events"] += stored

    def _other_speaker(self, new: Arrival) -> str | None:
        """Who says this common information, unless it is silent: then what it said is removed."""
        name = new.event.name
        if name not in self._speakers:
            self._speakers[name] = self._value(self._sql.speaker, {"name": name})
        speaker = self._speakers[name]
        if speaker in (None, new.event.node):
            return None
        last = self._last_seen(speaker)
        if last is not None and new.received - last <= self._alive_within_us:
            return speaker
        self._run(self._sql.remove_latest, {"kind": new.event.kind, "name": name, "node": speaker})
        self._latest.pop((new.event.kind, name, speaker), None)
        return None

    def _last_seen(self, node: str) -> int | None:
        if node in self._heard:
            return int(self._heard[node]["last_seen"])
        last: int | None = self._value(self._sql.last_seen, {"node": node})
        return last

    def _keep(self, new: Arrival) -> str | None:
        """Returns a note of static information that changed."""
        stream, kind = self._stream(new), KINDS[new.event.kind]
        comes_late = new.sequence <= stream.have
        stream.have = max(stream.have, new.sequence)
        self._digests[stream.id, new.sequence] = new.digest
        row = {"stream_id": stream.id, "sequence": new.sequence, "received": new.received}
        self._seen.append({**row, "digest": new.digest})
        said = {"node": new.event.node, "name": new.event.name, "time": microseconds(new.event.time), **row}
        if kind.history:
            self.last_row = max(self.last_row + 1, new.received)
            self._history.append({**said, "row": self.last_row, "kind": kind.name, "data": new.data})
        if kind.single:
            self._speakers[new.event.name] = new.event.node
        before = self._before(new) if comes_late or kind.name == "static" else None
        if before and before["stream_id"] == stream.id and before["sequence"] >= new.sequence:
            return None
        self._set_latest(new, said)
        if kind.name != "static" or before is None or before["data"] == new.data:
            return None
        self._changes.append({**said, "before": before["data"], "after": new.data})
        return f"static information {new.event.name} of {new.event.node} changed"

    def _before(self, new: Arrival) -> _Row | None:
        """The latest value of its name so far."""
        if new.key in self._latest:
            return self._latest[new.key]
        kind, name, node = new.key
        found = self._run(self._sql.latest_value, {"kind": kind, "name": name, "node": node})
        return {"data": found[0][0], "stream_id": found[0][1], "sequence": found[0][2]} if found else None

    def _set_latest(self, new: Arrival, said: _Row) -> None:
        event = new.event
        told = {"refresh": event.refresh, "policy": _plain(event.policy), "handle": _plain(event.handle)}
        self._latest[new.key] = {**said, **told, "kind": event.kind, "data": new.data}
        self.news.append(event)

    def _write(self) -> None:
        streams = sorted(self._streams.values(), key=lambda stream: stream.id)
        have = [{"stream_id": each.id, "highest": each.have, "received": each.heard} for each in streams]
        for statement, rows in (
            (self._sql.set_stream, have),
            (self._sql.hear, [row for _, row in sorted(self._heard.items())]),
            (self._sql.set_latest, [row for _, row in sorted(self._latest.items())]),
            (self._sql.add_seen, self._seen),
            (self._sql.add_history, self._history),
            (self._sql.add_change, self._changes),
        ):
            if rows:
                self._cursor.executemany(statement, rows)
        if self.news:
            self._run(self._sql.tell_others)

    # ---- the driver

    def _run(self, statement: str, given: Mapping[str, Any] | list[_Row] | None = None) -> Sequence[Any]:
        """Returns the rows, if it has any; an empty statement is one that this database needs not."""
        if not statement:
            return []
        if isinstance(given, list):
            self._cursor.executemany(statement, given)
            return []
        self._cursor.execute(statement, given or {})
        return self._cursor.fetchall() if self._cursor.description else []

    def _value(self, statement: str, given: Mapping[str, Any]) -> Any:
        rows = self._run(statement, given)
        return rows[0][0] if rows else None


def _plain(text: str | None) -> str | None:
    """PostgreSQL takes no NUL; names and nodes have none, and in JSON it is escaped."""
    return text and text.replace("\0", "\ufffd")
