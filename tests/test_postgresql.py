"""What is special to a store in PostgreSQL: several listeners, in each other's way; a server that is gone."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import fuzz
from cf_messaged import news, postgresql
from cf_messaged.database import StoreUnavailable, database
from cf_messaged.intake import Verdict
from cf_messaged.store import TRIES, Store
from cf_messaging.wire import DUPLICATE, KINDS, REFUSED, STORED, Event, parse_id
from listener import HISTORY, OTHER_STREAM, cf_messaged, event
from peers import scaled
from postgres import Kept, Server, rows
from test_service import Start, start  # noqa: F401 - a fixture

Make = Callable[..., str]

LONGEST_S = 60
EXAMPLES = int(os.environ.get("MESSAGES_EXAMPLES", "50"))


@pytest.fixture
def url(postgresql: Make) -> str:
    """Of a store that is made."""
    return postgresql()


@pytest.fixture
def stores(url: str) -> Iterator[Callable[[], Kept]]:
    """Opens the store, each time as another listener does."""
    opened: list[Kept] = []

    def open() -> Kept:
        opened.append(Kept(url))
        return opened[-1]

    yield open
    for store in opened:
        store.close()


def add(store: Store, *events: Event, at: int = 1) -> list[str]:
    """The statuses."""
    return [verdict.status for verdict in store.add([(event, at) for event in events])]


def wait_for(condition: Callable[[], Any]) -> Any:
    """What it returns, once that is true."""
    until = monotonic() + scaled(LONGEST_S)
    while not (found := condition()):
        assert monotonic() < until
        sleep(0.01)
    return found


def waits_for_a_lock(url: str) -> Callable[[], bool]:
    """Whether a listener does."""
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'cf-messaged' AND wait_event_type = 'Lock'"
    return lambda: bool(rows(url, f"{query} AND datname = current_database()"))


# ---- what a server must be


@pytest.fixture
def careless(postgres: Server) -> Iterator[str]:
    """The URL of an empty database, of a role for which everything is set as it should not be."""
    postgres.run("CREATE ROLE careless LOGIN")
    wrong = {"synchronous_commit": "off", "TimeZone": "'Asia/Kathmandu'", "statement_timeout": "1"}
    wrong |= {"default_transaction_isolation": "serializable", "lock_timeout": "1", "client_encoding": "latin1"}
    for name, value in wrong.items():
        postgres.run(f"ALTER ROLE careless SET {name} = {value}")
    url = postgres.new("OWNER careless")
    yield sa.make_url(url).set(username="careless").render_as_string()
    postgres.drop(url)
    postgres.run("DROP ROLE careless")


def test_what_is_set_for_a_role_does_not_count(careless: str) -> None:
    """The session is durable, in UTC and in UTF-8, and each statement sees what was committed before it."""
    store = Store(careless)
    assert add(store, event(1, data="💥")) == [STORED]
    with store._transaction() as connection:
        shown = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in postgresql._TO_WRITE}
    assert (shown["synchronous_commit"], shown["default_transaction_isolation"]) == ("on", "read committed")
    assert (shown["TimeZone"], shown["statement_timeout"], shown["lock_timeout"]) == ("UTC", "10s", "2s")
    store.close()


def test_what_is_set_is_read_back(careless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a setting does not reach the server, as through some poolers, nothing is stored."""
    monkeypatch.delitem(postgresql._TO_WRITE, "synchronous_commit")
    monkeypatch.setitem(postgresql._TO_WRITE, "statement_timeout", 10_000)
    with pytest.raises(StoreUnavailable, match="its synchronous_commit is off: nothing is stored there"):
        Store(careless)


def test_a_server_that_does_not_sync_is_refused(postgres: Server) -> None:
    """With fsync off, what was acknowledged could be gone after a loss of power."""
    nothing = pytest.raises(StoreUnavailable, match=r"its fsync is off: nothing is stored there")
    with closing(Server("fsync = off")) as careless, nothing:
        Store(careless.new())


def test_a_database_of_another_encoding_is_refused(postgres: Server) -> None:
    """It could not hold what nodes say."""
    url = postgres.new("ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreUnavailable, match="its server_encoding is LATIN1"):
        Store(url)
    postgres.drop(url)


def test_an_older_server_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says which there is and which is needed."""
    monkeypatch.setattr(postgresql, "OLDEST", 10**7)
    with pytest.raises(StoreUnavailable, match=r"PostgreSQL [0-9]+ is too old: 1000 is needed"):
        Store(url)


def test_settings_of_the_url_are_kept(url: str) -> None:
    """As far as they are not those of a session that is durable."""
    given = "-c search_path=public -c work_mem=7MB -c synchronous_commit=off"
    store = Store(sa.make_url(url).update_query_dict({"options": given, "application_name": "mine"}).render_as_string())
    with store._transaction() as connection:
        shown = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in ("work_mem", "synchronous_commit")]
        assert [*shown, connection.exec_driver_sql("SHOW application_name").scalar()] == ["7MB", "on", "mine"]
    store.close()


def test_the_listeners_of_an_empty_database_make_one_store(postgresql: Make) -> None:
    """However many start at once: one makes the tables, the others find them."""
    url = postgresql(empty=True)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store, [url] * 4))
    assert len({store.id for store in stores}) == 1
    for number, store in enumerate(stores, 1):
        assert add(store, event(number)) == [STORED]
        store.close()


# ---- passwords


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@/d?host=/none",
        "postgresql://me@/d?host=/none&password=s3cret",
        "postgresql://me@/d?host=/none&sslpassword=s3cret",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    """Wherever it stands in the URL."""
    assert "s3cret" not in database(url).name and "***" in database(url).name
    with pytest.raises(StoreUnavailable) as lost:
        Store(url)
    assert "s3cret" not in str(lost.value) and "No such file or directory" in str(lost.value)


@pytest.fixture
def guarded(postgres: Server) -> Iterator[str]:
    """The URL of a store without the password of its role, which is `s3cret`."""
    postgres.run("CREATE ROLE guarded LOGIN PASSWORD 's3cret'")
    url = postgres.new("OWNER guarded")
    yield sa.make_url(url).set(username="guarded").render_as_string()
    postgres.drop(url)
    postgres.run("DROP ROLE guarded")


def test_a_password_by_file(guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be in the settings; without it, or with a wrong one, the line does not say what was tried."""
    url = sa.make_url(guarded)
    with pytest.raises(StoreUnavailable, match="no password supplied"):
        Store(guarded)
    with pytest.raises(StoreUnavailable, match="password authentication failed") as refused:
        Store(url.set(password="wr0ng").render_as_string(hide_password=False))
    assert "wr0ng" not in str(refused.value)
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:guarded:s3cret\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    Store(guarded).close()
    assert cf_messaged("status", "--store", guarded).returncode == 0


# ---- two listeners


def test_what_one_stores_the_others_know(stores: Callable[[], Kept]) -> None:
    """Duplicates, have, the latest, the speaker: whoever is asked."""
    first, second = stores(), stores()
    assert add(first, event(1), event(2, "common", "ntp")) == [STORED, STORED]
    assert first.id == second.id
    [again, clone, other] = second.add(
        [
            (said, 2)
            for said in (event(1), event(2, data="other"), event(1, "common", "ntp", node="web2", stream=OTHER_STREAM))
        ]
    )
    assert (again.status, again.have) == (DUPLICATE, 2)
    assert (clone.status, other.status, other.reason) == (REFUSED, REFUSED, "promised by web1")
    assert [value.key for value in second.last(b"", None, 10)] == [("common", "ntp", "web1"), ("state", "load", "web1")]


def test_a_deadlock_is_tried_again(url: str, stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that the server ended, since another program locked its rows in another order, is stored all the same."""
    monkeypatch.setitem(postgresql._TO_WRITE, "lock_timeout", scaled(LONGEST_S) * 1000)
    store = stores()
    in_the_way = recorded(store, monkeypatch)
    add(store, event(1, node="a"), event(1, node="b"))
    rows(url, "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN new; END'")  # fmt: skip
    rows(url, "CREATE TRIGGER gate BEFORE UPDATE ON nodes FOR EACH ROW WHEN (new.node = 'b') EXECUTE FUNCTION gate()")
    with ThreadPoolExecutor(2) as pool, psycopg.connect(url) as gate, psycopg.connect(url) as other:
        gate.execute("SELECT pg_advisory_lock(1)")
        other.execute("SET deadlock_timeout = '1h'")  # so that it is the store's transaction that is ended
        other.execute("SELECT 1 FROM nodes WHERE node = 'b' FOR UPDATE")
        stored = pool.submit(add, store, event(2, node="a"), event(2, node="b"))
        wait_for(waits_for_a_lock(url))
        locked = pool.submit(other.execute, "SELECT 1 FROM nodes WHERE node = 'a' FOR UPDATE")
        wait_for(lambda: len(rows(url, "SELECT 1 FROM pg_locks WHERE NOT granted")) > 1)
        gate.execute("SELECT pg_advisory_unlock(1)")
        gate.commit()
        locked.result()
        other.commit()
        assert stored.result() == [STORED, STORED]
    assert [type(error) for error in in_the_way] == [psycopg.errors.DeadlockDetected]


def recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """After which errors its batches were tried again."""
    found: list[Exception | None] = []
    passes = store._database.passes

    def record(error: Exception) -> bool:
        if passes(error):
            found.append(postgresql._cause(error))
        return passes(error)

    monkeypatch.setattr(store._database, "passes", record)
    return found


def test_who_is_always_in_the_way(stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """After some tries it is said, and nothing is stored."""
    store = stores()
    monkeypatch.setattr("cf_messaged.store.PAUSE_S", 0)
    in_the_way = recorded(store, monkeypatch)
    with store._transaction() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE SQLSTATE '40001' USING MESSAGE = 'in the way'; END$$"
        )
        connection.exec_driver_sql("CREATE TRIGGER fail BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION fail()")
    with pytest.raises(StoreUnavailable, match="in the way"):
        add(store, event(1))
    assert len(in_the_way) == TRIES
    assert store.rows("SELECT * FROM nodes") == []


def test_what_is_locked_for_long(url: str, stores: Callable[[], Kept]) -> None:
    """Nothing is stored while another program holds a table, and afterwards all goes on."""
    store = stores()
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE latest")
        with pytest.raises(StoreUnavailable, match="another program holds it locked"):
            add(store, event(1))
    assert add(store, event(1)) == [STORED]


# A node that lost its memory begins another stream; a clone that was renamed goes on with one.
STREAMS = [("web1", "a" * 32), ("clone", "a" * 32), ("web2", "b" * 32)]
STREAMS += [(node, f"{stream:032x}") for stream, node in enumerate(("web3", "web4") * 6)]
OF_ONE_STREAM = ("web1", "clone", "web2")


class Crowd:
    """Events of all kinds, of a few nodes and names, which several listeners are told in different batches."""

    def __init__(self, size: int) -> None:
        self.events = {stream: [self._event(stream, number) for number in range(1, size + 1)] for stream in STREAMS}
        self.verdicts: list[tuple[Event, Verdict]] = []
        self._one_at_a_time = threading.Lock()

    @staticmethod
    def _event(stream: tuple[str, str], number: int) -> Event:
        """Batches with what is common wait for each other: so that is said first, and the rest meets elsewhere."""
        if number <= 8:
            return event(number, "common", f"common {number}", number, *stream)
        return event(number, random.choice(("static", "dynamic", "state")), random.choice("abc"), number, *stream)

    def tell(self, store: Store) -> None:
        """What some streams say next, again and again until all is said."""
        waiting = {stream: list(said) for stream, said in self.events.items()}
        while waiting := {stream: said for stream, said in waiting.items() if said}:
            batch = []
            for stream in random.sample(sorted(waiting), min(3, len(waiting))):
                batch += waiting[stream][:8]
                waiting[stream] = waiting[stream][8:]
            random.shuffle(batch)
            verdicts = store.add([(said, 1) for said in batch])
            with self._one_at_a_time:
                self.verdicts += zip(batch, verdicts, strict=True)


def slow_down(store: Kept) -> None:
    """So that transactions meet at each row."""
    with store._transaction() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(random() * 0.003); RETURN new; END'"
        )
        for table in ("streams", "nodes", "latest"):
            trigger = f"BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION rest()"
            connection.exec_driver_sql(f"CREATE TRIGGER rest {trigger}")


def test_two_listeners_store_each_event_once(stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """Told the same events at the same time: none is lost or there twice, and no batch waits for another for ever."""
    listeners = [stores(), stores(), stores()]
    in_the_way = [recorded(store, monkeypatch) for store in listeners]
    crowd = Crowd(EXAMPLES)
    slow_down(listeners[0])
    with ThreadPoolExecutor(len(listeners)) as pool:
        list(pool.map(crowd.tell, listeners))
    statuses: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for said, verdict in crowd.verdicts:
        statuses[said.id, said.node].append(verdict.status)
        fuzz.count("events told to three listeners", verdict.status)
    assert in_the_way == [[], [], []]
    check_crowd(crowd, dict(statuses), listeners[0])


def test_two_nodes_that_speak_for_all_at_once(stores: Callable[[], Kept]) -> None:
    """Each to another listener, at the same time: one of them has the name, the other is told whose it is."""
    listeners = [stores(), stores()]
    slow_down(listeners[0])
    with ThreadPoolExecutor(2) as pool:
        for number in range(1, 21):
            said = [event(number, "common", f"n{number}", node=node) for node in ("web1", "web2")]
            answers = list(pool.map(lambda store, one: store.add([(one, 1)])[0], listeners, said))
            assert sorted(answer.status for answer in answers) == [REFUSED, STORED]
            speaker = "web1" if answers[0].status == STORED else "web2"
            assert {answer.reason for answer in answers} == {None, f"promised by {speaker}"}


def test_new_nodes_that_come_to_two_listeners_at_once(
    stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order: each is known once, and no listener waits for the other for ever."""
    listeners = [stores(), stores()]
    slow_down(listeners[0])
    in_the_way = [recorded(store, monkeypatch) for store in listeners]
    with ThreadPoolExecutor(2) as pool:
        for number in range(0, 200, 20):
            some = range(max(0, number - 20), number + 20)
            new = [event(1, node=f"web{node}", stream=f"{node:032x}") for node in some]
            list(pool.map(lambda store, new=new: add(store, *random.sample(new, 15)), listeners))
    assert in_the_way == [[], []]
    assert listeners[0].rows("SELECT max(n) FROM (SELECT count(*) AS n FROM streams GROUP BY stream) AS c") == [(1,)]


def check_crowd(crowd: Crowd, statuses: dict[tuple[str, str], list[str]], store: Kept) -> None:
    refused = {key for key, found in statuses.items() if REFUSED in found}
    assert all(set(statuses[key]) == {REFUSED} for key in refused)
    assert all(Counter(found)[STORED] == 1 for key, found in statuses.items() if key not in refused)
    events = [said for said in itertools.chain(*crowd.events.values()) if (said.id, said.node) not in refused]
    stored = {(said.id, said.node): said for said in events}
    ids = "stream || '-' || lpad(sequence::text, 12, '0'), streams.node"
    seen = store.rows(f"SELECT {ids} FROM seen JOIN streams ON streams.id = stream_id")
    assert sorted(seen) == sorted(stored)
    history = store.rows(f"SELECT id, node FROM {HISTORY}")
    assert sorted(history) == sorted(key for key, said in stored.items() if KINDS[said.kind].history)
    check_streams(crowd, stored, store)
    check_speakers(stored, refused, store)


def check_streams(crowd: Crowd, stored: dict[tuple[str, str], Event], store: Kept) -> None:
    """`have` is never more than what is there, and the latest of one stream is what was said last."""
    have = Counter[tuple[str, str]]()
    latest: dict[tuple[str, str, str], int] = {}
    for said in stored.values():
        stream, number = parse_id(said.id)
        have[stream, said.node] = max(have[stream, said.node], number)
        if said.node in OF_ONE_STREAM:
            key = said.kind, said.name, said.node
            latest[key] = max(latest.get(key, 0), number)
    there = store.rows("SELECT stream, node, have FROM streams")
    assert {(stream, node): number for stream, node, number in there} == have
    assert all(verdict.have <= have[said.id[:32], said.node] for said, verdict in crowd.verdicts)
    found = store.rows("SELECT kind, name, node, sequence FROM latest")
    assert {(kind, name, node): number for kind, name, node, number in found if node in OF_ONE_STREAM} == latest
    counted = Counter(said.node for said in stored.values())
    assert dict(store.rows("SELECT node, events FROM nodes")) == counted


def check_speakers(stored: dict[tuple[str, str], Event], refused: set[tuple[str, str]], store: Kept) -> None:
    """Of each common name one node has spoken, and only others were refused."""
    speakers = {(said.name, said.node) for said in stored.values() if said.kind == "common"}
    assert sorted(speakers) == sorted(store.rows("SELECT name, node FROM latest WHERE kind = 'common'"))
    assert len({name for name, _ in speakers}) == len(speakers)
    assert refused


def test_forgetting_beside_a_listener(stores: Callable[[], Kept]) -> None:
    """A node that is forgotten again and again while it speaks is there whole, or not at all."""
    first, second = stores(), stores()
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(lambda: [add(first, event(number), event(number, node="b")) for number in range(1, 200)])
        while not said.done():
            second.forget("web1")
    assert said.result() == [[STORED, STORED]] * 199
    [[told]] = first.rows("SELECT count(*) FROM latest WHERE node = 'web1'")
    assert first.rows("SELECT count(*) FROM nodes WHERE node = 'web1'") == [(told,)]


# ---- news


def told(store: Store, number: int) -> list[Event]:
    """So many news, as the loop of a listener asks for them."""
    found: list[Event] = []

    def enough() -> bool:
        wait_s = 0.0 if store.poll_s is None else store.poll_s
        select.select(store.files(), [], [], wait_s)
        found.extend(store.news(True))
        return len(found) >= number

    wait_for(enough)
    return found


def test_every_listener_is_told_what_one_stores(stores: Callable[[], Kept]) -> None:
    """Also the one that has stored it."""
    first, second = stores(), stores()
    assert first.news(True) == second.news(True) == []
    said = event(1, "static", data={"a": "ä\0"}, refresh=7)._replace(policy="p.cf:1", handle="h", time=TIME_TOLD)
    add(first, said)
    assert told(first, 1) == told(second, 1) == [said]
    assert first.news(True) == second.news(True) == []


TIME_TOLD = "2026-11-24T12:00:00.000000Z"


def test_who_is_not_asked_for_news_has_no_connection_for_them(url: str, stores: Callable[[], Kept]) -> None:
    """Nor does he wake up; when nobody wants them any more it is the same again."""
    store = stores()
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'cf-messaged' AND datname = current_database()
    """
    assert store.news(False) == []
    assert (store.files(), store.poll_s, rows(url, query)) == ([], None, [(1,)])
    store.news(True)
    assert len(store.files()) == 1 and store.poll_s is not None and store.poll_s <= news.POLL_S
    store.news(False)
    assert store.files() == []
    assert store.poll_s is None
    wait_for(lambda: rows(url, query) == [(1,)])


def test_what_comes_after_the_last_values_is_news(stores: Callable[[], Kept]) -> None:
    """Who subscribes gets what is there, then what is newer: nothing is missed between, or told again."""
    first, second = stores(), stores()
    add(first, event(1, name="a"), event(2, name="b"))
    assert [value.name for value in second.last(b"", None, 10)] == ["a", "b"]
    add(first, event(3, name="b"))
    assert [said.id for said in told(second, 1)] == [event(3).id]


def test_what_is_committed_late_is_not_missed(url: str, stores: Callable[[], Kept]) -> None:
    """A transaction that began before another one, and ends after it, was told of: both are told."""
    first, second = stores(), stores()
    add(first, event(1, name="late"))
    second.news(True)
    with psycopg.connect(url) as late:
        late.execute("UPDATE latest SET sequence = 2, batch = pg_current_xact_id()::text::bigint")
        add(first, event(3, name="early"))
        sleep(2 * news.HELD_BACK_S)
        assert second.news(True) == []
        assert second.poll_s is not None and second.poll_s <= news.HELD_BACK_S
    assert sorted(said.id for said in told(second, 2)) == [event(2).id, event(3).id]


def test_many_news_come_in_parts(stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, though one transaction may have written more than a part, and the next part is due at once."""
    monkeypatch.setattr(news, "MAX_ROWS", news.PAGE)
    first, second = stores(), stores()
    second.news(True)
    names = [f"n{number}" for number in range(3 * news.PAGE)]
    add(first, *(event(number, name=name) for number, name in enumerate(names, 1)))
    part = told(second, 1)
    assert len(part) == news.PAGE and second.poll_s == 0
    assert sorted(said.name for said in part + told(second, 2 * news.PAGE)) == sorted(names)
    assert second.news(True) == []


def test_a_server_that_was_set_back_tells_everything(stores: Callable[[], Kept]) -> None:
    """Its transactions have lower numbers than those that were read: rather all again than too little."""
    store = stores()
    add(store, event(1))
    store.news(True)
    assert isinstance(store._news, news.Read)
    store._news._place = news.Place(10**12)
    add(store, event(2, name="other"))
    assert sorted(said.id for said in told(store, 2)) == [event(1).id, event(2).id]


class Follower:
    """What a listener publishes, last values and news, over connections that are cut."""

    def __init__(self, store: Kept) -> None:
        self._store = store
        self.newest: dict[str, int] = {}

    def look(self) -> None:
        with suppress(StoreUnavailable):
            if random.random() < 0.1:
                for value in self._store.last(b"", None, 100):
                    self._publish(value.name, json.loads(value.frame)["id"])
            for said in self._store.news(True):
                self._publish(said.name, said.id)
        if random.random() < 0.1:
            self._cut()

    def _publish(self, name: str, id: str) -> None:
        _, number = parse_id(id)
        before = self.newest.get(name, 0)
        fuzz.count("values published", "again" if before == number else "for the first time")
        assert before <= number
        self.newest[name] = number

    def _cut(self) -> None:
        assert isinstance(self._store._news, news.Read)
        connection = self._store._news._connection
        if connection is not None:
            rows(self._store.url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
            fuzz.count("connections for news cut")


def test_no_older_value_is_published_after_a_newer_one(
    stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two listeners store, a third publishes: whatever is cut, the values of a name only grow, up to the last."""
    monkeypatch.setattr(news, "POLL_S", 0.05)
    numbers = iter(range(1, 40 * EXAMPLES))
    one_at_a_time = threading.Lock()

    def store_all(store: Store) -> None:
        while batch := next_batch():
            add(store, *(event(number, name=random.choice("abcdefgh")) for number in batch))

    def next_batch() -> list[int]:
        with one_at_a_time:
            return list(itertools.islice(numbers, random.randint(1, 5)))

    follower, writers = Follower(stores()), [stores(), stores()]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(store_all, store) for store in writers]
        while not all(one.done() for one in running):
            follower.look()
    assert [one.result() for one in running] == [None, None]
    latest = dict(writers[0].rows("SELECT name, sequence FROM latest"))

    def has_all() -> bool:
        follower.look()
        return follower.newest == latest

    wait_for(has_all)
