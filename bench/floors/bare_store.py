"""A cf-messaged over a store that does what intake_floor.py does, and nothing else: what the best of all stores would
bring. Argument: the database. Prints where it listens, and runs until its input ends.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from cf_messaged.config import Config
from cf_messaged.intake import Verdict
from cf_messaged.service import Service
from cf_messaged.store import Store
from cf_messaging.wire import STORED, Event

RAW = 256 * b"x"  # as long as an event of bench/intake


class BareStore(Store):
    """Keeps as many raw bytes as it is told of events."""

    def __init__(self, url: str, path: str) -> None:
        super().__init__(url)
        self._raw = sqlite3.connect(path, isolation_level=None)
        self._raw.execute("PRAGMA journal_mode = WAL")
        self._raw.execute("PRAGMA synchronous = FULL")
        self._raw.execute("CREATE TABLE events (event BLOB NOT NULL)")

    def add(self, arrivals: Sequence[tuple[Event, int]]) -> list[Verdict]:
        self._raw.execute("BEGIN IMMEDIATE")
        self._raw.executemany("INSERT INTO events VALUES (?)", [(RAW,) for _ in arrivals])
        self._raw.execute("COMMIT")
        return [Verdict(STORED, 12345) for _ in arrivals]


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_input, daemon=True).start()
config = Config(store=f"sqlite:///{sys.argv[1]}.messages", request="tcp://127.0.0.1:*")
service = Service(config, BareStore(config.store, sys.argv[1]))
print(service.endpoints["request"], flush=True)
service.run()
