"""What the fuzz tests really gave and what came of it, counted; and a watch, so that none of it hangs unseen."""

from __future__ import annotations

import faulthandler
import threading
from collections import Counter, defaultdict

from peers import scaled

AGENT_INPUTS, FRAME_SEQUENCES, ZAP_REQUESTS = "agent inputs", "frame sequences", "ZAP requests"

terminal = 2  # the descriptor where the watch complains: conftest.py sets one that pytest does not capture
_LONGEST_S = 120  # of one example, before the session is ended with the traceback of every thread
_counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
_counting = threading.Lock()


def watch() -> None:
    """Called at the start of each example: from now on it may last as long as the longest."""
    faulthandler.dump_traceback_later(scaled(_LONGEST_S), exit=True, file=terminal)


def end_watch() -> None:
    faulthandler.cancel_dump_traceback_later()


def count(what: str, *kinds: str) -> None:
    """Count something that was really done, and under each of the kinds that it is of."""
    with _counting:
        _counted[what].update(("", *kinds))


def counted() -> dict[str, dict[str, int]]:
    """What this process has counted: its report, for another one that adds it to its own."""
    return {what: dict(kinds) for what, kinds in _counted.items()}


def add(counted: dict[str, dict[str, int]]) -> None:
    for what, kinds in counted.items():
        _counted[what].update(kinds)


def report() -> list[str]:
    """A line for each thing that was counted: `agent inputs: 1,234 (of which by a real process: 40)`."""
    return [
        f"{what}: {kinds['']:,}" + (f" (of which {_listed(kinds)})" if len(kinds) > 1 else "")
        for what, kinds in _counted.items()
    ]


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind}: {number:,}" for kind, number in sorted(kinds.items()) if kind)
