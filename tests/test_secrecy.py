"""What an agent and a listener say to each other, as somebody on the network sees it: nothing of it in the clear."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from agent import Agent
from cf_messaged.keyring import write
from cf_messaging.keys import certificate, own_pair, public_key
from listener import Listener
from test_cfengine import wait_for
from test_service import Start, start  # noqa: F401 - a fixture

ETH_P_ALL = 3
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to see the packets of a machine one must be root")


class Words(NamedTuple):
    """What is said, and found nowhere else: other tests speak on the loopback interface at the same time."""

    name: str
    payload: str
    node: str


def words() -> Words:
    mark = uuid.uuid4().hex
    return Words(f"name_{mark}", f"payload-{mark}", f"node-{mark}")


class Capture:
    """All packets on the loopback interface."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024 * 1024)
        self._socket.bind(("lo", 0))
        self._packets: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def seen(self, *what: bytes) -> list[bytes]:
        """Those that were in some packet."""
        packets = list(self._packets)
        return [each for each in what if any(each in packet for packet in packets)]

    def _read(self) -> None:
        while True:
            self._packets.append(self._socket.recv(65536))


@contextmanager
def capturing() -> Iterator[Capture]:
    """Ends with a packet of its own: when that is seen, all before it are."""
    capture, end = Capture(), uuid.uuid4().bytes
    yield capture
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(end, ("127.0.0.1", 9))
    wait_for(lambda: capture.seen(end) != [])


def conversation(agent: Agent, listener: Listener, said: Words, curve: str) -> str:
    """Promises that speak with a listener in every way."""
    at = {role: f'endpoint => "{endpoint}", {curve}' for role, endpoint in listener.endpoints.items()}
    file = agent.root / "heard"
    says = f'node => "{said.node}", payload => "{said.payload}"'
    return f"""
  messages:
    "{said.name}" information => "static", {at["request"]} {says};
    "pushed" information => "state", pattern => "push", {at["push"]} {says};
    "published" information => "state", pattern => "publish", {at["publish"]} {says};
    "asked" view => "latest", {at["request"]} node => "{said.node}", file => "{file}-view", timeout => "60";
    "heard" pattern => "subscribe", {at["subscribe"]} topic => "static/{said.name}/", file => "{file}-heard";
"""


@pytest.mark.parametrize("is_secured", [True, False])
def test_nobody_on_the_network_sees_what_is_said(
    start: Start,  # noqa: F811
    agent: Agent,
    tmp_path: Path,
    is_secured: bool,
) -> None:
    """No payload, name, node or secret key; without keys all but the keys is there, so it would have been seen."""
    said, directory = words(), tmp_path / "keys"
    (tmp_path / "settings.toml").write_text('[[rights]]\nnodes = ["*"]\nsubscribe = ["static/*"]\n')
    options = ["--config", str(tmp_path / "settings.toml"), *(["--keys-dir", str(directory)] if is_secured else [])]
    listener = start(*options)
    own = own_pair(str(agent.work / "state/messages/node.key"), zmq.curve_keypair)
    secrets, curve = [own.secret], ""
    if is_secured:
        write(directory / f"accepted/{said.node}.key", certificate(own.public))
        secrets.append(own_pair(str(directory / "listener.key"), zmq.curve_keypair).secret)
        curve = f'curve => \'{{ "server_key": "{public_key(str(directory / "listener.key")).hex()}" }}\','
    with capturing() as capture:
        run = agent.run(conversation(agent, listener, said, curve))
    told = {"pushed_sent", "published_sent", "asked_received", "heard_received"}
    assert told | {f"{said.name}_delivered"} <= run.classes
    clear = [text.encode() for text in said]
    assert capture.seen(*clear) == ([] if is_secured else clear)
    assert capture.seen(*secrets, *(secret.hex().encode() for secret in secrets)) == []
