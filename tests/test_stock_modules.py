"""Modules written for CFEngine's stock library (tests/modules) run unchanged on our cfengine.py.

The stock library cannot be shipped. Where one is installed, or MESSAGES_STOCK_SDK names a copy, every test but those of
`our_node` runs on it as well, and the modules' answers on both are compared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from agent import MODULE_PYTHON, Agent, Run, environment
from demo import REPOSITORY
from peers import scaled
from test_cfengine import HEADER, TERMINATE, ask, read_answers
from test_stock_sdk import STAND_IN

OURS = REPOSITORY / "cfengine.py"
MODULES = {path.stem: path for path in sorted((REPOSITORY / "tests/modules").glob("*.py"))}

STOCK_PATHS = [
    os.environ.get("MESSAGES_STOCK_SDK", "/none"),
    "/usr/share/cfengine3/masterfiles/modules/promises/cfengine.py",
    "/var/cfengine/masterfiles/modules/promises/cfengine.py",
    "/var/lib/cfengine3/masterfiles/modules/promises/cfengine.py",
]
STOCK = next(
    (Path(p) for p in STOCK_PATHS if Path(p).is_file() and b"handles_action" not in Path(p).read_bytes()), None
)
SDKS = [pytest.param(OURS, id="ours"), *([pytest.param(STOCK, id="stock")] if STOCK else [])]

TYPE = """
promise agent {name}
{{
  interpreter => "{python}";
  path => "$(sys.workdir)/modules/promises/{name}.py";
}}
"""
TYPES = "".join(TYPE.format(name=name, python=MODULE_PYTHON) for name in MODULES)


class Node:
    """An agent with the modules on one of the SDKs; `folder`, in policy $(dir), is for their files."""

    def __init__(self, agent: Agent, sdk: Path, folder: Path) -> None:
        self.folder = folder
        self._agent = agent
        folder.mkdir()
        agent.install("cfengine.py", sdk)
        for path in MODULES.values():
            agent.install(path.name, path)

    def run(self, promises: str, option: str = "--inform", before: str = "", allow_critical: bool = False) -> Run:
        return self._agent.run(
            promises,
            vars={"dir": str(self.folder)},
            before=TYPES + before,
            options=[option] if option else [],
            allow_critical=allow_critical,
        )

    def named(self, kind: str, promiser: str) -> str:
        """How a validation error of the first run names a promise; `promiser` as policy writes it."""
        policy = self._agent.root / "policy-0.cf"
        lines = policy.read_text().split("\n")
        [number] = [number for number, line in enumerate(lines, 1) if line.strip().startswith(f'"{promiser}"')]
        resolved = promiser.replace("$(dir)", str(self.folder))
        return f" for {kind} promise with promiser '{resolved}' ({policy}:{number})"

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(params=SDKS)
def node(agent: Agent, tmp_path: Path, request: pytest.FixtureRequest) -> Node:
    """On our SDK, and on the stock one if there is one."""
    return Node(agent, request.param, tmp_path / "folder")


@pytest.fixture
def our_node(agent: Agent, tmp_path: Path) -> Node:
    """On our SDK, for what the stock one does otherwise."""
    return Node(agent, OURS, tmp_path / "folder")


# --- line_in_file: nothing declared, all checks by hand -----------------------------------------------------------


def test_outcomes(node: Node) -> None:
    """Kept, repaired and not kept are what the agent sees, in one run, with common attributes in the promise."""
    (node.folder / "grows").write_text("first\n")
    (node.folder / "shrinks").write_text("good\nbad\n")
    (node.folder / "there").write_text("here\n")
    (node.folder / "directory").mkdir()
    promises = """
      line_in_file:
        "$(dir)/new" line => "hello", classes => outcome("new"), comment => "because", handle => "the_new_one";
        "$(dir)/grows" line => "second", state => "present", classes => outcome("grows");
        "$(dir)/shrinks" -> { "whom" } line => "bad", state => "absent", classes => outcome("shrinks");
        "$(dir)/there" line => "here", classes => outcome("there");
        "$(dir)/directory" line => "x", classes => outcome("directory");
    """
    run = node.run(promises)
    assert run.classes == {"new_repaired", "grows_repaired", "shrinks_repaired", "there_kept", "directory_not_kept"}
    assert [node.read(name) for name in ("new", "grows", "shrinks")] == ["hello\n", "first\nsecond\n", "good\n"]
    assert run.infos == [
        f"{node.folder}/{change}" for change in ("new got 'hello'", "grows got 'second'", "shrinks lost 'bad'")
    ]
    assert run.errors == [f"{node.folder}/directory cannot be read: Is a directory"]

    again = node.run(promises)
    assert again.classes == {"new_kept", "grows_kept", "shrinks_kept", "there_kept", "directory_not_kept"}
    assert again.infos == [] and again.errors == run.errors


def test_validation_by_hand(node: Node) -> None:
    """A ValidationError is one line that ends in type, promiser, file and line; the promise is not evaluated."""
    run = node.run(
        """
      line_in_file:
        "no/path" line => "x", classes => outcome("path");
        "$(dir)/no_line" state => "present", classes => outcome("line");
        "$(dir)/list" line => { "x" }, classes => outcome("list");
        "$(dir)/state" line => "x",
          state => "gone", classes => outcome("state");
        "$(dir)/good" line => "x", classes => outcome("good");
        """
    )
    assert run.classes == {"path_not_kept", "line_not_kept", "list_not_kept", "state_not_kept", "good_repaired"}
    assert run.errors == [
        "The promiser must be an absolute path, not 'no/path'" + node.named("line_in_file", "no/path"),
        "The attribute 'line' is missing" + node.named("line_in_file", "$(dir)/no_line"),
        "The attribute 'line' must be a string" + node.named("line_in_file", "$(dir)/list"),
        "The attribute 'state' must be present or absent, not 'gone'" + node.named("line_in_file", "$(dir)/state"),
    ]
    assert node.names() == {"good"}


def test_undeclared_attributes_are_the_modules_affair(node: Node) -> None:
    """Where a module declares nothing, an attribute that it does not look at is no error."""
    run = node.run('line_in_file: "$(dir)/new" line => "x", whatever => { "y" }, classes => outcome("new");')
    assert run.classes == {"new_repaired"} and run.errors == []


LEVELS = ("critical", "error", "warning", "notice", "info", "verbose", "debug")


@pytest.mark.parametrize(
    ("option", "shown"),
    [("--log-level=error", 2), ("", 4), ("--inform", 5), ("--verbose", 6), ("--debug", 7)],
    ids=["error", "default", "inform", "verbose", "debug"],
)
def test_log_levels(node: Node, option: str, shown: int) -> None:
    """Each log_* call comes out at its own level, and as far as the agent was asked to show it."""
    (node.folder / "twice").write_text("x\nx\n")
    (node.folder / "directory").mkdir()
    run = node.run(
        """
      line_in_file:
        "$(dir)/new" line => "x";
        "$(dir)/twice" line => "x";
        "$(dir)/directory" line => "x";
        "$(dir)/directory/none/new" line => "x";
        """,
        option,
        allow_critical=True,
    )
    said = {
        "critical": ["directory/none/new cannot be written: No such file or directory"],
        "error": ["directory cannot be read: Is a directory"],
        "warning": ["twice has 'x' 2 times"],
        "notice": ["new is not there yet", "directory/none/new is not there yet"],
        "info": ["new got 'x'"],
        "verbose": ["twice is as it should be"],
        "debug": [f"{name} is read" for name in ("new", "twice", "directory", "directory/none/new")],
    }
    for level in LEVELS:
        lines = run.critical if level == "critical" else run.logged(level)
        ours = [line for line in lines if line.startswith(f"{node.folder}/")]
        assert ours == ([f"{node.folder}/{text}" for text in said[level]] if level in LEVELS[:shown] else []), level


# --- text_file: declared attributes -------------------------------------------------------------------------------


def test_declared_attributes(node: Node) -> None:
    """Hooks see declared types, defaults for what is missing, each promise its own, and the prepared promiser."""
    promises = """
      vars:
        "words" data => '{ "World": "Moon", "!": "?" }';
      text_file:
        "$(dir)/plain" lines => { "Hello" }, classes => outcome("plain");
        "file://$(dir)/full"
          lines => { "Hello World", "Bye!" }, copies => "2", numbered => "true", title => "T", words => @(words),
          footer => { "end" }, classes => outcome("full");
        "$(dir)/unset" lines => {}, numbered => "false", copies => "1", classes => outcome("unset");
    """
    run = node.run(promises)
    assert run.classes == {"plain_repaired", "full_repaired", "unset_repaired"}
    assert run.infos == [f"{node.folder}/{name} was written" for name in ("plain", "full", "unset")]
    assert node.read("plain") == f"{node.folder}/plain\nHello\n--\n1 lines\n"
    assert node.read("full") == "T\n1 Hello Moon\n2 Bye?\n3 Hello Moon\n4 Bye?\nend\n4 lines\n"
    assert node.read("unset") == f"{node.folder}/unset\n--\n0 lines\n"
    assert node.run(promises).classes == {"plain_kept", "full_kept", "unset_kept"}


def test_declared_attributes_are_checked(node: Node) -> None:
    """What was not declared so is refused, in one line that names the attribute and the promise."""
    refused = {
        "unknown": ('lines => { "x" }, colour => "red"', "'colour'"),
        "missing": ('copies => "2"', "'lines'"),
        "list": ('lines => "x"', "'lines'"),
        "int": ('lines => { "x" }, copies => "many"', "'copies'"),
        "bool": ('lines => { "x" }, numbered => "perhaps"', "'numbered'"),
        "string": ('lines => { "x" }, title => { "y" }', "'title'"),
        "data": ('lines => { "x" }, words => "y"', "'words'"),
        "validator": ('lines => { "x" }, copies => "0"', "The attribute 'copies' must be 1 or more, not 0"),
    }
    promises = [f'"$(dir)/{name}" {said}, classes => outcome("{name}");\n' for name, (said, _) in refused.items()]
    run = node.run("text_file:\n" + "".join(promises) + '"$(dir)/good" lines => { "x" }, classes => outcome("good");\n')
    assert run.classes == {*(f"{name}_not_kept" for name in refused), "good_repaired"}
    assert len(run.errors) == len(refused)
    for index, (name, (_, why)) in enumerate(refused.items()):
        assert why in run.errors[index] and run.errors[index].endswith(node.named("text_file", f"$(dir)/{name}"))
    assert node.names() == {"good"}


def test_common_attributes_are_no_unknown_ones(our_node: Node) -> None:
    """Common attributes never make a promise of declared attributes invalid; the stock library refuses them."""
    run = our_node.run(
        """
      text_file:
        "$(dir)/first" lines => { "x" }, comment => "because", handle => "first", classes => outcome("first");
        "$(dir)/second" lines => { "x" }, action => this, depends_on => { "first" }, classes => outcome("second");
        """,
        before='body action this { action_policy => "fix"; ifelapsed => "0"; expireafter => "10"; audit => "false"; }',
    )
    assert run.classes == {"first_repaired", "second_repaired"} and run.errors == []


# --- checkpoint: classes, meta and the hooks of the conversation --------------------------------------------------

CHECKPOINTS = """
  checkpoint:
    "a stage" directory => "$(dir)", classes => outcome("a");
    "b/stage" directory => "$(dir)", classes => outcome("b");
    "c.stage" directory => "$(dir)", quiet => "true", classes => outcome("c");
"""


def test_result_classes(node: Node) -> None:
    """Result classes of any outcome, from a list or a tuple, are set and made class names; None sets none."""
    first = node.run(CHECKPOINTS)
    assert first.classes == {
        *("a_repaired", "a_stage_is_now_passed", "checkpoint"),
        *("b_not_kept", "b_stage_failed"),
        *("c_repaired", "c_stage_is_now_passed"),
    }
    assert node.run(CHECKPOINTS).classes == {"a_kept", "a_stage_was_passed", "b_not_kept", "b_stage_failed", "c_kept"}


def test_meta_and_terminate(node: Node) -> None:
    """A third parameter called meta holds the promise type; protocol_terminate runs once, after all promises."""
    lost = '    "lost" directory => "$(dir)/none", classes => outcome("lost");\n'
    run = node.run(CHECKPOINTS + lost)
    assert node.read("journal").split("\n") == [
        *("checkpoint a stage", "checkpoint b/stage", "checkpoint c.stage", "end", "")
    ]
    assert run.errors[-1] == "A checkpoint needs a 'directory' that is there" + node.named("checkpoint", "lost")
    assert "lost_not_kept" in run.classes


@pytest.mark.parametrize("sdk", SDKS)
def test_init(sdk: Path, tmp_path: Path) -> None:
    """An init request, which agents do not send today, reaches protocol_init."""
    [init, _] = converse(sdk, "checkpoint", tmp_path, b'{"operation":"init","log_level":"info"}\n\n' + TERMINATE)
    assert init == Said("success", [], ["log_info=initialized with None"])


# --- every module -------------------------------------------------------------------------------------------------

EVERY_TYPE = """
  line_in_file:
    "$(dir)/a" line => "x", classes => outcome("a"){more};
  text_file:
    "$(dir)/b" lines => {{ "x" }}, classes => outcome("b"){more};
  checkpoint:
    "c" directory => "$(dir)", classes => outcome("c"){more};
"""


def test_several_types_in_a_run(node: Node) -> None:
    """Modules on the same SDK serve one run side by side, and each says what it did."""
    run = node.run(EVERY_TYPE.format(more=""))
    assert run.classes == {"a_repaired", "b_repaired", "c_repaired", "c_is_now_passed", "checkpoint"}
    assert node.names() == {"a", "b", "c", "journal"}
    assert run.infos == [f"{node.folder}/a got 'x'", f"{node.folder}/b was written", "c is passed now"]


@pytest.mark.parametrize(
    ("action", "option"),
    [("fix", "--dry-run"), ("fix", "--simulate=diff"), ("warn", "--inform"), ("nop", "--inform")],
)
def test_dry_run(node: Node, action: str, option: str) -> None:
    """A module that says nothing of dry run is not asked in one: not kept, an error of the agent, nothing done."""
    run = node.run(
        EVERY_TYPE.format(more=", action => this"),
        option,
        before=f'body action this {{ action_policy => "{action}"; }}',
    )
    assert run.classes == {"a_not_kept", "b_not_kept", "c_not_kept"}
    refused = [re.findall(r"/(\w+)\.py' doesn't support action_policy", error) for error in run.errors]
    assert refused == [["line_in_file"], ["text_file"], ["checkpoint"]]
    assert node.names() == set()


FAILURES = {
    "line_in_file": ('line => "x"', "latin", "UnicodeDecodeError"),
    "text_file": ('lines => { "x" }, words => @(words)', "words", "TypeError"),
    "checkpoint": ('directory => { "$(dir)" }', "list", "TypeError"),
}
SOUND = {
    "line_in_file": 'line => "x"',
    "text_file": 'lines => { "x" }',
    "checkpoint": 'directory => "$(dir)", quiet => "true"',
}


@pytest.mark.parametrize("kind", FAILURES)
def test_an_exception_ends_its_promise_alone(node: Node, kind: str) -> None:
    """An exception in evaluate_promise, or in validate_promise, is told and not kept; the other promises are kept."""
    attributes, name, exception = FAILURES[kind]
    (node.folder / "latin").write_bytes(b"\xe9\n")
    directory = "" if kind == "checkpoint" else "$(dir)/"
    promises = f"""
      vars:
        "words" data => '{{ "x": [ "y" ] }}';
      {kind}:
        "{directory}before" {SOUND[kind]}, classes => outcome("before");
        "{directory}{name}" {attributes}, classes => outcome("wrong");
        "{directory}after" {SOUND[kind]}, classes => outcome("after");
    """
    run = node.run(promises, allow_critical=True)
    outcomes = {"before_repaired", "wrong_not_kept", "after_repaired"}
    assert {name for name in run.classes if name.endswith(("_kept", "_repaired"))} == outcomes
    [critical] = run.critical
    assert critical.startswith(f"{exception}: ")
    assert {"before", "after"} <= node.names() and run.status == 0 and run.stray == []


# --- the same bytes, two libraries --------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a module answered to one request."""

    result: str
    classes: list[str]
    logs: list[str]

    def comparable(self) -> tuple[str, list[str], list[str]]:
        """The libraries word what is wrong each in its own way, but at the same level."""
        own_words = self.result not in ("invalid", "error")
        return self.result, self.classes, self.logs if own_words else [log.split("=")[0] for log in self.logs]


def converse(sdk: Path, module: str, home: Path, requests: bytes) -> list[Said]:
    """The answers of a module, started as the agent starts it, which must end well and be silent on stderr."""
    home.mkdir(exist_ok=True)
    shutil.copy(sdk, home / "cfengine.py")
    shutil.copy(MODULES[module], home)
    ended = subprocess.run(
        [MODULE_PYTHON, str(home / f"{module}.py")],
        input=HEADER + requests,
        env=environment(home),
        cwd=home,
        capture_output=True,
        timeout=scaled(60),
        check=True,
    )
    assert ended.stderr == b""
    name, version, *flags = ended.stdout.split(b"\n")[0].decode().split(" ")
    assert (name, flags) == (module, ["v1", "json_based"]) and version in ("0.0.1", "1.2.3", "0.9")
    answers = read_answers(ended.stdout)
    return [Said(answer.result, answer.reply.get("result_classes") or [], answer.logs) for answer in answers]


def world(folder: Path) -> None:
    """The folder as it was before any promise."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "directory").mkdir(parents=True)
    (folder / "twice").write_text("x\nx\n")
    (folder / "latin").write_bytes(b"\xe9\n")
    (folder / "passed").touch()


def conversation(module: str, folder: Path) -> bytes:
    """Promises of every outcome, each validated and evaluated."""
    here = f"{folder}/"
    promises: dict[str, list[tuple[str, dict[str, object]]]] = {
        "line_in_file": [
            (here + "new", {"line": "x", "comment": "because", "handle": "new"}),
            (here + "new", {"line": "x"}),
            (here + "new", {"line": "x", "state": "absent"}),
            (here + "twice", {"line": "x"}),
            (here + "directory", {"line": "x"}),
            (here + "none/new", {"line": "x"}),
            (here + "latin", {"line": "x"}),
            (here + "new", {"line": ["x"]}),
            (here + "new", {"state": "gone", "line": "x"}),
            (here + "new", {}),
            ("relative", {"line": "x"}),
            ("", {"line": "x"}),
        ],
        "text_file": [
            (here + "a", {"lines": ["x", "y"]}),
            (here + "a", {"lines": ["x", "y"]}),
            ("file://" + here + "a", {"lines": ["x", "y"], "title": "T", "footer": []}),
            (here + "b", {"lines": [], "copies": "3", "numbered": "true", "words": {"x": "z"}, "title": ""}),
            (here + "b", {"lines": ["x"], "copies": 3, "numbered": "false", "words": {}}),
            (here + "c", {"lines": ["x"], "words": {"x": ["z"]}}),
            (here + "c", {"lines": ["x"], "words": "z"}),
            (here + "c", {"lines": ["x"], "copies": "-1"}),
            (here + "c", {"lines": ["x"], "copies": "1.5"}),
            (here + "c", {"lines": ["x"], "copies": ""}),
            (here + "c", {"lines": ["x"], "numbered": "True"}),
            (here + "c", {"lines": ["x"], "numbered": ["true"]}),
            (here + "c", {"lines": "x"}),
            (here + "c", {"lines": ["x"], "unheard": "of"}),
            (here + "c", {}),
            (here + "directory", {"lines": ["x"]}),
        ],
        "checkpoint": [
            ("new", {"directory": here}),
            ("new", {"directory": here}),
            ("new", {"directory": here, "quiet": "true"}),
            ("passed", {"directory": here, "comment": "because"}),
            ("none/new", {"directory": here}),
            ("new", {"directory": here + "none"}),
            ("new", {"directory": [here]}),
            ("new", {}),
        ],
    }
    return b"".join(
        ask(operation, promiser, "verbose", **attributes)
        for promiser, attributes in promises[module]
        for operation in ("validate_promise", "evaluate_promise")
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_alike(other: Path, module: str, tmp_path: Path) -> list[Said]:
    """That a module answers and does the same on both libraries; returns what it said on ours."""
    folder = tmp_path / "folder"
    requests = conversation(module, folder) + TERMINATE
    world(folder)
    ours, done = converse(OURS, module, tmp_path / "ours", requests), contents(folder)
    world(folder)
    others = converse(other, module, tmp_path / "other", requests)
    assert [said.comparable() for said in ours] == [said.comparable() for said in others]
    assert contents(folder) == done
    return ours


@pytest.mark.skipif(STOCK is None, reason="no stock cfengine.py is installed; MESSAGES_STOCK_SDK may name a copy")
@pytest.mark.parametrize("module", MODULES)
def test_answers_are_those_of_the_stock_library(module: str, tmp_path: Path) -> None:
    """The same requests have the same results, classes, log lines and effects on the stock library and on ours."""
    assert STOCK
    assert_alike(STOCK, module, tmp_path)


@pytest.mark.parametrize(
    ("module", "results"),
    [
        ("line_in_file", {"valid", "invalid", "kept", "repaired", "not_kept", "error", "success"}),
        ("checkpoint", {"valid", "invalid", "kept", "repaired", "not_kept", "error", "success"}),
    ],
)
def test_answers_are_those_of_the_stand_in(module: str, results: set[str], tmp_path: Path) -> None:
    """The same on the stand-in of test_stock_sdk.py, as far as it goes: it knows no declared attributes."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    assert {said.result for said in assert_alike(tmp_path / "stand_in.py", module, tmp_path)} == results
