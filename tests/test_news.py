"""News: what any listener has stored is published, and no older value after a newer one of its name."""

from __future__ import annotations

import itertools
import json
import random
import select
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import sleep

import psycopg
import pytest

import fuzz
from cf_messaged import news_of_several
from cf_messaged.database import StoreUnavailable
from cf_messaged.store import Store
from cf_messaging.wire import Event, parse_id
from listener import event
from postgres import Kept, rows
from test_postgresql import BACKENDS, EXAMPLES, add, wait_for


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


def test_who_is_not_asked_for_news_has_no_connection_for_them(shared: str, stores: Callable[[], Kept]) -> None:
    """Nor does he wake up; when nobody wants them any more it is the same again."""
    store = stores()
    query = f"SELECT count(*) FROM ({BACKENDS}) AS b"
    assert store.news(False) == []
    assert (store.files(), store.poll_s, rows(shared, query)) == ([], None, [(1,)])
    store.news(True)
    assert len(store.files()) == 1 and store.poll_s is not None and store.poll_s <= news_of_several.POLL_S
    store.news(False)
    assert store.files() == []
    assert store.poll_s is None
    wait_for(lambda: rows(shared, query) == [(1,)])


def test_what_comes_after_the_last_values_is_news(stores: Callable[[], Kept]) -> None:
    """Who subscribes gets what is there, then what is newer: nothing is missed between, or told again."""
    first, second = stores(), stores()
    add(first, event(1, name="a"), event(2, name="b"))
    assert [value.name for value in second.last(b"", None, 10)] == ["a", "b"]
    add(first, event(3, name="b"))
    assert [said.id for said in told(second, 1)] == [event(3).id]


def test_what_is_committed_late_is_not_missed(shared: str, stores: Callable[[], Kept]) -> None:
    """A transaction that began before another one, and ends after it, was told of: both are told."""
    first, second = stores(), stores()
    add(first, event(1, name="late"))
    second.news(True)
    with psycopg.connect(shared) as late:
        late.execute("UPDATE latest SET sequence = 2, batch = pg_current_xact_id()::text::bigint")
        add(first, event(3, name="early"))
        sleep(2 * news_of_several.HELD_BACK_S)
        assert second.news(True) == []
        assert second.poll_s is not None and second.poll_s <= news_of_several.HELD_BACK_S
    assert sorted(said.id for said in told(second, 2)) == [event(2).id, event(3).id]


def test_many_news_come_in_parts(stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, though one transaction may have written more than a part, and the next part is due at once."""
    monkeypatch.setattr(news_of_several, "MAX_ROWS", news_of_several.PAGE)
    first, second = stores(), stores()
    second.news(True)
    names = [f"n{number}" for number in range(3 * news_of_several.PAGE)]
    add(first, *(event(number, name=name) for number, name in enumerate(names, 1)))
    part = told(second, 1)
    assert len(part) == news_of_several.PAGE and second.poll_s == 0
    assert sorted(said.name for said in part + told(second, 2 * news_of_several.PAGE)) == sorted(names)
    assert second.news(True) == []


def test_a_server_that_was_set_back_tells_everything(stores: Callable[[], Kept]) -> None:
    """Its transactions have lower numbers than those that were read: rather all again than too little."""
    store = stores()
    add(store, event(1))
    store.news(True)
    assert isinstance(store._news, news_of_several.Read)
    store._news._place = news_of_several.Place(10**12)
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
        assert isinstance(self._store._news, news_of_several.Read)
        connection = self._store._news._connection
        if connection is not None:
            rows(self._store.url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
            fuzz.count("connections for news cut")


def test_no_older_value_is_published_after_a_newer_one(
    stores: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two listeners store, a third publishes: whatever is cut, the values of a name only grow, up to the last."""
    monkeypatch.setattr(news_of_several, "POLL_S", 0.05)
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
