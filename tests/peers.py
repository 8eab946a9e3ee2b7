"""Plain pyzmq peers in processes of their own: independent witnesses that know nothing of this project.

`python peers.py KIND [OPTION]...` prints its endpoint, then one JSON line for each thing that happened to it, until it
is killed, its standard input ends, or --count messages went through. Tests start it with `Peer.start(KIND, ...)`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import zmq

from zmtp import greeting

Frames = list[bytes]

if TYPE_CHECKING:
    from typing import ClassVar, Self

    Socket = zmq.Socket[bytes]
    Context = zmq.Context[Socket]
else:  # the classes of pyzmq 22 take no parameters
    Socket, Context = zmq.Socket, zmq.Context


# --- the peer's own process ---------------------------------------------------------------------------------------


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("kind", choices=sorted({*KINDS, *TCP_KINDS}))
    add("--bind", default="tcp://127.0.0.1:*")
    add("--connect", default="", help="connect there instead of binding")
    add("--answer", dest="answers", action="append", default=[], type=os.fsencode, help="in turn, the last repeats")
    add("--answer-file", dest="answers", action="append", type=read, help="the same, from the bytes of a file")
    add("--multipart", action="store_true", help="all the answers are the frames of one message")
    add("--topic", default=b"", type=os.fsencode, help="pub: the first frame; sub: the prefix wanted")
    add("--single", action="store_true", help="pub: topic and text in one frame")
    add("--count", default=0, type=int, help="end after so many messages; pub then waits for its first subscriber")
    add("--delay", default=0.0, type=float, help="seconds before each answer or between messages")
    add("--workers", default=3, type=int, help="rep-workers: threads; router: requests held, the last answered first")
    add("--drop", default=0, type=int, help="router: so many first requests are never answered")
    add("--number", action="store_true", help="dealer: a number before the empty delimiter")
    add("--bare", action="store_true", help="router: answers lose what came before the empty delimiter")
    add("--twice", action="store_true", help="router: each request is answered again when the next one comes")
    add("--close", action="store_true", help="tcp-banner: close after the banner")
    add("--key", default="", help="speak CURVE with the key pair in this certificate; without --server-key as a server")
    add("--server-key", default="", help="speak CURVE with the server whose certificate this is")
    add("--accept", default="", help="let in whose certificates are in this directory, by pyzmq's own ZAP")
    return parser.parse_args(arguments)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


_telling = threading.Lock()


def tell(event: str, frames: Iterable[bytes] = ()) -> None:
    line = json.dumps({"event": event, "frames": [frame.decode("latin-1") for frame in frames]})
    with _telling:
        print(line, flush=True)


def counted(count: int) -> Iterable[int]:
    return range(count) if count else itertools.count()


def hear(sock: Socket, count: int) -> Iterator[tuple[int, Frames]]:
    for index in counted(count):
        frames = sock.recv_multipart()
        tell("received", frames)
        yield index, frames


def say(sock: Socket, frames: Frames) -> None:
    sock.send_multipart(frames)
    tell("sent", frames)


def words(options: argparse.Namespace, index: int, default: Frames) -> Frames:
    answers: list[Frames] = [options.answers] if options.multipart else [[answer] for answer in options.answers]
    return answers[min(index, len(answers) - 1)] if answers else default


def sayings(options: argparse.Namespace) -> Iterator[Frames]:
    """What a peer that speaks first says: its answers, else numbers."""
    for index in range(options.count or (1 if options.multipart else len(options.answers)) or 1):
        yield words(options, index, [b"%d" % index])


def answer(sock: Socket, options: argparse.Namespace) -> None:
    for index, frames in hear(sock, options.count):
        time.sleep(options.delay)
        say(sock, words(options, index, frames))


def listen(sock: Socket, options: argparse.Namespace) -> None:
    for _ in hear(sock, options.count):
        time.sleep(options.delay)


def send(sock: Socket, options: argparse.Namespace) -> None:
    for frames in sayings(options):
        time.sleep(options.delay)
        say(sock, frames)


def send_and_listen(sock: Socket, options: argparse.Namespace) -> None:
    send(sock, options)
    for _ in hear(sock, 0):
        pass


def publish(sock: Socket, options: argparse.Namespace) -> None:
    if options.count:
        tell("subscribed", sock.recv_multipart())
    for index in counted(options.count):
        while sock.poll(0):
            tell("subscribed", sock.recv_multipart())
        text = words(options, index, [b"%d" % index])
        sock.send_multipart([options.topic + b" " + text[0]] if options.single else [options.topic, *text])
        time.sleep(options.delay or 0.005)


def ask_in_turn(sock: Socket, options: argparse.Namespace) -> None:
    for frames in sayings(options):
        say(sock, frames)
        tell("received", sock.recv_multipart())


def ask_at_once(sock: Socket, options: argparse.Namespace) -> None:
    requests = list(sayings(options))
    for index, frames in enumerate(requests):
        say(sock, [b"%d" % index, b"", *frames] if options.number else [b"", *frames])
    for _ in hear(sock, len(requests)):
        pass


def route(sock: Socket, options: argparse.Namespace) -> None:
    """Holds up to --workers requests and answers the last one first, so that the order is wrong for certain."""
    held: list[tuple[int, Frames]] = []
    again: list[Frames] = []
    for index, frames in hear(sock, options.count):
        while again:
            say(sock, again.pop(0))
        if index >= options.drop:
            held.append((index - options.drop, frames))
        if len(held) < options.workers and index + 1 != options.count and sock.poll(50):
            continue
        time.sleep(options.delay)
        while held:
            number, request = held.pop()
            body = request.index(b"", 1) + 1 if b"" in request[1:] else 1
            envelope = [request[0], b""] if options.bare else request[:body]
            say(sock, envelope + words(options, number, request[body:]))
            again += [envelope + words(options, number, request[body:])] if options.twice else []


def employ(sock: Socket, options: argparse.Namespace) -> None:
    """The proxy of the ZeroMQ guide with REP workers; the first is the slowest, by --delay."""
    back: Socket = sock.context.socket(zmq.DEALER)
    back.bind("inproc://workers")
    for number in range(options.workers):
        pace = argparse.Namespace(**{**vars(options), "delay": options.delay * (options.workers - number)})
        threading.Thread(target=work, args=(sock.context, pace), daemon=True).start()
    zmq.proxy(sock, back)


def work(context: zmq.Context[Socket], options: argparse.Namespace) -> None:
    sock = context.socket(zmq.REP)
    sock.connect("inproc://workers")
    answer(sock, options)


KINDS: dict[str, tuple[int, Callable[[Socket, argparse.Namespace], None]]] = {
    "rep": (zmq.REP, answer),
    "curve-rep": (zmq.REP, answer),
    "pub": (zmq.XPUB, publish),
    "sub": (zmq.SUB, listen),
    "pull": (zmq.PULL, listen),
    "push": (zmq.PUSH, send),
    "router": (zmq.ROUTER, route),
    "silent-router": (zmq.ROUTER, listen),
    "rep-workers": (zmq.ROUTER, employ),
    "req": (zmq.REQ, ask_in_turn),
    "dealer": (zmq.DEALER, ask_at_once),
    "pair": (zmq.PAIR, answer),
    "pair-silent": (zmq.PAIR, listen),
    "pair-speaking": (zmq.PAIR, send_and_listen),
}
# What they say to each caller, unless they are told what. The last wants CURVE like "curve-rep", but leaves it to the
# caller to hang up: who does so first decides whether a ZeroMQ caller is told why.
TCP_KINDS = {"tcp-silent": b"", "tcp-banner": b"SSH-2.0-OpenSSH_9.2p1\r\n", "tcp-curve": greeting(mechanism=b"CURVE")}


def converse(options: argparse.Namespace) -> None:
    context = zmq.Context()
    number, conversation = KINDS[options.kind]
    sock = context.socket(number)
    sock.setsockopt(zmq.IPV6, int("[" in options.bind + options.connect))
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    if options.kind == "sub":
        sock.setsockopt(zmq.SUBSCRIBE, options.topic)
    if options.kind == "curve-rep":
        _, sock.curve_secretkey = zmq.curve_keypair()
        sock.curve_server = True
    if options.key:
        secure(sock, options)
    sock.connect(options.connect) if options.connect else sock.bind(options.bind)
    print(sock.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    conversation(sock, options)
    sock.close()
    context.term()  # waits until everything that was said is handed over


_doorkeepers: list[object] = []  # that of pyzmq 22 leaves, and lets everybody in, once nobody refers to it


def secure(sock: Socket, options: argparse.Namespace) -> None:
    from zmq.auth import load_certificate
    from zmq.auth.thread import ThreadAuthenticator

    sock.curve_publickey, sock.curve_secretkey = load_certificate(options.key)
    if options.server_key:
        sock.curve_serverkey, _ = load_certificate(options.server_key)
        return
    sock.curve_server = True
    if options.accept:
        doorkeeper = ThreadAuthenticator(sock.context)
        doorkeeper.start()
        doorkeeper.configure_curve(domain="*", location=options.accept)
        _doorkeepers.append(doorkeeper)


def accept(options: argparse.Namespace) -> None:
    """Somebody is there, but not a ZeroMQ peer."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"tcp://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    callers = []
    for index in itertools.count():
        caller, _ = listener.accept()
        tell("accepted")
        caller.sendall(b"".join(words(options, index, [TCP_KINDS[options.kind]])))
        if options.close:
            caller.close()
        callers.append(caller)


def end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would stop the interpreter from ending
        pass
    os._exit(1)


def main() -> None:
    options = options_of(sys.argv[1:])
    threading.Thread(target=end_with_parent, daemon=True).start()
    accept(options) if options.kind in TCP_KINDS else converse(options)


# --- the test's side ----------------------------------------------------------------------------------------------


def scaled(seconds: float) -> float:
    """A deadline for this machine: MESSAGES_TEST_SLOWNESS=5 waits five times as long."""
    return seconds * float(os.environ.get("MESSAGES_TEST_SLOWNESS", "1"))


class Event(NamedTuple):
    kind: str  # received, sent, subscribed or accepted
    frames: tuple[bytes, ...]


class Peer:
    """A peer that runs; `wait_for` sees what happened to it. End it with `kill`, or use it as a context manager."""

    PROGRAM: ClassVar[str] = __file__

    def __init__(self, kind: str, *arguments: str) -> None:
        self._name = " ".join((kind, *arguments))
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        command = [sys.executable, self.PROGRAM, kind, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def start(cls, kind: str, *arguments: str) -> Self:
        """Returns once the peer is bound (or has begun to connect)."""
        peer = cls(kind, *arguments)
        try:
            peer._wait(lambda: bool(peer._lines), "its endpoint", 30)
        except BaseException:
            peer.kill()
            raise
        return peer

    @property
    def endpoint(self) -> str:
        return self._lines[0].strip()

    def events(self, kind: str | None = None) -> list[Event]:
        with self._news:
            decoded = [json.loads(line) for line in self._lines[1:]]
        events = [Event(e["event"], tuple(frame.encode("latin-1") for frame in e["frames"])) for e in decoded]
        return [event for event in events if kind in (None, event.kind)]

    @property
    def received(self) -> list[tuple[bytes, ...]]:
        return [event.frames for event in self.events("received")]

    def wait_for(
        self, wanted: int | Callable[[list[Event]], bool], kind: str | None = "received", timeout_s: float = 30
    ) -> list[Event]:
        """Waits for so many events of the kind (None: any), or until they satisfy a predicate; returns them all."""

        def enough() -> bool:
            events = self.events(kind)
            return len(events) >= wanted if isinstance(wanted, int) else wanted(events)

        self._wait(enough, f"{wanted} of {kind or 'any kind'}", timeout_s)
        return self.events(kind)

    def wait_for_end(self, timeout_s: float = 30) -> list[Event]:
        """Waits until a peer with a --count is done."""
        self._wait(lambda: self._ended, "its end", timeout_s)
        return self.events()

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone; harmless when it is gone already."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def stop(self) -> None:
        """SIGSTOP: its connections stay, but nothing is read or answered until `cont`."""
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _wait(self, enough: Callable[[], bool], what: str, timeout_s: float) -> None:
        with self._news:
            self._news.wait_for(lambda: enough() or self._ended, scaled(timeout_s))
            if not enough():
                state = "ended" if self._ended else "still runs"
                raise AssertionError(f"peer '{self._name}' {state}; waited for {what}, heard: {self._lines}")


class Gate:
    """A promise in the middle of an agent run at which the run waits until the test has acted."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self.promise = (
            f'"gate" pattern => "request", payload => "may I?", timeout => "{scaled(60)}",'
            f' endpoint => "tcp://127.0.0.1:{self._socket.bind_to_random_port("tcp://127.0.0.1")}";\n'
        )

    def reached(self) -> None:
        """Returns once the run waits at the gate."""
        if not self._socket.poll(int(scaled(30) * 1000)):
            raise AssertionError("the run did not come to its gate")
        self._socket.recv()

    def open(self) -> None:
        self._socket.send(b"go on")

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=1000)


_reserved: list[socket.socket] = []


def refused_endpoint() -> str:
    """A port where nobody listens, and nobody can begin to: it stays bound, without listening, until the tests end."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    _reserved.append(reserved)
    return f"tcp://127.0.0.1:{reserved.getsockname()[1]}"


def in_time(seconds: float = 30) -> float:
    """A deadline of time.monotonic()."""
    return time.monotonic() + scaled(seconds)


def bound(context: zmq.Context[Socket], kind: int) -> tuple[Socket, str]:
    """A peer in this process, at a port of its own."""
    peer = context.socket(kind)
    peer.rcvtimeo = peer.sndtimeo = int(scaled(30) * 1000)
    port = peer.bind_to_random_port("tcp://127.0.0.1")
    return peer, f"tcp://127.0.0.1:{port}"


def resolves(name: str) -> bool:
    """Whether this machine knows the name; a root made by debootstrap alone has no /etc/hosts."""
    try:
        return bool(socket.getaddrinfo(name, 1))
    except OSError:
        return False


_asked = itertools.count()


def free_port(host: str = "127.0.0.1") -> int:
    """For another side to bind. Nobody takes it first: below the ephemeral ones, and each process begins elsewhere."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = 2_000 + (100 * os.getpid() + next(_asked)) % 30_000
        with suppress(OSError), socket.create_server((host, port), family=family):
            return port


if __name__ == "__main__":
    main()
