"""Views: what the built-in ones show, what parameters may be, and where they are cut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_messaged import views
from cf_messaged.database import Limits, StoreUnavailable, database
from cf_messaged.parameters import TYPES
from cf_messaged.postgresql import with_places
from cf_messaging.wire import KINDS
from listener import OTHER_STREAM, TIME, event
from postgres import Kept

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
DAY = 86400 * SECOND
DEFAULT = Limits()
TOLD = "2026-11-24T12:00:00.000000Z"


@pytest.fixture
def store(fresh: Callable[..., str]) -> Iterator[Kept]:
    """Of either kind. Two nodes: web1 was heard 10 s ago, web2 two days ago."""
    store = Kept(fresh())
    fill(store)
    yield store
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Kept]:
    """The same in a file of SQLite."""
    store = Kept(f"sqlite:///{tmp_path}/store.db")
    fill(store)
    yield store
    store.close()


@pytest.fixture
def served(postgresql: Callable[..., str]) -> Iterator[Kept]:
    """The same in PostgreSQL."""
    store = Kept(postgresql())
    fill(store)
    yield store
    store.close()


def fill(store: Kept) -> None:
    store.alive_within_s = 1
    old = [event(1, node="web2", data={"a": [1, None, True]}), event(2, "static", "os", "sles", "web2", refresh=60)]
    store.add([(said, NOW - 2 * DAY) for said in old])
    said = [
        event(1, "static", "os", "debian 12"),
        event(2, "static", "os", "debian 13"),
        event(3, "dynamic", "ip", ["10.0.0.1"], refresh=60),
        event(4, "state", "load", 0.5),
        event(1, "common", "ntp", {"servers": ["a"]}, stream=OTHER_STREAM),
    ]
    store.add([(one, NOW - 10 * SECOND) for one in said])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "views"
    folder.mkdir()
    return folder


def ask(store: Kept, name: str, own: Path | None = None, limits: Limits = DEFAULT, /, **asked: Any) -> list[views.Row]:
    view = views.load(name, str(own) if own else None)
    return views.rows(store.url, view, views.values(view, asked, {}, NOW), limits)


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def test_nodes(store: Kept) -> None:
    """Every node, with its age; alive is a question of alive_within."""
    web1, web2 = ask(store, "nodes")
    assert list(web1) == ["node", "first_seen", "last_seen", "age_s", "alive", "events"]
    assert (web1["node"], web1["age_s"], web1["alive"], web1["events"]) == ("web1", 10, True, 5)
    assert (web2["node"], web2["age_s"], web2["alive"], web2["events"]) == ("web2", 172800, False, 2)
    assert web1["last_seen"] == "2027-01-15T07:59:50.000000Z"
    assert column(ask(store, "nodes", alive_within=5), "alive") == [False, False]
    assert column(ask(store, "nodes", alive_within="200000"), "alive") == [True, True]


def test_latest(store: Kept) -> None:
    """One row a value, data as JSON, overdue only where a refresh was promised and is over."""
    rows = ask(store, "latest")
    assert list(rows[0]) == "node kind name data time received age_s overdue alive".split()
    told = [(row["node"], row["kind"], row["data"], row["overdue"], row["alive"]) for row in rows]
    assert told == [
        ("web1", "common", {"servers": ["a"]}, False, True),
        ("web1", "dynamic", ["10.0.0.1"], False, True),
        ("web1", "state", 0.5, False, True),
        ("web1", "static", "debian 13", False, True),
        ("web2", "state", {"a": [1, None, True]}, False, False),
        ("web2", "static", "sles", True, False),
    ]
    assert set(column(rows, "time")) == {TOLD}


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"node": "web2"}, 2),
        ({"kind": "static"}, 2),
        ({"name": "os", "kind": "static", "node": "web1"}, 1),
        ({"alive": True}, 4),
        ({"alive": "no"}, 2),
        ({"alive": False, "alive_within": 200000}, 0),
        ({"node": None}, 6),
        ({"node": "' OR 1=1 --"}, 0),
    ],
)
def test_latest_of_some(store: Kept, asked: dict[str, Any], count: int) -> None:
    """Each parameter narrows the view; null is as not given; SQL in a value is text."""
    assert len(ask(store, "latest", **asked)) == count


def test_history(store: Kept) -> None:
    """Dynamic and state, the newest first."""
    rows = ask(store, "history")
    assert list(rows[0]) == "id node kind name data time received".split()
    assert [(row["node"], row["name"]) for row in rows] == [("web1", "load"), ("web1", "ip"), ("web2", "load")]
    assert column(ask(store, "history", limit=1), "id") == [event(4).id]
    assert len(ask(store, "history", since="2027-01-15T00:00:00Z")) == 2
    assert len(ask(store, "history", node="web2", kind="state", name="load")) == 1


def test_history_has_a_limit(store: Kept) -> None:
    """1000 rows, unless asked otherwise."""
    store.add([(event(number), NOW) for number in range(10, 1020)])
    assert len(ask(store, "history")) == 1000
    assert len(ask(store, "history", limit=2000)) == 1013


def test_changes(store: Kept) -> None:
    """Static information that changed, with both values."""
    expected = {"node": "web1", "name": "os", "before": "debian 12", "after": "debian 13", "time": TOLD}
    assert ask(store, "changes") == [expected]
    assert ask(store, "changes", since="2027-01-16T00:00:00Z") == []


def test_common(store: Kept) -> None:
    """One row a name, with who says it."""
    expected = {"name": "ntp", "data": {"servers": ["a"]}, "node": "web1", "time": TOLD, "age_s": 10}
    assert ask(store, "common") == [expected]
    assert ask(store, "common", name="dns") == []


def test_silent(store: Kept) -> None:
    """Nodes that were not heard for some time."""
    assert column(ask(store, "silent"), "node") == ["web2"]
    assert [list(row) for row in ask(store, "silent", after=5)] == [["node", "last_seen", "age_s"]] * 2


def test_settings_replace_defaults() -> None:
    """What the listener calls alive is what its views call alive, unless asked otherwise."""
    view = views.load("nodes", None)
    assert views.values(view, {}, {"alive_within": 7}, NOW) == {"alive_within": 7, "now": NOW}
    assert views.values(view, {"alive_within": 8}, {"alive_within": 7}, NOW)["alive_within"] == 8


@pytest.mark.parametrize(
    ("view", "asked", "reason"),
    [
        ("nodes", {"alive_withn": 1}, "no parameter 'alive_withn' (did you mean 'alive_within'?); there are alive_w"),
        ("nodes", {"now": 1}, "no parameter 'now'"),
        ("nodes", {"alive_within": None}, "parameter 'alive_within' of view 'nodes' is null: allowed is a number"),
        ("nodes", {"alive_within": "1e5"}, "allowed is a number"),
        ("nodes", {"alive_within": True}, "allowed is a number"),
        ("nodes", {"alive_within": 10**400}, "allowed is a number"),
        ("latest", {"node": 1}, "parameter 'node' of view 'latest' is 1: allowed is a text"),
        ("latest", {"node": ["a"]}, "allowed is a text"),
        ("latest", {"node": "\udcff"}, "allowed is a text"),
        ("latest", {"node": "web1\0"}, "allowed is a text without NUL"),
        ("latest", {"alive": 1}, "allowed is true or false"),
        ("history", {"limit": 2**63}, "allowed is an integer"),
        ("history", {"limit": 1.0}, "allowed is an integer"),
        ("history", {"since": "yesterday"}, "allowed is an RFC 3339 time in UTC, as 2026-11-24T12:40:00Z"),
        ("history", {"x" * 10_000: 1}, "no parameter 'xxxxx"),
    ],
)
def test_parameters_are_checked(store: Kept, view: str, asked: dict[str, Any], reason: str) -> None:
    """A wrong parameter is refused with its name, and what is allowed."""
    with pytest.raises(views.Refused) as refused:
        ask(store, view, **asked)
    assert reason in str(refused.value) and len(str(refused.value)) < 400


@given(
    st.sampled_from(sorted(TYPES)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2),
        max_leaves=3,
    ),
)
def test_any_parameter_is_understood(type: str, value: Any) -> None:
    """Any JSON value is read as the type, or refused."""
    view = views.parse("v", f"-- :x {type} = NULL\nSELECT :x")
    with suppress(views.Refused):
        views.values(view, {"x": value}, {}, NOW)


@pytest.mark.parametrize("name", ["lates", "../sql/nodes", "nodes.sql", "/etc/passwd", "", "x" * 10_000, "\0", "'; --"])
def test_an_unknown_view_is_refused(name: str) -> None:
    """With the names that there are; a name never becomes a path."""
    with pytest.raises(views.Refused, match="there are changes, common, history, key_changes, latest, nodes, silent"):
        views.load(name, None)


def test_an_operators_view(store: Kept, own: Path) -> None:
    """A file in the directory is a view as the built-in ones are, and is read anew for each question."""
    (own / "wide.sql").write_text(
        "-- Of some.\n-- :least int = 2\nSELECT :now AS n, node FROM nodes WHERE events > :least"
    )
    assert list(views.names(str(own)))[-1] == "wide"
    assert views.load("wide", str(own)).about == "Of some."
    assert ask(store, "wide", own) == [{"n": NOW, "node": "web1"}]
    (own / "wide.sql").write_text("SELECT 'it''s :here' AS text, 12 AS n, NULL AS none")
    assert ask(store, "wide", own) == [{"text": "it's :here", "n": 12, "none": None}]


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("SELECT count(*) AS n FROM nodes WHERE (:x IS NULL OR node = :x)", {"n": 2}),
        ("SELECT coalesce(:x, 'none') || '-' AS a", {"a": "none-"}),
        ("SELECT 7 % 4 AS a, '%s %% %(now)s' AS b", {"a": 3, "b": "%s %% %(now)s"}),
        ("SELECT node AS a FROM nodes WHERE node LIKE '%1'", {"a": "web1"}),
        ("SELECT ':now' AS \":now\" -- :now", {":now": ":now"}),
        ("SELECT /* it's :now */ 1 AS a", {"a": 1}),
        ("SELECT sum(events) AS a, avg(events) AS b FROM nodes", {"a": 7, "b": 3.5}),
        ("SELECT 'ä💥\\' AS a", {"a": "ä💥\\"}),
    ],
)
def test_what_a_view_may_have(store: Kept, own: Path, sql: str, row: dict[str, Any]) -> None:
    """NULL for a parameter, and what looks like a parameter but is none, in either database."""
    (own / "mine.sql").write_text(f"-- :x text = NULL\n{sql}")
    assert ask(store, "mine", own) == [row]


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("SELECT :x::text AS a, '7'::int8 AS b", {"a": None, "b": 7}),
        ("SELECT $$it's :now$$ AS a, $a$:now$a$ AS b, E'\\':now' AS c", {"a": "it's :now", "b": ":now", "c": "':now"}),
        ("SELECT (ARRAY[5, 6, 7])[1:2] = ARRAY[5, 6] AS a", {"a": True}),
        (
            "-- column a json\nSELECT data::jsonb -> 'a' AS a FROM latest WHERE node = 'web2' LIMIT 1",
            {"a": [1, None, True]},
        ),
        ("SELECT '{\"a\": [1]}'::jsonb AS a", {"a": '{"a": [1]}'}),
        ("SELECT to_timestamp(0) AS a, '2026-11-24'::date AS b", {"a": "1970-01-01 00:00:00+00", "b": "2026-11-24"}),
        ("SELECT 12345678901234567890::numeric AS a, 0.5::numeric AS b", {"a": 12345678901234567890, "b": 0.5}),
    ],
)
def test_what_a_view_of_postgresql_may_have(served: Kept, own: Path, sql: str, row: dict[str, Any]) -> None:
    """Its types are shown in UTC and as text where JSON has none for them; its quotes are left alone."""
    (own / "mine.sql").write_text(f"-- :x text = NULL\n{sql}")
    assert ask(served, "mine", own) == [row]


def test_nothing_built_in_is_overridden(own: Path) -> None:
    """An operator's file of that name is an error that names the file."""
    (own / "nodes.sql").write_text("SELECT 1")
    with pytest.raises(views.BadView, match=r"views/nodes.sql: a view 'nodes' is built in"):
        views.names(str(own))
    with pytest.raises(views.BadView, match="No such file"):
        views.names(str(own / "none"))


def test_what_the_listener_answers_itself_is_no_view(tmp_path: Path) -> None:
    """A file of that name would never be asked."""
    (tmp_path / "self.sql").write_text("SELECT 1 AS one")
    with pytest.raises(views.BadView, match=r"self.sql: what a node asks for as 'self' is no view"):
        views.names(str(tmp_path))


def test_a_file_that_cannot_be_read(own: Path) -> None:
    """The error names it once."""
    (own / "bad.sql").mkdir()
    with pytest.raises(views.BadView, match=r"^[^']*views/bad.sql: Is a directory$"):
        views.load("bad", str(own))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-- :x int\nSELECT :x", "is no '-- :NAME TYPE = DEFAULT'"),
        ("-- :x number = 1\nSELECT :x", "with a TYPE of text, int, real, boolean, time"),
        ("-- :x int = one\nSELECT :x", "default of .* an integer"),
        ("-- :x int = 1.5\nSELECT :x", "default of .* an integer"),
        ("-- column x bool\nSELECT 1 AS x", "with a TYPE of time, json, boolean, age"),
        ("SELECT :x", "'-- :x TYPE = DEFAULT' is missing"),
    ],
)
def test_a_file_that_is_no_view(own: Path, text: str, reason: str) -> None:
    """The error names the file, and what is wrong."""
    (own / "bad.sql").write_text(text)
    with pytest.raises(views.BadView, match=f"bad.sql: .*{reason}"):
        views.load("bad", str(own))


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT missing FROM nodes", "no such column|does not exist"),
        ("SELECT 1 FROM nods", "no such table|does not exist"),
        ("SELEC 1", "syntax error"),
        ("SELECT 1; SELECT 2", "one statement at a time|multiple commands"),
        ("SELECT 1; DELETE FROM nodes", "one statement at a time|multiple commands"),
        ("DELETE FROM nodes", "readonly database|syntax error"),
        ("SELECT 1 AS a, 2 AS a", "two columns of one name"),
        ("-- column a json\nSELECT '{' AS a", "column 'a' holds no json"),
        ("-- column a time\nSELECT 4611686018427387904 AS a", "column 'a' holds no time"),
        ("-- column a age\nSELECT '1' AS a", "column 'a' holds no age"),
        ("", "selects nothing|syntax error"),
    ],
)
def test_a_view_that_fails(store: Kept, own: Path, sql: str, reason: str) -> None:
    """It is refused with what the database says, in one line, and changes nothing."""
    check_refused(store, own, sql, reason)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("PRAGMA query_only = OFF", "selects nothing|readonly"),
        ("SELECT x'00' AS a", "JSON has no text for"),
        ("SELECT 1e999 AS a", "JSON has no text for"),
        ("SELECT zeroblob(100000000) AS a", "more than 16777216 bytes"),
    ],
)
def test_a_view_that_fails_in_sqlite(file: Kept, own: Path, sql: str, reason: str) -> None:
    """The same, of what only SQLite has."""
    check_refused(file, own, sql, reason)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT '\\x00'::bytea AS a", "JSON has no text for"),
        ("SELECT ARRAY[1] AS a", "JSON has no text for"),
        ("SELECT 'NaN'::numeric AS a", "JSON has no text for"),
        ("SELECT 'Infinity'::numeric AS a", "JSON has no text for"),
        ("SELECT 1e999 AS a", "JSON has no text for"),
        ("SELECT 1 / 0 AS a", "division by zero"),
        ("SELECT repeat('x', 100000000) AS a", "more than 16711680 bytes"),
        ("WITH gone AS (DELETE FROM nodes RETURNING node) SELECT node FROM gone", "data-modifying"),
        ("SELECT nextval('streams_id_seq') AS a", "read-only"),
        ("SELECT node FROM nodes FOR UPDATE", "read-only"),
        ("SELECT set_config('transaction_read_only', 'off', false) AS a", "read-write mode must be set before"),
        ("SELECT 1; COMMIT; SET default_transaction_read_only = off; DELETE FROM nodes", "multiple commands"),
    ],
)
def test_a_view_that_fails_in_postgresql(served: Kept, own: Path, sql: str, reason: str) -> None:
    """The same, of what only PostgreSQL has."""
    check_refused(served, own, sql, reason)


def check_refused(store: Kept, own: Path, sql: str, reason: str) -> None:
    (own / "bad.sql").write_text(sql)
    with pytest.raises(views.Refused, match=reason) as refused:
        ask(store, "bad", own)
    assert "\n" not in str(refused.value)
    assert len(ask(store, "nodes")) == 2


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "


def test_a_view_is_cut_by_time(store: Kept, own: Path) -> None:
    """A view that would run for ever is cut, and the reason says so."""
    (own / "slow.sql").write_text(ENDLESS + "SELECT max(i) AS i FROM n")
    with pytest.raises(views.Refused, match=r"took longer than 0.1 s"):
        ask(store, "slow", own, Limits(seconds=0.1))


def test_a_view_is_cut_by_rows_and_bytes(store: Kept, own: Path) -> None:
    """Limits are refused, never a part of the rows; exactly as many as allowed are answered."""
    (own / "long.sql").write_text("-- :n int = 10\n" + ENDLESS + "SELECT i, 'abcdefghij' AS text FROM n LIMIT :n")
    assert len(ask(store, "long", own, Limits(rows=10))) == 10
    with pytest.raises(views.Refused, match="more than 10 rows"):
        ask(store, "long", own, Limits(rows=10), n=11)
    with pytest.raises(views.Refused, match="more than 100 bytes"):
        ask(store, "long", own, Limits(bytes=100))


def test_the_connection_cannot_write(file: Kept) -> None:
    """Neither by its mode nor by a pragma."""
    with database(file.url).reading(Limits()) as connection:
        assert connection.execute("PRAGMA query_only").fetchone() == (1,)
        connection.execute("PRAGMA query_only = OFF")
        with pytest.raises(Exception, match="readonly"):
            connection.execute("DELETE FROM nodes")


def test_no_database(tmp_path: Path) -> None:
    """It is said, and none is made."""
    with pytest.raises(StoreUnavailable, match="does not exist"):
        views.rows(f"sqlite:///{tmp_path}/none.db", views.load("nodes", None), {"alive_within": 1, "now": 1}, Limits())
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_looked_for_in_every_kind() -> None:
    """`latest` lists the kinds, for the sake of its index: all that the wire has."""
    [kinds] = re.findall(r"kind IN \((.*)\) -- if :name", views.load("latest", None).sql)
    assert set(re.findall(r"\w+", kinds)) == set(KINDS)


# How each is answered in SQLite.
PLANS: list[tuple[str, dict[str, Any], str]] = [
    ("history", {}, "SCAN history"),
    ("history", {"since": TIME}, "INTEGER PRIMARY KEY"),
    ("history", {"kind": "dynamic"}, "history_of_kind"),
    ("history", {"name": "load"}, "history_of_name"),
    ("history", {"node": "web1"}, "history_of_node"),
    ("history", {"node": "web1", "name": "load", "since": TIME}, "history_of_both"),
    ("latest", {"node": "web1"}, "latest_of_node"),
    ("latest", {"node": "web1", "kind": "static"}, "latest_of_node"),
    ("latest", {"node": "web1", "name": "os"}, "sqlite_autoindex_latest_1 (kind=? AND name=? AND node=?)"),
    ("latest", {"node": "web1", "kind": "static", "name": "os"}, "(kind=? AND name=? AND node=?)"),
    ("latest", {"kind": "static"}, "sqlite_autoindex_latest_1 (kind=?)"),
    ("latest", {"kind": "static", "name": "os"}, "sqlite_autoindex_latest_1 (kind=? AND name=?)"),
    ("latest", {"name": "os"}, "sqlite_autoindex_latest_1 (kind=? AND name=?)"),
    ("latest", {"kind": "static", "alive": True}, "sqlite_autoindex_latest_1 (kind=?)"),
    ("common", {}, "sqlite_autoindex_latest_1"),
    ("common", {"name": "ntp"}, "sqlite_autoindex_latest_1 (kind=? AND name=?)"),
    ("changes", {}, "changes_received"),
    ("changes", {"node": "web1"}, "changes_of_node"),
    ("changes", {"name": "os"}, "changes_of_name"),
    ("changes", {"node": "web1", "name": "os"}, "changes_of_both"),
    ("key_changes", {}, "key_changes_received"),
    ("key_changes", {"since": TIME}, "key_changes_received"),
    ("key_changes", {"node": "web1", "since": TIME}, "key_changes_of_node"),
]


@pytest.mark.parametrize(("view", "asked", "plan"), PLANS)
def test_views_use_indexes(file: Kept, own: Path, view: str, asked: dict[str, Any], plan: str) -> None:
    """Of millions of rows only those are read that are shown; a history is not sorted either."""
    found = views.load(view, None)
    given = views.values(found, asked, {}, NOW)
    with database(file.url).reading(Limits()) as connection:
        steps = connection.execute("EXPLAIN QUERY PLAN " + views.counting(found, given), given).fetchall()
    assert plan in json.dumps(steps)
    assert view != "history" or "TEMP B-TREE" not in json.dumps(steps)


@pytest.mark.parametrize(("view", "asked"), [plan[:2] for plan in PLANS])
def test_views_of_postgresql_can_use_indexes(served: Kept, view: str, asked: dict[str, Any]) -> None:
    """There is one for each of them; whether it is worth it with so few rows is the planner's to say."""
    found = views.load(view, None)
    given = views.values(found, asked, {}, NOW)
    sql = with_places("EXPLAIN " + views.counting(found, given), given, {})
    with database(served.url).reading(Limits()) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
        steps = str(connection.execute(sql, given).fetchall())
    assert "Index" in steps and "Seq Scan" not in steps
    assert view != "history" or "Sort" not in steps.replace("Sort Key", "")
