"""What becomes of a promise: kept, repaired or not kept, with which classes and in which words. Decides only."""

from __future__ import annotations

from enum import Enum

from .patterns import ANSWER, ASK, listens

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .patterns import Conversation


class Reason(Enum):
    """Why a promise is not kept: its class, and the words that follow the endpoint. The first is the worst."""

    LOCAL = "local", "this node"
    REFUSED = "refused", "refused"
    INVALID_REPLY = "invalid_reply", "invalid answer"
    MISMATCHED = "mismatched", "answer does not match"
    TIMED_OUT = "timed_out", "timed out"
    UNREACHABLE = "unreachable", "unreachable"
    EXPIRED = "expired", "expired"

    def __init__(self, suffix: str, words: str) -> None:
        self.suffix = suffix
        self.words = words


_BADNESS = list(Reason)


class Failure(Exception):
    """Why something could not be done, in words that an operator can act on; endpoint: where, if not on this node."""

    def __init__(self, reason: Reason, detail: str, endpoint: str = "") -> None:
        super().__init__(f"{endpoint} {reason.words}: {detail}" if endpoint else detail)
        self.reason = reason


def worst(failures: Sequence[Failure]) -> Failure:
    """One failure for several: the worst reason, all the words, each once."""
    reason = min((failure.reason for failure in failures), key=_BADNESS.index)
    return Failure(reason, "; ".join(dict.fromkeys(map(str, failures))))


class Outcome:
    """The answer to cf-agent: result, class suffixes, and the one log line with its level."""

    __slots__ = ("level", "result", "suffixes", "text")

    def __init__(self, result: str, level: str, text: str, suffixes: Iterable[str] = ()) -> None:
        self.result = result
        self.level = level
        self.text = text
        self.suffixes = list(suffixes)


def kept(text: str, suffixes: Iterable[str] = ()) -> Outcome:
    return Outcome("kept", "verbose", text, suffixes)


def repaired(text: str, suffixes: Iterable[str] = ()) -> Outcome:
    return Outcome("repaired", "info", text, suffixes)


def not_kept(failure: Failure) -> Outcome:
    return Outcome("not_kept", "error", str(failure), ("failed", failure.reason.suffix))


def only_warned(what: str) -> Outcome:
    """In a dry run: what would be done."""
    return Outcome("not_kept", "warning", f"Should {what}, but only warnings promised")


def told(talk: Conversation, endpoint: str, said: int, received: int) -> tuple[str, list[str]]:
    """What a conversation came to when nothing failed, in words, and the class suffixes that it earns."""
    if talk.pattern.conversation == ASK or (not listens(talk) and talk.answers):
        return f"{endpoint} answered {_counted(said, 'message')}", ["delivered"]
    if talk.pattern.conversation == ANSWER:
        return f"{_counted(said, 'request')} answered at {endpoint}", ["sent"] if said else []
    if listens(talk):
        return f"{_counted(received, 'message')} received at {endpoint}", []
    return f"{_counted(said, 'message')} handed over to {endpoint}", ["sent"]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
