"""Peers of every kind in a thread of this process: somebody who asks, answers, listens, or is a nuisance.

Each is there twice: bound at `endpoints["<name>"]`, and connecting to `endpoints["<for name>"]` as
soon as somebody is bound there.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import zmq

from peers import Context, Frames, Socket, scaled

_RECONNECT_MS = 10


def _nothing(_frames: Frames) -> Frames:
    return []


class Neighbour(NamedTuple):
    kind: int
    greets: Frames = []  # what it says when somebody comes
    answers: Callable[[Frames], Frames] = _nothing


NEIGHBOURS = {
    "echoes": Neighbour(zmq.ROUTER, answers=lambda frames: frames),
    "forgets the envelope": Neighbour(zmq.ROUTER, answers=lambda frames: [frames[0], frames[-1]]),
    "is silent": Neighbour(zmq.ROUTER),
    "asks": Neighbour(zmq.DEALER, greets=[b"", b"question"]),
    "publishes": Neighbour(zmq.XPUB, answers=lambda frames: [frames[0][1:], b"news"]),
    "subscribes": Neighbour(zmq.SUB),
    "pushes": Neighbour(zmq.PUSH, greets=[b"task"]),
    "pushes two frames": Neighbour(zmq.PUSH, greets=[b"ta", b"sk"]),
    "pulls": Neighbour(zmq.PULL),
    "pairs": Neighbour(zmq.PAIR, greets=[b"hello"], answers=lambda frames: frames),
}


class Neighbours:
    """A context manager: they live in it."""

    def __init__(self, folder: Path) -> None:
        """Folder: for their ipc sockets."""
        self.endpoints: dict[str, str] = {}
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        self._comings: dict[Socket, tuple[Socket, Neighbour]] = {}  # by monitor
        self._sayings: dict[Socket, Neighbour] = {}
        for name, neighbour in NEIGHBOURS.items():
            port = self._settle(neighbour).bind_to_random_port("tcp://127.0.0.1")
            self.endpoints[f"<{name}>"] = f"tcp://127.0.0.1:{port}"
            self.endpoints[f"<for {name}>"] = f"ipc://{folder}/{len(self.endpoints)}"
            self._settle(neighbour).connect(self.endpoints[f"<for {name}>"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._poller.register(self._listener, zmq.POLLIN)
        self.endpoints["<no peer>"] = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def _settle(self, neighbour: Neighbour) -> Socket:
        peer = self._context.socket(neighbour.kind)
        peer.reconnect_ivl = _RECONNECT_MS  # not IMMEDIATE: libzmq aborts when somebody leaves half-way through frames
        if neighbour.kind == zmq.SUB:
            peer.subscribe(b"")
        monitor = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._comings[monitor] = peer, neighbour
        self._sayings[peer] = neighbour
        for each in (peer, monitor):
            self._poller.register(each, zmq.POLLIN)
        return peer

    def __enter__(self) -> Neighbours:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(scaled(30))
        for peer in self._sayings:
            peer.disable_monitor()
        self._listener.close()
        self._context.destroy(linger=0)

    def _live(self) -> None:
        while not self._over.is_set():
            for ready, _ in self._poller.poll(100):
                # Who has come may have left again; nobody waits for a neighbour.
                with suppress(OSError, zmq.ZMQError):
                    self._attend(ready)

    def _attend(self, ready: Socket | None) -> None:
        if ready in self._comings:
            ready.recv_multipart()
            peer, neighbour = self._comings[ready]
            _say(peer, neighbour.greets)
        elif ready in self._sayings:
            _say(ready, self._sayings[ready].answers(ready.recv_multipart(zmq.DONTWAIT)))
        else:
            with self._listener.accept()[0] as caller:
                caller.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")


def _say(peer: Socket, frames: Frames) -> None:
    if frames:
        peer.send_multipart(frames, zmq.DONTWAIT)
