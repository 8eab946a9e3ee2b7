"""Who claim to be nodes that they are not, from many addresses, as fast as they can and whatever they are answered.

`python forgers.py ENDPOINT SERVER HOST_KEY` goes on until its standard input ends; again and again it prints, as JSON,
how many claims it has said, and how many of what was answered how. SERVER: the listener's key; HOST_KEY: the digest of
a host that is trusted. A third of the claims is signed by a host that is not, a third by nobody in the name of the one
that is, and a third is no claim at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, cycle, islice

import zmq

from bomber import SAID, await_end
from cf_messaging.wire import CHALLENGED, CLAIM, HELLO, encode_event
from claimant import HostKey, claimant, said
from listener import ROOT
from peers import Socket

# Connections, and claims of each: with more it would be hung up on.
AT_ONCE, OF_EACH = 50, 40
IN_FLIGHT = 4
PATIENCE_S = 5
TOLD_EACH_S = 0.1


@contextmanager
def forging(endpoint: str, server: str, host_key: str) -> Iterator[dict[str, int]]:
    """In a process of its own, until the end: what it has said so far, and what it was answered."""
    command = [sys.executable, __file__, endpoint, server, host_key]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    told: dict[str, int] = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as forgers:
        assert forgers.stdin and forgers.stdout
        told.update(json.loads(forgers.stdout.readline()))  # it has begun
        following = threading.Thread(target=follow, args=[forgers.stdout, told], daemon=True)
        following.start()
        try:
            yield told
            forgers.stdin.close()
            following.join()
        finally:
            forgers.kill()


def follow(lines: Iterable[str], told: dict[str, int]) -> None:
    for line in lines:
        told.update(json.loads(line))


class Forger:
    """One of them, at an address of its own."""

    def __init__(self, context: zmq.Context[Socket], number: int, endpoint: str, server: str, host: HostKey) -> None:
        source = f"127.{1 + (number >> 16) % 250}.{number >> 8 & 255}.{number & 255}"
        self._node = claimant(context, endpoint, f"web{number}", server, host=host, source=source)
        self.socket = self._node.socket
        self._frames: Iterator[bytes] = iter(())
        self._left, self._heard_s = OF_EACH, time.monotonic()
        self._node.send(said(self._node.node, HELLO, {}))

    @property
    def is_over(self) -> bool:
        """All is answered, or nothing was for long."""
        return not self._left or time.monotonic() - self._heard_s > PATIENCE_S

    def hear(self, host_key: str, told: Counter[str]) -> None:
        """And say more."""
        _, answer = self._node.receive()
        self._heard_s = time.monotonic()
        told[answer.status] += 1
        if answer.status == CHALLENGED:
            self._frames = islice(cycle(self._false(answer.challenge, host_key)), OF_EACH)
        else:
            self._left -= 1
        for frame in islice(self._frames, IN_FLIGHT if answer.status == CHALLENGED else 1):
            self._node.send(frame)
            told[SAID] += 1

    def _false(self, challenge: str, host_key: str) -> Iterator[bytes]:
        of_a_stranger = self._node.host.signed(self._node.made(challenge=challenge))
        of_nobody = {**of_a_stranger, "host_key": host_key, "signature": os.urandom(256).hex()}
        for data in (of_a_stranger, of_nobody):
            yield encode_event(said(self._node.node, CLAIM, data))
        yield os.urandom(1000)


def forge(endpoint: str, server: str, host_key: str, over: threading.Event) -> None:
    told, told_s = Counter({SAID: 0}), 0.0
    context: zmq.Context[Socket] = zmq.Context()
    forgers: dict[Socket, Forger] = {}
    poller, numbers, stranger = zmq.Poller(), count(), HostKey()
    while not over.is_set():
        for ended in [each for each in forgers.values() if each.is_over]:
            poller.unregister(ended.socket)
            forgers.pop(ended.socket).socket.close()
        while len(forgers) < AT_ONCE:
            forger = Forger(context, next(numbers), endpoint, server, stranger)
            forgers[forger.socket] = forger
            poller.register(forger.socket, zmq.POLLIN)
        for socket, _ in poller.poll(10):
            forgers[socket].hear(host_key, told)
        if time.monotonic() > told_s + TOLD_EACH_S or over.is_set():
            told_s = time.monotonic()
            print(json.dumps(told), flush=True)
    context.destroy(linger=0)


def main() -> None:
    endpoint, server, host_key = sys.argv[1:]
    over = threading.Event()
    threading.Thread(target=await_end, args=[over], daemon=True).start()
    forge(endpoint, server, host_key, over)


if __name__ == "__main__":
    main()
