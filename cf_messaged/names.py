"""Which node a claim makes of a key: a name is of the host that had it first, and a host has one name and at most two
keys, the older one while it is replaced. No socket, clock or file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cf_messaged.journal import ENROLLED, RENEWED
from cf_messaged.times import microseconds
from cf_messaging.keys import Claim

if TYPE_CHECKING:  # most commands read settings, and no key
    from cf_messaged.keyring import Held

CFENGINE, MANUAL, OFF = RULES = "cfengine", "manual", "off"
FIRST, LISTED = NAMES = "first", "listed"
# What comes of a claim.
KNOWN, WAITS, CLONE, REFUSED = "known", "waits", "clone", "refused"  # or ENROLLED or RENEWED
# A machine that was heard so short a time ago is there, and another one with the same key of its host is a clone.
LIVE_S = 900.0
# For so long a host has its older key too: agents that run while it is renewed speak by that.
OVERLAP_S = 3600
AGAIN_US = 60_000_000


class Rules(NamedTuple):
    """Of the settings. enrol: of RULES; names: of NAMES; listed: the host key of each name."""

    enrol: str = CFENGINE
    names: str = FIRST
    listed: Mapping[str, str] = {}


class Decision(NamedTuple):
    """what: of the words above. gone: certificates whose keys are let in no more."""

    what: str
    reason: str = ""
    gone: Sequence[Held] = ()


class Known(Protocol):
    """What a keyring knows."""

    def accepted(self) -> list[Held]: ...
    def is_revoked(self, key: bytes) -> bool: ...
    def is_rejected(self, key: bytes) -> bool: ...
    def is_trusted(self, host_key: str) -> bool: ...


def decide(claim: Claim, known: Known, rules: Rules, heard_s: Callable[[bytes], float]) -> Decision:
    """claim: signed by a host that is trusted. heard_s: how long ago something was said by a key."""
    key = bytes.fromhex(claim.key)
    if known.is_revoked(key):
        return Decision(REFUSED, f"this CURVE key was revoked: remove the file of {claim.key}, for a new one")
    if known.is_rejected(key):
        return Decision(REFUSED, "an operator has rejected this CURVE key")
    accepted = known.accepted()
    same = next((held for held in accepted if held.key == key), None)
    if same:
        return _of_known(claim, same)
    if rules.names == LISTED and rules.listed.get(claim.node) != claim.host_key:
        return Decision(REFUSED, _not_listed(claim, rules.listed.get(claim.node)))
    return _of_name(claim, accepted, known, rules) or _of_keys(claim, accepted, heard_s)


def _of_known(claim: Claim, same: Held) -> Decision:
    if same.node == claim.node and same.host_key in ("", claim.host_key):
        return Decision(KNOWN)
    whose = f" of host key {same.host_key}" if same.host_key else ""
    return Decision(REFUSED, f"this CURVE key is {same.node}'s{whose}")


def _not_listed(claim: Claim, listed: str | None) -> str:
    if listed is None:
        return f"{claim.node} is not among the `listed` names"
    return f"{claim.node} is `listed` for host key {listed}, not {claim.host_key}"


def _of_name(claim: Claim, accepted: Sequence[Held], known: Known, rules: Rules) -> Decision | None:
    """Why the claim has to wait; None if the name is the host's."""
    for held in accepted:
        if held.host_key == claim.host_key and held.node != claim.node:
            return Decision(WAITS, f"host key {claim.host_key} is {held.node}'s, and claims to be {claim.node} too")
        if held.node == claim.node and held.host_key != claim.host_key:
            if not held.host_key:
                return Decision(WAITS, f"{claim.node} was accepted by hand, with key {held.key.hex()}")
            if known.is_trusted(held.host_key):
                return Decision(WAITS, f"{claim.node} is host key {held.host_key}, not {claim.host_key}")
    if rules.enrol == MANUAL:
        return Decision(WAITS, "an operator accepts each key")
    return None


def _of_keys(claim: Claim, accepted: Sequence[Held], heard_s: Callable[[bytes], float]) -> Decision:
    """One more key of a host under the name that is its own."""
    of_name = sorted((held for held in accepted if held.node == claim.node), key=lambda held: held.since)
    own = [held for held in of_name if held.host_key == claim.host_key]
    others = [held for held in of_name if held not in own]  # of a host that is trusted no more
    if not own:
        return Decision(ENROLLED, gone=others)
    newest = own[-1]
    gone = [*others, *own[:-1]]
    if claim.replaces == newest.key.hex():
        return Decision(RENEWED, gone=gone)
    if min(heard_s(held.key) for held in own) < LIVE_S:  # the newest may not have been needed yet
        return Decision(CLONE, _cloned(claim))
    return Decision(ENROLLED, gone=gone)


def overlapped(accepted: Sequence[Held], now_us: int, heard_s: Callable[[bytes], float]) -> tuple[list[Held], float]:
    """Older keys of hosts whose time is over, and when that of the next one is, or may be; UTC microseconds. One that
    goes on to speak stays: the newer one may be a clone's.
    """
    hosts: dict[str, list[Held]] = {}
    for held in accepted:
        if held.host_key:
            hosts.setdefault(held.host_key, []).append(held)
    over: list[Held] = []
    next_us = math.inf
    for of_host in (each for each in hosts.values() if len(each) > 1):
        newest = max(of_host, key=lambda held: held.since)
        ends_us = _since_us(newest) + OVERLAP_S * 1_000_000
        older = [held for held in of_host if held is not newest]
        silent = [held for held in older if ends_us <= now_us and heard_s(held.key) >= LIVE_S]
        over += silent
        if silent != older:
            next_us = min(next_us, max(ends_us, now_us + AGAIN_US))
    return over, next_us


def _since_us(held: Held) -> int:
    """0 where its file tells no time."""
    try:
        return microseconds(held.since)
    except ValueError:
        return 0


def _cloned(claim: Claim) -> str:
    """Without that key: who knows it may replace it."""
    minutes = f"{LIVE_S / 60:.0f} minutes"
    return (
        f"{claim.node} has spoken with another CURVE key in the last {minutes}: another machine has the same host key,"
        f" {claim.host_key}; or if that key is lost, or the listener was started just then, it gets in {minutes} later"
    )
