"""The nine patterns: which socket each needs, who speaks, and which attributes go with it. Decides only."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

ASK, ANSWER, SAY, HEAR, PAIR = "ask", "answer", "say", "hear", "pair"

# socket: ZeroMQ's name of it. payload: "required", "optional" or "refused". attributes: allowed beside the common ones.
Pattern = namedtuple("Pattern", "name socket conversation payload attributes")

# What the endpoints' sockets are to do. payloads: bytes each. answers: how many messages are wanted back (None: all
# that come; 0: none). topic: bytes.
Conversation = namedtuple("Conversation", "pattern endpoints bind payloads topic answers retries subscribers")

EVERY = frozenset(("pattern", "endpoint", "bind", "timeout"))
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


def objection(pattern: Pattern, given: Collection[str]) -> tuple[str, str]:
    """The first attribute that may not be there, or is missing, and why; both empty if the combination is sound."""
    for attribute in given:
        if attribute not in EVERY and attribute not in pattern.attributes:
            goes_with = ", ".join(allowing(attribute))
            return attribute, f"it is not allowed with pattern '{pattern.name}', it goes with {goes_with}"
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
