"""A view that goes on: what is new in its rows, asked for once a second.

A row is new if the answer before had none that is equal to it in all but ages. A view with a limit is a log, whose
newest rows come first; followed, they come last.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from cf_messaged.database import Database, StoreUnavailable
from cf_messaged.views import AGE, Refused, Row, View

INTERVAL_S = 1.0


class Following:
    """What is new in the rows of a view, answer by answer."""

    def __init__(self, view: View, limit: int | None) -> None:
        self._ages = {column for column, type in view.columns.items() if type == AGE}
        self._limit = limit
        self._had: Counter[str] = Counter()

    def new(self, rows: Sequence[Row]) -> list[Row]:
        """In the order in which they are shown."""
        keys = [self._key(row) for row in rows]
        had, self._had = self._had, Counter(keys)
        new = []
        for key, row in zip(keys, rows, strict=True):
            if had[key]:
                had[key] -= 1
            else:
                new.append(row)
        return new if self._limit is None else new[::-1]

    def may_lack(self, new: Sequence[Row]) -> bool:
        """Whether others may have come and gone that the limit did not let through."""
        return self._limit is not None and len(new) >= self._limit

    def _key(self, row: Row) -> str:
        return json.dumps([cell for column, cell in row.items() if column not in self._ages], sort_keys=True)


class Watch:
    """Tells at little cost whether a database may have changed; opened when it is asked, and again after it failed."""

    def __init__(self, kept: Database) -> None:
        self._kept = kept
        self._open = ExitStack()
        self._version: Callable[[], object] | None = None

    def version(self) -> object:
        """Another one after each change. Raises StoreUnavailable."""
        try:
            if self._version is None:
                self._version = self._open.enter_context(self._kept.watching())
            return self._version()
        except self._kept.errors as error:
            self.close()
            raise StoreUnavailable(f"{self._kept.name}: {self._kept.in_words(error)}") from None

    def close(self) -> None:
        self._version = None
        self._open.close()


class Follower:
    """Goes on whatever fails, since nobody wants to find in the morning that what he watched has ended: a listener that
    starts again, a backup that is put in place, a view that takes too long for once are told in one line.
    """

    def __init__(
        self,
        view: View,
        limit: int | None,
        ask: Callable[[], list[Row]],
        show: Callable[[list[Row]], None],
        note: Callable[[str], None],
    ) -> None:
        """ask: raises Refused, StoreUnavailable. note: is told in words what fails, and when it is over."""
        self._ask, self._show, self._note = ask, show, note
        self._following = Following(view, limit)
        self._changes_with_time = re.search(r"(?<![:\w]):now\b", view.sql) is not None
        self._trouble = ""

    def begin(self) -> None:
        """Shows what there is. Raises Refused, StoreUnavailable."""
        self._show(self._following.new(self._ask()))

    def go_on(self, version: Callable[[], object], wait: Callable[[float], bool]) -> None:
        """version: as Watch has it. wait: returns whether anybody still reads."""
        seen: object = None
        while wait(INTERVAL_S):
            try:
                found = version()
                if found != seen or self._changes_with_time:
                    self._look()
                seen = found
            except (Refused, StoreUnavailable) as error:
                self._tell(str(error))
                seen = None

    def _look(self) -> None:
        new = self._following.new(self._ask())
        if self._trouble:
            self._trouble = ""
            self._note("it is answered again")
        if self._following.may_lack(new):
            self._note("more may have come than its limit shows")
        if new:
            self._show(new)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._note(f"{trouble}; it is asked again each second")
        self._trouble = trouble
