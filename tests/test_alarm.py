"""Work without an end is ended, and nothing of the alarm is left behind."""

from __future__ import annotations

import re
import signal
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest

from cf_messaging import alarm, files
from cf_messaging.wire import Message


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "LEAST_S", 0.1)


def is_silent() -> bool:
    return signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_match_is_ended() -> None:
    with pytest.raises(alarm.Overdue):
        alarm.done_by(monotonic(), lambda: re.fullmatch("(a|a)*b", 64 * "a"))
    assert is_silent()


def test_a_file_of_json_is_ended() -> None:
    """The parser itself cannot be, but it is a small part of it."""
    received = [Message(b"[" + 1_000_000 * b"[]," + b"[]]", b"")]
    with pytest.raises(alarm.Overdue):
        alarm.done_by(monotonic(), lambda: files.as_json(received))
    assert is_silent()


def test_what_ends_in_time_is_left_alone() -> None:
    assert alarm.done_by(monotonic() + 60, is_silent) is False
    assert is_silent()
    with pytest.raises(ZeroDivisionError):
        alarm.done_by(monotonic() + 60, lambda: 1 // 0)
    assert is_silent()


def test_a_thread_has_no_alarm() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(alarm.done_by, monotonic(), is_silent).result()
