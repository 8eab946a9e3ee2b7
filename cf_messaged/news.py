"""What becomes the latest, for subscribers: told by the process that stores it. Of several: news_of_several.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from cf_messaged.tables import latest, streams
from cf_messaged.times import rfc3339
from cf_messaging.wire import Event, event_id

LAST = sa.select(latest, streams.c.stream).join(streams, streams.c.id == latest.c.stream_id)


def event_of(row: Any) -> Event:
    """row: of LAST."""
    id, time = event_id(row.stream, row.sequence), rfc3339(row.time)
    return Event(id, row.kind, row.node, row.name, time, json.loads(row.data), row.policy, row.handle, row.refresh)


class Told:
    """Where one process stores everything: what it has stored since it was asked."""

    poll_s = None

    def __init__(self) -> None:
        self._events: list[Event] = []

    def stored(self, events: Sequence[Event]) -> None:
        self._events += events

    def begin(self) -> None:
        """It always has."""

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        self._events = []

    def files(self) -> list[int]:
        return []
