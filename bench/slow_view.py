"""Measures acknowledgements of a cf-messaged beside a view that runs until it is cut. Started by bench/slow_view.

An event counts from when it was due, not from when it could be said: a listener that stops for a while pays for all
that was due meanwhile. Exit status 0 only if the view was cut, and held up the events no more than is allowed.
"""

from __future__ import annotations

import argparse
import select
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
from figures import machine, ms, p99  # noqa: E402 - from the folders just added

from cf_messaged.store import Store  # noqa: E402
from cf_messaging.wire import REFUSED, STORED, Answer, Event  # noqa: E402
from listener import Listener, Node, event, question  # noqa: E402

SAMPLES = 50_000
NODES = 100
A_SECOND = 500
WARM_UP_S = 1.0
# It reads the store for as long as it may: it holds a snapshot, and keeps a core busy.
SLOW = "SELECT count(*) AS n FROM history AS a JOIN history AS b ON a.time + b.received < a.row"
# What p99 beside the view may be: so many times what it is without, or so much more.
TIMES, MORE_S = 3, 0.020


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="without the view, then beside it until it is cut")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="messages-bench-") as folder:
        listener = start(Path(folder), seconds)
        try:
            idle, beside, answer = measure(listener.endpoint, seconds)
        finally:
            listener.end()
    if not tell(idle, beside, answer):
        sys.exit("The view held up the events for longer than is allowed, or was not cut.")


def start(folder: Path, seconds: float) -> Listener:
    """A listener with a store of some size, and with the view."""
    store, now_us = Store(f"sqlite:///{folder}/store.db"), time.time_ns() // 1000
    for first in range(1, SAMPLES, 1000):
        store.add([(sample(number), now_us) for number in range(first, first + 1000)])
    store.close()
    (folder / "views").mkdir()
    (folder / "views/slow.sql").write_text(SLOW)
    (folder / "settings.toml").write_text(f'views_dir = "{folder}/views"\nview_timeout_s = {seconds}\n')
    return Listener(folder, "--config", str(folder / "settings.toml"))


def sample(number: int) -> Event:
    return event(number, data=number, node=f"web{number % NODES}")


def measure(endpoint: str, seconds: float) -> tuple[list[float], list[float], Answer]:
    """Seconds that acknowledgements took without the view and beside it, and how it was answered."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        asking, producer = Node(context, endpoint), Producer(Node(context, endpoint))
        producer.produce(WARM_UP_S)
        idle = producer.produce(seconds)
        asking.send(question("slow"))
        beside = producer.produce(10 * seconds, until=asking)
        return idle, beside, asking.receive()[1]
    finally:
        context.destroy(linger=0)


class Producer:
    """Says events evenly, whether those before were acknowledged or not."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._said = SAMPLES
        self._due: dict[int, float] = {}  # of what is not acknowledged yet, by its number
        self._took: list[float] = []

    def produce(self, seconds: float, until: Node | None = None) -> list[float]:
        """How long each acknowledgement took; until: whose answer ends it before."""
        self._took, due = [], time.monotonic()
        end = due + seconds
        while due < end and not (until and until.socket.poll(0)):
            self._receive(due)
            self._said += 1
            self._due[self._node.send(sample(self._said))] = due
            due += 1 / A_SECOND
        while self._due:
            self._note(*self._node.receive())
        return self._took

    def _receive(self, until: float) -> None:
        """To the microsecond: a poll of ZeroMQ would be late by up to a millisecond."""
        while True:
            while self._node.socket.poll(0):
                self._note(*self._node.receive())
            left = until - time.monotonic()
            if left <= 0:
                return
            select.select([self._node.socket], [], [], left)

    def _note(self, number: int, answer: Answer) -> None:
        self._took.append(time.monotonic() - self._due.pop(number))
        if answer.status != STORED:
            sys.exit(f"an event was answered '{answer.status}': {answer.reason}")


def tell(idle: list[float], beside: list[float], answer: Answer) -> bool:
    """Prints the table; whether all held."""
    allowed = max(TIMES * p99(idle), p99(idle) + MORE_S)
    print(f"{machine()}; {SAMPLES:,} samples stored, {A_SECOND} events/s")
    print("| acknowledged, ms | events | median | p99 | p99 allowed |\n|---|---|---|---|---|")
    print(f"| idle | {len(idle):,} | {ms(median(idle))} | {ms(p99(idle))} | |")
    print(f"| beside the view | {len(beside):,} | {ms(median(beside))} | {ms(p99(beside))} | {ms(allowed)} |")
    print(f"The view was answered '{answer.status}': {answer.reason}")
    return p99(beside) <= allowed and answer.status == REFUSED and "took longer than" in (answer.reason or "")


if __name__ == "__main__":
    main()
