"""Times: UTC microseconds inside, RFC 3339 outside."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:)(\d{2})(?:\.(\d{1,9}))?Z"


@lru_cache(256)  # an event's time is asked for when it is checked, and when it is stored
def microseconds(text: str) -> int:
    """Of an RFC 3339 time in UTC; what is finer is cut off. Raises ValueError."""
    parts = re.fullmatch(_RFC3339, text, re.ASCII)
    if not parts:
        raise ValueError(f"'{text:.100}' is no RFC 3339 time in UTC, as 2026-11-24T12:40:00Z is")
    leap = parts[2] == "60"  # datetime knows no leap seconds; the second before is near enough
    try:
        moment = datetime.fromisoformat(parts[1] + ("59" if leap else parts[2])).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"'{text:.100}' is no time of the calendar") from None
    return (moment - EPOCH) // timedelta(microseconds=1) + int((parts[3] or "").ljust(6, "0")[:6])


def rfc3339(time_us: int) -> str:
    """Raises OverflowError beyond the years 1 to 9999."""
    return (EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
