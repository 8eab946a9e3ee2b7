"""Whatever may be said where nodes enrol, and whatever a node may be answered there: understood, or refused with a
reason; nobody is let in whose claim is not true, as somebody else checks it here.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import pytest
import zmq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import fuzz
from cf_messaged.config import Config
from cf_messaged.enrolment import Caller, Desk
from cf_messaged.guard import Guard
from cf_messaged.key_log import KeyLog
from cf_messaged.keyring import Held, Keyring, make, put, write
from cf_messaged.store import Store
from cf_messaging import wire
from cf_messaging.attributes import Curve
from cf_messaging.conversations import Exchanged
from cf_messaging.enrolment import Enrolment
from cf_messaging.keys import Claim, Pair, public_key
from cf_messaging.outcomes import Failure, Reason
from cf_messaging.patterns import PATTERNS, Conversation
from cf_messaging.wire import (
    CHALLENGED,
    CHECK,
    CLAIM,
    ENROLLED,
    HELLO,
    MAX_ENROL_BYTES,
    REFUSED,
    WAITS,
    Answer,
    Message,
)
from claimant import Claimant, HostKey, host_key, said
from listener import Keys, Listener, changed, new_keys
from peers import Socket
from test_fuzz_events import BAD_FRAMES, Fields, ending_well, lots, mangled, nonsense, odd, weighed
from test_wire import answers, fields_of, texts

pytestmark = pytest.mark.fuzz

GIVEN = "claims and answers to them"
# Of each that hypothesis makes, so many are made that are nearly the same: it takes its time for the first.
MORE = 9
NODES = "web1", "web2", "web3"
TRUSTED, REVOKED, SHORT, STRANGER = "trusted", "revoked", "short", "stranger"
HOSTS = (f"{TRUSTED}1", f"{TRUSTED}2", REVOKED, SHORT, STRANGER)
CALLERS = range(4)  # connections, each with a key of its own


@cache
def host(name: str) -> HostKey:
    return HostKey(1024) if name == SHORT else host_key(name)


def prepare(directory: Path, *trusted: str) -> None:
    """Keys, of hosts that are trusted, but for one which is revoked."""
    make(str(directory))
    for name in trusted:
        write(directory / f"trusted/{name}.pub", host(name).pem.decode())
    put(str(directory), "revoked", Held(bytes(32), "web9", "web9.key", host(REVOKED).digest), "Revoked")


# ---- what is said


class Said(NamedTuple):
    """By one of the callers: a claim of a host, with other fields before it is signed, and after. to_whom: the caller
    whose challenge it has.
    """

    caller: int
    what: str
    node: str
    host: str
    before: dict[str, str]
    after: Fields
    to_whom: int


digits = st.binary(min_size=32, max_size=40).map(bytes.hex)
words = st.one_of(digits, digits.map(str.upper), st.sampled_from(["", "0" * 80, "0" * 64, f"SHA={'0' * 64}"]), texts)
names_of_fields = st.sampled_from([*Claim._fields[:-2], "host_key"])
claims = st.builds(
    Said,
    st.sampled_from(CALLERS),
    weighed((1, st.just(HELLO)), (4, st.just(CLAIM)), (2, st.just(CHECK)), (1, st.text("abchelo", max_size=9))),
    st.sampled_from(NODES),
    weighed((4, st.sampled_from(HOSTS[:2])), (1, st.sampled_from(HOSTS[2:]))),
    weighed((4, st.just({})), (1, st.dictionaries(names_of_fields, words, max_size=2))),
    weighed((2, st.just({})), (1, st.dictionaries(names_of_fields | st.just("signature"), words | odd, max_size=2))),
    weighed((9, st.none()), (1, st.sampled_from(CALLERS))),
)
others = st.sampled_from(CALLERS), nonsense.map(lambda body: [b"", body]) | st.one_of(*BAD_FRAMES.values())
anything = weighed((9, claims), (1, st.tuples(*others)))


class Office(Protocol):
    """Where it is said. server: the key of the listener, in hex; keys: of each caller."""

    server: str
    keys: list[Keys]

    def say(self, caller: int, frames: list[bytes]) -> tuple[list[bytes], Answer]: ...


class Judge:
    """Says it, and knows what is true of it."""

    def __init__(self, office: Office, where: str) -> None:
        self._office, self._where = office, where
        self._given: set[tuple[int, str]] = set()  # to a caller, challenges
        self.enrolled: set[tuple[str, str, str]] = set()  # key, node, host

    def say(self, said: Said | tuple[int, list[bytes]], lot: random.Random) -> None:
        """Then some that are nearly the same. What is true is only refused if the name is another's, or a clone's."""
        caller, frames = (said.caller, self._frames(said)) if isinstance(said, Said) else said
        answer, is_true = self.tell(caller, frames)
        if is_true and answer.status == REFUSED and isinstance(said, Said) and not (said.before or said.after):
            assert re.match("this CURVE key is|web[123] has spoken with another", answer.reason), (answer, frames)
        for _ in range(MORE):
            self.tell(caller, [*frames[:-1], mangled(frames[-1], lot)])

    def _frames(self, one: Said) -> list[bytes]:
        if one.what == HELLO:
            return [b"", encoded(said(one.node, HELLO, one.after))]
        key, challenge = (
            self._office.keys[one.caller].public,
            self._challenge(one.caller if one.to_whom is None else one.to_whom),
        )
        claim = Claim(challenge, self._office.server, key, "", one.node, host(one.host).digest)._replace(**one.before)
        return [b"", encoded(said(one.node, one.what, {**host(one.host).signed(claim), **one.after}))]

    def _challenge(self, caller: int) -> str:
        """One that it was given."""
        if all(each != caller for each, _ in self._given):
            self.tell(caller, [b"", encoded(said("web1", HELLO, {}))])
        return next(challenge for each, challenge in self._given if each == caller)

    def tell(self, caller: int, frames: list[bytes]) -> tuple[Answer, bool]:
        """The answer, and whether it was a claim that is true. What is too large is not said."""
        if sum(map(len, frames)) > MAX_ENROL_BYTES:
            return Answer("", "", 0, REFUSED), False
        fuzz.count(GIVEN, self._where)
        envelope, answer = self._office.say(caller, frames)
        fuzz.count("claims", f"answered {answer.status}")
        assert envelope == frames[: len(envelope)]
        assert wire.decode_answer(wire.encode_answer(answer)) == answer
        assert answer.status in (CHALLENGED, ENROLLED) or answer.reason
        assert answer.status != WAITS or (answer.reason.isprintable() and '"' not in answer.reason)  # a file has it too
        return answer, self._is_true(caller, frames[-1], answer)

    def _is_true(self, caller: int, frame: bytes, answer: Answer) -> bool:
        claim, is_true = self._read(caller, frame)
        if answer.status == CHALLENGED:
            self._given.add((caller, answer.challenge))
            assert fields_of(frame)["subject"] == HELLO
        elif answer.status in (ENROLLED, WAITS):
            assert is_true, (answer, frame)
            self.enrolled.add((claim["key"], claim["node"], claim["host_key"]))
        else:
            assert answer.status == REFUSED
        return is_true

    def _read(self, caller: int, frame: bytes) -> tuple[Fields, bool]:
        """A claim, and whether it is true."""
        try:
            fields = json.loads(frame)
            data = fields["data"]
            claim = {
                **{name: data[name] for name in Claim._fields if name != "node"},
                "node": fields["source"].removeprefix("cfengine://"),
            }
            text = "".join(f"{line}\n" for line in ("cf-messaged enrolment v1", *map(claim.get, Claim._fields)))
            signer = {host(name).digest: host(name) for name in HOSTS[:2]}[claim["host_key"]]
            signature = bytes.fromhex(data["signature"])
            signer.private.public_key().verify(signature, text.encode(), PKCS1v15(), SHA256())
        except (ValueError, LookupError, TypeError, AttributeError, InvalidSignature, RecursionError):
            return {}, False
        ours = self._office.server, self._office.keys[caller].public, fields.get("subject") in (CLAIM, CHECK)
        is_given = (caller, claim["challenge"]) in self._given
        return claim, is_given and (claim["listener"], claim["key"], True) == ours


def encoded(event: wire.Event) -> bytes:
    """Also what could not be said: of an object that is no JSON, half of it."""
    try:
        return wire.encode_event(event)
    except ValueError:
        return json.dumps({**event._asdict(), "data": str(event.data)}).encode("utf-8", "replace")


# ---- without a network


class Here:
    """The desk alone, which is told by which key each message came."""

    def __init__(self, directory: Path, context: zmq.Context[Socket]) -> None:
        prepare(directory / "keys", *HOSTS[:-1])
        config = Config(keys_dir=str(directory / "keys"), node_handshakes_a_minute=10**12)
        self.keyring, self._store = Keyring(str(directory / "keys")), Store(f"sqlite:///{directory}/store.db")
        self.keyring.names()
        self._socket, self._log = context.socket(zmq.ROUTER), KeyLog(self._store)
        own = new_keys("")
        self.server, self.keys = own.public, [new_keys(own.public) for _ in CALLERS]
        guard = Guard(self.keyring, config)
        with patch("cf_messaged.enrolment.MAX_ENROLLED", math.inf):
            self._desk = Desk(self._socket, bytes.fromhex(self.server), self.keyring, guard, self._log, config)

    def say(self, caller: int, frames: list[bytes]) -> tuple[list[bytes], Answer]:
        """As if it had just come."""
        key = bytes.fromhex(self.keys[caller].public)
        (_, *envelope), answer = self._desk._answered([b"r", *frames], Caller(key, "192.0.2.1"), self._store.id, 10**15)
        self._log.write()
        return envelope, answer

    def forget(self) -> None:
        """All that was accepted, or waits."""
        for folder in ("accepted", "waiting"):
            for path in (Path(self.keyring.directory) / folder).iterdir():
                path.unlink()
        self.keyring.names()

    def close(self) -> None:
        self._socket.disable_monitor()
        self._desk.visitors.monitor.close()
        self._store.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    context: zmq.Context[Socket] = zmq.Context()
    with closing(Here(tmp_path_factory.mktemp("here"), context)) as here:
        yield here
    context.destroy(linger=0)


@given(said=st.lists(anything, min_size=1, max_size=4), lot=lots)
def test_any_claim(here: Here, said: list[Any], lot: random.Random) -> None:
    """It is answered; only what is true lets somebody in, under the name that was signed."""
    fuzz.watch()
    here.forget()
    judge = Judge(here, "to a desk")
    for one in said:
        judge.say(one, lot)
    known = here.keyring.accepted()
    assert {(each.key.hex(), each.node, each.host_key) for each in known} <= judge.enrolled
    names = {(each.node, each.host_key) for each in known}
    assert len(dict(names)) == len(names) == len({host_key for _, host_key in names})


# ---- over a network


class There:
    """A cf-messaged in a process of its own. Connections last for a while alone: for one example."""

    def __init__(self, context: zmq.Context[Socket], listener: Listener, directory: Path) -> None:
        self._context, self._listener = context, listener
        self.server = public_key(str(directory / "listener.key")).hex()
        self.keys = [new_keys(self.server) for _ in CALLERS]
        self._nodes: dict[int, Claimant] = {}

    def say(self, caller: int, frames: list[bytes]) -> tuple[list[bytes], Answer]:
        if caller not in self._nodes:
            endpoint = self._listener.endpoints["enrolment"]
            self._nodes[caller] = Claimant(self._context, endpoint, "web1", self.keys[caller], host("trusted1"))
        self._nodes[caller].socket.send_multipart(frames)
        *envelope, answer = self._nodes[caller].socket.recv_multipart()
        return envelope, wire.decode_answer(answer)

    def hang_up(self) -> None:
        for node in self._nodes.values():
            node.socket.close()
        self._nodes = {}


def test_any_claim_over_a_network(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """The same at a real cf-messaged, which goes on; in the end those are let in whose claims were true."""
    (tmp_path / "settings.toml").write_text("node_handshakes_a_minute = 1000000")
    prepare(tmp_path / "keys", *HOSTS[:-2])
    options = "--keys-dir", str(tmp_path / "keys"), "--config", str(tmp_path / "settings.toml")
    with patch("listener.COMMAND", changed(["enrolment.MAX_ENROLLED = 10**9"])):
        listener = Listener(tmp_path, *options)
    there = There(plain, listener, tmp_path / "keys")
    enrolled: set[tuple[str, str, str]] = set()

    @given(said=st.lists(claims, min_size=1, max_size=3), lot=lots)
    @settings(max_examples=max(5, settings().max_examples // 40), phases=[Phase.generate])
    def tell(said: list[Said], lot: random.Random) -> None:
        fuzz.watch()
        judge = Judge(there, "to a cf-messaged")
        for one in said:
            judge.say(one, lot)
        there.hang_up()
        enrolled.update(judge.enrolled)

    with ending_well(listener):
        tell()
        keyring = Keyring(str(tmp_path / "keys"))
        keyring.names()
        assert {(each.key.hex(), each.node, each.host_key) for each in keyring.accepted()} <= enrolled


# ---- what a node is answered

ID = "of what was asked"
sound = st.one_of(
    st.builds(lambda challenge: Answer(ID, "s", 0, CHALLENGED, challenge=challenge), digits | texts),
    st.builds(lambda reason: Answer(ID, "s", 0, WAITS, reason=reason), texts),
    st.builds(lambda reason: Answer(ID, "s", 0, REFUSED, reason=reason), texts),
    st.just(Answer(ID, "s", 0, ENROLLED)),
    answers.map(lambda answer: answer._replace(id=ID)),
    answers,
).map(wire.encode_answer)
almost = st.builds(
    lambda frame, changes: json.dumps({**fields_of(frame), **changes}).encode("utf-8", "replace"),
    sound,
    st.dictionaries(
        st.sampled_from(["id", "status", "challenge", "reason", "have", "store", "next_key"]), odd, max_size=2
    ),
)
challenged = st.builds(lambda digits: wire.encode_answer(Answer(ID, "s", 0, CHALLENGED, challenge=digits)), digits)
enrolled_ones = st.just(wire.encode_answer(Answer(ID, "s", 0, ENROLLED)))
answered = weighed((2, sound), (2, almost), (1, nonsense))
first, second = weighed((2, challenged), (1, answered)), weighed((1, enrolled_ones), (2, answered))


class Listens:
    """As Exchange.converse(), at somebody who answers so. heard: what he really said, in turn."""

    def __init__(self, answers: Sequence[bytes], lot: random.Random | None) -> None:
        self._answers, self._lot = list(answers), lot
        self.heard: list[tuple[str, bytes]] = []  # with the id of what was asked

    def __call__(self, talk: Conversation, until: float) -> Exchanged:
        asked = fields_of(talk.payloads[0])["id"]
        frame = self._answers.pop(0).replace(json.dumps(ID).encode(), json.dumps(asked).encode())
        if self._lot:
            frame = mangled(frame, self._lot)
        self.heard.append((asked, frame))
        done = Exchanged(1)
        done.messages[0] = Message(frame, b"")
        return done

    def says(self) -> list[str]:
        """The statuses of what he said, if they are answers to what he was asked."""
        return [str(fields_of(frame)["status"]) for asked, frame in self.heard if fields_of(frame)["id"] == asked]


PAIR = Pair(bytes(32), bytes(32))
TALK = Conversation(
    PATTERNS["request"], ("tcp://hub:5309",), False, [b"x"], b"", 1, 0, 1, Curve((bytes(32),), "node.key", None), "web1"
)


def enrols(listens: Listens) -> bool:
    """Whether a node takes it that it is let in now; otherwise it says why not, in words."""
    lines: list[str] = []
    enrolment = Enrolment(listens, lambda path: PAIR, lambda level, text: lines.append(text))
    try:
        assert enrolment.enrol(TALK, "tcp://hub:5309", 0.0, Failure(Reason.REFUSED, "not known"))
    except Failure as failure:
        told = str(failure)
    else:
        told = ""
    assert lines == ([] if told else ["messages: web1 is enrolled at tcp://hub:5313"])
    assert not told or told.startswith("not known; tcp://hub:5313 ")
    return not told


@pytest.fixture(scope="module")
def signing() -> Iterator[None]:
    """Nothing depends on by what: that is in test_host_key.py."""
    with (
        patch("cf_messaging.enrolment.digest", lambda path: f"SHA={'0' * 64}"),
        patch("cf_messaging.enrolment.sign", lambda path, text: bytes(256)),
    ):
        yield


@pytest.mark.usefixtures("signing")
@given(answers=st.tuples(first, second), lot=lots)
def test_any_answers(answers: tuple[bytes, bytes], lot: random.Random) -> None:
    """A node is let in if it was challenged, and then told so; else it is a failure with a reason."""
    fuzz.watch()
    for each in (None, *[lot] * MORE):
        listens = Listens(answers, each)
        is_in = enrols(listens)
        fuzz.count(GIVEN, *["to a node"])
        fuzz.count("answers to nodes", "enrolled" if is_in else "not enrolled")
        assert not is_in or listens.says() == [CHALLENGED, ENROLLED]
        if each is None and answers[1] == wire.encode_answer(Answer(ID, "s", 0, ENROLLED)):
            assert is_in == (len(listens.heard) == 2)


@pytest.mark.usefixtures("signing")
@pytest.mark.parametrize("challenge", ["", "0" * 79 + "\n", "0" * 81, "0" * 2**20], ids=len)
def test_what_is_no_challenge(challenge: str) -> None:
    """It says so, and claims nothing: it is neither signed nor said, and it may be too large for that."""
    listens = Listens([wire.encode_answer(Answer(ID, "s", 0, CHALLENGED, challenge=challenge))] * 2, None)
    assert not enrols(listens) and len(listens.heard) == 1
