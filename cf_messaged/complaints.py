"""Lines of log that anybody can cause, at any rate: each is said once a minute."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

EACH_S = 60.0
# Different ones; whoever can cause one can cause it in many words.
MOST = 100


class Complaints:
    def __init__(self) -> None:
        self._until_s = 0.0
        self._said: set[str] = set()

    def say(self, line: str, level: int = logging.WARNING) -> None:
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._until_s = now_s + EACH_S
            self._said.clear()
        if line not in self._said and len(self._said) < MOST:
            self._said.add(line)
            log.log(level, "%s%s", line, "; others like it are not said in this minute" * (len(self._said) == MOST))
