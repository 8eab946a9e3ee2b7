"""script/demo: every example policy, all sides, under real cf-agents."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from agent import SEARCH_PATH
from conftest import HAS_LISTENER, needs_listener
from demo import REPOSITORY
from peers import scaled

WITHOUT_A_LISTENER = "demo.with_a_listener = lambda stage: []"
WITH_A_LISTENER_ALONE = "demo.among_nodes = lambda stage: []"
# test_share.py runs them.
NOT_SHOWN = {"listener", "maintenance"}
SPEAK_TO_A_LISTENER = {"share", "heartbeat", "common", "web_servers"}


def run_demo(*changes: str) -> subprocess.CompletedProcess[str]:
    """changes: statements that change the module before it runs."""
    return subprocess.run(
        [sys.executable, "-c", "; ".join(["import demo", *changes, "demo.main()"])],
        cwd=REPOSITORY / "script",
        env={"PATH": SEARCH_PATH},
        capture_output=True,
        text=True,
        timeout=scaled(240),
        check=False,
    )


@pytest.fixture(scope="module")
def output() -> str:
    """What the demo says where all is well: all of it, or without a cf-messaged where none can run."""
    demo = run_demo(*([] if HAS_LISTENER else [WITHOUT_A_LISTENER]))
    assert demo.returncode == 0, demo.stdout + demo.stderr
    return demo.stdout


def test_every_example_comes_out_as_it_should(output: str) -> None:
    """The demo runs each bundle of each example, checks outcome and report, and ends with 0 only if all are right."""
    left_out = NOT_SHOWN if HAS_LISTENER else NOT_SHOWN | SPEAK_TO_A_LISTENER
    told = set(re.findall(r"^  (\w+)(?: on \S+)?$", output, re.MULTILINE))
    policies = [path.read_text() for path in (REPOSITORY / "examples").glob("*.cf") if path.stem not in left_out]
    assert told == {name for policy in policies for name in re.findall(r"^bundle agent (\w+)", policy, re.MULTILINE)}


@needs_listener
def test_what_three_nodes_share_is_kept_and_shown(output: str) -> None:
    """A second run keeps what the listener has; the end is views, as tables with a line for each node."""
    assert len(re.findall(r"^    '\w+' kept: \S+ has it already$", output, re.MULTILINE)) == 3
    _, nodes, latest = output.split("$ cf-messaged view ")
    names = [line.split(".")[0] for line in nodes.splitlines()[2:5]]
    assert names == ["hub", "web1", "web2"]
    assert latest.count("web server") == 2


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            "demo.SCENES = (); demo.WORLD = demo.WORLD._replace(sides=[demo.WORLD.sides[0]._replace(reports=[])]);"
            + WITHOUT_A_LISTENER,
            id="among nodes",
        ),
        pytest.param(
            f"{WITH_A_LISTENER_ALONE}; demo.SHARED = demo.SHARED[-1:]; demo.VIEWS = ()",
            id="kept",
            marks=needs_listener,
        ),
        pytest.param(f"{WITH_A_LISTENER_ALONE}; demo.SHARED = ()", id="views", marks=needs_listener),
    ],
)
def test_demo_fails_when_something_is_not_as_it_should_be(changes: str) -> None:
    """A demo whose promise, or view, is not what it expects ends with an error: it can fail.

    kept: nothing was said before, so a first run says it. views: nobody has said anything.
    """
    demo = run_demo(changes)
    assert demo.returncode == 1
    assert "It should be" in demo.stdout and "as they should be" in demo.stderr


def test_demo_fails_when_cf_messaged_does_not_start() -> None:
    """It tells what that said, and waits for nothing."""
    demo = run_demo(WITH_A_LISTENER_ALONE, "demo.CF_MESSAGED = ['/bin/sh', '-c', 'echo out of order >&2']")
    assert demo.returncode == 1
    assert "cf-messaged did not start: out of order" in demo.stderr
