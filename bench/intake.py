"""Measures durable, acknowledged events of a cf-messaged beside a bare loop that does the same. See bench/intake.

Both keep them on one file system, and are loaded by the same producers, in turn; what counts is the median of the
ratios, pair by pair. Exit status 0 only if these are what is wanted, and all that was acknowledged is in the store.
The bare loop keeps them in SQLite; of a cf-messaged on PostgreSQL the ratio to that is told, and decides nothing. So is
that of one on a bare store, which does what the loop does: more than that no store can bring. A virtual disk may take a
tenth of the time that one of its own takes for a sync; --slower has strace add the rest, for both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
from figures import machine  # noqa: E402 - from the folders just added

from cf_messaging.wire import encode_event, event_id  # noqa: E402
from listener import Keys, Listener, event  # noqa: E402
from postgres import Server  # noqa: E402

FLOORS = ROOT / "bench/floors"
EVENT_BYTES = 256
WARM_UP_S = 1.0
PATIENCE_MS = 30_000
STORED = b'"status":"stored"'

Socket = zmq.Socket[bytes]


class Load(NamedTuple):
    """in_flight: of each producer. wanted, aim: of the floor's events a second; an aim is told, and decides nothing."""

    producers: int
    in_flight: int
    wanted: float = 0
    aim: str = ""


LOADS = {
    "sqlite": (Load(50, 100, wanted=0.25, aim="0.40"), Load(1, 1, wanted=0.7)),
    "postgresql": (Load(50, 100), Load(1, 1)),
    "bare": (Load(50, 100), Load(1, 1)),
}


class Listening(NamedTuple):
    """kept: counts the events in the store."""

    endpoint: str
    kept: Callable[[], int]


class Produced(NamedTuple):
    """acknowledged: in all, also before and after what was measured."""

    a_second: float
    acknowledged: int


class Measured(NamedTuple):
    """lost: acknowledged, but not in the store."""

    a_second: float
    acknowledged: int
    lost: int


class Settings(NamedTuple):
    """slower: by how many ms each sync is."""

    seconds: float
    pairs: int
    folder: Path
    store: str
    slower: float

    @property
    def under(self) -> list[str]:
        """The command that the two are started by."""
        syncs = ["-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_exit={1000 * self.slower:.0f}"]
        return ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", os.devnull, *syncs] if self.slower else []


Side = Callable[[Path, Sequence[str]], AbstractContextManager[Listening]]
Pair = tuple[Measured, Measured]  # of the candidate, and of the floor


def main() -> None:
    settings = read_arguments()
    tell_machine(settings)
    # Spawned, as the threads of a parent do not survive a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        held = [compare(child, load, settings) for load in LOADS[settings.store]]
    if not all(held):
        sys.exit("Fewer events than wanted, or not all that were acknowledged are in the store.")


def read_arguments() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5, help=f"of a run, after {WARM_UP_S:g} s that do not count")
    parser.add_argument("--pairs", type=int, default=5, help="how often candidate and floor take turns")
    parser.add_argument("--store", choices=LOADS, default="sqlite", help="of cf-messaged")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where both have their stores")
    parser.add_argument("--slower", type=float, default=0, metavar="MS", help="that a sync of SQLite takes longer")
    return Settings(**vars(parser.parse_args()))


# ---- the two that are compared


@contextmanager
def candidate(folder: Path, under: Sequence[str], url: str | None = None) -> Iterator[Listening]:
    listener = Listener(folder, url=url, under=under)
    try:
        yield Listening(listener.endpoint, lambda: sum(row["events"] for row in listener.view("nodes")))
    finally:
        listener.end()


@contextmanager
def on_postgresql(folder: Path, under: Sequence[str]) -> Iterator[Listening]:
    with closing(Server(below=folder.parent)) as server, candidate(folder, under, server.new_store()) as listening:
        yield listening


def floor(folder: Path, under: Sequence[str]) -> AbstractContextManager[Listening]:
    return started("intake_floor.py", folder, under)


def on_bare_store(folder: Path, under: Sequence[str]) -> AbstractContextManager[Listening]:
    return started("bare_store.py", folder, under)


CANDIDATES: dict[str, Side] = {"sqlite": candidate, "postgresql": on_postgresql, "bare": on_bare_store}


@contextmanager
def started(name: str, folder: Path, under: Sequence[str]) -> Iterator[Listening]:
    store = folder / "floor.db"
    command = [*under, sys.executable, str(FLOORS / name), str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Listening(process.stdout.readline().strip(), lambda: rows_of(store))
        finally:
            process.communicate()


def rows_of(store: Path) -> int:
    connection = sqlite3.connect(store)
    try:
        return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
    finally:
        connection.close()


# ---- the producers, in a process of their own


class Producer:
    """A node that says events of one stream. It does the least for each: the listener needs the cores."""

    def __init__(self, context: zmq.Context[Socket], endpoint: str, number: int, keys: Keys | None) -> None:
        self.socket = context.socket(zmq.DEALER)
        if keys:
            keys.secure(self.socket)
        self.socket.connect(endpoint)
        self._before, self._after = around_the_sequence(number)
        self._said = 0

    def say(self, count: int) -> None:
        send, before, after = self.socket.send, self._before, self._after
        for said in range(self._said + 1, self._said + count + 1):
            sequence = b"%012d" % said
            send(sequence, zmq.SNDMORE)  # any number will do, as nothing is matched
            send(b"", zmq.SNDMORE)
            send(before + sequence + after)
        self._said += count

    def hear(self) -> int:
        """Takes the acknowledgements that are there; returns how many."""
        receive, heard = self.socket.recv, 0
        try:
            while True:
                receive(zmq.DONTWAIT)  # the number; its message is there as a whole
                receive()
                answer = receive()
                if STORED not in answer:
                    sys.exit(f"an event was answered {answer!r:.300}")
                heard += 1
        except zmq.Again:
            return heard


def around_the_sequence(number: int) -> tuple[bytes, bytes]:
    """What comes before and after the sequence in each event of this producer."""
    none, stream = event_id("", 0).encode(), uuid.uuid4().hex
    spare = EVENT_BYTES - len(encode_event(event(0, data="", node=f"web{number}", stream=stream)))
    frame = encode_event(event(0, data=spare * "x", node=f"web{number}", stream=stream))
    assert len(frame) == EVENT_BYTES
    before, separator, after = frame.partition(none)
    return before + separator[:1], after


class Producers:
    """Each keeps as many events in flight as it may. keys: of each, if the listener wants any."""

    def __init__(self, context: zmq.Context[Socket], endpoint: str, load: Load, keys: Sequence[Keys] = ()) -> None:
        known: Sequence[Keys | None] = keys or [None] * load.producers
        made = [Producer(context, endpoint, number, known[number]) for number in range(load.producers)]
        self._of = {producer.socket: producer for producer in made}
        self._poller = zmq.Poller()
        for producer in made:
            self._poller.register(producer.socket, zmq.POLLIN)
            producer.say(load.in_flight)
        self._in_flight = load.producers * load.in_flight

    def produce(self, seconds: float) -> int:
        """Returns how many were acknowledged."""
        acknowledged, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for producer in self._answered():
                heard = producer.hear()
                producer.say(heard)
                acknowledged += heard
        return acknowledged

    def finish(self) -> int:
        """Says nothing more; returns how many of those in flight were acknowledged: all."""
        left = self._in_flight
        while left:
            left -= sum(producer.hear() for producer in self._answered())
        return self._in_flight

    def _answered(self) -> list[Producer]:
        ready = self._poller.poll(PATIENCE_MS)
        if not ready:
            sys.exit(f"no answer for {PATIENCE_MS} ms")
        return [self._of[socket] for socket, _ in ready]


def produce(endpoint: str, load: Load, seconds: float, keys: Sequence[Keys] = ()) -> Produced:
    context: zmq.Context[Socket] = zmq.Context()
    try:
        producers = Producers(context, endpoint, load, keys)
        before, began = producers.produce(WARM_UP_S), time.monotonic()
        counted = producers.produce(seconds)
        took = time.monotonic() - began
        return Produced(counted / took, before + counted + producers.finish())
    finally:
        context.destroy(linger=0)


# ---- to compare


def compare(child: Executor, load: Load, settings: Settings) -> bool:
    """Prints a row; whether it is as wanted."""
    pairs = [measure_pair(child, load, settings) for _ in range(settings.pairs)]
    ratio = median(ours.a_second / theirs.a_second for ours, theirs in pairs)
    tell(load, pairs, ratio)
    return ratio >= load.wanted and not any(one.lost for pair in pairs for one in pair)


def measure_pair(child: Executor, load: Load, settings: Settings) -> Pair:
    return measure(CANDIDATES[settings.store], child, load, settings), measure(floor, child, load, settings)


def measure(side: Side, child: Executor, load: Load, settings: Settings) -> Measured:
    with (
        tempfile.TemporaryDirectory(prefix="messages-bench-", dir=settings.folder) as folder,
        side(Path(folder), settings.under) as listening,
    ):
        produced = child.submit(produce, listening.endpoint, load, settings.seconds).result()
        return Measured(*produced, lost=max(0, produced.acknowledged - listening.kept()))


def sync_s(folder: Path) -> float:
    """Of 4 KiB: what any durable event costs at least."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        took = []
        for _ in range(200):
            began = time.monotonic()
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fdatasync(file.fileno())
            took.append(time.monotonic() - began)
    return median(took)


def tell_machine(settings: Settings) -> None:
    slower = f", and {settings.slower:g} ms more by strace" if settings.slower else ""
    print(
        f"{machine()}; stores in {settings.folder}, where a sync takes {1000 * sync_s(settings.folder):.2f} ms{slower}"
    )
    print(f"{EVENT_BYTES} bytes an event, {settings.pairs} pairs of {settings.seconds:g} s each, medians")
    print("| producers x in flight | cf-messaged, events/s | floor, events/s | of the floor | wanted | aim | lost |")
    print("|---|---|---|---|---|---|---|", flush=True)


def tell(load: Load, pairs: list[Pair], ratio: float) -> None:
    ours, theirs = (f"{median(one.a_second for one in side):,.0f}" for side in zip(*pairs))
    lost, acknowledged = (sum(column) for column in zip(*((one.lost, one.acknowledged) for one, _ in pairs)))
    print(
        f"| {load.producers} x {load.in_flight} | {ours} | {theirs} | {ratio:.2f} | {load.wanted or ''} | {load.aim} "
        f"| {lost} of {acknowledged:,} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
