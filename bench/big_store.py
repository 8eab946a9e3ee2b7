"""Fills a store of SQLite with millions of events as a listener would have: quickly, since it need not survive a crash.

tests/test_growth.py holds it to what Store.add makes of the same events.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]
from cf_messaged.store import Store  # noqa: E402 - from the folders just added
from cf_messaged.times import rfc3339  # noqa: E402
from cf_messaging.wire import KINDS, Event, event_id  # noqa: E402

NODES = 200
# What each node says in turn, each time with another value: so every static one has changed.
NAMES = [*(("state", f"state {number}") for number in range(17)), ("dynamic", "addresses"), ("static", "os")]
COMMON = "common"  # comes after these, and each node says it by a name of its own
A_ROUND = len(NAMES) + 1
ONCE = ("dynamic", "once")  # what each node says at first, and never again
SECONDS = 20 * 86400  # in which all came: nothing is too old yet
CHUNK = 100_000
FAST = "journal_mode = MEMORY", "synchronous = OFF", "cache_size = -500000", "locking_mode = EXCLUSIVE"

_Row = tuple[object, ...]


class Said(NamedTuple):
    """An event; at: when it was said and received, UTC microseconds. data: JSON."""

    node: int
    sequence: int
    kind: str
    name: str
    data: str
    at: int

    @property
    def digest(self) -> bytes:
        said = "\0".join((self.kind, self.name, self.data))
        return hashlib.blake2b(said.encode(), digest_size=16).digest()


def name_of(node: int) -> str:
    return f"web{node}"


def stream_of(node: int) -> str:
    return f"{node:032x}"


def event_of(said: Said) -> Event:
    """data is a text without what JSON escapes."""
    id, node = event_id(stream_of(said.node), said.sequence), name_of(said.node)
    return Event(id, said.kind, node, said.name, rfc3339(said.at), said.data[1:-1])


def all_said(first: int, end: int, count: int, until_us: int) -> Iterator[Said]:
    """Those from first to end, of so many in all."""
    step = SECONDS * 1_000_000 // count
    for number in range(first, end):
        turn, node = divmod(number, NODES)
        kind, name = _spoken(turn, node)
        yield Said(node, turn + 1, kind, name, f'"{number:064}"', until_us - step * (count - number))


def _spoken(turn: int, node: int) -> tuple[str, str]:
    if turn == 0:
        return ONCE
    of_round = turn % A_ROUND
    return NAMES[of_round] if of_round < len(NAMES) else (COMMON, f"of {name_of(node)}")


def fill(path: Path, count: int, until_us: int | None = None) -> None:
    """A new store with so many events, the last of which has just come, or at that time."""
    Store(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for setting in FAST:
            connection.execute(f"PRAGMA {setting}").fetchall()
        _Filling(connection).run(count, until_us or time.time_ns() // 1000)
        connection.execute("PRAGMA locking_mode = NORMAL").fetchall()
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    with path.open() as filled:
        os.fsync(filled.fileno())  # else what is measured next pays for it


class _Filling:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._latest: dict[tuple[str, str, int], Said] = {}

    def run(self, count: int, until_us: int) -> None:
        nodes = range(min(NODES, count))
        self._add("streams", (_stream(node, count, until_us) for node in nodes))
        for first in range(0, count, CHUNK):
            self._connection.execute("BEGIN")
            self._add_chunk(list(all_said(first, min(first + CHUNK, count), count, until_us)))
            self._connection.execute("COMMIT")
        self._add("latest", (_latest(said) for said in self._latest.values()))
        seen = "SELECT min(received), max(received) FROM seen WHERE stream_id = ?"
        heard = (self._connection.execute(seen, (node + 1,)).fetchone() for node in nodes)
        self._add("nodes", [(name_of(node), *when, _events(node, count)) for node, when in zip(nodes, heard)])

    def _add_chunk(self, chunk: list[Said]) -> None:
        self._add("seen", ((said.node + 1, said.sequence, said.digest, said.at) for said in chunk))
        self._add("history", (_history(said) for said in chunk if KINDS[said.kind].history))
        self._add("changes", list(self._changes(chunk)))

    def _changes(self, chunk: list[Said]) -> Iterator[_Row]:
        """Takes note of the latest values."""
        for said in chunk:
            key = said.kind, said.name, said.node
            before = self._latest.get(key)
            if before and said.kind == "static":
                yield None, name_of(said.node), said.name, before.data, said.data, said.at, said.at
            self._latest[key] = said

    def _add(self, table: str, rows: Iterable[_Row]) -> None:
        [columns] = self._connection.execute("SELECT count(*) FROM pragma_table_info(?)", (table,)).fetchone()
        self._connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)


def _stream(node: int, count: int, until_us: int) -> _Row:
    events = _events(node, count)
    last = node + (events - 1) * NODES
    [said] = all_said(last, last + 1, count, until_us)
    return node + 1, name_of(node), stream_of(node), events, said.at


def _events(node: int, count: int) -> int:
    """Of a node, of so many in all."""
    return (count - node - 1) // NODES + 1


def _history(said: Said) -> _Row:
    of_node = said.node + 1, said.sequence, name_of(said.node)
    return said.at, *of_node, said.kind, said.name, said.data, said.at, said.at


def _latest(said: Said) -> _Row:
    told = None, None, None  # refresh, policy, handle
    value = said.kind, said.name, name_of(said.node), said.data, said.at, said.at
    return *value, *told, said.node + 1, said.sequence, 0
