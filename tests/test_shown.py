"""Rows for people: tables that fit a terminal, whole lines for a pipe, and what is told while something takes long."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from cf_messaged.shown import LEAST_OF_TIME, Shown, fitted
from cf_messaged.store import Store
from listener import COMMAND, ROOT, event
from peers import scaled

TIME = "2026-11-24T17:14:52.754125Z"
TYPES = {"time": "time", "received": "time", "data": "json", "alive": "boolean"}
ROW = {"node": "web1.example.org", "name": "hard_classes", "data": {"a": [1, 2]}, "time": TIME, "n": 12, "alive": True}

columns = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([None, 6, LEAST_OF_TIME])), min_size=1, max_size=12)


@given(columns, st.integers(1, 300))
def test_columns_fit(given: list[tuple[int, int | None]], width: int) -> None:
    """They take no more than there is, unless all are as narrow as may be; what fits is left as it is."""
    natural, least = [max(wide, narrow or 0) for wide, narrow in given], [narrow for _, narrow in given]
    widths = fitted(natural, least, width)
    fits = sum(widths) + len(widths) - 1 <= width
    narrowest = [min(width, wide if narrow is None else narrow) for wide, narrow in zip(natural, least, strict=True)]
    assert fits or all(found <= max(narrow, 1) for found, narrow in zip(widths, narrowest, strict=True))
    if sum(natural) + 2 * (len(natural) - 1) <= width:
        assert widths == natural


def test_a_table_is_as_wide_as_its_rows() -> None:
    """Where there is no terminal each row is one line, whatever is in it; times have seconds."""
    header, line = Shown(TYPES, None).text([{**ROW, "data": "x" * 10_000}]).splitlines()
    assert header.split() == list(ROW) and "2026-11-24T17:14:52Z" in line and "x" * 10_000 in line


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_table_is_folded(width: int) -> None:
    """No line is wider than the terminal; nothing is left out, and a time is its date above its time of day."""
    lines = Shown(TYPES, width).text([{**ROW, "received": TIME, "more": "word " * 20}]).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert lines[1].count("2026-11-24 ") == lines[2].count("T17:14:52Z ") == 2
    assert "".join(lines).count("word") == 20


def test_later_rows_have_the_same_columns() -> None:
    """Of those on a terminal none is made wider; of those on a pipe, only as far as it must be."""
    for width in (80, None):
        shown = Shown(TYPES, width)
        header = shown.text([ROW]).splitlines()[0]
        later = shown.text([{**ROW, "node": "web2"}]).splitlines()[0]
        assert later.index("hard_c") == header.index("name") and shown.text([]) == ""
    assert len(shown.text([{**ROW, "node": "w" * 99}]).splitlines()) == 1


def test_wide_characters_are_measured() -> None:
    """As a terminal shows them: two cells each."""
    lines = Shown({}, 20).text([{"a": "日本語" * 10, "b": 1}]).splitlines()
    assert len(lines) == 1 + 4 and all(cell_len(line) <= 20 for line in lines)


# ---- on a terminal


def on_a_terminal(arguments: Sequence[str], columns: int = 80) -> str:
    """What a command shows there, of both kinds of output."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment["TERM"] = "xterm"
    command = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            shown += os.read(ours, 65536)
    except OSError:  # it has ended
        return shown.decode()
    finally:
        os.close(ours)
        command.wait(scaled(60))


@pytest.fixture
def url(tmp_path: Path) -> str:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    said = [event(number, node=f"web{number}.example.org", data={"load": [0.5]}) for number in range(1, 4)]
    store.add([(each, 1) for each in said])
    store.close()
    return f"sqlite:///{tmp_path}/store.db"


def test_latest_on_80_columns(url: str) -> None:
    """Its nine columns fit, and their names are whole."""
    shown = on_a_terminal(["view", "latest", "--store", url])
    lines = [line.rstrip() for line in shown.splitlines() if "kind" in line or "state" in line]
    assert len(lines) == 4 and "1970-01-01 " in lines[1] and lines[1].endswith("false")
    assert all(word in lines[0] for word in "node kind name data time received age_s overdue alive".split())


def test_what_takes_long_is_told_on_a_terminal(url: str, tmp_path: Path) -> None:
    """While it goes on, and not where nobody looks; the rows are the same."""
    (tmp_path / "slow.sql").write_text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT max(i) AS i FROM n"
    )
    (tmp_path / "settings.toml").write_text(f"views_dir = '{tmp_path}'\nstore = '{url}'\n")
    arguments = ["view", "slow", "--config", str(tmp_path / "settings.toml")]
    shown = on_a_terminal(arguments)
    assert "asking for slow" in shown and "300000" in shown
    piped = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert piped.stderr == "" and "300000" in piped.stdout and "asking" not in piped.stdout


def test_forgetting_is_told_on_a_terminal(tmp_path: Path) -> None:
    """How many rows are gone so far, and at the end how many they were."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    for first in range(0, 3000, 1000):
        store.add([(event(number + 1), number + 1) for number in range(first, first + 1000)])
    store.close()
    shown = on_a_terminal(["forget", "web1", "--store", f"sqlite:///{tmp_path}/store.db"])
    assert "forgetting web1: " in shown and "500 rows are gone" in shown and "forgot web1: 3002 rows" in shown
