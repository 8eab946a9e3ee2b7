"""Peers that say messages without an end, in processes of their own, and tell how often they were hung up on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Says frames of which none is the last; tells on its standard output when it is hung up on, and connects again.
# Arguments: tests/, port, what kind of socket it is, size of a frame.
BY_HAND = """
import select, socket, sys
sys.path.insert(0, sys.argv[1])
import zmtp
port, kind, size = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
frame = zmtp.frame(bytes(size), zmtp.MORE)
frames = frame * max(1, 2**20 // len(frame))

def attack():
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(zmtp.handshake("3.0", kind))
        heard = b""
        while b"READY" not in heard:
            heard += peer.recv(1)
        peer.setblocking(False)
        left = b""
        while True:
            readable, writable, _ = select.select([peer], [peer], [])
            if readable and not peer.recv(4096):
                return
            if writable:
                left = left or frames
                left = left[peer.send(left):]

while True:
    try:
        attack()
    except OSError:
        pass
    print("hung up on", flush=True)
"""

# Begins messages that do not end for long, of frames of this size, again and again. Arguments: endpoint, keys of this
# peer and of the listener, size, bytes in all.
BY_LIBZMQ = """
import sys, zmq
endpoint, public, secret, server, size, total = sys.argv[1:]
context = zmq.Context()
peer = context.socket(zmq.DEALER)
peer.curve_publickey, peer.curve_secretkey, peer.curve_serverkey = map(bytes.fromhex, (public, secret, server))
peer.reconnect_ivl, peer.sndhwm = 10, 2
monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
peer.connect(endpoint)
frames = [bytes(int(size))] * (int(total) // max(int(size), 64))
while True:
    if peer.poll(10, zmq.POLLOUT):
        peer.send_multipart(frames, copy=False)
    while monitor.poll(0):
        monitor.recv_multipart()
        print("hung up on", flush=True)
"""


@contextmanager
def speaking(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Each line of its output: it was hung up on."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
