"""Files in and out: what policy reads back is safe whatever was said, and a file is replaced whole or not at all."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import Agent, Run
from cf_messaging.files import MAX_DEPTH, as_json, as_text, check_writable, keep, read_payload
from cf_messaging.outcomes import Failure, Reason
from cf_messaging.wire import MAX_PAYLOAD_BYTES, Message
from peers import Peer

EXPANDED = ("$(", "${", "@(", "@{")


def answer(payload: str | bytes, topic: bytes = b"") -> Message:
    return Message(payload.encode() if isinstance(payload, str) else payload, topic)


def payload_of(answered: str | bytes) -> Any:
    """The one payload in a file of format json, as any reader of JSON sees it."""
    [row] = json.loads(as_json([answer(answered)]))
    return row["payload"]


# --- the format "json": what can come back ------------------------------------------------------------------------

# Literals that JSON readers differ about, and what cf-agent stumbles over, alone and inside of something.
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
odd_words = st.sampled_from(
    ["NaN", "Infinity", "-Infinity", "null", "true", '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"']
)
marks = st.sampled_from([*EXPANDED, "$", "(", "\\", '"', "\0", "\x01", "\x7f", "\u2028", "\ufeff", "\n", "é", "🐢"])
words = st.lists(st.one_of(marks, st.text(max_size=5)), max_size=4).map("".join)
leaves = st.one_of(
    numbers, odd_words, words.map(json.dumps), words.map(lambda text: json.dumps(text, ensure_ascii=False))
)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(words.map(json.dumps), inner), max_size=4).map(
            lambda rows: "{" + ",".join(f"{key}: {value}" for key, value in rows) + "}"
        ),
        st.tuples(st.integers(1, 70), inner).map(lambda deep: "[" * deep[0] + deep[1] + "]" * deep[0]),
    ),
    max_leaves=8,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
payloads = st.one_of(documents, words.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=20))
topics = st.one_of(st.just(b""), words.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=8))
answers = st.lists(st.builds(Message, payloads, topics), max_size=4)


def check_safe(data: bytes) -> list[dict[str, Any]]:
    """Raises unless cf-agent reads this as it was meant; returns the rows."""
    text = data.decode("utf-8")
    escapes = [code for code in re.findall(r"\\(u[0-9a-fA-F]{4}|.)", text) if code.startswith("u")]
    assert all(0 < int(code[1:], 16) < 0x20 for code in escapes), (
        "\\u escape of what is no control character, or of NUL"
    )
    rows = json.loads(text, parse_int=narrow, parse_float=plain, parse_constant=no_number)
    assert isinstance(rows, list) and all(set(row) == {"payload", "topic"} for row in rows)
    assert all(isinstance(row["topic"], str) for row in rows)
    for word in strings(rows):
        assert not any(mark in word for mark in EXPANDED) and "\0" not in word
    assert depth(rows) <= 64
    return list(rows)


def narrow(literal: str) -> int:
    assert -(2**31) <= int(literal) < 2**31, f"{literal} does not fit 32 bits"
    return int(literal)


def plain(literal: str) -> float:
    assert re.fullmatch(r"-?[0-9]+\.[0-9]+", literal), f"{literal} is no plain decimal"
    return float(literal)


def no_number(literal: str) -> NoReturn:
    raise AssertionError(f"{literal} is no JSON")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in value:
            yield from strings(element)
    elif isinstance(value, dict):
        yield from strings([*value, *value.values()])


def depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


def safe_or_none(messages: list[Message]) -> bytes | None:
    try:
        return as_json(messages)
    except ValueError:
        return None


@given(answers)
@example([answer("1e-05"), answer("1e400"), answer("9223372036854775808"), answer("[3000000000, -2147483649]")])
@example([answer('{"a": NaN}')])
@example([answer('["\\u0000"]')])
@example([answer("[" * 10_000 + "]" * 10_000)])
@example([answer("[" * 10_000)])
@example([answer('{"a":' * 5_000 + "1" + "}" * 5_000)])
@example([answer('{"$(x)": 1}'), answer("$(const.n)"), answer('"\\u0024(x)"')])
@example([answer("9" * 5_000), answer("0." + "1" * 5_000), answer("9" * 400 + ".5")])
@example([answer(b"\xff"), answer(b"\xed\xa0\x80"), answer('"\\ud800"')])
@example([answer("x", b"$(x)")])
@example([answer("x", b"\xff")])
@example([answer("x", b"a\0b")])
def test_whatever_is_written_is_safe_to_read(messages: list[Message]) -> None:
    """Any bytes of any peer become JSON that cf-agent reads without harm, or are refused with a ValueError."""
    data = safe_or_none(messages)
    if data is not None:
        assert len(check_safe(data)) == len(messages)


@given(answers)
def test_each_answer_is_judged_by_itself(messages: list[Message]) -> None:
    """Several are written exactly if each could be written alone, and each is what it is alone."""
    alone = [safe_or_none([message]) for message in messages]
    together = safe_or_none(messages)
    assert (together is None) == (None in alone)
    if together is not None:
        assert json.loads(together) == [json.loads(data or b"")[0] for data in alone]


harmless = st.text(st.characters(exclude_characters="$@\0", exclude_categories=["Cs"]))
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**31), 2**31 - 1), harmless, st.sampled_from([0.5, -2.25, 1234567.125])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(harmless, inner, max_size=4)),
    max_leaves=10,
)


@given(values, st.booleans())
def test_what_is_safe_stays_as_it_is(value: Any, ascii_only: bool) -> None:
    """Ordinary JSON comes back as the same value, however it was spelt."""
    assert payload_of(json.dumps(value, ensure_ascii=ascii_only)) == value


@given(harmless)
def test_text_that_is_no_json_stays_as_it_is(text: str) -> None:
    """A message that is not JSON is its text."""
    assert payload_of(f"text: {text}") == f"text: {text}"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("1e-05", "1e-05"),
        ("-1E5", "-1E5"),
        ("1e400", "1e400"),
        ("1e3", "1e3"),
        ("9223372036854775808", "9223372036854775808"),
        ("2147483647", 2147483647),
        ("2147483648", "2147483648"),
        ("-2147483648", -2147483648),
        ("-2147483649", "-2147483649"),
        ("0.25", 0.25),
        ("-7.0", -7.0),
        ("null", None),
        ("true", True),
        ('"5"', "5"),
        ("", ""),
        (" 5 ", 5),
        ("05", "05"),
        ("{'a': 1}", "{'a': 1}"),
        ('{"a": 1', '{"a": 1'),
        ("\\u0000", "\\u0000"),
        ('"\\u00e9\\ud83d\\udc22"', "é🐢"),
        ("line\nline\ttab", "line\nline\ttab"),
        ("costs 5 $", "costs 5 $"),
        ('["$", "("]', ["$", "("]),
        ("NaNny", "NaNny"),
        ("NaN is not a number", "NaN is not a number"),
        ("Infinity War", "Infinity War"),
        ("[NaN is not a number]", "[NaN is not a number]"),
    ],
)
def test_values_and_texts(said: str, read: object) -> None:
    """A number out of range or with an exponent becomes a string with its own digits; what is no JSON stays text."""
    [row] = check_safe(as_json([answer(said)]))
    assert row["payload"] == read and type(row["payload"]) is type(read)


@pytest.mark.parametrize(
    "said",
    [
        b"NaN",
        b'{"a": NaN}',
        b"a\0b",
        b'"\\u0000"',
        b'{"\\u0000": 1}',
        b"\xff",
        b'{"a": "\xe9"}',
        b"\xed\xa0\x80",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        *(f"text {mark}x)".encode() for mark in EXPANDED),
        *(json.dumps({"a": [f"{mark}x)"]}).encode() for mark in EXPANDED),
        *(json.dumps({f"{mark}x)": 1}).encode() for mark in EXPANDED),
        b'"\\u0024(x)"',
        b'"$\\u0028x)"',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=lambda said: repr(said[:20])[2:-1],
)
def test_what_cannot_be_made_safe_is_refused(said: bytes) -> None:
    """NUL, invalid UTF-8, NaN, what cf-agent expands, and deep nesting raise ValueError, in a topic too."""
    with pytest.raises(ValueError, match=r"."):
        as_json([answer("fine"), answer(said)])


@pytest.mark.parametrize("topic", [b"\xff", b"a\0b", b"$(x)", b"@{x}"])
def test_a_topic_cannot_be_unsafe_either(topic: bytes) -> None:
    """Topics are text that policy may use, too."""
    with pytest.raises(ValueError, match=r"."):
        as_json([answer("fine", topic)])


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_nesting_has_a_limit(brackets: str) -> None:
    """A file has at most 64 levels, the array and the object around a payload included."""
    assert MAX_DEPTH == 64
    opening = brackets[0] if brackets == "[]" else '{"a":'
    fits, too_deep = (opening * levels + "1" + brackets[1] * levels for levels in (62, 63))
    assert depth(check_safe(as_json([answer(fits)]))) == 64
    with pytest.raises(ValueError, match="64"):
        as_json([answer(too_deep)])


def test_no_message_at_all() -> None:
    """Nothing received is an empty array, and empty text."""
    assert json.loads(as_json([])) == []
    assert as_text([], None) == as_text([], 3) == b""


def test_topics_are_beside_payloads() -> None:
    """Every object has both, the topic empty where a pattern has none."""
    rows = json.loads(as_json([answer("1", "größe".encode()), answer("x")]))
    assert rows == [{"payload": 1, "topic": "größe"}, {"payload": "x", "topic": ""}]


# --- the format "text" --------------------------------------------------------------------------------------------


@given(st.binary())
def test_a_single_message_is_exactly_its_bytes(payload: bytes) -> None:
    """Where one is wanted, nothing is added and nothing changed."""
    assert as_text([answer(payload)], 1) == payload


@given(st.lists(st.binary()), st.sampled_from([None, 2, 5]))
def test_several_messages_are_one_a_line(payloads: list[bytes], wanted: int | None) -> None:
    """Each line ends with a newline, also when only one of several came."""
    assert as_text([answer(payload) for payload in payloads], wanted) == b"".join(each + b"\n" for each in payloads)


# --- replacing a file ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def local(what: Callable[[], object], *words: str) -> str:
    """Runs what must fail for a reason that lies on this node; its text, which holds the words."""
    with pytest.raises(Failure) as caught:
        what()
    assert caught.value.reason is Reason.LOCAL
    assert all(word in str(caught.value) for word in words)
    return str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(st.binary(max_size=3), min_size=1))
def test_a_file_holds_what_came_last(tmp_path: Path, contents: list[bytes]) -> None:
    """Told True exactly when it changed; always whole, mode 600, and nothing lies beside it."""
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    before = None
    for content in contents:
        assert keep(str(path), content) == (content != before)
        assert path.read_bytes() == content and mode(path) == 0o600
        assert os.listdir(tmp_path) == ["file"]
        before = content


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    """A new file is readable for its owner, and for nobody else, at once."""
    before = os.umask(umask)
    try:
        keep(str(tmp_path / "file"), b"secret")
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o600


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    """It is the same file as before, not one with the same content."""
    path = tmp_path / "file"
    keep(str(path), b"same")
    before = path.stat()
    assert keep(str(path), b"same") is False
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """Who has the old file open goes on reading the old file."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        assert keep(str(path), b"new content") is True
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new content"


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """What the link points to is none of our business, a missing target included."""
    (tmp_path / "target").write_bytes(b"precious")
    for name, target in (("link", "target"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        assert keep(str(tmp_path / name), b"new") is True
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    """A FIFO in the place of the file or of the payload is never waited for."""
    os.mkfifo(tmp_path / "fifo")
    local(lambda: read_payload(str(tmp_path / "fifo")), str(tmp_path / "fifo"), "regular file")
    check_writable(str(tmp_path / "fifo"))
    assert keep(str(tmp_path / "fifo"), b"new") is True
    assert (tmp_path / "fifo").read_bytes() == b"new"


@pytest.mark.parametrize("old", [b"old", None])
def test_a_full_disk_leaves_the_old_file(small_disk: Path, old: bytes | None) -> None:
    """What does not fit is not written in part: the old file, or none, stays, and no rest of the attempt."""
    if old is not None:
        (small_disk / "file").write_bytes(old)
    before = os.listdir(small_disk)
    local(lambda: keep(str(small_disk / "file"), b"x" * 1_000_000), str(small_disk / "file"), "No space left")
    assert os.listdir(small_disk) == before
    assert old is None or (small_disk / "file").read_bytes() == old
    assert keep(str(small_disk / "file"), b"fits") is True


def test_a_read_only_disk(small_disk: Path) -> None:
    """It is found out beforehand, and when it comes to writing."""
    (small_disk / "file").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    local(lambda: check_writable(str(small_disk / "file")), str(small_disk / "file"))
    local(lambda: keep(str(small_disk / "file"), b"new"), str(small_disk / "file"))
    assert keep(str(small_disk / "file"), b"old") is False


@pytest.mark.parametrize("where", ["folder", "missing/file", "plain/file"])
def test_where_no_file_can_be(tmp_path: Path, where: str) -> None:
    """A directory, a missing one, and a file in the place of one; nothing is made or changed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_bytes(b"old")
    local(lambda: check_writable(str(tmp_path / where)), str(tmp_path / where))
    local(lambda: keep(str(tmp_path / where), b"new"), str(tmp_path / where))
    assert sorted(os.listdir(tmp_path)) == ["folder", "plain"]
    assert os.listdir(tmp_path / "folder") == [] and (tmp_path / "plain").read_bytes() == b"old"


def test_a_directory_where_nobody_may_write(tmp_path: Path) -> None:
    """The permission of the directory counts, not the one of the file."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; test_a_read_only_disk is for root")
    tmp_path.chmod(0o500)
    local(lambda: check_writable(str(tmp_path / "file")), "permission")
    local(lambda: keep(str(tmp_path / "file"), b"new"), str(tmp_path / "file"))


@pytest.mark.parametrize("there", [True, False])
def test_looking_whether_it_could_be_written_changes_nothing(tmp_path: Path, there: bool) -> None:
    """A file that is there, whatever its mode, and one that is not, both can be replaced."""
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")
        path.chmod(0o400)
    before = os.listdir(tmp_path)
    check_writable(str(path))
    assert os.listdir(tmp_path) == before
    assert keep(str(path), b"new") is True


@pytest.mark.parametrize("length", [250, 255])
def test_a_long_name(tmp_path: Path, length: int) -> None:
    """Any name that the file system takes can be written."""
    path = tmp_path / ("x" * length)
    check_writable(str(path))
    assert keep(str(path), b"new") is True
    assert path.read_bytes() == b"new"


# --- payload files ------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary())
@example(content=b"$(sys.fqhost) @(x)\r\n\0")
def test_a_payload_is_the_bytes_of_the_file(tmp_path: Path, content: bytes) -> None:
    """Nothing is decoded, stripped or expanded; a symbolic link is followed."""
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").unlink(missing_ok=True)
    (tmp_path / "link").symlink_to("file")
    assert read_payload(str(tmp_path / "file")) == read_payload(str(tmp_path / "link")) == content


def test_a_payload_has_a_limit(tmp_path: Path) -> None:
    """A file of exactly the limit is read, one byte more is too much, and the limit is named."""
    with (tmp_path / "file").open("wb") as file:
        file.truncate(MAX_PAYLOAD_BYTES)
    assert len(read_payload(str(tmp_path / "file"))) == MAX_PAYLOAD_BYTES == 16 * 1024 * 1024
    os.truncate(tmp_path / "file", MAX_PAYLOAD_BYTES + 1)
    local(lambda: read_payload(str(tmp_path / "file")), "MAX_PAYLOAD_BYTES", str(MAX_PAYLOAD_BYTES))


def test_what_is_no_payload_file(tmp_path: Path) -> None:
    """Missing, a directory, a device, a loop of links: the text names the path and why."""
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "missing", tmp_path, Path("/dev/zero"), tmp_path / "loop", tmp_path / "a/b"):
        assert len(local(lambda path=path: read_payload(str(path)), str(path))) > len(str(path)) + 5  # type: ignore[misc]


# --- policy that reads what came ----------------------------------------------------------------------------------


OLD = {"whole": '[{"payload": "old", "topic": ""}]', "inside": '[{"payload": {"x": "old"}, "topic": ""}]'}
READ = {"whole": "whole $(whole[0][payload])", "inside": "inside $(inside[0][payload][x])"}
VALUES = {  # an answer, and how a report shows it; None: however
    "small": ("1e-05", "1e-05"),
    "huge": ("1e400", "1e400"),
    "large": ("1e+16", "1e+16"),
    "thousand": ("1e3", "1e3"),
    "wide": ("9223372036854775808", "9223372036854775808"),
    "wrapping": ("3000000000", "3000000000"),
    "tiny": ("0.0000000001", None),
    "long": ("123456789012345678901234567890.5", None),
    "escaped": ('"gr\\u00fc\\u00dfe \\ud83d\\udc22"', "grüße 🐢"),
    "control": ('"a\\u0001\\u001fb"', None),
    "int": ("-2147483648", "-2147483648"),
    "no_escape": ('"\\\\u0000"', None),
    "levels": ("[" * 61 + "]" * 61, None),
    "mark": ('"$"', "$"),
}
UNSAFE = {
    "nan": b"NaN",
    "nul_escape": b'"\\u0000"',
    "nul": b'"a\0b"',
    "deep": b"[" * 10_000 + b"]" * 10_000,
    "policy": b'"$(const.n)"',
    "braces": b'"${const.n}"',
    "escaped_policy": b'"\\u0024(const.n)"',
    "list_policy": b'"@(def.x)"',
    "not_utf8": b'"\xff"',
    "half_pair": b'"\\ud800"',
}


def reading(folder: Path) -> str:
    """Reads both files with no guard at all: in every pass, in the next run, and when cf-promises looks at it."""
    return "  vars:\n" + "".join(f'    "{name}" data => readjson("{folder}/{name}");\n' for name in READ)


def reporting(guard: str) -> str:
    """Reports what is in both files."""
    return f"  reports:\n    {guard}::\n" + "".join(f'      "{text}";\n' for text in READ.values())


@pytest.fixture
def asked(agent: Agent, peer: Callable[..., Peer], tmp_path: Path) -> Callable[..., Run]:
    """Asks for an answer, the whole one and one with it inside of an object; reads and reports what is in the files."""

    def run(answer: bytes, whole: bytes | None = None) -> Run:
        answers = {"whole": answer if whole is None else whole, "inside": b'{"x": %s}' % answer}
        promises = "  messages:\n"
        for name, bytes_of_it in answers.items():
            (tmp_path / name).write_text(OLD[name])
            (tmp_path / f"{name}.answer").write_bytes(bytes_of_it)
            endpoint = peer("rep", "--answer-file", str(tmp_path / f"{name}.answer")).endpoint
            promises += f'    "{name}" pattern => "request", endpoint => "{endpoint}", payload => "?", timeout => "10",'
            promises += f' file => "{tmp_path}/{name}", format => "json", classes => outcome("{name}");\n'
        return agent.run(reading(tmp_path) + promises + reporting("inside_repaired|inside_not_kept"))

    return run


@pytest.mark.parametrize("name", VALUES)
def test_policy_reads_dangerous_values(asked: Callable[..., Run], agent: Agent, tmp_path: Path, name: str) -> None:
    """The run that receives and reads them comes to its end, and so does the next one, with every digit."""
    said, shown = VALUES[name]
    runs = [asked(said.encode()), agent.run(reading(tmp_path) + reporting("any"))]
    outcome = ("repaired", "delivered", "received")
    assert runs[0].classes == {f"{promise}_{suffix}" for promise in READ for suffix in outcome}
    for each in ("whole", "inside"):
        check_safe((tmp_path / each).read_bytes())
    if shown is not None:
        assert [run.reports for run in runs] == [[f"whole {shown}", f"inside {shown}"]] * 2


@pytest.mark.parametrize("name", UNSAFE)
def test_policy_never_sees_what_is_unsafe(asked: Callable[..., Run], tmp_path: Path, name: str) -> None:
    """It is an invalid reply, the file of before stays, and the policy that reads it comes to its end."""
    run = asked(UNSAFE[name])
    outcome = ("not_kept", "failed", "invalid_reply")
    assert run.classes == {f"{promise}_{suffix}" for promise in READ for suffix in outcome}
    assert {promise: (tmp_path / promise).read_text() for promise in READ} == OLD
    assert run.reports == ["whole old", "inside old"]
    assert len(run.errors) == 2 and all(str(tmp_path / promise) in "".join(run.errors) for promise in READ)


def test_plain_text_cannot_name_a_variable(asked: Callable[..., Run], tmp_path: Path) -> None:
    """An answer that is no JSON is text, to which the same holds."""
    run = asked(b'"$(const.n)"', whole=b"plain $(const.n)")
    assert {"whole_invalid_reply", "inside_invalid_reply"} < run.classes
    assert run.reports == ["whole old", "inside old"]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(payloads, min_size=20, max_size=60))
def test_policy_reads_whatever_is_written(agent: Agent, tmp_path: Path, said: list[bytes]) -> None:
    """No bytes of any peer end the run of a policy that reads them back and uses them."""
    safe = [answer(payload) for payload in said if safe_or_none([answer(payload)]) is not None]
    (tmp_path / "file").write_bytes(as_json(safe))
    run = agent.run(
        "  vars:\n"
        f'    "rows" data => readjson("{tmp_path}/file");\n'
        '    "values" slist => getvalues("rows");\n'
        '    "text" string => format("%S", "rows");\n'
        '    "length" int => length("rows");\n'
        '  reports:\n    "$(length) rows";\n'
    )
    assert run.reports == [f"{len(safe)} rows"]
