"""Kept, repaired or not kept: one reason, one text, and the classes that a policy sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import Agent
from cf_messaging.outcomes import Failure, Outcome, Reason, kept, not_kept, only_warned, repaired, worst
from peers import Peer, refused_endpoint

# The design's reasons.
REASONS = {"unreachable", "refused", "timed_out", "mismatched", "invalid_reply", "expired", "local"}

failures = st.builds(
    Failure, st.sampled_from(Reason), st.sampled_from(["a", "b", "no"]), st.sampled_from(["", "tcp://a:1"])
)


def test_the_reasons_are_those_of_the_design() -> None:
    """No reason is missing and none is unheard of."""
    assert {reason.suffix for reason in Reason} == REASONS


@pytest.mark.parametrize("reason", Reason)
def test_not_kept_has_exactly_one_reason(reason: Reason) -> None:
    """The class _failed and one more, and an error line, without which the agent complains of the module."""
    outcome = not_kept(Failure(reason, "why"))
    assert (outcome.result, outcome.level, outcome.text) == ("not_kept", "error", "why")
    assert sorted(outcome.suffixes) == sorted(["failed", reason.suffix])


@pytest.mark.parametrize(
    ("make", "result", "level"), [(kept, "kept", "verbose"), (repaired, "repaired", "info")], ids=["kept", "repaired"]
)
def test_success(make: Callable[..., Outcome], result: str, level: str) -> None:
    """kept is silent, repaired says so at the level that the agent asks for; the classes are those given."""
    outcome = make("done", ["delivered", "received"])
    assert (outcome.result, outcome.level, outcome.text) == (result, level, "done")
    assert outcome.suffixes == ["delivered", "received"] and make("done").suffixes == []


def test_a_warning_sets_no_class() -> None:
    """A dry run: not kept, with the design's words, and no class."""
    outcome = only_warned("ask tcp://hub:5309")
    assert (outcome.result, outcome.level, outcome.suffixes) == ("not_kept", "warning", [])
    assert outcome.text == "Should ask tcp://hub:5309, but only warnings promised"


def test_the_text_of_a_failure() -> None:
    """Endpoint, reason, detail: what an operator can act on; without an endpoint the detail says where."""
    assert str(Failure(Reason.UNREACHABLE, "connection refused", "tcp://hub:5309")) == (
        "tcp://hub:5309 unreachable: connection refused"
    )
    assert str(Failure(Reason.LOCAL, "file /a cannot be written")) == "file /a cannot be written"


def test_reasons_can_be_told_apart() -> None:
    """Each reason has words of its own."""
    assert len({str(Failure(reason, "why", "tcp://hub:5309")) for reason in Reason}) == len(Reason)


@given(st.lists(failures, min_size=1, max_size=6), st.randoms())
def test_worst(several: list[Failure], random: object) -> None:
    """Of several failures one remains: a reason of theirs, the same in any order, with the words of each once."""
    one = worst(several)
    assert one.reason in {failure.reason for failure in several}
    assert one.reason is worst(several[::-1]).reason is worst([one, *several]).reason
    assert sorted(str(one).split("; ")) == sorted({str(failure) for failure in several})


@pytest.mark.parametrize("reason", Reason)
def test_worst_of_one(reason: Reason) -> None:
    """A single failure stays as it is."""
    one = worst([Failure(reason, "why", "tcp://hub:5309")])
    assert one.reason is reason and str(one) == str(Failure(reason, "why", "tcp://hub:5309"))


def test_local_trouble_is_worse_than_a_peer_that_is_away() -> None:
    """What only this node's operator can mend is not hidden behind what may pass."""
    away, here = Failure(Reason.UNREACHABLE, "gone"), Failure(Reason.LOCAL, "full")
    assert worst([away, here]).reason is worst([here, away]).reason is Reason.LOCAL


# ---- as a policy sees them


def classes_of(promiser: str, classes: frozenset[str]) -> set[str]:
    return {name.removeprefix(promiser) for name in classes if name.startswith(promiser)}


def test_exactly_one_reason_under_the_agent(agent: Agent, peer: Callable[..., Peer], tmp_path: Path) -> None:
    """Every promise that is not kept sets _failed and one reason, every other no reason at all."""
    rep = peer("rep", "--answer", "World")
    run = agent.run(
        """
      messages:
        "ok"
          pattern => "request", endpoint => "$(rep)", payload => "x",
          file => "$(dir)/answer", classes => outcome("o1");
        "away"
          pattern => "request", endpoint => "$(refused)", payload => "x",
          timeout => "0.2", classes => outcome("o2");
        "wrong"
          pattern => "request", endpoint => "$(rep)", payload => "x",
          expect => "no", classes => outcome("o3");
        "here"
          pattern => "push", endpoint => "$(rep)",
          payload_file => "$(dir)/none", classes => outcome("o4");
        "both"
          pattern => "request", endpoint => { "$(refused)", "$(rep)" }, payload => "x",
          classes => outcome("o5");
        """,
        vars={"rep": rep.endpoint, "refused": refused_endpoint(), "dir": str(tmp_path)},
    )
    assert classes_of("ok", run.classes) == {"_delivered", "_received"}
    assert classes_of("away", run.classes) == {"_failed", "_unreachable"}
    assert classes_of("wrong", run.classes) == {"_failed", "_mismatched"}
    assert classes_of("here", run.classes) == {"_failed", "_local"}
    assert classes_of("both", run.classes) == {"_delivered"}
    assert classes_of("o", run.classes) >= {"1_repaired", "2_not_kept", "3_not_kept", "4_not_kept", "5_repaired"}
    assert len(run.errors) == 3


@pytest.mark.parametrize(
    ("promiser", "canonified"),
    [("a b/c-1", "a_b_c_1"), ("é", "__"), ("ENDPOINT", ""), ("a:b", "a_b"), ("a::b", "a__b")],
)
def test_classes_are_prefixed_by_the_canonified_promiser(
    agent: Agent, peer: Callable[..., Peer], promiser: str, canonified: str
) -> None:
    """As by canonify(), in the bundle's own namespace, also where the promiser is the endpoint."""
    rep = peer("rep", "--answer", "World")
    promiser = rep.endpoint if promiser == "ENDPOINT" else promiser
    run = agent.run(
        """
      messages:
        "$(what)" pattern => "request", endpoint => "$(rep)", payload => "x";
      vars:
        "prefix" string => canonify("$(what)");
      classes:
        "seen" expression => "$(prefix)_delivered";
        """,
        vars={"rep": rep.endpoint, "what": promiser},
    )
    assert "seen" in run.classes
    if canonified:
        assert f"{canonified}_delivered" in run.classes
