"""Views run here, in a process of their own: a slow one, or one that uses up its memory, cannot hold up the intake."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cf_messaged import views
from cf_messaged.codec import encode_answer
from cf_messaged.database import Limits, StoreUnavailable
from cf_messaged.rights import WHERE
from cf_messaged.times import rfc3339
from cf_messaging.wire import ANSWERED, LATER, REFUSED, Answer

# SQLite cuts a view between two of its steps; the process is killed only where one step lasts for longer than this.
GRACE_S = 5.0
# Where there are too few cores for both, the intake comes first.
NICENESS = 10
RETRY_AFTER_S = 10.0


class Settings(NamedTuple):
    """store: its URL. directory: of the operator's views. given: values for parameters of these names."""

    store: str
    directory: str | None
    given: Mapping[str, Any]
    limits: Limits


class Question(NamedTuple):
    """id: of the event. store: the id of the store. now: UTC microseconds. only: whose rows may be seen, if not all."""

    id: str
    store: str
    name: str
    parameters: Mapping[str, Any]
    now: int
    only: str | None = None


class Reply(NamedTuple):
    """frame: the answer as it goes to the node."""

    status: str
    reason: str | None
    frame: bytes


def reply(question: Question, settings: Settings) -> Reply:
    try:
        view = views.load(question.name, settings.directory)
        given = views.values(view, _narrowed(view, question), settings.given, question.now)
        rows = views.rows(settings.store, view, given, settings.limits)
        answer = _answer(question, ANSWERED, view=view.name, rows=rows, time=rfc3339(question.now))
        return Reply(ANSWERED, None, encode_answer(answer))
    except StoreUnavailable as error:
        return failure(question, LATER, str(error))
    except (views.Refused, views.BadView, ValueError) as error:
        return failure(question, REFUSED, str(error))


def _narrowed(view: views.View, question: Question) -> Mapping[str, Any]:
    """The parameters, so that only those rows are seen that may be. Raises views.Refused."""
    only = question.only
    if only is None:
        return question.parameters
    if "node" not in view.parameters:
        raise views.Refused(f"{only} may not see view '{view.name}', which is of all nodes: {WHERE}")
    if question.parameters.get("node", only) != only:
        raise views.Refused(f"{only} may see its own rows of view '{view.name}', no others: {WHERE}")
    return {**question.parameters, "node": only}


def failure(question: Question, status: str, reason: str, retry_after_s: float = RETRY_AFTER_S) -> Reply:
    answer = _answer(question, status, reason=reason, retry_after=retry_after_s)
    return Reply(status, reason, encode_answer(answer))


def _answer(question: Question, status: str, **fields: Any) -> Answer:
    return Answer(question.id, question.store, 0, status, **fields)


def serve(pipe: Connection) -> None:
    """Until the listener closes its end, or is gone. Ctrl-C reaches this process too; the listener decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    try:
        while True:
            pipe.send(reply(*pipe.recv()))
    except (EOFError, OSError):
        return


class ViewProcess:
    """The listener's end: one question at a time. Started with the first one, again after it was killed."""

    def __init__(self) -> None:
        # Not forked: that would copy the ZeroMQ context without its threads.
        self._spawn = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None
        self.pipe: Connection | None = None
        self._question: Question | None = None
        self._seconds = 0.0
        self._deadline = 0.0

    @property
    def busy(self) -> bool:
        return self._question is not None

    def ask(self, question: Question, settings: Settings) -> Reply | None:
        """A reply only if the process cannot be asked."""
        self._question, self._seconds = question, settings.limits.seconds
        try:
            if self.pipe is None:
                self._start()
            self._deadline = time.monotonic() + self._seconds + GRACE_S
            self._pipe().send((question, settings))
        except OSError as error:
            return self._ended(question, LATER, f"the process that runs views cannot be asked: {error}")
        return None

    def heard(self) -> Reply | None:
        """To be called when there is something to read from the pipe. None: it has ended, and nobody waits."""
        question, self._question = self._question, None
        if question is None:
            self.close()
            return None
        try:
            return Reply(*self._pipe().recv())
        except (EOFError, OSError):
            return self._ended(question, REFUSED, "the process that ran the view died")

    def overdue(self) -> Reply | None:
        """Kills the process if it did not cut the view itself."""
        if self._question is None or time.monotonic() < self._deadline:
            return None
        reason = f"view '{self._question.name}' took longer than {self._seconds:g} s: its process was killed"
        return self._ended(self._question, REFUSED, reason)

    def close(self) -> None:
        pipe, process = self.pipe, self._process
        self.pipe = self._process = self._question = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.join()

    def _pipe(self) -> Connection:
        if self.pipe is None:
            raise OSError("it does not run")
        return self.pipe

    def _start(self) -> None:
        """One that could not be started is none that could be killed. Raises OSError."""
        self.pipe, theirs = self._spawn.Pipe()
        with theirs:
            process = self._spawn.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
        self._process = process

    def _ended(self, question: Question, status: str, reason: str) -> Reply:
        self.close()
        return failure(question, status, reason)
