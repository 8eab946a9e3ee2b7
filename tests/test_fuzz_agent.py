"""Whatever an agent may say to the module: understood, or answered with our own error.

The invariant: stdout is the protocol to the last byte, every request is answered until one of them ends the module, the
end is SystemExit or an exit status, nothing that was opened stays open, and nowhere is a traceback.

In what is generated, "<name>" stands for an endpoint or a path of this session: see places().
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fuzz
from agent import MODULE_PYTHON
from cf_messaging.keys import certificate
from cf_messaging.outcomes import Reason
from cf_messaging.promise import MessagesPromise
from cfengine import PromiseModule
from demo import REPOSITORY
from neighbours import NEIGHBOURS, Neighbours
from peers import free_port, in_time, refused_endpoint, scaled
from test_attributes import ALLOWED_WITH, INVALID, KEY, NEEDED, anything, names
from test_cfengine import HEADER, TERMINATE, Answer, Ended, assert_clean_failure, evaluate, read_answers, validate
from test_cfengine_fuzz import Speaks, any_text, json_values

pytestmark = pytest.mark.fuzz
each_kind = pytest.mark.parametrize("kind", [MessagesPromise, Speaks])

OPERATIONS = ("init", "validate_promise", "evaluate_promise", "terminate")


# ---- where


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each "<name>" stands for."""
    folder = tmp_path_factory.mktemp("fuzz")
    with Neighbours(folder) as neighbours:
        yield {**neighbours.endpoints, **nobody_in(folder), **files_in(folder)}


def nobody_in(folder: Path) -> dict[str, str]:
    """Endpoints where nobody is."""
    return {
        "<refused>": refused_endpoint(),
        "<no name>": "tcp://nobody.invalid:5309",
        "<no domain>": "tcp://a..b:5309",
        "<no scope>": "tcp://[fe80::1%nowhere]:5309",
        "<no socket>": f"ipc://{folder}/none",
        "<in no folder>": f"ipc://{folder}/none/none",
        "<folder as a socket>": f"ipc://{folder}",
        "<bytes>": f"ipc://{folder}/\udcff",
        "<mine>": f"ipc://{folder}/mine",
        "<abstract>": f"ipc://@messages-{os.getpid()}",
        "<my port>": f"tcp://127.0.0.1:{free_port()}",
        "<any host>": f"tcp://*:{free_port()}",
    }


def files_in(folder: Path) -> dict[str, str]:
    """Paths of all sorts, but all of them below one folder, or where not even root can write."""
    (folder / "said").write_text("said in a file")
    (folder / "certificates").mkdir()
    (folder / "certificates/known.key").write_text(certificate(bytes.fromhex(KEY)))
    os.mkfifo(folder / "fifo")
    ends = {
        **{name: name for name in ("said", "heard", "fifo", "none", "none/heard", "said/heard", "own/key")},
        **{name: name for name in ("certificates", "certificates/known.key")},
        "long name": "x" * 300,
        "long path": "x/" * 3000 + "x",
        "odd name": "a b\n\\é",
        "bytes as a name": "\udcff",
        "half a pair": "\ud800",
    }
    return {
        "<folder>": str(folder),
        "<proc>": "/proc/heard",
        **{f"<{name.replace('.', ' ')}>": f"{folder}/{ends[name]}" for name in ends},
    }


def placed(sent: bytes, places: dict[str, str]) -> bytes:
    """The same with what each "<name>" in it stands for."""
    return re.sub(rb'"(<[a-zA-Z0-9/ ]+>)"', lambda name: line(places.get(name[1].decode(), "<>")), sent)


@pytest.fixture(autouse=True)
def nothing_stays_open(places: dict[str, str]) -> Iterator[None]:
    """A test leaves no descriptor behind: all that its modules opened was closed.

    What neighbours have accepted is theirs: one whose queue is full does not read, and so not that its peer has left.
    """
    before = descriptors(places)
    yield
    until = in_time(60)
    while left_open := descriptors(places) - before:
        assert monotonic() < until, "\n".join([str(left_open), *sockets()])
        sleep(0.01)  # until the neighbours have seen who left; they themselves try to connect again and again


def descriptors(places: dict[str, str]) -> Counter[str]:
    """What this process has open, and how often, but for the connections that neighbours have accepted."""
    opened: Counter[str] = Counter()
    ports = {int(places[f"<{name}>"].rpartition(":")[2]) for name in NEIGHBOURS}
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # of listdir() itself
            target = os.readlink(f"/proc/self/fd/{number}")
            opened[re.sub("[0-9]", "", target)] += not (target.startswith("socket:") and is_accepted(number, ports))
    return +opened


def is_accepted(number: str, ports: set[int]) -> bool:
    """Whether this socket was accepted at one of the ports; the kernel lists none that its peer has reset."""
    with socket.socket(fileno=os.dup(int(number))) as same:
        is_tcp = same.family == socket.AF_INET and same.type == socket.SOCK_STREAM
        listens = same.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return is_tcp and not listens and same.getsockname()[1] in ports


def sockets() -> list[str]:
    """What the kernel knows of the sockets of this process, as far as it lists them."""
    own = {os.path.basename(link)[len("socket:[") : -1] for link in map(_target, os.listdir("/proc/self/fd"))}
    tables = [Path(f"/proc/self/net/{kind}").read_text().splitlines() for kind in ("tcp", "tcp6", "udp", "unix")]
    return [line for line in chain(*tables) if own.intersection(line.split())]


def _target(number: str) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}")
    return ""


# ---- the conversation


def line(value: object, form: str = "escaped") -> bytes:
    """JSON as some agents write it: escaped, raw, or each byte of its UTF-8 escaped."""
    if form == "byte-wise":
        return re.sub(rb"[^\0-\x7f]", lambda byte: b"\\u%04x" % byte[0][0], line(value, "raw"))
    text = json.dumps(value, ensure_ascii=form == "escaped")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def conversation(values: list[Any], form: str = "escaped") -> bytes:
    return HEADER + b"".join(line(value, form) + b"\n\n" for value in values) + TERMINATE


def answered(values: list[Any]) -> list[Any]:
    """Those of these requests that are answered: all up to the one that ends the module."""
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict) or value.get("operation") not in OPERATIONS[:-1]:
            return values[:number]
    return [*values, "terminate"]


def serve(module: PromiseModule, sent: bytes) -> tuple[list[Answer], object]:
    """The answers of a module in this process to these bytes and its exit status, checked."""
    fuzz.watch()
    out = io.BytesIO()
    with pytest.raises(SystemExit) as ended:
        start(module, io.BytesIO(sent), out)
    answers, status = read_answers(out.getvalue()), ended.value.code
    check_end(answers, status)
    check(answers, isinstance(module, MessagesPromise))
    return answers, status


def start(module: PromiseModule, agent: io.BytesIO, out: io.BytesIO) -> None:
    """As promise.run() does."""
    try:
        module.start(agent, out)
    finally:
        if isinstance(module, MessagesPromise):
            module.close()
            fuzz.count(fuzz.AGENT_INPUTS)


def check_end(answers: list[Answer], status: object) -> None:
    """The end is good if it is what the module was told last; only what is no request has no operation."""
    asked = [answer.reply.get("operation") for answer in answers]
    assert (status in (0, None)) == (asked[-1:] == ["terminate"])
    assert all(answer.reply.get("operation") in OPERATIONS[:-1] or answer.result == "error" for answer in answers[:-1])


LOGGED = {"invalid": {"error"}, "not_kept": {"error", "warning"}, "repaired": {"info"}, "error": {"critical"}}


def check(answers: list[Answer], ours: bool = True) -> None:
    """No traceback; what came of each promise is told at a level that an agent wants with it, and counted."""
    for answer in answers:
        assert "Traceback" not in answer.log
        if ours and answer.reply.get("operation") in ("validate_promise", "evaluate_promise"):
            levels = {log[len("log_") : log.index("=")] for log in answer.logs}
            assert answer.result in ("valid", "kept") or levels & LOGGED[answer.result], answer
            ending = "".join(answer.reply.get("result_classes", [])[-1:])
            reasons = [reason.suffix for reason in Reason if ending.endswith("_" + reason.suffix)]
            fuzz.count(f"answers to {answer.reply['operation']}", answer.result, *reasons)


# ---- anything


forms = st.sampled_from(["escaped", "raw", "byte-wise"])
any_lines = st.lists(st.binary()).map(b"\n".join)
requests = st.fixed_dictionaries(
    {"operation": st.sampled_from(OPERATIONS) | json_values},
    optional={
        "log_level": st.sampled_from(["error", "info", "verbose", "debug"]) | json_values,
        "promise_type": st.just("tested") | json_values,
        "promiser": any_text | json_values,
        "attributes": st.dictionaries(st.sampled_from("sibfld") | any_text, json_values, max_size=4) | json_values,
        "filename": st.just("/p.cf") | json_values,
        "line_number": st.integers(1) | json_values,
    },
)
almost_requests = st.lists(requests, max_size=5)


@each_kind
@given(sent=st.binary())
@example(sent=b"")
@example(sent=b"\n\n\n")
@example(sent=HEADER)
def test_any_bytes(kind: type[PromiseModule], sent: bytes) -> None:
    """Any bytes: a clean failure."""
    answers, status = serve(kind(), sent)
    assert answers == [] and status not in (0, None)


@each_kind
@given(sent=any_lines)
@example(sent=b"\n")
@example(sent=b"\n\n\n\n")
@example(sent=b"{}\n\n")
@example(sent=b"\xef\xbb\xbf{}\n\n")
def test_any_lines_after_the_header(kind: type[PromiseModule], sent: bytes) -> None:
    """Any lines after a header: the header is answered, at most one answer with an error follows, a clean failure."""
    answers, status = serve(kind(), HEADER + sent)
    assert [answer.result for answer in answers] in ([], ["error"])
    assert status not in (0, None)


@each_kind
@given(values=st.lists(json_values, max_size=5), form=forms)
def test_any_json(kind: type[PromiseModule], values: list[Any], form: str) -> None:
    """Any JSON values for requests: each is answered until one of them ends the module."""
    answers, _ = serve(kind(), conversation(values, form))
    assert len(answers) == len(answered(values))


@each_kind
@given(values=almost_requests, form=forms)
@example(values=[{"operation": "validate_promise", "log_level": "debug"}], form="raw")
@example(values=[{"operation": "evaluate_promise", "log_level": "debug", "promiser": "p", "attributes": 1}], form="raw")
@example(values=[{"operation": "evaluate_promise", "log_level": "debug", "promiser": "p"}], form="raw")
@example(values=[{"operation": "unreadable"}], form="raw")
def test_almost_requests(kind: type[PromiseModule], values: list[Any], form: str) -> None:
    """Requests with arbitrary parts: each is answered until one of them ends the module."""
    answers, status = serve(kind(), conversation(values, form))
    assert len(answers) == len(answered(values))
    assert status in (0, None) or answers[-1].result == "error"


@each_kind
@given(st.data())
def test_input_cut_off_anywhere(kind: type[PromiseModule], data: st.DataObject) -> None:
    """A conversation that ends at any byte: whole answers, a clean failure."""
    whole = HEADER + validate("é", s="x") + evaluate("p", "debug", i="5")
    _, status = serve(kind(), whole[: data.draw(st.integers(0, len(whole)))])
    assert status not in (0, None)


# ---- what is almost the text of a request


# A promise that takes no time, whatever becomes of its timeout.
QUICK = {"pattern": "push", "payload": "é", "timeout": "0.01", "endpoint": "<no domain>"}
NONE_THERE = {"pattern": "pull", "bind": "true", "timeout": "0.01", "endpoint": "<in no folder>"}
DRY = {"pattern": "request", "payload": ["a", {"b": 1}], "endpoint": "<refused>", "action_policy": "warn"}


PLACE = {"filename": "/p.cf", "line_number": 12}
VALIDATED_FIRST = ("validate_promise", "evaluate_promise")


def asked(
    attributes: dict[str, Any],
    promiser: str = "p",
    level: str = "debug",
    operations: Sequence[str] = VALIDATED_FIRST,
    place: dict[str, Any] = PLACE,
) -> list[dict[str, Any]]:
    """The requests that an agent makes of a promise."""
    request = {"log_level": level, "promise_type": "messages", "promiser": promiser, "attributes": attributes, **place}
    return [{"operation": operation, **request} for operation in operations]


sound = st.builds(
    lambda promises, form: conversation([request for promise in promises for request in asked(promise)], form),
    st.lists(st.sampled_from([QUICK, NONE_THERE, DRY]), min_size=1, max_size=3),
    forms,
)
SIGNS = [sign.encode() for sign in '\ufeff \0 \n \r \n\n " \\ \\u { } [ ] , : \x85 \u2028'.split(" ")]
odd = st.sampled_from(SIGNS) | st.binary(min_size=1, max_size=3)
MANGLED: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "cut off": lambda sent, at, _: sent[:at],
    "with CRLF from somewhere on": lambda sent, at, _: sent[:at] + sent[at:].replace(b"\n", b"\r\n"),
    "with something in between": lambda sent, at, odd: sent[:at] + odd + sent[at:],
    "with something overwritten": lambda sent, at, odd: sent[:at] + odd + sent[at + len(odd) :],
    "with something left out": lambda sent, at, odd: sent[:at] + sent[at + 2 * len(odd) :],
    "with something said twice": lambda sent, at, odd: sent[:at] + sent[max(0, at - 100 * len(odd)) :],
}
mangled = {
    how: st.builds(
        lambda sent, at, odd, mangle=mangle: mangle(sent, int(at * len(sent)), odd), sound, st.floats(0, 1), odd
    )
    for how, mangle in MANGLED.items()
}


@pytest.mark.parametrize("how", MANGLED)
@given(data=st.data())
def test_mangled_text(places: dict[str, str], how: str, data: st.DataObject) -> None:
    """A sound conversation, mangled somewhere: answers up to there, at most one error, and an end."""
    answers, status = serve(MessagesPromise(), placed(data.draw(mangled[how]), places))
    assert status in (0, None) or all(answer.result != "error" for answer in answers[:-1])


def nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    return opening * levels + b"1" + closing * levels


NUMBERS = (b"9" * 5000, b"1" * 400, b"-0", b"1e400", b"1E+2", b"0.1e-5000", b"NaN", b"-Infinity", b"01", b"+1")
TEXTS = (b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\xff"', b'"\0"', b'"\\x"', b'"', b"'x'", b"\xff", b"")
OTHERS = (b'{"a":1,"a":[2]}', b'{"":{}}', b"[]", b"{}", b"{", b"[1,", b"[,]", b'{"a"}', b"tru", b"null", b"\xc2\xa01")
depths = st.integers(1, 10_000)
raw_values = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(OTHERS),
    st.builds(nested, depths, st.just(b"["), st.just(b"]")),
    st.builds(nested, depths, st.just(b'{"a":'), st.just(b"}")),
)


@st.composite
def raw_requests(draw: st.DrawFn, values: st.SearchStrategy[bytes] = raw_values) -> bytes:
    """A conversation about a promise in which one value is any text, and each key may be there twice."""
    requests = asked(dict(QUICK))
    lines = [line(request) for request in requests]
    name = draw(st.sampled_from([*requests[0], *ALLOWED_WITH, "payloda", "comment"]))
    for request in requests:
        (request if name in request else request["attributes"])[name] = "RAW"
    raw = [line(request).replace(b'"RAW"', draw(values)) for request in requests]
    first, second = draw(st.sampled_from([(raw, []), (raw, lines), (lines, raw)]))
    lines = [b",".join((one[:-1], other[1:])) for one, other in zip(first, second)] or raw
    return HEADER + b"".join(each + b"\n\n" for each in lines) + TERMINATE


def answer_or_end(places: dict[str, str], sent: bytes) -> None:
    answers, status = serve(MessagesPromise(), placed(sent, places))
    assert len(answers) == 3 or (answers and answers[-1].result == "error" and status not in (0, None))


DEEP = line(asked(QUICK)[1]).replace(b'"p"', nested(10_000, b"[", b"]")) + b"\n\n"


@given(sent=raw_requests())
@example(sent=HEADER + DEEP + DEEP + TERMINATE)
def test_any_text_for_a_value(places: dict[str, str], sent: bytes) -> None:
    """Whatever stands for a value, the request is answered, and the next one too unless it ends the module."""
    answer_or_end(places, sent)


MEGABYTE = 1_000_000
huge_texts = st.builds(
    lambda text, times, end: b'"' + text * times + end,
    st.sampled_from([b"x", b"\xc3\xa9", b"\\u00e9", b"\xff", b"a:"]),
    st.integers(MEGABYTE, 4 * MEGABYTE),
    st.sampled_from([b'"', b'"', b'"', b""]),
)
huge_lists = st.builds(
    lambda element, times: b"[" + (element + b",") * times + element + b"]",
    st.sampled_from([b"1", b'"x"', b"[]", b'{"a":1}', b" null"]),
    st.integers(MEGABYTE // 10, MEGABYTE),
)


@given(sent=raw_requests(huge_texts | huge_lists))
@settings(max_examples=max(1, settings().max_examples // 25))
def test_huge_lines(places: dict[str, str], sent: bytes) -> None:
    """A line of some megabytes is no different."""
    answer_or_end(places, sent)


# ---- what is almost a promise that can be kept


SOMEBODY = {
    "request": ["<echoes>", "<forgets the envelope>", "<is silent>"],
    "async_request": ["<echoes>", "<forgets the envelope>", "<is silent>"],
    "reply": ["<asks>"],
    "async_reply": ["<asks>"],
    "publish": ["<subscribes>"],
    "subscribe": ["<publishes>"],
    "push": ["<pulls>"],
    "pull": ["<pushes>", "<pushes two frames>"],
    "pair": ["<pairs>"],
}
NOBODY = "<refused>, <no name>, <no domain>, <no scope>, <no socket>, <in no folder>, <folder as a socket>".split(", ")
NOBODY += ["<bytes>", "<no peer>", "<mine>", "<abstract>", "<my port>", "<echoes>"]
MINE = ["<mine>", "<abstract>", "<my port>", "<any host>", "<refused>", "<no scope>", "<in no folder>", "<bytes>"]
FILES = "<heard>, <odd name>, <folder>, <fifo>, <proc>, <none/heard>, <said/heard>, <long name>, <long path>".split(
    ", "
)
# The first of each is the usual one.
GOOD: dict[str, list[Any]] = {
    "payload": ["question", "", "é", "\udcff", [], ["a", "b"], ["cf_null"], {"a": [1]}, "x" * 100_000],
    "payload_file": ["<said>", "<fifo>", "<none>", "<folder>", "<long name>", "<bytes as a name>", "<half a pair>"],
    "topic": ["n", "", "news", "\udcff"],
    "file": [*FILES, "<bytes as a name>", "<half a pair>"],
    "format": ["text", "json"],
    "count": ["1", "0", "2", "1000000"],
    "expect": ["question|hello", "", "(?i)QUESTION|o+", "[[a]"],
    "retries": ["1", "0", "100"],
    "subscribers": ["1", "2", "100000"],
    "action_policy": ["fix", "fix", "warn", "nop"],
    "comment": ["why"],
}


# With a key_file always: the usual one would be outside of this session's folder.
KEY_FILES = ["<own/key>", "<fifo>", "<folder>", "<said>", "<proc>", "<said/heard>", "<long name>", "<half a pair>"]
SERVER_KEYS = [KEY, "<certificates/known key>", "<none>", "<fifo>", "<folder>", "<said>", "<bytes as a name>"]
ACCEPTED = [[KEY], "<certificates>", [], KEY, "<folder>", "<none>", "<said>", "<fifo>", "<long path>"]


def usually(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.just(values[0]) | st.sampled_from(values)


def good_attributes(pattern: str) -> st.SearchStrategy[dict[str, Any]]:
    """Attributes that go with the pattern, with values that are sound by themselves."""
    timeouts = st.sampled_from(["0.01", "0.01", "0.03"])
    names = [name for name in GOOD if pattern in ALLOWED_WITH.get(name, NEEDED)]
    return st.fixed_dictionaries(
        {"pattern": st.just(pattern), "timeout": timeouts}, optional={name: usually(GOOD[name]) for name in names}
    )


curves = st.one_of(
    [
        st.fixed_dictionaries({name: usually(values), "key_file": usually(KEY_FILES)})
        for name, values in (("server_key", SERVER_KEYS), ("accept", ACCEPTED))
    ]
)


def endpoints(pattern: str) -> st.SearchStrategy[dict[str, Any]]:
    """Where the promise is kept, and by which side."""
    anybody = st.sampled_from(SOMEBODY[pattern]) | st.sampled_from(NOBODY)
    mine = st.sampled_from([name.replace("<", "<for ") for name in SOMEBODY[pattern]]) | st.sampled_from(MINE)
    connected = st.fixed_dictionaries(
        {"endpoint": anybody | st.lists(anybody, min_size=1, max_size=3)},
        optional={"bind": st.sampled_from(["no", False])},
    )
    bound = st.fixed_dictionaries({"endpoint": mine, "bind": st.sampled_from(["yes", True])})
    return st.one_of(connected, bound, st.builds(keyed, connected, bound, curves))


def keyed(connected: dict[str, Any], bound: dict[str, Any], curve: dict[str, Any]) -> dict[str, Any]:
    """The side of the promise that goes with these keys."""
    return {**(bound if "accept" in curve else connected), "curve": curve}


def fitting(good: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    """Both together, without what cannot go together, and with what must be there."""
    needed = {} if "payload_file" in good else NEEDED[good["pattern"]]
    attributes = {**needed, **good, **where}
    said = attributes.keys() & {"payload", "payload_file"}
    superfluous = {"format"} - {"format" for _ in attributes.keys() & {"file"}}
    superfluous |= {"payload"} if "payload_file" in said else set()
    superfluous |= {"count" if said else "expect"} if good["pattern"] == "pair" else set()
    return {name: value for name, value in attributes.items() if name not in superfluous}


def harmless(name: str, value: Any) -> tuple[str, Any]:
    """A fault that neither makes a promise last for minutes nor writes a file somewhere else."""
    return name, f"x{value}" if isinstance(value, str) and name in ("timeout", "file", "payload_file") else value


def spoilt(attributes: dict[str, Any], faults: list[tuple[str, Any]], missing: str) -> dict[str, Any]:
    return {name: value for name, value in {**attributes, **dict(faults)}.items() if name != missing}


NEAR = [(name, value) for name, values in INVALID.items() for value in values if len(repr(value)) < 1000]
faults = st.sampled_from(NEAR) | st.builds(harmless, names, anything)
good_promises = st.one_of([st.builds(fitting, good_attributes(pattern), endpoints(pattern)) for pattern in NEEDED])
bad_promises = st.builds(
    spoilt,
    good_promises,
    st.lists(faults, max_size=2),
    st.sampled_from(sorted({*ALLOWED_WITH, "nothing"} - {"timeout"})),
)
promises = st.one_of(good_promises, good_promises, bad_promises)
promisers = st.sampled_from(["p", "", "a:b", "<refused>", "<mine>", "tcp://", "\ud800"]) | any_text
levels = usually(["debug", "error", "info", "verbose", "other"])
operations = usually([VALIDATED_FIRST, VALIDATED_FIRST[1:], VALIDATED_FIRST[::-1]])
told = usually([PLACE, {}, {"filename": "/p.cf"}, {"line_number": 12}])
agent_runs = st.lists(st.builds(asked, promises, promisers, levels, operations, told), min_size=1, max_size=4).map(
    lambda run: list(chain.from_iterable(run))
)


@given(run=agent_runs, form=forms)
@settings(max_examples=len(NEEDED) * settings().max_examples)
@example(run=asked({"pattern": "pull"}, operations=VALIDATED_FIRST[1:]), form="raw")
@example(run=asked(QUICK, place={"filename": "/p.cf"}), form="raw")
@example(run=asked({**QUICK, "endpoint": "<bytes>"}), form="raw")
@example(run=asked({**QUICK, "endpoint": "tcp://[fe80::1%é]:5309"}), form="raw")
@example(run=asked({"pattern": "push", "endpoint": "<no domain>", "payload_file": "<half a pair>"}), form="raw")
@example(run=asked({"pattern": "push", "endpoint": "<no domain>", "payload_file": "<folder>"}), form="raw")
@example(run=asked({"pattern": "pull", "endpoint": "<pushes>", "file": "<half a pair>"}), form="raw")
@example(run=asked({**NONE_THERE, "curve": {"accept": [KEY], "key_file": "<own/key>"}}), form="raw")
@example(run=asked({**NONE_THERE, "endpoint": "<mine>", "curve": {"accept": [], "key_file": "<own/key>"}}), form="raw")
def test_almost_sound_promises(places: dict[str, str], run: list[dict[str, Any]], form: str) -> None:
    """Whatever attributes a promise has and whatever becomes of it: each request is answered, by no error of ours."""
    answers, _ = serve(MessagesPromise(), placed(conversation(run, form), places))
    assert len(answers) == len(run) + 1
    assert all(answer.result != "error" for answer in answers)


# ---- a real process


streams = st.one_of(
    st.binary(),
    any_lines.map(HEADER.__add__),
    st.builds(conversation, almost_requests, forms),
    st.sampled_from(list(MANGLED)).flatmap(mangled.__getitem__),
    raw_requests(),
    st.builds(conversation, agent_runs, forms),
)


@given(sent=streams)
@settings(max_examples=max(1, settings().max_examples // 5))
def test_a_process(places: dict[str, str], sent: bytes) -> None:
    """The module as an agent starts it: it exits by itself, and says on stderr at most in one line why it ended."""
    fuzz.watch()
    command = [MODULE_PYTHON, *["-O"] * sys.flags.optimize, str(REPOSITORY / "messages_promise.py")]
    done = subprocess.run(command, input=placed(sent, places), capture_output=True, timeout=scaled(60), check=False)
    fuzz.count(fuzz.AGENT_INPUTS, "by a real process")
    ended = Ended(done.returncode, done.stdout, done.stderr.decode())
    check_end(ended.answers, ended.status)
    check(ended.answers)
    if ended.status == 0:
        assert ended.complaint == ""
    else:
        assert_clean_failure(ended)
