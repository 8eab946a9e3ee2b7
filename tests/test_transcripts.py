"""Conversations of real cf-agents of each version, and of the one at hand: what hooks see, and what is answered."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from agent import Agent, agent_version
from test_cfengine import COMMON_ATTRIBUTES, TESTS, Kept, read_answers, side

TRANSCRIPTS = sorted((TESTS / "transcripts").glob("*.txt"))
SCENES = [path for path in TRANSCRIPTS if path.name.startswith("3.21-")]

# Where the transcripts were recorded: their policy names these paths.
RECORDED_WORK, RECORDED_POLICY = b"/tmp/recorded/w", b"/tmp/recorded/policy.cf"

RECORDER = """
from cfengine import PromiseModule, Result

class Recorded(PromiseModule):
    handles_action_policy = {dry_run}

    def validate_promise(self, promiser, attributes, metadata):
        pass

    def evaluate_promise(self, promiser, attributes, metadata):
        return Result.KEPT

Recorded("recorded", "1.0", {record!r}).start()
"""


def record(agent: Agent, scene: Path) -> bytes:
    """The transcript of the agent at hand with the policy and options of another transcript."""
    command, policy = side(scene, b"#").split(b"\n", 1)
    where, record = agent.root / "policy.cf", agent.root / "record.txt"
    where.write_bytes(policy.replace(RECORDED_WORK, bytes(agent.work)))
    where.chmod(0o600)
    agent.install("tee.py", RECORDER.format(dry_run=handles_action_policy(scene), record=str(record)))
    options = command.decode().split("-f policy.cf")[1].split()
    agent.run_file(where, options=options, allow_critical=True)
    head = b"# cf-agent %s -K -f policy.cf %s\n" % (agent_version().encode(), " ".join(options).encode())
    said = b"".join(b"# %s\n" % line for line in policy.removesuffix(b"\n").split(b"\n"))
    return head + said + record.read_bytes().replace(bytes(where), RECORDED_POLICY)


def handles_action_policy(transcript: Path) -> bool:
    return b"json_based action_policy\n" in side(transcript, b">")


@pytest.mark.parametrize("scene", SCENES, ids=lambda path: path.stem.removeprefix("3.21-"))
def test_the_agent_at_hand(agent: Agent, tmp_path: Path, scene: Path) -> None:
    """The agent at hand says what one of its version said when it was recorded, and is answered.

    An agent of another version leaves here what is to be put beside the other transcripts.
    """
    name = scene.name.replace("3.21", agent_version(), 1)
    recorded = tmp_path / name
    recorded.write_bytes(record(agent, scene))
    replay(recorded)
    stored = scene.with_name(name)
    if not stored.exists():
        pytest.skip(f"no transcript {name} to compare with")
    # Whoever knows terminate need not read the blank line behind it.
    assert side(recorded, b"<").rstrip() == side(stored, b"<").replace(*hello(stored, recorded)).rstrip()


def hello(stored: Path, recorded: Path) -> tuple[bytes, bytes]:
    """The agents' first lines, with their patch levels."""
    return side(stored, b"<").split(b"\n")[0], side(recorded, b"<").split(b"\n")[0]


class DryRun(Kept):
    handles_action_policy = True


def replay(transcript: Path) -> tuple[Kept, bytes]:
    """The agent's side of a transcript said again: a module that knows what it was asked, and what it answered."""
    module = (DryRun if handles_action_policy(transcript) else Kept)("recorded", "1.0")
    out = io.BytesIO()
    with pytest.raises(SystemExit) as ended:
        module.start(io.BytesIO(side(transcript, b"<")), out)
    assert ended.value.code in (0, None)
    return module, out.getvalue()


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_replay(transcript: Path) -> None:
    """The SDK answers a recorded agent as the recorded module did."""
    _, said = replay(transcript)
    recorded = side(transcript, b">")
    assert said.split(b"\n")[0] == recorded.split(b"\n")[0]
    again = [{**answer.reply, "attributes": None} for answer in read_answers(said)]
    assert again == [{**answer.reply, "attributes": None} for answer in read_answers(recorded)]


def seen(name: str) -> dict[str, dict[str, Any]]:
    """The attributes that hooks see of each promiser of a transcript, at validation and evaluation alike."""
    module, _ = replay(TESTS / "transcripts" / f"{name}.txt")
    validated, evaluated = module.asked[::2], module.asked[1::2]
    assert validated == evaluated
    return {promiser: attributes for promiser, attributes, _ in evaluated}


each_version = pytest.mark.parametrize("of", ["3.21", "3.24", "3.27"])


@each_version
def test_attributes(of: str) -> None:
    """Each shape of attribute that policy knows, as hooks see it."""
    promises = seen(f"{of}-attributes")
    assert promises["shapes"] == {
        "string": "plain",
        "quoted": 'say "no" to \\ and\ttabs',
        "lines": "one\ntwo",
        "int_variable": "5000",
        "int_literal": "5k",
        "real_variable": "0.500000",
        "boolean": "true",
        "slist": ["a", "b c"],
        "literal_list": ["x", "y"],
        "ilist": ["1", "2"],
        "object": {"a": [1, 2.5, "x"], "n": -1294967296, "t": True, "z": None},
        "array": [1, {"b": None}],
        "json_text": '{"a":1}',
    }
    assert promises["empty lists"] == {"empty": [], "null": ["cf_null"], "one": [""]}
    assert promises["custom body"] == {"settings": {"server_key": "abc", "words": ["x", "y"]}}
    assert (promises["each a"], promises["each b c"]) == ({"word": "a"}, {"word": "b c"})
    gone = {"action_policy"} if of == "3.21" else {"action_policy", "expireafter"}
    assert set(promises["common attributes"]) == {"attribute", *COMMON_ATTRIBUTES.split()} - gone


@each_version
def test_text(of: str) -> None:
    """Text outside ASCII, invalid bytes and control characters, as hooks see them."""
    promises = seen(f"{of}-text")
    control = "".join(map(chr, (*range(1, 9), 11, 12, *range(14, 32), 127)))
    # What is no UTF-8 comes from 3.27 as code points, and from its containers an escape as what it means.
    byte, escaped = ("\udce9 stray \udc80\udcfe\udcff", "\\u00e9") if of < "3.27" else ("é stray \x80þÿ", "é")
    assert promises == {
        "grüße": {"text": "naïve €5 日本 🎉", "comment": "Ã© is not é"},
        "": {"text": ""},
        "bytes": {"text": f"latin1 {'é' if of < '3.27' else 'Ã©'}={byte}"},
        byte[-1]: {"text": "promiser of one invalid byte"},
        "escapes": {"text": "\\u00e9 \\n \\ /"},
        "control": {
            "text": "all but tab and line ends: " + control,
            "ends": "carriage\rreturn",
            "breaks": "next\u0085line\u2028separators\u2029",
            "container": {"e\u0301": "é", "escaped": escaped, "solidus": "/"},
        },
    }


@each_version
def test_dry_run(of: str) -> None:
    """action_policy comes as written, and as "warn" under --dry-run and --simulate."""
    written = {"fix": "fix", "warn": "warn", "nop": "nop", "unsaid": None}
    assert {promiser: of.get("action_policy") for promiser, of in seen(f"{of}-action-policy").items()} == written
    for name in (f"{of}-dry-run", f"{of}-simulate"):
        assert {promiser: of["action_policy"] for promiser, of in seen(name).items()} == dict.fromkeys(written, "warn")
    assert seen(f"{of}-dry-run-without-action-policy") == {}
