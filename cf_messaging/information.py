"""What a node says to a cf-messaged, what it asks of it, and what came of that.

Information is queued on disk, then said, then taken out of the queue when it was answered: what an agent run could not
say, the next one says first.
"""

from __future__ import annotations

import os
import time
from functools import partial

from . import wire
from .answers import decoded
from .delivery import Delivery, talk
from .files import as_rows, keep
from .memory import Memory, Saying
from .outcomes import Failure, Outcome, Reason, kept, only_warned, repaired, worst
from .patterns import SAY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .attributes import Promise
    from .conversations import Exchanged
    from .patterns import Conversation

_TO_QUESTIONS = (wire.ANSWERED, wire.REFUSED, wire.LATER)
_MINUTE = 60


class Information:
    """All information and views of an agent run; holds the node's memory open for as long as the run lasts.

    started, of a promise: when its evaluation began, of time.monotonic().
    """

    def __init__(
        self,
        converse: Callable[[Conversation, float], Exchanged],
        log: Callable[[str, str], None],
        state_dir: str,
    ) -> None:
        """converse: as Exchange.converse(); log: takes level and text; state_dir: where promises name none."""
        self._converse = converse
        self._log = log
        self._state_dir = state_dir
        self._next_keys: set[str] = set()  # that were told in this run
        self._put_off: dict[str, tuple[float, Failure]] = {}  # as Delivery keeps it
        self._memories: dict[tuple[str, bool], Memory] = {}
        self._promised: dict[tuple[str, str, str], tuple[str, str]] = {}  # service, node, name -> value, place

    def close(self) -> None:
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()

    # ---- information

    def say(self, promise: Promise, value: Any, place: str, started: float) -> Outcome:
        """Keep a promise of information. Raises Failure where nothing can be said, or noted.

        place: file:line of the promise, where it is known.
        """
        saying = Saying(promise.node, promise.information.name, promise.name, _canonical(value))
        service, now = promise.service, time.time()
        self._check_unique(service, saying, place)
        memory = self._memory(promise)
        if promise.information.remembered and _is_known(promise, memory, saying, now):
            return kept(f"{service} has it already", ["delivered"])
        if promise.dry_run:
            return only_warned(f"say {promise.information.name} information to {service}")
        event = _event(promise, saying.node, value, place, now)
        if promise.pattern.conversation == SAY or promise.pattern.socket == "PAIR":
            return self._say_once(promise, event(memory.next_id()), saying, started)
        expires = now + promise.expire * _MINUTE
        sequence, lost = memory.queue(service, saying, promise.information.remembered, event, now, expires)
        if lost:
            whose = ", ".join(sorted(set(lost)))
            self._log("error", f"messages: this node's queue is full: its oldest are lost, {len(lost)} for {whose}")
        announced = partial(self._announced, promise)
        delivery = Delivery(promise, memory, self._converse, self._log, announced, self._put_off)
        return delivery.flush(sequence, started) or _said_by_another(promise, memory, saying)

    def _check_unique(self, service: str, saying: Saying, place: str) -> None:
        data, other = self._promised.setdefault((service, saying.node, saying.name), (saying.data, place))
        if data != saying.data:
            at = f" at {other}" if other else ""
            raise Failure(Reason.LOCAL, f"'{saying.name}' was promised with another value in this run{at}")

    def _announced(self, promise: Promise, next_key: str) -> None:
        """Policy says whom this node speaks to; here it is only told what it will need, in a file that it may use."""
        from .keys import BadKey, certificate, from_hex, server_keys

        try:
            known, key = server_keys(promise.curve.server_key if promise.curve else ()), from_hex(next_key)
        except (BadKey, ValueError):
            return
        if key in known or next_key in self._next_keys:
            return
        self._next_keys.add(next_key)
        path = self._path(promise, "listener.key")
        keep(path, certificate([*known, key], "The keys of a cf-messaged, of now and of next").encode())
        text = f"will have another key, {next_key}: 'server_key' in policy needs it too, as in {path}"
        self._log("warning", f"messages: {promise.service} {text}")

    def _path(self, promise: Promise, name: str) -> str:
        return os.path.normpath(os.path.join(promise.state_dir or self._state_dir, "messages", name))

    def _say_once(self, promise: Promise, event: bytes, saying: Saying, started: float) -> Outcome:
        """By a pattern without acknowledgement: never queued, never remembered."""
        topic = f"{saying.kind}/{saying.name}/{saying.node}/".encode()
        done = self._converse(talk(promise, [event])._replace(topic=topic), started + promise.timeout)
        if done.failures:
            raise worst(done.failures)
        return repaired(f"handed over to {done.endpoint}", ["sent"])

    # ---- views

    def view(self, promise: Promise, started: float) -> Outcome:
        """Ask for a view and write it to the promise's file. Raises Failure."""
        if promise.dry_run:
            return only_warned(f"ask {promise.service} for the view '{promise.view}'")
        answer, endpoint = self._asked(promise, started)
        if answer.status != wire.ANSWERED:
            raise Failure(Reason.REFUSED, answer.reason, endpoint)
        rows, warnings = as_rows(answer.rows)
        for warning in warnings:
            self._log("warning", f"messages '{promise.name}': view '{promise.view}': {warning}")
        changed, count = keep(str(promise.file), rows), len(answer.rows)
        text = f"{endpoint} answered view '{promise.view}' with {count} row{'' if count == 1 else 's'}"
        suffixes = ["delivered", "received"]
        return (
            repaired(f"{text}, {promise.file} replaced", suffixes) if changed else kept(f"{text}, as before", suffixes)
        )

    def _asked(self, promise: Promise, started: float) -> tuple[wire.Answer, str]:
        """The answer to a question for a view, and which endpoint gave it."""
        id, node = os.urandom(16).hex(), promise.node
        question = wire.Event(id, wire.VIEW, node, promise.view, _rfc3339(time.time()), promise.parameters)
        done = self._converse(talk(promise, [_encoded(question)]), started + promise.timeout)
        if done.failures:
            raise worst(done.failures)
        return decoded(done.received[0].payload, id, done.endpoint, _TO_QUESTIONS), done.endpoint

    def _memory(self, promise: Promise) -> Memory:
        key = promise.state_dir or self._state_dir, promise.dry_run
        if key not in self._memories:
            path = self._path(promise, "memory.db")
            self._memories[key] = Memory(path, lambda text: self._log("error", f"messages: {text}"), read_only=key[1])
        return self._memories[key]


def _is_known(promise: Promise, memory: Memory, saying: Saying, now: float) -> bool:
    """Whether the listener has this value, and need not be told again yet."""
    due_s = _due_s(promise.refresh, saying.node, saying.name)
    return memory.is_acknowledged(promise.service, saying, due_s, now)


def _said_by_another(promise: Promise, memory: Memory, saying: Saying) -> Outcome:
    """The outcome where another agent of this node has taken the event out of the queue."""
    if _is_known(promise, memory, saying, time.time()):
        return kept(f"{promise.service} has just got it from another agent", ["delivered"])
    raise Failure(Reason.LOCAL, "another agent of this node was faster, and what came of it is not known here")


def _canonical(value: Any) -> str:
    try:
        text = wire.canonical(value)
        text.encode("utf-8")
        return text
    except (ValueError, RecursionError) as error:
        raise Failure(Reason.LOCAL, f"a value that no event can carry: {error}") from None


def _event(promise: Promise, node: str, value: Any, place: str, now: float) -> Callable[[str], bytes]:
    """Makes the event of a promise from an id."""
    kind = promise.information
    refresh_s = promise.refresh * _MINUTE if kind.remembered else None
    said = (kind.name, node, promise.name, _rfc3339(now), value, place or None, promise.handle, refresh_s)
    return lambda id: _encoded(wire.Event(id, *said))


def _encoded(event: wire.Event) -> bytes:
    try:
        return wire.encode_event(event)
    except (ValueError, RecursionError) as error:
        raise Failure(Reason.LOCAL, f"a value that no event can carry: {error}") from None


def _due_s(refresh: int, node: str, name: str) -> int:
    """Seconds after which an unchanged value is said again: refresh, less up to a tenth, so that not all fall due at
    once.
    """
    spread = sum(map(ord, node + name)) % 100
    return refresh * _MINUTE * (1000 - spread) // 1000


def _rfc3339(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1_000_000):06d}Z"
