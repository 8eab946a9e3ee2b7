"""Messages without an end, and those that are only large, at every socket of a listener."""

from __future__ import annotations

import itertools
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from cf_messaged.connections import connections_to, taken_bytes
from cf_messaging.wire import MAX_EVENT_BYTES, STORED
from endless import BY_HAND, BY_LIBZMQ, speaking
from listener import ROOT, Node, accepted, changed, event
from peers import Socket
from test_cfengine import wait_for
from test_service import Start, start  # noqa: F401 - a fixture

MB = 1024 * 1024
KINDS = {"request": "DEALER", "push": "PUSH", "publish": "XPUB", "subscribe": "XSUB", "pair": "PAIR"}


def hung_up_on(process: subprocess.Popen[str], node: Node, times: int) -> int:
    """Waits for that; meanwhile a node is answered as ever. Returns how many events it has said."""
    assert process.stdout
    said = heard = 0
    while heard < times:
        said += 1
        assert node.say(event(said)).status == STORED
        if select.select([process.stdout], [], [], 0)[0]:
            told = os.read(process.stdout.fileno(), 4096)
            assert told, "the attack has ended"
            heard += told.count(b"\n")
    return said


@pytest.mark.parametrize(
    ("role", "size"),
    [
        ("request", MAX_EVENT_BYTES),
        ("request", 1),
        ("push", 100),
        ("publish", 10_000),
        ("subscribe", 100),
        ("pair", MAX_EVENT_BYTES),
    ],
)
def test_who_says_them_is_hung_up_on(start: Start, plain: zmq.Context[Socket], role: str, size: int) -> None:  # noqa: F811
    """Again and again, with a line of log; a node beside it is answered, and what they took is free in the end."""
    listener = start("--pair", "tcp://127.0.0.1:*")
    node = Node(plain, listener.endpoint)
    before = listener.memory_mb()
    port = listener.endpoints[role].rpartition(":")[2]
    with speaking(BY_HAND, ROOT / "tests", port, KINDS[role], size) as process:
        said = hung_up_on(process, node, 1 if role == "pair" else 2)  # a PAIR takes nothing of who comes too early
    assert "bytes of a message, and not its end" in listener.wait_for(r"127\.0\.0\.1:\d+ was hung up on: it said")
    wait_for(lambda: listener.memory_mb() - before < 64)
    assert [row["events"] for row in listener.view("nodes")] == [said]


def test_whoever_has_a_key(start: Start, tmp_path: Path, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """A node that is let in is hung up on too; the others are not."""
    listener = start("--keys-dir", str(tmp_path / "keys"))
    good, bad = accepted(tmp_path / "keys", ["web1", "web2"])
    with speaking(BY_LIBZMQ, listener.endpoint, *bad, MB, 256 * MB) as process:
        hung_up_on(process, Node(plain, listener.endpoint, good), 2)
    listener.wait_for("and not its end")


def test_large_messages_have_an_end(
    start: Start,  # noqa: F811
    plain: zmq.Context[Socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However closely one looks: nodes with all that may be in flight of the largest events are not taken for it."""
    constants = ["endless.GROWN_BYTES = -(2**40)", "endless.LOOK_S = 0", "endless.REST = 0", "endless.CALM_S = 1e9"]
    monkeypatch.setattr("listener.COMMAND", changed(constants))
    listener = start()
    data = (MAX_EVENT_BYTES - 1000) * "x"
    nodes = [Node(plain, listener.endpoint) for _ in range(3)]
    for number, (stream, node) in itertools.product(range(1, 17), enumerate(nodes)):
        node.send(event(number, data=data, stream=f"{stream:032x}"))
    assert {node.receive()[1].status for node in nodes * 16} == {STORED}
    assert not [line for line in listener.heard if "hung up on" in line]


# ---- what the kernel knows


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Both ends, and the port that was connected to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as there:
            here, _ = server.accept()
            with here:
                yield here, there, port


def test_connections_of_others() -> None:
    """Those to a port of ours; not what listens there, nor our own to others."""
    with connected() as (here, there, port):
        host, peer_port = there.getsockname()
        assert list(connections_to([port])) == [(here.fileno(), f"{host}:{peer_port}")]
        descriptors = len(os.listdir("/proc/self/fd"))
        list(connections_to([port]))
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list(connections_to([port])) == []


def test_what_was_taken_is_counted() -> None:
    """Not what waits in the kernel; nothing of what is no TCP, or not there."""
    with connected() as (here, there, _):
        there.sendall(bytes(1000))
        assert here.recv(600, socket.MSG_WAITALL) and taken_bytes(here.fileno()) == 600
        here.recv(400, socket.MSG_WAITALL)
        assert taken_bytes(here.fileno()) == 1000
    with socket.socketpair()[0] as pair:
        assert taken_bytes(pair.fileno()) == 0
    assert taken_bytes(10**6) == 0
