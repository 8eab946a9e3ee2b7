"""What waits in the queue of a node goes to its cf-messaged: said in order, and taken out once it is answered."""

from __future__ import annotations

import time
from collections import namedtuple

from . import wire
from .answers import decoded
from .memory import NODE, STORE, Told
from .outcomes import Failure, Outcome, Reason, not_kept, repaired, worst
from .patterns import PATTERNS, Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .attributes import Promise
    from .conversations import Exchanged
    from .memory import Memory, Waiting

_BATCH = 500  # events in flight at once
_ON_DISK = (wire.STORED, wire.DUPLICATE)
_TO_EVENTS = (*_ON_DISK, wire.REFUSED, wire.LATER)
_MINUTE = 60
_LONGEST_S = 86400  # that a listener is not asked again in a run

# What came of events that were said. answers: by sequence; unusable: why an answer is none, by sequence; failure: why
# not all were answered.
_Heard = namedtuple("_Heard", "answers unusable failure")


class Delivery:
    """Speaks to one service for one promise, whose time it may take. Deadlines are of time.monotonic()."""

    def __init__(
        self,
        promise: Promise,
        memory: Memory,
        converse: Callable[[Conversation, float], Exchanged],
        log: Callable[[str, str], None],
        announced: Callable[[str], None],
        put_off: dict[str, tuple[float, Failure]],
    ) -> None:
        """converse: as Exchange.converse(); log: takes level and text; announced: takes the listener's next key.
        put_off: which services want nothing yet, until when, and why; kept from one promise to the next.
        """
        self._promise = promise
        self._memory = memory
        self._converse = converse
        self._log = log
        self._announced = announced
        self._service = promise.service
        self._put_off = put_off

    def flush(self, sequence: int, started: float) -> Outcome | None:
        """Say what waits, in order: for half the time what was there before, then the event of this promise, then what
        is behind it. None if that event waits no more.
        """
        until, why = self._put_off.get(self._service, (0.0, None))
        if why and time.monotonic() < until:
            return self._unsaid(why, sequence)
        timeout = self._promise.timeout
        half = started + timeout / 2
        failure = self._say_others(range(sequence), half)
        if failure:
            return self._unsaid(failure, sequence)
        own = self._own(sequence)
        if not own:
            return None
        heard = self._ask(own, started + timeout)
        answer = heard.answers.get(sequence)
        if answer is None or answer.status == wire.LATER:
            failure = heard.unusable.get(sequence) or heard.failure or self._later(heard.answers.values())
            return self._unsaid(failure or Failure(Reason.TIMED_OUT, "no answer", self._service), sequence)
        self._say_others(self._samples_behind(sequence), half)
        if answer.status == wire.REFUSED:
            self._memory.drop([sequence])
            return not_kept(Failure(Reason.REFUSED, answer.reason, self._service))
        return repaired(f"{self._service} has stored it", ["delivered"])

    def _samples_behind(self, sequence: int) -> range:
        """The sequences of state next in the queue: no promise that is still to come in this run will say it."""
        last = sequence
        for waiting in self._memory.waiting(self._service, sequence, _BATCH):
            if wire.KINDS[waiting.kind].remembered:
                break
            last = waiting.sequence
        return range(sequence + 1, last + 1)

    def _unsaid(self, failure: Failure, sequence: int) -> Outcome:
        """The outcome of a promise whose event waits on, or has waited for too long."""
        own = self._own(sequence)
        if own and own[0].expires <= time.time():
            self._memory.drop([sequence])
            failure = Failure(Reason.EXPIRED, f"{failure}; it has expired after {_age(own[0].queued)}")
        outcome = not_kept(failure)
        count, oldest = self._memory.backlog(self._service)
        if count:
            outcome.text += f"; {count} event{' waits' if count == 1 else 's wait'} (oldest {_age(oldest)})"
        if own and failure.reason is not Reason.EXPIRED:
            outcome.suffixes.append("queued")
        return outcome

    def _say_others(self, sequences: range, deadline: float) -> Failure | None:
        """Say what waits with these sequences; why not all of it could be said, None if it could."""
        after, said, oldest, failure = sequences.start - 1, 0, 0, None
        while failure is None:
            batch = [w for w in self._memory.waiting(self._service, after, _BATCH) if w.sequence in sequences]
            if not batch:
                break
            heard = self._ask(batch, deadline)
            self._give_up(batch, heard)
            said += sum(answer.status in _ON_DISK for answer in heard.answers.values())
            oldest, after = oldest or batch[0].queued, batch[-1].sequence
            failure = heard.failure or self._later(heard.answers.values())
        if said:
            events = "waiting event" if said == 1 else "waiting events"
            self._log("info", f"messages: {said} {events} stored by {self._service}, the oldest {_age(oldest)} old")
        return failure

    def _give_up(self, batch: list[Waiting], heard: _Heard) -> None:
        """Drop what no promise of now answers for: what is refused, or has expired; and say so, once of each kind."""
        now = time.time()
        given_up: dict[tuple[str, str | None], list[Waiting]] = {}  # by name, and reason of a refusal
        for waiting in batch:
            answer = heard.answers.get(waiting.sequence)
            reason = answer.reason if answer and answer.status == wire.REFUSED else None
            is_stored = answer is not None and answer.status in _ON_DISK
            if reason is not None or (waiting.expires <= now and not is_stored):
                given_up.setdefault((waiting.name, reason), []).append(waiting)
        for (name, reason), gone in given_up.items():
            self._log("error", f"messages '{name}': {self._why_gone(reason, gone)}")
        if given_up:
            self._memory.drop([waiting.sequence for gone in given_up.values() for waiting in gone])

    def _why_gone(self, reason: str | None, gone: list[Waiting]) -> str:
        events = f"{len(gone)} event{'' if len(gone) == 1 else 's'}"
        if reason is not None:
            return f"{self._service} refused {events} that waited: {reason}"
        return f"expired, {events} that waited for {self._service} (oldest {_age(gone[0].queued)})"

    def _ask(self, batch: list[Waiting], deadline: float) -> _Heard:
        """Say events, and take out of the queue what is stored."""
        known = self._memory.acknowledged(self._service)
        done = self._converse(talk(self._promise, [waiting.event for waiting in batch]), deadline)
        answers: dict[int, wire.Answer] = {}
        unusable: dict[int, Failure] = {}
        for waiting, message in zip(batch, done.messages):
            if message is not None:
                try:
                    answers[waiting.sequence] = decoded(message.payload, waiting.id, done.endpoint, _TO_EVENTS)
                except Failure as failure:
                    unusable[waiting.sequence] = failure
        next_key = next((answer.next_key for answer in answers.values() if answer.next_key), None)
        if next_key:
            self._announced(next_key)
        if self._settle(known, batch, answers) == NODE:
            detail = "this node's memory is an older copy than what its listener has of it: said again in the next run"
            return _Heard({}, {}, Failure(Reason.LOCAL, detail))
        return _Heard(answers, unusable, worst(done.failures) if done.failures else None)

    def _settle(self, known: dict[str, int], batch: list[Waiting], answers: dict[int, wire.Answer]) -> str:
        """Returns who has lost its memory, if anybody."""
        # A listener that cannot look, or could not read the event, says 0.
        answered = [(each, answers[each.sequence]) for each in batch if each.sequence in answers]
        told = [
            Told(each.sequence, each.node, answer.have, answer.status in _ON_DISK)
            for each, answer in answered
            if answer.status in _ON_DISK or answer.have
        ]
        if not told:
            return ""
        store = answers[told[-1].sequence].store
        lost = self._memory.settle(self._service, store, told, known, time.time())
        if lost == STORE:
            self._log("info", f"messages: {self._service} has lost what it knew of this node, all is said again")
        given_up = self._memory.give_up(self._service, time.time())
        if given_up:
            self._log("error", f"messages: {given_up} events for endpoints of earlier policy have expired")
        return lost

    def _own(self, sequence: int) -> list[Waiting]:
        """The event with this sequence, if it still waits."""
        waiting = self._memory.waiting(self._service, sequence - 1, 1)
        return [event for event in waiting if event.sequence == sequence]

    def _later(self, answers: Iterable[wire.Answer]) -> Failure | None:
        """Why the listener wants events later, if any: what is younger than they are must not overtake them."""
        later = next((answer for answer in answers if answer.status == wire.LATER), None)
        if not later:
            return None
        why = Failure(Reason.REFUSED, f"not now: {later.reason}", self._service)
        self._put_off[self._service] = time.monotonic() + min(later.retry_after, _LONGEST_S), why
        return why


def talk(promise: Promise, payloads: list[bytes]) -> Conversation:
    """The conversation in which a promise says these payloads, pipelined if they are several."""
    pattern = promise.pattern if len(payloads) == 1 else PATTERNS["async_request"]
    subscribers, curve, node = promise.subscribers, promise.curve, promise.node
    return Conversation(pattern, promise.endpoint, False, payloads, b"", 0, 1, subscribers, curve, node)


def _age(since: float) -> str:
    minutes = max(0, int(time.time() - since)) // _MINUTE
    return f"{minutes} min" if minutes < 180 else f"{minutes // 60} h"
