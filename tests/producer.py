"""A node that says state to a cf-messaged, event after event, with plain pyzmq and the codec.

`python producer.py NODE STREAM ENDPOINT...` says new events until its standard input ends, and each of them, by the
same id, until it is acknowledged; where nobody answers, at the next endpoint. Then it prints, as JSON, how many it
said, how often it went on elsewhere, and which sequences were answered how.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from time import monotonic

import zmq

from cf_messaging.wire import DUPLICATE, STORED, decode_answer, encode_event, parse_id
from listener import event
from peers import Context, Socket, scaled

WINDOW = 10  # events in flight
PATIENCE_MS = 500  # without an answer: then all in flight is said again, over a new connection to the next endpoint
RUN = 500  # events, after which it is at its first endpoint again, as a node is in its next run
LONGEST_S = 120  # without an acknowledgement: then it gives up


class Producer:
    def __init__(self, node: str, stream: str, *endpoints: str) -> None:
        self._node, self._stream, self._endpoints = node, stream, endpoints
        self._at = 0  # which of the endpoints
        self._context: Context = zmq.Context()
        self._socket = self._connected()
        self._in_flight: dict[int, bytes] = {}  # by sequence
        self.said = self.moves = 0
        self.answers: defaultdict[str, list[int]] = defaultdict(list)  # by status

    def run(self, over: threading.Event) -> None:
        """Until nothing is in flight any more after it is over."""
        until = monotonic() + scaled(LONGEST_S)
        while self._in_flight or not over.is_set():
            while len(self._in_flight) < WINDOW and not over.is_set():
                self._say_next()
            if not self._socket.poll(PATIENCE_MS):
                self._say_again(self._at + 1)
            elif self._hear():
                until = monotonic() + scaled(LONGEST_S)
            if monotonic() > until:
                sys.exit(f"{self._node}: {len(self._in_flight)} events are never acknowledged")

    def _connected(self) -> Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self._endpoints[self._at])
        return socket

    def _say_next(self) -> None:
        if self._at and self.said % RUN == 0:
            self._say_again(0)
        self.said += 1
        said = encode_event(event(self.said, node=self._node, stream=self._stream, data=self.said))
        self._in_flight[self.said] = said
        self._say(self.said, said)

    def _say(self, sequence: int, said: bytes) -> None:
        self._socket.send_multipart([b"%d" % sequence, b"", said])

    def _say_again(self, at: int) -> None:
        """All that is in flight, over a new connection; at: which of the endpoints, after the last the first."""
        before, self._at = self._at, at % len(self._endpoints)
        self.moves += self._at != before
        self._socket.close()
        self._socket = self._connected()
        for sequence, said in self._in_flight.items():
            self._say(sequence, said)

    def _hear(self) -> bool:
        """Whether an event is acknowledged by it for the first time."""
        *_, frame = self._socket.recv_multipart()
        answer = decode_answer(frame)
        _, sequence = parse_id(answer.id)
        self.answers[answer.status].append(sequence)
        return answer.status in (STORED, DUPLICATE) and self._in_flight.pop(sequence, None) is not None


def set_at_the_end_of_input(over: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    over.set()


def main() -> None:
    producer, over = Producer(*sys.argv[1:]), threading.Event()
    threading.Thread(target=set_at_the_end_of_input, args=(over,), daemon=True).start()
    producer.run(over)
    print(json.dumps({"said": producer.said, "moves": producer.moves, "answers": producer.answers}))


if __name__ == "__main__":
    main()
