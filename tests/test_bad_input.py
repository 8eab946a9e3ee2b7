"""Promises that cannot be kept as they are written, under a real cf-agent: one clear error, and the others go on."""

from __future__ import annotations

import io
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import Agent, Run, quoted
from cf_messaging.promise import MessagesPromise
from cf_messaging.wire import MAX_PAYLOAD_BYTES
from peers import Peer, refused_endpoint

HUB = 'endpoint => "tcp://127.0.0.1:9"'
PATTERNS = ("request", "reply", "async_request", "async_reply", "publish", "subscribe", "push", "pull", "pair")
SPEAKING = {"request", "reply", "async_request", "async_reply", "publish", "push"}

# attribute, in policy: the patterns that it does not go with, by the design's table.
REFUSED_WITH = {
    'payload => "seventeen"': {"subscribe", "pull"},
    'payload_file => "/seventeen"': {"subscribe", "pull"},
    'topic => "seventeen"': set(PATTERNS) - {"publish", "subscribe"},
    'file => "/seventeen"': {"publish", "push"},
    'format => "text"': {"publish", "push"},
    'count => "17"': {"request", "async_request", "publish", "push"},
    'expect => "seventeen"': set(PATTERNS) - {"request", "async_request", "pair"},
    'retries => "17"': set(PATTERNS) - {"request", "async_request"},
    'subscribers => "17"': set(PATTERNS) - {"publish"},
}


class Case(NamedTuple):
    """attributes: of the promise, as policy. names: what the error line must name."""

    attributes: str
    names: tuple[str, ...]
    reason: str = ""  # of a promise that is sound by itself, so that the trouble is seen only when it is to be kept


def push(attributes: str) -> str:
    return f'pattern => "push", {HUB}, payload => "x", {attributes}'


def pull(attributes: str) -> str:
    return f'pattern => "pull", {HUB}, {attributes}'


def said(pattern: str) -> str:
    """What this pattern cannot do without."""
    return f'pattern => "{pattern}", {HUB}' + (', payload => "x"' if pattern in SPEAKING else "")


def combinations() -> Iterator[tuple[str, Case]]:
    for attribute, patterns in REFUSED_WITH.items():
        name, value = re.findall(r"\w+", attribute)
        for pattern in sorted(patterns):
            allowed = tuple(set(PATTERNS) - patterns)
            yield f"{name}_with_{pattern}", Case(f"{said(pattern)}, {attribute}", (name, value, pattern, *allowed))


def endpoints() -> Iterator[tuple[str, Case]]:
    wrong = "hub hub:5309 tcp://hub tcp://hub:0 tcp://hub:65536 tcp://hub:x tcp://::1:5309 udp://hub:1 ipc://relative"
    for number, endpoint in enumerate([*wrong.split(), ""]):
        attributes = f'pattern => "pull", endpoint => {quoted(endpoint)}'
        yield f"endpoint_{number}", Case(attributes, ("endpoint", f"'{endpoint}'"))


CASES = {
    "unknown_attribute": Case(push('payloda => "seventeen"'), ("payloda", "seventeen", "did you mean 'payload'")),
    "far_attribute": Case(push('zzz => "seventeen"'), ("zzz", "seventeen", "payload_file", "timeout")),
    "unknown_pattern": Case(f'pattern => "pubilsh", {HUB}', ("pattern", "pubilsh", "did you mean 'publish'")),
    "far_pattern": Case(f'pattern => "zzz", {HUB}', ("pattern", "zzz", *PATTERNS)),
    "no_pattern": Case(HUB, ("pattern", *PATTERNS)),
    "no_endpoint": Case('pattern => "pull"', ("endpoint",)),
    "no_payload": Case(f'pattern => "push", {HUB}', ("push", "payload", "payload_file")),
    "pattern_is_list": Case(f'pattern => {{ "push" }}, {HUB}', ("pattern", "['push']", *PATTERNS)),
    "pattern_is_object": Case(f"pattern => @(object), {HUB}", ("pattern", "{'a': 'b'}", *PATTERNS)),
    "endpoint_is_object": Case('pattern => "pull", endpoint => @(object)', ("endpoint", "{'a': 'b'}")),
    "endpoint_list_is_empty": Case('pattern => "pull", endpoint => {}', ("endpoint", "[]", "at least one")),
    "endpoint_container_is_empty": Case(
        'pattern => "pull", endpoint => @(nothing)', ("endpoint", "[]", "at least one")
    ),
    "one_of_the_endpoints": Case(
        'pattern => "pull", endpoint => { "tcp://a:1", "hub:1" }', ("endpoint", "hub:1", "tcp://host:port")
    ),
    "two_to_bind": Case(
        'pattern => "pull", endpoint => { "tcp://a:1", "tcp://b:1" }, bind => "true"',
        ("endpoint", "bind", "tcp://b:1", "exactly one"),
    ),
    "any_host": Case('pattern => "pull", endpoint => "tcp://*:5309"', ("endpoint", "tcp://*:5309", "bind")),
    "bind": Case(pull('bind => "maybe"'), ("bind", "maybe", "true", "false", "yes", "no", "on", "off")),
    "payload_twice": Case(push('payload_file => "/seventeen"'), ("payload", "payload_file", "exactly one")),
    "relative_payload_file": Case(
        f'pattern => "push", {HUB}, payload_file => "etc/x"', ("payload_file", "etc/x", "absolute")
    ),
    "payload_file_is_list": Case(
        f'pattern => "push", {HUB}, payload_file => {{ "/a", "/b" }}', ("payload_file", "['/a', '/b']", "absolute")
    ),
    "relative_file": Case(pull('file => "answer"'), ("file", "answer", "absolute")),
    "file_is_list": Case(pull('file => { "/a" }'), ("file", "['/a']", "absolute")),
    "format": Case(pull('file => "/a", format => "xml"'), ("format", "xml", "text", "json")),
    "format_without_file": Case(pull('format => "json"'), ("format", "json", "file")),
    "topic_is_list": Case(
        f'pattern => "subscribe", {HUB}, topic => {{ "a", "b" }}', ("topic", "['a', 'b']", "text without NUL")
    ),
    "topic_is_long": Case(f'pattern => "subscribe", {HUB}, topic => "{"x" * 1025}"', ("topic", "xxxx", "1024")),
    "count_is_negative": Case(pull('count => "-1"'), ("count", "-1", "0", "1000000")),
    "count_is_list": Case(pull('count => { "1" }'), ("count", "['1']", "1000000")),
    "count_is_real": Case(pull('count => "1.5"'), ("count", "1.5", "decimal digits")),
    "count_is_object": Case(pull("count => @(object)"), ("count", "{'a': 'b'}", "1000000")),
    "count_of_pair": Case(
        f'pattern => "pair", {HUB}, payload => "x", count => "17"', ("count", "17", "pair", "payload")
    ),
    "expect_of_pair": Case(
        f'pattern => "pair", {HUB}, expect => "seventeen"', ("expect", "seventeen", "pair", "payload")
    ),
    "expect": Case(f'{said("request")}, expect => "(seventeen"', ("expect", "(seventeen", "regular expression")),
    "timeout_is_nothing": Case(push('timeout => "0"'), ("timeout", "'0'", "0.01", "300")),
    "timeout_is_a_year": Case(push('timeout => "31536000"'), ("timeout", "31536000", "0.01", "300")),
    "timeout_is_negative": Case(push('timeout => "-5"'), ("timeout", "-5", "0.01", "300")),
    "timeout_is_text": Case(push('timeout => "soon"'), ("timeout", "soon", "0.01", "300")),
    "retries": Case(f'{said("request")}, retries => "101"', ("retries", "101", "100")),
    "subscribers": Case(f'{said("publish")}, subscribers => "0"', ("subscribers", "'0'", "1")),
    **dict(endpoints()),
    **dict(combinations()),
    **{
        f"payload_file_is_{what}": Case(
            f'pattern => "push", {HUB}, payload_file => "$(dir)/{what}"', ("payload_file", f"/{what}", words), "local"
        )
        for what, words in {
            "missing": "No such file",
            "directory": "irectory",
            "large": str(MAX_PAYLOAD_BYTES),
            "fifo": "regular file",
        }.items()
    },
}


class Bad(NamedTuple):
    """One run of all the cases, between each two of which a sound promise says its number to a peer."""

    run: Run
    policy: Path
    heard: list[tuple[bytes, ...]]

    def named(self, case: str) -> str:
        """The promise as the error line names it."""
        lines = self.policy.read_text("utf-8").splitlines()
        number = next(number for number, line in enumerate(lines, start=1) if f'"bad {case}"' in line)
        return f"'bad {case}' ({self.policy}:{number})"

    def classes(self, prefix: str) -> set[str]:
        return {name.removeprefix(prefix) for name in self.run.classes if name.startswith(prefix)}


@pytest.fixture(scope="module")
def bad(agent_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Bad:
    """The run; an outcome is CASE__OUTCOME, a result class bad_CASE_SUFFIX."""
    root = tmp_path_factory.mktemp("bad")
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    with (root / "large").open("wb") as file:
        file.truncate(MAX_PAYLOAD_BYTES + 1)
    promises = """
      vars:
        "object" data => '{"a": "b"}';
        "nothing" data => '[]';
      messages:
    """
    for number, (name, case) in enumerate(CASES.items()):
        promises += f'"good_{number}" pattern => "push", endpoint => "$(peer)", payload => "{number}";\n'
        promises += f'"bad {name}" {case.attributes}, classes => outcome("{name}_");\n'
    promises += '"good_last" pattern => "push", endpoint => "$(peer)", payload => "last", classes => outcome("last");\n'
    agent = Agent(root / "agent", agent_template)
    with Peer.start("pull") as peer:
        run = agent.run(promises, vars={"peer": peer.endpoint, "dir": str(root)})
        peer.wait_for(len(CASES) + 1)
        return Bad(run, root / "agent/policy-0.cf", peer.received)


def test_the_other_promises_go_on(bad: Bad) -> None:
    """Before, between and after the bad ones, every sound promise is repaired and arrives."""
    assert bad.heard == [(b"%d" % number,) for number in range(len(CASES))] + [(b"last",)]
    assert {f"good_{number}_sent" for number in range(len(CASES))} <= bad.run.classes
    assert {"last_repaired", "good_last_sent"} <= bad.run.classes


def test_nothing_else_is_said(bad: Bad) -> None:
    """There are as many errors as bad promises, and no warnings."""
    assert len(bad.run.errors) == len(CASES)
    assert not bad.run.warnings and not bad.run.critical and not bad.run.stray


@pytest.mark.parametrize("case", CASES)
def test_one_error_line(bad: Bad, case: str) -> None:
    """It names the promise by type, promiser and file:line, then attribute, value and what is allowed."""
    (text,) = [text for text in bad.run.errors if f"'bad {case}'" in text]
    assert bad.named(case) in text and "messages" in text
    missing = [name for name in CASES[case].names if name not in text.replace(bad.named(case), "")]
    assert not missing, text


@pytest.mark.parametrize("case", CASES)
def test_the_promise_is_not_kept(bad: Bad, case: str) -> None:
    """repair_failed of its classes body is set; a result class only where the promise itself was sound."""
    assert bad.classes(f"{case}__") == {"not_kept"}
    reason = CASES[case].reason
    assert bad.classes(f"bad_{case}_") == ({"failed", reason} if reason else set())


# ---- files for what is received


@pytest.mark.parametrize(
    "pattern", ["request", "async_request", "reply", "async_reply", "subscribe", "pull", "pair", "pair with payload"]
)
def test_nothing_is_said_when_the_file_cannot_be_written(
    agent: Agent, peer: Callable[..., Peer], tmp_path: Path, pattern: str
) -> None:
    """A file whose folder is missing, or that is a folder: an error that names it, and no connection to the peer."""
    silent = peer("tcp-silent")
    (tmp_path / "folder").mkdir()
    pattern, _, spoken = pattern.partition(" ")
    payload = ', payload => "x"' if pattern in SPEAKING or spoken else ""
    promises = "messages:\n" + "".join(
        f'"{name}" pattern => "{pattern}", endpoint => "$(silent)", file => "$(dir)/{path}"{payload},\n'
        f'  timeout => "0.5", classes => outcome("{name}");\n'
        for name, path in (("orphan", "missing/answer"), ("folder", "folder"))
    )
    run = agent.run(promises, vars={"silent": silent.endpoint, "dir": str(tmp_path)})
    assert run.classes == {
        *("orphan_not_kept", "orphan_failed", "orphan_local"),
        *("folder_not_kept", "folder_failed", "folder_local"),
    }
    assert [f"{tmp_path}/missing/answer" in run.errors[0], f"{tmp_path}/folder " in run.errors[1]] == [True, True]
    assert len(run.errors) == 2 and not (tmp_path / "missing").exists()
    assert connections(silent) == 0


def connections(silent: Peer) -> int:
    """How many there were before this one, which the peer, who accepts them in their order, sees last."""
    host, _, port = silent.endpoint.removeprefix("tcp://").rpartition(":")
    before = len(silent.events("accepted"))
    with socket.create_connection((host, int(port)), 30):
        return len(silent.wait_for(before + 1, "accepted")) - 1


# ---- what no cf-agent can carry, or only a strange one: spoken to in this process


def served(*requests: dict[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """For each promise the log lines and the answer of its validation."""
    lines = [
        json.dumps({"operation": "validate_promise", "log_level": "info", "promise_type": "messages", **request})
        for request in requests
    ]
    lines.append('{"operation": "terminate"}')
    answers = io.BytesIO()
    with pytest.raises(SystemExit) as ended:
        MessagesPromise().start(io.BytesIO(("cf-agent 3.21.0 v1\n\n" + "\n\n".join(lines) + "\n\n").encode()), answers)
    assert not ended.value.code
    blocks = answers.getvalue().decode("utf-8", "surrogateescape").split("\n\n")[1:-2]
    return [(block.split("\n")[:-1], json.loads(block.split("\n")[-1])) for block in blocks]


def request(**attributes: Any) -> dict[str, Any]:
    return {"promiser": "p", "filename": "/p.cf", "line_number": 12, "attributes": attributes}


def test_a_topic_with_a_nul() -> None:
    """cf-agent cannot carry one; if it comes nevertheless, it is refused like other bad input."""
    bad_one = request(pattern="subscribe", endpoint="tcp://hub:1", topic="a\0b")
    good_one = request(pattern="subscribe", endpoint="tcp://hub:1", topic="ab")
    (lines, answer), (no_lines, good_answer) = served(bad_one, good_one)
    assert answer["result"] == "invalid" and good_answer["result"] == "valid" and no_lines == []
    (line,) = lines
    assert line.startswith("log_error=") and "'topic'" in line and r"'a\x00b'" in line and "NUL" in line
    assert "messages promise with promiser 'p' (/p.cf:12)" in line


@pytest.mark.parametrize("value", [None, True, 1, 1.5, [None], [[]], {"a": {"b": []}}, "\udcff", "x" * 100_000])
def test_any_type_of_any_attribute(value: Any) -> None:
    """Whatever JSON an attribute is: valid, or invalid with one error line of reasonable length."""
    names = "pattern endpoint bind payload payload_file topic file format count expect timeout retries subscribers zzz"
    sound = {"pattern": "pull", "endpoint": "tcp://hub:1"}
    for lines, answer in served(*(request(**{**sound, name: value}) for name in names.split())):
        assert answer["result"] in ("valid", "invalid")
        assert len(lines) == (answer["result"] == "invalid")
        assert all(line.startswith("log_error=") and len(line) < 1000 for line in lines)


# ---- an endpoint that looks sound, but leads nowhere


def test_a_bad_promise_does_not_cost_the_time_of_others(agent: Agent, peer: Callable[..., Peer]) -> None:
    """A promise to nobody fails by itself; the next one, to a peer, is repaired."""
    puller = peer("pull")
    run = agent.run(
        """
      messages:
        "dead" pattern => "push", endpoint => "$(dead)", payload => "x", timeout => "0.2", classes => outcome("d");
        "live" pattern => "push", endpoint => "$(live)", payload => "x", classes => outcome("l");
        """,
        vars={"dead": refused_endpoint(), "live": puller.endpoint},
    )
    assert run.classes == {"d_not_kept", "dead_failed", "dead_unreachable", "l_repaired", "live_sent"}
    assert [event.frames for event in puller.wait_for(1)] == [(b"x",)]
