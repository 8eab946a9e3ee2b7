"""Subscribers that join a cf-messaged, read the last values and leave: plain SUBs that know nothing of this project.

`python joiners.py state [OPTION]...` says that it is ready, and waits for a line. Then they join, spread over a time;
each leaves once it has all values, which is told. A value is the last one if its name ends with it. Tests start it with
`Joiners.start("state", ...)`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from time import monotonic

import zmq

from peers import Context, Peer, Socket, end_with_parent, scaled, tell

LONGEST_S = 60  # from when the last one joins

# --- the joiners' own process -------------------------------------------------------------------------------------


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("kind", help="they subscribe to all of it")
    add("--connect", required=True)
    add("--joiners", type=int, required=True)
    add("--seconds", type=float, required=True, help="from the first who joins to the last")
    add("--values", type=int, required=True, help="that there are, numbered from 1")
    return parser.parse_args(arguments)


class Joined:
    """Those who have joined, and not left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        self._missing: dict[Socket, set[int]] = {}

    def join_and_leave(self) -> None:
        began, count = monotonic(), self._options.joiners
        for number in range(count):
            self._hear(began + number * self._options.seconds / count)
            self._join()
        end = monotonic() + scaled(LONGEST_S)
        while self._missing and monotonic() < end:
            self._hear(monotonic() + 0.1)
        if self._missing:
            sys.exit(f"{len(self._missing)} subscribers miss values: {list(self._missing.values())}")

    def _join(self) -> None:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.linger = 0
        subscriber.connect(self._options.connect)
        subscriber.subscribe(f"{self._options.kind}/".encode())
        self._poller.register(subscriber, zmq.POLLIN)
        self._missing[subscriber] = set(range(1, self._options.values + 1))

    def _hear(self, until: float) -> None:
        while (left_s := until - monotonic()) > 0:
            for subscriber, _ in self._poller.poll(int(left_s * 1000) + 1):
                self._read(subscriber)

    def _read(self, subscriber: Socket) -> None:
        topic, event = subscriber.recv_multipart()
        number = json.loads(event)["data"]
        if topic.split(b"/")[1].split()[-1] != b"%d" % number:
            sys.exit(f"not the last value of {topic!r}: {event!r}")
        self._missing[subscriber].discard(number)
        if not self._missing[subscriber]:
            self._leave(subscriber)

    def _leave(self, subscriber: Socket) -> None:
        del self._missing[subscriber]
        self._poller.unregister(subscriber)
        subscriber.close()
        tell("left")


def main() -> None:
    options = options_of(sys.argv[1:])
    print("ready", flush=True)
    os.read(0, 1024)
    threading.Thread(target=end_with_parent, daemon=True).start()
    Joined(options).join_and_leave()


# --- the test's side ----------------------------------------------------------------------------------------------


class Joiners(Peer):
    PROGRAM = __file__

    def begin(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()


if __name__ == "__main__":
    main()
