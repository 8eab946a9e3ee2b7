"""What is said of trouble: lines of log that others can cause at any rate, so many in a minute of each and of all."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable

from cf_messaged.budget import Budget

log = logging.getLogger(__name__)

OF_EACH, OF_ALL = 10, 100


def in_words(error: OSError) -> str:
    """What the system refused, and of which file: of a write to a full disk it does not tell."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


class Complaints:
    def __init__(self) -> None:
        self._lines, self._share = Budget(1), Budget(OF_EACH, OF_ALL)

    def say(self, who: Hashable, line: str, level: int = logging.WARNING) -> bool:
        """Unless it was said of the same one in this minute: returns whether it is said. who: as far as he is known."""
        now_s = time.monotonic()
        if self._lines.wait_s((who, line), now_s) or self._share.wait_s(who, now_s):
            return False
        self._lines.spend((who, line), 1)
        self._share.spend(who, 1)
        log.log(level, "%s%s", line, self._end(who, now_s))
        return True

    def _end(self, who: Hashable, now_s: float) -> str:
        if self._share.wait_s(object(), now_s):  # of anybody
            return "; the log is full of such lines, and no more of them are written in this minute"
        return "; no more lines of it are written in this minute" if self._share.wait_s(who, now_s) else ""
