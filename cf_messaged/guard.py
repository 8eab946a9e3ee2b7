"""By which key each message came, and who is heard no more: what the loop asks where there are keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from socket import SHUT_RDWR, socket

import zmq

from cf_messaged.keyring import Keyring


class Guard:
    """Knows the keys as they were at the last `check`."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._names: Mapping[bytes, str] = {}
        self._subscribers: dict[int, zmq.Frame] = {}  # by descriptor: what they said last

    def check(self) -> None:
        """From now on nothing is published to who is let in no more."""
        names = self._keyring.names()
        if names is self._names:
            return
        self._names = names
        for descriptor, said in list(self._subscribers.items()):
            if _key_of(said) not in names:
                del self._subscribers[descriptor]
                _hang_up(said)

    def name_of(self, last: zmq.Frame) -> str | None:
        """Of who has sent a message with this last frame; who is let in no more is hung up on."""
        name = self._names.get(_key_of(last))
        if name is None:
            _hang_up(last)
        return name

    def note_subscriber(self, said: zmq.Frame) -> None:
        if self.name_of(said) is not None:
            with suppress(zmq.ZMQError):  # it has left
                self._subscribers[_descriptor_of(said)] = said


def _descriptor_of(frame: zmq.Frame) -> int:
    """Of the connection by which it came. Raises zmq.ZMQError if that has ended."""
    return int(frame.get(zmq.SRCFD))


def _key_of(frame: zmq.Frame) -> bytes:
    """By which it came; empty if by none."""
    try:
        return bytes.fromhex(str(frame.get("User-Id")))
    except (zmq.ZMQError, ValueError):
        return b""


def _hang_up(frame: zmq.Frame) -> None:
    """On who has sent it, as far as libzmq lets one, which has no call for that. By now the descriptor may be another
    connection's: one from the same address is cut off too, and connects again.
    """
    with suppress(OSError, zmq.ZMQError), socket(fileno=os.dup(_descriptor_of(frame))) as connection:
        if connection.getpeername()[0] == frame.get("Peer-Address"):
            connection.shutdown(SHUT_RDWR)
