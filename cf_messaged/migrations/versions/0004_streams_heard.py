"""When a stream was last heard: one of which nothing is kept any more goes."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Those that are there were heard now, at the latest."""
    now_us = time.time_ns() // 1000
    op.add_column("streams", sa.Column("heard", _BIG, nullable=False, server_default=str(now_us)))
