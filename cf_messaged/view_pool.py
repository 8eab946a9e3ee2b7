"""Questions for views, each run by one of a few processes; who comes while all are busy waits, or is told to."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from cf_messaged.budget import Budget
from cf_messaged.complaints import Complaints
from cf_messaged.metrics import Metrics
from cf_messaged.view_process import RETRY_AFTER_S, Question, Reply, Settings, ViewProcess, failure
from cf_messaging.wire import ANSWERED, LATER, REFUSED, VIEW, canonical

# Questions that wait for a process, of all and of one node; who comes then is told to come later.
MAX_WAITING = 100
MAX_WAITING_OF_ONE = 10
# In a minute. An answer that a node does not read stays in memory, and libzmq counts messages, not bytes. Whoever takes
# nothing is cut off after a minute (sockets.py), and what he was answered is freed.
BYTES_TO_A_NODE = 64 * 1024 * 1024
BYTES_TO_ALL = 512 * 1024 * 1024
# Of a question: the pipe to a process takes as much before that is there to read it.
MAX_PARAMETERS_CHARS = 32_768

Frames = list[bytes]


class Asker(NamedTuple):
    """who: the node, as far as that is known, else the peer. envelope: the frames that the answer begins with."""

    who: str | bytes
    envelope: Frames


class Answered(NamedTuple):
    envelope: Frames
    frame: bytes


class _Desk:
    """A process, and whose question it runs since when."""

    def __init__(self) -> None:
        self.process = ViewProcess()
        self.asker = Asker(b"", [])
        self.since = 0.0


class ViewPool:
    def __init__(self, settings: Settings, size: int, metrics: Metrics) -> None:
        self.settings = settings  # of what is asked next
        self._metrics = metrics
        self._desks = [_Desk() for _ in range(size)]
        self._complaints = Complaints()
        self._budget = Budget(BYTES_TO_A_NODE, BYTES_TO_ALL)
        self._waiting: deque[tuple[Asker, Question]] = deque()

    @property
    def busy(self) -> bool:
        return any(desk.process.busy for desk in self._desks)

    def files(self) -> list[int]:
        """Descriptors on which an answer may come."""
        return [desk.process.pipe.fileno() for desk in self._desks if desk.process.pipe is not None]

    def ask(self, asker: Asker, question: Question) -> list[Answered]:
        """Returns the answer if it need not be waited for."""
        if len(canonical(question.parameters)) > MAX_PARAMETERS_CHARS:
            reason = f"the parameters of view '{question.name:.100}' have more than {MAX_PARAMETERS_CHARS} characters"
            return [self._answered(asker, failure(question, REFUSED, reason))]
        if wait_s := self._budget.wait_s(asker.who, time.monotonic()):
            reason = "too many bytes of views were answered in this minute"
            return [self._answered(asker, failure(question, LATER, reason, wait_s))]
        if reason := self._has_no_room(asker):
            return [self._answered(asker, failure(question, LATER, reason, RETRY_AFTER_S))]
        self._waiting.append((asker, question))
        return []

    def serve(self, ready: Container[object], now_us: int) -> list[Answered]:
        """To be called each round: what the processes have answered; who waits is asked. ready: of `files`."""
        answered = []
        for desk in self._desks:
            reply = desk.process.heard() if _has_news(desk.process, ready) else desk.process.overdue()
            if reply:
                answered.append(self._done(desk, reply))
        return answered + self._ask_idle(now_us)

    def close(self) -> None:
        for desk in self._desks:
            desk.process.close()

    def _has_no_room(self, asker: Asker) -> str:
        """Why a question cannot wait; empty if it can."""
        if len(self._waiting) >= MAX_WAITING:
            return f"{MAX_WAITING} views wait already"
        is_full = sum(waiting.who == asker.who for waiting, _ in self._waiting) >= MAX_WAITING_OF_ONE
        return f"{MAX_WAITING_OF_ONE} views of this node wait already" if is_full else ""

    def _ask_idle(self, now_us: int) -> list[Answered]:
        failed = []
        for desk in self._desks:
            if self._waiting and not desk.process.busy:
                desk.asker, question = self._waiting.popleft()
                desk.since = time.monotonic()
                reply = desk.process.ask(question._replace(now=now_us), self.settings)
                if reply:
                    failed.append(self._done(desk, reply))
        return failed

    def _done(self, desk: _Desk, reply: Reply) -> Answered:
        self._metrics.view_seconds.observe(time.monotonic() - desk.since)
        return self._answered(desk.asker, reply)

    def _answered(self, asker: Asker, reply: Reply) -> Answered:
        counters = self._metrics.counters
        counters.refused[VIEW] += reply.status == REFUSED
        counters.later += reply.status == LATER
        counters.answered += reply.status == ANSWERED
        if reply.reason:
            whom = f" to {asker.who}" if isinstance(asker.who, str) else ""
            self._complaints.say(asker.who, f"{reply.status}{whom}: {reply.reason}")
        self._budget.spend(asker.who, len(reply.frame))
        return Answered(asker.envelope, reply.frame)


def _has_news(process: ViewProcess, ready: Container[object]) -> bool:
    return process.pipe is not None and process.pipe.fileno() in ready
