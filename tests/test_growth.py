"""What bench/growth measures with: a store that is as a listener makes it, and a judgement that can fail."""

from __future__ import annotations

import sys
from pathlib import Path

from cf_messaged.store import Store
from listener import ROOT
from test_information import sql

sys.path.append(str(ROOT / "bench"))
import big_store

EVENTS, UNTIL_US = 8_123, 1_800_000_000_000_000  # no whole rounds, and static values that have changed
TABLES = "nodes", "streams", "seen", "latest", "history", "changes"


def test_a_store_is_filled_as_a_listener_does(tmp_path: Path) -> None:
    """Row by row it is what Store.add makes of the same events."""
    big_store.fill(tmp_path / "filled.db", EVENTS, UNTIL_US)
    store = Store(f"sqlite:///{tmp_path}/added.db")
    said = list(big_store.all_said(0, EVENTS, EVENTS, UNTIL_US))
    for first in range(0, EVENTS, 1000):
        store.add([(big_store.event_of(each), each.at) for each in said[first : first + 1000]])
    store.close()
    for table in TABLES:
        select = f"SELECT * FROM {table} ORDER BY 1, 2, 3"
        filled = sql(tmp_path / "filled.db", select)
        assert filled and filled == sql(tmp_path / "added.db", select)
