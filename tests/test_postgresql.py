"""What is special to a store in PostgreSQL: several listeners, in each other's way; a server that is gone."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import zmq

import fuzz
from cf_messaged import postgresql
from cf_messaged.database import StoreUnavailable, database
from cf_messaged.intake import Verdict
from cf_messaged.postgresql import Gone
from cf_messaged.publisher import Resend
from cf_messaged.store import TRIES, Store
from cf_messaging.wire import DUPLICATE, KINDS, LATER, REFUSED, STORED, Event, parse_id
from listener import HISTORY, OTHER_STREAM, Node, cf_messaged, event
from peers import Socket, scaled
from postgres import Kept, Server, rows, why_not
from test_service import Start, start  # noqa: F401 - a fixture

Make = Callable[..., str]

LONGEST_S = 60
EXAMPLES = int(os.environ.get("MESSAGES_EXAMPLES", "50"))


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


BACKENDS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'cf-messaged' AND datname = current_database()
"""


def waits_for_a_lock(url: str) -> Callable[[], bool]:
    """Whether a listener does."""
    return lambda: bool(rows(url, f"{BACKENDS} AND wait_event_type = 'Lock'"))


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


def test_an_older_server_is_refused(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says which there is and which is needed."""
    monkeypatch.setattr(postgresql, "OLDEST", 10**7)
    with pytest.raises(StoreUnavailable, match=r"PostgreSQL [0-9]+ is too old: 1000 is needed"):
        Store(shared)


def test_settings_of_the_url_are_kept(shared: str) -> None:
    """As far as they are not those of a session that is durable."""
    given = "-c search_path=public -c work_mem=7MB -c synchronous_commit=off"
    store = Store(
        sa.make_url(shared).update_query_dict({"options": given, "application_name": "mine"}).render_as_string()
    )
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
    last = Resend([b""]).take(second.last)
    assert [value.key for value in last] == [("common", "ntp", "web1"), ("state", "load", "web1")]


def test_a_deadlock_is_tried_again(shared: str, stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that the server ended, since another program locked its rows in another order, is stored all the same."""
    monkeypatch.setitem(postgresql._TO_WRITE, "lock_timeout", scaled(LONGEST_S) * 1000)
    store = stores()
    in_the_way = recorded(store, monkeypatch)
    add(store, event(1, node="a"), event(1, node="b"))
    rows(shared, "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN new; END'")  # fmt: skip
    rows(
        shared, "CREATE TRIGGER gate BEFORE UPDATE ON nodes FOR EACH ROW WHEN (new.node = 'b') EXECUTE FUNCTION gate()"
    )
    with ThreadPoolExecutor(2) as pool, psycopg.connect(shared) as gate, psycopg.connect(shared) as other:
        gate.execute("SELECT pg_advisory_lock(1)")
        other.execute("SET deadlock_timeout = '1h'")  # so that it is the store's transaction that is ended
        other.execute("SELECT 1 FROM nodes WHERE node = 'b' FOR UPDATE")
        stored = pool.submit(add, store, event(2, node="a"), event(2, node="b"))
        wait_for(waits_for_a_lock(shared))
        locked = pool.submit(other.execute, "SELECT 1 FROM nodes WHERE node = 'a' FOR UPDATE")
        wait_for(lambda: len(rows(shared, "SELECT 1 FROM pg_locks WHERE NOT granted")) > 1)
        gate.execute("SELECT pg_advisory_unlock(1)")
        gate.commit()
        locked.result()
        other.commit()
        assert stored.result() == [STORED, STORED]
    assert [type(error) for error in in_the_way] == [psycopg.errors.DeadlockDetected]


def test_a_stream_that_is_removed_as_it_is_heard_again(shared: str, stores: Callable[[], Kept]) -> None:
    """Between being found and being locked: it is made anew."""
    store = stores()
    add(store, event(1))
    rows(shared, "DELETE FROM seen")
    with ThreadPoolExecutor(1) as pool, psycopg.connect(shared) as sweeper:
        sweeper.execute("DELETE FROM streams")
        stored = pool.submit(add, store, event(2))
        wait_for(waits_for_a_lock(shared))
        sweeper.commit()
        assert stored.result() == [STORED]
    assert add(store, event(2)) == [DUPLICATE]
    assert rows(shared, "SELECT have FROM streams") == [(2,)]


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


def test_what_is_locked_for_long(shared: str, stores: Callable[[], Kept]) -> None:
    """Nothing is stored while another program holds a table, and afterwards all goes on."""
    store = stores()
    with psycopg.connect(shared) as other:
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


# ---- a server that is lost


@pytest.fixture
def server() -> Iterator[Server]:
    """Of its own, to be stopped."""
    if reason := why_not():
        pytest.skip(reason)
    with closing(Server()) as server:
        yield server


def test_a_server_that_is_away(server: Server) -> None:
    """Nothing is stored, and all goes on when it is back; what was stored is known."""
    with closing(Kept(server.new())) as store:
        assert add(store, event(1)) == [STORED]
        server.stop()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                add(store, event(2))
        server.start()
        assert add(store, event(1), event(2)) == [DUPLICATE, STORED]
        assert store.rows("SELECT sequence FROM history ORDER BY sequence") == [(1,), (2,)]


def test_a_connection_that_is_gone_costs_nobody_anything(shared: str, stores: Callable[[], Kept]) -> None:
    """As after a restart of the server: who comes next is answered by another connection."""
    store = stores()
    assert add(store, event(1)) == [STORED]
    before = rows(shared, f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) AS b")
    assert before == [(True,)]
    assert add(store, event(2)) == [STORED]
    assert store.rows("SELECT sequence FROM history ORDER BY sequence") == [(1,), (2,)]


def test_a_server_that_does_not_answer_costs_half_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a try that took 5 s there is none for 5 s, and none is needed to say why."""
    now_s = [100.0]
    monkeypatch.setattr("cf_messaged.postgresql.time.monotonic", lambda: now_s[0])
    gone, tries = Gone(), []

    def reach() -> None:
        with gone.noticed():
            tries.append(now_s[0])
            now_s[0] += 5
            raise psycopg.OperationalError("timeout expired")

    for moment_s in (100, 105, 109, 110.5):
        now_s[0] = moment_s
        with pytest.raises(psycopg.OperationalError, match="timeout expired"):
            reach()
    assert tries == [100, 110.5]


class Insistent:
    """A listener whose nodes say each event until it is acknowledged, and which is told of each when it is not."""

    def __init__(self, store: Kept) -> None:
        self._store = store
        self.answers: defaultdict[int, list[str]] = defaultdict(list)

    def say(self, numbers: Iterable[int]) -> None:
        """In one batch, until it is stored."""
        batch = [event(number, data=number) for number in numbers]
        wait_for(lambda: self._try(batch))

    def _try(self, batch: list[Event]) -> bool:
        try:
            found = add(self._store, *batch)
        except StoreUnavailable:
            fuzz.count("batches cut")
            return False
        for said, status in zip(batch, found, strict=True):
            self.answers[parse_id(said.id)[1]].append(status)
        return True

    def check(self) -> None:
        """What was called stored is there; what is there, but was not called so, was a duplicate when said again."""
        there = [number for (number,) in self._store.rows("SELECT sequence FROM history ORDER BY sequence")]
        assert there == sorted(self.answers) and there
        assert set(map(tuple, self.answers.values())) <= {(STORED,), (DUPLICATE,)}
        for (status,) in self.answers.values():
            fuzz.count("events of batches that were cut", status)


def test_connections_that_are_cut_while_a_batch_is_stored(shared: str, stores: Callable[[], Kept]) -> None:
    """At any moment: each event is stored once, and one of which the answer was lost is a duplicate."""
    insistent = Insistent(stores())
    over = threading.Event()

    def cut() -> None:
        query = f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS} AND state <> 'idle') AS b"
        while not over.wait(random.uniform(0, 0.03)):
            rows(shared, query)

    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(cut)
        for first in range(1, 20 * EXAMPLES, 20):
            insistent.say(range(first, first + 20))
        over.set()
        cutting.result()
    insistent.check()


def test_a_server_that_crashes_while_a_batch_is_stored(server: Server) -> None:
    """At any moment: what was called stored is there when it is back."""
    with closing(Kept(server.new())) as store, ThreadPoolExecutor(1) as pool:
        insistent = Insistent(store)
        numbers = itertools.count(1)

        def restart() -> None:
            sleep(random.uniform(0, 0.3))
            server.stop()
            server.start()

        for _ in range(2):
            crash = pool.submit(restart)
            while not crash.done():
                insistent.say(itertools.islice(numbers, 20))
            crash.result()
        insistent.check()


# ---- whole listeners


def test_two_listeners_are_one_service(shared: str, start: Start, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """What is said to one of them, the other knows, shows in its views and publishes."""
    first, second = start(url=shared), start(url=shared)
    subscriber = plain.socket(zmq.SUB)
    subscriber.rcvtimeo = int(scaled(LONGEST_S) * 1000)
    subscriber.connect(second.endpoints["subscribe"])
    saying, asking = Node(plain, first.endpoint), Node(plain, second.endpoint)
    stored = saying.say(event(1, "static", "os", "debian"))
    subscriber.subscribe(b"static/")
    assert subscriber.recv_multipart()[0] == b"static/os/web1/"  # the last value, from which on there are news
    assert saying.say(event(2, "static", "os", "sles")).status == STORED
    assert json.loads(subscriber.recv_multipart()[1])["data"] == "sles"
    duplicate = asking.say(event(1, "static", "os", "debian"))
    assert (duplicate.status, duplicate.have, duplicate.store) == (DUPLICATE, 2, stored.store)
    assert [row["after"] for row in asking.ask("changes").rows] == ["sles"]
    assert first.end() == second.end() == 0


def test_a_listener_whose_server_is_away(server: Server, start: Start, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """`later` with the reason, and one line of log; when it is back, all goes on, views and subscribers too."""
    listener = start(url=server.new())
    node, subscriber = Node(plain, listener.endpoint), plain.socket(zmq.SUB)
    subscriber.rcvtimeo = int(scaled(LONGEST_S) * 1000)
    subscriber.connect(listener.endpoints["subscribe"])
    subscriber.subscribe(b"state/")
    assert node.say(event(1)).status == STORED
    assert json.loads(subscriber.recv_multipart()[1])["id"] == event(1).id
    server.stop()
    later = [node.say(event(2)) for _ in range(3)]
    assert {answer.status for answer in later} == {LATER} and "No such file or directory" in later[-1].reason
    assert node.ask("nodes").status == LATER
    server.start()
    wait_for(lambda: node.say(event(2)).status in (STORED, DUPLICATE))
    published = iter(lambda: json.loads(subscriber.recv_multipart()[1])["id"], event(2).id)
    assert set(published) <= {event(1).id}
    assert node.ask("nodes").rows[0]["events"] == 2
    assert listener.end() == 0
    errors = [line for line in listener.heard if "error: " in line]
    assert len([line for line in errors if "nothing can be stored" in line]) == 1, errors
    # A server that goes and comes says in several ways that it is not there.
    assert len(set(errors)) == len(errors) <= 6, errors


def test_the_commands(shared: str, stores: Callable[[], Kept], tmp_path: Path) -> None:
    """view, status and forget read and write the store; check-config tells its URL without its password."""
    add(stores(), event(1, data={"a": "ä"}), event(2, "static", "os", "debian"))
    url = sa.make_url(shared).set(password="s3cret").render_as_string(hide_password=False)
    (tmp_path / "settings.toml").write_text(f"store = {json.dumps(url)}\n")

    def run(*arguments: str) -> str:
        done = cf_messaged(*arguments, "--config", str(tmp_path / "settings.toml"))
        assert (done.returncode, done.stderr) == (0, "") and "s3cret" not in done.stdout
        return done.stdout

    assert [row["data"] for row in json.loads(run("view", "latest", "--json"))] == [{"a": "ä"}, "debian"]
    assert "nodes      1\nevents     2\n" in run("status")
    assert "postgresql://admin:***@" in run("status") and "postgresql://admin:***@" in run("check-config")
    assert run("forget", "web1") == "forgot web1: 4 rows\n"
    assert run("view", "nodes") == "no rows\n"


def test_a_database_that_is_no_store(postgresql: Make) -> None:
    """The line says what makes it one."""
    done = cf_messaged("status", "--store", postgresql(empty=True))
    assert done.returncode == 1 and "it holds no store: `cf-messaged run` makes one" in done.stderr
