"""The module on another cfengine.py: whichever copy lands last in modules/promises serves all modules of the host."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import Agent
from peers import Peer
from test_patterns import CASES, messages, optional, promise, seen

# As much of a library as a module sees of the stock one: no dry run in the header, hooks by position with metadata that
# has no file name, text streams, log lines only as severe as the agent asked for.
STAND_IN = """
import json
import sys

LEVELS = ["critical", "error", "warning", "notice", "info", "verbose", "debug"]


class ProtocolError(Exception):
    pass


class ValidationError(Exception):
    def __init__(self, message):
        self.message = message


class AttributeObject:
    def __init__(self, d):
        self.__dict__.update(d)


class Result:
    KEPT, REPAIRED, NOT_KEPT = "kept", "repaired", "not_kept"
    VALID, INVALID = "valid", "invalid"
    SUCCESS, FAILURE, ERROR = "success", "failure", "error"


class PromiseModule:
    def __init__(self, name="default_module_name", version="0.0.0", record_file_path=None):
        self.name, self.version, self._log_level = name, version, None

    def start(self, in_file=None, out_file=None):
        self._in, self._out = in_file or sys.stdin, out_file or sys.stdout
        while self._in.readline().strip():
            pass
        self._say(f"{self.name} {self.version} v1 json_based\\n\\n")
        while True:
            request = json.loads(self._in.readline())
            self._in.readline()
            self._log_level = request.get("log_level", "info")
            operation = request["operation"]
            answer = {"operation": operation, "result": self._serve(operation, request)}
            if operation == "terminate":
                self._say(json.dumps(answer) + "\\n\\n")
                sys.exit(0)
            answer.update(promiser=request["promiser"], attributes=request.get("attributes", {}))
            if operation == "evaluate_promise" and not isinstance(answer["result"], str):
                answer["result"], classes = answer["result"]
                if classes:
                    answer["result_classes"] = classes
            self._say(json.dumps(answer) + "\\n\\n")

    def _serve(self, operation, request):
        if operation == "terminate":
            return self.protocol_terminate()
        metadata = {"promise_type": request["promise_type"]}
        promiser, attributes = self.prepare_promiser_and_attributes(request["promiser"], request.get("attributes", {}))
        try:
            if operation == "evaluate_promise":
                return self.evaluate_promise(promiser, attributes, metadata)
            self.validate_attributes(promiser, attributes, metadata)
            return Result.VALID if self.validate_promise(promiser, attributes, metadata) is None else Result.ERROR
        except ValidationError as error:
            self.log_error(error.message)
            return Result.INVALID
        except Exception as error:
            self.log_critical(f"{type(error).__name__}: {error}")
            return Result.ERROR

    def _say(self, text):
        self._out.write(text)
        self._out.flush()

    def _log(self, level, text):
        if self._log_level is None or LEVELS.index(level) <= LEVELS.index(self._log_level):
            self._say(f"log_{level}={text}\\n")

    def log_critical(self, text):
        self._log("critical", text)

    def log_error(self, text):
        self._log("error", text)

    def log_warning(self, text):
        self._log("warning", text)

    def log_notice(self, text):
        self._log("notice", text)

    def log_info(self, text):
        self._log("info", text)

    def log_verbose(self, text):
        self._log("verbose", text)

    def log_debug(self, text):
        self._log("debug", text)

    def prepare_promiser_and_attributes(self, promiser, attributes):
        return promiser, attributes

    def validate_attributes(self, promiser, attributes, meta):
        return True

    def validate_promise(self, promiser, attributes, meta):
        raise NotImplementedError

    def evaluate_promise(self, promiser, attributes, meta):
        raise NotImplementedError

    def protocol_init(self, version):
        return Result.SUCCESS

    def protocol_terminate(self):
        return Result.SUCCESS
"""

PROMISES = """
  messages:
    "pushed"
      pattern => "push", endpoint => "$(pull)", payload => "said",
      comment => "so that somebody knows", handle => "a_handle", classes => outcome("p");
    "asked"
      pattern => "request", endpoint => "$(rep)", payload => "Hello", file => "$(dir)/answer",
      classes => outcome("a");
    "checked"
      pattern => "request", endpoint => "$(rep)", payload => "Hello", expect => "World",
      classes => outcome("c");
    "empty"
      pattern => "push", endpoint => "$(pull)", payload => {}, classes => outcome("e");
    "wrong"
      pattern => "push", endpoint => "$(pull)", payload => "x", count => "-1", classes => outcome("w");
    "missing"
      pattern => "push", endpoint => "$(pull)", payload_file => "$(dir)/none", classes => outcome("m");
"""


@pytest.fixture
def on_stock(agent: Agent) -> Agent:
    agent.install("cfengine.py", STAND_IN)
    return agent


def lost(lines: list[str]) -> list[str]:
    return [text for text in lines if "dry run" in text]


def test_promises_are_kept(on_stock: Agent, peer: Callable[..., Peer], tmp_path: Path) -> None:
    """All outcomes and classes are what they are on our own; once, the run is told that dry run is lost."""
    pull, rep = peer("pull"), peer("rep", "--answer", "World")
    run = on_stock.run(
        PROMISES,
        vars={"pull": pull.endpoint, "rep": rep.endpoint, "dir": str(tmp_path)},
        options=["--inform"],
    )
    assert run.classes == {
        *(
            "p_repaired",
            "pushed_sent",
            "a_repaired",
            "asked_delivered",
            "asked_received",
            "c_kept",
            "checked_delivered",
        ),
        *("e_kept", "w_not_kept", "m_not_kept", "missing_failed", "missing_local"),
    }
    assert [event.frames for event in pull.wait_for(1)] == [(b"said",)]
    assert (tmp_path / "answer").read_bytes() == b"World"
    assert len(lost(run.infos)) == 1
    wrong, missing = run.errors
    assert "'count'" in wrong and "'-1'" in wrong
    assert "'missing'" in missing and f"{tmp_path}/none" in missing
    assert not run.warnings


def test_every_pattern(on_stock: Agent, peer: Callable[..., Peer], tmp_path: Path) -> None:
    """Each pattern is repaired, with the classes that it has on our own, and what is said and heard is the same.

    Nothing is criticised by an agent that did not ask for info lines, which it wants with each repaired promise.
    """
    peers = {pattern: peer(*case.peer) for pattern, case in CASES.items()}
    promises = [
        promise(pattern, pattern, endpoint=peers[pattern].endpoint, **optional(tmp_path, pattern)) for pattern in CASES
    ]
    run = on_stock.run(messages(*promises))
    assert run.classes == set().union(*(seen(pattern, "repaired", *case.classes) for pattern, case in CASES.items()))
    for pattern, case in CASES.items():
        if case.says:
            assert [event.frames for event in peers[pattern].wait_for(1)] == [(*case.prefix, b"Hello")]
        if case.hears:
            assert (tmp_path / f"{pattern}.file").read_bytes() == b"World"


def test_nothing_is_lost_on_our_own(agent: Agent, peer: Callable[..., Peer], tmp_path: Path) -> None:
    """On our own cfengine.py nothing is said of dry runs."""
    pull, rep = peer("pull"), peer("rep", "--answer", "World")
    run = agent.run(
        PROMISES, vars={"pull": pull.endpoint, "rep": rep.endpoint, "dir": str(tmp_path)}, options=["--inform"]
    )
    assert lost(run.lines) == []


@pytest.mark.parametrize(
    ("action", "options"), [("fix", ["--dry-run"]), ("fix", ["--simulate=diff"]), ("warn", []), ("nop", [])]
)
def test_dry_run_is_lost(
    on_stock: Agent, peer: Callable[..., Peer], action: str, options: list[str], tmp_path: Path
) -> None:
    """In a dry run the agent does not let such a module try: not kept, an error, nothing said, no result class."""
    silent = peer("tcp-silent")
    run = on_stock.run(
        """
      messages:
        "one" pattern => "push", endpoint => "$(silent)", payload => "x", classes => outcome("one"), action => this;
        "two" pattern => "pull", endpoint => "ipc://$(dir)/two", bind => "true", file => "$(dir)/heard",
          classes => outcome("two"), action => this;
        """,
        vars={"silent": silent.endpoint, "dir": str(tmp_path)},
        before=f'body action this {{ action_policy => "{action}"; }}',
        options=options,
    )
    assert run.classes == {"one_not_kept", "two_not_kept"}
    assert ["doesn't support action_policy" in error for error in run.errors] == [True, True]
    assert not (tmp_path / "two").exists() and not (tmp_path / "heard").exists()
    host, _, port = silent.endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), 30):  # ours comes after any other
        assert len(silent.wait_for(1, "accepted")) == 1
