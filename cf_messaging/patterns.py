"""The nine patterns: which socket each needs, who speaks, and which attributes go with it. Decides only.

A promise of information, or for a view, has attributes of its own, and speaks by one of the patterns.
"""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from .wire import Kind

ASK, ANSWER, SAY, HEAR, PAIR = "ask", "answer", "say", "hear", "pair"

# socket: ZeroMQ's name of it. payload: "required", "optional" or "refused". attributes: allowed beside the common ones.
Pattern = namedtuple("Pattern", "name socket conversation payload attributes")

# What the endpoints' sockets are to do. payloads: bytes each. answers: how many messages are wanted back (None: all
# that come; 0: none). topic: bytes. curve: as attributes.py reads it, with the path of the key, or None. node: the name
# under which this one enrols where it is not let in, None where it does not.
Conversation = namedtuple(
    "Conversation",
    "pattern endpoints bind payloads topic answers retries subscribers curve node",
    defaults=(None, None),
)

# What information and views allow instead; the promise says by `information` or `view` which of them it is.
INFORMATION = ("information", "payload", "payload_file", "refresh", "expire", "node", "state_dir")
VIEW = ("view", "parameters", "file", "node")
# The patterns by which information may be said, the first by default; of the second row, state alone.
ACKNOWLEDGED, UNACKNOWLEDGED = ("async_request", "request"), ("push", "publish", "pair")

_CONNECTING = frozenset(("pattern", "endpoint", "timeout", "curve"))
EVERY = _CONNECTING | {"bind"}
_SAID = ("payload", "payload_file")
_KEPT = ("file", "format")

PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("request", "REQ", ASK, "required", (*_SAID, *_KEPT, "expect", "retries")),
        Pattern("reply", "REP", ANSWER, "required", (*_SAID, *_KEPT, "count")),
        Pattern("async_request", "DEALER", ASK, "required", (*_SAID, *_KEPT, "expect", "retries")),
        Pattern("async_reply", "ROUTER", ANSWER, "required", (*_SAID, *_KEPT, "count")),
        Pattern("publish", "XPUB", SAY, "required", (*_SAID, "topic", "subscribers")),
        Pattern("subscribe", "SUB", HEAR, "refused", (*_KEPT, "topic", "count")),
        Pattern("push", "PUSH", SAY, "required", _SAID),
        Pattern("pull", "PULL", HEAR, "refused", (*_KEPT, "count")),
        Pattern("pair", "PAIR", PAIR, "optional", (*_SAID, *_KEPT, "count", "expect")),
    )
}


def listens(talk: Conversation) -> bool:
    """Whether the other side speaks first."""
    return talk.pattern.conversation in (HEAR, ANSWER) or (talk.pattern.conversation == PAIR and not talk.payloads)


def allowing(attribute: str) -> list[str]:
    """The names of the patterns that an attribute goes with."""
    return [name for name, pattern in PATTERNS.items() if attribute in pattern.attributes]


@lru_cache(256)  # the promises of a policy are of few kinds
def objection(pattern: Pattern, given: tuple[str, ...], kind: Kind | None = None) -> tuple[str, str]:
    """The first attribute that may not be there, or is missing, and why; both empty if the combination is sound.

    kind: of the information, if it is any.
    """
    if kind:
        return _to_information(pattern, given, kind)
    if "view" in given:
        return _to_view(pattern, given)
    for attribute in given:
        if attribute not in EVERY and attribute not in pattern.attributes:
            return attribute, _elsewhere(attribute, f"pattern '{pattern.name}'")
    return _to_payload(pattern, given)


def _elsewhere(attribute: str, here: str) -> str:
    whole = [name for name, attributes in (("information", INFORMATION), ("view", VIEW)) if attribute in attributes]
    goes_with = ", ".join((*allowing(attribute), *whole))
    return f"it is not allowed with {here}" + (f", it goes with {goes_with}" if goes_with else "")


def _to_payload(pattern: Pattern, given: Collection[str]) -> tuple[str, str]:
    said = [attribute for attribute in _SAID if attribute in given]
    if len(said) > 1:
        return "payload_file", "it is not allowed beside 'payload', exactly one of both is"
    if not said and pattern.payload == "required":
        return "pattern", "it needs 'payload' or 'payload_file': what is to be said"
    if "format" in given and "file" not in given:
        return "format", "it is not allowed without 'file': what is received is written nowhere else"
    if pattern.conversation == PAIR and said and "count" in given:
        return "count", "it is not allowed with pattern 'pair' and a payload: each payload has one answer"
    if pattern.conversation == PAIR and not said and "expect" in given:
        return "expect", "it is not allowed with pattern 'pair' without a payload: there is no answer to match"
    return "", ""


def _to_information(pattern: Pattern, given: Collection[str], kind: Kind) -> tuple[str, str]:
    for attribute in given:
        if attribute not in INFORMATION and attribute not in _CONNECTING:
            return attribute, _elsewhere(attribute, "'information'")
    if pattern.name in UNACKNOWLEDGED and kind.remembered:
        return "pattern", f"{kind.name} information is acknowledged: allowed are {', '.join(ACKNOWLEDGED)}"
    if pattern.name not in (*ACKNOWLEDGED, *UNACKNOWLEDGED):
        return "pattern", f"information is said by {', '.join(ACKNOWLEDGED)}, state also by {', '.join(UNACKNOWLEDGED)}"
    if "refresh" in given and not kind.remembered:
        return "refresh", "it is not allowed with state, which is said at every evaluation"
    if "expire" in given and pattern.name in UNACKNOWLEDGED:
        return "expire", f"it is not allowed with pattern '{pattern.name}': nothing waits that is not acknowledged"
    if not any(attribute in given for attribute in _SAID):
        return "information", "it needs 'payload' or 'payload_file': what is to be said"
    return _to_payload(pattern, given)


def _to_view(pattern: Pattern, given: Collection[str]) -> tuple[str, str]:
    for attribute in given:
        if attribute not in VIEW and attribute not in _CONNECTING:
            return attribute, _elsewhere(attribute, "'view'")
    if pattern.name not in ACKNOWLEDGED:
        return "pattern", f"a view is asked for by {', '.join(ACKNOWLEDGED)}"
    if "file" not in given:
        return "view", "it needs 'file': where the rows go"
    return "", ""
