"""What the socket that publishes hears, and what it says again for those who come late. No socket, clock or database.

Published is the topic KIND/NAME/NODE/, then the event; a subscription is any prefix of that, in bytes. Who comes late
gets the last value of every name that matches. XPUB cannot address one peer, so all who match get it again: that is
done once an interval, however many come.
"""

from __future__ import annotations

import codecs
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from cf_messaging.wire import KINDS, MAX_TOPIC_BYTES

# How long those who come late are collected; the first one after a pause does not wait.
INTERVAL_S = 0.1
# Of prefixes that are told apart; they come from outside, and any peer can make up millions.
MAX_PREFIXES = 10_000
# What a round of the loop says again at most, in messages, in bytes (but for the last read) and in reads of the store:
# events come in the meantime.
CHUNK = 256
CHUNK_BYTES = 8 * 1024 * 1024
MAX_READS = 64

UNSUBSCRIBED, SUBSCRIBED = b"\0", b"\1"
_EVERYTHING = b""
_T = TypeVar("_T", bound=Hashable)

Key = tuple[str, str, str]  # kind, name, node


class Value(NamedTuple):
    """frame: the event, encoded."""

    kind: str
    name: str
    node: str
    frame: bytes

    @property
    def key(self) -> Key:
        return self.kind, self.name, self.node

    @property
    def topic(self) -> bytes:
        return topic_of(self.kind, self.name, self.node)


# last(prefix, after, limit): last values, as they are now, of one page. Ordered by (kind, name, node), always the same
# way; strictly after the key, if there is one; at most `limit` of them. Fewer are fine, as large values are better read
# few at a time, but none at all means that there are no more. Every value whose topic begins with the prefix is among
# them; others may be, they are left out here: see `bounds`.
Last = Callable[[bytes, Key | None, int], Sequence[Value]]


def topic_of(kind: str, name: str, node: str) -> bytes:
    return f"{kind}/{name}/{node}/".encode()


# ---- for the store: what a prefix tells of the key


class Bounds(NamedTuple):
    """kinds: which can match at all. text: what NAME/NODE/ begins with. first, end: names that can match are not before
    the first and before the end, in the order of code points, which is that of UTF-8; None: there is no end.
    """

    kinds: tuple[str, ...]
    text: str = ""
    first: str = ""
    end: str | None = None


_NOTHING = Bounds(())


def bounds(prefix: bytes) -> Bounds:
    """Necessary for a topic that begins with the prefix, not sufficient."""
    begun, slash, rest = prefix.partition(b"/")
    kinds = tuple(kind for kind in KINDS if f"{kind}/".encode().startswith(begun + slash))
    if not kinds or len(prefix) > MAX_TOPIC_BYTES:
        return _NOTHING
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(rest)  # leaves out a character that is cut at the end
    except UnicodeDecodeError:
        return _NOTHING
    if "\0" in text:  # which no name has, and PostgreSQL would not even compare
        return _NOTHING
    return Bounds(kinds, text, _first_name(text), _after_all(text))


def _first_name(text: str) -> str:
    """Which of "/" ends the name cannot be seen; the shortest is that before "NODE" or "NODE/", if these are there."""
    whole = text.removesuffix("/")
    return whole.rpartition("/")[0] or whole


def _after_all(text: str) -> str | None:
    """What comes next after all texts that begin with this one."""
    begun = text.rstrip("\U0010ffff")
    if not begun:
        return None
    code = ord(begun[-1]) + 1
    return begun[:-1] + chr(0xE000 if code == 0xD800 else code)  # half a surrogate pair is no character


# ---- who wants what


class _Subscriptions:
    """Counted by prefix, as far as there is room; all others count as subscriptions to everything."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()
        self._lengths: Counter[int] = Counter()  # of the prefixes, each once
        self._others = 0

    def total(self) -> int:
        return self._counts.total() + self._others

    def match(self, topic: bytes) -> bool:
        lengths = self._lengths if len(self._lengths) <= len(topic) else range(len(topic) + 1)
        return self._others > 0 or any(topic[:length] in self._counts for length in lengths)

    def add(self, prefix: bytes) -> None:
        if prefix in self._counts:
            self._counts[prefix] += 1
        elif len(self._counts) < MAX_PREFIXES:
            self._counts[prefix] = 1
            self._lengths[len(prefix)] += 1
        else:
            self._others += 1

    def remove(self, prefix: bytes) -> None:
        if prefix not in self._counts:
            self._others = max(0, self._others - 1)
        elif _take_one(self._counts, prefix):
            _take_one(self._lengths, len(prefix))


def _take_one(counts: Counter[_T], key: _T) -> bool:
    """Whether it was the last; then the key is gone too."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
        return True
    return False


class Publisher:
    """In each round of the loop: everything that was heard; then what `resend` returns is sent, before anything is
    stored or published. So of two values of a name the older one is never sent after the newer one.
    """

    def __init__(self) -> None:
        self._subscriptions = _Subscriptions()
        self._joined: set[bytes] = set()
        self._resend = Resend(())
        self._not_before_s = -math.inf

    @property
    def subscriptions(self) -> int:
        """As far as peers say when they end; never too few."""
        return self._subscriptions.total()

    def heard(self, frame: bytes, left: bool = False, refused: bool = False) -> bool:
        """Whether it is of topics that there can be. frame: any that an XPUB with XPUB_MANUAL receives. left: no peer
        said it (the frame has no `Peer-Address`), but the socket itself, because a connection ended; which it says of
        what was refused too, so that is counted, but not answered with last values.

        Other unsubscriptions are not believed, as a peer can say any number of them for what others subscribed to, and
        XPUB passes them on. Who subscribes twice and leaves once, or unsubscribes first, stays counted: that costs a
        little, and loses nothing.
        """
        sign, prefix = frame[:1], frame[1:]
        if sign not in (SUBSCRIBED, UNSUBSCRIBED) or not bounds(prefix).kinds:
            return False
        if sign == SUBSCRIBED:
            self._subscriptions.add(prefix)
            if not refused:
                self._join(prefix)
        elif left:
            self._subscriptions.remove(prefix)
        return True

    def wants(self, topic: bytes) -> bool:
        """Whether anybody may get it. False is certain."""
        return self._subscriptions.match(topic)

    def resend(self, now_s: float, last: Last) -> list[Value]:
        """A chunk of the last values that those want who came; empty if nothing is due. now_s: of a monotonic clock.

        What `last` raises comes through; it loses nothing, and `last` is asked again after an interval.
        """
        if now_s < self._not_before_s:
            return []
        if self._resend.ended:
            self._resend = Resend(_disjoint(self._joined))
            self._joined = set()
        if self._resend.ended:
            return []
        self._not_before_s = now_s + INTERVAL_S
        values = self._resend.take(last)
        if not self._resend.ended:
            self._not_before_s = now_s
        return values

    def poll_s(self, now_s: float) -> float | None:
        """How long the loop may wait before it asks `resend` again; None: until something is heard."""
        if self._resend.ended and not self._joined:
            return None
        return max(0.0, self._not_before_s - now_s)

    def _join(self, prefix: bytes) -> None:
        if _EVERYTHING in self._joined:
            return
        if len(self._joined) < MAX_PREFIXES:
            self._joined.add(prefix)
        else:
            self._joined = {_EVERYTHING}


def _disjoint(prefixes: Iterable[bytes]) -> list[bytes]:
    """Without those that begin with another one; in order, each comes directly before all that begin with it."""
    kept: list[bytes] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


class Resend:
    """The last values of prefixes none of which begins with another: so each value comes once.

    Read a page at a time, when it is to be sent: what is stored meanwhile is either read, or was published to all.
    """

    def __init__(self, prefixes: Sequence[bytes]) -> None:
        self._prefixes = prefixes
        self._place = 0
        self._after: Key | None = None

    @property
    def ended(self) -> bool:
        return self._place == len(self._prefixes)

    def take(self, last: Last) -> list[Value]:
        """A chunk of them. If `last` raises, the next call returns what this one would have."""
        place, after, taken = self._place, self._after, []
        read = size = reads = 0
        while place < len(self._prefixes) and read < CHUNK and size < CHUNK_BYTES and reads < MAX_READS:
            prefix = self._prefixes[place]
            page = last(prefix, after, CHUNK - read)
            place, after = (place, page[-1].key) if page else (place + 1, None)
            taken += [value for value in page if value.topic.startswith(prefix)]
            read += len(page)
            size += sum(len(value.frame) for value in page)
            reads += 1
        self._place, self._after = place, after
        return taken
