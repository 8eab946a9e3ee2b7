"""Measures a cf-messaged that a fleet is connected to: its memory, and its acknowledgements. Started by bench/fleet.

Each node says an event when it has connected, then one a second, the nodes evenly one after the other. An event counts
from when it was due, to the millisecond. Exit status 0 only if all was acknowledged, and is in the store.

What a connection takes grows until some 200 events went through it, as --seconds 200 shows: from then on libzmq uses
the memory of its queues again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import select
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
from figures import machine, ms, p99  # noqa: E402 - from the folders just added

from cf_messaging.wire import STORED  # noqa: E402
from listener import Keys, Listener, Node, accepted, event  # noqa: E402

# Two descriptors each, of the 1,024 that a process usually may have.
NODES_A_PROCESS = 400
# What the listener allocates for its first events has nothing to do with connections.
WARM_UP_EVENTS = 500
LEAD_S = 0.5  # for all processes to begin together
PATIENCE_S = 60

Numbered: TypeAlias = dict[int, "Keys | None"]
Pipe: TypeAlias = "Connection[Any, Any]"  # it takes no parameters when it runs


class Memory(NamedTuple):
    """KiB: what is resident, and the most that ever was."""

    now: int
    most: int


class Said(NamedTuple):
    """took: seconds of each acknowledgement."""

    events: int
    took: list[float]


class Measured(NamedTuple):
    """memory: with no connection, with all, after the load. events: that were said, also at first. kept: in the store.
    took: seconds of each acknowledgement under load.
    """

    memory: tuple[Memory, Memory, Memory]
    events: int
    acknowledged: int
    kept: int
    took: list[float]

    @property
    def lost(self) -> int:
        return self.events - self.kept

    @property
    def holds(self) -> bool:
        return self.lost == 0 and self.acknowledged == self.events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2000, help="that are connected")
    parser.add_argument("--seconds", type=int, default=60, help="in each of which each node says an event")
    parser.add_argument("--keys", action="store_true", help="of each node, and of the listener")
    settings = parser.parse_args()
    measured = measure(settings.nodes, settings.seconds, settings.keys)
    tell(measured, settings.nodes, settings.seconds)
    if not measured.holds:
        sys.exit("Not all that was said was acknowledged, and is in the store once.")


# ---- the nodes, in processes of their own


class Nodes:
    """Those of one process, by their numbers in the fleet; their keys, if the listener wants any."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, numbers: Numbered) -> None:
        self._nodes = {number: Node(context, endpoint, keys) for number, keys in numbers.items()}
        # A poll of ZeroMQ would look at each of the sockets, every time.
        self._epoll = select.epoll()
        self._by_file = {node.socket.fileno(): number for number, node in self._nodes.items()}
        for file in self._by_file:
            self._epoll.register(file, select.EPOLLIN)
        self._due: dict[tuple[int, int], float] = {}  # of what is not acknowledged yet, by node and event
        self._took: list[float] = []

    def say_first(self) -> Said:
        """They come all at once."""
        for number in self._nodes:
            self._say(number, 1, time.monotonic())
        return self._said(len(self._nodes))

    def say(self, fleet: int, begin: float, seconds: int) -> Said:
        """fleet: how many nodes there are in all processes."""
        for second in range(seconds):
            for number in self._nodes:
                due = begin + second + number / fleet
                self._hear(due)
                self._say(number, second + 2, due)
        return self._said(len(self._nodes) * seconds)

    def _said(self, events: int) -> Said:
        """Once all is acknowledged, or nothing more will be."""
        end = time.monotonic() + PATIENCE_S
        while self._due and time.monotonic() < end:
            self._hear(time.monotonic() + 0.01)
        took, self._took = self._took, []
        return Said(events, took)

    def _say(self, number: int, sequence: int, due: float) -> None:
        node = self._nodes[number]
        said = event(sequence, data=sequence, node=f"node{number}", stream=f"{number + 2**64:032x}")
        self._due[number, node.send(said)] = due
        self._take(number)  # of what came while it was sent, the descriptor tells nothing more

    def _hear(self, until: float) -> None:
        """What is there, and what comes until then."""
        over = False
        while not over:
            left_s = until - time.monotonic()
            over = left_s <= 0
            for file, _ in self._epoll.poll(max(0.0, left_s)):
                self._take(self._by_file[file])

    def _take(self, number: int) -> None:
        node = self._nodes[number]
        while node.socket.poll(0):
            told, answer = node.receive()
            self._took.append(time.monotonic() - self._due.pop((number, told)))
            if answer.status != STORED:
                sys.exit(f"an event was answered '{answer.status}': {answer.reason}")


def live(parent: Pipe, endpoint: str, numbers: Numbered, fleet: int) -> None:
    """Tells what came of the first events; is told when to go on, and for how long; stays until the parent has gone."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        nodes = Nodes(context, endpoint, numbers)
        parent.send(nodes.say_first())
        parent.send(nodes.say(fleet, *parent.recv()))
        parent.poll(None)
    finally:
        context.destroy(linger=0)


# ---- to measure


def measure(nodes: int, seconds: int, has_keys: bool) -> Measured:
    with tempfile.TemporaryDirectory(prefix="messages-bench-") as folder:
        config = Path(folder) / "settings.toml"
        directory, names = config.parent / "keys", ["web1", *(f"node{number}" for number in range(nodes))]
        config.write_text(f"connections = {nodes}\n" + (f'keys_dir = "{directory}"\n' if has_keys else ""))
        listener = Listener(config.parent, "--config", str(config))
        try:
            keys: Sequence[Keys | None] = accepted(directory, names) if has_keys else [None] * len(names)
            warm_up(listener, keys[0])
            return _measure(listener, dict(enumerate(keys[1:])), seconds)
        finally:
            listener.end()


def warm_up(listener: Listener, keys: Keys | None) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    Node(context, listener.endpoint, keys).say_all(event(number) for number in range(1, WARM_UP_EVENTS + 1))
    context.destroy(linger=0)


def _measure(listener: Listener, nodes: Numbered, seconds: int) -> Measured:
    before, kept_before = memory(listener), kept(listener.store)
    with connected(listener.endpoint, nodes) as processes:
        first = [process.recv() for process in processes]
        with_all = memory(listener)
        begin = time.monotonic() + LEAD_S
        for process in processes:
            process.send((begin, seconds))
        then = [process.recv() for process in processes]
        after = memory(listener)
    said, took = sum(each.events for each in first + then), [one for each in then for one in each.took]
    acknowledged = sum(len(each.took) for each in first + then)
    return Measured((before, with_all, after), said, acknowledged, kept(listener.store) - kept_before, took)


@contextmanager
def connected(endpoint: str, nodes: Numbered) -> Iterator[list[Pipe]]:
    """Pipes to the processes of the nodes."""
    spawn = multiprocessing.get_context("spawn")  # the threads of a parent do not survive a fork
    count = -(-len(nodes) // NODES_A_PROCESS)
    with ExitStack() as stack:
        pipes = []
        for first in range(count):
            ours, theirs = spawn.Pipe()
            own = {number: keys for number, keys in nodes.items() if number % count == first}
            process = spawn.Process(target=live, args=(theirs, endpoint, own, len(nodes)), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            pipes.append(stack.enter_context(ours))
        yield pipes


def kept(store: Path) -> int:
    with closing(sqlite3.connect(store)) as connection:
        return int(connection.execute("SELECT count(*) FROM history").fetchone()[0])


def memory(listener: Listener) -> Memory:
    status = Path(f"/proc/{listener.process.pid}/status").read_text("ascii")
    found = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return Memory(int(found["VmRSS"]), int(found["VmHWM"]))


def tell(measured: Measured, nodes: int, seconds: int) -> None:
    print(f"{machine()}; {nodes:,} nodes, for {seconds} s an event/s each")
    print("| memory of the listener | MiB | at most until then, MiB | KiB a connection |\n|---|---|---|---|")
    moments = ("no node is connected", "all are, each has said an event", "under load")
    before = measured.memory[0].now
    for moment, (now, most) in zip(moments, measured.memory):
        print(f"| {moment} | {now / 1024:.1f} | {most / 1024:.1f} | {(now - before) / nodes:.1f} |")
    print("\n| said | acknowledged | lost | acknowledged, ms: median | p99 |\n|---|---|---|---|---|")
    counted = f"{measured.events:,} | {measured.acknowledged:,} | {measured.lost}"
    print(f"| {counted} | {ms(median(measured.took))} | {ms(p99(measured.took))} |")


if __name__ == "__main__":
    main()
