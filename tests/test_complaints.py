"""Lines of log that others cause: none of them can fill the log, or keep others out of it for long."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from cf_messaged.budget import INTERVAL_S
from cf_messaged.complaints import OF_ALL, OF_EACH, Complaints, in_words


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_the_same_is_said_once_of_each(lines: pytest.LogCaptureFixture) -> None:
    """With the level that it is given."""
    made = Complaints()
    for who in ("web1", "web1", "web2"):
        made.say(who, "refused: no event")
    made.say("web1", "a fact has changed", logging.INFO)
    told = [(record.levelno, record.message) for record in lines.records]
    assert told == [(logging.WARNING, "refused: no event")] * 2 + [(logging.INFO, "a fact has changed")]


def test_of_one_no_more_than_its_share(lines: pytest.LogCaptureFixture) -> None:
    """The last line says so; others are heard of as before."""
    made = Complaints()
    for number in range(3 * OF_EACH):
        made.say("web1", f"refused: {number}")
    made.say("web2", "refused: another")
    *_, last, other = lines.messages
    assert len(lines.messages) == OF_EACH + 1 and other == "refused: another"
    assert last == f"refused: {OF_EACH - 1}; no more lines of it are written in this minute"


def test_of_all_no_more_than_theirs(lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are; in the next minute as before."""
    made = Complaints()
    for number in range(2 * OF_ALL):
        made.say(number, "refused")
    assert len(lines.messages) == OF_ALL and lines.messages[-1].startswith("refused; the log is full")
    later_s = time.monotonic() + INTERVAL_S
    monkeypatch.setattr("time.monotonic", lambda: later_s)
    made.say(0, "refused")
    assert len(lines.messages) == OF_ALL + 1


def test_what_the_system_refuses(tmp_path: Path) -> None:
    """With the file, where it is known: a write to a disk without room does not tell it."""
    with pytest.raises(FileNotFoundError) as found:
        (tmp_path / "not there").read_bytes()
    assert in_words(found.value) == f"{tmp_path}/not there: No such file or directory"
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space") as full_disk:
        full.write(b"x")
    assert in_words(full_disk.value) == "No space left on device"
    assert in_words(OSError("said by a library")) == "said by a library"
