"""What happens to keys: each enrolment, refusal and change is a line of log and a row of the store."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping

from cf_messaged.complaints import Complaints
from cf_messaged.database import StoreUnavailable
from cf_messaged.journal import IN, LET_IN, LET_OUT, KeyChange
from cf_messaged.store import Store

log = logging.getLogger(__name__)

# Rows that wait for a store that is away; the oldest goes, it is in the log.
MAX_WAITING = 1000
# The same refusal, or the same wait, is one row in so long a time, though it may be said at each run of an agent.
AGAIN_S = 86400.0
MAX_TOLD = 10_000


class KeyLog:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[KeyChange] = deque(maxlen=MAX_WAITING)
        self._told: OrderedDict[Hashable, float] = OrderedDict()
        self._complaints = Complaints()
        last = store.last_key_changes()
        self._names = {key: change.node for key, change in last.items() if change.what in IN}

    def changed(self, change: KeyChange) -> None:
        log.info("%s", _line(change))
        self._wait(change)
        if change.what in IN:
            self._names[change.key] = change.node

    def refused(self, change: KeyChange) -> None:
        """By anybody, at any rate: no more of them than of other lines that others can cause."""
        if self._complaints.say(change.address, _line(change)) and self._is_new(change):
            self._wait(change)

    def let_in(self, names: Mapping[bytes, str], now_us: int) -> None:
        """Who is let in now, whoever has changed that."""
        now = {key.hex(): node for key, node in names.items()}
        for key in self._names.keys() - now.keys():
            self.changed(KeyChange(now_us, LET_OUT, self._names[key], key))
        for key in now.keys() - self._names.keys():
            self.changed(KeyChange(now_us, LET_IN, now[key], key))
        self._names = now

    def _wait(self, change: KeyChange) -> None:
        if len(self._waiting) == MAX_WAITING:
            self.write()
        self._waiting.append(change)

    def write(self) -> None:
        """What waits. What cannot be written waits on."""
        if not self._waiting:
            return
        try:
            self._store.note_keys(list(self._waiting))
        except StoreUnavailable:
            return  # which is told where events are stored
        self._waiting.clear()

    def _is_new(self, change: KeyChange) -> bool:
        what, now_s = change._replace(received=0, address=""), time.monotonic()
        told_s = self._told.pop(what, None)
        self._told[what] = told_s if told_s is not None and now_s - told_s < AGAIN_S else now_s
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)
        return self._told.get(what) == now_s


def _line(change: KeyChange) -> str:
    about = f"{change.what}: {change.node or 'somebody'}, key {change.key}"
    about += f", host key {change.host_key}" if change.host_key else ""
    about += f", from {change.address}" if change.address else ""
    return f"{about}: {change.reason}" if change.reason else about
