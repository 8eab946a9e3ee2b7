"""What the store holds. Times are UTC microseconds, data is JSON, its keys sorted. migrations/ makes these tables."""

from __future__ import annotations

import sqlalchemy as sa

# SQLite counts by itself only in a column that is called INTEGER.
_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Compared byte by byte in both, whatever the language of a server.
_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# On which the listeners of one PostgreSQL tell each other that there is something new.
CHANNEL = "cf_messaged"

metadata = sa.MetaData()

# One row: the id that tells nodes this store from another.
identity = sa.Table("identity", metadata, sa.Column("store", sa.Text, primary_key=True))

# Every node that was heard; events: how many of it were stored, since nobody can count ten million each time.
nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("node", _KEY, primary_key=True),
    sa.Column("first_seen", _BIG, nullable=False),
    sa.Column("last_seen", _BIG, nullable=False),
    sa.Column("events", _BIG, nullable=False),
)

# Of each memory of a node, the highest sequence that is stored. heard: when something of it was last received; 0 once
# the node was forgotten.
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("id", _BIG, primary_key=True),
    sa.Column("node", _KEY, nullable=False),
    sa.Column("stream", _KEY, nullable=False),
    sa.Column("have", _BIG, nullable=False),
    sa.Column("heard", _BIG, nullable=False),
    sa.UniqueConstraint("stream", "node"),
)

# What took effect, so that it does so once; apart from the history, which is kept for another time.
seen = sa.Table(
    "seen",
    metadata,
    sa.Column("stream_id", _BIG, sa.ForeignKey("streams.id"), primary_key=True),
    sa.Column("sequence", _BIG, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("received", _BIG, nullable=False),
    sqlite_with_rowid=False,
)

# Of kind common there is one node a name. The key begins with kind and name to find it. batch: which transaction of
# PostgreSQL wrote it; SQLite has one writer, who knows what it wrote.
latest = sa.Table(
    "latest",
    metadata,
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
    sa.Index("latest_of_node", "node"),
)

# row: when it was received, made to grow with each row: so it is written at the end, and is the order in which the view
# answers. One index for each question that the view asks by; SQLite's end with the row.
history = sa.Table(
    "history",
    metadata,
    sa.Column("row", _BIG, primary_key=True),
    sa.Column("stream_id", _BIG, nullable=False),
    sa.Column("sequence", _BIG, nullable=False),
    sa.Column("node", _KEY, nullable=False),
    sa.Column("kind", _KEY, nullable=False),
    sa.Column("name", _KEY, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("time", _BIG, nullable=False),
    sa.Column("received", _BIG, nullable=False),
    sa.Index("history_of_kind", "kind"),
    sa.Index("history_of_name", "name"),
    sa.Index("history_of_node", "node"),
    sa.Index("history_of_both", "node", "name"),
)

# Static information that changed: so seldom that each question has an index in the order of its answer.
changes = sa.Table(
    "changes",
    metadata,
    sa.Column("row", _BIG, primary_key=True),
    sa.Column("node", _KEY, nullable=False),
    sa.Column("name", _KEY, nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("time", _BIG, nullable=False),
    sa.Column("received", _BIG, nullable=False),
    sa.Index("changes_received", "received"),
    sa.Index("changes_of_node", "node", "received"),
    sa.Index("changes_of_name", "name", "received"),
    sa.Index("changes_of_both", "node", "name", "received"),
)

# What happened to keys of nodes. The last index is for a listener that starts, and has to know of each key whether it
# was let in: a part of the rows, since there may be many more of who was not.
_LET = sa.text("what IN ('let in', 'enrolled', 'renewed', 'let out')")
key_changes = sa.Table(
    "key_changes",
    metadata,
    sa.Column("row", _BIG, primary_key=True),
    sa.Column("received", _BIG, nullable=False),
    sa.Column("what", _KEY, nullable=False),
    sa.Column("node", _KEY, nullable=False),
    sa.Column("key", _KEY, nullable=False),
    sa.Column("host_key", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("key_changes_received", "received"),
    sa.Index("key_changes_of_node", "node", "received"),
    sa.Index("key_changes_let", "key", "row", sqlite_where=_LET, postgresql_where=_LET),
)
