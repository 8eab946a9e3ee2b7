"""Measures what must not cost more the more is kept: see script/proof growth.

Exit status 0 only if nothing costs more than twice at a larger size of what it costs at the smallest.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
import big_store  # noqa: E402 - from the folders just added
from figures import machine  # noqa: E402

from cf_messaged.times import rfc3339  # noqa: E402
from cf_messaging.attributes import read_promise  # noqa: E402
from cf_messaging.information import Information  # noqa: E402
from cf_messaging.memory import Memory  # noqa: E402
from cf_messaging.wire import ANSWERED, STORED, Answer, Event  # noqa: E402
from listener import Listener, Node, event  # noqa: E402

ALLOWED = 2.0
ENDPOINT = "tcp://127.0.0.1:5309"  # nobody is there: what is kept is not said
PROMISES = 1000  # kept in one measurement
ACKNOWLEDGED = 100  # one after the other, in one measurement
IN_FLIGHT = 500
BYTES_AN_EVENT = 700  # on disk, with some to spare

Measure = Callable[[], float]  # seconds


class Price(NamedTuple):
    """unit: in which it is told. at: what measures it, by size, smallest first."""

    what: str
    unit: str
    at: Mapping[int, Measure]


class Found(NamedTuple):
    """Medians by size: seconds, and how often the smallest."""

    seconds: list[float]
    times: list[float]

    @property
    def holds(self) -> bool:
        return max(self.times) <= ALLOWED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--names", type=int, nargs="+", default=[10, 10_000, 1_000_000], help="that a node remembers")
    add("--events", type=int, nargs="+", default=[10_000, 10_000_000], help="in a store")
    add("--rounds", type=int, default=15, help="how often every size is measured")
    add("--folder", type=Path, default=Path("/var/tmp"), help="where the stores are; some GB")
    settings = parser.parse_args()
    check_room(settings.folder, sum(settings.events) * BYTES_AN_EVENT)
    with tempfile.TemporaryDirectory(prefix="messages-growth-", dir=settings.folder) as folder:
        held = list(compare(Path(folder), settings))
    if not all(held):
        sys.exit(f"Not everything costs at most {ALLOWED:g} times what it costs at the smallest size.")


def compare(folder: Path, settings: argparse.Namespace) -> Iterator[bool]:
    """Prints the tables; of each row whether it holds."""
    print(f"{machine()}; {settings.rounds} rounds, medians")
    head("a promise of static information is kept", "names remembered", settings.names)
    for price in of_promises(folder, settings.names):
        yield tell(price, measured(price, settings.rounds))
    with listeners(folder, settings.events) as listening:
        head("over a socket", "events stored", settings.events)
        for price in of_listeners(listening):
            yield tell(price, measured(price, settings.rounds))


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: --folder")


# ---- to measure


def measured(price: Price, rounds: int) -> Found:
    """After one round that does not count."""
    all_rounds = [[measure() for measure in price.at.values()] for _ in range(rounds + 1)][1:]
    ratios = [[one / each_round[0] for one in each_round] for each_round in all_rounds]
    return Found([median(column) for column in zip(*all_rounds)], [median(column) for column in zip(*ratios)])


UNITS = {"µs": 1e6, "ms": 1e3}


def head(what: str, of: str, sizes: list[int]) -> None:
    columns = [f"{size:,} {of}" for size in sizes]
    print(f"\n| {what} | {' | '.join(columns)} | times |\n|{'---|' * (len(sizes) + 2)}", flush=True)


def tell(price: Price, found: Found) -> bool:
    """Prints a row; whether it holds."""
    figures = " | ".join(f"{seconds * UNITS[price.unit]:,.1f} {price.unit}" for seconds in found.seconds)
    times = ", ".join(f"{each:.2f}" for each in found.times[1:])
    print(f"| {price.what} | {figures} | {times}{'' if found.holds else ' **MORE THAN ALLOWED**'} |", flush=True)
    return found.holds


# ---- what a node pays


def of_promises(folder: Path, sizes: list[int]) -> Iterator[Price]:
    folders = {size: folder / f"node-{size}" for size in sizes}
    for size, state_dir in folders.items():
        remember(state_dir, size)
    with ExitStack() as stack:
        runs = {size: stack.enter_context(closing(information(folders[size]))) for size in sizes}
        yield Price("one of many in a run", "µs", {size: partial(keep_many, runs[size], size) for size in sizes})
    yield Price("the first of a run", "µs", {size: partial(keep_first, folders[size], size) for size in sizes})
    yield Price("a whole run with one", "ms", {size: partial(run_module, folders[size], size) for size in sizes})


def remember(state_dir: Path, count: int) -> None:
    """The memory of a node that a listener has acknowledged so many values."""
    path = state_dir / "messages/memory.db"
    Memory(str(path), print).close()
    now = int(time.time())
    rows = (("web1", "static", name(number), f'"{number}"', now, now) for number in range(count))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO service (endpoints, store) VALUES (?, 'store')", (ENDPOINT,))
        connection.executemany("INSERT INTO said SELECT id, ?, ?, ?, ?, ?, ? FROM service", rows)


def name(number: int) -> str:
    return f"name {number}"


def attributes(number: int) -> dict[str, str]:
    return {"information": "static", "endpoint": ENDPOINT, "payload": str(number), "node": "web1"}


def information(state_dir: Path) -> Information:
    return Information(never, never, str(state_dir))


def never(*said: object) -> Any:
    sys.exit(f"a promise that is kept is not said: {said}")


def keep(information: Information, number: int) -> None:
    promise = read_promise(name(number), attributes(number))
    outcome = information.say(promise, str(number), "", time.monotonic())
    if outcome.result != "kept":
        sys.exit(f"a promise that the listener knows is not kept: {outcome}")


def keep_many(information: Information, size: int) -> float:
    """Of names all over the memory."""
    numbers = list(islice(cycle(range(0, size, max(1, size // PROMISES))), PROMISES))
    began = time.perf_counter()
    for number in numbers:
        keep(information, number)
    return (time.perf_counter() - began) / len(numbers)


def keep_first(state_dir: Path, size: int) -> float:
    began = time.perf_counter()
    with closing(information(state_dir)) as opened:
        keep(opened, size // 2)
    return time.perf_counter() - began


def run_module(state_dir: Path, size: int) -> float:
    """As cf-agent starts it."""
    number = size // 2
    request = {
        "operation": "evaluate_promise",
        "log_level": "info",
        "promise_type": "messages",
        "promiser": name(number),
        "attributes": {**attributes(number), "state_dir": str(state_dir)},
    }
    said = f'cf-agent 3.21.0 v1\n\n{json.dumps(request)}\n\n{{"operation":"terminate"}}\n\n'
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, str(ROOT / "messages_promise.py")], input=said, capture_output=True, text=True, check=True
    )
    took = time.perf_counter() - began
    if not re.search(r'"result": *"kept"', ended.stdout):
        sys.exit(f"a promise that the listener knows is not kept: {ended.stdout}")
    return took


# ---- what a listener takes

# Of one node and one name both stores have few: a limit makes all answers as long.
VIEWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nodes", {}),
    ("silent", {}),
    ("common", {}),
    ("latest", {}),
    ("latest", {"node": "web7"}),
    ("latest", {"name": "state 7"}),
    ("latest", {"kind": "static"}),
    ("history", {}),
    ("history", {"since": rfc3339(time.time_ns() // 1000 - 86400 * 1_000_000), "limit": 200}),
    ("history", {"node": "web7", "limit": 40}),
    ("history", {"name": "state 7", "limit": 400}),
    ("history", {"kind": "state"}),
    ("history", {"kind": "dynamic", "limit": 400}),
    ("history", {"node": "web7", "name": "state 7", "limit": 2}),
    ("history", {"node": "web7", "kind": "dynamic", "limit": 2}),
    ("history", {"node": "web7", "name": "once"}),
    ("changes", {"limit": 200}),
    ("changes", {"node": "web7", "limit": 1}),
    ("changes", {"name": "os", "limit": 200}),
    ("changes", {"node": "web7", "name": "os", "limit": 1}),
)


def of_listeners(listening: Mapping[int, Listening]) -> Iterator[Price]:
    for view, parameters in VIEWS:
        rows = next(iter(listening.values())).rows(view, parameters)
        given = ", ".join(f"{name} {value}" for name, value in parameters.items())
        what = f"view {view}{given and f' of {given}'}, {rows} rows"
        ask = {size: partial(each.answer, view, parameters, rows) for size, each in listening.items()}
        yield Price(what, "ms", ask)
    yield Price("an acknowledgement", "µs", {size: each.acknowledge for size, each in listening.items()})
    many = {size: each.acknowledge_many for size, each in listening.items()}
    yield Price(f"each of {IN_FLIGHT} in flight", "µs", many)


class Listening:
    """What says and asks, over one socket, as the nodes of whom the listener has so many events."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, stored: int) -> None:
        self._node = Node(context, endpoint)
        self._said = stored

    def acknowledge(self) -> float:
        """The median of some, one after the other."""
        return median(self._say(1) for _ in range(ACKNOWLEDGED))

    def acknowledge_many(self) -> float:
        return self._say(IN_FLIGHT) / IN_FLIGHT

    def rows(self, view: str, parameters: dict[str, Any]) -> int:
        return len(checked(self._node.ask(view, parameters), ANSWERED).rows)

    def answer(self, view: str, parameters: dict[str, Any], wanted: int) -> float:
        began = time.perf_counter()
        rows = self.rows(view, parameters)
        took = time.perf_counter() - began
        if rows != wanted:
            sys.exit(f"view {view} {parameters} has {rows} rows here, {wanted} there: nothing to compare")
        return took

    def _say(self, count: int) -> float:
        """So many at once, each of another node."""
        said = [self._next() for _ in range(count)]
        began = time.perf_counter()
        answers = self._node.say_all(said)
        took = time.perf_counter() - began
        for answer in answers:
            checked(answer, STORED)
        return took

    def _next(self) -> Event:
        turn, node = divmod(self._said, big_store.NODES)
        self._said += 1
        name, data = f"state {turn % 17}", f"{self._said:064}"
        return event(turn + 1, name=name, data=data, node=big_store.name_of(node), stream=big_store.stream_of(node))


def checked(answer: Answer, status: str) -> Answer:
    if answer.status != status:
        sys.exit(f"answered '{answer.status}': {answer.reason}")
    return answer


@contextmanager
def listeners(folder: Path, sizes: list[int]) -> Iterator[dict[int, Listening]]:
    """By how many events they have."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with ExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        yield {size: Listening(context, stack.enter_context(listener(folder, size)), size) for size in sizes}


@contextmanager
def listener(folder: Path, size: int) -> Iterator[str]:
    """The endpoint of one that has so many events."""
    place = folder / f"listener-{size}"
    place.mkdir()
    fill(place / "store.db", size)
    started = Listener(place)
    try:
        yield started.endpoint
    finally:
        started.end()


def fill(path: Path, size: int) -> None:
    began = time.monotonic()
    big_store.fill(path, size)
    took, each = time.monotonic() - began, path.stat().st_size / size
    print(f"\n{size:,} events stored in {took:.0f} s, {each:.0f} bytes each on disk", flush=True)


if __name__ == "__main__":
    main()
