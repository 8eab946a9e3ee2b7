"""The first tables."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Compared byte by byte in both, whatever the language of a server.
_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    identity = op.create_table("identity", sa.Column("store", sa.Text, primary_key=True))
    op.bulk_insert(identity, [{"store": secrets.token_hex(16)}])
    _make_nodes()
    _make_latest()
    if op.get_bind().dialect.name == "postgresql":
        _partition_history()
    else:
        _make_history()
    _index_history()
    _make_changes()


def _make_nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("node", _KEY, primary_key=True),
        sa.Column("first_seen", _BIG, nullable=False),
        sa.Column("last_seen", _BIG, nullable=False),
        sa.Column("events", _BIG, nullable=False),
    )
    op.create_table(
        "streams",
        sa.Column("id", _BIG, primary_key=True),
        sa.Column("node", _KEY, nullable=False),
        sa.Column("stream", _KEY, nullable=False),
        sa.Column("have", _BIG, nullable=False),
        sa.UniqueConstraint("stream", "node"),
    )
    op.create_table(
        "seen",
        sa.Column("stream_id", _BIG, sa.ForeignKey("streams.id"), primary_key=True),
        sa.Column("sequence", _BIG, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("received", _BIG, nullable=False),
        sqlite_with_rowid=False,
    )


def _make_latest() -> None:
    op.create_table(
        "latest",
        sa.Column("kind", _KEY, primary_key=True),
        sa.Column("name", _KEY, primary_key=True),
        sa.Column("node", _KEY, primary_key=True),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("received", _BIG, nullable=False),
        sa.Column("refresh", _BIG),
        sa.Column("policy", sa.Text),
        sa.Column("handle", sa.Text),
        sa.Column("stream_id", _BIG, nullable=False),
        sa.Column("sequence", _BIG, nullable=False),
        sa.Column("batch", _BIG, nullable=False),
    )
    op.create_index("latest_of_node", "latest", ["node"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("latest_of_batch", "latest", ["batch"])


def _make_history() -> None:
    op.create_table(
        "history",
        sa.Column("row", _BIG, primary_key=True),
        sa.Column("stream_id", _BIG, nullable=False),
        sa.Column("sequence", _BIG, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("received", _BIG, nullable=False),
    )


def _partition_history() -> None:
    """By kind, which are kept for different times, then by when it was received: what is old is dropped whole."""
    op.execute(
        """
        CREATE TABLE history (
            "row" bigint NOT NULL,
            stream_id bigint NOT NULL,
            sequence bigint NOT NULL,
            node text COLLATE "C" NOT NULL,
            kind text COLLATE "C" NOT NULL,
            name text COLLATE "C" NOT NULL,
            data text NOT NULL,
            time bigint NOT NULL,
            received bigint NOT NULL
        ) PARTITION BY LIST (kind);
        CREATE TABLE history_state PARTITION OF history FOR VALUES IN ('state') PARTITION BY RANGE (received);
        CREATE TABLE history_state_rest PARTITION OF history_state DEFAULT;
        CREATE TABLE history_dynamic PARTITION OF history FOR VALUES IN ('dynamic') PARTITION BY RANGE (received);
        CREATE TABLE history_dynamic_rest PARTITION OF history_dynamic DEFAULT;
        """
    )


def _index_history() -> None:
    """Each in the order of rows; SQLite has that by itself."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    row = [] if is_sqlite else ["row"]
    if row:
        op.create_index("history_of_row", "history", row)
    op.create_index("history_of_kind", "history", ["kind", *row])
    op.create_index("history_of_name", "history", ["name", *row])
    op.create_index("history_of_node", "history", ["node", *row])
    op.create_index("history_of_both", "history", ["node", "name", *row])
    if is_sqlite:
        _tell_planner()


def _tell_planner() -> None:
    """How many rows of a history share a kind, a name or a node: roughly, and once, so that plans never change."""
    op.execute("ANALYZE sqlite_schema")
    for index, shared in {
        "history_of_kind": "5000000",
        "history_of_name": "500000",
        "history_of_node": "1000",
        "history_of_both": "1000 50",
    }.items():
        op.execute(f"INSERT INTO sqlite_stat1 VALUES ('history', '{index}', '10000000 {shared}')")


def _make_changes() -> None:
    op.create_table(
        "changes",
        sa.Column("row", _BIG, primary_key=True),
        sa.Column("node", _KEY, nullable=False),
        sa.Column("name", _KEY, nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("received", _BIG, nullable=False),
    )
    op.create_index("changes_received", "changes", ["received"])
    op.create_index("changes_of_node", "changes", ["node", "received"])
    op.create_index("changes_of_name", "changes", ["name", "received"])
    op.create_index("changes_of_both", "changes", ["node", "name", "received"])
