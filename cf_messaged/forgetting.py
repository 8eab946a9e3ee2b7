"""A node is forgotten in steps, each a transaction, between which a listener beside us has its turn.

What is interrupted is in part gone, and can be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa

from cf_messaged.tables import changes, history, latest, nodes, streams

# Far less than the 2 s for which a listener waits until it answers that it cannot store.
STEP_S = 0.25
# SQLite looks every 0.1 s whether another one has ended; who begins anew at once would never let it in.
TURN_S = 0.15
FIRST, LEAST, MOST = 500, 100, 10_000  # rows a step


class Step(NamedTuple):
    """last: the row up to which all are gone; None if fewer than a step were left, of which none is gone."""

    removed: int
    last: int | None


Transact = Callable[[Callable[[sa.Connection], Step]], Step]


class Forgetting:
    """Of a node, or of one name of it."""

    def __init__(self, node: str, name: str | None) -> None:
        self._node, self._name = node, name
        self._last = dict.fromkeys((history, changes), 0)  # the row up to which all are gone

    def run(self, transact: Transact, told: Callable[[int], None]) -> int:
        """Returns how many rows were removed. transact: does it in a transaction; told: how many are gone so far."""
        removed = 0
        for table in self._last:
            for step in self._in_steps(table, transact):
                removed += step.removed
                told(removed)
        return removed + transact(self._remove_rest).removed

    def _in_steps(self, table: sa.Table, transact: Transact) -> Iterator[Step]:
        size = FIRST
        while True:
            began = time.monotonic()
            step = transact(partial(self._step, table=table, size=size))
            if step.last is None:
                return
            self._last[table] = step.last
            yield step
            took_s = time.monotonic() - began
            size = max(LEAST, min(MOST, int(size * STEP_S / took_s)))
            time.sleep(max(took_s, TURN_S))

    def _step(self, connection: sa.Connection, table: sa.Table, size: int) -> Step:
        """Looks at no more rows than a step has, also where the name is a rare one."""
        next_rows = table.c.node == self._node, table.c.row > self._last[table]
        found = sa.select(table.c.row).where(*next_rows).order_by(table.c.row).offset(size - 1).limit(1)
        last: int | None = connection.execute(found).scalar()
        if last is None:
            return Step(0, None)
        gone = connection.execute(sa.delete(table).where(*next_rows, table.c.row <= last, *self._of_name(table)))
        return Step(gone.rowcount, last)

    def _remove_rest(self, connection: sa.Connection) -> Step:
        if self._name is None:
            self._let_ids_go(connection)
        # A listener writes it before what is of this node: so that is complete, or will begin anew. Without it there is
        # nothing, or what begins just now.
        there = connection.execute(sa.select(nodes.c.node).where(nodes.c.node == self._node).with_for_update()).first()
        if there is None:
            return Step(0, None)
        removed = 0
        for table in (latest, *self._last):
            later = [table.c.row > self._last[table]] if table in self._last and self._name is not None else []
            wanted = sa.delete(table).where(table.c.node == self._node, *self._of_name(table), *later)
            removed += connection.execute(wanted).rowcount
        if self._name is None:
            removed += connection.execute(sa.delete(nodes).where(nodes.c.node == self._node)).rowcount
        return Step(removed, None)

    def _let_ids_go(self, connection: sa.Connection) -> None:
        """As soon as they are old enough. Locked first, and in their order, as a listener does."""
        of_node = streams.c.node == self._node
        connection.execute(sa.select(streams.c.id).where(of_node).order_by(streams.c.id).with_for_update()).all()
        connection.execute(sa.update(streams).where(of_node).values(heard=0))

    def _of_name(self, table: sa.Table) -> list[sa.ColumnElement[bool]]:
        return [] if self._name is None else [table.c.name == self._name]
