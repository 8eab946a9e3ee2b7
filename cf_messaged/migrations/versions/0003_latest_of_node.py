"""Of the latest values, SQLite is told that a node has fewer than a kind has."""

from __future__ import annotations

from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Of a kind fewer than there may be: for more, all of them would be read, in the order of nodes."""
    if op.get_bind().dialect.name != "sqlite":
        return
    for index, shared in {"sqlite_autoindex_latest_1": "100000 1000 1", "latest_of_node": "100"}.items():
        op.execute(f"INSERT INTO sqlite_stat1 VALUES ('latest', '{index}', '10000000 {shared}')")
    op.execute("ANALYZE sqlite_schema")  # which is there, and is read anew
