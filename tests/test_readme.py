"""What README.md says of attributes equals the code, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent import Agent
from cf_messaging.attributes import ATTRIBUTES
from cf_messaging.patterns import EVERY, PATTERNS, allowing

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "cf_messaged", "cf_messaging", "docs", "examples", "script", "tests", ".ci")
CODE = re.compile(r"`([^`\n]+)`")


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def cells(row: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def table(header: str) -> list[list[str]]:
    """The rows of the one table whose header begins so."""
    lines = readme().split("\n")
    (start,) = [number for number, line in enumerate(lines) if line.startswith(header)]
    assert re.fullmatch(r"[|:\- ]+", lines[start + 1])
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows


def default(cell: str) -> str | None:
    """As the code has it: None where there is none, or where another part of the promise is meant."""
    text = cell.strip("` ")
    return None if text in ("", "-") or "promiser" in text else text.strip('"')


def test_the_attribute_table() -> None:
    """Names, types and defaults are those of the code, in its order."""
    told = [
        (name, cell.strip("` "), default(value)) for name, cell, value, *_ in table("| attribute | type | default |")
    ]
    assert told == [(f"`{name}`", each.type, each.default) for name, each in ATTRIBUTES.items()]


def test_every_attribute_has_a_meaning() -> None:
    """No row of the table ends without words."""
    assert all(row[3:] and row[3] for row in table("| attribute | type | default |"))


def test_the_table_of_what_goes_with_what() -> None:
    """Each attribute that does not go with all patterns is listed once, with exactly those it goes with."""
    told: dict[str, set[str]] = {}
    for names, patterns in (row[:2] for row in table("| attribute | allowed with |")):
        for name in CODE.findall(names):
            assert name not in told
            told[name] = set(re.findall(r"\w+", patterns.partition("refused")[0])) & set(PATTERNS)
    in_code = {name: set(allowing(name)) for name in ATTRIBUTES if name not in EVERY}
    assert {name: patterns for name, patterns in told.items() if name not in EVERY} == in_code


def paths() -> set[str]:
    """What README.md names in backticks that looks like a path of this repository."""
    words = {code.split()[0].removeprefix("./") for code in CODE.findall(readme()) if code.strip()}
    in_folder = {word for word in words if word.partition("/")[0] in FOLDERS and "/" in word}
    return in_folder | {word for word in words if re.fullmatch(r"[\w.-]+\.(py|md|toml)|cfbs\.json|LICENSE", word)}


def test_paths_exist() -> None:
    """A path that is named is there."""
    assert paths()
    assert not {path for path in paths() if not (ROOT / path).exists()}


def test_links_lead_somewhere() -> None:
    """A link into the repository has a target."""
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", readme()) if "://" not in target]
    assert not {target for target in targets if target and not (ROOT / target).exists()}


@pytest.mark.parametrize("command", ["script/demo", "script/test"])
def test_the_two_commands(command: str) -> None:
    """README.md names them, and they can be run."""
    assert command in readme()
    assert (ROOT / command).stat().st_mode & 0o111


def test_changelog() -> None:
    """CHANGELOG.md has a section for what is not released yet."""
    assert re.search(r"^## \[?Unreleased\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_policies_of_the_readme(agent: Agent) -> None:
    """Each policy shown is one that cf-agent takes, with a promise that would be evaluated."""
    blocks = re.findall(r"```cf3\n(.*?)```", readme(), re.DOTALL)
    assert blocks
    for block in blocks:
        (section,) = re.findall(r"^ *messages:.*?;$", block, re.MULTILINE | re.DOTALL)
        run = agent.run(section + "\n", options=["--dry-run"])
        assert [bool(re.search("Should .* tcp://hub:5301", warning)) for warning in run.warnings] == [True]
