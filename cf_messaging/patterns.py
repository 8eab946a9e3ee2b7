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
# that come). topic: bytes. at_once: several payloads in flight together.
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


def objection(pattern: Pattern, given: Collection[str]) -> str:
    """What is wrong with giving these attributes together; empty if nothing is."""
    for attribute in given:
        if attribute not in EVERY and attribute not in pattern.attributes:
            return f"attribute '{attribute}' is not allowed with pattern '{pattern.name}': {_goes_with(attribute)}"
    said = [attribute for attribute in _SAID if attribute in given]
    if len(said) > 1:
        return "attributes 'payload' and 'payload_file' exclude each other: give exactly one"
    if not said and pattern.payload == "required":
        return f"pattern '{pattern.name}' needs 'payload' or 'payload_file': what is to be said"
    if "format" in given and "file" not in given:
        return "attribute 'format' needs 'file': what is received is written nowhere else"
    if pattern.conversation == PAIR and said and "count" in given:
        return "attribute 'count' is not allowed with pattern 'pair' and a payload: each payload has one answer"
    if pattern.conversation == PAIR and not said and "expect" in given:
        return "attribute 'expect' is not allowed with pattern 'pair' without a payload: there is no answer to match"
    return ""


def _goes_with(attribute: str) -> str:
    return "it goes with " + ", ".join(allowing(attribute))
