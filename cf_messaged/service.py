"""The sockets of the listener, and its loop: take what is there, one transaction, then acknowledge. ZeroMQ is here."""

from __future__ import annotations

import logging
import resource
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Thread

import zmq

from cf_messaged import intake
from cf_messaged.config import Config
from cf_messaged.intake import Verdict
from cf_messaged.store import Store, StoreUnavailable
from cf_messaged.view_process import Question, Reply, Settings, ViewProcess, failure
from cf_messaged.views import Limits
from cf_messaging.wire import ANSWERED, DUPLICATE, LATER, MAX_EVENT_BYTES, REFUSED, STORED, Answer, Event, encode_answer

log = logging.getLogger(__name__)

# A transaction as large as this costs some 50 ms, in which nobody is answered; fewer would not be faster.
MAX_BATCH = 256
MAX_BATCH_BYTES = 8 * 1024 * 1024
# Twice what is allowed, so that a node that says too much is told so; one that says more is cut off.
MAX_FRAME_BYTES = 2 * MAX_EVENT_BYTES
# Messages of each peer that wait here; the rest waits at the peer.
RECEIVE_HIGH_WATER_MARK = 64
# Answers to each peer: those of some batches at once, or a node that reads would lose some of a burst.
SEND_HIGH_WATER_MARK = 4 * MAX_BATCH
# Connections that wait to be accepted: after a power cut all nodes come at once. The kernel's somaxconn caps it.
BACKLOG = 4096
# Somebody who connects and says nothing is let go of, as he holds a descriptor.
HANDSHAKE_MS = 5_000
# A node that lost its power holds one too, until three heartbeats are missed.
HEARTBEAT_MS = 20_000
# Answers that are on their way at the end.
LINGER_MS = 1_000
RETRY_AFTER_S = 10.0
# Questions for views that wait for a process; who comes then is told to come later.
MAX_WAITING = 100
# How often a view that runs is looked at, whether it should be killed.
LOOK_MS = 500

Frames = list[bytes]


class CannotListen(Exception):
    """One line: which endpoint, and why."""


@dataclass(slots=True)
class Counters:
    """Since the start. refused: by kind. dropped: answers that could not be sent; the node asks again."""

    received: int = 0
    stored: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    later: int = 0
    answered: int = 0
    dropped: int = 0
    batches: int = 0

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {kind}" for kind, count in sorted(self.refused.items()))
        return (
            f"received {self.received}, stored {self.stored}, duplicates {self.duplicates},"
            f" refused {self.refused.total()}{f' ({refused})' if refused else ''}, later {self.later},"
            f" views answered {self.answered}, answers dropped {self.dropped}, batches {self.batches}"
        )


def now_us() -> int:
    return time.time_ns() // 1000


class Service:
    """Heed signals, bind, run until one or `stop`, close."""

    def __init__(self, config: Config, store: Store) -> None:
        self.counters = Counters()
        self._store = store
        self._store_lost = False
        self._stopping = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        # A signal that comes just before the poll would else be noticed only after it.
        self._wake, self._waker = socket.socketpair()
        settings = {"alive_within": config.alive_within_s, "after": config.alive_within_s}
        limits = Limits(config.view_timeout_s, config.view_max_rows, config.view_max_bytes)
        view_settings = Settings(store.path, config.views_dir, settings, limits)
        self._views = [ViewProcess(view_settings) for _ in range(config.views_at_once)]
        self._asked: list[Frames] = [[] for _ in self._views]  # the envelope of what each of them runs
        self._waiting: deque[tuple[Frames, Question]] = deque()

    def bind(self, endpoint: str) -> str:
        """Returns the endpoint as it is bound, a wildcard port resolved. Raises CannotListen."""
        router = self._router
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that cannot be sent is an error, so it can be counted
        # With a domain, libzmq refuses peers of before ZMTP 3, some of whose words make it abort the process.
        router.zap_domain = b"cf-messaged"
        router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        router.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
        router.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
        router.setsockopt(zmq.BACKLOG, BACKLOG)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        router.setsockopt(zmq.LINGER, LINGER_MS)
        # Serves both; not for an IPv4 address, which would be shown as [::ffff:127.0.0.1].
        router.setsockopt(zmq.IPV6, int(endpoint.startswith(("tcp://[", "tcp://*"))))
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            raise CannotListen(f"cannot listen on {endpoint}: {error.strerror}") from None
        return router.getsockopt_string(zmq.LAST_ENDPOINT)

    def heed_signals(self) -> None:
        """SIGTERM and SIGINT end `run`, also one that has not begun: call it before anybody is told of the listener."""
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        while not self._stopping:
            try:
                self._round()
            except zmq.ContextTerminated:
                raise
            except Exception as error:  # noqa: BLE001  # the loop's safety net: nobody is answered, so nothing is lost
                log.error("a bug, please report it: %s: %s", type(error).__name__, error)

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        for process in self._views:
            process.close()
        # In a thread, since libzmq may wait for ever for a socket whose connection ended half-way through a message.
        ending = Thread(target=self._context.destroy, kwargs={"linger": LINGER_MS}, daemon=True)
        ending.start()
        ending.join(2 * LINGER_MS / 1000)
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._waker.close()

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stopping = True

    def _round(self) -> None:
        ready = self._wait()
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        if self._router in ready:
            self._serve(self._take())
        self._hear_views(ready)
        self._ask_views()

    def _wait(self) -> dict[object, int]:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake.fileno(), zmq.POLLIN)
        for process in self._views:
            if process.pipe is not None:
                poller.register(process.pipe.fileno(), zmq.POLLIN)
        return dict(poller.poll(LOOK_MS if any(process.busy for process in self._views) else None))

    # ---- events

    def _take(self) -> list[Frames]:
        taken: list[Frames] = []
        size = 0
        while len(taken) < MAX_BATCH and size < MAX_BATCH_BYTES:
            try:
                frames = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            taken.append(frames)
            size += sum(map(len, frames))
        return taken

    def _serve(self, messages: Sequence[Frames]) -> None:
        self.counters.received += len(messages)
        events: list[tuple[Frames, Event]] = []
        for envelope, said in (intake.read(frames, self._store.id) for frames in messages):
            if isinstance(said, Answer):
                self._refuse(envelope, said)
            elif intake.is_question(said):
                self._question(envelope, said)
            else:
                events.append((envelope, said))
        if events:
            self._store_all(events)

    def _refuse(self, envelope: Frames, answer: Answer) -> None:
        self.counters.refused[intake.MALFORMED] += 1
        log.warning("refused %s: %s", answer.id or "a message without an id", answer.reason)
        self._send(envelope, encode_answer(answer))

    def _store_all(self, events: Sequence[tuple[Frames, Event]]) -> None:
        received_us = now_us()
        try:
            verdicts = self._store.add([(event, received_us) for _, event in events])
        except StoreUnavailable as error:
            self._put_off(events, str(error))
            return
        if self._store_lost:
            log.warning("the store is there again: %s, store %s", self._store.path, self._store.id)
        self._store_lost = False
        self.counters.batches += 1
        for (envelope, event), verdict in zip(events, verdicts, strict=True):
            self._send(envelope, encode_answer(intake.answer(event, self._store.id, verdict)))
            self._note(event, verdict)

    def _put_off(self, events: Sequence[tuple[Frames, Event]], reason: str) -> None:
        if not self._store_lost:
            log.error("nothing can be stored: %s", reason)
        self._store_lost = True
        self.counters.later += len(events)
        for envelope, event in events:
            self._send(envelope, encode_answer(intake.later(event, self._store.id, reason, RETRY_AFTER_S)))

    def _note(self, event: Event, verdict: Verdict) -> None:
        self.counters.stored += verdict.status == STORED
        self.counters.duplicates += verdict.status == DUPLICATE
        if verdict.status == REFUSED:
            self.counters.refused[verdict.kind or REFUSED] += 1
            log.warning("refused %s %s of %s: %s", event.kind, event.name, event.node, verdict.reason)
        if verdict.note:
            log.info("%s", verdict.note)

    def _send(self, envelope: Frames, answer: bytes) -> None:
        """A peer that is gone, or does not read, is not waited for: it would hold up all the others."""
        try:
            self._router.send_multipart([*envelope, answer], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.counters.dropped += 1

    # ---- views

    def _question(self, envelope: Frames, event: Event) -> None:
        question = Question(event.id, self._store.id, event.name, event.data, now_us())
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append((envelope, question))
        else:
            self._reply(envelope, failure(question, LATER, f"{MAX_WAITING} views wait already"))

    def _ask_views(self) -> None:
        for index, process in enumerate(self._views):
            if self._waiting and not process.busy:
                self._asked[index], question = self._waiting.popleft()
                reply = process.ask(question._replace(now=now_us()))
                if reply:
                    self._reply(self._asked[index], reply)

    def _hear_views(self, ready: dict[object, int]) -> None:
        for index, process in enumerate(self._views):
            heard = process.pipe is not None and process.pipe.fileno() in ready
            reply = process.heard() if heard else process.overdue()
            if reply:
                self._reply(self._asked[index], reply)

    def _reply(self, envelope: Frames, reply: Reply) -> None:
        if reply.status == REFUSED:
            self.counters.refused["view"] += 1
        self.counters.later += reply.status == LATER
        self.counters.answered += reply.status == ANSWERED
        if reply.reason:
            log.warning("%s: %s", reply.status, reply.reason)
        self._send(envelope, reply.frame)


def raise_limits() -> None:
    """Each node is a descriptor, and a listener that has none left spins at a full core."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
