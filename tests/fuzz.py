"""What the fuzz tests really gave and what came of it, counted; and a watch, so that none of it hangs unseen."""

from __future__ import annotations

import faulthandler
import os
from collections import Counter, defaultdict

from peers import scaled

AGENT_INPUTS, FRAME_SEQUENCES = "agent inputs", "frame sequences"

_LONGEST_S = 120  # of one example, before the session is ended with the traceback of every thread
_counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
_terminal = 2  # a descriptor of standard error that pytest does not capture


def watch(terminal: int | None = None) -> None:
    """From now on the watch waits for the next call; terminal: where it complains from now on."""
    global _terminal  # noqa: PLW0603 - one watch for the process, as faulthandler has one timer
    _terminal = _terminal if terminal is None else terminal
    faulthandler.dump_traceback_later(scaled(_LONGEST_S), exit=True, file=_terminal)


def end_watch() -> None:
    faulthandler.cancel_dump_traceback_later()


def count(what: str, *kinds: str, times: int = 1) -> None:
    """Count something that was really done, and under each of the kinds that it is of."""
    for kind in ("", *kinds):
        _counted[what][kind] += times


def report() -> list[str]:
    """A line for each thing that was counted: `agent inputs: 1,234 (of which by a real process: 40)`."""
    return [
        f"{what}: {kinds['']:,}" + (f" (of which {_listed(kinds)})" if len(kinds) > 1 else "")
        for what, kinds in _counted.items()
    ]


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind}: {number:,}" for kind, number in sorted(kinds.items()) if kind)


def shortages() -> list[str]:
    """Which of the two totals stayed below MESSAGES_FUZZ_LEAST, in words."""
    least = int(os.environ.get("MESSAGES_FUZZ_LEAST", "0"))
    return [
        f"only {_counted.get(what, Counter())['']:,} {what}, where MESSAGES_FUZZ_LEAST={least:,}"
        for what in (AGENT_INPUTS, FRAME_SEQUENCES)
        if _counted.get(what, Counter())[""] < least
    ]
