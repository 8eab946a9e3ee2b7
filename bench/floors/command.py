"""What `commands:` would run: ask one question over ZeroMQ. Arguments: endpoint, payload."""

from __future__ import annotations

import sys

import zmq

socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.REQ)
socket.connect(sys.argv[1])
socket.send_string(sys.argv[2])
socket.recv()
socket.close(0)
