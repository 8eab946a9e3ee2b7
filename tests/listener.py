"""A cf-messaged in a process of its own, and a node that talks to it with plain pyzmq and the codec."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from cf_messaged.keyring import SETTLED_NS, write
from cf_messaging.keys import certificate, public_key
from cf_messaging.wire import Answer, Event, decode_answer, encode_event, event_id
from peers import Socket, scaled

ROOT = Path(__file__).parent.parent
STREAM = "0123456789abcdef" * 2
OTHER_STREAM = "fedcba9876543210" * 2
TIME = "2026-11-24T12:00:00Z"
COMMAND = [sys.executable, "-m", "cf_messaged"]
ROLES = ("request", "push", "publish", "subscribe")
# The table with the ids of events, whose streams are numbers in it.
HISTORY = (
    "(SELECT stream || '-' || substr(CAST(1000000000000 + sequence AS TEXT), 2) AS id, history.*"
    " FROM history JOIN streams ON streams.id = stream_id) AS told"
)
# Any port that is free.
ANYWHERE = [option for role in (*ROLES, "enrol") for option in (f"--{role}", "tcp://127.0.0.1:*")]


def event(
    sequence: int = 1,
    kind: str = "state",
    name: str = "load",
    data: Any = 1,
    node: str = "web1",
    stream: str = STREAM,
    refresh: int | None = None,
) -> Event:
    return Event(event_id(stream, sequence), kind, node, name, TIME, data, refresh=refresh)


def question(view: str, parameters: dict[str, Any] | None = None, id: str = "q1") -> Event:
    return Event(id, "view", "web1", view, TIME, parameters or {})


def changed(constants: Sequence[str]) -> list[str]:
    """Another COMMAND: with constants of its modules where a test cannot wait for as long: `enrolment.VALID_S = 1`."""
    lines = [f"import cf_messaged.{each.partition('.')[0]}; cf_messaged.{each}" for each in constants]
    program = [*lines, "from cf_messaged.cli import main", "main(prog_name='cf-messaged')"]
    return [sys.executable, "-c", "\n".join(program)]


class Listener:
    """Runs until it is ended; `heard` is what it wrote to stderr. url: of its store, if that is not in the folder.
    under: a command that runs it.
    """

    def __init__(self, folder: Path, *options: str, url: str | None = None, under: Sequence[str] = ()) -> None:
        self.store = folder / "store.db"
        self.url = url or f"sqlite:///{self.store}"
        command = [*under, *COMMAND, "run", "--store", self.url, *ANYWHERE, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.heard: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("listens on ")
        told = os.read(self.process.stdout.fileno(), 4096).decode() if self.process.stdout else ""
        self.endpoints = dict(line.split() for line in told.splitlines())  # by role
        self.endpoint = self.endpoints["request"]

    def wait_for(self, wanted: str, timeout_s: float = 60) -> str:
        """Returns the first line that the regular expression is found in, once it was written."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._found(wanted), scaled(timeout_s))
            found = self._found(wanted)
        assert found, f"waited for '{wanted}', heard: {self.heard}"
        return found[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Returns the exit code; harmless when it is gone already."""
        self.process.send_signal(number)
        code = self.process.wait(scaled(60))
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        return code

    def view(self, name: str) -> list[dict[str, Any]]:
        """The rows of a view, by the command line, beside the daemon."""
        command = [*COMMAND, "view", name, "--store", self.url, "--json"]
        ended = subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT, timeout=scaled(60))
        rows: list[dict[str, Any]] = json.loads(ended.stdout)
        return rows

    def most_mb(self) -> int:
        """The most memory that it has had."""
        return self._status("VmHWM") // 1024

    def memory_mb(self) -> int:
        return self._status("VmRSS") // 1024

    def _status(self, name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[0])

    def _found(self, wanted: str) -> list[str]:
        return [line for line in self.heard if re.search(wanted, line)]

    def _read(self) -> None:
        for line in self.process.stderr or ():
            with self._news:
                self.heard.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class Keys(NamedTuple):
    """Of a peer, and of whom he connects to; in hex."""

    public: str
    secret: str
    server: str

    def secure(self, socket: Socket) -> None:
        socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = map(bytes.fromhex, self)


def new_keys(server: str) -> Keys:
    public, secret = (z85.decode(key).hex() for key in zmq.curve_keypair())
    return Keys(public, secret, server)


def accepted(directory: Path, names: Sequence[str]) -> list[Keys]:
    """Of each name, keys that the listener of this directory lets in."""
    server = public_key(str(directory / "listener.key")).hex()
    made = [new_keys(server) for _ in names]
    for name, keys in zip(names, made):
        write(directory / f"accepted/{name}.key", certificate(bytes.fromhex(keys.public)))
    time.sleep(2 * SETTLED_NS / 1e9)  # until then it looks for more of them
    return made


def subscriber(context: zmq.Context[Socket], listener: Listener, keys: Keys | None, *topics: bytes) -> Socket:
    """Of what it publishes."""
    made = context.socket(zmq.SUB)
    if keys:
        keys.secure(made)
    made.linger, made.rcvtimeo = 0, int(scaled(30) * 1000)
    for topic in topics:
        made.subscribe(topic)
    made.connect(listener.endpoints["subscribe"])
    return made


class Node:
    """Numbers what it says, over a DEALER; answers may come in any order."""

    def __init__(self, context: zmq.Context[Socket], endpoint: str, keys: Keys | None = None) -> None:
        self.socket = context.socket(zmq.DEALER)
        if keys:
            keys.secure(self.socket)
        self.socket.rcvtimeo = self.socket.sndtimeo = int(scaled(60) * 1000)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self._numbers = itertools.count()

    def send(self, said: Event | bytes) -> int:
        number = next(self._numbers)
        self.socket.send_multipart([b"%d" % number, b"", said if isinstance(said, bytes) else encode_event(said)])
        return number

    def receive(self) -> tuple[int, Answer]:
        number, empty, answer = self.socket.recv_multipart()
        assert empty == b""
        return int(number), decode_answer(answer)

    def say(self, said: Event | bytes) -> Answer:
        number = self.send(said)
        heard, answer = self.receive()
        assert heard == number
        return answer

    def say_all(self, said: Iterable[Event]) -> list[Answer]:
        """All in flight at once; the answers in the order of what was said."""
        numbers = [self.send(one) for one in said]
        answers = dict(self.receive() for _ in numbers)
        return [answers[number] for number in numbers]

    def ask(self, view: str, parameters: dict[str, Any] | None = None) -> Answer:
        return self.say(question(view, parameters))


# What a node has where nobody answers it.
TELLS = {"push": zmq.PUSH, "publish": zmq.XPUB, "pair": zmq.PAIR}


class Teller:
    """Says events where nobody answers."""

    def __init__(self, context: zmq.Context[Socket], listener: Listener, role: str, keys: Keys | None = None) -> None:
        self.socket = context.socket(TELLS[role])
        if keys:
            keys.secure(self.socket)
        self.socket.rcvtimeo = self.socket.sndtimeo = self.socket.linger = int(scaled(60) * 1000)
        self.socket.connect(listener.endpoints[role])
        self._before = [b"a topic"] if role == "publish" else []
        if role == "publish":
            self.socket.recv()  # the listener's subscription: what is published before it is lost

    def tell(self, *said: Event | bytes) -> None:
        for one in said:
            self.socket.send_multipart([*self._before, one if isinstance(one, bytes) else encode_event(one)])


def cf_messaged(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=folder or ROOT,
        env=environment,
        timeout=scaled(60),
    )
