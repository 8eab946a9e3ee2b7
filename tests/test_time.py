"""How long promises take under a real cf-agent: not a second longer than their timeout, and nobody is waited for twice.

Every bound here is one that the wrong behaviour would miss by a factor of five and more.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import Agent, Run, quoted
from peers import Gate, Peer, refused_endpoint, scaled

Start = Callable[..., Peer]

SEEN_BEFORE = "seen before in this run"


def many(number: int, attributes: str) -> str:
    """So many promises, p0 and on, at `$(there)`."""
    lines = [f'    "p{i}" {attributes}, endpoint => @(there), classes => outcome("p{i}");\n' for i in range(number)]
    return "  messages:\n" + "".join(lines)


def run_for(agent: Agent, promises: str, endpoints: list[str]) -> tuple[Run, float]:
    """The run, and the seconds that it took, by the measure of this machine."""
    started = time.monotonic()
    run = agent.run(promises, vars={"there": endpoints})
    return run, (time.monotonic() - started) / scaled(1)


def check_rest(run: Run, waited: int, number: int, reason: str) -> None:
    """All are not kept for the reason; all but the first few say that this was seen before in the run."""
    for i in range(number):
        assert {f"p{i}_not_kept", f"p{i}_failed", f"p{i}_{reason}"} <= run.classes, run.output
    assert [SEEN_BEFORE in text for text in run.errors] == [False] * waited + [True] * (number - waited)


def test_many_promises_to_a_dead_listener_cost_one_timeout(agent: Agent) -> None:
    """200 promises of two seconds where nobody listens: the first waits, the others know."""
    attributes = f'pattern => "request", payload => "x", timeout => "{scaled(2)}"'
    run, seconds = run_for(agent, many(200, attributes), [refused_endpoint()])
    check_rest(run, 1, 200, "unreachable")
    assert seconds < 20


@pytest.mark.parametrize(("kind", "reason"), [("tcp-silent", "refused"), ("silent-router", "timed_out")])
def test_many_promises_to_a_silent_listener_cost_two_timeouts(
    agent: Agent, peer: Start, kind: str, reason: str
) -> None:
    """50 promises to somebody who accepts, or even takes each request, but never answers."""
    listener = peer(kind)
    attributes = f'pattern => "request", payload => "x", timeout => "{scaled(1)}"'
    run, seconds = run_for(agent, many(50, attributes), [listener.endpoint])
    check_rest(run, 2, 50, reason)
    assert len(listener.received) == (2 if kind == "silent-router" else 0)
    assert seconds < 15


def test_patterns_share_what_was_learned(agent: Agent) -> None:
    """A dead listener is dead for every pattern that connects to it."""
    asked = [
        f'"p{i}" pattern => "{pattern}", {said} timeout => "{scaled(1)}", endpoint => @(there),'
        f' classes => outcome("p{i}");'
        for i, (pattern, said) in enumerate(
            [("push", 'payload => "x",'), ("pull", ""), ("subscribe", ""), ("async_request", 'payload => "x",')] * 5
        )
    ]
    run, seconds = run_for(agent, "  messages:\n" + "\n".join(asked), [refused_endpoint()])
    check_rest(run, 1, 20, "unreachable")
    assert seconds < 10


def test_a_name_is_looked_up_once(agent: Agent) -> None:
    """A name that does not resolve is not asked for again in the run."""
    attributes = 'pattern => "push", payload => "x", timeout => "20"'
    started = time.monotonic()
    run = agent.run(
        many(20, attributes), vars={"there": ["tcp://nowhere.invalid:1"]}, env={"RES_OPTIONS": "timeout:1 attempts:1"}
    )
    check_rest(run, 1, 20, "unreachable")
    assert (time.monotonic() - started) / scaled(1) < 60


def test_dead_endpoints_share_one_timeout(agent: Agent, peer: Start) -> None:
    """Of ten endpoints that accept and are silent, none gets the whole timeout; each is named."""
    endpoints = [peer("tcp-silent").endpoint for _ in range(10)]
    run, seconds = run_for(agent, many(1, f'pattern => "request", payload => "x", timeout => "{scaled(2)}"'), endpoints)
    assert len(run.errors) == 1 and all(endpoint in run.errors[0] for endpoint in endpoints)
    assert seconds < 10


def test_the_one_of_many_endpoints_that_answers_is_found(agent: Agent, peer: Start) -> None:
    """Refused endpoints cost nothing while another one is left."""
    endpoints = [refused_endpoint() for _ in range(20)] + [peer("rep").endpoint]
    run, seconds = run_for(agent, many(3, 'pattern => "request", payload => "x", timeout => "60"'), endpoints)
    assert {"p0_repaired", "p1_repaired", "p2_repaired"} <= run.classes and not run.errors
    assert seconds < 15


def test_a_short_timeout_holds_for_every_pattern(agent: Agent, tmp_path: Path) -> None:
    """A hundred promises of a hundredth of a second, all bound where nobody comes, end."""
    promises = [
        f'"p{i}" pattern => "{pattern}", bind => "true", timeout => "0.01", endpoint => {quoted(f"ipc://{tmp_path}/{i}")},'
        f' classes => outcome("p{i}"){said};'
        for i, (pattern, said) in enumerate(
            [("push", ', payload => "x"'), ("pull", ""), ("subscribe", ""), ("reply", ', payload => "x"')] * 25
        )
    ]
    run, seconds = run_for(agent, "  messages:\n" + "\n".join(promises), ["tcp://127.0.0.1:1"])
    check_rest(run, 100, 100, "unreachable")
    assert seconds < 20


# ---- the end of a run


def test_a_run_with_nothing_in_flight_ends_without_a_word(agent: Agent, peer: Start) -> None:
    """Pushes that left, requests answered or not and a dead listener leave nothing to wait for or to say."""
    ends = {"push": peer("pull"), "request": peer("rep"), "async_request": peer("silent-router")}
    lines = [
        f'"{pattern}" pattern => "{pattern}", payload => "x",'
        f' timeout => "{scaled(0.5)}", endpoint => "{end.endpoint}";\n'
        for pattern, end in ends.items()
    ]
    run = agent.run("  messages:\n" + "".join(lines))
    assert len(run.errors) == 1 and not run.warnings
    assert ends["push"].wait_for(1)[0].frames == (b"x",)


def test_what_did_not_leave_is_told_at_the_end(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """A pusher whose peer does not read waits a second for it, then the agent shows a warning and ends well."""
    (tmp_path / "large").write_bytes(b"x" * (8 * 1024 * 1024))
    puller = peer("pull")
    push = f'pattern => "push", endpoint => "{puller.endpoint}", timeout => "{scaled(30)}"'
    pushes = "".join(f'"p{i}" {push}, payload_file => "{tmp_path}/large", comment => "{i}";\n' for i in range(6))
    with Gate() as gate:
        running = agent.start(f'  messages:\n"first" {push}, payload => "x";\n{gate.promise}{pushes}')
        gate.reached()
        puller.wait_for(1)
        puller.stop()
        gate.open()
        run = running.finish(timeout_s=60)
    puller.cont()
    assert {f"p{i}_sent" for i in range(6)} <= run.classes and not run.errors
    assert len(run.warnings) == 1 and "may not have left" in run.warnings[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_wait_ends_the_module(agent: Agent, peer: Start, signum: signal.Signals) -> None:
    """The module ends at once, with one line and no traceback; the agent goes on without it."""
    listener = peer("silent-router")
    running = agent.start(
        many(2, 'pattern => "request", payload => "x", timeout => "300"'), vars={"there": [listener.endpoint]}
    )
    listener.wait_for(1)
    module = module_of(running.pid)
    os.kill(module, signum)
    run = running.finish(allow_critical=True, timeout_s=60)
    assert "Traceback" not in run.output
    assert [line for line in run.stray if line] == [f"messages_promise: ended by {signum.name}"]
    assert not {"p0_kept", "p0_repaired", "p1_kept", "p1_repaired"} & run.classes


def module_of(agent_pid: int) -> int:
    """The process of the agent that runs our module."""
    with open(f"/proc/{agent_pid}/task/{agent_pid}/children") as children:
        found = [
            int(pid)
            for pid in children.read().split()
            if b"messages_promise.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
    assert len(found) == 1, found
    return found[0]
