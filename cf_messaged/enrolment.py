"""Where nodes that nobody knows yet say who they are: each claim is signed by a CFEngine key, and the cheap checks come
first. Nothing else is behind this socket.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections.abc import Callable, Container
from typing import NamedTuple

import zmq

from cf_messaged import intake
from cf_messaged.budget import Budget
from cf_messaged.complaints import in_words
from cf_messaged.config import Config
from cf_messaged.guard import Guard, key_of
from cf_messaged.journal import ENROLLED, RENEWED, KeyChange
from cf_messaged.key_log import KeyLog
from cf_messaged.keyring import MAX_NAME_BYTES, Held, Keyring, file_of
from cf_messaged.names import KNOWN, REFUSED, WAITS, Decision, Rules, decide
from cf_messaged.sockets import Frames, Socket, receive, send
from cf_messaged.times import rfc3339
from cf_messaged.visitors import Visitors
from cf_messaging import wire
from cf_messaging.keys import Claim, statement
from cf_messaging.wire import CHALLENGED, CHECK, CLAIM, HELLO, LATER, Answer, Event

# Messages that are taken in one round: everybody else has the rest of it.
MAX_AT_ONCE = 16
MAX_AT_ONCE_S = 0.01  # to let one in, a file is synced
VALID_S = 60
# Keys of one host that are let in within a minute: each is a file that is synced, a line of log and a row.
MAX_ENROLLED = 4
_HEX_KEY = "[0-9a-f]{64}"
_FORMS = {
    "challenge": "[0-9a-f]{80}",
    "listener": _HEX_KEY,
    "key": _HEX_KEY,
    "replaces": f"|{_HEX_KEY}",
    "host_key": f"SHA={_HEX_KEY}",
    "signature": "([0-9a-f]{2}){128,1024}",
}


class Refused(Exception):
    """Why a claim is none, or is not believed; one line."""


class Later(Exception):
    """Who claims too often may claim again later. wait_s: when."""

    def __init__(self, whose: str, wait_s: float) -> None:
        super().__init__(f"too many {whose} in this minute")
        self.wait_s = wait_s


class Caller(NamedTuple):
    """Of one message. key: by which it came. address: of the peer."""

    key: bytes
    address: str


class Challenges:
    """Each is for one key, for a minute, and nothing is kept of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret, self._clock = os.urandom(32), clock

    def make(self, key: bytes) -> str:
        return self._made(key, int(self._clock()).to_bytes(8))

    def check(self, key: bytes, challenge: str) -> None:
        """Raises Refused."""
        made = bytes.fromhex(challenge)[:8]
        if not hmac.compare_digest(self._made(key, made), challenge):
            raise Refused("the challenge is not one that this listener gave this key since it was started")
        if self._clock() - int.from_bytes(made) > VALID_S:
            raise Refused(f"the challenge is older than {VALID_S} s")

    def _made(self, key: bytes, moment: bytes) -> str:
        return (moment + hmac.digest(self._secret, moment + key, "sha256")).hex()


class Desk:
    """Of the socket for it."""

    def __init__(
        self, socket: Socket, own_key: bytes, keyring: Keyring, guard: Guard, key_log: KeyLog, config: Config
    ) -> None:
        self._socket, self._own_key = socket, own_key.hex()
        self._keyring, self._guard, self._log = keyring, guard, key_log
        self._challenges = Challenges()
        self._enrolled = Budget(MAX_ENROLLED)  # of each host
        self.visitors = Visitors(socket)
        self.settle(config)

    def settle(self, config: Config) -> None:
        """Other settings count from now on."""
        self._rules = Rules(config.enrol, config.names, config.listed)
        self._claims = Budget(config.node_handshakes_a_minute)  # of each address

    def serve(self, ready: Container[object], store: str, now_us: int) -> None:
        """What waits, but not all of it at once. ready: what was polled; store: the id of the store, for answers."""
        self.visitors.check(ready)
        if self._socket not in ready:
            return
        until_s = time.monotonic() + MAX_AT_ONCE_S
        for _ in range(MAX_AT_ONCE):
            if time.monotonic() > until_s:
                return
            try:
                frames, last = receive(self._socket)
            except zmq.Again:
                return
            caller = Caller(key_of(last), str(last.get("Peer-Address")))
            envelope, answer = self._answered(frames, caller, store, now_us)
            self._send(envelope, answer)

    def _send(self, envelope: Frames, answer: Answer) -> None:
        try:
            send(self._socket, [*envelope, wire.encode_answer(answer)])
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise

    def _answered(self, frames: Frames, caller: Caller, store: str, now_us: int) -> tuple[Frames, Answer]:
        delivery = intake.read(frames, store, enrols=True)
        envelope, said = delivery.envelope or frames[:1], delivery.said
        if isinstance(said, Answer):
            self._refuse(caller, now_us, said.reason)
            return envelope, said
        if said.name == HELLO:
            return envelope, Answer(said.id, store, 0, CHALLENGED, challenge=self._challenges.make(caller.key))
        try:
            claim = self._checked(said, caller)
            decision = decide(claim, self._keyring, self._rules, self._guard.silent_s)
            if said.name == CLAIM:
                self._settle(claim, decision, caller, now_us)
            return envelope, _answer(said.id, store, decision)
        except Refused as error:
            self._refuse(caller, now_us, str(error), said)
            return envelope, Answer(said.id, store, 0, wire.REFUSED, reason=str(error))
        except Later as error:
            return envelope, Answer(said.id, store, 0, LATER, reason=str(error), retry_after=error.wait_s)
        except OSError as error:
            reason = f"a key cannot be accepted: {in_words(error)}"
            self._refuse(caller, now_us, reason, said)
            return envelope, Answer(said.id, store, 0, LATER, reason=reason, retry_after=VALID_S)

    def _checked(self, said: Event, caller: Caller) -> Claim:
        """A claim that is true. Raises Refused, Later."""
        claim, signature = _read(said)
        self._challenges.check(caller.key, claim.challenge)
        if claim.listener != self._own_key:
            raise Refused(f"it is for another listener, whose key is {claim.listener}; this one's is {self._own_key}")
        if claim.key != caller.key.hex():
            raise Refused(f"it is for another key, {claim.key}, than that of the connection, {caller.key.hex()}")
        self._keyring.names()  # also what an operator has changed since the loop has looked
        if self._keyring.is_barred(claim.host_key):
            raise Refused(f"host key {claim.host_key} was revoked")
        host = self._keyring.trusted(claim.host_key)
        if host is None:
            raise Refused(
                f"host key {claim.host_key} is not trusted here: the hub needs it among its ppkeys, and from there"
                " in `trusted` of keys_dir"
            )
        wait_s = self._claims.wait_s(caller.address, time.monotonic())
        if wait_s:
            raise Later("claims from this address", wait_s)
        self._claims.spend(caller.address, 1)
        if not host.has_signed(statement(claim), signature):
            raise Refused(f"it is not signed by host key {claim.host_key}")
        return claim

    def _settle(self, claim: Claim, decision: Decision, caller: Caller, now_us: int) -> None:
        """Raises Later, OSError."""
        key = bytes.fromhex(claim.key)
        since, change = rfc3339(now_us), _change(claim, decision, caller, now_us)
        if decision.what in (ENROLLED, RENEWED):
            self._spend_one(claim.host_key)
            name = file_of(claim.node, key, self._keyring.accepted())
            self._keyring.accept(Held(key, claim.node, name, claim.host_key, since), decision.gone)
            self._guard.enrolled(key)
            self._log.changed(change)
        elif decision.what == WAITS:
            held = Held(key, claim.node, "", claim.host_key, since, decision.reason)
            if self._keyring.wait(held):
                self._log.changed(change)
        elif decision.what != KNOWN:
            self._log.refused(change)

    def _spend_one(self, host_key: str) -> None:
        """Raises Later."""
        wait_s = self._enrolled.wait_s(host_key, time.monotonic())
        if wait_s:
            raise Later(f"new keys of {host_key}", wait_s)
        self._enrolled.spend(host_key, 1)

    def _refuse(self, caller: Caller, now_us: int, reason: str, said: Event | None = None) -> None:
        if said and said.name == CHECK:
            return  # who only asks what would come of it leaves no trace
        node, host_key = (said.node, str(said.data.get("host_key", ""))) if said else ("", "")
        shown = host_key if re.fullmatch(_FORMS["host_key"], host_key) else ""
        self._log.refused(KeyChange(now_us, REFUSED, node, caller.key.hex(), shown, caller.address, reason))


def _read(said: Event) -> tuple[Claim, bytes]:
    """The claim, and its signature. Raises Refused."""
    if said.name not in (CLAIM, CHECK):
        raise Refused(f"'{said.name:.100}' is none of {HELLO}, {CLAIM} and {CHECK}")
    for name, form in _FORMS.items():
        value = said.data.get(name)
        if not isinstance(value, str) or not re.fullmatch(form, value):
            raise Refused(f"'{name}' of the claim is {value!r:.100}")
    if len(said.node) > MAX_NAME_BYTES:
        raise Refused(f"the name has {len(said.node)} characters, where {MAX_NAME_BYTES} are allowed")
    told = {name: said.data[name] for name in _FORMS if name != "signature"}
    return Claim(node=said.node, **told), bytes.fromhex(said.data["signature"])


def _answer(id: str, store: str, decision: Decision) -> Answer:
    if decision.what in (ENROLLED, RENEWED, KNOWN):
        return Answer(id, store, 0, wire.ENROLLED)
    status = wire.WAITS if decision.what == WAITS else wire.REFUSED
    return Answer(id, store, 0, status, reason=decision.reason)


def _change(claim: Claim, decision: Decision, caller: Caller, now_us: int) -> KeyChange:
    return KeyChange(now_us, decision.what, claim.node, claim.key, claim.host_key, caller.address, decision.reason)
