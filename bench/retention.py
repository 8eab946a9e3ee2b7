"""Measures acknowledgements of a cf-messaged that removes what is too old all the time. Started by bench/retention.

An event counts from when it was due, not from when it could be said: a listener that stops for a while pays for all
that was due meanwhile. Exit status 0 only if rows were removed until the end, and held up the events no more than is
allowed.
"""

from __future__ import annotations

import argparse
import select
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import NamedTuple

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
import big_store  # noqa: E402 - from the folders just added
from figures import machine, ms, p99  # noqa: E402
from slow_view import TIMES, WARM_UP_S  # noqa: E402

from cf_messaged.partitions import DAY_US  # noqa: E402
from cf_messaging.wire import STORED, Answer  # noqa: E402
from listener import Listener, Node, event  # noqa: E402

PRODUCERS = 20
# Days: what all rows of the store are older than, while it has something to remove; and what it keeps.
AGE, KEPT = 46, 40
TABLES = "history", "changes", "seen"


class Measured(NamedTuple):
    """took: seconds of each acknowledgement. swept: old rows that were removed meanwhile. left: after it."""

    took: list[float]
    swept: int
    left: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15, help="without anything to remove, then with")
    parser.add_argument("--pairs", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--a-second", type=int, default=500, help="events that are said, of all producers together")
    parser.add_argument("--events", type=int, default=500_000, help="in the store before")
    settings = parser.parse_args()
    tell_machine(settings)
    pairs = [measure_pair(settings) for _ in range(settings.pairs)]
    ratio = median(p99(busy.took) / p99(idle.took) for idle, busy in pairs)
    print(f"p99 while old rows are removed: {ratio:.1f} times idle (median); allowed {TIMES}")
    if ratio > TIMES or not all(busy.left for _, busy in pairs):
        sys.exit("What was removed held up the events for longer than is allowed, or was removed before the end.")


def measure_pair(settings: argparse.Namespace) -> tuple[Measured, Measured]:
    """Without anything to remove, and with; prints both."""
    idle, busy = (measure(age, settings) for age in (0, AGE))
    for name, found in (("idle", idle), ("while old rows are removed", busy)):
        took = f"{len(found.took):,} | {ms(median(found.took))} | {ms(p99(found.took))}"
        print(f"| {name} | {took} | {found.swept:,} | {found.left:,} |", flush=True)
    return idle, busy


def measure(age: int, settings: argparse.Namespace) -> Measured:
    """age: days of the youngest event that is in the store before."""
    began_us = time.time_ns() // 1000
    with tempfile.TemporaryDirectory(prefix="messages-bench-") as folder:
        path, config = Path(folder) / "store.db", Path(folder) / "settings.toml"
        big_store.fill(path, settings.events, began_us - age * DAY_US)
        config.write_text("".join(f"keep_{kind}_days = {KEPT}\n" for kind in ("state", "dynamic", "changes")))
        listener = Listener(path.parent, "--config", str(config))
        try:
            return _measure(listener, began_us, settings)
        finally:
            listener.end()


def _measure(listener: Listener, began_us: int, settings: argparse.Namespace) -> Measured:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        producers = Producers([Node(context, listener.endpoint) for _ in range(PRODUCERS)], settings.a_second)
        producers.produce(WARM_UP_S)
        before = old_rows(listener.store, began_us)
        took = producers.produce(settings.seconds)
        left = old_rows(listener.store, began_us)
        return Measured(took, before - left, left)
    finally:
        context.destroy(linger=0)


def old_rows(store: Path, before_us: int) -> int:
    """What was there before the listener."""
    with closing(sqlite3.connect(store)) as connection:
        counted = (f"SELECT count(*) FROM {table} WHERE received <= {before_us}" for table in TABLES)
        return sum(connection.execute(query).fetchone()[0] for query in counted)


class Producers:
    """They say events evenly, in turn, whether those before were acknowledged or not."""

    def __init__(self, nodes: list[Node], a_second: int) -> None:
        self._nodes, self._a_second = nodes, a_second
        self._said = 0
        self._due: dict[tuple[Node, int], float] = {}  # of what is not acknowledged yet
        self._took: list[float] = []

    def produce(self, seconds: float) -> list[float]:
        """How long each acknowledgement took."""
        self._took, due = [], time.monotonic()
        end = due + seconds
        while due < end:
            self._receive(due)
            self._say(due)
            due += 1 / self._a_second
        while self._due:
            self._receive(time.monotonic() + 0.001)
        return self._took

    def _say(self, due: float) -> None:
        self._said += 1
        sequence, number = divmod(self._said, PRODUCERS)
        said = event(sequence + 1, data=self._said, node=f"producer{number}", stream=f"{number + 2**64:032x}")
        self._due[self._nodes[number], self._nodes[number].send(said)] = due

    def _receive(self, until: float) -> None:
        """To the microsecond: a poll of ZeroMQ would be late by up to a millisecond."""
        while True:
            for node in self._nodes:
                while node.socket.poll(0):
                    self._note(node, *node.receive())
            left = until - time.monotonic()
            if left <= 0:
                return
            select.select([node.socket for node in self._nodes], [], [], left)

    def _note(self, node: Node, number: int, answer: Answer) -> None:
        self._took.append(time.monotonic() - self._due.pop((node, number)))
        if answer.status != STORED:
            sys.exit(f"an event was answered '{answer.status}': {answer.reason}")


def tell_machine(settings: argparse.Namespace) -> None:
    print(f"{machine()}; {settings.events:,} events in the store before; {PRODUCERS} producers, {settings.a_second}/s")
    print("| acknowledged, ms | events | median | p99 | rows removed | left |")
    print("|---|---|---|---|---|---|", flush=True)


if __name__ == "__main__":
    main()
