"""ZMTP written by hand: what peers send over TCP, sound or not. Specified at rfc.zeromq.org: 23 (3.0), 15 (2.0)."""

from __future__ import annotations

from collections.abc import Iterable

MORE, LONG, COMMAND = 1, 2, 4
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
TYPES = "PAIR PUB SUB REQ REP DEALER ROUTER PULL PUSH XPUB XSUB".split()  # by their number in ZMTP 2.0

# socket: whom it talks with
FITTING = {
    "REQ": ("REP", "ROUTER"),
    "REP": ("REQ", "DEALER"),
    "DEALER": ("REP", "DEALER", "ROUTER"),
    "ROUTER": ("REQ", "DEALER", "ROUTER"),
    "XPUB": ("SUB", "XSUB"),
    "SUB": ("PUB", "XPUB"),
    "PUSH": ("PULL",),
    "PULL": ("PUSH",),
    "PAIR": ("PAIR",),
}


def greeting(major: int = 3, minor: int = 0, mechanism: bytes = b"NULL", rest: bytes = bytes(32)) -> bytes:
    return SIGNATURE + bytes((major, minor)) + mechanism.ljust(20, b"\0") + rest


def frame(body: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """Of ZMTP 2.0 and 3; length: what it says of itself."""
    size = len(body) if length is None else length
    if flags & LONG or len(body) > 255:
        return bytes((flags | LONG,)) + (size % 2**64).to_bytes(8, "big") + body
    return bytes((flags, size % 256)) + body


def frame_of_1(body: bytes, flags: int = 0) -> bytes:
    size = len(body) + 1
    return (bytes((size,)) if size < 255 else b"\xff" + size.to_bytes(8, "big")) + bytes((flags & MORE,)) + body


def command(name: bytes, data: bytes = b"") -> bytes:
    return frame(bytes((len(name),)) + name + data, COMMAND)


def metadata(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def ready(kind: bytes, more: bytes = b"") -> bytes:
    return command(b"READY", metadata(b"Socket-Type", kind) + more)


def handshake(version: str, kind: str) -> bytes:
    """All that a peer of this kind of socket says before its first message."""
    if version == "1.0":
        return b"\1\0"
    if version == "2.0":
        return SIGNATURE + bytes((1, TYPES.index(kind))) + frame(b"")
    return greeting(minor=int(version[-1])) + ready(kind.encode(), metadata(b"Identity", b""))


def message(version: str, frames: Iterable[bytes], flags: int = 0) -> bytes:
    write = frame_of_1 if version == "1.0" else frame
    *first, last = frames
    return b"".join(write(each, flags | MORE) for each in first) + write(last, flags)
