"""Endpoints: their grammar, the addresses behind a name, and why nobody is reached there. Sockets, but no ZeroMQ."""

from __future__ import annotations

import re
from collections import namedtuple
from functools import lru_cache
from time import monotonic

from .outcomes import Failure, Reason
from .wire import GREETING_BYTES, SIGNATURE, read_greeting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

# host: without brackets; port: int. For ipc: host is the path, port is 0.
Endpoint = namedtuple("Endpoint", "transport host port")

ALLOWED = "tcp://host:port, tcp://[IPv6]:port or ipc:///path"
_TCP = re.compile(r"tcp://(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|([A-Za-z0-9_.-]+|\*)):([0-9]{1,5})")
_GREETING_S = 0.25  # that a peer may take for it
_MAX_IPC_BYTES = 107  # sun_path of Linux, less its NUL


@lru_cache  # a run names few endpoints, and each many times
def parse(endpoint: str) -> Endpoint:
    """The parts of an endpoint. Raises ValueError, which says what is wrong with it."""
    if not endpoint.isascii() and any("\ud800" <= character <= "\udfff" for character in endpoint):
        raise ValueError("an endpoint is UTF-8")  # libzmq could do with any bytes, but pyzmq takes text
    transport, _, path = endpoint.partition("://")
    if transport == "ipc" and path[:1] in ("/", "@") and len(path) > 1 and "\0" not in path:
        if len(path.encode("utf-8")) > _MAX_IPC_BYTES:
            raise ValueError(f"the path is longer than {_MAX_IPC_BYTES} bytes")
        return Endpoint("ipc", path, 0)
    parts = _TCP.fullmatch(endpoint)
    if not parts:
        raise ValueError(f"allowed is {ALLOWED}")
    if not 1 <= int(parts[3]) <= 65535:
        raise ValueError("the port must be 1 to 65535")
    if not (_is_ipv6(parts[1]) if parts[1] else _is_name_or_ipv4(parts[2])):
        raise ValueError(f"{parts[1] or parts[2]} is no address")
    return Endpoint("tcp", parts[1] or parts[2], int(parts[3]))


def is_local(endpoint: str) -> bool:
    """Whether nothing that is said there leaves this machine."""
    there = parse(endpoint)
    is_loopback = _is_ipv4(there.host) and there.host.startswith("127.")
    return there.transport == "ipc" or there.host in ("localhost", "::1") or is_loopback


def _is_name_or_ipv4(host: str) -> bool:
    # What only looks like an address would be looked up by libzmq, in the thread that serves all sockets.
    return not _is_ipv4(host) or all(int(number) <= 255 for number in host.split("."))


def _is_ipv4(host: str) -> bool:
    numbers = host.split(".")
    return len(numbers) == 4 and all(number.isdecimal() and len(number) < 4 for number in numbers)


def _is_ipv6(host: str) -> bool:
    import socket

    try:
        return bool(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
    except OSError:
        return False


def resolve(endpoint: str, deadline: float) -> list[str]:
    """The endpoint with each address that its name has, in the resolver's order. deadline: of time.monotonic().

    libzmq would accept an unknown name silently, and resolve it in the thread that serves all sockets.
    """
    transport, host, port = parse(endpoint)
    if transport == "ipc" or host == "*" or ":" in host or _is_ipv4(host):
        return [endpoint]
    addresses = _looked_up(host, port, deadline, endpoint)
    return [f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}" for address in addresses]


def _looked_up(host: str, port: int, deadline: float, endpoint: str) -> list[str]:
    import socket
    import threading

    found: list[list[str] | OSError] = []

    def look_up() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.append(list(dict.fromkeys(str(row[4][0]) for row in rows)))
        except (OSError, UnicodeError) as error:
            found.append(error if isinstance(error, OSError) else OSError(0, str(error)))

    # The resolver knows no deadline: a thread that may be left behind does.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - monotonic()))
    if not found:
        raise Failure(Reason.UNREACHABLE, "the name service does not answer", endpoint)
    if isinstance(found[0], OSError):
        raise Failure(Reason.UNREACHABLE, f"name does not resolve: {found[0].strerror}", endpoint)
    return found[0]


def why_unreachable(address: str, deadline: float) -> str:
    """Connect once as a plain socket, which tells what libzmq keeps to itself; empty if that succeeds."""
    import socket

    try:
        connected(address, deadline).close()
    except socket.timeout:
        return "no answer to the connection attempt"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def mechanism(address: str, deadline: float) -> str:
    """The security mechanism of the peer there, by the greeting of ZMTP 3; empty if it gives none. libzmq tells it only
    where it hangs up before the peer does.
    """
    greeted = read_greeting(greeting(address, min(deadline, monotonic() + _GREETING_S)))
    return greeted[1] if greeted else ""


def greeting(address: str, until: float) -> bytes:
    """What the peer there says first, as much of it as wire.read_greeting() reads, or as there is until then."""
    said = b""
    try:
        with connected(address, until) as probe:
            probe.sendall(SIGNATURE + b"\3\0")  # and no more: who has read the rest may hang up
            while len(said) < GREETING_BYTES and monotonic() < until:
                probe.settimeout(max(0.001, until - monotonic()))
                more = probe.recv(GREETING_BYTES - len(said))
                if not more:
                    break
                said += more
    except OSError:
        pass
    return said


def connected(address: str, deadline: float) -> socket:
    """A plain socket. Raises OSError."""
    import socket

    transport, host, port = parse(address)
    family = socket.AF_UNIX if transport == "ipc" else socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.settimeout(max(0.001, deadline - monotonic()))
    try:
        probe.connect(host.replace("@", "\0", 1) if transport == "ipc" else (host, port))
    except BaseException:
        probe.close()
        raise
    return probe
