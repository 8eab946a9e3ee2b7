"""bench/fleet counts what was really said, acknowledged and stored, and does not hold when something is lost."""

from __future__ import annotations

import re
import subprocess
import sys

from listener import ROOT
from peers import scaled

sys.path.append(str(ROOT / "bench"))
import fleet

MEMORY = fleet.Memory(now=70_000, most=80_000)


def test_a_small_fleet() -> None:
    """Of three nodes each says one event at first, then two; all of them are told to be acknowledged and there."""
    command = [sys.executable, str(ROOT / "bench/fleet.py"), "--nodes", "3", "--seconds", "2"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=scaled(120))
    assert re.search(r"^\| 9 \| 9 \| 0 \|", ended.stdout, re.MULTILINE)
    assert re.search(r"^\| under load \| [1-9]", ended.stdout, re.MULTILINE)


def test_what_is_lost_is_seen() -> None:
    """Be it never acknowledged, or acknowledged and not stored."""
    whole = fleet.Measured((MEMORY, MEMORY, MEMORY), events=9, acknowledged=9, kept=9, took=[0.1] * 6)
    assert whole.holds
    assert whole._replace(kept=8).lost == 1
    assert not whole._replace(kept=8).holds
    assert not whole._replace(acknowledged=8).holds
