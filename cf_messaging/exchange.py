"""What one agent run exchanges: where each conversation is held, for how long, and what was learned about its peers."""

from __future__ import annotations

from collections import namedtuple
from itertools import islice
from threading import Thread
from time import monotonic

import zmq

from .addresses import resolve
from .conversations import Exchanged, hold
from .files import check_descriptors
from .link import Link, NotLetIn, Security
from .outcomes import Failure, Reason, worst
from .patterns import ASK, PAIR, SAY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .attributes import Curve
    from .enrolment import Enrolment
    from .keys import Pair
    from .patterns import Conversation
    from .zap import Door

# Sockets stay open for the next promise; libzmq has room for about a thousand, and each link takes three.
_MAX_LINKS = 200
# Promises that met only silence at an address before the rest of the run does without it.
_SILENCES_ENOUGH = 2
_LOOK_S = 0.01  # at a bound socket where nobody came before in this run
_LOOK_AT_MOST = 1000  # messages that were fetched in vain
_LINGER_MS = 1000  # for what was handed over, once the run is over
_ELSEWHERE = (Reason.UNREACHABLE, Reason.REFUSED, Reason.TIMED_OUT)  # failures that another endpoint may not have

# Where a conversation is tried. until: when to go on to the next place; last: there is none.
Candidate = namedtuple("Candidate", "endpoint address until last")


class Exchange:
    """The sockets of a run, and what it has learned about its peers. Deadlines are of time.monotonic()."""

    def __init__(
        self, log: Callable[[str, str], None] = lambda level, text: None, pairs: dict[str, Pair] | None = None
    ) -> None:
        """log: takes level and text. pairs: by the path of their file, which then need not be there."""
        self._log = log
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._links: dict[tuple[Any, ...], Link] = {}
        self._pairs = dict(pairs or {})
        self._server_keys: dict[tuple[bytes | str, ...], list[bytes]] = {}  # by what policy says
        self._door: Door | None = None
        self._addresses: dict[str, list[str]] = {}
        self._unresolved: dict[str, Failure] = {}  # by endpoint
        # By address, keys and, where it is silent to those who want a topic, that topic.
        self._hopeless: dict[tuple[str, Curve | None, bytes], Failure] = {}
        self._silences: dict[tuple[str, Curve | None, bytes], int] = {}
        self._enrols: Enrolment | None = None

    def converse(self, talk: Conversation, deadline: float) -> Exchanged:
        """Hold the conversation at the first endpoint where somebody is; never longer than until the deadline."""
        done = Exchanged(len(talk.payloads) if talk.pattern.conversation == ASK else 0)
        missed: list[Failure] = []
        others = len(talk.endpoints)
        for endpoint in talk.endpoints:
            others -= 1
            if self._held_at(endpoint, others, talk, deadline, done, missed):
                return done
            if _is_final(missed[-1], talk, done, deadline):
                break
        done.failures.append(worst(missed))
        return done

    def close(self) -> list[str]:
        """End all sockets within seconds; returns what of the run was lost by it, in words."""
        lost = [words for link in self._links.values() for words in _unread(link)]
        started = monotonic()
        for link in self._links.values():
            link.close(0 if link.kind in ("SUB", "PULL") else _LINGER_MS)  # these have nothing to say
        self._links.clear()
        _end(self._context)
        if monotonic() - started >= _LINGER_MS / 1000:
            lost.append("messages that were handed over may not have left this node: a peer did not take them in time")
        return lost

    # ---- where

    def _held_at(
        self, endpoint: str, others: int, talk: Conversation, deadline: float, done: Exchanged, missed: list[Failure]
    ) -> bool:
        """Whether the conversation could be held at an address of this endpoint, with its share of the time; others:
        endpoints that are still to come. What came of the addresses where it could not is added to missed.
        """
        try:
            addresses = self._resolved(endpoint, _share(deadline, others + 1))
        except Failure as failure:
            missed.append(failure)
            return False
        left = others + len(addresses)
        for address in addresses:
            left -= 1
            place = Candidate(endpoint, address, _share(deadline, left + 1), left == 0)
            came_of_it = self._tried(talk, place, deadline, done)
            if came_of_it is None:
                return True
            missed.append(came_of_it)
            if _is_final(came_of_it, talk, done, deadline):
                break
        return False

    def _tried(self, talk: Conversation, place: Candidate, deadline: float, done: Exchanged) -> Failure | None:
        """Why the conversation could not be held at this address, None if it was. A listener has one of several keys,
        while it is replaced: what came of the first that is not refused counts.
        """
        refused = []
        try:
            each_key = self._each_key(talk)
        except Failure as failure:
            return failure
        for keyed in sorted(each_key, key=lambda each: not self._is_open(each, place.address)):
            came_of_it = self._tried_with(keyed, place, deadline, done)
            if came_of_it is None or came_of_it.reason is not Reason.REFUSED or _is_handed_over(talk, done):
                return came_of_it
            refused.append(came_of_it)
        return worst(refused)

    def _each_key(self, talk: Conversation) -> list[Conversation]:
        """The same, with each of the keys that the listener may have. Raises Failure."""
        if talk.curve is None or talk.bind:
            return [talk]
        from .keys import BadKey, server_keys  # a run without keys does not pay for it

        keys = talk.curve.server_key
        try:
            if keys not in self._server_keys:
                self._server_keys[keys] = server_keys(keys)
        except BadKey as error:
            raise Failure(Reason.LOCAL, str(error)) from None
        return [talk._replace(curve=talk.curve._replace(server_key=(key,))) for key in self._server_keys[keys]]

    def _is_open(self, talk: Conversation, address: str) -> bool:
        link = self._links.get(self._key(talk, address))
        return link is not None and link.peers > 0

    def _tried_with(self, talk: Conversation, place: Candidate, deadline: float, done: Exchanged) -> Failure | None:
        anywhere, here = (place.address, talk.curve, b""), (place.address, talk.curve, _topic(talk))
        hopeless = self._hopeless.get(anywhere) or self._hopeless.get(here)
        if hopeless and not talk.bind:
            return hopeless
        if hopeless:  # somebody may have come meanwhile to a bound socket: look, but hardly wait
            place = place._replace(until=monotonic() + _LOOK_S)
        before, came_of_it = len(done.received), None
        try:
            self._let_in(talk, place, deadline, done)
        except Failure as failure:
            came_of_it = failure
        if came_of_it is None or len(done.received) > before:
            self._silences.pop(anywhere, None)
            self._silences.pop(here, None)
        else:
            self._learn(here if came_of_it.reason is Reason.TIMED_OUT else anywhere, place, came_of_it)
        return came_of_it

    def _let_in(self, talk: Conversation, place: Candidate, deadline: float, done: Exchanged) -> None:
        """Hold the conversation, if need be after this node has enrolled. Raises Failure."""
        try:
            self._attempt(talk, place, deadline, done)
        except NotLetIn as refusal:
            if _is_handed_over(talk, done) or not (
                talk.node and self._enrolment.enrol(talk, place.endpoint, place.until, refusal)
            ):
                raise
            self._attempt(talk, place, deadline, done)
        if talk.node and talk.curve and talk.curve.renew:  # only now is it known that this is the listener's key
            self._renew(talk, place, talk.curve)

    def _renew(self, talk: Conversation, place: Candidate, curve: Curve) -> None:
        from .keys import is_old

        if not is_old(curve.key_file, curve.renew):
            return
        if self._enrolment.renew(talk, place.endpoint, place.until, zmq.curve_keypair):
            del self._pairs[curve.key_file]

    @property
    def _enrolment(self) -> Enrolment:
        if self._enrols is None:
            from .enrolment import Enrolment  # most runs do without

            self._enrols = Enrolment(self.converse, self._own_pair, self._log)
        return self._enrols

    def _resolved(self, endpoint: str, deadline: float) -> list[str]:
        if endpoint in self._unresolved:
            raise self._unresolved[endpoint]
        if endpoint not in self._addresses:
            try:
                self._addresses[endpoint] = resolve(endpoint, deadline)
            except Failure as failure:
                self._unresolved[endpoint] = _remembered(failure)
                raise
        return self._addresses[endpoint]

    def _learn(self, where: tuple[str, Curve | None, bytes], place: Candidate, failure: Failure) -> None:
        if failure.reason in (Reason.UNREACHABLE, Reason.LOCAL):
            self._hopeless[where] = _remembered(failure)
        elif failure.reason in _ELSEWHERE:
            self._silences[where] = self._silences.get(where, 0) + 1
            if self._silences[where] >= _SILENCES_ENOUGH:
                if failure.reason is Reason.TIMED_OUT:  # its words are of what that promise wanted
                    detail = f"{_SILENCES_ENOUGH} promises have waited in vain"
                    failure = Failure(failure.reason, detail, place.endpoint)
                self._hopeless[where] = _remembered(failure)

    def _link(self, talk: Conversation, candidate: Candidate) -> Link:
        """The socket for this conversation: the one that is open already, or a new one."""
        key = self._key(talk, candidate.address)
        if key not in self._links:
            self._make_room(candidate.address, talk.bind)
            check_descriptors()
            security = self._security(talk.curve) if talk.curve else None
            self._links[key] = Link(
                self._context, talk, candidate.endpoint, candidate.address, candidate.until, security
            )
        return self._links[key]

    @staticmethod
    def _key(talk: Conversation, address: str) -> tuple[Any, ...]:
        return talk.pattern.socket, address, talk.bind, _topic(talk), talk.curve

    def _security(self, curve: Curve) -> Security:
        """Keys are read when they are needed, which may make this node's own. Raises Failure."""
        from .keys import BadKey

        try:
            pair = self._own_pair(curve.key_file)
            if curve.accept is not None:
                return Security(pair, b"", self._domain(curve.accept))
            return Security(pair, curve.server_key[0], b"")
        except BadKey as error:
            raise Failure(Reason.LOCAL, str(error)) from None

    def _own_pair(self, path: str) -> Pair:
        """Raises BadKey."""
        from .keys import own_pair

        if path not in self._pairs:
            self._pairs[path] = own_pair(path, zmq.curve_keypair)
        return self._pairs[path]

    def _domain(self, accept: str | tuple[bytes, ...]) -> bytes:
        from .keys import directory_keys
        from .zap import Door

        if self._door is None:
            self._door = Door(self._context)
        return self._door.domain(directory_keys(accept) if isinstance(accept, str) else accept)

    def _make_room(self, address: str, bind: bool) -> None:
        in_the_way = [key for key in self._links if bind and key[1:3] == (address, True)]
        if len(self._links) >= _MAX_LINKS:
            in_the_way.append(next(iter(self._links)))
        for key in set(in_the_way):
            self._links.pop(key).close(_LINGER_MS)

    # ---- what

    def _attempt(self, talk: Conversation, candidate: Candidate, deadline: float, done: Exchanged) -> None:
        """Hold the conversation at one address. Raises Failure if it could not be completed there."""
        done.endpoint = candidate.endpoint
        for left in range(talk.retries, -1, -1):
            until = _share(candidate.until, left + 1)
            try:
                hold(talk, self._link(talk, candidate), until, deadline, candidate.last, done)
                break
            except Failure as failure:
                self._let_go(talk, candidate.address)
                if left == 0 or failure.reason not in _ELSEWHERE:
                    raise

    def _let_go(self, talk: Conversation, address: str) -> None:
        """After a failure: a late answer must not be mistaken for the next one, and what leads nowhere is closed."""
        key = self._key(talk, address)
        link = self._links.get(key)
        if link and (link.is_flooded or talk.pattern.conversation == ASK or not (link.peers or talk.bind)):
            self._links.pop(key).close()


def _end(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    # In a thread, since libzmq may wait for ever for a socket whose connection ended half-way through a message.
    ending = Thread(target=context.term, daemon=True)
    ending.start()
    ending.join(2 * _LINGER_MS / 1000)


def _is_final(failure: Failure, talk: Conversation, done: Exchanged, deadline: float) -> bool:
    """Whether no other endpoint is worth a try after this failure."""
    return failure.reason not in _ELSEWHERE or _is_handed_over(talk, done) or monotonic() >= deadline


def _is_handed_over(talk: Conversation, done: Exchanged) -> bool:
    """Whether messages went to a peer that does not acknowledge them: it may have them, so no other is told."""
    return done.said > 0 and talk.pattern.conversation in (SAY, PAIR)


def _topic(talk: Conversation) -> bytes:
    """By which its socket is another one: of a SUB."""
    return talk.topic if talk.pattern.socket == "SUB" else b""


def _remembered(failure: Failure) -> Failure:
    return Failure(failure.reason, f"{failure} (seen before in this run, not waited for again)")


def _share(deadline: float, parts: int) -> float:
    if parts == 1:
        return deadline
    now = monotonic()
    return now + max(0.0, deadline - now) / parts


def _unread(link: Link) -> Iterator[str]:
    """What a PULL has fetched beyond what was wanted: its peer counts it as taken."""
    # Up to a limit: a peer that goes on pushing would go on losing.
    count = sum(1 for _ in islice(iter(link.try_receive, None), _LOOK_AT_MOST)) if link.kind == "PULL" else 0
    if count:
        yield f"{link.endpoint}: at least {count} messages more than wanted were fetched and are lost: raise 'count'"
