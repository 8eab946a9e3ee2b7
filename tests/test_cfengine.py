"""The SDK for cf-agent's custom promise protocol, tested from its specification.

Most tests start a small module in a child process and speak the protocol through pipes, as cf-agent does.
Where a test wants to look at Python objects, the module runs in this process on io.BytesIO.
"""

from __future__ import annotations

import ast
import asyncio
import fcntl
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import standard_library
from cfengine import AttributeObject, PromiseModule, ProtocolError, Result, ValidationError

TESTS = Path(__file__).parent
SDK = TESTS.parent / "cfengine.py"
DEADLINE_S = 60
HEADER = b"cf-agent 3.21.0 v1\n\n"
TERMINATE = b'{"operation":"terminate"}\n\n'
COMMON_ATTRIBUTES = "comment handle action_policy ifelapsed expireafter audit background measurement_class report_level"
COMMON_ATTRIBUTES += " log_failed log_kept log_priority log_repaired log_string"


# What the agent says, and a strict reader of what the module says


def ask(operation: str, promiser: str = "p", log_level: str = "info", **attributes: Any) -> bytes:
    """One request as cf-agent 3.21 writes it: raw UTF-8."""
    request = {
        "operation": operation,
        "log_level": log_level,
        "promise_type": "tested",
        "promiser": promiser,
        "attributes": attributes,
        "filename": "/p.cf",
        "line_number": 12,
    }
    return json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n\n"


def validate(promiser: str = "p", log_level: str = "info", **attributes: Any) -> bytes:
    return ask("validate_promise", promiser, log_level, **attributes)


def evaluate(promiser: str = "p", log_level: str = "info", **attributes: Any) -> bytes:
    return ask("evaluate_promise", promiser, log_level, **attributes)


class Answer(NamedTuple):
    logs: list[str]
    reply: dict[str, Any]

    @property
    def result(self) -> str:
        return str(self.reply["result"])

    @property
    def log(self) -> str:
        return "\n".join(self.logs)


LOG_LINE = re.compile(rb"log_(critical|error|warning|notice|info|verbose|debug)=[^\n\r\0]*")
HEADER_LINE = re.compile(rb"[^\s]+ [^\s]+ v1 json_based( action_policy)?")
RESULTS = {"kept", "repaired", "not_kept", "valid", "invalid", "success", "failure", "error"}


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_answers(said: bytes, cut_off: bool = False) -> list[Answer]:
    """The answers in all that a module wrote, or an error if it is not the protocol to the last byte.

    cut_off: the module was ended within a request, whose log lines may be there without a reply.
    """
    if not said:
        return []
    assert said.endswith(b"\n"), "the last line is not whole"
    header, blank, *lines = said[:-1].split(b"\n")
    assert HEADER_LINE.fullmatch(header) and not blank, (header, blank)
    answers, logs = [], list[str]()
    waiting = iter(lines)
    for line in waiting:
        if LOG_LINE.fullmatch(line):
            logs.append(line.decode("utf-8", "surrogateescape"))
            continue
        reply = json.loads(line.decode("utf-8", "surrogateescape"), parse_constant=refuse_constant)
        assert reply["result"] is None or isinstance(reply["result"], str), reply
        assert reply["result"] in RESULTS or reply.get("operation") in ("init", "terminate"), reply
        assert next(waiting, None) == b"", "no blank line after the reply"
        answers.append(Answer(logs, reply))
        logs = []
    assert cut_off or not logs, "log lines without a reply"
    return answers


# Modules: in this process, and in another one


class Kept(PromiseModule):
    """Keeps every promise and remembers what it was asked."""

    def __init__(self, name: str = "tested", version: str = "1.2.3", **options: Any) -> None:
        super().__init__(name, version, **options)
        self.asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def validate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        self.asked.append((promiser, dict(attributes), metadata))

    def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        self.asked.append((promiser, dict(attributes), metadata))
        return Result.KEPT


def talk(module: PromiseModule, *sent: bytes) -> list[Answer]:
    """The answers of a module in this process, which must end as the protocol says."""
    out = io.BytesIO()
    with pytest.raises(SystemExit) as ended:
        module.start(io.BytesIO(HEADER + b"".join(sent) + TERMINATE), out)
    assert ended.value.code in (0, None)
    *answers, terminated = read_answers(out.getvalue())
    assert terminated.reply["operation"] == "terminate"
    return answers


def judge(module: PromiseModule, **attributes: Any) -> Answer:
    """What a module says of one promise with these attributes."""
    [answer] = talk(module, validate(**attributes))
    return answer


MODULE = """\
import os, subprocess, sys, time
from cfengine import PromiseModule, ValidationError, Result, ProtocolError, AttributeObject

class Tested(PromiseModule):
    def validate_promise(self, promiser, attributes, metadata):
        pass
    def evaluate_promise(self, promiser, attributes, metadata):
        return Result.KEPT
{methods}
if __name__ == "__main__":
    Tested("tested", "1.2.3").start()
"""


class Ended(NamedTuple):
    status: int
    said: bytes
    complaint: str

    @property
    def answers(self) -> list[Answer]:
        return read_answers(self.said)


class Child:
    """A module in another process, at the other end of three pipes."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0)
        self.heard = b""
        CHILDREN.append(self)

    def say(self, sent: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(sent)

    def say_last(self, sent: bytes) -> None:
        """Nothing comes after it. communicate() would keep back what it had not written when its time is over."""
        self.say(sent)
        assert self.process.stdin
        self.process.stdin.close()
        self.process.stdin = None

    def hear(self, end: bytes) -> None:
        """Read stdout until it ends so."""
        assert self.process.stdout
        while not self.heard.endswith(end):
            line = self.process.stdout.readline()
            assert line, self.heard
            self.heard += line

    def finish(self, sent: bytes = b"") -> Ended:
        """Say the rest, close the module's stdin and wait for its end."""
        said, complaint = self.process.communicate(sent, timeout=DEADLINE_S)
        return Ended(self.process.returncode, self.heard + said, complaint.decode("utf-8", "surrogateescape"))


CHILDREN: list[Child] = []


@pytest.fixture(autouse=True)
def no_child_stays() -> Iterator[None]:
    """Whatever a test comes to, its modules end with it."""
    yield
    while CHILDREN:
        CHILDREN.pop().process.kill()


def start(
    tmp_path: Path, methods: str = "", text: str = "", options: tuple[str, ...] = (), **environment: str
) -> Child:
    """A module beside a copy of the SDK, running; `methods` is put into its class, or `text` is all of it."""
    (tmp_path / "cfengine.py").write_bytes(SDK.read_bytes())
    module = tmp_path / "module.py"
    methods = textwrap.indent(textwrap.dedent(methods), "    ")
    module.write_text(textwrap.dedent(text) or MODULE.format(methods=methods), encoding="utf-8")
    buffered = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHONDEVMODE": ""}
    return Child([sys.executable, *options, str(module)], {**buffered, **environment})


def run(tmp_path: Path, methods: str, *sent: bytes, **options: Any) -> list[Answer]:
    """The answers of a child module to these requests; it must end well and say nothing on stderr."""
    ended = start(tmp_path, methods, **options).finish(HEADER + b"".join(sent) + TERMINATE)
    assert (ended.status, ended.complaint) == (0, "")
    *answers, terminated = ended.answers
    assert terminated.reply == {"operation": "terminate", "result": "success"}
    return answers


def assert_clean_failure(ended: Ended) -> None:
    """A non-zero status of its own (no death by signal), one line on stderr, no traceback."""
    assert ended.status > 0, ended
    assert len(ended.complaint.splitlines()) == 1 and ended.complaint.strip(), ended
    assert "Traceback" not in ended.complaint and b"Traceback" not in ended.said


# Header and names


def test_header_without_dry_run(tmp_path: Path) -> None:
    """A module that says nothing of dry run announces json_based alone, as the stock library does."""
    ended = start(tmp_path).finish(HEADER + TERMINATE)
    assert ended.said.startswith(b"tested 1.2.3 v1 json_based\n\n")


def test_header_with_dry_run(tmp_path: Path) -> None:
    """A module that can do dry run announces action_policy."""
    ended = start(tmp_path, "handles_action_policy = True").finish(HEADER + TERMINATE)
    assert ended.said.startswith(b"tested 1.2.3 v1 json_based action_policy\n\n")


@pytest.mark.parametrize("header", [b"cf-agent 3.27.3 v1 flag other_flag\n\n", b"cf-agent 3.18.0 v1\n\n"])
def test_header_of_other_agents(header: bytes) -> None:
    """The agent may be of any version and may announce flags."""
    out = io.BytesIO()
    with pytest.raises(SystemExit):
        Kept().start(io.BytesIO(header + evaluate() + TERMINATE), out)
    assert [answer.result for answer in read_answers(out.getvalue())] == ["kept", "success"]


def test_each_answer_comes_at_once(tmp_path: Path) -> None:
    """The agent waits for the reply to its header, and to each request, before it says more."""
    module = start(tmp_path)
    module.say(HEADER)
    module.hear(b"tested 1.2.3 v1 json_based\n\n")
    module.say(evaluate())
    module.hear(b"}\n\n")
    assert [answer.result for answer in module.finish(TERMINATE).answers] == ["kept", "success"]


def test_names() -> None:
    """The five names that modules import are there, with the stock library's values and constructors."""
    results = {name: value for name, value in vars(Result).items() if name.isupper()}
    assert results == {name: name.lower() for name in results} and set(results.values()) == RESULTS
    for error in (ValidationError("why"), ProtocolError("why")):
        assert isinstance(error, Exception) and error.message == str(error) == "why"
    module = PromiseModule("name", "1.0", None)
    assert (module.name, module.version) == ("name", "1.0")
    PromiseModule(name="name", version="1.0", record_file_path=None)
    PromiseModule()


def test_standard_library_only() -> None:
    """The SDK is one file for Python 3.9 without any import from elsewhere."""
    tree = ast.parse(SDK.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= standard_library()


def test_renamed(tmp_path: Path) -> None:
    """The file also serves under the name of the CFEngine Build library."""
    (tmp_path / "cfengine_module_library.py").write_bytes(SDK.read_bytes())
    text = MODULE.replace("from cfengine ", "from cfengine_module_library ").format(methods="")
    (tmp_path / "other").mkdir()
    ended = start(tmp_path / "other", text=text, PYTHONPATH=str(tmp_path)).finish(HEADER + evaluate() + TERMINATE)
    assert [answer.result for answer in ended.answers] == ["kept", "success"]


@pytest.mark.parametrize("by_name", [True, False])
def test_start_takes_text_files(by_name: bool) -> None:
    """start() also speaks through text files, given by position or by name."""
    heard, said = io.StringIO((HEADER + evaluate("grüße") + TERMINATE).decode()), io.StringIO()
    with pytest.raises(SystemExit) as ended:
        Kept().start(in_file=heard, out_file=said) if by_name else Kept().start(heard, said)
    assert ended.value.code in (0, None)
    answers = read_answers(said.getvalue().encode())
    assert [answer.result for answer in answers] == ["kept", "success"]
    assert answers[0].reply["promiser"] == "grüße"


def test_start_in_a_thread() -> None:
    """start() with files needs no main thread."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.extend(talk(Kept(), evaluate())))
    thread.start()
    thread.join(DEADLINE_S)
    assert [answer.result for answer in answers] == ["kept"]


# Hooks


def test_replies_name_the_request() -> None:
    """A reply repeats operation and promiser of its request and adds the result."""
    validated, evaluated = talk(Kept(), validate("one"), evaluate("two"))
    said = [[answer.reply[key] for key in ("operation", "promiser", "result")] for answer in (validated, evaluated)]
    assert said == [["validate_promise", "one", "valid"], ["evaluate_promise", "two", "kept"]]


def test_third_argument() -> None:
    """Hooks get the promise type, and the file and line where the agent sent them."""
    module = Kept()
    bare = {"operation": "evaluate_promise", "log_level": "info", "promise_type": "tested", "promiser": "p"}
    talk(module, validate(), evaluate(), json.dumps({**bare, "attributes": {}}).encode() + b"\n\n")
    place = {"promise_type": "tested", "filename": "/p.cf", "line_number": 12}
    assert [dict(metadata) for _, _, metadata in module.asked] == [place, place, {"promise_type": "tested"}]


def test_request_without_attributes() -> None:
    """A promise without any attribute is served with an empty dict."""
    module = Kept()
    request = {"operation": "evaluate_promise", "log_level": "info", "promise_type": "tested", "promiser": "p"}
    [answer] = talk(module, json.dumps(request).encode() + b"\n\n")
    assert (answer.result, module.asked[0][1]) == ("kept", {})


def test_third_argument_by_position(tmp_path: Path) -> None:
    """The name of the third parameter is the module's affair."""
    methods = """
        def validate_attributes(self, promiser, attributes, meta): pass
        def validate_promise(self, promiser, attributes, whatever): pass
        def evaluate_promise(self, promiser, attributes, request_metadata):
            return "kept" if request_metadata["promise_type"] == "tested" else "not_kept"
    """
    assert [answer.result for answer in run(tmp_path, methods, validate(), evaluate())] == ["valid", "kept"]


def test_init(tmp_path: Path) -> None:
    """protocol_init answers an init request."""
    methods = """
        def protocol_init(self, version):
            self.log_info("started")
            return Result.FAILURE
    """
    init = b'{"operation":"init","log_level":"info"}\n\n'
    [answer] = run(tmp_path, methods, init)
    assert answer == (["log_info=started"], {"operation": "init", "result": "failure"})
    [answer] = run(tmp_path, "", init)
    assert answer == ([], {"operation": "init", "result": "success"})


def test_prepare_changes_what_hooks_see(tmp_path: Path) -> None:
    """What prepare_promiser_and_attributes returns is what is validated and evaluated."""
    methods = """
        def __init__(self, *names):
            super().__init__(*names)
            self.add_attribute("wanted", str)
        def prepare_promiser_and_attributes(self, promiser, attributes):
            return promiser.upper(), {"wanted": attributes["given"]}
        def evaluate_promise(self, promiser, attributes, metadata):
            self.log_info(f"{promiser} {attributes}")
            return Result.KEPT
    """
    validated, evaluated = run(tmp_path, methods, validate(given="x"), evaluate(given="x"))
    assert validated.result == "valid"
    assert evaluated.log == "log_info=P {'wanted': 'x'}"


def test_validate_attributes_can_be_overridden(tmp_path: Path) -> None:
    """A module that overrides validate_attributes decides alone what is allowed, and gets attributes as they came."""
    methods = """
        def __init__(self, *names):
            super().__init__(*names)
            self.add_attribute("known", str, required=True)
        def validate_attributes(self, promiser, attributes, metadata):
            if "bad" in attributes:
                raise ValidationError("no good")
    """
    anything, bad = run(tmp_path, methods, validate(unknown="x"), validate(bad="x"))
    assert anything.result == "valid"
    assert (bad.result, bad.log) == ("invalid", "log_error=no good for tested promise with promiser 'p' (/p.cf:12)")


def test_hooks_that_are_missing() -> None:
    """Without validate_promise nor attributes nothing can be valid; without evaluate_promise nothing be kept."""
    validated, evaluated = talk(PromiseModule(), validate(), evaluate())
    assert (validated.result, evaluated.result) == ("error", "error")
    for answer in (validated, evaluated):
        assert any(line.startswith("log_critical=NotImplementedError") for line in answer.logs)
    module = PromiseModule()
    module.add_attribute("known", str)
    assert judge(module, known="x").result == "valid"


def test_validation_error_names_the_promise(tmp_path: Path) -> None:
    """A ValidationError becomes one error line with type, promiser, file and line, and the result invalid."""
    methods = """
        def validate_promise(self, promiser, attributes, metadata):
            raise ValidationError("size must be even")
    """
    bare = b'{"operation":"validate_promise","log_level":"info","promise_type":"tested","promiser":"p"}\n\n'
    full, placeless = run(tmp_path, methods, validate("some name"), bare)
    error = "log_error=size must be even for tested promise with promiser 'some name' (/p.cf:12)"
    assert (full.result, full.logs) == ("invalid", [error])
    assert placeless.logs == ["log_error=size must be even for tested promise with promiser 'p'"]


class Returns(Kept):
    """Returns something from evaluate_promise or validate_promise."""

    def __init__(self, returned: Any, validated: Any = None) -> None:
        super().__init__()
        self.returned, self.validated = returned, validated

    def validate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        return self.validated

    def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        return self.returned


@pytest.mark.parametrize("result", ["kept", "repaired", "not_kept", "error"])
def test_result_as_string(result: str) -> None:
    """A hook may return the result alone."""
    [answer] = talk(Returns(result), evaluate())
    assert (answer.result, answer.logs) == (result, []) and "result_classes" not in answer.reply


@pytest.mark.parametrize(("classes", "sent"), [(["a", "b c"], ["a", "b c"]), ([], None), (None, None)])
def test_result_with_classes(classes: Any, sent: Any) -> None:
    """A hook may return (result, classes); no classes are not sent at all."""
    [answer] = talk(Returns(("repaired", classes)), evaluate())
    assert (answer.result, answer.reply.get("result_classes")) == ("repaired", sent)
    assert answer.logs == []


def test_classes_of_one_promise_are_not_those_of_the_next(tmp_path: Path) -> None:
    """Result classes are forgotten after the promise that set them."""
    methods = """
        def evaluate_promise(self, promiser, attributes, metadata):
            return ("kept", ["c"]) if promiser == "first" else "kept"
    """
    first, second, validated = run(tmp_path, methods, evaluate("first"), evaluate("second"), validate())
    assert first.reply["result_classes"] == ["c"]
    assert "result_classes" not in second.reply and "result_classes" not in validated.reply


@pytest.mark.parametrize(
    "returned",
    [
        None,
        True,
        7,
        "",
        "Kept",
        "kept\n",
        "no result",
        b"kept",
        (),
        ("kept",),
        ("kept", ["a"], "x"),
        (None, ["a"]),
        ("unknown", ["a"]),
        ("kept", "a"),
        ("kept", 1),
        ("kept", {"a": "b"}),
        ("kept", ["a", 1]),
        ("kept", [["a"]]),
        ("kept", [None]),
    ],
    ids=repr,
)
def test_wrong_return_of_evaluate(returned: Any) -> None:
    """A return value that means nothing is an error that gives a reason, and the next promise is served."""
    answer, following = talk(Returns(returned), evaluate(), validate())
    assert (answer.result, following.result) == ("error", "valid")
    assert any(re.match("log_critical=.+", line) for line in answer.logs)
    assert "result_classes" not in answer.reply


@pytest.mark.parametrize("returned", ["valid", False, 0, ("valid", [])], ids=repr)
def test_wrong_return_of_validate(returned: Any) -> None:
    """validate_promise may return nothing; anything else is a bug of the module, with the reason."""
    answer, following = talk(Returns("kept", validated=returned), validate(), evaluate())
    assert (answer.result, following.result) == ("error", "kept")
    assert any(line.startswith("log_critical=") and "validate_promise" in line for line in answer.logs)


@pytest.mark.parametrize("returned", ["None", "'p'", "('p',)", "('p', {}, 1)", "5"])
def test_wrong_return_of_prepare(tmp_path: Path, returned: str) -> None:
    """A wrong return of prepare_promiser_and_attributes costs that promise alone."""
    methods = f"""
        def prepare_promiser_and_attributes(self, promiser, attributes):
            return {returned} if promiser == "bad" else (promiser, attributes)
    """
    bad, good = run(tmp_path, methods, evaluate("bad"), evaluate("good"))
    assert (bad.result, good.result) == ("error", "kept")
    assert "log_critical=" in bad.log


def test_attributes_that_are_no_json_any_more(tmp_path: Path) -> None:
    """A hook may put objects that JSON does not know into its attributes; the promise is answered all the same."""
    methods = """
        def evaluate_promise(self, promiser, attributes, metadata):
            attributes["object"] = object()
            attributes[("tuple",)] = b"bytes"
            return Result.KEPT
    """
    assert len(run(tmp_path, methods, evaluate(), evaluate())) == 2


# record_file_path


def side(transcript: Path, mark: bytes) -> bytes:
    """What one side said by a transcript: the lines behind `<` (agent) or `>` (module)."""
    lines = transcript.read_bytes().split(b"\n")
    return b"".join(line[2:] + b"\n" for line in lines if line[:1] == mark)


@pytest.mark.parametrize(
    "promiser", [b"p", "é".encode(), b"\xff", b"\\ud800", b"\\u0085 \\u2028 \\u000b", "\u2028".encode()]
)
def test_record_file(tmp_path: Path, promiser: bytes) -> None:
    """The conversation is appended to the record file, `< ` before what came and `> ` before what was said."""
    record = tmp_path / "record.txt"
    record.write_text("# before\n", encoding="utf-8")
    sent = HEADER + validate("NAME", "debug").replace(b"NAME", promiser) + TERMINATE
    out = io.BytesIO()
    module = Repeats(record_file_path=str(record))
    with pytest.raises(SystemExit):
        module.start(io.BytesIO(sent), out)
    assert record.read_bytes().startswith(b"# before\n< cf-agent 3.21.0 v1\n")
    assert side(record, b"<").rstrip() == sent.rstrip()  # whoever knows terminate need not read the blank line
    assert side(record, b">") == out.getvalue()
    assert [answer.result for answer in read_answers(out.getvalue())] == ["valid", "success"]


class Repeats(Kept):
    """Says what it hears."""

    def validate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        self.log_info(f"heard {promiser}")


def test_record_file_on_a_full_disk() -> None:
    """A record file that cannot be written any more costs no promise."""
    assert [answer.result for answer in talk(Kept(record_file_path="/dev/full"), evaluate())] == ["kept"]


# Attributes


def declared(name: str = "a", typing: Any = str, **options: Any) -> Kept:
    """A module that knows one attribute."""
    module = Kept()
    module.add_attribute(name, typing, **options)
    return module


def test_no_declared_attributes() -> None:
    """A module that declares nothing gets everything, unconverted."""
    module = Kept()
    assert judge(module, anything="true", number="5").result == "valid"
    assert module.asked[0][1] == {"anything": "true", "number": "5"}


def test_unknown_attribute() -> None:
    """An attribute that was not declared makes the promise invalid and is named."""
    answer = judge(declared("known"), known="x", strange="y")
    assert (answer.result, len(answer.logs)) == ("invalid", 1)
    assert answer.logs[0].startswith("log_error=") and "'strange'" in answer.logs[0] and "(/p.cf:12)" in answer.logs[0]


def test_required_attribute() -> None:
    """A required attribute that is missing makes the promise invalid and is named."""
    answer = judge(declared("wanted", required=True))
    assert (answer.result, len(answer.logs)) == ("invalid", 1)
    assert answer.logs[0].startswith("log_error=") and "'wanted'" in answer.logs[0]
    assert judge(declared("wanted", required=True), wanted="x").result == "valid"


def test_required_is_satisfied_by_the_promiser() -> None:
    """A required attribute with default_to_promiser is never missing."""
    module = declared("name", required=True, default_to_promiser=True)
    assert judge(module).result == "valid"
    assert module.create_attribute_dict("promiser", {}) == {"name": "promiser"}
    assert module.create_attribute_dict("promiser", {"name": "own"}) == {"name": "own"}


def test_add_attribute_by_position() -> None:
    """add_attribute(name, typing, default, required, default_to_promiser, validator), in this order."""
    seen: list[Any] = []
    module = Kept()
    module.add_attribute("a", int, 3, False, False, seen.append)
    module.add_attribute("b", str, None, True, True, None)
    assert judge(module, a="4").result == "valid"
    assert seen == [4]
    assert module.create_attribute_dict("p", {}) == {"a": 3, "b": "p"}


def test_defaults() -> None:
    """Attributes not in the promise get their default, the promiser or None; those in it stay."""
    module = Kept()
    module.add_attribute("given", str, default="default")
    module.add_attribute("left", str, default="default")
    module.add_attribute("false", bool, default=False)
    module.add_attribute("empty", list, default=[])
    module.add_attribute("nothing", int)
    module.add_attribute("name", str, default_to_promiser=True)
    assert module.create_attribute_dict("promiser", {"given": "own"}) == {
        "given": "own",
        "left": "default",
        "false": False,
        "empty": [],
        "nothing": None,
        "name": "promiser",
    }


def test_default_is_not_shared() -> None:
    """A promise that changes its default list does not change it for the next promise."""
    module = declared(typing=list, default=["x"])
    module.create_attribute_dict("p", {})["a"].append("y")
    assert module.create_attribute_dict("p", {}) == {"a": ["x"]}


def test_attribute_object() -> None:
    """create_attribute_object gives the same by attribute access, prints itself, and names what it has not."""
    module = declared(typing=str, default="x")
    made = module.create_attribute_object("p", {})
    assert isinstance(made, AttributeObject) and made.a == "x"
    assert repr(AttributeObject({"a": 1, "b": "x"})) == "AttributeObject(a=1, b='x')"
    with pytest.raises(AttributeError, match="'AttributeObject' object has no attribute 'missing'"):
        made.missing  # noqa: B018
    assert not hasattr(made, "missing") and getattr(made, "missing", 7) == 7


def test_create_attribute_dict_refuses() -> None:
    """create_attribute_dict raises ValidationError for what would be invalid."""
    module = declared("known", int, required=True)
    for attributes in ({}, {"known": 1, "strange": "x"}, {"known": "x"}, {"known": ["x"]}):
        with pytest.raises(ValidationError):
            module.create_attribute_dict("p", dict(attributes))
        with pytest.raises(ValidationError):
            module.create_attribute_object("p", dict(attributes))


def test_common_attributes_are_never_unknown() -> None:
    """The agent's common attributes come through to the hooks and never make a promise invalid."""
    module = declared("own", str)
    common = {name: f"some {name}" for name in COMMON_ATTRIBUTES.split()}
    validated, evaluated = talk(module, validate(own="x", **common), evaluate(own="x", **common))
    assert (validated.result, evaluated.result) == ("valid", "kept")
    assert [attributes for _, attributes, _ in module.asked] == [{"own": "x", **common}] * 2
    assert module.create_attribute_dict("p", {"own": "x", "comment": "why"})["own"] == "x"


def test_common_attribute_that_is_declared() -> None:
    """A module may declare a common attribute, which then is its own."""
    module = declared("ifelapsed", int, default=1)
    assert judge(module, ifelapsed="soon").result == "invalid"
    assert judge(module, ifelapsed="5").result == "valid"
    assert module.asked[-1][1] == {"ifelapsed": 5}
    assert module.create_attribute_dict("p", {}) == {"ifelapsed": 1}


CONVERTED: list[tuple[Any, Any, Any]] = [
    (str, "text", "text"),
    (str, "5", "5"),
    (str, "", ""),
    (bool, "true", True),
    (bool, "false", False),
    (bool, "yes", True),
    (bool, "no", False),
    (bool, "on", True),
    (bool, "off", False),
    (bool, True, True),
    (bool, False, False),
    (int, "0", 0),
    (int, "5000", 5000),
    (int, "007", 7),
    (int, "-5", -5),
    (int, str(2**70), 2**70),
    (int, 5, 5),
    (float, "0.5", 0.5),
    (float, "5", 5.0),
    (float, "0.500000", 0.5),
    (float, "1e3", 1000.0),
    (float, 2.5, 2.5),
    (list, ["a", "b"], ["a", "b"]),
    (list, [], []),
    (list, [1, {"b": None}], [1, {"b": None}]),
    (dict, {"a": 1}, {"a": 1}),
    (dict, {}, {}),
    (dict, '{"a": [1, {"b": "é"}]}', {"a": [1, {"b": "é"}]}),
    (dict, "{}", {}),
]


@pytest.mark.parametrize(("typing", "sent", "seen"), CONVERTED)
def test_conversions(typing: Any, sent: Any, seen: Any) -> None:
    """All values come as strings, lists or JSON; hooks get them in the declared type."""
    module = declared(typing=typing)
    validated, evaluated = talk(module, validate(a=sent), evaluate(a=sent))
    assert (validated.result, evaluated.result) == ("valid", "kept"), validated.log
    for _, attributes, _ in module.asked:
        assert attributes == {"a": seen} and type(attributes["a"]) is type(seen)


WRONG: dict[Any, list[Any]] = {
    str: [["a"], {"a": "b"}, True, None, 5],
    bool: ["maybe", "", "truely", 1, ["true"], None],
    int: ["5k", "", "5.5", "0x10", "1_000", "five", "--5", True, ["5"], {}, None, "9" * 5000],
    float: ["half", "", "1,5", "0.5s", True, ["0.5"], None],
    list: ["a", '["a"]', {"a": "b"}, 5, None],
    dict: ["a", "[1]", "5", "null", "{", ["a"], 5, None, '{"a":' * 100_000],
}


@pytest.mark.parametrize(
    ("typing", "sent"),
    [pytest.param(typing, sent, id=f"{typing.__name__}-{sent!r:.30}") for typing in WRONG for sent in WRONG[typing]],
)
def test_wrong_type(typing: Any, sent: Any) -> None:
    """A value of another type makes the promise invalid, with one error line that names the attribute."""
    answer, following = talk(declared("named", typing), validate(named=sent), validate())
    assert (answer.result, following.result) == ("invalid", "valid"), answer.log
    assert len(answer.logs) == 1 and answer.logs[0].startswith("log_error=") and "'named'" in answer.logs[0]


@pytest.mark.parametrize(("typing", "sent"), [(int, "5k"), (bool, "maybe"), (float, "half"), (str, ["some", "list"])])
def test_wrong_type_shows_the_value(typing: Any, sent: Any) -> None:
    """The error of a wrong type says what was given."""
    assert str(sent) in judge(declared(typing=typing), a=sent).logs[0]


def test_validator() -> None:
    """A validator sees the converted value; what it returns does not matter."""
    seen: list[Any] = []

    def validator(value: Any) -> bool:
        seen.append(value)
        return False

    assert judge(declared(typing=int, validator=validator), a="5").result == "valid"
    assert seen == [5]


@pytest.mark.parametrize(
    "error",
    [
        ValidationError("it is odd"),
        ValueError("it is odd"),
        KeyError("it is odd"),
        SystemExit("it is odd"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "it is odd"),
        asyncio.CancelledError("it is odd"),  # no Exception, as SystemExit is none
    ],
    ids=lambda error: type(error).__name__,
)
def test_validator_that_raises(error: BaseException) -> None:
    """A validator that raises anything makes an invalid promise with a readable error."""

    def validator(value: Any) -> None:
        raise error

    answer, following = talk(declared(validator=validator), validate(a="x"), validate())
    assert (answer.result, following.result) == ("invalid", "valid")
    assert len(answer.logs) == 1 and answer.logs[0].startswith("log_error=") and "it is odd" in answer.logs[0]
    assert "(/p.cf:12)" in answer.logs[0]


@pytest.mark.parametrize("error", [ValueError(), AssertionError(), ZeroDivisionError()], ids=repr)
def test_validator_that_raises_without_text(error: Exception) -> None:
    """An exception without text still makes a readable error: the attribute and the kind of exception are named."""

    def validator(value: Any) -> None:
        raise error

    answer = judge(declared("named", validator=validator), named="x")
    assert answer.result == "invalid"
    assert "named" in answer.log and type(error).__name__ in answer.log


# Text


PLAIN = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
REPEAT = """
def evaluate_promise(self, promiser, attributes, metadata):
    self.log_info("heard " + promiser)
    self.log_info(ascii((promiser, attributes)))
    return Result.KEPT, ["class_" + promiser]
"""


@pytest.mark.parametrize("promiser", ["é", "日本", "🎉", "Ã©", "a\u0085b\u2028c\u2029d", ""])
def test_utf8_in_any_locale(tmp_path: Path, promiser: str) -> None:
    """Raw UTF-8 is read and written as such in the C locale; replies have no \\u escapes."""
    [answer] = run(tmp_path, REPEAT, evaluate(promiser, key=[promiser, {promiser: promiser}]), **PLAIN)
    seen = {"key": [promiser, {promiser: promiser}]}
    assert answer.logs == [f"log_info=heard {promiser}", "log_info=" + ascii((promiser, seen))]
    assert answer.reply["promiser"] == promiser and answer.reply["result_classes"] == ["class_" + promiser]


def test_replies_are_raw_utf8() -> None:
    """A reply is written as UTF-8, without \\u escapes."""
    out = io.BytesIO()
    with pytest.raises(SystemExit):
        Returns(("kept", ["日本"])).start(io.BytesIO(HEADER + evaluate("é🎉") + TERMINATE), out)
    assert "é🎉".encode() in out.getvalue() and "日本".encode() in out.getvalue() and b"\\u" not in out.getvalue()


@pytest.mark.parametrize("raw", [b"\xff", b"caf\xe9", b"\xc3", b"\xed\xa0\x80", b"\xc3\xa9\x80"])
def test_invalid_bytes(tmp_path: Path, raw: bytes) -> None:
    """Bytes that are no UTF-8 reach the hooks as os.fsdecode gives them, and go back as they came."""
    request = evaluate("NAME", a="NAME").replace(b"NAME", raw)
    [answer] = run(tmp_path, REPEAT, request, **PLAIN)
    text = raw.decode("utf-8", "surrogateescape")
    assert answer.logs == [f"log_info=heard {text}", "log_info=" + ascii((text, {"a": text}))]
    assert answer.reply["promiser"] == text


def byte_wise(text: str) -> str:
    """JSON string as 3.27 writes it: each byte of the UTF-8 as a code point of its own."""
    return json.dumps(text.encode("utf-8", "surrogateescape").decode("latin-1"))


@pytest.mark.parametrize("text", ["é", "grüße aus 日本 🎉", "Ã©", "plain", ""])
def test_byte_wise_escapes(text: str) -> None:
    """3.27's escapes are put together again, in promisers, values and keys at any depth."""
    module = Kept()
    escaped = byte_wise(text)
    request = f"""{{"operation":"evaluate_promise","log_level":"info","promise_type":"tested","promiser":{escaped},
        "attributes":{{"a":{escaped},"b":[{escaped},{{{escaped}:{escaped},"n":1}}]}}}}"""
    [answer] = talk(module, request.replace("\n", "").encode() + b"\n\n")
    assert module.asked[0][:2] == (text, {"a": text, "b": [text, {text: text, "n": 1}]})
    assert answer.reply["promiser"] == text


def test_byte_wise_escape_of_the_paper() -> None:
    """The measured example: \\u00c3\\u00a9 is é."""
    module = Kept()
    talk(module, evaluate("NAME").replace(b"NAME", rb"\u00c3\u00a9"))
    assert module.asked[0][0] == "é"


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        (rb"\u20ac", "€"),
        (rb"\u00e9", "é"),
        (rb"\u00c3\u00a9\u20ac", "Ã©€"),
        (rb"\u00ff", "ÿ"),
        ("Ã©".encode(), "Ã©"),
        ("日".encode() + rb"\u00c3\u00a9", "日Ã©"),
    ],
)
def test_escapes_that_are_no_bytes(raw: bytes, seen: str) -> None:
    """What cannot be 3.27's escapes is left as it is."""
    module = Kept()
    talk(module, evaluate("NAME").replace(b"NAME", raw))
    assert module.asked[0][0] == seen


@pytest.mark.parametrize("escape", [rb"\ud800", rb"\udcff", rb"\udfff\ud800", rb"\u0000"])
def test_escapes_of_no_character(escape: bytes) -> None:
    """Lone surrogates and NUL in a promiser and in log text neither end the module nor spoil its stdout."""
    answer, following = talk(Repeats(), validate("NAME", a="NAME").replace(b"NAME", escape), evaluate())
    assert (answer.result, following.result) == ("valid", "kept")


def test_control_characters() -> None:
    """cf-agent 3.21 does not escape most control characters in its JSON; they are read all the same."""
    module = Kept()
    control = "".join(map(chr, (*range(1, 10), 11, 12, *range(14, 32), 127)))
    [answer] = talk(module, evaluate("NAME", a="NAME").replace(b"NAME", control.encode()))
    assert (answer.result, module.asked[0][:2]) == ("kept", (control, {"a": control}))


def test_long_line() -> None:
    """A line of megabytes is one request."""
    module = Kept()
    text = "é" * 2_000_000
    [answer] = talk(module, evaluate(text))
    assert (answer.result, module.asked[0][0]) == ("kept", text)


# Log lines


SPEAK = """
def speak(self):
    for level in ("critical", "error", "warning", "notice", "info", "verbose", "debug"):
        getattr(self, "log_" + level)("said")
def validate_promise(self, promiser, attributes, metadata):
    self.speak()
def evaluate_promise(self, promiser, attributes, metadata):
    self.speak()
    return Result.KEPT
"""
ALWAYS = ["log_critical=said", "log_error=said", "log_warning=said", "log_notice=said", "log_info=said"]


@pytest.mark.parametrize(
    ("log_level", "more"),
    [
        ("error", []),
        ("warning", []),
        ("notice", []),
        ("info", []),
        ("verbose", ["log_verbose=said"]),
        ("debug", ["log_verbose=said", "log_debug=said"]),
    ],
)
def test_log_levels(tmp_path: Path, log_level: str, more: list[str]) -> None:
    """Info and more severe are always sent; verbose and debug only to an agent that asks for them."""
    for answer in run(tmp_path, SPEAK, validate(log_level=log_level), evaluate(log_level=log_level)):
        assert answer.logs == ALWAYS + more


def test_log_level_is_that_of_each_request() -> None:
    """The level asked for with one request does not last for the next."""

    class Verbose(Kept):
        def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
            self.log_verbose("said")
            return Result.KEPT

    first, second = talk(Verbose(), evaluate(log_level="verbose"), evaluate(log_level="info"))
    assert (first.logs, second.logs) == (["log_verbose=said"], [])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", r"one\ntwo"),
        ("one\r\ntwo\n", r"one\r\ntwo\n"),
        ("nul\0nul", r"nul\0nul"),
        ("", ""),
        ("a=b c", "a=b c"),
        (ValueError("an object"), "an object"),
        (None, "None"),
        ("\udcff\ud800", None),
    ],
)
def test_log_text(text: Any, line: str | None) -> None:
    """Log text is anything that can be printed and stays one line."""

    class Says(Kept):
        def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
            self.log_info(text)
            return Result.KEPT

    [answer] = talk(Says(), evaluate())
    assert answer.result == "kept" and len(answer.logs) == 1
    assert line is None or answer.logs == ["log_info=" + line]


def test_log_in_terminate(tmp_path: Path) -> None:
    """protocol_terminate may log, though its request has no log_level."""
    methods = SPEAK + "def protocol_terminate(self):\n    self.speak()\n    return 'success'"
    ended = start(tmp_path, methods).finish(HEADER + TERMINATE)
    assert ended.status == 0
    assert ended.answers == [(ALWAYS, {"operation": "terminate", "result": "success"})]


# stdout belongs to the protocol


PRINTS = {
    "line": ("print('stray')", ["log_verbose=stray"]),
    "no newline": ("print('stray', end='')", ["log_verbose=stray"]),
    "two lines": ("print('one\\ntwo')", ["log_verbose=one", "log_verbose=two"]),
    "in pieces": ("print('one ', end=''); print('two')", ["log_verbose=one two"]),
    "text outside ASCII": ("print('é🎉')", ["log_verbose=é🎉"]),
    "carriage return": ("print('10%\\r20%')", ["log_verbose=10%\\r20%"]),
    "flushed": ("print('stray', flush=True)", ["log_verbose=stray"]),
    "write": ("sys.stdout.write('stray\\n'); sys.stdout.flush()", ["log_verbose=stray"]),
    "looks like protocol": ('print(\'{"result": "kept"}\\n\')', None),
}


@pytest.mark.parametrize("case", PRINTS)
@pytest.mark.parametrize("hook", ["validate_promise", "evaluate_promise"])
def test_stray_print(tmp_path: Path, hook: str, case: str) -> None:
    """What a hook prints becomes verbose log lines of its own promise."""
    statement, logs = PRINTS[case]
    methods = f"def {hook}(self, promiser, attributes, metadata):\n    {statement}\n"
    methods += "    return Result.KEPT" if hook == "evaluate_promise" else ""
    verbose, following, quiet = run(
        tmp_path, methods, ask(hook, log_level="verbose"), ask(hook, log_level="verbose"), ask(hook), **PLAIN
    )
    if logs is not None:
        assert verbose.logs == following.logs == logs
    assert verbose.result == quiet.result != "error"
    assert quiet.logs == []


@pytest.mark.parametrize(
    "statement",
    [
        "os.write(1, b'stray')",
        "subprocess.run(['echo', 'stray'], check=True)",
        "subprocess.run([sys.executable, '-c', 'import os; os.write(1, bytes(range(256)))'], check=True)",
        "os.system('echo stray')",
        "sys.__stdout__.write('stray'); sys.__stdout__.flush()",
        "os.fdopen(os.dup(1), 'wb').write(b'stray')",
    ],
)
def test_writes_below_python(tmp_path: Path, statement: str) -> None:
    """What is written to file descriptor 1, by the module or its children, goes to stderr, not to the agent."""
    methods = f"""
        def evaluate_promise(self, promiser, attributes, metadata):
            {statement}
            return Result.KEPT
    """
    ended = start(tmp_path, methods).finish(HEADER + evaluate(log_level="debug") + evaluate() + TERMINATE)
    assert [answer.result for answer in ended.answers] == ["kept", "kept", "success"]
    assert ended.answers[0].logs == []
    assert "stray" in ended.complaint or "range" in statement


def test_print_outside_of_requests(tmp_path: Path) -> None:
    """What is printed before start, in the last hook and at exit never mixes with the protocol."""
    text = """\
        import atexit
        from cfengine import PromiseModule
        atexit.register(print, "at exit")
        print("before start")

        class Tested(PromiseModule):
            def protocol_terminate(self):
                print("at the end", end="")
                return "success"

        module = Tested("tested", "1.2.3")
        print("still before start", end="")
        module.start()
    """
    ended = start(tmp_path, text=text).finish(HEADER + TERMINATE)
    assert [answer.result for answer in ended.answers] == ["success"]
    assert ended.status == 0


def test_buffer_of_stdout(tmp_path: Path) -> None:
    """A module that writes to sys.stdout.buffer hurts at most its own promise."""
    methods = """
        def evaluate_promise(self, promiser, attributes, metadata):
            if promiser == "bad":
                sys.stdout.buffer.write(b"stray")
                sys.stdout.buffer.flush()
            return Result.KEPT
    """
    ended = start(tmp_path, methods).finish(HEADER + evaluate("bad") + evaluate() + TERMINATE)
    assert [answer.result for answer in ended.answers][1:] == ["kept", "success"]


@pytest.mark.parametrize(
    "statement",
    [
        "subprocess.run(['cat'], check=True)",
        "os.system('read line')",
        "assert sys.stdin.read() == ''",
        "assert os.read(0, 1000) == b''",
        "assert subprocess.run(['cat'], check=True, capture_output=True).stdout == b''",
    ],
)
def test_stdin_is_not_for_hooks(tmp_path: Path, statement: str) -> None:
    """A hook or a child of it that reads stdin gets nothing at once, and the requests stay for the module."""
    methods = f"""
        def evaluate_promise(self, promiser, attributes, metadata):
            {statement}
            return Result.KEPT
    """
    assert [answer.result for answer in run(tmp_path, methods, evaluate(), evaluate(), validate())] == [
        "kept",
        "kept",
        "valid",
    ]


# Exceptions in hooks


HOOKS = {
    "protocol_init": ("self, version", b'{"operation":"init","log_level":"LEVEL"}\n\n'),
    "prepare_promiser_and_attributes": ("self, promiser, attributes", evaluate(log_level="LEVEL")),
    "validate_attributes": ("self, promiser, attributes, metadata", validate(log_level="LEVEL")),
    "validate_promise": ("self, promiser, attributes, metadata", validate(log_level="LEVEL")),
    "evaluate_promise": ("self, promiser, attributes, metadata", evaluate(log_level="LEVEL")),
}


def raising(hook: str, statement: str) -> str:
    """A hook that raises at its first call and does as usual then."""
    arguments = HOOKS[hook][0]
    usual = {"evaluate_promise": "'kept'", "validate_promise": "None"}.get(hook, f"super().{hook}({arguments[6:]})")
    return f"""
        def {hook}({arguments}):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 1:
                {statement}
            return {usual}
    """


ERRORS = {
    "raise ValueError('it broke')": "log_critical=ValueError: it broke",
    "raise KeyError('name')": "log_critical=KeyError: 'name'",
    "raise OSError(2, 'No such file')": "log_critical=FileNotFoundError: [Errno 2] No such file",
    "raise ValueError('two\\nlines')": "log_critical=ValueError: two\\nlines",
    "raise UnicodeError('\\udcff')": "log_critical=UnicodeError: \udcff",
    "sys.exit()": "log_critical=SystemExit",
    "sys.exit('no more')": "log_critical=SystemExit: no more",
    "import asyncio; raise asyncio.CancelledError('odd')": "log_critical=CancelledError: odd",
    "raise ProtocolError('why')": "log_critical=ProtocolError: why",
    "return self.evaluate_forever()": "log_critical=AttributeError: ",
    "(lambda f: f(f))(lambda f: f(f))": "log_critical=RecursionError: ",
    "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()": "log_critical=",
}


@pytest.mark.parametrize("statement", ERRORS)
@pytest.mark.parametrize("hook", HOOKS)
def test_exception_in_a_hook(tmp_path: Path, hook: str, statement: str) -> None:
    """No exception of a hook ends the process: that request gets an error with the reason, the next is served."""
    request = HOOKS[hook][1].replace(b"LEVEL", b"verbose")
    failed, following = run(tmp_path, raising(hook, statement), request, request)
    assert failed.result == "error"
    assert any(line.startswith(ERRORS[statement]) for line in failed.logs), failed.logs
    assert following.result in ("success", "valid", "kept") and following.logs == []
    assert "Traceback" not in failed.log


@pytest.mark.parametrize("hook", HOOKS)
def test_traceback_for_debug(tmp_path: Path, hook: str) -> None:
    """An agent that asks for debug gets the traceback too, as debug lines."""
    request = HOOKS[hook][1].replace(b"LEVEL", b"debug")
    failed, _ = run(tmp_path, raising(hook, "raise ValueError('it broke')"), request, request)
    assert failed.logs[0].startswith("log_critical=ValueError: it broke")
    assert any(re.match("log_debug=.*Traceback", line) for line in failed.logs)
    assert any(re.match("log_debug=.*module.py", line) for line in failed.logs)


@pytest.mark.parametrize("statement", ["raise ValueError('it broke')", "sys.exit(3)"])
def test_terminate_that_fails(tmp_path: Path, statement: str) -> None:
    """A protocol_terminate that fails is answered with an error, and then the module ends as usual."""
    ended = start(tmp_path, f"def protocol_terminate(self):\n    {statement}").finish(HEADER + TERMINATE)
    [answer] = ended.answers
    assert (answer.result, answer.reply["operation"], ended.status, ended.complaint) == ("error", "terminate", 0, "")
    assert "log_critical=" in answer.log


@pytest.mark.parametrize("returned", ["None", "'odd'", "object()", "('success', [])"])
def test_odd_return_of_init_and_terminate(tmp_path: Path, returned: str) -> None:
    """Whatever protocol_init and protocol_terminate return, both are answered and the module ends as usual."""
    methods = f"""
        def protocol_init(self, version):
            return {returned}
        def protocol_terminate(self):
            return {returned}
    """
    init = b'{"operation":"init","log_level":"info"}\n\n'
    ended = start(tmp_path, methods).finish(HEADER + init + evaluate() + TERMINATE)
    assert [answer.reply["operation"] for answer in ended.answers] == ["init", "evaluate_promise", "terminate"]
    assert (ended.status, ended.complaint) == (0, "")


def test_terminate_ends_the_process(tmp_path: Path) -> None:
    """After the answer to terminate the module ends, though the agent has not closed the pipe yet."""
    module = start(tmp_path)
    module.say(HEADER + TERMINATE + evaluate())
    assert module.process.wait(DEADLINE_S) == 0
    assert [answer.result for answer in module.finish().answers] == ["success"]


# The end without terminate


ENDS = {
    "before the header": b"",
    "within the header": HEADER[:9],
    "header without blank line": HEADER[:-1],
    "after the header": HEADER,
    "half a request": HEADER + evaluate()[:40],
    "request without newline": HEADER + evaluate()[:-2],
    "request without blank line": HEADER + evaluate()[:-1],
    "after a request": HEADER + evaluate(),
    "half a second request": HEADER + evaluate() + validate()[:40],
}


@pytest.mark.parametrize("case", ENDS)
def test_end_of_input(tmp_path: Path, case: str) -> None:
    """An agent that goes away without terminate: a clean end, whole lines, one line on stderr."""
    ended = start(tmp_path).finish(ENDS[case])
    assert_clean_failure(ended)
    results = [answer.result for answer in ended.answers]
    assert results in ([["kept"]] if "after a" in case or "second" in case else [[], ["kept"]])


GARBAGE = {
    "text": b"hello\n\n",
    "bytes": b"\xff\xfe\x01\x02\n\n",
    "unfinished JSON": b'{"operation":"evaluate_promise"\n\n',
    "number": b"5\n\n",
    "string": b'"terminate"\n\n',
    "null": b"null\n\n",
    "list": b'[{"operation":"terminate"}]\n\n',
    "empty object": b"{}\n\n",
    "no operation": b'{"promiser":"p"}\n\n',
    "unknown operation": b'{"operation":"dance","log_level":"info"}\n\n',
    "operation of a wrong type": b'{"operation":["terminate"]}\n\n',
    "operation null": b'{"operation":null}\n\n',
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_instead_of_a_request(tmp_path: Path, case: str) -> None:
    """The agent, which waits, is answered with an error and its reason; then the module ends."""
    ended = start(tmp_path).finish(HEADER + validate() + GARBAGE[case] + evaluate() + TERMINATE)
    assert_clean_failure(ended)
    valid, answer = ended.answers
    assert (valid.result, answer.result) == ("valid", "error")
    assert len(answer.logs) == 1 and re.match("log_critical=.", answer.logs[0])


def test_garbage_ends_the_process(tmp_path: Path) -> None:
    """After garbage the module does not wait for more: it ends though the pipe is open."""
    module = start(tmp_path)
    module.say(HEADER + b"hello\n\n")
    assert module.process.wait(DEADLINE_S) > 0
    assert_clean_failure(module.finish())


@pytest.mark.parametrize("options", [(), ("-O",)])
@pytest.mark.parametrize(
    "header", [b"hello\n\n", b"\xff\xff\n\n", b"\n\n", b'{"operation":"terminate"}\n\n', b"cf-agent\n\n"]
)
def test_garbage_instead_of_a_header(tmp_path: Path, header: bytes, options: tuple[str, ...]) -> None:
    """Whoever does not greet like cf-agent gets no greeting: a clean end, with and without assertions."""
    ended = start(tmp_path, options=options).finish(header + evaluate() + TERMINATE)
    assert_clean_failure(ended)
    assert ended.answers == []


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"operation":"evaluate_promise","log_level":"info","promise_type":"tested","attributes":{}}\n\n',
        evaluate("NAME").replace(b'"NAME"', b"5"),
        evaluate("NAME").replace(b'"NAME"', b"null"),
        evaluate().replace(b"{}", b"[]"),
        evaluate().replace(b"{}", b"null"),
        evaluate().replace(b"{}", b'"text"'),
    ],
)
def test_request_with_wrong_parts(damaged: bytes) -> None:
    """A known operation with parts missing or of a wrong type is answered with an error and a reason."""
    out = io.BytesIO()
    with pytest.raises(SystemExit):
        declared().start(io.BytesIO(HEADER + damaged + TERMINATE), out)
    answer = read_answers(out.getvalue())[0]
    assert answer.result == "error" and "log_critical=" in answer.log


@pytest.mark.parametrize("depth", [100, 300, 900, 2_000, 100_000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    """JSON nested too deeply to read is answered with an error, and the module goes on."""
    request = evaluate(a="DEEP").replace(b'"DEEP"', b"[" * depth + b"]" * depth)
    objects = evaluate(a="DEEP").replace(b'"DEEP"', b'{"a":' * depth + b"1" + b"}" * depth)
    *deep, following = run(tmp_path, "", request, objects, evaluate())
    assert following.result == "kept"
    for answer in deep:
        assert answer.result == ("kept" if depth == 100 else "error" if depth == 100_000 else answer.result)
        assert answer.result == "kept" or "log_critical=" in answer.log


# Signals


BUSY = """
    def sleeping(self):
        self.log_info("begun")
        time.sleep(600)
    def waiting_for_a_child(self):
        child = subprocess.Popen(["sleep", "600"])
        try:
            self.log_info("begun")
            child.wait()
        finally:
            child.kill()
    def computing(self):
        self.log_info("begun")
        while True:
            pass
    def catching_exceptions(self):
        while True:
            try:
                self.log_info("begun")
                time.sleep(600)
            except Exception:
                pass
    def catching_everything_once(self):
        try:
            self.log_info("begun")
            time.sleep(600)
        except:
            pass
    def evaluate_promise(self, promiser, attributes, metadata):
        print("half a line", end="")
        getattr(self, promiser)()
        return Result.KEPT
"""
BOTH_SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def assert_ended_by(module: Child, number: signal.Signals) -> list[Answer]:
    """The signal ends the module cleanly, though its pipes are open; gives its answers, the last one cut off or not."""
    module.process.send_signal(number)
    assert module.process.wait(DEADLINE_S) > 0
    ended = module.finish()
    assert_clean_failure(ended)
    return read_answers(ended.said, cut_off=True)


@BOTH_SIGNALS
def test_signal_between_requests(tmp_path: Path, number: signal.Signals) -> None:
    """A signal while the module waits for the next request ends it cleanly."""
    module = start(tmp_path)
    module.say(HEADER + evaluate())
    module.hear(b"}\n\n")
    assert [answer.result for answer in assert_ended_by(module, number)] == ["kept"]


@BOTH_SIGNALS
def test_signal_before_the_header(tmp_path: Path, number: signal.Signals) -> None:
    """A signal while the module waits for the header ends it cleanly."""
    module = start(tmp_path)
    wait_for(lambda: sleeps_ready_for_sigterm(module.process.pid))
    assert assert_ended_by(module, number) == []


def wait_for(event: Callable[[], bool]) -> None:
    """Look until it has happened."""
    deadline = time.monotonic() + DEADLINE_S
    while not event():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def sleeps_ready_for_sigterm(pid: int) -> bool:
    """Whether a process has set up a handler and now waits: then start() is reading."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    caught = int(re.findall(r"SigCgt:\s*([0-9a-f]+)", status)[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and "State:\tS" in status


@BOTH_SIGNALS
@pytest.mark.parametrize("how", re.findall(r"def (\w+)\(self\)", BUSY))
def test_signal_during_evaluate(tmp_path: Path, number: signal.Signals, how: str) -> None:
    """A signal while a hook is busy ends the module cleanly; what was said so far is whole lines."""
    module = start(tmp_path, BUSY)
    module.say(HEADER + evaluate(how, log_level="debug"))
    module.hear(b"log_info=begun\n")
    answers = assert_ended_by(module, number)
    assert [answer.result for answer in answers] in ([], ["error"], ["kept"])


def test_signal_within_a_line(tmp_path: Path) -> None:
    """A signal in the middle of a long line does not cut it: the agent finds nothing half-written."""
    methods = """
        def evaluate_promise(self, promiser, attributes, metadata):
            self.log_info("x" * 1_000_000)
            return Result.KEPT
    """
    module = start(tmp_path, methods)
    module.say(HEADER + evaluate())
    wait_for(lambda: waiting_bytes(module.process.stdout) > 30_000)
    module.process.send_signal(signal.SIGTERM)
    ended = module.finish()
    assert_clean_failure(ended)
    read_answers(ended.said, cut_off=True)


def waiting_bytes(pipe: Any) -> int:
    """How much is in a pipe; it holds less than the line of the test."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


def test_agent_is_gone(tmp_path: Path) -> None:
    """A stdout that nobody reads any more: a clean end, no traceback."""
    module = start(tmp_path)
    module.say(HEADER)
    module.hear(b"\n\n")
    assert module.process.stdout and module.process.stderr
    module.process.stdout.close()
    module.say(evaluate() + evaluate() + TERMINATE)
    complaint = module.process.stderr.read().decode()
    assert_clean_failure(Ended(module.process.wait(DEADLINE_S), b"", complaint))
