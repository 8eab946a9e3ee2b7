"""Endpoints: what is one, the addresses behind a name, and why nobody is reached there."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_messaging.addresses import Endpoint, mechanism, parse, resolve, why_unreachable
from cf_messaging.outcomes import Failure, Reason
from peers import Peer, in_time, refused_endpoint, resolves, scaled
from zmtp import greeting

# Pieces of which endpoints and near misses are made.
PIECES = st.sampled_from(
    "tcp ipc :// : / [ ] ::1 @ * % eth0 host . - 127.0.0.1 80 0 65536 99999 tcp:// ipc:// \0 \u0663 \ud800 é".split(" ")
)
HOSTS = st.from_regex(r"[A-Za-z0-9_.-]{1,60}", fullmatch=True)
PORTS = st.integers(1, 65535)


# ---- parse


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://hub:5309", Endpoint("tcp", "hub", 5309)),
        ("tcp://a_b-c.example.:1", Endpoint("tcp", "a_b-c.example.", 1)),
        ("tcp://*:65535", Endpoint("tcp", "*", 65535)),
        ("tcp://127.0.0.1:80", Endpoint("tcp", "127.0.0.1", 80)),
        ("tcp://[2001:db8::1]:80", Endpoint("tcp", "2001:db8::1", 80)),
        ("tcp://[fe80::1%eth0.7]:80", Endpoint("tcp", "fe80::1%eth0.7", 80)),
        ("ipc:///run/a b/s", Endpoint("ipc", "/run/a b/s", 0)),
        ("ipc://@abstract", Endpoint("ipc", "@abstract", 0)),
        ("ipc:///" + "x" * 106, Endpoint("ipc", "/" + "x" * 106, 0)),
    ],
)
def test_endpoints_are_understood(text: str, endpoint: Endpoint) -> None:
    """Names, IPv4, IPv6 in brackets with a zone, the wildcard, absolute and abstract ipc paths."""
    assert parse(text) == endpoint


@pytest.mark.parametrize(
    "text",
    """hub hub:5309 tcp:/hub:1 tcp://hub tcp://hub: tcp://:1 tcp://hub:x tcp://hub:-1 tcp://hub:1.0 tcp://hub:1/x
    tcp://[]:1 tcp://[hub]:1 tcp://::1:1 tcp://[::1]1 tcp://[*]:1 tcp://a@b:1 tcp://h;x:1 tcp://eth0;h:1 TCP://hub:1
    udp://hub:1 inproc://x ws://hub:1 pgm://x:1 ipc:// ipc://relative ipc://./x ipc://@ ipc://~/x ipc:///a\0b
    tcp://hub:\u0661 tcp://hüb:1""".split(),
)
def test_what_is_no_endpoint(text: str) -> None:
    """The error says what is allowed; other transports of ZeroMQ are none of ours."""
    with pytest.raises(ValueError, match="allowed is tcp://host:port"):
        parse(text)


@pytest.mark.parametrize("text", ["", " ", " tcp://hub:1", "tcp://hub:1 ", "tcp://hub:1\n", "tcp://a b:1"])
def test_nothing_and_blanks_are_no_endpoint(text: str) -> None:
    """Nothing is stripped."""
    with pytest.raises(ValueError, match="allowed is tcp://host:port"):
        parse(text)


@pytest.mark.parametrize("port", ["0", "00000", "65536", "99999"])
def test_ports_out_of_range(port: str) -> None:
    """The error names the range; a wildcard port is no use in a promise."""
    with pytest.raises(ValueError, match="1 to 65535"):
        parse(f"tcp://hub:{port}")


def test_paths_that_no_socket_can_have() -> None:
    """The limit is in bytes, as the kernel counts."""
    for path in ("/" + "x" * 107, "/" + "é" * 54, "@" + "x" * 107):
        with pytest.raises(ValueError, match="107 bytes"):
            parse("ipc://" + path)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_any_text_is_an_endpoint_or_a_value_error(text: str) -> None:
    """Whatever the policy says is understood or refused in words."""
    try:
        found = parse(text)
    except ValueError:
        return
    assert text.startswith(found.transport + "://") and found.host in text and 0 <= found.port <= 65535


@given(HOSTS, PORTS)
def test_hosts_and_ports_survive(host: str, port: int) -> None:
    """The parts are those that were written."""
    assert parse(f"tcp://{host}:{port}") == Endpoint("tcp", host, port)


@given(st.ip_addresses(v=6), PORTS)
def test_ipv6_addresses_survive(address: ipaddress.IPv6Address, port: int) -> None:
    """Every IPv6 literal goes in brackets."""
    assert parse(f"tcp://[{address}]:{port}").host == str(address)


# ---- resolve


def rows(*addresses: str) -> list[tuple[object, ...]]:
    """What getaddrinfo() tells of a name with these addresses."""
    return [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 1))
        for address in addresses
    ]


def test_what_is_no_name_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Literals, paths and the wildcard stay as they are, without the name service, and after the deadline too."""
    monkeypatch.delattr(socket, "getaddrinfo")
    for endpoint in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://[fe80::1%lo]:1", "tcp://*:1", "ipc:///x", "ipc://@x"):
        assert resolve(endpoint, monotonic() - 1) == [endpoint]


@pytest.mark.skipif(not resolves("localhost"), reason="this machine knows no address of localhost")
def test_a_real_name_has_addresses() -> None:
    """The name that every host has is found in the resolver's own way."""
    found = resolve("tcp://localhost:5309", in_time())
    assert set(found) <= {"tcp://127.0.0.1:5309", "tcp://[::1]:5309"} and found


def test_all_addresses_of_a_name_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 in brackets, each once, in the order of the resolver."""
    answer = rows("2001:db8::1", "192.0.2.1", "2001:db8::1", "192.0.2.2")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    assert resolve("tcp://hub:7", in_time()) == ["tcp://[2001:db8::1]:7", "tcp://192.0.2.1:7", "tcp://192.0.2.2:7"]


@pytest.mark.parametrize("host", ["a..b", "." * 5, "a" * 64, "x." * 200 + "y", "-"])
def test_names_that_cannot_be(host: str) -> None:
    """Empty and overlong labels are a Failure, not an exception of the codec."""
    with pytest.raises(Failure, match="name does not resolve") as caught:
        resolve(f"tcp://{host}:1", in_time())
    assert caught.value.reason is Reason.UNREACHABLE


@pytest.mark.parametrize("address", ["999.1.1.1", "1.2.3.256", "[::::]", "[1:2]"])
def test_what_only_looks_like_a_literal_is_not_left_to_libzmq(address: str) -> None:
    """libzmq would look it up as a name, in the thread that serves all sockets, without a deadline."""
    with pytest.raises((ValueError, Failure)):
        resolve(f"tcp://{address}:1", in_time())


@pytest.mark.parametrize(
    "error",
    [socket.gaierror(socket.EAI_NONAME, "Name or service not known"), socket.gaierror(), OSError(24, "Too many")],
)
def test_what_the_name_service_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Its words are in the text, which names the endpoint as policy wrote it."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Failure, match=r"tcp://hub:1 unreachable: name does not resolve: ") as caught:
        resolve("tcp://hub:1", in_time())
    assert (error.strerror or "") in str(caught.value)


def test_a_slow_name_service_is_bounded_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an answer that comes after the deadline; the text says who was slow."""
    answered = threading.Event()

    def slow(*_: object, **__: object) -> list[tuple[object, ...]]:
        answered.wait(scaled(60))
        return rows("127.0.0.1")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        with pytest.raises(Failure, match="the name service does not answer") as caught:
            resolve("tcp://hub:1", monotonic() + 0.05)
        assert caught.value.reason is Reason.UNREACHABLE and not answered.is_set()
    finally:
        answered.set()


# ---- why_unreachable


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        yield listening


def address_of(bound: socket.socket) -> str:
    return f"tcp://127.0.0.1:{bound.getsockname()[1]}"


def test_somebody_who_accepts(listener: socket.socket) -> None:
    """Nothing is said about an address where the connection succeeds."""
    assert why_unreachable(address_of(listener), in_time()) == ""


def test_a_port_where_nobody_listens() -> None:
    """Bound, but not listening: refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert why_unreachable(address_of(bound), in_time()) == "connection refused"


def test_a_listener_that_drops_attempts(listener: socket.socket) -> None:
    """A full queue: silence, bounded by the deadline."""
    callers = [socket.socket() for _ in range(8)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex(listener.getsockname())
    assert why_unreachable(address_of(listener), monotonic() + 0.1) == "no answer to the connection attempt"
    for caller in callers:
        caller.close()


def test_ipc_paths(tmp_path: Path) -> None:
    """Missing, left behind by a dead listener, no socket at all, and alive; abstract ones likewise."""
    assert "no such file" in why_unreachable(f"ipc://{tmp_path}/missing", in_time())
    (tmp_path / "file").write_text("")
    assert why_unreachable(f"ipc://{tmp_path}/file", in_time()) == "connection refused"
    for name, path in ((f"{tmp_path}/s", f"{tmp_path}/s"), (f"@{tmp_path}", f"\0{tmp_path}")):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
            assert why_unreachable(f"ipc://{name}", in_time()) == "connection refused"
            bound.listen()
            assert why_unreachable(f"ipc://{name}", in_time()) == ""


@pytest.mark.parametrize("host", ["[::1]", "[fe80::1%nosuch]", "[::ffff:127.0.0.1]"])
def test_odd_literals_are_told_in_words(host: str) -> None:
    """What the grammar lets through but the host does not have ends in the words of the host."""
    with socket.socket(socket.AF_INET6) as bound:
        bound.bind(("::", 0))
        assert why_unreachable(f"tcp://{host}:{bound.getsockname()[1]}", in_time())


def test_after_the_deadline(listener: socket.socket) -> None:
    """A deadline that has passed is a short attempt, not an error."""
    assert isinstance(why_unreachable(address_of(listener), monotonic() - 5), str)


# ---- what a peer wants


@pytest.mark.parametrize(("kind", "wanted"), [("rep", "NULL"), ("curve-rep", "CURVE"), ("tcp-curve", "CURVE")])
def test_the_mechanism_of_a_peer(peer: Callable[..., Peer], kind: str, wanted: str) -> None:
    """Its greeting tells, as often as it is asked for."""
    endpoint = peer(kind).endpoint
    assert [mechanism(endpoint, in_time()) for _ in range(20)] == [wanted] * 20


@pytest.mark.parametrize("given", [b"", b"SSH-2.0-OpenSSH_9.2p1\r\n" * 3, b"\xff" + bytes(80), b"HTTP/1.1 400"])
@pytest.mark.parametrize("closes", [True, False])
def test_what_gives_no_greeting_has_no_mechanism(listener: socket.socket, given: bytes, closes: bool) -> None:
    """Neither what is silent, nor what says something else, nor what hangs up at once."""
    heard: list[str] = []
    asking = threading.Thread(target=lambda: heard.append(mechanism(address_of(listener), in_time())))
    asking.start()
    caller, _ = listener.accept()
    with caller:
        caller.sendall(given)
        if not closes:
            asking.join(scaled(30))
    asking.join(scaled(30))
    assert heard == [""]


def test_who_says_a_byte_now_and_then_is_not_waited_for(listener: socket.socket) -> None:
    """Each byte comes in time, the whole greeting does not."""
    stop = threading.Event()

    def drip() -> None:
        caller, _ = listener.accept()
        with caller, suppress(OSError):
            for byte in greeting(mechanism=b"CURVE"):
                caller.sendall(bytes((byte,)))
                if stop.wait(0.05):
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert mechanism(address_of(listener), in_time()) == ""
    finally:
        stop.set()
        dripping.join()


def test_nobody_has_no_mechanism() -> None:
    assert mechanism(refused_endpoint(), in_time()) == ""
