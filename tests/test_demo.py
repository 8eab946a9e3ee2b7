"""script/demo: every example policy, both sides, under real cf-agents."""

from __future__ import annotations

import re
import subprocess
import sys

from agent import MODULE_PYTHON, SEARCH_PATH
from demo import REPOSITORY
from peers import scaled

# Examples that speak to a cf-messaged, which test_share.py runs, or keep one running.
WITH_A_LISTENER = {"share", "heartbeat", "common", "web_servers", "listener"}


def test_every_example_comes_out_as_it_should() -> None:
    """The demo runs each bundle of each example without a cf-messaged, checks outcome and report, and ends with 0 only
    if all are right.
    """
    demo = subprocess.run(
        [MODULE_PYTHON, REPOSITORY / "script/demo.py"],
        env={"PATH": SEARCH_PATH},
        capture_output=True,
        text=True,
        timeout=scaled(120),
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    told = set(re.findall(r"^  (\w+)$", demo.stdout, re.MULTILINE))
    examples = (REPOSITORY / "examples").glob("*.cf")
    policies = [path.read_text() for path in examples if path.stem not in WITH_A_LISTENER]
    assert told == {name for policy in policies for name in re.findall(r"^bundle agent (\w+)", policy, re.MULTILINE)}


def test_demo_fails_when_an_outcome_is_not_as_it_should_be() -> None:
    """A demo whose expectations are wrong ends with an error: it can fail."""
    changed = (
        "import demo; demo.SCENES = ();"
        "demo.WORLD = demo.WORLD._replace(sides=(demo.WORLD.sides[0]._replace(reports=[]),)); demo.main()"
    )
    demo = subprocess.run(
        [sys.executable, "-c", changed],
        cwd=REPOSITORY / "script",
        env={"PATH": SEARCH_PATH},
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert demo.returncode == 1
    assert "It should be" in demo.stdout
