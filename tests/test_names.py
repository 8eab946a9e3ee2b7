"""Whose name it is: what becomes of any claim that is true. Without sockets, clocks and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cf_messaged.enrolment import Challenges, Refused
from cf_messaged.journal import ENROLLED, RENEWED
from cf_messaged.keyring import Held
from cf_messaged.names import (
    CFENGINE,
    CLONE,
    FIRST,
    KNOWN,
    LISTED,
    LIVE_S,
    MANUAL,
    REFUSED,
    WAITS,
    Decision,
    Rules,
    decide,
)
from cf_messaging.keys import Claim

HOSTS = OWN, OTHER = tuple(f"SHA={digit * 64}" for digit in "ab")


def key(number: int) -> bytes:
    return bytes([number]) * 32


def held(number: int, node: str = "web1", host_key: str = OWN, since: str = "") -> Held:
    return Held(key(number), node, f"{node}~{number}.key", host_key, since or f"2026-11-{number:02}T00:00:00Z")


SPOKEN = "web1 has spoken with another CURVE key in the last 15 minutes: another machine has the same host key"


def claim(number: int, node: str = "web1", host_key: str = OWN, replaces: int | None = None) -> Claim:
    before = key(replaces).hex() if replaces is not None else ""
    return Claim("", "", key(number).hex(), before, node, host_key)


class Known:
    """What a keyring knows. trusted: digests of hosts; revoked, rejected: keys, by their number."""

    def __init__(
        self,
        accepted: Sequence[Held] = (),
        trusted: Sequence[str] = HOSTS,
        revoked: Sequence[int] = (),
        rejected: Sequence[int] = (),
    ) -> None:
        self._accepted, self._trusted = list(accepted), trusted
        self._revoked, self._rejected = set(map(key, revoked)), set(map(key, rejected))

    def accepted(self) -> list[Held]:
        return list(self._accepted)

    def is_revoked(self, key: bytes) -> bool:
        return key in self._revoked

    def is_rejected(self, key: bytes) -> bool:
        return key in self._rejected

    def is_trusted(self, host_key: str) -> bool:
        return host_key in self._trusted


def silent(**seconds: float) -> Callable[[bytes], float]:
    """For how long each key was, by its number, `_1`; others for ever."""
    return lambda asked: next((each for name, each in seconds.items() if key(int(name[1:])) == asked), math.inf)


def decided(claimed: Claim, known: Known | None = None, rules: Rules | None = None, **seconds: float) -> Decision:
    return decide(claimed, known or Known(), rules or Rules(), silent(**seconds))


def check(decision: Decision, what: str, words: str = "", gone: Sequence[Held] = ()) -> None:
    assert decision.what == what and words in decision.reason and list(decision.gone) == list(gone), decision
    assert bool(decision.reason) == (what in (REFUSED, WAITS, CLONE))
    assert "\n" not in decision.reason and '"' not in decision.reason  # it is a line, and part of a certificate


# ---- the key itself


def test_the_first_of_a_host() -> None:
    """Under a name that nobody has, it is enrolled."""
    check(decided(claim(1)), ENROLLED)


def test_a_key_that_is_let_in() -> None:
    """It may claim as often as it likes: by the same host, under the same name, also if it was accepted by hand."""
    check(decided(claim(1), Known([held(1)])), KNOWN)
    check(decided(claim(1), Known([held(1, host_key="")])), KNOWN)
    check(decided(claim(1, replaces=2), Known([held(1), held(2)]), _1=0), KNOWN)


@pytest.mark.parametrize("rules", [Rules(), Rules(MANUAL), Rules(names=LISTED)])
def test_the_key_of_another_node(rules: Rules) -> None:
    """Whoever has its secret: it stays what it is."""
    check(decided(claim(1, "web2"), Known([held(1)]), rules), REFUSED, f"this CURVE key is web1's of host key {OWN}")
    check(decided(claim(1, host_key=OTHER), Known([held(1)]), rules), REFUSED, f"web1's of host key {OWN}")
    check(decided(claim(1, "web2"), Known([held(1, host_key="")]), rules), REFUSED, "this CURVE key is web1's")


@pytest.mark.parametrize("accepted", [[], [held(1)]])
def test_a_key_that_was_revoked(accepted: list[Held]) -> None:
    """Not even if its file is among those of accepted keys; the words say what mends it."""
    words = f"this CURVE key was revoked: remove the file of {key(1).hex()}, for a new one"
    check(decided(claim(1), Known(accepted, revoked=[1])), REFUSED, words)
    check(decided(claim(1), Known(accepted, revoked=[1], rejected=[1])), REFUSED, words)


@pytest.mark.parametrize("accepted", [[], [held(1)]])
def test_a_key_that_was_rejected(accepted: list[Held]) -> None:
    check(decided(claim(1), Known(accepted, rejected=[1])), REFUSED, "an operator has rejected this CURVE key")


# ---- the name


def test_the_name_of_another_host() -> None:
    """The first has it, for as long as it is trusted; then who claims it gets it, and the first is let in no more."""
    known = [held(1), held(2)]
    check(decided(claim(3, host_key=OTHER), Known(known)), WAITS, f"web1 is host key {OWN}, not {OTHER}")
    check(decided(claim(3, host_key=OTHER), Known(known, [OTHER])), ENROLLED, gone=known)


def test_a_name_of_two_hosts() -> None:
    """As an operator may have it: neither gets another key, whether the first or the second is the one that claims."""
    known = [held(1), held(2, host_key=OTHER)]
    for host_key in HOSTS:
        check(decided(claim(3, host_key=host_key), Known(known)), WAITS, "web1 is host key")
    check(decided(claim(3, replaces=1), Known(known, [OWN])), RENEWED, gone=known[1:])


def test_a_name_that_was_accepted_by_hand() -> None:
    """No host has it, trusted or not."""
    words = f"web1 was accepted by hand, with key {key(1).hex()}"
    for trusted in (HOSTS, (OWN,)):
        check(decided(claim(2), Known([held(1, host_key="")], trusted)), WAITS, words)
        check(decided(claim(2, replaces=1), Known([held(1, host_key="")], trusted)), WAITS, words)


def test_another_name_of_a_host() -> None:
    """Whether anybody has that one or not."""
    words = f"host key {OWN} is web1's, and claims to be web2 too"
    check(decided(claim(2, "web2"), Known([held(1)])), WAITS, words)
    check(decided(claim(2, "web2", replaces=1), Known([held(1)])), WAITS, words)
    check(decided(claim(3, "web2"), Known([held(1), held(2, "web2", OTHER)])), WAITS, words)


def test_names_are_as_they_are_written() -> None:
    """Of others that look like them they are not part."""
    known = Known([held(1, "web1.example.org"), held(2, "WEB2", OTHER)])
    check(decided(claim(3, "web2", f"SHA={'c' * 64}"), known), ENROLLED)
    check(decided(claim(3, "web1", f"SHA={'c' * 64}"), known), ENROLLED)


def test_names_that_are_listed() -> None:
    """Each is of its host, and nobody else has a name; what was let in before is still known."""
    rules = Rules(names=LISTED, listed={"web1": OWN})
    check(decided(claim(1), rules=rules), ENROLLED)
    check(decided(claim(1, host_key=OTHER), rules=rules), REFUSED, f"web1 is `listed` for host key {OWN}, not {OTHER}")
    check(decided(claim(1, "web2"), rules=rules), REFUSED, "web2 is not among the `listed` names")
    check(decided(claim(1, "web2"), Known([held(1, "web2")]), rules), KNOWN)
    check(decided(claim(2, "web2", replaces=1), Known([held(1, "web2")]), rules), REFUSED, "web2 is not among")
    check(decided(claim(2), Known([held(1, host_key=OTHER)]), rules), WAITS, f"web1 is host key {OTHER}, not {OWN}")
    check(decided(claim(1, host_key=OTHER), rules=Rules(names=FIRST, listed={"web1": OWN})), ENROLLED)


def test_where_an_operator_accepts_each_key() -> None:
    """Also one that replaces another, also of a listed name; what he would have to know more is told first."""
    words = "an operator accepts each key"
    check(decided(claim(1), rules=Rules(MANUAL)), WAITS, words)
    check(decided(claim(2, replaces=1), Known([held(1)]), Rules(MANUAL)), WAITS, words)
    check(decided(claim(1), rules=Rules(MANUAL, LISTED, {"web1": OWN})), WAITS, words)
    check(decided(claim(1), rules=Rules(MANUAL, LISTED)), REFUSED, "web1 is not among the `listed` names")
    check(decided(claim(2, host_key=OTHER), Known([held(1)]), Rules(MANUAL)), WAITS, f"web1 is host key {OWN}")
    check(decided(claim(1), Known([held(1)]), Rules(MANUAL)), KNOWN)


# ---- one more key of a host


def test_a_key_that_takes_the_place_of_another() -> None:
    """However lately that was heard; the one before that is let in no more."""
    check(decided(claim(2, replaces=1), Known([held(1)]), _1=0), RENEWED)
    check(decided(claim(3, replaces=2), Known([held(2), held(1)]), _1=0, _2=0), RENEWED, gone=[held(1)])


@pytest.mark.parametrize(
    ("silent_s", "what"), [(0, CLONE), (LIVE_S - 1, CLONE), (LIVE_S, ENROLLED), (math.inf, ENROLLED)]
)
def test_another_key_of_a_host(silent_s: float, what: str) -> None:
    """Where the first was heard lately, both are there, and one is a clone; else the first may be lost."""
    decision = decided(claim(2), Known([held(1)]), _1=silent_s)
    check(decision, what, SPOKEN * (what == CLONE))


def test_who_may_be_a_clone_is_not_told_the_key() -> None:
    """By that he could replace it."""
    for known in ([held(1)], [held(1), held(3)]):
        reason = decided(claim(2), Known(known), _1=0, _3=0).reason
        assert SPOKEN in reason and not any(each.key.hex() in reason for each in known)


def test_a_key_that_replaces_another_than_the_newest() -> None:
    """It is one more, of a host that has gone on without it."""
    known = Known([held(1), held(2)])
    for replaces in (1, 3, 4):
        check(decided(claim(3, replaces=replaces), known, _2=0), CLONE, SPOKEN)
        check(decided(claim(3, replaces=replaces), known), ENROLLED, gone=[held(1)])


def test_a_host_is_live_by_any_of_its_keys() -> None:
    """Who has just renewed his key may not have spoken with the new one yet."""
    known = Known([held(1), held(2)])
    check(decided(claim(3), known, _1=5), CLONE, SPOKEN)
    check(decided(claim(3), known, _1=5, _2=2000), CLONE, SPOKEN)
    check(decided(claim(3), known, _1=2000, _2=5), CLONE, SPOKEN)


def test_more_keys_than_a_host_should_have() -> None:
    """As an operator may have it: the newest stays."""
    known = [held(number) for number in (3, 1, 2)]
    check(decided(claim(4, replaces=3), Known(known)), RENEWED, gone=[held(1), held(2)])


# ---- challenges


def test_a_challenge_is_for_one_key_and_for_a_minute() -> None:
    """Of one listener, since its start."""
    now = [1000.9]
    challenges = Challenges(lambda: now[0])
    made = challenges.make(key(1))
    assert len(bytes.fromhex(made)) == 40
    for now[0] in (1000.9, 1000.0, 1060.0):
        challenges.check(key(1), made)
    for challenge, words in ((made, "older than 60 s"), (challenges.make(key(2)), "since it was started")):
        now[0] = 1060.1
        with pytest.raises(Refused, match=words):
            challenges.check(key(1), challenge)
    with pytest.raises(Refused, match="since it was started"):
        Challenges(lambda: 1000.9).check(key(1), made)


@pytest.mark.parametrize("place", range(0, 80, 7))
def test_a_challenge_that_is_changed(place: int) -> None:
    """In any digit, of its time or of its seal."""
    challenges = Challenges(lambda: 1000.0)
    made = challenges.make(key(1))
    forged = f"{made[:place]}{int(made[place], 16) ^ 1:x}{made[place + 1 :]}"
    with pytest.raises(Refused, match="is not one that this listener gave this key"):
        challenges.check(key(1), forged)


# ---- any claims, one after the other, and an operator

NODES = "web1", "web2", "web3"
DIGESTS = [f"SHA={digit * 64}" for digit in "abcd"]
KEYS = range(1, 12)
numbers = st.sampled_from(KEYS)


class Names(RuleBasedStateMachine):
    """A keyring as Desk and `cf-messaged keys` change it. The operator lets nobody in beside others of the same name,
    or of the same host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list[Held] = []
        self.trusted: set[str] = set()
        self.revoked: set[bytes] = set()
        self.rejected: set[bytes] = set()
        self.barred: set[str] = set()
        self.waiting: dict[str, Held] = {}
        self.heard_s: dict[bytes, float] = {}
        self.now_s = 0.0

    @initialize(
        enrol=st.sampled_from([CFENGINE, CFENGINE, MANUAL]),
        names=st.sampled_from([FIRST, FIRST, LISTED]),
        trusted=st.sets(st.sampled_from(DIGESTS), min_size=1),
    )
    def begin(self, enrol: str, names: str, trusted: set[str]) -> None:
        self.settings = Rules(enrol, names, dict(zip(NODES, DIGESTS)))
        self.trusted = trusted

    def known(self) -> Known:
        known = Known(self.accepted, [each for each in self.trusted if each not in self.barred])
        known._revoked, known._rejected = self.revoked, self.rejected
        return known

    def heard(self, key: bytes) -> float:
        return self.now_s - self.heard_s.get(key, -math.inf)

    @rule(
        number=numbers,
        node=st.sampled_from(NODES),
        host_key=st.sampled_from(DIGESTS),
        replaces=st.sampled_from(["newest", "any", ""]),
        other=numbers,
    )
    def claims(self, number: int, node: str, host_key: str, replaces: str, other: int) -> None:
        if host_key not in self.trusted or host_key in self.barred:
            return
        own = sorted((each.since, each.key) for each in self.accepted if each.host_key == host_key)
        before = {"newest": own[-1][1].hex() if own else "", "any": key(other).hex(), "": ""}[replaces]
        claimed = Claim("", "", key(number).hex(), before, node, host_key)
        decision = decide(claimed, self.known(), self.settings, self.heard)
        assert set(decision.gone) <= set(self.accepted)
        new = Held(key(number), node, "", host_key, f"{self.now_s:09}")
        if decision.what in (ENROLLED, RENEWED):
            self.check_in(new, decision)
            self.accepted = [each for each in self.accepted if each not in decision.gone] + [new]
        elif decision.what == WAITS:
            self.waiting[host_key] = new

    def check_in(self, new: Held, decision: Decision) -> None:
        """Who lives is not pushed out, but by who says that he takes its place."""
        assert new.key not in self.revoked | self.rejected and new.key not in {each.key for each in self.accepted}
        assert self.settings.enrol != MANUAL
        assert self.settings.names != LISTED or self.settings.listed[new.node] == new.host_key
        if decision.what == ENROLLED:
            assert all(self.heard(each.key) >= LIVE_S for each in self.accepted if each.host_key == new.host_key)
        gone_hosts = {each.host_key for each in decision.gone} - {new.host_key}
        assert not gone_hosts & (self.trusted - self.barred)

    @rule(seconds=st.sampled_from([1.0, 60.0, LIVE_S]))
    def time_goes_by(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def speaks(self, data: st.DataObject) -> None:
        self.heard_s[data.draw(st.sampled_from(self.accepted)).key] = self.now_s

    @rule(host_key=st.sampled_from(DIGESTS))
    def trusts_or_not(self, host_key: str) -> None:
        self.trusted ^= {host_key}

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def accepts(self, data: st.DataObject) -> None:
        """`keys accept KEY --replace`."""
        new = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
        if new.key in self.revoked or new.key in {each.key for each in self.accepted}:
            return
        self.rejected.discard(new.key)
        others = [each for each in self.accepted if new.node == each.node or new.host_key == each.host_key]
        self.accepted = [each for each in self.accepted if each not in others] + [new]

    @rule(number=numbers, node=st.sampled_from(NODES))
    def accepts_by_hand(self, number: int, node: str) -> None:
        """`keys accept KEY NODE --replace`."""
        if key(number) in self.revoked or key(number) in {each.key for each in self.accepted}:
            return
        self.rejected.discard(key(number))
        self.accepted = [each for each in self.accepted if each.node != node]
        self.accepted.append(Held(key(number), node, "", "", f"{self.now_s:09}"))

    @rule(number=numbers)
    def rejects(self, number: int) -> None:
        if key(number) not in {each.key for each in self.accepted}:
            self.rejected.add(key(number))

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), bars=st.booleans())
    def revokes(self, data: st.DataObject, bars: bool) -> None:
        """A key; or a node, and with it its host."""
        one = data.draw(st.sampled_from(self.accepted))
        for each in [each for each in self.accepted if each == one or (bars and each.node == one.node)]:
            self.revoked.add(each.key)
            self.barred |= {each.host_key} if bars and each.host_key else set()
            self.accepted.remove(each)

    @invariant()
    def a_host_has_two_keys_at_most(self) -> None:
        for host_key in DIGESTS:
            assert len([each for each in self.accepted if each.host_key == host_key]) <= 2

    @invariant()
    def a_host_has_one_name(self) -> None:
        for host_key in DIGESTS:
            assert len({each.node for each in self.accepted if each.host_key == host_key}) <= 1

    @invariant()
    def a_name_has_one_host(self) -> None:
        """That is trusted, or none at all."""
        trusted = self.trusted - self.barred
        for node in NODES:
            hosts = {each.host_key for each in self.accepted if each.node == node}
            assert len({each for each in hosts if each in trusted or not each}) <= 1

    @invariant()
    def what_is_revoked_is_out(self) -> None:
        assert not {each.key for each in self.accepted} & self.revoked


Names.TestCase.settings = settings(stateful_step_count=60)
test_any_claims: Any = Names.TestCase
