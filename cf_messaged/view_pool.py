"""Questions for views, each run by one of a few processes; who comes while all are busy waits, or is told to."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from cf_messaged.budget import Budget
from cf_messaged.metrics import Metrics
from cf_messaged.view_process import RETRY_AFTER_S, Question, Reply, Settings, ViewProcess, failure
from cf_messaging.wire import ANSWERED, LATER, REFUSED, VIEW, canonical

log = logging.getLogger(__name__)

# Questions that wait for a process; who comes then is told to come later.
MAX_WAITING = 100
# Of a question: the pipe to a process takes as much before that is there to read it.
MAX_PARAMETERS_CHARS = 32_768

Frames = list[bytes]


class Answered(NamedTuple):
    """envelope: the frames that the answer begins with."""

    envelope: Frames
    frame: bytes


class _Desk:
    """A process, and whose question it runs since when."""

    def __init__(self) -> None:
        self.process = ViewProcess()
        self.envelope: Frames = []
        self.since = 0.0


class ViewPool:
    def __init__(self, settings: Settings, size: int, metrics: Metrics) -> None:
        self.settings = settings  # of what is asked next
        self._metrics = metrics
        self._desks = [_Desk() for _ in range(size)]
        self._budget = Budget()
        self._waiting: deque[tuple[Frames, Question]] = deque()

    @property
    def busy(self) -> bool:
        return any(desk.process.busy for desk in self._desks)

    def files(self) -> list[int]:
        """Descriptors on which an answer may come."""
        return [desk.process.pipe.fileno() for desk in self._desks if desk.process.pipe is not None]

    def ask(self, envelope: Frames, question: Question) -> list[Answered]:
        """Returns the answer if it need not be waited for."""
        if len(canonical(question.parameters)) > MAX_PARAMETERS_CHARS:
            reason = f"the parameters of view '{question.name:.100}' have more than {MAX_PARAMETERS_CHARS} characters"
            return [self._answered(envelope, failure(question, REFUSED, reason))]
        now_s = time.monotonic()
        if not self._budget.left(envelope[0], now_s):
            reason, wait_s = "too many bytes of views were answered in this minute", self._budget.wait_s(now_s)
        elif len(self._waiting) >= MAX_WAITING:
            reason, wait_s = f"{MAX_WAITING} views wait already", RETRY_AFTER_S
        else:
            self._waiting.append((envelope, question))
            return []
        return [self._answered(envelope, failure(question, LATER, reason, wait_s))]

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

    def _ask_idle(self, now_us: int) -> list[Answered]:
        failed = []
        for desk in self._desks:
            if self._waiting and not desk.process.busy:
                desk.envelope, question = self._waiting.popleft()
                desk.since = time.monotonic()
                reply = desk.process.ask(question._replace(now=now_us), self.settings)
                if reply:
                    failed.append(self._done(desk, reply))
        return failed

    def _done(self, desk: _Desk, reply: Reply) -> Answered:
        self._metrics.view_seconds.observe(time.monotonic() - desk.since)
        return self._answered(desk.envelope, reply)

    def _answered(self, envelope: Frames, reply: Reply) -> Answered:
        counters = self._metrics.counters
        counters.refused[VIEW] += reply.status == REFUSED
        counters.later += reply.status == LATER
        counters.answered += reply.status == ANSWERED
        if reply.reason:
            log.warning("%s: %s", reply.status, reply.reason)
        self._budget.spend(envelope[0], len(reply.frame))
        return Answered(envelope, reply.frame)


def _has_news(process: ViewProcess, ready: Container[object]) -> bool:
    return process.pipe is not None and process.pipe.fileno() in ready
