"""By which key each message came, what its node may, and how much: what the loop asks where there are keys."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import zmq

from cf_messaged import rights
from cf_messaged.budget import INTERVAL_S, Budget
from cf_messaged.config import Config
from cf_messaged.connections import descriptor_of, hang_up
from cf_messaged.intake import FLOODING, REVOKED
from cf_messaged.keyring import Keyring
from cf_messaged.rights import Rights

# Who goes on though he is told to come later is not even read any more once he has said so many times his share.
PATIENCE = 2
# In which what an ended connection has said before is read.
STALE_S = 1.0


class NotHeard(Exception):
    """Nothing is read of who has said it, and he is hung up on. Which rule: as it is counted."""


class Sender(NamedTuple):
    """name: of the key. put_off: why what he says is not taken now, empty if it is; wait_s: for how long."""

    name: str
    put_off: str = ""
    wait_s: float = 0.0


class Guard:
    """Knows the keys as they were at the last `check`."""

    def __init__(self, keyring: Keyring, config: Config) -> None:
        self._keyring = keyring
        self._names: Mapping[bytes, str] = {}
        self._events, self._bytes = Budget(0), Budget(0)
        self._hung_up_s: dict[int, float] = {}  # by descriptor
        self._heard_s: dict[bytes, float] = {}  # by key
        self._started_s = time.monotonic()
        self.settle(config)

    def settle(self, config: Config) -> None:
        """Other settings count from now on. A minute of a limit may come at once, as a queue of a night does."""
        self.rights = Rights(rights.read(config.rights))
        self._events.each = INTERVAL_S * config.node_events_a_second
        self._bytes.each = INTERVAL_S * config.node_bytes_a_second

    def check(self) -> bool:
        """Whether others are let in than before."""
        names, before = self._keyring.names(), self._names
        self._names = names
        if names is not before:
            self._heard_s = {key: heard_s for key, heard_s in self._heard_s.items() if key in names}
        return names is not before

    def name_of(self, last: zmq.Frame) -> str | None:
        """Who has sent a message with this last frame; None if he is let in no more."""
        return self._names.get(key_of(last))

    def sender(self, last: zmq.Frame, size: int, now_s: float) -> Sender:
        """Of a message of so many bytes with this last frame. Raises NotHeard."""
        key = key_of(last)
        name = self._names.get(key)
        if name is None:
            self._hang_up(last, now_s)
            raise NotHeard(REVOKED)
        self._heard_s[key] = now_s
        limits = (self._events, 1, "events"), (self._bytes, size, "bytes")
        wait_s, most, what = max((budget.wait_s(name, now_s), budget.each, what) for budget, _, what in limits)
        if wait_s and any(budget.wait_s(name, now_s, PATIENCE) for budget, _, _ in limits):
            self._hang_up(last, now_s)
            raise NotHeard(FLOODING)
        for budget, amount, _ in limits:
            budget.spend(name, amount)
        if not wait_s:
            return Sender(name)
        limit = f"node_{what}_a_second is {most / INTERVAL_S:.0f}"
        return Sender(name, f"{name} has said {most:.0f} {what} in a minute, and {limit}", wait_s)

    def enrolled(self, key: bytes) -> None:
        """That it was counts as its first word."""
        self._heard_s[key] = time.monotonic()

    def silent_s(self, key: bytes) -> float:
        """How long ago something was said by it, as far as that is known: it may have been just before the start."""
        return time.monotonic() - self._heard_s.get(key, self._started_s)

    @property
    def names(self) -> Mapping[bytes, str]:
        return self._names

    def _hang_up(self, last: zmq.Frame, now_s: float) -> None:
        """Once: what he has said before goes on to come, when his descriptor may be of another connection."""
        descriptor = descriptor_of(last)
        if now_s - self._hung_up_s.get(descriptor, -math.inf) > STALE_S:
            self._hung_up_s[descriptor] = now_s
            hang_up(last)


def key_of(frame: zmq.Frame) -> bytes:
    """By which it came; empty if by none."""
    try:
        return bytes.fromhex(str(frame.get("User-Id")))
    except (zmq.ZMQError, ValueError):
        return b""
