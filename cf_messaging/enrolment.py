"""How a node that a cf-messaged does not know says who it is: by the CFEngine key of its host, which hubs trust. Once
it is let in, it renews its own key in the same way.
"""

from __future__ import annotations

import os
import re
import time

from . import keys, wire
from .addresses import parse
from .answers import decoded
from .host_key import BadHostKey, digest, sign
from .keys import BadKey, Claim, statement
from .outcomes import Failure, Reason, worst
from .patterns import PATTERNS, Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .attributes import Curve
    from .conversations import Exchanged
    from .keys import Pair

PORT = 5313
OFF = "off"
NEXT = ".next"  # of the file of a key that is to take the place of the one without it
# <workdir>/ppkeys: this file is in <workdir>/modules/promises/cf_messaging.
PPKEYS = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "ppkeys"))


def endpoint_of(endpoint: str, curve: Curve) -> str:
    """Where a listener enrols nodes, by where it listens; empty if nowhere."""
    if curve.enrol:
        return "" if curve.enrol == OFF else str(curve.enrol)
    there = parse(endpoint)
    if there.transport != "tcp":
        return ""
    return f"tcp://[{there.host}]:{PORT}" if ":" in there.host else f"tcp://{there.host}:{PORT}"


class Enrolment:
    """Of one agent run: at each place, and of each key, it is tried once."""

    def __init__(
        self,
        converse: Callable[[Conversation, float], Exchanged],
        own_pair: Callable[[str], Pair],
        log: Callable[[str, str], None],
    ) -> None:
        """converse: as Exchange.converse(); own_pair: by the path of its file, raises BadKey; log: level, text."""
        self._converse = converse
        self._own_pair = own_pair
        self._log = log
        self._tried: dict[tuple[str, Curve], str] = {}  # and what came of it
        self._old: set[str] = set()  # files of keys that were to be renewed

    def enrol(self, talk: Conversation, endpoint: str, until: float, refusal: Failure) -> bool:
        """Whether the listener knows this node now, by whom a conversation was refused. Raises Failure, with what made
        this necessary. until: of time.monotonic().
        """
        office = endpoint_of(endpoint, talk.curve)
        if not office:
            return False
        if (office, talk.curve) in self._tried:
            raise Failure(refusal.reason, f"{refusal}; {self._tried[office, talk.curve]}")
        try:
            self._claim(office, talk, self._own_pair(talk.curve.key_file), until)
        except Failure as failure:
            self._tried[office, talk.curve] = str(failure)
            raise Failure(refusal.reason, f"{refusal}; {failure}") from None
        self._tried[office, talk.curve] = "it was enrolled in this run"
        self._log("info", f"messages: {talk.node} is enrolled at {office}")
        return True

    def renew(self, talk: Conversation, endpoint: str, until: float, new: Callable[[], tuple[bytes, bytes]]) -> bool:
        """Whether another key of this node, which the listener knows, has taken the place of one that was old. new: as
        zmq.curve_keypair().
        """
        path, office = talk.curve.key_file, endpoint_of(endpoint, talk.curve)
        if not office or path in self._old:
            return False
        self._old.add(path)
        try:
            pair = _next_pair(path, self._own_pair(path), new)
            self._claim(office, talk._replace(curve=talk.curve._replace(key_file=path + NEXT)), pair, until)
            _take_next(path)
        except (Failure, BadKey, OSError) as error:
            self._log("warning", f"messages: the key of this node is old, and stays: {error}")
            return False
        self._log("info", f"messages: {talk.node} has a new key at {office}, {pair.public.hex()}")
        return True

    def _claim(self, office: str, talk: Conversation, pair: Pair, until: float) -> None:
        """Return once the listener lets this key in. Raises Failure."""
        answer = claim(self._converse, office, talk, pair, until)
        if answer.status == wire.WAITS:
            told = f"waits there for an operator, `cf-messaged keys accept {pair.public.hex()}`: {answer.reason}"
            raise Failure(Reason.REFUSED, told, office)


def claim(
    converse: Callable[[Conversation, float], Exchanged],
    office: str,
    talk: Conversation,
    pair: Pair,
    until: float,
    what: str = wire.CLAIM,
) -> wire.Answer:
    """What comes of it, `enrolled` or `waits`. Raises Failure.

    talk: what is to be said, with the node and its curve, of which the pair is; what: wire.CHECK has no effect.
    """
    challenge = _ask(converse, office, talk, wire.HELLO, {}, until).challenge
    if not re.fullmatch("[0-9a-f]{80}", challenge):
        raise Failure(Reason.INVALID_REPLY, "its challenge is none: is this a cf-messaged?", office)
    [listener] = talk.curve.server_key
    try:
        host_key = digest(os.path.join(PPKEYS, "localhost.pub"))
        said = Claim(challenge, listener.hex(), pair.public.hex(), pair.replaces, talk.node, host_key)
        signature = sign(os.path.join(PPKEYS, "localhost.priv"), statement(said))
    except (BadHostKey, BadKey) as error:
        raise Failure(Reason.LOCAL, f"this node cannot enrol: {error}") from None
    data = {name: value for name, value in said._asdict().items() if name != "node"}
    return _ask(converse, office, talk, what, {**data, "signature": signature.hex()}, until)


def _ask(
    converse: Callable[[Conversation, float], Exchanged],
    office: str,
    talk: Conversation,
    what: str,
    data: dict[str, str],
    until: float,
) -> wire.Answer:
    """The answer, if it says so far, so good. Raises Failure."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = wire.Event(os.urandom(16).hex(), wire.ENROL, talk.node, what, moment, data)
    said = [wire.encode_event(event)]
    done = converse(Conversation(PATTERNS["request"], (office,), False, said, b"", 1, 0, 1, talk.curve), until)
    if done.failures:
        raise worst(done.failures)
    allowed = (wire.CHALLENGED,) if what == wire.HELLO else (wire.ENROLLED, wire.WAITS)
    answer = decoded(done.received[0].payload, event.id, office, (*allowed, wire.REFUSED, wire.LATER))
    if answer.status in (wire.REFUSED, wire.LATER):
        raise Failure(Reason.REFUSED, f"does not enrol this node: {answer.reason}", office)
    return answer


# ---- a new key of a node that is let in


def _next_pair(path: str, pair: Pair, new: Callable[[], tuple[bytes, bytes]]) -> Pair:
    """What will take the place of this pair: the same until it has. Raises BadKey, OSError."""
    made = keys.own_pair(path + NEXT, new, pair.public.hex())
    if made.replaces != pair.public.hex():  # somebody has put another key in place meanwhile
        os.unlink(path + NEXT)
        made = keys.own_pair(path + NEXT, new, pair.public.hex())
    return made


def _take_next(path: str) -> None:
    """Another agent of this node may have been faster."""
    try:
        os.replace(path + NEXT, path)
    except FileNotFoundError:
        pass
