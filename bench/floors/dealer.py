"""The least that asks many questions at once: numbered, sent, then all answers taken. Arguments: endpoint, how many."""

from __future__ import annotations

import sys
import time

import zmq

count = int(sys.argv[2])
socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send_multipart([b"", b"first"])
socket.recv_multipart()
started = time.perf_counter()
for number in range(count):
    socket.send_multipart([b"%d" % number, b"", b"Hello N%d" % number])
for _ in range(count):
    socket.recv_multipart()
print(time.perf_counter() - started)
socket.close(0)
