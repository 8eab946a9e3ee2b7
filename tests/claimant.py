"""Who claims to be a node, where nodes enrol: keys of hosts as cf-key makes them, and claims of which every part can be
another one.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from typing import Any

import zmq
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cf_messaging.keys import Claim, statement
from cf_messaging.wire import CHALLENGED, CLAIM, ENROL, HELLO, Answer, Event
from listener import TIME, Keys, Node, new_keys
from peers import Socket


class HostKey:
    """digest: as nodes tell it; pem: its public half, as a file."""

    def __init__(self, bits: int = 2048) -> None:
        self.private = generate_private_key(65537, bits)
        numbers = self.private.public_key().public_numbers()
        both = (number.to_bytes((number.bit_length() + 7) // 8, "big") for number in (numbers.n, numbers.e))
        self.digest = f"SHA={hashlib.sha256(b''.join(both)).hexdigest()}"
        self.pem = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)

    def sign(self, text: bytes) -> bytes:
        return self.private.sign(text, PKCS1v15(), SHA256())

    def signed(self, claim: Claim) -> dict[str, Any]:
        """The data of a claim."""
        data: dict[str, Any] = {name: value for name, value in claim._asdict().items() if name != "node"}
        return {**data, "signature": self.sign(statement(claim)).hex()}


@cache
def host_key(name: str) -> HostKey:
    """The one of this name: they take long to make."""
    return HostKey()


def said(node: str, what: str, data: dict[str, Any]) -> Event:
    return Event(os.urandom(16).hex(), ENROL, node, what, TIME, data)


class Claimant(Node):
    """Of one connection. keys: those of the listener's peer, new ones if not given; source: the address it comes from,
    one of 127.0.0.0/8.
    """

    def __init__(
        self,
        context: zmq.Context[Socket],
        endpoint: str,
        node: str,
        keys: Keys,
        host: HostKey | None = None,
        source: str = "",
    ) -> None:
        super().__init__(context, endpoint.replace("//", f"//{source}:0;") if source else endpoint, keys)
        self.node, self.keys, self.host = node, keys, host or host_key(node)

    @property
    def key(self) -> str:
        return self.keys.public

    def challenge(self) -> str:
        answer = self.say(said(self.node, HELLO, {}))
        assert answer.status == CHALLENGED, answer
        return str(answer.challenge)

    def made(self, **other: str) -> Claim:
        """A claim that is true, but for these fields; with a challenge that it has asked for, if none is given."""
        challenge = other.pop("challenge", None) or self.challenge()
        true = Claim(challenge, self.keys.server, self.key, "", self.node, self.host.digest)
        return true._replace(**other)

    def claim(self, what: str = CLAIM, **other: str) -> Answer:
        """Signed with these fields."""
        return self.tell(self.host.signed(self.made(**other)), what)

    def tell(self, data: dict[str, Any], what: str = CLAIM) -> Answer:
        return self.say(said(self.node, what, data))


def claimant(context: zmq.Context[Socket], endpoint: str, node: str, server: str, **other: Any) -> Claimant:
    """With new keys."""
    return Claimant(context, endpoint, node, new_keys(server), **other)
