"""What a node says to a cf-messaged, what it asks of it, and what came of that.

Information is queued on disk, then said, then taken out of the queue when it was answered: what an agent run could not
say, the next one says first.
"""

from __future__ import annotations

import os
import time
from collections import namedtuple

from . import wire
from .files import as_rows, keep
from .memory import NODE, STORE, Memory, Saying
from .outcomes import Failure, Outcome, Reason, kept, not_kept, only_warned, repaired, worst
from .patterns import PATTERNS, SAY, Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .attributes import Promise
    from .conversations import Exchanged
    from .memory import Waiting

_BATCH = 500  # events in flight at once
_ON_DISK = (wire.STORED, wire.DUPLICATE)
_TO_EVENTS = (*_ON_DISK, wire.REFUSED, wire.LATER)
_TO_QUESTIONS = (wire.ANSWERED, wire.REFUSED, wire.LATER)
_MINUTE = 60

# place: file:line of the promise, where it is known. node: this one's name. started: of time.monotonic().
Context = namedtuple("Context", "name place handle node started")
# What came of events that were said. answers: by sequence; unusable: why an answer is none, by sequence; failure: why
# not all were answered.
_Heard = namedtuple("_Heard", "answers unusable failure")


class Information:
    """All information and views of an agent run; holds the node's memory open for as long as the run lasts."""

    def __init__(
        self, converse: Callable[[Conversation, float], Exchanged], log: Callable[[str, str], None], state_dir: str
    ) -> None:
        """converse: as Exchange.converse(); log: takes level and text; state_dir: where promises name none."""
        self._converse = converse
        self._log = log
        self._state_dir = state_dir
        self._memories: dict[tuple[str, bool], Memory] = {}
        self._promised: dict[tuple[str, str, str], tuple[str, str]] = {}  # endpoints, node, name -> value, place

    def close(self) -> None:
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()

    # ---- information

    def say(self, promise: Promise, value: Any, context: Context) -> Outcome:
        """Keep a promise of information. Raises Failure where nothing can be said, or noted."""
        saying = Saying(context.node, promise.information.name, context.name, _canonical(value))
        self._check_unique(promise, saying, context)
        memory = self._memory(promise)
        endpoints = " ".join(promise.endpoint)
        now = time.time()
        if promise.information.remembered and _is_known(promise, memory, saying, now):
            return kept(f"{endpoints} has it already", [] if promise.dry_run else ["delivered"])
        if promise.dry_run:
            return only_warned(f"say {promise.information.name} information to {endpoints}")
        event = _event(promise, value, context, now)
        if promise.pattern.conversation == SAY or promise.pattern.socket == "PAIR":
            return self._say_once(promise, memory, event, context)
        expires = now + promise.expire * _MINUTE
        sequence, lost = memory.queue(endpoints, saying, promise.information.remembered, event, now, expires)
        if lost:
            self._log("error", f"messages: the queue for {endpoints} is full, its {lost} oldest events are lost")
        return self._flush(promise, memory, sequence, context) or self._said_by_another(promise, memory, saying)

    def _check_unique(self, promise: Promise, saying: Saying, context: Context) -> None:
        key = " ".join(promise.endpoint), saying.node, saying.name
        data, place = self._promised.setdefault(key, (saying.data, context.place))
        if data != saying.data:
            at = f" at {place}" if place else ""
            raise Failure(Reason.LOCAL, f"'{saying.name}' was promised with another value in this run{at}")

    def _say_once(self, promise: Promise, memory: Memory, event: Callable[[str], bytes], context: Context) -> Outcome:
        """By a pattern without acknowledgement: never queued, never remembered."""
        talk = _talk(promise, [event(memory.next_id())])
        done = self._converse(talk._replace(topic=_topic(promise, context)), context.started + promise.timeout)
        if done.failures:
            raise worst(done.failures)
        return repaired(f"handed over to {done.endpoint}", ["sent"])

    def _said_by_another(self, promise: Promise, memory: Memory, saying: Saying) -> Outcome:
        """The outcome where another agent of this node has taken the event out of the queue."""
        if _is_known(promise, memory, saying, time.time()):
            return kept(f"{' '.join(promise.endpoint)} has just got it from another agent", ["delivered"])
        raise Failure(Reason.LOCAL, "another agent of this node was faster, and what came of it is not known here")

    def _flush(self, promise: Promise, memory: Memory, sequence: int, context: Context) -> Outcome | None:
        """Say what waits, in order: for half the time what was there before, then the event of this promise, then what
        is behind it. None if that event waits no more.
        """
        endpoints, half = " ".join(promise.endpoint), context.started + promise.timeout / 2
        failure = self._say_others(promise, memory, range(sequence), half)
        if failure:
            return self._unsaid(failure, memory, endpoints, sequence)
        own = _own(memory, endpoints, sequence)
        if not own:
            return None
        heard = self._ask(promise, memory, own, context.started + promise.timeout)
        answer = heard.answers.get(sequence)
        if answer is None or answer.status == wire.LATER:
            failure = heard.unusable.get(sequence) or heard.failure or _put_off(answer, endpoints)
            return self._unsaid(failure, memory, endpoints, sequence)
        self._say_others(promise, memory, self._samples_behind(memory, endpoints, sequence), half)
        if answer.status == wire.REFUSED:
            memory.drop([sequence])
            return not_kept(Failure(Reason.REFUSED, answer.reason, endpoints))
        return repaired(f"{endpoints} has stored it", ["delivered"])

    @staticmethod
    def _samples_behind(memory: Memory, endpoints: str, sequence: int) -> range:
        """The sequences of state next in the queue: no promise that is still to come in this run will say it."""
        last = sequence
        for waiting in memory.waiting(endpoints, sequence, _BATCH):
            if wire.KINDS[waiting.kind].remembered:
                break
            last = waiting.sequence
        return range(sequence + 1, last + 1)

    def _unsaid(self, failure: Failure, memory: Memory, endpoints: str, sequence: int) -> Outcome:
        """The outcome of a promise whose event waits on, or has waited for too long."""
        own = _own(memory, endpoints, sequence)
        if own and own[0].expires <= time.time():
            memory.drop([sequence])
            failure = Failure(Reason.EXPIRED, f"{failure}; it has expired after {_age(own[0].queued)}")
        outcome = not_kept(failure)
        count, oldest = memory.backlog(endpoints)
        if count:
            outcome.text += f"; {count} event{' waits' if count == 1 else 's wait'} (oldest {_age(oldest)})"
        if own and failure.reason is not Reason.EXPIRED:
            outcome.suffixes.append("queued")
        return outcome

    def _say_others(self, promise: Promise, memory: Memory, sequences: range, deadline: float) -> Failure | None:
        """Say what waits with these sequences; why not all of it could be said, None if it could."""
        endpoints = " ".join(promise.endpoint)
        after, said, oldest, failure = sequences.start - 1, 0, 0, None
        while failure is None:
            batch = [w for w in memory.waiting(endpoints, after, _BATCH) if w.sequence in sequences]
            if not batch:
                break
            heard = self._ask(promise, memory, batch, deadline)
            self._tell(memory, batch, heard, endpoints)
            said += sum(answer.status in _ON_DISK for answer in heard.answers.values())
            oldest, after, failure = oldest or batch[0].queued, batch[-1].sequence, heard.failure
        if said:
            events = "waiting event" if said == 1 else "waiting events"
            self._log("info", f"messages: {said} {events} stored by {endpoints}, the oldest {_age(oldest)} old")
        return failure

    def _tell(self, memory: Memory, batch: list[Waiting], heard: _Heard, endpoints: str) -> None:
        """Drop what no promise of now answers for: what is refused, or has expired; and say so."""
        now = time.time()
        refused = [w for w in batch if w.sequence in heard.answers and heard.answers[w.sequence].status == wire.REFUSED]
        settled = {s for s, answer in heard.answers.items() if answer.status in (*_ON_DISK, wire.REFUSED)}
        expired = [w for w in batch if w.expires <= now and w.sequence not in settled]
        for waiting in refused:
            reason = heard.answers[waiting.sequence].reason
            self._log("error", f"messages '{waiting.name}': {endpoints} refused what waited: {reason}")
        for waiting in expired:
            text = f"messages '{waiting.name}': expired, it waited for {endpoints} for {_age(waiting.queued)}"
            self._log("error", text)
        if refused or expired:
            memory.drop([waiting.sequence for waiting in (*refused, *expired)])

    def _ask(self, promise: Promise, memory: Memory, batch: list[Waiting], deadline: float) -> _Heard:
        """Say events, and take out of the queue what is stored."""
        endpoints = " ".join(promise.endpoint)
        known = memory.acknowledged(endpoints)
        done = self._converse(_talk(promise, [waiting.event for waiting in batch]), deadline)
        answers: dict[int, wire.Answer] = {}
        unusable: dict[int, Failure] = {}
        for waiting, message in zip(batch, done.messages):
            if message is not None:
                try:
                    answers[waiting.sequence] = _decoded(message.payload, waiting.id, done.endpoint, _TO_EVENTS)
                except Failure as failure:
                    unusable[waiting.sequence] = failure
        if self._settle(endpoints, memory, known, answers) == NODE:
            detail = "this node's memory is an older copy than what its listener has of it: said again in the next run"
            return _Heard({}, {}, Failure(Reason.LOCAL, detail))
        return _Heard(answers, unusable, worst(done.failures) if done.failures else None)

    def _settle(self, endpoints: str, memory: Memory, known: int, answers: dict[int, wire.Answer]) -> str:
        """Returns who has lost its memory, if anybody."""
        stored = [sequence for sequence, answer in answers.items() if answer.status in _ON_DISK]
        # A listener that cannot look, or could not read the event, says 0.
        telling = [answer for answer in answers.values() if answer.status in _ON_DISK or answer.have]
        if not telling:
            return ""
        newest = max(telling, key=lambda answer: answer.have)
        lost = memory.settle(endpoints, newest.store, newest.have, known, stored, time.time())
        if lost == STORE:
            self._log("info", f"messages: {endpoints} has lost what it knew of this node, all is said again")
        given_up = memory.give_up(endpoints, time.time())
        if given_up:
            self._log("error", f"messages: {given_up} events for endpoints of earlier policy have expired")
        return lost

    # ---- views

    def view(self, promise: Promise, context: Context) -> Outcome:
        """Ask for a view and write it to the promise's file. Raises Failure."""
        endpoints = " ".join(promise.endpoint)
        if promise.dry_run:
            return only_warned(f"ask {endpoints} for the view '{promise.view}'")
        question = wire.Event(
            os.urandom(16).hex(), wire.VIEW, context.node, promise.view, _rfc3339(time.time()), promise.parameters
        )
        done = self._converse(_talk(promise, [_encoded(question)]), context.started + promise.timeout)
        if done.failures:
            raise worst(done.failures)
        answer = _decoded(done.received[0].payload, question.id, done.endpoint, _TO_QUESTIONS)
        if answer.status != wire.ANSWERED:
            raise Failure(Reason.REFUSED, answer.reason, done.endpoint)
        rows, warnings = as_rows(answer.rows)
        for warning in warnings:
            self._log("warning", f"messages '{context.name}': view '{promise.view}': {warning}")
        changed, count = keep(str(promise.file), rows), len(answer.rows)
        text = f"{done.endpoint} answered view '{promise.view}' with {count} row{'' if count == 1 else 's'}"
        suffixes = ["delivered", "received"]
        return (
            repaired(f"{text}, {promise.file} replaced", suffixes) if changed else kept(f"{text}, as before", suffixes)
        )

    def _memory(self, promise: Promise) -> Memory:
        key = promise.state_dir or self._state_dir, promise.dry_run
        if key not in self._memories:
            path = os.path.normpath(os.path.join(key[0], "messages", "memory.db"))
            self._memories[key] = Memory(path, lambda text: self._log("error", f"messages: {text}"), read_only=key[1])
        return self._memories[key]


def _is_known(promise: Promise, memory: Memory, saying: Saying, now: float) -> bool:
    """Whether the listener has this value, and need not be told again yet."""
    due_s = _due_s(promise.refresh, saying.node, saying.name)
    return memory.is_acknowledged(" ".join(promise.endpoint), saying, due_s, now)


def _own(memory: Memory, endpoints: str, sequence: int) -> list[Waiting]:
    """The event with this sequence, if it still waits."""
    return [waiting for waiting in memory.waiting(endpoints, sequence - 1, 1) if waiting.sequence == sequence]


def _canonical(value: Any) -> str:
    try:
        text = wire.canonical(value)
        text.encode("utf-8")
        return text
    except (ValueError, RecursionError) as error:
        raise Failure(Reason.LOCAL, f"a value that no event can carry: {error}") from None


def _event(promise: Promise, value: Any, context: Context, now: float) -> Callable[[str], bytes]:
    """Makes the event of a promise from an id."""
    refresh_s = promise.refresh * _MINUTE if promise.information.remembered else None

    def make(id: str) -> bytes:
        event = wire.Event(
            id,
            promise.information.name,
            context.node,
            context.name,
            _rfc3339(now),
            value,
            context.place or None,
            context.handle,
            refresh_s,
        )
        return _encoded(event)

    return make


def _encoded(event: wire.Event) -> bytes:
    try:
        return wire.encode_event(event)
    except (ValueError, RecursionError) as error:
        raise Failure(Reason.LOCAL, f"a value that no event can carry: {error}") from None


def _talk(promise: Promise, payloads: list[bytes]) -> Conversation:
    pattern = promise.pattern if len(payloads) == 1 else PATTERNS["async_request"]
    return Conversation(pattern, promise.endpoint, False, payloads, b"", 0, 1, promise.subscribers)


def _topic(promise: Promise, context: Context) -> bytes:
    return f"{promise.information.name}/{context.name}/{context.node}/".encode()


def _decoded(payload: bytes, id: str, endpoint: str, allowed: tuple[str, ...]) -> wire.Answer:
    try:
        answer = wire.decode_answer(payload)
    except wire.Malformed as error:
        raise Failure(Reason.INVALID_REPLY, f"{error}: is this a cf-messaged?", endpoint) from None
    unread = answer.status == wire.REFUSED and not answer.id  # it could not even read whose event it was
    if answer.id != id and not unread:
        raise Failure(Reason.INVALID_REPLY, f"an answer to '{answer.id:.80}', which was not asked", endpoint)
    if answer.status not in allowed:
        raise Failure(Reason.INVALID_REPLY, f"the answer '{answer.status}', which fits no such question", endpoint)
    return answer


def _put_off(answer: wire.Answer | None, endpoint: str) -> Failure:
    return Failure(Reason.REFUSED, f"not now: {answer.reason if answer else 'no answer'}", endpoint)


def _due_s(refresh: int, node: str, name: str) -> int:
    """Seconds after which an unchanged value is said again: refresh, less up to a tenth, so that not all fall due at
    once.
    """
    spread = sum(map(ord, node + name)) % 100
    return refresh * _MINUTE * (1000 - spread) // 1000


def _age(since: float) -> str:
    minutes = max(0, int(time.time() - since)) // _MINUTE
    return f"{minutes} min" if minutes < 180 else f"{minutes // 60} h"


def _rfc3339(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1_000_000):06d}Z"
