"""By which key each message came, and what its node may: what the loop asks where there are keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from socket import AF_UNIX, SHUT_RDWR, socket

import zmq

from cf_messaged.keyring import Keyring
from cf_messaged.rights import Rights

IPC = "ipc"


class Guard:
    """Knows the keys as they were at the last `check`."""

    def __init__(self, keyring: Keyring, rights: Rights) -> None:
        self.rights = rights
        self._keyring = keyring
        self._names: Mapping[bytes, str] = {}

    def check(self) -> bool:
        """Whether others are let in than before."""
        names, before = self._keyring.names(), self._names
        self._names = names
        return names is not before

    def name_of(self, last: zmq.Frame) -> str | None:
        """Of who has sent a message with this last frame; who is let in no more is hung up on."""
        name = self._names.get(_key_of(last))
        if name is None:
            hang_up(last)
        return name


def descriptor_of(frame: zmq.Frame) -> int:
    """Of the connection by which it came. Raises zmq.ZMQError if that has ended."""
    return int(frame.get(zmq.SRCFD))


def _key_of(frame: zmq.Frame) -> bytes:
    """By which it came; empty if by none."""
    try:
        return bytes.fromhex(str(frame.get("User-Id")))
    except (zmq.ZMQError, ValueError):
        return b""


def hang_up(frame: zmq.Frame) -> None:
    """On who has sent it, as far as libzmq lets one, which has no call for that. By now the descriptor may be another
    connection's: one from the same address is cut off too, and connects again.
    """
    with suppress(OSError, zmq.ZMQError), socket(fileno=os.dup(descriptor_of(frame))) as connection:
        if _address(connection) in (frame.get("Peer-Address"), IPC):
            connection.shutdown(SHUT_RDWR)


def _address(connection: socket) -> str:
    """Of the peer; IPC where it has none, but not for what this process has for itself."""
    if connection.family == AF_UNIX:
        return IPC if connection.getsockname() else ""
    return str(connection.getpeername()[0])
