"""A node that says events to a cf-messaged as fast as it can, whatever it is answered.

`python bomber.py ENDPOINT NODE PUBLIC SECRET SERVER` goes on until its standard input ends; then it prints, as JSON,
how many it said, and how many of what was answered how.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter

import zmq

from cf_messaging.wire import decode_answer, encode_event
from listener import Keys, event
from peers import Socket

STREAM = "b" * 32


def run(socket: Socket, node: str, over: threading.Event) -> Counter[str]:
    """What it was answered, and how many it said as `said`."""
    count: Counter[str] = Counter()
    while not over.is_set():
        with_room = socket.poll(10, zmq.POLLIN | zmq.POLLOUT)
        if with_room & zmq.POLLOUT:
            count["said"] += 1
            socket.send_multipart([b"", encode_event(event(count["said"], node=node, stream=STREAM))])
        if with_room & zmq.POLLIN:
            count[decode_answer(socket.recv_multipart()[-1]).status] += 1
    return count


def main() -> None:
    endpoint, node, *keys = sys.argv[1:]
    context: zmq.Context[Socket] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    Keys(*keys).secure(socket)
    socket.connect(endpoint)
    over = threading.Event()
    threading.Thread(target=await_end, args=[over], daemon=True).start()
    print(json.dumps(run(socket, node, over)))


def await_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main()
