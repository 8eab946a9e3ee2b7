"""What happens to the keys of nodes: a row each, for who asks later who was let in, when and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from cf_messaged.tables import key_changes

LET_IN, LET_OUT = "let in", "let out"  # by whoever may write the folders of keys
ENROLLED, RENEWED = "enrolled", "renewed"  # by itself
IN = (LET_IN, ENROLLED, RENEWED)


class KeyChange(NamedTuple):
    """received: when it happened, UTC microseconds. what: in a word, "let in", "refused". key: 64 hex digits. host_key:
    "SHA=<hex>". Like it, node, address and reason may be "".
    """

    received: int
    what: str
    node: str
    key: str
    host_key: str = ""
    address: str = ""
    reason: str = ""


def note(connection: sa.Connection, changes: Sequence[KeyChange]) -> None:
    """In their order; one at least."""
    rows = [{name: _plain(value) for name, value in change._asdict().items()} for change in changes]
    connection.execute(sa.insert(key_changes), rows)


def _plain(value: Any) -> Any:
    """A NUL, or a byte in the name of a file that is no UTF-8, is taken by no PostgreSQL: it would keep all the others
    from being noted.
    """
    if not isinstance(value, str):
        return value
    return value.encode(errors="replace").decode().replace("\0", "\ufffd")


# As its index has it: SQLite takes that for exactly these words.
_LET = sa.text(f"what IN {(*IN, LET_OUT)}")
_LAST_ROWS = sa.select(sa.func.max(key_changes.c.row)).where(_LET).group_by(key_changes.c.key)
LAST = sa.select(*(key_changes.c[name] for name in KeyChange._fields)).where(key_changes.c.row.in_(_LAST_ROWS))


def last(connection: sa.Connection) -> dict[str, KeyChange]:
    """By key. Which is the last, rows tell: a clock may have been set back."""
    return {row.key: KeyChange(*row) for row in connection.execute(LAST)}
