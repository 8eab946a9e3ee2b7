"""CURVE's handshake, RFC 26, up to where a listener has shown that it has its key, and no further: what this node says
next would tell its own, and the listener would note who knocks.
"""

from __future__ import annotations

import select
import socket
from time import monotonic

import zmq

from .addresses import connected

# What a client says before it has seen that of the listener: its greeting, and HELLO in a frame.
_FIRST_BYTES = 64 + 2 + 200


def why_not(address: str, server_key: bytes, until: float) -> str:
    """Why the listener there does not show that it has this key; empty if it does. until: of time.monotonic().

    libzmq speaks, through a relay that listens in. Raises OSError.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.linger = 0
    client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    client.curve_serverkey = server_key
    try:
        with socket.create_server(("127.0.0.1", 0)) as relay, connected(address, until) as theirs:
            client.connect(f"tcp://127.0.0.1:{relay.getsockname()[1]}")
            relay.settimeout(max(0.001, until - monotonic()))
            ours, _ = relay.accept()
            with ours:
                return _relayed(ours, theirs, until)
    finally:
        client.close()
        context.term()


def _relayed(ours: socket.socket, theirs: socket.socket, until: float) -> str:
    said = 0
    while True:
        ready, _, _ = select.select([ours, theirs], [], [], max(0.0, until - monotonic()))
        if not ready:
            return "it does not answer in time"
        if theirs in ready and not _passed_on(theirs, ours):
            return "it hangs up"
        if ours in ready:
            words = ours.recv(4096)
            said += len(words)
            if said > _FIRST_BYTES:
                return ""
            if not words:
                return "its answer is not by that key"
            theirs.sendall(words)


def _passed_on(source: socket.socket, target: socket.socket) -> bool:
    try:
        words = source.recv(4096)
    except ConnectionError:
        return False
    target.sendall(words)
    return bool(words)
