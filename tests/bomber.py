"""A node that says events to a cf-messaged as fast as it can, whatever it is answered.

`python bomber.py ENDPOINT NODE PUBLIC SECRET SERVER` goes on until its standard input ends; then it prints, as JSON,
how many it said, and how many of what was answered how.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from cf_messaging.wire import decode_answer, encode_event
from listener import ROOT, Keys, event
from peers import Socket

STREAM = "b" * 32
SAID = "said"


@contextmanager
def bombing(endpoint: str, node: str, keys: Keys) -> Iterator[Counter[str]]:
    """One in a process of its own, until the end; then the counter has what it said, and what it was answered."""
    command = [sys.executable, __file__, endpoint, node, *keys]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    told: Counter[str] = Counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as bomber:
        try:
            yield told
            told.update(json.loads(bomber.communicate()[0]))
        finally:
            bomber.kill()


def bomb(socket: Socket, node: str, over: threading.Event) -> Counter[str]:
    count: Counter[str] = Counter()
    while not over.is_set():
        ready = socket.poll(10, zmq.POLLIN | zmq.POLLOUT)
        if ready & zmq.POLLOUT:
            count[SAID] += 1
            socket.send_multipart([b"", encode_event(event(count[SAID], node=node, stream=STREAM))])
        if ready & zmq.POLLIN:
            count[decode_answer(socket.recv_multipart()[-1]).status] += 1
    return count


def await_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def main() -> None:
    endpoint, node, *keys = sys.argv[1:]
    context: zmq.Context[Socket] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    Keys(*keys).secure(socket)
    socket.connect(endpoint)
    over = threading.Event()
    threading.Thread(target=await_end, args=[over], daemon=True).start()
    print(json.dumps(bomb(socket, node, over)))


if __name__ == "__main__":
    main()
