"""Measures what keys cost a cf-messaged: acknowledgements and handshakes beside one without. Started by bench/curve.

Both are loaded by the same producers, in turn; what is told is the median of the ratios, pair by pair.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]
from figures import machine  # noqa: E402 - from the folders just added
from intake import Load, produce  # noqa: E402

from cf_messaging.wire import STORED  # noqa: E402
from listener import Keys, Listener, Node, accepted, event  # noqa: E402

LOADS = (Load(50, 100), Load(1, 1))
NODES = 300  # that come at once; two descriptors each, and a context has 1,023 sockets

Rate = Callable[[str, Sequence[Keys]], float]  # a second; of an endpoint, and the keys of all nodes, if it wants any


class Price(NamedTuple):
    """What is measured, in a process of its own."""

    what: str
    rate: Rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="of a run of acknowledgements")
    parser.add_argument("--pairs", type=int, default=5, help="how often both take turns")
    settings = parser.parse_args()
    print(machine())
    print("| a second | with keys | without | of that |\n|---|---|---|---|", flush=True)
    # Spawned, as the threads of a parent do not survive a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        for price in prices(settings.seconds):
            tell(price, [(measure(child, price, True), measure(child, price, False)) for _ in range(settings.pairs)])


def prices(seconds: float) -> list[Price]:
    names = [f"acknowledgements, {load.producers} x {load.in_flight} in flight" for load in LOADS]
    said = [Price(name, partial(acknowledgements, load, seconds)) for name, load in zip(names, LOADS)]
    return [*said, Price(f"handshakes, each with an event, of {NODES} nodes that come at once", handshakes)]


def acknowledgements(load: Load, seconds: float, endpoint: str, keys: Sequence[Keys]) -> float:
    return produce(endpoint, load, seconds, keys).a_second


def handshakes(endpoint: str, keys: Sequence[Keys]) -> float:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        began = time.monotonic()
        nodes = [Node(context, endpoint, keys[number] if keys else None) for number in range(NODES)]
        for number, node in enumerate(nodes):
            node.send(event(node=f"web{number}", stream=f"{number:032x}"))
        if any(node.receive()[1].status != STORED for node in nodes):
            sys.exit("an event was not stored")
        return NODES / (time.monotonic() - began)
    finally:
        context.destroy(linger=0)


def measure(child: Executor, price: Price, has_keys: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="messages-bench-") as folder, listening(Path(folder), has_keys) as given:
        return child.submit(price.rate, *given).result()


@contextmanager
def listening(folder: Path, has_keys: bool) -> Iterator[tuple[str, list[Keys]]]:
    """An endpoint, and the keys of its nodes."""
    directory = folder / "keys"
    listener = Listener(folder, *(["--keys-dir", str(directory)] if has_keys else []))
    try:
        names = [f"web{number}" for number in range(NODES)]
        yield listener.endpoint, accepted(directory, names) if has_keys else []
    finally:
        listener.end()


def tell(price: Price, pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (f"{median(side):,.0f}" for side in zip(*pairs))
    ratio = median(keyed / plain for keyed, plain in pairs)
    print(f"| {price.what} | {ours} | {theirs} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
