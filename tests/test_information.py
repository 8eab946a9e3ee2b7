"""Information and views under a real cf-agent: what a node says to a cf-messaged, when not, and what it notes."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent import MODULE_PYTHON, Agent, Run, quoted
from cf_messaging.attributes import read_promise
from cf_messaging.conversations import Exchanged
from cf_messaging.exchange import Exchange
from cf_messaging.information import Information
from cf_messaging.memory import Memory, Saying, Told
from cf_messaging.patterns import Conversation
from cf_messaging.wire import Answer, Event, Message, decode_event, encode_answer, encode_event
from peers import Peer, refused_endpoint, scaled
from stand_in import StandIn
from test_dry_run import ACTION, MODES, RECORDER, imported, warnings
from test_failures import DONE, REASONS, outcome, policy

Listen = Callable[..., StandIn]

KINDS = ("static", "dynamic", "state", "common")
REMEMBERED = ("static", "dynamic", "common")
NODE = os.uname().nodename
PATIENT_S = 30


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    """Starts a listener at an endpoint that stays the same within the test; an earlier one is ended."""
    started: list[StandIn] = []

    def start(*arguments: str) -> StandIn:
        for earlier in started:
            earlier.kill()
        started.append(StandIn.start("request", "--bind", at(tmp_path), *arguments))
        return started[-1]

    yield start
    for listener in started:
        listener.kill()


def at(folder: Path) -> str:
    return f"ipc://{folder}/hub"


def says(
    kind: str, endpoint: str | Sequence[str], payload: str = '"said"', more: str = "", timeout_s: float = PATIENT_S
) -> str:
    """Attributes of a promise of information; payload: as policy writes it, "" for none."""
    places = quoted(endpoint) if isinstance(endpoint, str) else f"{{ {', '.join(map(quoted, endpoint))} }}"
    payload = f", payload => {payload}" if payload else ""
    more = f", {more}" if more else ""
    return f'information => "{kind}", endpoint => {places}, timeout => "{scaled(timeout_s)}"{payload}{more}'


def asks(view: str, endpoint: str, file: Path, more: str = "") -> str:
    """Attributes of a promise for a view."""
    more = f", {more}" if more else ""
    return f'view => "{view}", endpoint => {quoted(endpoint)}, timeout => "{scaled(PATIENT_S)}", file => "{file}"{more}'


def result(run: Run, name: str) -> tuple[str, set[str]]:
    """Outcome and result classes of the promise, the latter without their prefix."""
    suffixes = {suffix for suffix in (*REASONS, *DONE, "failed") if f"{name}_{suffix}" in run.classes}
    return outcome(run, name), suffixes


REPAIRED = ("repaired", {"delivered"})
KEPT = ("kept", {"delivered"})


def queued(reason: str) -> tuple[str, set[str]]:
    return "not_kept", {"failed", reason, "queued"}


def memory_of(agent: Agent) -> Path:
    return agent.work / "state/messages/memory.db"


def sql(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """What a statement answers in a memory file."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def waiting(agent: Agent) -> list[str]:
    """The names in the queue, in order."""
    return [name for (name,) in sql(memory_of(agent), "SELECT name FROM queue ORDER BY sequence")]


def own_error(run: Run, name: str) -> str:
    """The one error line of the run, which is of this promise and names its place; without what comes before."""
    (text,) = run.errors
    assert text.startswith(f"messages '{name}' (") and ".cf:" in text, text
    return text.partition("): ")[2]


def every_kind(endpoint: str, payload: str = '"said"', timeout_s: float = PATIENT_S) -> dict[str, str]:
    return {f"my_{kind}": says(kind, endpoint, payload, timeout_s=timeout_s) for kind in KINDS}


# ---- said, and kept


def test_every_kind(agent: Agent, listen: Listen) -> None:
    """What is new is said and repaired; unchanged it is kept and nothing is said; state is said at every evaluation."""
    listener = listen()
    first = agent.run(policy(every_kind(listener.endpoint)))
    assert {name: result(first, name) for name in every_kind("")} == dict.fromkeys(every_kind(""), REPAIRED)
    assert [event["type"] for event in listener.heard()] == [f"cfengine.messages.{kind}" for kind in KINDS]
    again = agent.run(policy(every_kind(listener.endpoint)))
    assert {name: result(again, name) for name in every_kind("")} == {
        **dict.fromkeys(every_kind(""), KEPT),
        "my_state": REPAIRED,
    }
    assert listener.stored() == [*((f"my_{kind}", "said") for kind in KINDS), ("my_state", "said")]
    assert len(listener.heard()) == 5 and not first.errors + first.warnings + again.errors + again.warnings


def test_the_event(agent: Agent, listen: Listen) -> None:
    """It carries name, value, node, place and handle; refresh in seconds where the value is remembered."""
    listener = listen()
    promises = {
        "facts": says("dynamic", listener.endpoint, '{ "b", "a" }', 'handle => "my_handle", refresh => "10"'),
        "load": says("state", listener.endpoint, '"0.5"'),
    }
    agent.run(policy(promises))
    facts, load = listener.heard()
    stream, _, sequence = facts["id"].partition("-")
    assert len(stream) == 32 and set(stream) <= set("0123456789abcdef") and sequence == "000000000001"
    assert load["id"] == f"{stream}-000000000002"
    assert facts["source"] == load["source"] == f"cfengine://{NODE}"
    assert (facts["data"], facts["datacontenttype"]) == (["b", "a"], "application/json")
    assert (load["data"], load["datacontenttype"]) == ("0.5", "text/plain")
    place = f"{agent.root}/policy-0.cf:"
    assert facts["policy"].startswith(place) and load["policy"] == f"{place}{int(facts['policy'][len(place) :]) + 1}"
    assert (facts["handle"], facts["refresh"]) == ("my_handle", 600)
    assert "handle" not in load and "refresh" not in load


def test_kept_needs_no_network(agent: Agent, listen: Listen) -> None:
    """A value that is known to be there is kept without zmq, though the listener is gone."""
    agent.install("messages_promise.py", RECORDER)
    promises = policy({kind: says(kind, listen().endpoint) for kind in REMEMBERED})
    agent.run(promises)
    assert "zmq" in imported(agent)
    listen("--silent").kill()
    run = agent.run(promises, options=["--inform"])
    assert {kind: result(run, kind) for kind in REMEMBERED} == dict.fromkeys(REMEMBERED, KEPT)
    names = imported(agent)
    assert "cf_messaging.memory" in names and not {"zmq", "cf_messaging.exchange"} & names
    assert not run.errors and not run.infos


def test_a_new_value_is_said(agent: Agent, listen: Listen) -> None:
    """Another value is repaired; the order of keys makes no other value, the order of a list does."""
    listener = listen()

    def run(payload: str) -> tuple[str, set[str]]:
        return result(agent.run(policy({"facts": says("static", listener.endpoint, payload)})), "facts")

    assert run("""'{"a": ["x", "y"], "b": "1"}'""") == REPAIRED
    assert run("""'{"a": ["x", "y"], "b": "2"}'""") == REPAIRED
    one, other = (
        """parsejson('{"a": ["x"], "b": {"c": "1", "d": "2"}}')""",
        """parsejson('{"b": {"d": "2", "c": "1"}, "a": ["x"]}')""",
    )
    assert [run(one), run(other)] == [REPAIRED, KEPT]
    assert [run('{ "x", "y" }'), run('{ "y", "x" }')] == [REPAIRED, REPAIRED]
    assert len(listener.heard()) == 5


def test_refresh(agent: Agent, listen: Listen) -> None:
    """An unchanged value is said again once it is older than refresh; younger than nine tenths of it, it is kept."""
    listener = listen()
    promises = policy({"facts": says("static", listener.endpoint, more='refresh => "100"')})
    agent.run(promises)
    sql(memory_of(agent), "UPDATE said SET at = at - 5340")
    assert result(agent.run(promises), "facts") == KEPT
    sql(memory_of(agent), "UPDATE said SET at = at - 661")
    assert result(agent.run(promises), "facts") == REPAIRED
    assert result(agent.run(promises), "facts") == KEPT
    assert len(listener.stored()) == 2


# ---- it waits


def test_a_listener_that_is_down_for_five_runs(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """Every run is not kept and queued; then all arrives, once, in order: of state every sample, else the newest."""
    endpoint = at(tmp_path)
    for number in range(5):
        run = agent.run(policy(every_kind(endpoint, f'"{number}"', 0.1)))
        for name in every_kind(""):
            assert result(run, name) == queued("unreachable")
            (text,) = [text for text in run.errors if text.startswith(f"messages '{name}' (")]
            assert f"{endpoint} unreachable: " in text
            assert re.search(r"; [1-9][0-9]* events? waits? \(oldest 0 min\)$", text)
        assert f"; {4 + number} events wait " in text
    listener = listen()
    run = agent.run(policy(every_kind(endpoint, '"4"')))
    assert {name: result(run, name) for name in every_kind("")} == {
        **dict.fromkeys(every_kind(""), REPAIRED),
        "my_common": KEPT,  # it went out before, with what waited
    }
    samples = [("my_state", str(number)) for number in range(4)]
    newest = [("my_static", "4"), ("my_dynamic", "4"), ("my_state", "4"), ("my_common", "4"), ("my_state", "4")]
    assert listener.stored() == [*samples, *newest]
    assert len(listener.heard()) == len(samples + newest) and waiting(agent) == []
    assert not run.errors


def test_the_text_of_a_backlog(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """The error says how many events wait and how old the oldest is; the run that says them, how many it said."""
    promises = {"load": says("state", at(tmp_path), timeout_s=0.1)}
    agent.run(policy(promises))
    sql(memory_of(agent), "UPDATE queue SET queued = queued - 1510")
    assert own_error(agent.run(policy(promises)), "load").endswith("; 2 events wait (oldest 25 min)")
    sql(memory_of(agent), "UPDATE queue SET queued = queued - 36000")
    listen()
    run = agent.run(policy({"load": says("state", at(tmp_path))}), options=["--inform"])
    (said,) = [text for text in run.infos if "waiting event" in text]
    assert "2 waiting events" in said and at(tmp_path) in said and "10 h old" in said
    assert result(run, "load") == REPAIRED and not run.errors
    run = agent.run(policy({"load": says("state", at(tmp_path))}), options=["--inform"])
    assert run.infos and not [text for text in run.infos if "waiting event" in text]


def test_one_waiting_event(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """One event waits, and was said, in the singular."""
    assert own_error(agent.run(policy({"a": says("state", at(tmp_path), timeout_s=0.1)})), "a").endswith(
        "; 1 event waits (oldest 0 min)"
    )
    listen()
    run = agent.run(policy({"b": says("state", at(tmp_path))}), options=["--inform"])
    (said,) = [text for text in run.infos if "waiting event" in text]
    assert "1 waiting event " in said


def test_what_waits_goes_out_whoever_speaks(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """A promise that is not kept any more leaves nothing behind: whatever waits goes out with the next word."""
    agent.run(policy({kind: says(kind, at(tmp_path), timeout_s=0.1) for kind in ("static", "state")}))
    listener = listen()
    run = agent.run(policy({"static": says("static", at(tmp_path))}))
    assert result(run, "static") == REPAIRED
    assert listener.stored() == [("static", "said"), ("state", "said")] and waiting(agent) == []


def test_a_lost_answer(agent: Agent, listen: Listen) -> None:
    """It is said again under the same id: within the run, then in the next one; the listener stores it once."""
    listener = listen("--drop-answers", "2")
    run = agent.run(policy({"facts": says("static", listener.endpoint, timeout_s=1)}))
    assert outcome(run, "facts") == "not_kept" and "facts_queued" in run.classes and waiting(agent) == ["facts"]
    run = agent.run(policy({"facts": says("static", listener.endpoint)}))
    assert result(run, "facts") == REPAIRED
    assert listener.stored() == [("facts", "said")] and len(listener.told("duplicate")) == 2
    assert len({event["id"] for event in listener.heard()}) == 1


# A listener that stores what it hears, but whose answers are as good as lost.
UNHEARD = ("--id", "of something else")


def test_a_value_that_comes_back(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """A, then B, which is stored but whose answer is lost, then A again: A is never called kept, and said at last."""
    events = str(tmp_path / "events")

    def run(value: str, timeout_s: float = PATIENT_S) -> tuple[str, set[str]]:
        return result(agent.run(policy({"facts": says("static", at(tmp_path), value, "", timeout_s)})), "facts")

    listen("--events", events)
    assert run('"A"') == REPAIRED
    listen("--events", events, *UNHEARD)
    assert run('"B"') == queued("invalid_reply")
    listen().kill()
    assert run('"A"', 0.1) == queued("unreachable")
    listen("--events", events)
    assert run('"A"') == REPAIRED and run('"A"') == KEPT
    lines = [json.loads(line) for line in Path(events).read_text().splitlines()]
    assert [line["data"] for line in sorted(lines, key=lambda line: str(line["id"]))] == ["A", "B", "A"]


def test_a_value_that_comes_back_after_it_expired(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """B was perhaps stored before it expired: A, which was acknowledged before, is said again."""
    events = str(tmp_path / "events")
    values = {value: policy({"facts": says("static", at(tmp_path), f'"{value}"')}) for value in "AB"}
    listen("--events", events)
    agent.run(values["A"])
    listen("--events", events, *UNHEARD)
    agent.run(values["B"])
    sql(memory_of(agent), "UPDATE queue SET expires = 1")
    listen("--later", "9")
    agent.run(values["B"])
    assert waiting(agent) == []
    last = listen("--events", events)
    assert result(agent.run(values["A"]), "facts") == REPAIRED
    assert last.stored() == [("facts", "A")]


def test_later(agent: Agent, listen: Listen) -> None:
    """What is put off stays, with the reason; it goes out first in the next run."""
    listener = listen("--later", "1")
    promises = policy({"load": says("state", listener.endpoint, '"$(n)"')})
    run = agent.run(promises, vars={"n": "1"})
    assert result(run, "load") == queued("refused")
    assert "the disk is full" in own_error(run, "load") and "1 event waits" in own_error(run, "load")
    run = agent.run(promises, vars={"n": "2"})
    assert result(run, "load") == REPAIRED and listener.stored() == [("load", "1"), ("load", "2")]


def test_later_is_heeded(agent: Agent, listen: Listen) -> None:
    """A listener that wants nothing for an hour is told one event in the run; the others wait with the same reason."""
    listener = listen("--later", "99", "--retry-after", "3600")
    promises = policy({name: says("state", listener.endpoint) for name in "abc"})
    run = agent.run(promises)
    assert {name: result(run, name) for name in "abc"} == dict.fromkeys("abc", queued("refused"))
    assert len(run.errors) == 3 and all("the disk is full" in text for text in run.errors)
    assert [event["subject"] for event in listener.heard()] == ["a"] and waiting(agent) == list("abc")


def test_later_is_over(agent: Agent, listen: Listen) -> None:
    """Once the time that the listener named is over, the next promise of the run says what waits too."""
    listener = listen("--later", "1", "--retry-after", "0")
    run = agent.run(policy({name: says("state", listener.endpoint) for name in "ab"}))
    assert result(run, "a") == queued("refused") and result(run, "b") == REPAIRED
    assert [name for name, _ in listener.stored()] == ["a", "b"]


def test_refused(agent: Agent, listen: Listen) -> None:
    """Refused information leaves the queue, in one error line with the reason, and is said again by the next run."""
    listener = listen("--refuse", "bad")
    promises = policy({"bad": says("static", listener.endpoint), "good": says("static", listener.endpoint)})
    run = agent.run(promises)
    assert result(run, "bad") == ("not_kept", {"failed", "refused"}) and result(run, "good") == REPAIRED
    assert "'bad' is not wanted" in own_error(run, "bad")
    assert waiting(agent) == []
    run = agent.run(promises)
    assert (result(run, "bad"), result(run, "good")) == (("not_kept", {"failed", "refused"}), KEPT)
    assert [event["subject"] for event in listener.heard()] == ["bad", "good", "bad"]


def test_refused_in_the_backlog(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """What waited and is refused is one error that names it, and tells how many; it holds up nothing."""
    for names in (("bad", "good"), ("bad",)):
        agent.run(policy({name: says("state", at(tmp_path), timeout_s=0.1) for name in names}))
    listener = listen("--refuse", "bad")
    run = agent.run(policy({"other": says("static", at(tmp_path))}))
    assert result(run, "other") == REPAIRED and waiting(agent) == []
    assert listener.stored() == [("good", "said"), ("other", "said")]
    (error,) = run.errors
    assert "messages 'bad'" in error and "refused 2 events that waited: 'bad' is not wanted" in error


def test_expired(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """What has expired is given up only after another try, in one error that names it; what is stored is none."""
    promises = policy({"load": says("state", at(tmp_path), timeout_s=0.2)})
    for _ in range(2):
        agent.run(promises)
    sql(memory_of(agent), "UPDATE queue SET expires = 1")
    listen("--later", "9")
    run = agent.run(policy({"load": says("state", at(tmp_path))}))
    assert result(run, "load") == queued("refused")
    (error,) = [text for text in run.errors if text.startswith("messages 'load': expired, 2 events ")]
    assert at(tmp_path) in error and len(run.errors) == 2
    assert waiting(agent) == ["load"]
    sql(memory_of(agent), "UPDATE queue SET expires = 1")
    listener = listen()
    run = agent.run(policy({"load": says("state", at(tmp_path))}))
    assert result(run, "load") == REPAIRED and not run.errors and len(listener.stored()) == 2


def test_the_own_value_expires(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """A promise whose own waiting value is given up says so by its class, and that it does not wait any more."""
    promises = policy({"facts": says("static", at(tmp_path), timeout_s=0.2)})
    agent.run(promises)
    sql(memory_of(agent), "UPDATE queue SET expires = 1")
    run = agent.run(promises)
    assert result(run, "facts") == ("not_kept", {"failed", "expired"}) and waiting(agent) == []
    assert "expired" in own_error(run, "facts")


def test_the_same_name_twice(agent: Agent, listen: Listen) -> None:
    """With the same value it is kept the second time; with another one it is not kept, and names the first's place."""
    listener = listen()
    run = agent.run(
        f"""
      messages:
        "facts" {says("static", listener.endpoint, '"A"')}, classes => outcome("first");
        "facts" {says("static", listener.endpoint, '"A"')}, classes => outcome("same"), handle => "b";
        "facts" {says("static", listener.endpoint, '"B"')}, classes => outcome("other");
        "facts" {says("state", listener.endpoint, '"C"')}, classes => outcome("kind");
        """
    )
    assert [outcome(run, name) for name in ("first", "same", "other", "kind")] == [
        *("repaired", "kept", "not_kept", "not_kept")
    ]
    policy_file = agent.root / "policy-0.cf"
    first = next(n for n, line in enumerate(policy_file.read_text().splitlines(), 1) if '"first"' in line)
    assert len(run.errors) == 2 and all(f"{policy_file}:{first}" in text for text in run.errors)
    assert "facts_local" in run.classes and listener.stored() == [("facts", "A")]


# ---- a listener that lost its memory, or is none


@pytest.mark.parametrize("change", [["--store", "another"], ["--have", "1"]], ids=["another store", "have"])
def test_a_listener_that_lost_its_memory(agent: Agent, listen: Listen, change: list[str]) -> None:
    """Another store id, or fewer events than it had: at the next word the node notices, and says all again."""
    promises = policy({name: says("static", listen().endpoint) for name in ("a", "b", "c")})
    agent.run(promises)
    listener = listen(*change)
    assert {name: result(agent.run(promises), name) for name in "abc"} == dict.fromkeys("abc", KEPT)
    run = agent.run(policy({"load": says("state", listener.endpoint)}), options=["--inform"])
    assert result(run, "load") == REPAIRED
    assert len([text for text in run.infos if "said again" in text]) == 1
    run = agent.run(promises)
    assert {name: result(run, name) for name in "abc"} == dict.fromkeys("abc", REPAIRED)
    assert [name for name, _ in listener.stored()] == ["load", "a", "b", "c"]


@pytest.mark.parametrize("options", [[], ["--strict"]], ids=["duplicate", "refused"])
def test_an_older_copy_of_the_memory(agent: Agent, listen: Listen, options: list[str]) -> None:
    """A node set back to an older copy uses ids again: it notices by `have`, calls delivered only what is, and says
    again what it had said before.
    """
    listener = listen(*options)
    agent.run(policy({f"old_{number}": says("static", listener.endpoint) for number in range(9)}))
    sql(memory_of(agent), "UPDATE stream SET next = 1")
    for _ in range(3):
        run = agent.run(policy({"new": says("static", listener.endpoint)}))
        has_it = ("new", "said") in listener.stored()
        assert ("new_delivered" in run.classes) <= has_it
    assert has_it and result(run, "new") == KEPT
    assert len({event["id"].split("-")[0] for event in listener.told("stored")}) == 2
    assert result(agent.run(policy({"old_0": says("static", listener.endpoint)})), "old_0") == REPAIRED


def test_a_full_queue_tells_whose_events_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of all listeners: an event for one may cost another, who is named, an older one."""
    monkeypatch.setattr("cf_messaging.memory.MAX_QUEUE_BYTES", 500)
    lines: list[str] = []
    exchange = Exchange()
    with (
        closing(exchange),
        closing(Information(exchange.converse, lambda _, text: lines.append(text), str(tmp_path))) as said,
    ):
        for endpoint in ("ipc:///first", "ipc:///second", "ipc:///second"):
            attributes = {"information": "state", "endpoint": endpoint, "payload": "x" * 300}
            promise = read_promise("load", attributes)
            promise.node = "web1"
            said.say(promise, "x" * 300, "", time.monotonic())
    assert [text for text in lines if "full" in text] == [
        f"messages: this node's queue is full: its oldest are lost, 1 for {endpoint}"
        for endpoint in ("ipc:///first", "ipc:///second")
    ]


def test_another_agent_was_faster(tmp_path: Path) -> None:
    """What another agent of this node has said meanwhile, and was told that it is stored, is delivered here too."""
    path = str(tmp_path / "messages/memory.db")
    attributes = {"information": "static", "endpoint": "ipc:///hub", "payload": "said"}
    promise = read_promise("facts", attributes)
    promise.node = "web1"

    def other_agent() -> None:
        with closing(Memory(path, print)) as memory:
            (own,) = [each for each in memory.waiting("ipc:///hub", 0, 9) if each.name == "facts"]
            memory.settle("ipc:///hub", "S", [Told(own.sequence, "web1", 0, True)], {}, time.time())

    def converse(talk: Conversation, _deadline: float) -> Exchanged:
        other_agent()
        done = Exchanged(len(talk.payloads))
        done.endpoint = "ipc:///hub"
        ids = [decode_event(payload).id for payload in talk.payloads]
        have = min(int(id[-12:]) for id in ids) - 1
        done.messages = [Message(encode_answer(Answer(id, "S", have, "stored")), b"") for id in ids]
        return done

    with closing(Memory(path, print)) as memory:
        waits = Saying("web1", "state", "load", '"x"')
        event = Event("", "state", "web1", "load", "2026-11-24T12:00:00Z", "x")
        memory.queue("ipc:///hub", waits, False, lambda id: encode_event(event._replace(id=id)), 1, 2**40)
    with closing(Information(converse, lambda _level, _text: None, str(tmp_path))) as information:
        outcome = information.say(promise, "said", "", time.monotonic())
    assert (outcome.result, outcome.suffixes) in [("repaired", ["delivered"]), ("kept", ["delivered"])], outcome.text


ODD = {
    "no JSON": (["--bytes", "Hello"], "invalid_reply"),
    "nothing": (["--bytes", ""], "invalid_reply"),
    "another id": (["--id", "other"], "invalid_reply"),
    "a view's status": (["--status", "answered"], "invalid_reply"),
    "unknown status": (["--status", "eaten"], "invalid_reply"),
    "have is huge": (["--have", "9" * 30], "invalid_reply"),
    "have is negative": (["--have", "-1"], "invalid_reply"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_listener(agent: Agent, listen: Listen, case: str) -> None:
    """An answer that is none: not kept, invalid, and it waits; a view is not kept either. The run goes on."""
    options, reason = ODD[case]
    (agent.root / "rows").write_text("[]")
    listener = listen(*options, "--rows", str(agent.root / "rows"))
    file = agent.root / "view"
    run = agent.run(policy({"facts": says("static", listener.endpoint), "view": asks("all", listener.endpoint, file)}))
    assert result(run, "facts") == queued(reason) and waiting(agent) == ["facts"]
    if case not in ("a view's status", "have is huge", "have is negative"):
        assert result(run, "view") == ("not_kept", {"failed", reason}) and not file.exists()
    assert len([text for text in run.errors if "'facts'" in text]) == 1


def test_a_value_that_no_listener_can_read(agent: Agent, listen: Listen) -> None:
    """Nested too deeply, too large, or no JSON: not kept and local, in words; it does not stand in the others' way."""
    listener = listen()
    texts = {
        "deep": b"[" * 70 + b"]" * 70,
        "large": b"x" * (1024 * 1024),
        "number": b"[1e999]",
        "bytes": b"\xff",
    }
    for name, text in texts.items():
        (agent.root / name).write_bytes(text)
    promises = {name: says("static", listener.endpoint, "", f'payload_file => "{agent.root}/{name}"') for name in texts}
    run = agent.run(policy({**promises, "missing": says("static", listener.endpoint, "", 'payload_file => "/none"')}))
    for name in (*texts, "missing"):
        assert result(run, name) == ("not_kept", {"failed", "local"}), name
    assert len(run.errors) == 5 and listener.heard() == [] and waiting(agent) == []
    assert result(agent.run(policy({"good": says("static", listener.endpoint)})), "good") == REPAIRED


# ---- the value


def test_values(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """A string, a list, a container and a file are one value each; an empty list too; UTF-8 stays what it is."""
    listener = listen()
    (tmp_path / "object").write_text('{"b": [1, 2.5, true, null, 9223372036854775808], "a": "\\u00e9"}')
    (tmp_path / "text").write_text("line 1\nline é\n")
    promises = {
        "text": says("static", listener.endpoint, '"é ü 日本"'),
        "nothing": says("static", listener.endpoint, '""'),
        "list": says("static", listener.endpoint, '{ "é", "b" }'),
        "one": says("static", listener.endpoint, '{ "é" }'),
        "empty": says("static", listener.endpoint, "{ }"),
        "container": says("static", listener.endpoint, """parsejson('{"é": {"n": "1"}}')"""),
        "object_file": says("static", listener.endpoint, "", f'payload_file => "{tmp_path}/object"'),
        "text_file": says("static", listener.endpoint, "", f'payload_file => "{tmp_path}/text"'),
    }
    run = agent.run(policy(promises))
    assert not run.errors and {name: outcome(run, name) for name in promises} == dict.fromkeys(promises, "repaired")
    assert dict(listener.stored()) == {
        "text": "é ü 日本",
        "nothing": "",
        "list": ["é", "b"],
        "one": ["é"],
        "empty": [],
        "container": {"é": {"n": "1"}},
        "object_file": {"a": "é", "b": [1, 2.5, True, None, 9223372036854775808]},
        "text_file": "line 1\nline é\n",
    }
    again = agent.run(policy(promises))
    assert {name: outcome(again, name) for name in promises} == dict.fromkeys(promises, "kept")


def test_names(agent: Agent, listen: Listen) -> None:
    """A name may be any text; one of 201 bytes or with a control character is refused by validation."""
    listener = listen()
    names = ["two words", "é/日本", "a:b", "x" * 200, "?'; --"]
    run = agent.run(policy({**{name: says("static", listener.endpoint) for name in (*names, "x" * 201, "a\tb")}}))
    assert [name for name, _ in listener.stored()] == names
    assert len(run.errors) == 2 and all("names the information" in text for text in run.errors)


def test_3_27(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """cf-agent 3.27 writes each byte of UTF-8 as a code point of its own: name and value arrive as they were meant."""
    listener = listen()
    attributes = {
        "information": "static",
        "endpoint": listener.endpoint,
        "payload": ["é", "日本"],
        "state_dir": str(tmp_path),
        "node": "n1",
    }
    request = {"operation": "evaluate_promise", "log_level": "info", "promiser": "é", "attributes": attributes}
    line = re.sub(
        r"[^\x00-\x7f]", lambda char: "".join(f"\\u00{byte:02x}" for byte in char[0].encode()), as_json(request)
    )
    sent = f"cf-agent 3.27.0 v1\n\n{line}\n\n" + as_json({"operation": "terminate"}) + "\n\n"
    command = [MODULE_PYTHON, str(agent.work / "modules/promises/messages_promise.py")]
    done = subprocess.run(command, input=sent.encode(), capture_output=True, check=False, timeout=scaled(60))
    assert b'"result": "repaired"' in done.stdout or b'"result":"repaired"' in done.stdout, done
    assert listener.stored() == [("é", ["é", "日本"])]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- node, state_dir, endpoints


def test_node(agent: Agent, listen: Listen) -> None:
    """The node is named by the attribute; what is acknowledged of one is not of another, in the same run too."""
    listener = listen()
    one, other = (says("static", listener.endpoint, more=f'node => "{node}"') for node in ("n1", "n2.example.org"))
    assert result(agent.run(policy({"facts": one})), "facts") == REPAIRED
    run = agent.run(
        f'messages: "facts" {one}, classes => outcome("one"); "facts" {other}, classes => outcome("other");'
    )
    assert [outcome(run, name) for name in ("one", "other")] == ["kept", "repaired"]
    assert [event["source"] for event in listener.told("stored")] == ["cfengine://n1", "cfengine://n2.example.org"]


def test_two_nodes_with_values_of_their_own(agent: Agent, listen: Listen) -> None:
    """The same name is the information of each node: two nodes in one run are no contradiction."""
    listener = listen()
    lines = [
        f'"facts" {says("dynamic", listener.endpoint, quoted(node), f"""node => "{node}" """)},'
        f' classes => outcome("{node}");'
        for node in ("n1", "n2")
    ]
    for word in ("repaired", "kept"):
        run = agent.run("messages: " + "\n".join(lines))
        assert [outcome(run, name) for name in ("n1", "n2")] == [word, word], run.output
    assert listener.stored() == [("facts", "n1"), ("facts", "n2")]


def test_state_dir(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """The memory lives below it, made where it is missing, for its owner alone; by default in the work directory."""
    listener = listen()
    promises = {
        "here": says("static", listener.endpoint, more=f'state_dir => "{tmp_path}/my/state"'),
        "default": says("static", listener.endpoint),
    }
    assert not agent.run(policy(promises)).errors
    for path, name in ((tmp_path / "my/state/messages/memory.db", "here"), (memory_of(agent), "default")):
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        assert sql(path, "SELECT name FROM said") == [(name,)]
    assert {name: result(agent.run(policy(promises)), name) for name in promises} == dict.fromkeys(promises, KEPT)


def test_a_state_dir_that_cannot_be(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """Where no memory can be made nothing is said: not kept, local, naming the file."""
    (tmp_path / "file").write_text("")
    listener = listen()
    run = agent.run(policy({"facts": says("static", listener.endpoint, more=f'state_dir => "{tmp_path}/file"')}))
    assert result(run, "facts") == ("not_kept", {"failed", "local"}) and listener.heard() == []
    assert f"{tmp_path}/file/messages/memory.db" in own_error(run, "facts")


def test_several_endpoints(agent: Agent, listen: Listen) -> None:
    """They are one service: the first that is there is told, and what it has is not said to another one."""
    listener = listen()
    places = [refused_endpoint(), listener.endpoint]
    promises = policy({"facts": says("static", places, timeout_s=2), "load": says("state", places, timeout_s=2)})
    run = agent.run(promises)
    assert (result(run, "facts"), result(run, "load")) == (REPAIRED, REPAIRED)
    run = agent.run(promises)
    assert (result(run, "facts"), result(run, "load")) == (KEPT, REPAIRED)
    assert [name for name, _ in listener.stored()] == ["facts", "load", "load"]


def test_services_are_apart(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """What one service has acknowledged another one has not; what waits for one does not go to the other."""
    listener = listen()
    with StandIn.start("request", "--store", "second store") as other:
        agent.run(policy({"facts": says("static", listener.endpoint)}))
        run = agent.run(
            f"""
          messages:
            "load" {says("state", f"ipc://{tmp_path}/gone", timeout_s=0.1)}, classes => outcome("gone");
            "facts" {says("static", other.endpoint)}, classes => outcome("other");
            """
        )
        assert (outcome(run, "gone"), outcome(run, "other")) == ("not_kept", "repaired")
        assert other.stored() == [("facts", "said")]
    assert result(agent.run(policy({"facts": says("static", listener.endpoint)})), "facts") == KEPT


# ---- patterns


def test_request(agent: Agent, listen: Listen) -> None:
    """By the pattern request as by async_request."""
    listener = listen()
    promises = policy({kind: says(kind, listener.endpoint, more='pattern => "request"') for kind in KINDS})
    assert {kind: result(agent.run(promises), kind) for kind in ("static",)} == {"static": REPAIRED}
    assert [name for name, _ in listener.stored()] == list(KINDS)


@pytest.mark.parametrize(
    ("pattern", "kind", "topic"), [("push", "pull", 0), ("publish", "sub", 1), ("pair", "pair-silent", 0)]
)
def test_unacknowledged_state(agent: Agent, peer: Callable[..., Peer], pattern: str, kind: str, topic: int) -> None:
    """State by push, publish and pair is said at each evaluation, sent, with an id of its own, and never queued."""
    listener = peer(kind)
    promises = policy({"load": says("state", listener.endpoint, '"0.5"', f'pattern => "{pattern}", node => "n1"')})
    for _ in range(2):
        assert result(agent.run(promises), "load") == ("repaired", {"sent"})
    frames = [event.frames for event in listener.wait_for(2)]
    assert [each[:topic] for each in frames] == [(b"state/load/n1/",)[:topic]] * 2
    events = [json.loads(each[topic]) for each in frames]
    assert [(event["subject"], event["data"], event["type"]) for event in events] == [
        ("load", "0.5", "cfengine.messages.state")
    ] * 2
    assert len({event["id"] for event in events}) == 2 and waiting(agent) == []


@pytest.mark.parametrize("pattern", ["push", "publish", "pair"])
def test_unacknowledged_state_is_never_queued(agent: Agent, pattern: str) -> None:
    """Where nobody is there it is not kept, and does not wait."""
    promises = {"load": says("state", refused_endpoint(), more=f'pattern => "{pattern}"', timeout_s=0.1)}
    run = agent.run(policy(promises))
    assert result(run, "load") == ("not_kept", {"failed", "unreachable"})
    assert "wait" not in own_error(run, "load") and waiting(agent) == []


# ---- views


ROWS = [{"node": "web1", "data": "up", "age_s": 1.5}, {"node": "web2", "data": ["é"], "age_s": 7}]


def test_a_view(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """Its rows are written, repaired; unchanged it is kept; policy reads them; the question carries the parameters."""
    rows, file = tmp_path / "rows", tmp_path / "view.json"
    rows.write_text(json.dumps(ROWS))
    listener = listen("--rows", str(rows))
    more = """parameters => '{"name": "web", "n": 7}', node => "n1" """
    promises = policy({"servers": asks("latest", listener.endpoint, file, more)})
    assert result(agent.run(promises), "servers") == ("repaired", {"delivered", "received"})
    before = file.stat()
    assert result(agent.run(promises), "servers") == ("kept", {"delivered", "received"})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert json.loads(file.read_text()) == ROWS and file.stat().st_mode & 0o777 == 0o600
    question = listener.heard()[0]
    assert (question["type"], question["subject"]) == ("cfengine.messages.view", "latest")
    assert (question["data"], question["source"]) == ({"name": "web", "n": 7}, "cfengine://n1")
    assert question["datacontenttype"] == "application/json"
    assert len({event["id"] for event in listener.heard()}) == 2
    rows.write_text("[]")
    run = agent.run(read_back("servers", file) + promises)
    assert result(run, "servers") == ("repaired", {"delivered", "received"}) and json.loads(file.read_text()) == []
    assert run.reports == ["0 rows"]
    assert not (agent.work / "state/messages").exists()  # views need no memory


def read_back(name: str, file: Path) -> str:
    """Sections in which policy reads the view in the same run, and reports how many rows it has."""
    return f"""
      vars:
        {name}_received::
          "rows" data => readjson("{file}");
          "values" slist => getvalues("rows");
          "length" int => length("rows");
      reports:
        {name}_received::
          "$(length) rows";
      """


def test_default_parameters(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """Without parameters it is an empty object; a container is one too; by request as by async_request."""
    (tmp_path / "rows").write_text("[]")
    listener = listen("--rows", str(tmp_path / "rows"))
    promises = {
        "none": asks("nodes", listener.endpoint, tmp_path / "a"),
        "container": asks("nodes", listener.endpoint, tmp_path / "b", """parameters => parsejson('{"é": ["1"]}')"""),
        "request": asks("nodes", listener.endpoint, tmp_path / "c", 'pattern => "request"'),
    }
    run = agent.run(policy(promises))
    assert {outcome(run, name) for name in promises} == {"repaired"}
    assert [event["data"] for event in listener.heard()] == [{}, {"é": ["1"]}, {}]


def test_unsafe_values_in_a_view(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """What cf-agent cannot read, or would expand, becomes null or text; a warning names the node; the rest is there."""
    (tmp_path / "rows").write_text(
        '[{"node": "evil", "data": "$(sys.workdir)", "more": {"a": ["@{x}"]}, "key": {"${x}": 1}, "nul": "\\u0000"},'
        ' {"node": "big", "data": 9223372036854775808, "small": 1e-05, "ok": "x"},'
        ' {"node": "bad\\nline", "$(column)": 1, "data": "fine"}' + ', {"node": "many", "data": "$(x)"}' * 9 + "]"
    )
    listener, file = listen("--rows", str(tmp_path / "rows")), tmp_path / "view"
    run = agent.run(read_back("all", file) + policy({"all": asks("latest", listener.endpoint, file)}))
    assert result(run, "all") == ("repaired", {"delivered", "received"})
    evil, big, bad, *many = json.loads(file.read_text())
    assert evil == {"node": "evil", "data": None, "more": None, "key": None, "nul": None}
    assert big == {"node": "big", "data": "9223372036854775808", "small": "1e-05", "ok": "x"}
    assert bad["data"] == "fine" and not re.search(r"[$@][({]", file.read_text())
    assert len([text for text in run.warnings if "'evil'" in text and "view 'latest'" in text]) == 4
    assert len([text for text in run.warnings if "'data' of node 'many'" in text and "9 times" in text]) == 1
    assert many == [{"node": "many", "data": None}] * 9
    assert len(run.warnings) == 6 and run.reports == ["12 rows"] and not run.errors


def test_a_refused_view(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """A view that is refused or put off is not kept, with the reason; the file stays as it was."""
    file = tmp_path / "view"
    file.write_text("as it was")
    promises = {"secret": asks("secret", listen("--refuse", "secret").endpoint, file)}
    run = agent.run(policy(promises))
    assert result(run, "secret") == ("not_kept", {"failed", "refused"})
    assert "'secret' is not wanted" in own_error(run, "secret")
    listen("--later", "1")
    run = agent.run(policy(promises))
    assert outcome(run, "secret") == "not_kept" and "the disk is full" in own_error(run, "secret")
    listen("--status", "stored")
    run = agent.run(policy(promises))
    assert result(run, "secret") == ("not_kept", {"failed", "invalid_reply"})
    assert file.read_text() == "as it was"


def test_a_question_that_no_event_can_carry(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """Parameters without JSON text, too large or too deep: not kept and local, no bug of the module."""
    listener = listen()
    texts = {"nan": '{"a": NaN}', "large": json.dumps({"a": "x" * 1024 * 1024}), "infinite": '{"a": 1e999}'}
    texts["deep"] = '{"a": ' + "[" * 70 + "]" * 70 + "}"
    promises = {
        name: asks("nodes", listener.endpoint, tmp_path / name, f"parameters => {quoted(text)}")
        for name, text in texts.items()
    }
    run = agent.run(policy(promises))
    for name in texts:
        assert outcome(run, name) == "not_kept", name
    assert listener.heard() == []


def test_a_view_where_nobody_listens(agent: Agent, tmp_path: Path) -> None:
    """It is not kept, does not wait, and leaves no memory behind."""
    run = agent.run(policy({"v": asks("nodes", at(tmp_path), tmp_path / "f").replace(f"{scaled(PATIENT_S)}", "0.1")}))
    assert result(run, "v") == ("not_kept", {"failed", "unreachable"}) and "wait" not in own_error(run, "v")
    assert not (tmp_path / "f").exists() and not (agent.work / "state/messages").exists()


# ---- validation


HUB = "tcp://hub:5309"
FORBIDDEN = {
    "bind": ('information => "static", payload => "x", bind => "true"', ["'bind'", "'information'"]),
    "topic": ('information => "static", payload => "x", topic => "t"', ["'topic'", "'information'", "publish"]),
    "file": ('information => "static", payload => "x", file => "/f"', ["'file'", "'information'"]),
    "format": ('information => "static", payload => "x", format => "json"', ["'format'", "'information'"]),
    "count": ('information => "state", payload => "x", count => "2"', ["'count'", "'information'"]),
    "expect": ('information => "static", payload => "x", expect => "x"', ["'expect'", "'information'"]),
    "retries": ('information => "static", payload => "x", retries => "1"', ["'retries'", "'information'"]),
    "subscribers": (
        'information => "state", pattern => "publish", payload => "x", subscribers => "2"',
        ["'subscribers'", "'information'"],
    ),
    "refresh of state": ('information => "state", payload => "x", refresh => "5"', ["'refresh'", "state"]),
    "no payload": ('information => "static"', ["'information'", "'payload'", "'payload_file'"]),
    "both payloads": ('information => "static", payload => "x", payload_file => "/x"', ["'payload_file'", "'payload'"]),
    "kind": ('information => "dynamik", payload => "x"', ["'information'", "did you mean 'dynamic'", "static"]),
    "refresh 0": ('information => "static", payload => "x", refresh => "0"', ["'refresh'", "allowed"]),
    "expire": ('information => "static", payload => "x", expire => "43201"', ["'expire'", "43200"]),
    "node": ('information => "static", payload => "x", node => "a b"', ["'node'", "'a b'"]),
    "state_dir": ('information => "static", payload => "x", state_dir => "state"', ["'state_dir'", "absolute path"]),
    "beyond this machine": ('information => "static", payload => "x"', ["'endpoint'", HUB, "'curve' is needed"]),
    "view beyond this machine": ('view => "v", file => "/f"', ["'endpoint'", HUB, "'curve' is needed"]),
    "view with payload": ('view => "v", file => "/f", payload => "x"', ["'payload'", "'view'"]),
    "view without file": ('view => "v"', ["'view'", "'file'"]),
    "view with bind": ('view => "v", file => "/f", bind => "true"', ["'bind'", "'view'"]),
    "view with refresh": ('view => "v", file => "/f", refresh => "1"', ["'refresh'", "'view'"]),
    "view by push": ('view => "v", file => "/f", pattern => "push"', ["'pattern'", "async_request", "request"]),
    "view and information": ('view => "v", information => "static", payload => "x"', ["'view'", "'information'"]),
    "parameters alone": ('pattern => "request", payload => "x", parameters => "{}"', ["'parameters'", "view"]),
    "parameters": ('view => "v", file => "/f", parameters => "seven"', ["'parameters'", "'seven'", "object"]),
    "refresh alone": ('pattern => "push", payload => "x", refresh => "1"', ["'refresh'", "'push'", "information"]),
    "node alone": ('pattern => "push", payload => "x", node => "n"', ["'node'", "'push'", "information", "view"]),
    **{
        f"{kind} by {pattern}": (
            f'information => "{kind}", payload => "x", pattern => "{pattern}"',
            ["'pattern'", f"'{pattern}'", "async_request", "request"],
        )
        for kind in KINDS
        for pattern in ("reply", "async_reply", "subscribe", "pull", "push", "publish", "pair")
        if kind != "state" or pattern not in ("push", "publish", "pair")
    },
    **{
        f"expire by {pattern}": (
            f'information => "state", payload => "x", expire => "5", pattern => "{pattern}"',
            ["'expire'", f"'{pattern}'"],
        )
        for pattern in ("push", "publish", "pair")
    },
}


def test_forbidden_combinations(agent: Agent) -> None:
    """Each is one error that names promise, attribute and what is allowed, and the only thing that happens."""
    names = {name: name.replace(" ", "_") for name in FORBIDDEN}
    run = agent.run(policy({names[name]: f'{text}, endpoint => "{HUB}"' for name, (text, _) in FORBIDDEN.items()}))
    assert len(run.errors) == len(FORBIDDEN)
    for name, (_, words) in FORBIDDEN.items():
        assert outcome(run, names[name]) == "not_kept"
        (error,) = [text for text in run.errors if f" promiser '{names[name]}' (" in text]
        assert all(word in error for word in words), (name, error)
        assert not re.search(r"(goes with|allowed are) *(,|for|$)", error), (name, error)
    assert not memory_of(agent).exists()


# ---- dry runs


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Whatever is made, written or removed below the folder changes this."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("mode", MODES)
def test_dry_run(agent: Agent, listen: Listen, tmp_path: Path, mode: str) -> None:
    """Nothing is said or written, the memory and the folder around it included; what is acknowledged is kept."""
    more, options = MODES[mode]
    listener, state = listen(), tmp_path / "state"
    state.mkdir()
    place = f'state_dir => "{state}"'

    def promises(value: str, more: str) -> str:
        told = {name: text + more for name, text in every_kind(listener.endpoint, value).items()}
        told = {name: f"{text}, {place}" for name, text in told.items()}
        return policy({**told, "my_view": asks("nodes", listener.endpoint, tmp_path / "view") + more})

    fresh = agent.run(promises('"A"', more), before=ACTION, options=options)
    assert {name: outcome(fresh, name) for name in (*every_kind(""), "my_view")} == dict.fromkeys(
        (*every_kind(""), "my_view"), "not_kept"
    )
    assert len(warnings(fresh)) == 5 and all(text.endswith(", but only warnings promised") for text in warnings(fresh))
    assert list(state.iterdir()) == [] and listener.heard() == [] and not fresh.errors
    agent.run(policy({name: f"{text}, {place}" for name, text in every_kind(listener.endpoint, '"A"').items()}))
    before, heard = everything(state), len(listener.heard())
    same = agent.run(promises('"A"', more), before=ACTION, options=options)
    assert [outcome(same, f"my_{kind}") for kind in KINDS] == ["kept", "kept", "not_kept", "kept"]
    assert not {name for name in same.classes if re.search("_(delivered|failed|queued)$", name)}
    other = agent.run(promises('"B"', more), before=ACTION, options=options)
    assert [outcome(other, f"my_{kind}") for kind in KINDS] == ["not_kept"] * 4
    assert everything(state) == before and len(listener.heard()) == heard and not (tmp_path / "view").exists()


# ---- the memory


def test_a_damaged_memory(agent: Agent, listen: Listen) -> None:
    """It is set aside with one error that names both files; all is said again, and the run goes on."""
    listener = listen()
    promises = policy({"facts": says("static", listener.endpoint)})
    agent.run(promises)
    memory_of(agent).write_bytes(b"no database" * 1000)
    run = agent.run(promises)
    assert result(run, "facts") == REPAIRED and len(listener.stored()) == 2
    aside = memory_of(agent).with_name("memory.db.damaged-1")
    (error,) = run.errors
    assert (
        "/state/messages/memory.db is damaged" in error
        and "/memory.db.damaged-1" in error
        and aside.read_bytes() == b"no database" * 1000
    )
    assert result(agent.run(promises), "facts") == KEPT


def test_a_newer_memory(agent: Agent, listen: Listen) -> None:
    """It is left alone, and the promise is not kept."""
    listener = listen()
    promises = policy({"facts": says("static", listener.endpoint)})
    agent.run(promises)
    sql(memory_of(agent), "PRAGMA user_version = 99")
    before = memory_of(agent).read_bytes()
    run = agent.run(promises)
    assert result(run, "facts") == ("not_kept", {"failed", "local"}) and "newer" in own_error(run, "facts")
    assert memory_of(agent).read_bytes() == before and len(listener.heard()) == 1


def test_a_damaged_event_in_the_queue(agent: Agent, listen: Listen, tmp_path: Path) -> None:
    """An event that is no event any more is refused by the listener; it does not stand in the others' way for ever."""
    agent.run(policy({"a": says("state", at(tmp_path), timeout_s=0.1)}))
    sql(memory_of(agent), "UPDATE queue SET event = x'7b7d'")
    listener = listen()
    for _ in range(2):
        run = agent.run(policy({"b": says("state", at(tmp_path))}))
        assert not run.critical
    assert result(run, "b") == REPAIRED and ("b", "said") in listener.stored()


def test_a_thousand_promises(agent: Agent, listen: Listen) -> None:
    """All are said in one run, in their order; unchanged, all are kept in the next, and nothing is said."""
    listener = listen()
    promises = f"""
      vars: "n" slist => expandrange("[0-999]", 1);
      messages:
        "fact $(n)" {says("static", listener.endpoint, '"value $(n)"')}, classes => outcome("done");
      """
    first = agent.run(promises)
    assert not first.errors and "done_repaired" in first.classes and "done_kept" not in first.classes
    assert sorted(listener.stored()) == sorted((f"fact {n}", f"value {n}") for n in range(1000))
    second = agent.run(promises)
    assert "done_kept" in second.classes and "done_repaired" not in second.classes
    assert len(listener.heard()) == 1000
