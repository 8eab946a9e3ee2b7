"""What happens to keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Compared byte by byte in both, whatever the language of a server.
_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_LET = sa.text("what IN ('let in', 'enrolled', 'renewed', 'let out')")


def upgrade() -> None:
    op.create_table(
        "key_changes",
        sa.Column("row", _BIG, primary_key=True),
        sa.Column("received", _BIG, nullable=False),
        sa.Column("what", _KEY, nullable=False),
        sa.Column("node", _KEY, nullable=False),
        sa.Column("key", _KEY, nullable=False),
        sa.Column("host_key", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("key_changes_received", "key_changes", ["received"])
    op.create_index("key_changes_of_node", "key_changes", ["node", "received"])
    op.create_index("key_changes_let", "key_changes", ["key", "row"], sqlite_where=_LET, postgresql_where=_LET)
