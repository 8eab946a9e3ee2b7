"""Attacks on enrolment: each is refused with a reason of its own, in one line of log and one row, and nobody else
notices.

The listener is a process of its own, and a bystander that has enrolled says events to it all the time, each of which is
stored. What becomes of any claim that is true is in test_names.py, and anything that may be said in
test_fuzz_enrolment.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import zmq
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA512

import test_keyring
from agent import Run
from bomber import SAID
from cf_messaged.enrolment import MAX_ENROLLED, VALID_S
from cf_messaged.keyring import Held, Keyring, listed, make, put, write
from cf_messaged.times import rfc3339
from cf_messaged.visitors import MAX_SAID_BYTES
from cf_messaging.keys import certificate, public_key, statement
from cf_messaging.wire import (
    CHALLENGED,
    CHECK,
    CLAIM,
    ENROL,
    ENROLLED,
    LATER,
    MAX_ENROL_BYTES,
    REFUSED,
    STORED,
    WAITS,
    Answer,
    decode_answer,
    encode_event,
)
from claimant import Claimant, HostKey, claimant, host_key, said
from endless import BY_LIBZMQ, speaking
from forgers import forging
from listener import Keys, Node, Teller, accepted, changed, event, new_keys, question
from peers import Socket, scaled
from test_attacks import BYSTANDER, bystander, descriptors, say_each, stored
from test_cfengine import wait_for
from test_curve import body
from test_enrolment import Host, host  # noqa: F401 - a fixture
from test_failures import policy
from test_guard import comes_in
from test_information import says
from test_keyring import is_silent
from test_service import Start, select, start  # noqa: F401 - a fixture

# Of a key that was not let in, as a line of log has it.
TURNED_AWAY = re.compile(r"(warning|info): (refused|clone|waits): \S+, key [0-9a-f]{64}")


class Hub(test_keyring.Hub):
    """One whose nodes enrol."""

    @property
    def office(self) -> str:
        return self.listener.endpoints["enrolment"]

    def trust(self, *hosts: HostKey) -> None:
        for each in hosts:
            write(self.file_of(each), each.pem.decode())

    def file_of(self, key: HostKey) -> Path:
        """Because of which a host is trusted."""
        return self.directory / f"trusted/{key.digest}.pub"

    def new_node(self, name: str) -> Keys:
        """Of a node that has enrolled; by an operator's leave, or hand, where that is needed."""
        if "enrolment" not in self.listener.endpoints:
            return super().new_node(name)
        self.trust(host_key(name))
        context: zmq.Context[Socket] = zmq.Context()
        with closing_all(context):
            node = claimant(context, self.office, name, self.server)
            if node.claim().status == WAITS:
                assert self.operate("accept", node.key).returncode == 0
            return node.keys

    def let_in(self) -> dict[str, str]:
        """The files of accepted keys, as they are."""
        return {path.name: path.read_text() for path in (self.directory / "accepted").iterdir()}

    def changes(self, key: str) -> list[tuple[str, str]]:
        """What happened to a key, and why."""
        return select(self.listener, f"SELECT what, reason FROM key_changes WHERE key = '{key}' ORDER BY row")

    def lines(self, key: str = "") -> list[str]:
        """Of log, about keys that were turned away, or about one of them."""
        return [line for line in self.listener.heard if TURNED_AWAY.search(line) and key in line]


@contextmanager
def closing_all(context: zmq.Context[Socket]) -> Iterator[None]:
    try:
        yield
    finally:
        context.destroy(linger=0)


Open = Callable[..., Hub]


@pytest.fixture
def opened(start: Start, tmp_path: Path, plain: zmq.Context[Socket], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:  # noqa: F811
    """Starts one with settings, in TOML, and with constants of its modules where a test cannot wait for as long:
    `enrolment.VALID_S`. A bystander speaks to it until the test is over.
    """
    hubs: list[Hub] = []

    def opened(settings: str = "", constants: Sequence[str] = ()) -> Hub:
        (tmp_path / "settings.toml").write_text(settings)
        with monkeypatch.context() as patch:
            if constants:
                patch.setattr("listener.COMMAND", changed(constants))
            listener = start("--keys-dir", str(tmp_path / "keys"), "--config", str(tmp_path / "settings.toml"))
        hubs.append(Hub(tmp_path / "keys", listener, public_key(str(tmp_path / "keys/listener.key")).hex()))
        others.enter_context(bystander(hubs[-1], plain))
        return hubs[-1]

    with ExitStack() as others:
        yield opened
    for hub in hubs:
        check(hub)


def check(hub: Hub) -> None:
    """In the end: no bug, and what was told of keys that were turned away is, line by line, in the view."""
    assert [line for line in hub.listener.heard if "bug" in line or "Traceback" in line] == []
    rows = [row for row in hub.listener.view("key_changes") if row["what"] in ("refused", "clone", "waits")]
    assert {row["key"] for row in rows} == {key_of(line) for line in hub.lines()}
    for row in rows:
        assert [line for line in hub.lines(row["key"]) if f": {row['what']}: " in line and row["reason"] in line]


def key_of(line: str) -> str:
    return line.partition(", key ")[2][:64]


@pytest.fixture
def hub(opened: Open) -> Hub:
    return opened()


def enrolled(hub: Hub, context: zmq.Context[Socket], name: str, **other: Any) -> Claimant:
    """A node whose host is trusted, and that was let in."""
    node = claimant(context, hub.office, name, hub.server, **other)
    hub.trust(node.host)
    assert node.claim().status == ENROLLED
    return node


def of(hub: Hub, context: zmq.Context[Socket], node: Claimant) -> Node:
    """The same, where events are said."""
    return Node(context, hub.listener.endpoint, node.keys)


@contextmanager
def nobody_new(hub: Hub) -> Iterator[None]:
    """Is let in by what is done meanwhile, and nobody is not any more."""
    before = hub.let_in()
    yield
    assert hub.let_in() == before


def check_refused(hub: Hub, node: Claimant, answer: Answer, words: str, what: str = "refused") -> None:
    """With these words, in one line of log and in one row."""
    assert answer.status == (WAITS if what == "waits" else REFUSED) and words in answer.reason, answer
    wait_for(lambda: (what, answer.reason) in hub.changes(node.key))
    assert hub.changes(node.key).count((what, answer.reason)) == 1
    assert f": {what}: " in hub.listener.wait_for(f"key {node.key}.*{re.escape(answer.reason)}")
    assert len([line for line in hub.lines(node.key) if answer.reason in line]) == 1


def is_let_in(hub: Hub, context: zmq.Context[Socket], keys: Keys) -> bool:
    """Where events are said."""
    return comes_in(context, hub.listener, keys)


# ---- what was said before


def test_a_claim_that_somebody_else_says_again(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Its challenge was another connection's; with one of its own, or with its own key as well, it says what nobody has
    signed.
    """
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    taped = node.host.signed(node.made())
    assert node.tell(taped).status == ENROLLED
    thief = claimant(plain, hub.office, "web1", hub.server)
    with nobody_new(hub):
        check_refused(hub, thief, thief.tell(taped), "the challenge is not one that this listener gave this key")
        own = {**taped, "challenge": thief.challenge()}
        check_refused(hub, thief, thief.tell(own), f"it is for another key, {node.key}, than that of the connection")
        check_refused(hub, thief, thief.tell({**own, "key": thief.key}), "it is not signed by host key")
    assert not is_let_in(hub, plain, thief.keys)


def test_a_claim_that_is_said_again(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """By the same key in the same minute: it changes nothing. Once the key is revoked, it is worth nothing."""
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    taped = node.host.signed(node.made())
    assert node.tell(taped).status == ENROLLED
    with nobody_new(hub):
        assert node.tell(taped).status == ENROLLED
    wait_for(lambda: hub.changes(node.key) == [("enrolled", "")])
    assert hub.operate("revoke", node.key).returncode == 0
    with nobody_new(hub):
        check_refused(hub, node, node.tell(taped), "this CURVE key was revoked")
    assert not is_let_in(hub, plain, node.keys)


def test_a_challenge_that_is_too_old(opened: Open, plain: zmq.Context[Socket]) -> None:
    """It was good until then."""
    assert VALID_S == 60
    hub = opened("node_handshakes_a_minute = 10000", ["enrolment.VALID_S = 5"])
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    data = node.host.signed(node.made())
    assert node.tell(data, CHECK).status == ENROLLED
    sleep(6)  # asking again and again would use up what may be said in a connection
    with nobody_new(hub):
        check_refused(hub, node, node.tell(data), "the challenge is older than 5 s")
    assert node.claim().status == ENROLLED


def test_a_challenge_that_was_made_up(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Or was given at another time, or to another key."""
    node, other = (claimant(plain, hub.office, "web1", hub.server) for _ in range(2))
    hub.trust(node.host)
    true = node.challenge()
    for forged in (
        "00" * 40,
        "ff" * 40,
        "f" * 16 + true[16:],
        true[:-1] + f"{int(true[-1], 16) ^ 1:x}",
        other.challenge(),
    ):
        with nobody_new(hub):
            answer = node.claim(challenge=forged)
        assert answer.status == REFUSED and "is not one that this listener gave this key" in answer.reason
    check_refused(hub, node, answer, "since it was started")
    assert node.claim(challenge=true).status == ENROLLED


# ---- what is for somebody else


def test_a_claim_for_another_listener(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It says whose key that listener has."""
    node, key = claimant(plain, hub.office, "web1", hub.server), new_keys("").public
    hub.trust(node.host)
    with nobody_new(hub):
        check_refused(hub, node, node.claim(listener=key), f"it is for another listener, whose key is {key}")
    assert not is_let_in(hub, plain, node.keys)


def test_a_claim_for_another_key(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Though the host has signed it: nobody is let in by his name alone."""
    node, other = (claimant(plain, hub.office, "web1", hub.server) for _ in range(2))
    hub.trust(node.host)
    with nobody_new(hub):
        check_refused(hub, node, node.claim(key=other.key), f"it is for another key, {other.key}")
    assert not is_let_in(hub, plain, node.keys) and not is_let_in(hub, plain, other.keys)


# Ends CURVE towards nodes with a key of its own, as a listener that does not know them and as the place where they
# enrol, and says to a real one what they say there. Arguments: where that enrols, its key, whether the claim is to be
# of this key and for that listener; both keys in hex.
RELAY = """
import json, sys, threading, zmq
from zmq.utils.z85 import decode
office, server, alters = sys.argv[1:]
context = zmq.Context()
doorkeeper = context.socket(zmq.REP)
doorkeeper.bind("inproc://zeromq.zap.01")
(own, secret), (key, secret_of_it) = zmq.curve_keypair(), zmq.curve_keypair()

def bound(domain):
    front = context.socket(zmq.ROUTER)
    front.curve_server, front.curve_secretkey, front.zap_domain = True, secret, domain
    front.bind("tcp://127.0.0.1:*")
    return front, front.getsockopt_string(zmq.LAST_ENDPOINT)

def admit():
    while True:
        version, number, domain, *_ = doorkeeper.recv_multipart()
        verdict = (b"200", b"OK") if domain == b"enrols" else (b"400", b"no")
        doorkeeper.send_multipart([version, number, *verdict, b"", b""])

threading.Thread(target=admit, daemon=True).start()
denies, endpoint = bound(b"denies")
front, enrols = bound(b"enrols")
back = context.socket(zmq.DEALER)
back.curve_publickey, back.curve_secretkey, back.curve_serverkey = key, secret_of_it, bytes.fromhex(server)
back.connect(office)
print(endpoint, enrols, decode(own).hex(), decode(key).hex(), flush=True)
poller = zmq.Poller()
for each in (front, back):
    poller.register(each, zmq.POLLIN)
while True:
    for each, _ in poller.poll():
        frames = each.recv_multipart()
        if each is front:
            print(frames[-1].decode(), flush=True)
            said = json.loads(frames[-1])
            if alters == "alters" and said["subject"] == "claim":
                said["data"].update(listener=server, key=decode(key).hex())
                frames[-1] = json.dumps(said).encode()
        (back if each is front else front).send_multipart(frames)
"""


class Relay:
    """That runs. told: what nodes said to it."""

    def __init__(self, process: subprocess.Popen[str], hub: Hub) -> None:
        assert process.stdout
        self._told = process.stdout
        self.endpoint, self.office, self.server, self.key = process.stdout.readline().split()
        self._process, self._real = process, hub.server

    def end(self) -> list[dict[str, Any]]:
        """What nodes have said to it."""
        self._process.terminate()
        return [json.loads(line) for line in self._told]


@contextmanager
def relay(hub: Hub, how: str) -> Iterator[Relay]:
    command = [sys.executable, "-c", RELAY, hub.office, hub.server, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Relay(process, hub)
        finally:
            process.kill()


def run_at(between: Relay, node: Host, server: str) -> Run:
    """Of an agent that takes the relay for the listener with this key."""
    more = f'node => "{node.name}", curve => keys, timeout => "{scaled(10)}"'
    promises = policy({"os": says("static", between.endpoint, '"debian"', more)})
    return node.agent.run(promises, before=body("keys", server_key=server, enrol=between.office))


@pytest.mark.parametrize("how", ["passes", "alters"])
def test_a_relay_whose_key_the_node_was_given(hub: Hub, host: Callable[[str], Host], how: str) -> None:  # noqa: F811
    """The claim is for the relay: as it is, the listener says so; made to be for the listener, nobody has signed it."""
    node = host("web1")
    write(hub.directory / "trusted/web1.pub", (node.agent.work / "ppkeys/localhost.pub").read_text())
    with nobody_new(hub), relay(hub, how) as between:
        [error] = run_at(between, node, between.server).errors
        told = between.end()
    words = {
        "passes": f"it is for another listener, whose key is {between.server}",
        "alters": "it is not signed by host key",
    }
    assert words[how] in error and "1 event waits" in error
    assert [each["subject"] for each in told] == ["hello", "claim"] and told[1]["data"]["listener"] == between.server
    wait_for(lambda: [what for what, reason in hub.changes(between.key) if words[how] in reason] == ["refused"])


def test_a_relay_whose_key_the_node_was_not_given(hub: Hub, host: Callable[[str], Host]) -> None:  # noqa: F811
    """It hears nothing at all."""
    node = host("web1")
    write(hub.directory / "trusted/web1.pub", (node.agent.work / "ppkeys/localhost.pub").read_text())
    with nobody_new(hub), relay(hub, "passes") as between:
        [error] = run_at(between, node, hub.server).errors
        assert between.end() == []
    assert f"its key is not {hub.server}" in error and "1 event waits" in error


# ---- who has signed it


def test_a_host_that_nobody_knows(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """By whatever name; it says what is missing, and nothing waits for an operator."""
    node = claimant(plain, hub.office, BYSTANDER, hub.server, host=host_key("stranger"))
    with nobody_new(hub):
        check_refused(hub, node, node.claim(), f"host key {node.host.digest} is not trusted here")
    assert not is_let_in(hub, plain, node.keys)
    assert {row["state"] for row in listed(str(hub.directory))} <= {"accepted", "unknown"}


def test_a_host_that_was_revoked(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """With its node: no other key of it is let in, under no name; and what it says by the one before is not heard."""
    node = enrolled(hub, plain, "web1")
    speaking = of(hub, plain, node)
    assert speaking.say(event(1)).status == STORED
    assert hub.operate("revoke", "web1").returncode == 0
    speaking.send(event(2))
    for name in ("web1", "web2"):
        other = claimant(plain, hub.office, name, hub.server, host=node.host)
        with nobody_new(hub):
            check_refused(hub, other, other.claim(), f"host key {node.host.digest} was revoked")
        assert not is_let_in(hub, plain, other.keys)
    assert is_silent(speaking.socket) and not is_let_in(hub, plain, node.keys)
    assert stored(hub) == [("web1", "load")]


def test_a_host_that_is_trusted_no_more(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Its key is let in no more from that moment on, and no other one is; once it is trusted again, its key is let in
    again, as it was.
    """
    node = enrolled(hub, plain, "web1")
    speaking = of(hub, plain, node)
    assert speaking.say(event(1)).status == STORED
    with nobody_new(hub):
        hub.file_of(node.host).unlink()
        speaking.send(event(2))
        assert not is_let_in(hub, plain, node.keys) and is_silent(speaking.socket)
        other = claimant(plain, hub.office, "web1", hub.server)
        check_refused(hub, other, other.claim(), f"host key {node.host.digest} is not trusted here")
        check_refused(hub, node, node.claim(), f"host key {node.host.digest} is not trusted here")
        hub.trust(node.host)
        wait_for(lambda: is_let_in(hub, plain, node.keys))
    assert of(hub, plain, node).say(event(3)).status == STORED
    assert select(hub.listener, "SELECT events FROM nodes WHERE node = 'web1'") == [(2,)]


# How a host signs a claim, when it does not as it should.
SIGNATURES: dict[str, Callable[[HostKey, bytes], bytes]] = {
    "none": lambda _, text: bytes(256),
    "ones": lambda _, text: b"\xff" * 256,
    "as large as the modulus": lambda key, text: key.private.public_key().public_numbers().n.to_bytes(256, "big"),
    "of another text": lambda key, text: key.sign(text + b"\n"),
    "of another name": lambda key, text: key.sign(text.replace(b"web1", b"web2")),
    "of another version": lambda key, text: key.sign(text.replace(b" v1", b" v2")),
    "of another host": lambda _, text: host_key("other").sign(text),
    "of a stranger": lambda _, text: host_key("stranger").sign(text),
    "with a bit changed": lambda key, text: (int.from_bytes(key.sign(text), "big") ^ 1).to_bytes(256, "big"),
    "cut": lambda key, text: key.sign(text)[:-1],
    "longer": lambda key, text: key.sign(text) + b"\0",
    "with zeros before it": lambda key, text: b"\0" + key.sign(text),
    "by SHA-1": lambda key, text: key.private.sign(text, PKCS1v15(), SHA1()),
    "by SHA-512": lambda key, text: key.private.sign(text, PKCS1v15(), SHA512()),
    "by PSS": lambda key, text: key.private.sign(text, PSS(MGF1(SHA256()), PSS.DIGEST_LENGTH), SHA256()),
}


def test_what_is_no_signature(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Of another text, by another key, in another way, or nothing at all."""
    hub.trust(host_key("web1"), host_key("other"))
    for number, (what, sign) in enumerate(SIGNATURES.items(), 1):
        node = claimant(plain, hub.office, "web1", hub.server, source=f"127.0.0.{number + 1}")
        claim = node.made()
        data = {**node.host.signed(claim), "signature": sign(node.host, statement(claim)).hex()}
        with nobody_new(hub):
            check_refused(hub, node, node.tell(data), f"it is not signed by host key {node.host.digest}")
        assert not is_let_in(hub, plain, node.keys), what


def test_a_key_that_is_too_short(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It is not even trusted where an operator has put it; the log says why, and the others are."""
    node = claimant(plain, hub.office, "web1", hub.server, host=HostKey(1024))
    hub.trust(node.host)
    with nobody_new(hub):
        check_refused(hub, node, node.claim(), f"host key {node.host.digest} is not trusted here")
    assert hub.listener.wait_for(f"{node.host.digest}.pub is no RSA key of 2048 bits or more")
    enrolled(hub, plain, "web2")


def test_how_many_claims_come_from_an_address(opened: Open, plain: zmq.Context[Socket]) -> None:
    """Who signs none of them soon has to wait, whoever he says he is, and nobody at another address does; claims of
    hosts that are not trusted do not count.
    """
    hub = opened("node_handshakes_a_minute = 5")
    hub.trust(host_key("web1"))
    forger = claimant(plain, hub.office, "web1", hub.server, source="127.0.0.9")
    stranger = claimant(plain, hub.office, "web1", hub.server, source="127.0.0.9", host=host_key("stranger"))
    bad = {**forger.host.signed(forger.made()), "signature": "00" * 256}
    with nobody_new(hub):
        assert {stranger.claim().status for _ in range(7)} == {REFUSED}
        answers = [forger.tell(bad) for _ in range(7)]
    assert [answer.status for answer in answers] == [REFUSED] * 5 + [LATER] * 2
    assert answers[-1].reason == "too many claims from this address in this minute"
    assert 1 <= answers[-1].retry_after <= 60
    assert claimant(plain, hub.office, "web1", hub.server).claim().status == ENROLLED


# ---- names


def test_the_name_of_another_node_is_kept(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Who claims it later waits, and is listed with both hosts' digests; an operator may let it take the place of the
    first.
    """
    first, second = (claimant(plain, hub.office, "web1", hub.server, host=host_key(each)) for each in ("web1", "web2"))
    hub.trust(first.host, second.host)
    assert first.claim().status == ENROLLED and of(hub, plain, first).say(event(1)).status == STORED
    with nobody_new(hub):
        words = f"web1 is host key {first.host.digest}, not {second.host.digest}"
        check_refused(hub, second, second.claim(), words, "waits")
        assert second.claim().status == WAITS
    assert not is_let_in(hub, plain, second.keys)
    told = [line.split() for line in hub.operate("list").stdout.splitlines()]
    assert [second.key, "waiting", "web1", second.host.digest, *words.split()] in [row[:11] for row in told]
    assert [first.key, "accepted", "web1", first.host.digest] in told
    assert hub.operate("accept", second.key, "--replace").returncode == 0
    wait_for(lambda: is_let_in(hub, plain, second.keys))
    assert not is_let_in(hub, plain, first.keys)
    assert of(hub, plain, second).say(event(2)).status == STORED
    check_refused(hub, first, first.claim(), f"web1 is host key {second.host.digest}", "waits")


def test_a_second_name_of_a_host(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It waits for an operator: who has taken one machine is not all of those whose names are free."""
    node = enrolled(hub, plain, "web1")
    other = claimant(plain, hub.office, "hub", hub.server, host=node.host)
    with nobody_new(hub):
        words = f"host key {node.host.digest} is web1's, and claims to be hub too"
        check_refused(hub, other, other.claim(), words, "waits")
        check_refused(hub, node, Claimant.claim(node, node="hub"), "it is not signed by")
        node.node = "hub"
        check_refused(hub, node, node.claim(), f"this CURVE key is web1's of host key {node.host.digest}")
    assert not is_let_in(hub, plain, other.keys)


def test_a_name_that_was_accepted_by_hand(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """No host has it but by an operator's leave."""
    [keys] = accepted(hub.directory, ["web1"])
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    with nobody_new(hub):
        check_refused(hub, node, node.claim(), f"web1 was accepted by hand, with key {keys.public}", "waits")
    assert is_let_in(hub, plain, keys) and not is_let_in(hub, plain, node.keys)


def test_the_name_of_a_host_that_is_trusted_no_more(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It is free: who claims it is let in, and stays so; the first is not, also when it is trusted again."""
    first = enrolled(hub, plain, "web1")
    hub.file_of(first.host).unlink()
    second = enrolled(hub, plain, "web1", host=host_key("web2"))
    wait_for(lambda: not is_let_in(hub, plain, first.keys))
    assert of(hub, plain, second).say(event(1)).status == STORED
    hub.trust(first.host)
    check_refused(hub, first, first.claim(), f"web1 is host key {second.host.digest}", "waits")
    assert of(hub, plain, second).say(event(2)).status == STORED and not is_let_in(hub, plain, first.keys)
    assert [text for text in hub.let_in().values() if certificate(bytes.fromhex(second.key))[-50:] in text]


def test_names_that_are_listed(opened: Open, plain: zmq.Context[Socket]) -> None:
    """Nobody else has them, and there are no others."""
    names = "\n".join(f'{name} = "{host_key(name).digest}"' for name in (BYSTANDER, "web1"))
    hub = opened(f'names = "listed"\n[listed]\n{names}\n')
    own, other = host_key("web1"), host_key("web2")
    hub.trust(own, other)
    for name, key, words in (
        ("web1", other, f"web1 is `listed` for host key {own.digest}, not {other.digest}"),
        ("web2", other, "web2 is not among the `listed` names"),
        ("web2", own, "web2 is not among the `listed` names"),
    ):
        node = claimant(plain, hub.office, name, hub.server, host=key)
        with nobody_new(hub):
            check_refused(hub, node, node.claim(), words)
        assert not is_let_in(hub, plain, node.keys)
    assert of(hub, plain, enrolled(hub, plain, "web1")).say(event()).status == STORED


# ---- where an operator decides


def test_where_an_operator_accepts_each_key(opened: Open, plain: zmq.Context[Socket]) -> None:
    """Whoever claims waits, and is let in once it is accepted, under the name that it has claimed."""
    hub = opened('enrol = "manual"')
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    with nobody_new(hub):
        check_refused(hub, node, node.claim(), "an operator accepts each key", "waits")
    assert not is_let_in(hub, plain, node.keys)
    assert hub.operate("accept", node.key[:8]).stdout == f"accepted {node.key} as web1\n"
    wait_for(lambda: is_let_in(hub, plain, node.keys))
    assert of(hub, plain, node).say(event()).status == STORED
    assert node.claim().status == ENROLLED


def test_who_was_rejected(opened: Open, plain: zmq.Context[Socket]) -> None:
    """An operator's no is told, and does not wait."""
    hub = opened('enrol = "manual"')
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    check_refused(hub, node, node.claim(), "an operator accepts each key", "waits")
    assert hub.operate("reject", node.key).returncode == 0
    with nobody_new(hub):
        check_refused(hub, node, node.claim(), "an operator has rejected this CURVE key")
    assert [row["state"] for row in listed(str(hub.directory)) if row["key"] == node.key] == ["rejected"]


def test_where_nobody_enrols(opened: Open, plain: zmq.Context[Socket]) -> None:
    """There is no socket for it, and no other one takes its place."""
    hub = opened('enrol = "off"')
    assert set(hub.listener.endpoints) == {"request", "push", "publish", "subscribe"}
    keys = new_keys(hub.server)
    hub.trust(host_key("web1"))
    assert not is_let_in(hub, plain, keys)
    node = Node(plain, hub.listener.endpoint, hub.new_node("web2"))
    answer = node.say(said("web2", "hello", {}))
    assert answer.status == REFUSED and "enrolment has a socket of its own" in answer.reason


# ---- machines with the same host key


def test_a_clone(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Another CURVE key of a host that has just spoken: the first stays, and is heard; the clone is not."""
    first = enrolled(hub, plain, "web1")
    speaking = of(hub, plain, first)
    assert speaking.say(event(1)).status == STORED
    clone = claimant(plain, hub.office, "web1", hub.server)
    with nobody_new(hub):
        answers = [clone.claim() for _ in range(3)]
        words = "web1 has spoken with another CURVE key in the last 15 minutes: another machine has the same host key"
        check_refused(hub, clone, answers[-1], words, "clone")
        assert first.key not in f"{answers}"  # by that it could replace it
        assert clone.claim(replaces=clone.key).status == clone.claim(replaces=new_keys("").public).status == REFUSED
    assert not is_let_in(hub, plain, clone.keys)
    assert speaking.say(event(2)).status == STORED


def test_a_third_key(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """A host has two at most, the newest ones; who claims to replace an older one than the newest is a clone."""
    nodes = [enrolled(hub, plain, "web1")]
    for number in (1, 2):
        nodes.append(claimant(plain, hub.office, "web1", hub.server))
        assert nodes[-1].claim(replaces=nodes[-2].key).status == ENROLLED
        wait_for(lambda: ("renewed", "") in hub.changes(nodes[-1].key))
        assert of(hub, plain, nodes[-1]).say(event(number)).status == STORED
    assert [is_let_in(hub, plain, node.keys) for node in nodes] == [False, True, True]
    fourth = claimant(plain, hub.office, "web1", hub.server)
    with nobody_new(hub):
        for replaced in nodes[:2]:
            answer = fourth.claim(replaces=replaced.key)
        check_refused(hub, fourth, answer, "has spoken with another CURVE key in the last", "clone")
    assert of(hub, plain, nodes[1]).say(event(3)).status == STORED


# ---- too much of it


def test_a_host_that_has_another_key_all_the_time(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Some in a minute: each is a line of log, a row, and a file that is synced. It has the last of them."""
    nodes = [enrolled(hub, plain, "web1")]
    while len(nodes) < MAX_ENROLLED:
        nodes.append(claimant(plain, hub.office, "web1", hub.server))
        assert nodes[-1].claim(replaces=nodes[-2].key).status == ENROLLED
    with nobody_new(hub):
        answer = claimant(plain, hub.office, "web1", hub.server).claim(replaces=nodes[-1].key)
    assert (answer.status, answer.reason) == (LATER, f"too many new keys of {nodes[0].host.digest} in this minute")
    assert answer.retry_after and of(hub, plain, nodes[-1]).say(event()).status == STORED
    assert enrolled(hub, plain, "web2")


def is_hung_up_on(node: Node, *frames: bytes) -> bool:
    """Once it has said so."""
    monitor = node.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    node.socket.sndtimeo = 1000
    with suppress(zmq.Again):  # it was hung up on already, and does not come again
        for frame in frames:
            node.send(frame)
    ended = bool(monitor.poll(int(scaled(30) * 1000)))
    node.socket.disable_monitor()
    return ended


def test_a_claim_of_a_megabyte(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Whoever says more than MAX_ENROL_BYTES in a message is hung up on; so much is heard."""
    node = claimant(plain, hub.office, "web1", hub.server)
    hub.trust(node.host)
    frame = encode_event(said("web1", CLAIM, node.host.signed(node.made())))
    with nobody_new(hub):
        for size in (MAX_ENROL_BYTES + 1, 2**20):
            large = claimant(plain, hub.office, "web1", hub.server)
            assert large.challenge() and is_hung_up_on(large, frame.ljust(size))
    assert node.say(frame.ljust(MAX_ENROL_BYTES)).status == ENROLLED


def test_more_than_a_claim_takes(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """In small words: so many of them, and the connection is ended."""
    plain.reconnect_ivl = -1
    node = claimant(plain, hub.office, "web1", hub.server)
    frame = encode_event(said("web1", "hello", {}))
    heard = 0
    assert is_hung_up_on(node, *[frame] * (4 * MAX_SAID_BYTES // len(frame)))
    while node.socket.poll(100):
        heard += 1
        assert node.receive()[1].status == CHALLENGED
    assert heard * len(frame) < 2 * MAX_SAID_BYTES
    assert claimant(plain, hub.office, "web1", hub.server).challenge()


@pytest.mark.parametrize(("size", "peers", "times", "most_mb"), [(MAX_ENROL_BYTES, 4, 5, 300), (1, 1, 2, 100)])
def test_messages_without_end(
    opened: Open, plain: zmq.Context[Socket], size: int, peers: int, times: int, most_mb: int
) -> None:
    """64 MB of frames, large ones and small ones, which are no message until the last has come: little of it is ever
    in memory.
    """
    hub = opened("node_handshakes_a_minute = 10000")
    before = hub.listener.most_mb()
    attacks = [(BY_LIBZMQ, hub.office, *new_keys(hub.server), size, 2**26) for _ in range(peers)]
    with nobody_new(hub), ExitStack() as stack:
        for process in [stack.enter_context(speaking(*attack)) for attack in attacks]:
            for _ in range(times):
                assert process.stdout and process.stdout.readline() == "hung up on\n"
        assert claimant(plain, hub.office, "web1", hub.server).challenge()
    assert hub.listener.most_mb() - before < most_mb


IDLE = 300


def test_who_comes_and_stays(opened: Open, plain: zmq.Context[Socket]) -> None:
    """Hundreds of connections that say nothing more are ended after their time, and nobody waits for that."""
    hub = opened("node_handshakes_a_minute = 10000", ["visitors.MAX_STAY_S = 3"])
    before = descriptors(hub)
    plain.reconnect_ivl = -1
    idle = [claimant(plain, hub.office, "web1", hub.server, source=f"127.0.0.{2 + n % 9}") for n in range(IDLE)]
    assert all(each.challenge() for each in idle)
    most = descriptors(hub)
    node = enrolled(hub, plain, "web2")
    assert of(hub, plain, node).say(event(node="web2")).status == STORED
    wait_for(lambda: descriptors(hub) == before + 1)
    assert most > before + IDLE // 2


FALSE_CLAIMS = 1500


def test_a_flood_of_false_claims(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """From many addresses: of twenty nodes that have enrolled nothing is refused or lost, and the log tells of some
    claims alone.
    """
    names = [f"web{number}" for number in range(20)]
    nodes = [of(hub, plain, enrolled(hub, plain, name)) for name in names]
    answers: list[Answer] = []
    with nobody_new(hub), forging(hub.office, hub.server, host_key("web0").digest) as told:
        for number in count(1):
            answers += say_each(nodes, number)
            if told[SAID] > FALSE_CLAIMS:
                break
        answers += say_each(nodes, number + 1)
    assert {answer.status for answer in answers} == {STORED}
    counted = select(hub.listener, "SELECT events FROM nodes WHERE node LIKE 'web%'")
    assert counted == [(number + 1,)] * 20
    assert set(told) <= {SAID, CHALLENGED, REFUSED, LATER} and told[REFUSED] > FALSE_CLAIMS / 2
    assert len(hub.lines()) < told[REFUSED] / 2


# ---- what is no enrolment, and where none is


def test_what_is_no_enrolment(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Where nodes enrol: information, questions and other words are refused, of whom is let in too, and nothing is
    stored, shown or published.
    """
    member = enrolled(hub, plain, "web1")
    stranger = claimant(plain, hub.office, "web2", hub.server)
    kinds = [event(1, kind, "facts", node="web1") for kind in ("static", "dynamic", "state", "common")]
    for number, node in enumerate((member, stranger)):
        for one in (*kinds, question("nodes"), question("latest")):
            mine = one._replace(node=node.node)
            answer = Claimant(plain, hub.office, node.node, node.keys, source=f"127.0.{number}.2").say(mine)
            assert (answer.status, answer.rows, answer.id) == (REFUSED, None, one.id)
            assert answer.reason == "unsupported type: here nodes enrol, and do nothing else"
        assert hub.listener.wait_for(f"refused: somebody, key {node.key}, .*: {answer.reason}")
    assert stored(hub) == [] and select(hub.listener, "SELECT node FROM nodes") == [(BYSTANDER,)]


def test_words_that_are_none_of_it(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Of other shapes, with other subjects, with fields that are none: each is answered why."""
    hub.trust(host_key("web1"))
    node = claimant(plain, hub.office, "web1", hub.server, source="127.0.0.2")
    true = node.host.signed(node.made())
    wrong: list[tuple[Any, str]] = [
        (b"", "no event"),
        (b"\xff", "no UTF-8"),
        (encode_event(said("web1", "goodbye", true)), "'goodbye' is none of hello, claim and check"),
        (encode_event(said("web1", "hello", {})).replace(b"{}", b"[]"), "data of type enrol is no object"),
        (encode_event(said("web1", "hello", {})).replace(b"web1", b"../web1"), "a node is named by"),
        *(
            (encode_event(said("web1", CLAIM, {**true, name: value})), f"'{name}' of the claim is")
            for name, value in UNSOUND
        ),
    ]
    for number, (frame, words) in enumerate(wrong):
        other = Claimant(plain, hub.office, "web1", node.keys, source=f"127.0.{number}.3")
        with nobody_new(hub):
            check_refused(hub, node, other.say(frame), words)
    for frames, words in (([b"", b"{}", b"{}"], "2 frames"), ([b"{}"], "no empty frame"), ([b""] * 99, "98 frames")):
        node.socket.send_multipart(frames)
        assert words in decode_answer(node.socket.recv_multipart()[-1]).reason


UNSOUND: list[tuple[str, Any]] = [
    ("challenge", ""),
    ("challenge", 1),
    ("listener", "SHA=" + "0" * 60),
    ("key", "A" * 64),
    ("key", "a" * 64 + "\n"),
    ("replaces", "no"),
    ("replaces", None),
    ("host_key", "MD5=" + "0" * 32),
    ("host_key", ["SHA=" + "0" * 64]),
    ("signature", "00"),
    ("signature", "0" * 257),
    ("signature", {}),
]


def test_enrolment_where_there_is_none(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Where events are said it is refused, by whom it is; nobody is enrolled by it, and nothing is stored."""
    node = enrolled(hub, plain, "web1")
    true = node.host.signed(node.made())
    for number, (what, data) in enumerate((("hello", {}), (CLAIM, true), (CHECK, true))):
        answer = of(hub, plain, node).say(said("web1", what, data))
        assert answer.status == REFUSED and answer.reason == "unsupported type: enrolment has a socket of its own"
        with nobody_new(hub):
            for role in ("push", "publish"):
                one = said("web1", what, data)._replace(id=f"{role}{number}")
                Teller(plain, hub.listener, role, node.keys).tell(one)
                assert hub.listener.wait_for(f"refused {one.id}: unsupported type: enrolment has a socket of its own")
    assert select(hub.listener, f"SELECT count(*) FROM history WHERE kind = '{ENROL}'") == [(0,)]
    assert stored(hub) == []


# ---- odd files, odd names, odd moments

# Of a kind that no library knows.
ODD_KEY = """-----BEGIN PUBLIC KEY-----
MA0wBwYFKwYBBAEDAgAK
-----END PUBLIC KEY-----
"""


def test_a_key_of_another_kind_among_those_of_hosts(tmp_path: Path) -> None:
    """It is told, and keeps nobody else out."""
    make(str(tmp_path))
    write(tmp_path / "trusted/odd.pub", ODD_KEY)
    write(tmp_path / "trusted/web1.pub", host_key("web1").pem.decode())
    keyring = Keyring(str(tmp_path))
    keyring.names()
    assert keyring.is_trusted(host_key("web1").digest)


@pytest.mark.parametrize("folder", ["trusted", "revoked", "accepted", "rejected"])
def test_without_its_folders_nobody_is_enrolled(tmp_path: Path, folder: str) -> None:
    """Whom it cannot look up, it does not trust: what was read before says nothing of now."""
    make(str(tmp_path))
    write(tmp_path / "trusted/web1.pub", host_key("web1").pem.decode())
    keyring = Keyring(str(tmp_path))
    keyring.names()
    (tmp_path / folder).rename(tmp_path / "away")
    assert keyring.names() == {}
    assert not keyring.is_trusted(host_key("web1").digest)


def test_a_clone_that_comes_before_the_first_has_spoken(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """As machines do that were made of one image, and are started at once."""
    enrolled(hub, plain, "web1")
    clone = claimant(plain, hub.office, "web1", hub.server)
    assert clone.claim().status == REFUSED


def test_a_certificate_with_another_time(tmp_path: Path) -> None:
    """Of a host with two keys, the file of the newer one was changed by hand."""
    make(str(tmp_path))
    for number, since in ((1, rfc3339(0)), (2, "the other day")):
        put(str(tmp_path), "accepted", Held(bytes([number]) * 32, "web1", f"web1~{number}.key", "SHA=0", since), "x")
    keyring = Keyring(str(tmp_path))
    keyring.names()
    keyring.end_overlaps(10**15, lambda key: 0)


@pytest.mark.parametrize(("size", "status"), [(200, ENROLLED), (201, REFUSED), (253, REFUSED)])
def test_the_longest_name(hub: Hub, plain: zmq.Context[Socket], size: int, status: str) -> None:
    """The wire allows 253 characters; no name of a file is as long."""
    node = claimant(plain, hub.office, "w" * size, hub.server)
    hub.trust(node.host)
    answer = node.claim()
    assert answer.status == status and (status == ENROLLED or "where 200 are allowed" in answer.reason)


def test_what_was_revoked_is_listed_so(tmp_path: Path) -> None:
    """Also when the host is trusted no more."""
    make(str(tmp_path))
    put(str(tmp_path), "revoked", Held(bytes(32), "web1", "web1.key", host_key("web1").digest), "Revoked")
    assert [row["state"] for row in listed(str(tmp_path))] == ["revoked"]
