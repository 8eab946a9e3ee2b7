"""Measures acknowledgements of a cf-messaged with keys while it is flooded. Started by bench/flood.

Twenty nodes say events evenly; an event counts from when it was due. First nobody else is there. Then a process says
events as one node, as fast as it can and whatever it is answered; or, with --enrol, where these twenty have enrolled,
others claim from many addresses to be nodes that they are not. Exit status 0 only if all events of the twenty were
stored, with a 99th percentile no more than is allowed, and the flood was turned away.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
from figures import machine, ms, p99  # noqa: E402 - from the folders just added
from retention import PRODUCERS, Producers  # noqa: E402
from slow_view import WARM_UP_S  # noqa: E402

from bomber import SAID, bombing  # noqa: E402
from cf_messaged.keyring import write  # noqa: E402
from cf_messaging.keys import public_key  # noqa: E402
from cf_messaging.wire import ENROLLED, LATER, WAITS  # noqa: E402
from claimant import claimant  # noqa: E402
from forgers import forging  # noqa: E402
from listener import Keys, Listener, Node, accepted  # noqa: E402
from peers import Socket  # noqa: E402

TIMES = 20  # the 99th percentile, of that without a flood
BOMBER = "bomber"
CLAIMS = 10_000  # that are said beside it, at least
NODES = [f"producer{number}" for number in range(PRODUCERS)]

Flooding = Callable[[], AbstractContextManager[Mapping[str, int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="without the flood, then with it")
    parser.add_argument("--pairs", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--a-second", type=int, default=500, help="events that the nodes say, all together")
    parser.add_argument("--enrol", action="store_true", help="a flood of claims, where nodes enrol")
    settings = parser.parse_args()
    print(f"{machine()}; {PRODUCERS} nodes, {settings.a_second}/s")
    print("| acknowledged, ms | events | median | p99 | the flood said | was answered |\n|---|---|---|---|---|---|")
    ratio = median(measure_pair(settings) for _ in range(settings.pairs))
    print(f"p99 beside {flood_of(settings)}: {ratio:.1f} times idle (median); allowed {TIMES}")
    if ratio > TIMES:
        sys.exit("The flood held up the events of others for longer than is allowed.")


def flood_of(settings: argparse.Namespace) -> str:
    return "false claims" if settings.enrol else "a bomber"


def measure_pair(settings: argparse.Namespace) -> float:
    """How many times the 99th percentile is that without a flood, on the same listener."""
    listening = enrolled if settings.enrol else accepted_by_hand
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="messages-bench-") as folder, running(Path(folder)) as listener:
        try:
            keys, flooding = listening(listener, Path(folder) / "keys", context)
            producers = Producers([Node(context, listener.endpoint, each) for each in keys], settings.a_second)
            producers.produce(WARM_UP_S)
            idle = producers.produce(settings.seconds)
            tell("idle", idle, {})
            with flooding() as told:
                busy = producers.produce(settings.seconds)
            tell(f"beside {flood_of(settings)}", busy, told)
            check(told, settings)
            return p99(busy) / p99(idle)
        finally:
            context.destroy(linger=0)


def check(told: Mapping[str, int], settings: argparse.Namespace) -> None:
    """Whether it was a flood, and was turned away."""
    if not settings.enrol and not told.get(LATER):
        sys.exit("The bomber was never told to come later.")
    if settings.enrol and told[SAID] < CLAIMS:
        sys.exit(f"{told[SAID]} false claims are no flood, {CLAIMS} are: --seconds gives them more time.")
    if told.get(ENROLLED) or told.get(WAITS):
        sys.exit("A false claim was believed.")


@contextmanager
def running(folder: Path) -> Iterator[Listener]:
    listener = Listener(folder, "--keys-dir", str(folder / "keys"))
    try:
        yield listener
    finally:
        listener.end()


def accepted_by_hand(listener: Listener, directory: Path, _: zmq.Context[Socket]) -> tuple[list[Keys], Flooding]:
    """The keys of all nodes, and a flood of events."""
    *keys, bombers = accepted(directory, [*NODES, BOMBER])
    return keys, lambda: bombing(listener.endpoint, BOMBER, bombers)


def enrolled(listener: Listener, directory: Path, context: zmq.Context[Socket]) -> tuple[list[Keys], Flooding]:
    """The keys of all nodes, and a flood of claims, some in the name of the first one's host."""
    office, server = listener.endpoints["enrolment"], public_key(str(directory / "listener.key")).hex()
    nodes = [claimant(context, office, name, server) for name in NODES]
    for node in nodes:
        write(directory / f"trusted/{node.node}.pub", node.host.pem.decode())
        if node.claim().status != ENROLLED:
            sys.exit(f"{node.node} was not enrolled.")
        node.socket.close()
    return [node.keys for node in nodes], lambda: forging(office, server, nodes[0].host.digest)


def tell(name: str, took: list[float], told: Mapping[str, int]) -> None:
    figures = f"{len(took):,} | {ms(median(took))} | {ms(p99(took))}"
    answers = ", ".join(f"{count:,} {status}" for status, count in told.items() if status != SAID)
    said = f"{told[SAID]:,}" if told else ""
    print(f"| {name} | {figures} | {said} | {answers} |", flush=True)


if __name__ == "__main__":
    main()
