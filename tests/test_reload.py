"""A listener that runs: its settings are read again on SIGHUP, and systemd is told what it wants to know."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from cf_messaging.wire import ANSWERED, REFUSED
from listener import Listener, Node, event
from peers import Socket, scaled
from test_service import Start, start  # noqa: F401 - a fixture


def reload(listener: Listener, settings: str, told: str) -> None:
    """Returns once the listener has told of it."""
    (listener.store.parent / "settings.toml").write_text(settings)
    listener.process.send_signal(signal.SIGHUP)
    listener.wait_for(told)


def test_settings_are_read_again(start: Start, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """The next view goes by the new limit; what only a restart can change is named, and stays."""
    listener = start(view_max_rows=1)
    node = Node(plain, listener.endpoint)
    node.say_all([event(1, node="web1"), event(1, node="web2")])
    assert node.ask("nodes").status == REFUSED
    reload(listener, "view_max_rows = 2\nviews_at_once = 3\n", "the settings are read again")
    listener.wait_for("views_at_once stays as it was: another one needs a restart")
    assert node.ask("nodes").status == ANSWERED
    assert listener.end() == 0


def test_settings_that_are_wrong_change_nothing(start: Start, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """One line says what is wrong with them, and the listener goes on with those that it has."""
    listener = start(view_max_rows=1)
    node = Node(plain, listener.endpoint)
    node.say_all([event(1, node="web1"), event(1, node="web2")])
    reload(listener, "view_max_rows = 0\n", "the settings stay as they were: .*view_max_rows is 0")
    assert node.ask("nodes").status == REFUSED
    assert listener.end() == 0


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that a listener finds in its environment."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(scaled(60))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        yield receiver


def told(systemd: socket.socket, wanted: str) -> str:
    """The next message that is not a beat, or the next beat."""
    while True:
        message = systemd.recv(4096).decode()
        if ("WATCHDOG=1" in message) == (wanted == "WATCHDOG=1"):
            assert wanted in message
            return message


def test_systemd_is_told(start: Start, systemd: socket.socket, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """When it listens, when it reads its settings, that it lives while nothing happens and while much does, its end."""
    listener = start(view_max_rows=1)
    assert f"STATUS=listens on {listener.endpoint}" in told(systemd, "READY=1")
    for _ in range(3):
        told(systemd, "WATCHDOG=1")
    Node(plain, listener.endpoint).say_all(event(number) for number in range(1, 2000))
    told(systemd, "WATCHDOG=1")
    reload(listener, "view_max_rows = 2\n", "the settings are read again")
    told(systemd, "RELOADING=1")
    told(systemd, "READY=1")
    assert listener.end() == 0
    told(systemd, "STOPPING=1")
