"""The connections below libzmq, which has no call for them: whose a message is, what came, and how one is ended."""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Iterator
from contextlib import suppress
from fcntl import ioctl
from socket import AF_INET, AF_INET6, AF_UNIX, IPPROTO_TCP, SHUT_RDWR, TCP_INFO, socket
from termios import FIONREAD

import zmq

IPC = "ipc"
_SRCFD = int(zmq.SRCFD)  # as it is asked of each message, see sockets.py
# tcpi_bytes_received of struct tcp_info, Linux 4.1 and newer.
_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128
_DESCRIPTORS = "/proc/self/fd/"


def descriptor_of(frame: zmq.Frame) -> int:
    """Of the connection by which it came; -1 if no peer has sent it."""
    try:
        return int(frame.get(_SRCFD))
    except zmq.ZMQError:
        return -1


def inode_of(descriptor: int) -> int:
    """Tells a connection from a later one with the same descriptor; 0 of what is closed."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


def connections_to(ports: Container[int]) -> Iterator[tuple[int, str]]:
    """Descriptors of TCP connections of others to these ports of this process, and where they come from."""
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError):
            if os.readlink(_DESCRIPTORS + name).startswith("socket:"):
                with socket(fileno=os.dup(int(name))) as connection:
                    peer = _peer(connection, ports)
                if peer:
                    yield int(name), peer


def _peer(connection: socket, ports: Container[int]) -> str:
    if connection.family not in (AF_INET, AF_INET6) or connection.getsockname()[1] not in ports:
        return ""
    host, port, *_ = connection.getpeername()
    return f"{host}:{port}"


def taken_bytes(descriptor: int) -> int:
    """What libzmq has taken from it so far; 0 where the kernel does not count, as of what is no TCP."""
    with suppress(OSError, struct.error), socket(fileno=os.dup(descriptor)) as connection:
        told = connection.getsockopt(IPPROTO_TCP, TCP_INFO, _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size)
        received = int(_BYTES_RECEIVED.unpack_from(told, _BYTES_RECEIVED_AT)[0])
        return received - int(struct.unpack("=i", ioctl(connection, FIONREAD, b"0000"))[0])
    return 0


def hang_up(frame: zmq.Frame) -> None:
    """On who has sent it. By now the descriptor may be another connection's: one from the same address is cut off too,
    and connects again.
    """
    with suppress(OSError, zmq.ZMQError), socket(fileno=os.dup(descriptor_of(frame))) as connection:
        if _address(connection) in (frame.get("Peer-Address"), IPC):
            connection.shutdown(SHUT_RDWR)


def hang_up_on(descriptor: int) -> None:
    """Of a connection that is known to be there."""
    with suppress(OSError), socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(SHUT_RDWR)


def _address(connection: socket) -> str:
    """Of the peer; IPC where it has none, but not for what this process has for itself."""
    if connection.family == AF_UNIX:
        return IPC if connection.getsockname() else ""
    return str(connection.getpeername()[0])
