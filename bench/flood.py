"""Measures acknowledgements of a cf-messaged with keys while one node bombs it. Started by bench/flood.

Twenty other nodes say events evenly; an event counts from when it was due. First nobody else is there, then a process
says events as one node, as fast as it can and whatever it is answered. Exit status 0 only if all events of the others
were stored, with a 99th percentile no more than is allowed, and the bomber was told to come later.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
from figures import machine, ms, p99  # noqa: E402 - from the folders just added
from retention import PRODUCERS, Producers  # noqa: E402
from slow_view import WARM_UP_S  # noqa: E402

from bomber import SAID, bombing  # noqa: E402
from cf_messaging.wire import LATER  # noqa: E402
from listener import Keys, Listener, Node, accepted  # noqa: E402

TIMES = 20  # the 99th percentile, of that without a bomber
BOMBER = "bomber"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="without the bomber, then with it")
    parser.add_argument("--pairs", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--a-second", type=int, default=500, help="events that the others say, all together")
    settings = parser.parse_args()
    print(f"{machine()}; {PRODUCERS} nodes, {settings.a_second}/s")
    print("| acknowledged, ms | events | median | p99 | the bomber said | was answered |\n|---|---|---|---|---|---|")
    ratio = median(measure_pair(settings) for _ in range(settings.pairs))
    print(f"p99 beside a bomber: {ratio:.1f} times idle (median); allowed {TIMES}")
    if ratio > TIMES:
        sys.exit("The bomber held up the events of others for longer than is allowed.")


def measure_pair(settings: argparse.Namespace) -> float:
    """How many times the 99th percentile is that without a bomber, on the same listener."""
    with tempfile.TemporaryDirectory(prefix="messages-bench-") as folder, listening(Path(folder)) as (listener, keys):
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        nodes = [Node(context, listener.endpoint, each) for each in keys[:PRODUCERS]]
        try:
            producers = Producers(nodes, settings.a_second)
            producers.produce(WARM_UP_S)
            idle = producers.produce(settings.seconds)
            tell("idle", idle, {})
            with bombing(listener.endpoint, BOMBER, keys[-1]) as told:
                busy = producers.produce(settings.seconds)
            tell("beside a bomber", busy, told)
            if not told[LATER]:
                sys.exit("The bomber was never told to come later.")
            return p99(busy) / p99(idle)
        finally:
            context.destroy(linger=0)


@contextmanager
def listening(folder: Path) -> Iterator[tuple[Listener, list[Keys]]]:
    """With the keys of all nodes, the bomber's last."""
    listener = Listener(folder, "--keys-dir", str(folder / "keys"))
    try:
        names = [f"producer{number}" for number in range(PRODUCERS)]
        yield listener, accepted(folder / "keys", [*names, BOMBER])
    finally:
        listener.end()


def tell(name: str, took: list[float], bomber: Mapping[str, int]) -> None:
    figures = f"{len(took):,} | {ms(median(took))} | {ms(p99(took))}"
    answers = ", ".join(f"{count:,} {status}" for status, count in bomber.items() if status != SAID)
    said = f"{bomber[SAID]:,}" if bomber else ""
    print(f"| {name} | {figures} | {said} | {answers} |", flush=True)


if __name__ == "__main__":
    main()
