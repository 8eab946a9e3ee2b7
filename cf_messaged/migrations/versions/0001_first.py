"""The first tables."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    identity = op.create_table("identity", sa.Column("store", sa.Text, primary_key=True))
    op.bulk_insert(identity, [{"store": secrets.token_hex(16)}])
    _make_nodes()
    _make_latest()
    _make_history()
    _make_changes()


def _make_nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("first_seen", _BIG, nullable=False),
        sa.Column("last_seen", _BIG, nullable=False),
        sa.Column("events", _BIG, nullable=False),
    )
    op.create_table(
        "streams",
        sa.Column("id", _BIG, primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
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
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("received", _BIG, nullable=False),
        sa.Column("refresh", _BIG),
        sa.Column("policy", sa.Text),
        sa.Column("handle", sa.Text),
        sa.Column("stream_id", _BIG, nullable=False),
        sa.Column("sequence", _BIG, nullable=False),
    )
    op.create_index("latest_of_node", "latest", ["node"])


def _make_history() -> None:
    op.create_table(
        "history",
        sa.Column("row", _BIG, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("received", _BIG, nullable=False),
    )
    op.create_index("history_received", "history", ["received"])
    op.create_index("history_of_kind", "history", ["kind", "received"])
    op.create_index("history_of_name", "history", ["name", "received"])
    op.create_index("history_of_node", "history", ["node", "name", "received"])


def _make_changes() -> None:
    op.create_table(
        "changes",
        sa.Column("row", _BIG, primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("received", _BIG, nullable=False),
    )
    op.create_index("changes_received", "changes", ["received"])
    op.create_index("changes_of_node", "changes", ["node", "name", "received"])
