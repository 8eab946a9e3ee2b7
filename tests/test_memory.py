"""The memory of a node, with real files, processes and disks: what is acknowledged and what waits, whatever happens."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cf_messaging import memory as module
from cf_messaging.memory import NODE, STORE, Memory, Saying, Told
from cf_messaging.outcomes import Failure, Reason
from cf_messaging.wire import parse_id
from demo import REPOSITORY
from peers import scaled
from test_unhealthy import Mount, fill, folder_of, mount, root

__all__ = ["mount", "root"]  # fixtures

HUB, OTHER = "tcp://hub:5309", "tcp://other:5309"
NOW = 1_800_000_000
DAY = 86_400
NEVER = NOW + 1000 * DAY
A, B = (Saying("web1", "static", "facts", f'"{letter}"') for letter in "AB")
LOAD = Saying("web1", "state", "load", '"1"')

Open = Callable[..., Memory]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/messages/memory.db"


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def opened(path: Path, reports: list[str]) -> Iterator[Open]:
    """Opens the memory; it is closed with the test."""
    memories: list[Memory] = []

    def open_(read_only: bool = False) -> Memory:
        memories.append(Memory(str(path), reports.append, read_only))
        return memories[-1]

    yield open_
    for memory in memories:
        memory.close()


def ignore(_text: str) -> None:
    """For a memory of which no damage is expected, or of no interest."""


def event(id: str) -> bytes:
    """An event that can be told from all others."""
    return f"event {id}".encode()


def put(memory: Memory, saying: Saying, endpoints: str = HUB, now: float = NOW, expires: float = NEVER) -> int:
    """Queues it; returns its sequence."""
    sequence, lost = memory.queue(endpoints, saying, saying.kind != "state", event, now, expires)
    assert not lost
    return sequence


def names(memory: Memory, endpoints: str = HUB) -> list[str]:
    return [waiting.name for waiting in memory.waiting(endpoints, 0, 1000)]


def settle(
    memory: Memory,
    *sequences: int,
    have: int | None = None,
    store: str = "S",
    endpoints: str = HUB,
    now: float = NOW,
    node: str = "web1",
    known: dict[str, int] | None = None,
) -> str:
    """As by a listener that has stored these; have: what it had before, as a rule what it was known to have."""
    known = memory.acknowledged(endpoints) if known is None else known
    have = known.get(node, 0) if have is None else have
    return memory.settle(endpoints, store, [Told(each, node, have, True) for each in sequences], known, now)


def stored(memory: Memory, *sequences: int, have: int | None = None, store: str = "S", endpoints: str = HUB) -> bool:
    """Settles them as stored; returns whether all that was remembered is void."""
    return settle(memory, *sequences, have=have, store=store, endpoints=endpoints) == STORE


def highest(memory: Memory, endpoints: str = HUB) -> int:
    return memory.acknowledged(endpoints).get("web1", 0)


def knows(memory: Memory, saying: Saying, endpoints: str = HUB, now: float = NOW, refresh_s: int = DAY) -> bool:
    return memory.is_acknowledged(endpoints, saying, refresh_s, now)


def raw(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """What a statement answers, or does, in the file itself."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


# ---- the queue


def test_an_event_waits_until_it_is_answered(opened: Open) -> None:
    """It waits with its id, bytes and times; once stored it is gone, and its value known; not before."""
    memory = opened()
    assert not knows(memory, A) and memory.backlog(HUB) == (0, 0)
    sequence = put(memory, A, expires=NOW + 60)
    ((waiting),) = memory.waiting(HUB, 0, 9)
    assert (waiting.sequence, waiting.kind, waiting.name) == (sequence, "static", "facts")
    assert (waiting.queued, waiting.expires) == (NOW, NOW + 60)
    stream, number = parse_id(waiting.event.decode().removeprefix("event "))
    assert number == sequence == 1 and len(stream) == 32
    assert memory.backlog(HUB) == (1, NOW) and not knows(memory, A)
    assert not stored(memory, sequence)
    assert memory.waiting(HUB, 0, 9) == [] and knows(memory, A) and not knows(memory, B)
    assert highest(memory) == sequence


def test_order(opened: Open) -> None:
    """Events come in the order in which they were queued, from behind a sequence, no more than wanted."""
    memory = opened()
    sequences = [put(memory, LOAD._replace(name=str(number)), now=NOW - number) for number in range(20)]
    assert sequences == sorted(set(sequences))
    assert names(memory) == [str(number) for number in range(20)]
    assert [waiting.sequence for waiting in memory.waiting(HUB, sequences[4], 3)] == sequences[5:8]
    assert memory.backlog(HUB) == (20, NOW - 19)


def test_a_newer_value_replaces(opened: Open) -> None:
    """Of a remembered kind only the newest value waits, at the end and as a new event; of others all do."""
    memory = opened()
    first = put(memory, A)
    put(memory, LOAD)
    second = put(memory, B)
    assert [(each.sequence, each.name) for each in memory.waiting(HUB, 0, 9)] == [
        (second - 1, "load"),
        (second, "facts"),
    ]
    assert second > first
    put(memory, A._replace(kind="dynamic"))
    put(memory, A._replace(name="other"))
    put(memory, B, OTHER)
    assert names(memory) == ["load", "facts", "facts", "other"] and names(memory, OTHER) == ["facts"]


def test_the_same_value_keeps_its_place(opened: Open) -> None:
    """It stays the same event, with its id and bytes; the queue is as long as before."""
    memory = opened()
    first = put(memory, A)
    put(memory, A._replace(name="other"))
    before = memory.waiting(HUB, 0, 9)
    assert put(memory, A, now=NOW + 60) == first and memory.waiting(HUB, 0, 9) == before


def test_every_sample_of_state(opened: Open) -> None:
    """State waits sample by sample, equal ones too, and is never taken for known."""
    memory = opened()
    sequences = [put(memory, LOAD) for _ in range(5)]
    assert names(memory) == ["load"] * 5
    stored(memory, *sequences)
    assert names(memory) == [] and not knows(memory, LOAD)


def test_ids_are_never_used_again(opened: Open, path: Path) -> None:
    """Sequences go on after everything was answered, in another run too; the stream stays."""
    ids = []
    for _ in range(3):
        memory = opened()
        sequence = put(memory, A)
        ids += [memory.waiting(HUB, 0, 1)[0].event.decode().removeprefix("event "), memory.next_id()]
        stored(memory, sequence)
        memory.close()
    assert [parse_id(id)[1] for id in ids] == [1, 2, 3, 4, 5, 6]
    assert len({parse_id(id)[0] for id in ids}) == 1
    shutil.rmtree(path.parent)
    assert parse_id(opened().next_id())[0] != parse_id(ids[0])[0]


def test_what_is_dropped_is_not_remembered(opened: Open) -> None:
    """What is refused or has expired leaves the queue, and is not known."""
    memory = opened()
    first, second = put(memory, A), put(memory, A._replace(name="other"))
    memory.drop([first])
    memory.drop([second])
    assert names(memory) == [] and not knows(memory, A) and not knows(memory, A._replace(name="other"))


def test_an_answer_to_what_was_replaced(opened: Open) -> None:
    """An answer settles only its own event: the newer value waits on, and nothing is known."""
    memory = opened()
    first = put(memory, A)
    put(memory, B)
    stored(memory, first)
    assert names(memory) == ["facts"] and not knows(memory, A) and not knows(memory, B)


# ---- what is known


def test_a_value_that_comes_back(opened: Open) -> None:
    """A; B, stored but its answer lost; A: while anything of the name waits, nothing of it is known."""
    memory = opened()
    stored(memory, put(memory, A))
    second = put(memory, B)
    assert not knows(memory, A) and not knows(memory, B)
    third = put(memory, A)
    assert third > second and not knows(memory, A)
    stored(memory, third)
    assert knows(memory, A) and not knows(memory, B)


@pytest.mark.parametrize("way", ["expired", "expired and nobody answers"])
def test_a_value_that_comes_back_after_the_other_was_given_up(opened: Open, way: str) -> None:
    """B may have been stored before it was given up: A is not known any more, since the listener may have B."""
    memory = opened()
    stored(memory, put(memory, A))
    second = put(memory, B)
    if way == "expired and nobody answers":
        memory.drop([second])
    else:
        memory.settle(HUB, "S", [Told(second, "web1", 1, False)], memory.acknowledged(HUB), NOW)
        memory.drop([second])
    assert not knows(memory, A)


def test_what_a_killed_run_left_is_synced_before_it_is_said(opened: Open, path: Path) -> None:
    """A value that waits from an earlier run stays in its place, but something is written, and so synced, first."""
    first = put(opened(), A)
    memory = opened()
    before = raw(path, "SELECT next FROM stream")
    assert put(memory, A) == first and raw(path, "SELECT next FROM stream") != before
    again = raw(path, "SELECT next FROM stream")
    assert put(memory, A) == first and raw(path, "SELECT next FROM stream") == again


def test_a_value_that_comes_back_after_the_queue_was_full(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of what had to go since the queue was full."""
    memory = opened()
    stored(memory, put(memory, A))
    put(memory, B)
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 50)
    assert memory.queue(HUB, LOAD, False, event, NOW, NEVER)[1] == [HUB]
    assert names(memory) == ["load"] and not knows(memory, A)


def test_refresh(opened: Open) -> None:
    """A value is known for as long as it need not be said again, from when it was acknowledged last."""
    memory = opened()
    stored(memory, put(memory, A))
    assert knows(memory, A, now=NOW + 59, refresh_s=60) and not knows(memory, A, now=NOW + 60, refresh_s=60)
    assert knows(memory, A, now=NOW + 61, refresh_s=62)
    sequence = put(memory, A, now=NOW + 100)
    settle(memory, sequence, now=NOW + 100)
    assert knows(memory, A, now=NOW + 159, refresh_s=60)


@pytest.mark.parametrize("jump", [-1000 * DAY, -1, 1000 * DAY])
def test_the_clock_jumps(opened: Open, jump: int) -> None:
    """After a jump either way a value is said once more, then known again; what waits is not lost."""
    memory = opened()
    stored(memory, put(memory, A))
    put(memory, LOAD)
    assert not knows(memory, A, now=NOW + jump)
    sequence = put(memory, A, now=NOW + jump)
    settle(memory, sequence, now=NOW + jump)
    assert knows(memory, A, now=NOW + jump) and names(memory) == ["load"]


def test_names_that_are_not_promised(opened: Open, path: Path) -> None:
    """A name that was not promised for 90 days is forgotten; one that is only kept is not."""
    memory = opened()
    other = A._replace(name="other")
    stored(memory, put(memory, A), put(memory, other))
    for day in range(1, 91):
        assert knows(memory, A, now=NOW + day * DAY, refresh_s=100 * DAY)
    sequence = put(memory, LOAD)
    settle(memory, sequence, now=NOW + 91 * DAY)
    assert raw(path, "SELECT name FROM said") == [("facts",)]
    assert knows(memory, A, now=NOW + 91 * DAY, refresh_s=100 * DAY)


def test_services_are_apart(opened: Open) -> None:
    """What waits and what is known belongs to a service."""
    memory = opened()
    stored(memory, put(memory, A), store="S")
    put(memory, LOAD, OTHER)
    assert knows(memory, A) and not knows(memory, A, OTHER)
    assert (highest(memory), highest(memory, OTHER)) == (1, 0)
    assert not stored(memory, put(memory, A, OTHER), store="another", endpoints=OTHER)
    assert knows(memory, A) and knows(memory, A, OTHER) and names(memory) == []


def test_nodes_are_apart(opened: Open) -> None:
    """What the listener has of one node it has not of another; each waits with its newest value."""
    memory = opened()
    other = A._replace(node="web2")
    stored(memory, put(memory, A))
    assert knows(memory, A) and not knows(memory, other)
    put(memory, other)
    put(memory, A._replace(data='"C"', node="web2"))
    put(memory, B)
    assert names(memory) == ["facts", "facts"]


def test_events_for_services_of_the_past(opened: Open) -> None:
    """What expired a day ago for endpoints that no promise names any more is given up, and counted; no other is."""
    memory = opened()
    put(memory, A, OTHER, expires=NOW)
    put(memory, LOAD, OTHER, expires=NOW + 2 * DAY)
    put(memory, A, HUB, expires=NOW)
    assert memory.give_up(HUB, NOW + DAY) == 0
    assert memory.give_up(HUB, NOW + DAY + 1) == 1
    assert names(memory, OTHER) == ["load"] and names(memory) == ["facts"]


# ---- the listener's memory


def test_another_store(opened: Open) -> None:
    """An answer of another store voids what was remembered of this service, but for what it has just stored."""
    memory = opened()
    stored(memory, put(memory, A), put(memory, A._replace(name="other")))
    stored(memory, put(memory, A, OTHER), endpoints=OTHER)
    assert stored(memory, put(memory, B), store="T")
    assert knows(memory, B) and not knows(memory, A._replace(name="other")) and knows(memory, A, OTHER)
    assert not stored(memory, put(memory, LOAD), store="T") and knows(memory, B)


def test_a_store_that_has_less(opened: Open) -> None:
    """One that had less than was known before the event was said is a restored backup; it may have had more."""
    memory = opened()
    for _ in range(60):
        memory.next_id()
    first = put(memory, A)
    assert not stored(memory, first) and highest(memory) == first
    second = put(memory, LOAD)
    assert not stored(memory, second, have=first) and highest(memory) == second and knows(memory, A)
    third = put(memory, LOAD)
    assert stored(memory, third, have=second - 1)
    assert not knows(memory, A) and highest(memory) == third
    assert not stored(memory, put(memory, LOAD), have=third)


def test_a_store_that_has_less_of_one_node(opened: Open) -> None:
    """Nodes of one memory are counted apart: the first word of another one is no loss of the store."""
    memory = opened()
    stored(memory, put(memory, A))
    other = put(memory, LOAD._replace(node="web2"))
    assert settle(memory, other, node="web2", have=0) == "" and knows(memory, A)
    assert memory.acknowledged(HUB) == {"web1": 1, "web2": 2}


def test_an_answer_that_comes_late(opened: Open) -> None:
    """Of two agents the slower one hears less than the faster one knows: that is no loss, nor does it count back."""
    memory = opened()
    first = put(memory, A)
    stored(memory, first)
    slow, fast = put(memory, LOAD), put(memory, LOAD)
    known = memory.acknowledged(HUB)
    assert settle(memory, fast, have=slow, known=known) == ""
    assert settle(memory, slow, have=first, known=known) == ""
    assert highest(memory) == fast and knows(memory, A)


def test_the_first_answer_voids_nothing(opened: Open) -> None:
    """Of a service that has never answered there is nothing to be lost."""
    memory = opened()
    assert not stored(memory, put(memory, A)) and knows(memory, A)


def test_an_older_copy_of_the_memory(opened: Open, path: Path, tmp_path: Path) -> None:
    """A store that has more of the stream than was ever said knows its ids from before: all goes on in a new stream.

    Nothing is lost by it: what was answered under an id of before waits on, under a new one, and is not known.
    """
    memory = opened()
    put(memory, A)
    put(memory, LOAD)
    before = [parse_id(waiting.id) for waiting in memory.waiting(HUB, 0, 9)]
    assert settle(memory, 1, have=500) == NODE
    assert highest(memory) == 0 and not knows(memory, A)
    assert all(parse_id(waiting.id)[0] != before[0][0] for waiting in memory.waiting(HUB, 0, 9))


# ---- the size


def test_a_full_queue(opened: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest state goes first, then the oldest of all, never the newest; for whom what went was is told."""
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 10 * len(event("0" * 45)))
    memory = opened()
    for number in range(5):
        put(memory, A._replace(name=f"static {number}"))
        put(memory, LOAD._replace(name=f"state {number}"))

    def lost(saying: Saying) -> list[str]:
        return memory.queue(HUB, saying, saying.kind != "state", event, NOW, NEVER)[1]

    assert lost(A._replace(name="static 5")) == [HUB]
    assert names(memory)[:3] == ["static 0", "static 1", "state 1"]
    assert [lost(A._replace(name=f"static {number}")) for number in range(6, 10)] == [[HUB]] * 4
    assert names(memory) == [f"static {number}" for number in range(10)]
    assert lost(LOAD) == [HUB] and names(memory) == [*(f"static {number}" for number in range(1, 10)), "load"]
    size = sum(len(waiting.event) for waiting in memory.waiting(HUB, 0, 99))
    assert raw(path, "SELECT bytes FROM size") == [(size,)]
    assert memory.queue(OTHER, LOAD, False, event, NOW, NEVER)[1] == [HUB]
    assert lost(B) == [OTHER]


def test_the_size_is_what_waits(opened: Open, path: Path) -> None:
    """Whatever becomes of events, the size that is kept is the sum of what waits; it is 0 in the end."""
    memory = opened()
    first, second, third = put(memory, A), put(memory, LOAD), put(memory, LOAD, OTHER)
    put(memory, B)
    stored(memory, second)
    assert raw(path, "SELECT bytes FROM size") == raw(path, "SELECT sum(length(event)) FROM queue")
    memory.drop([first, third, third + 1, 99])
    assert raw(path, "SELECT bytes FROM size") == [(0,)] and names(memory) == []


def test_an_event_larger_than_the_queue(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others go, it stays."""
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 10)
    memory = opened()
    assert memory.queue(HUB, A, True, event, NOW, NEVER)[1] == []
    assert memory.queue(HUB, LOAD, False, event, NOW, NEVER)[1] == [HUB] and names(memory) == ["load"]


# ---- the file


def test_a_new_file(opened: Open, path: Path) -> None:
    """It and its folder are for their owner alone, journal and synchronous are as durable as SQLite can be."""
    memory = opened()
    put(memory, A)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
    assert memory._do("PRAGMA journal_mode") == [("wal",)] and memory._do("PRAGMA synchronous") == [(2,)]
    memory.close()
    assert [each.name for each in path.parent.iterdir()] == ["memory.db"]


def test_an_old_file_is_as_durable(opened: Open) -> None:
    """The same of a file that was there before."""
    opened().close()
    memory = opened()
    assert memory._do("PRAGMA journal_mode") == [("wal",)] and memory._do("PRAGMA synchronous") == [(2,)]


def test_a_newer_version(opened: Open, path: Path, reports: list[str]) -> None:
    """A file of a newer version is left alone: it is a Failure, local, and not one byte changes."""
    put(opened(), A)
    raw(path, "PRAGMA user_version = 2")
    raw(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    before = {each.name: each.read_bytes() for each in path.parent.iterdir() if each.name != "memory.db-shm"}
    for read_only in (False, True):
        with pytest.raises(Failure, match=r"newer version, 2: update") as failed:
            opened(read_only)
        assert failed.value.reason is Reason.LOCAL and str(path) in str(failed.value)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir() if each.name != "memory.db-shm"} == before
    assert not reports


def filled(path: Path) -> None:
    """A closed memory file of many pages."""
    memory = Memory(str(path), ignore)
    for number in range(30):
        memory.queue(HUB, LOAD._replace(name=f"n{number}"), False, lambda id: event(id) * 20, NOW, NEVER)
    stored(memory, *(put(memory, A._replace(name=f"k{number}")) for number in range(30)))
    memory.close()


def truncated(path: Path) -> None:
    os.truncate(path, 5000)


def overwritten(path: Path) -> None:
    """In the middle, the head is whole."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def a_text(path: Path) -> None:
    path.write_text("no database\n" * 100)


DAMAGES = (truncated, overwritten, a_text)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(opened: Open, path: Path, reports: list[str], damage: Callable[[Path], None]) -> None:
    """It is set aside under a new name, as it was, and reported; a new memory works, in a stream of its own."""
    filled(path)
    stream = raw(path, "SELECT id FROM stream")
    for number in (1, 2):
        damage(path) if path.stat().st_size > 60_000 or damage is a_text else shutil.copy(f"{path}.damaged-1", path)
        bytes_ = path.read_bytes()
        memory = opened()
        put(memory, A)
        assert names(memory)[-1:] == ["facts"] and highest(memory) == 0 and not knows(memory, A)
        stored(memory, memory.waiting(HUB, 0, 1)[0].sequence)
        assert knows(memory, A) and raw(path, "SELECT id FROM stream") != stream
        (text,) = reports
        assert str(path) in text and f"{path}.damaged-{number}" in text and "damaged" in text
        assert Path(f"{path}.damaged-{number}").read_bytes() == bytes_
        reports.clear()
        memory.close()


def test_an_empty_file(opened: Open, path: Path, reports: list[str]) -> None:
    """It is what SQLite makes first of a new file: it becomes a memory."""
    filled(path)
    emptied(path)
    memory = opened()
    put(memory, A)
    assert names(memory) == ["facts"] and not reports


def test_damage_that_shows_later(opened: Open, path: Path, reports: list[str]) -> None:
    """A file that is damaged while it is open is set aside when that shows, and what is to be done is done anew."""
    filled(path)
    memory = opened()
    overwritten(path)
    put(memory, A)
    assert names(memory) == ["facts"] and len(reports) == 1
    assert stored(memory, memory.waiting(HUB, 0, 1)[0].sequence) is False and knows(memory, A)


# Another agent, which has opened the memory when it says so, and queues an event when it is told to.
SECOND_AGENT = """
import sys
from cf_messaging.memory import Memory, Saying
memory = Memory(sys.argv[1], lambda text: print(text, file=sys.stderr))
print("opened", flush=True)
sys.stdin.readline()
saying = Saying("n", "state", "of another", "1")
memory.queue("tcp://hub:5309", saying, False, lambda id: id.encode(), 1, 2**40)
memory.close()
"""


def test_damage_that_shows_to_another_agent_too(opened: Open, path: Path, reports: list[str]) -> None:
    """What the first one has begun anew is not set aside by the second, but used."""
    filled(path)
    command = [sys.executable, "-c", SECOND_AGENT, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as other:
        assert other.stdout and other.stdout.readline() == "opened\n"
        memory = opened()
        overwritten(path)
        put(memory, A)
        assert len(reports) == 1
        assert other.communicate("go on\n", timeout=scaled(60)) == ("", "") and other.returncode == 0
    put(memory, LOAD)
    memory.close()
    assert names(opened()) == ["facts", "of another", "load"] and len(reports) == 1


def test_a_lost_wal(opened: Open, path: Path, tmp_path: Path, reports: list[str]) -> None:
    """Without what was not yet in the file itself it works on, from what was there."""
    opened().close()
    memory = opened()
    put(memory, A)
    for name in ("memory.db", "memory.db-shm"):
        shutil.copy(path.parent / name, tmp_path / name)
    with closing(Memory(str(tmp_path / "memory.db"), reports.append)) as other:
        assert names(other) == []
        put(other, B)
        assert names(other) == ["facts"] and not reports


def test_a_foreign_database(opened: Open, path: Path) -> None:
    """A sound database of somebody else's is not touched: it is a Failure, or set aside as it is."""
    path.parent.mkdir(parents=True)
    raw(path, "CREATE TABLE theirs (a)")
    raw(path, "PRAGMA user_version = 1")
    before = path.read_bytes()
    with suppress(Failure):
        put(opened(), A)
    aside = path.with_name("memory.db.damaged-1")
    assert raw(aside if aside.exists() else path, "SELECT * FROM theirs") == []
    assert (aside if aside.exists() else path).read_bytes()[100:] == before[100:]  # behind the head, with its counters


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "memory.db"
    filled(path)
    return path.read_bytes()


patches = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=64)), min_size=1, max_size=8)


def use(memory: Memory) -> None:
    """Everything that an agent run does with it."""
    for saying in (A, A._replace(name="k1"), LOAD):
        memory.is_acknowledged(HUB, saying, DAY, NOW + 2 * DAY)
        memory.queue(HUB, saying, saying.kind != "state", event, NOW, NEVER)
    known = memory.acknowledged(HUB)
    waiting = memory.waiting(HUB, 0, 500)
    sequences = [each.sequence for each in waiting]
    memory.backlog(HUB)
    memory.next_id()
    memory.settle(
        HUB, "S", [Told(each, "web1", 9, True) for each in sequences[1::2]] or [Told(9, "", 9, False)], known, NOW
    )
    memory.give_up(OTHER, NOW)
    memory.drop(sequences[2::2])


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patched=patches, length=st.none() | st.integers(0, 2**16), read_only=st.booleans())
@example(patched=[(0, b"\xff" * 64)], length=None, read_only=False)
@example(patched=[(96, b"\xff" * 4)], length=None, read_only=False)
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    whole: bytes,
    patched: list[tuple[int, bytes]],
    length: int | None,
    read_only: bool,
) -> None:
    """Whatever is in the file: a Failure, or a memory that works; never another exception."""
    path = tmp_path_factory.getbasetemp() / "fuzzed/memory.db"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    data = bytearray(whole)
    for offset, words in patched:
        at = offset % len(data)
        data[at : at + len(words)] = words
    path.write_bytes(data[:length])
    with only_failures(path), closing(Memory(str(path), ignore, read_only)) as memory:
        if read_only:
            memory.is_acknowledged(HUB, A, DAY, NOW)
            memory.waiting(HUB, 0, 500)
        else:
            use(memory)


@contextmanager
def only_failures(path: Path) -> Iterator[None]:
    """All goes well in it, or there is a Failure of this node that names the file."""
    failed = None
    try:
        yield
    except Failure as failure:
        failed = failure
    assert failed is None or (failed.reason is Reason.LOCAL and str(path) in str(failed))


# ---- read-only


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Whatever is made, written or removed in the folder changes this."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


def test_read_only_makes_nothing(opened: Open, path: Path, tmp_path: Path) -> None:
    """Where there is no memory none is made, nor is its folder."""
    before = contents(tmp_path)
    memory = opened(read_only=True)
    assert not knows(memory, A) and names(memory) == [] and highest(memory) == 0
    memory.close()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another agent"])
def test_read_only_writes_nothing(opened: Open, path: Path, beside: bool) -> None:
    """It knows what is known, a day later too, while others write or not, and leaves file and folder as they are."""
    memory = opened()
    stored(memory, put(memory, A))
    if not beside:
        memory.close()
    before = contents(path.parent)
    reader = opened(read_only=True)
    assert knows(reader, A, now=NOW + 2 * DAY, refresh_s=9 * DAY) and not knows(reader, B)
    with pytest.raises(Failure):
        put(reader, B)
    reader.close()
    assert contents(path.parent) == before


@pytest.mark.parametrize("damage", [*DAMAGES, emptied])
def test_read_only_leaves_damage_alone(opened: Open, path: Path, damage: Callable[[Path], None]) -> None:
    """A damaged file is a Failure and stays where it is; an empty one is, too, or an empty memory."""
    filled(path)
    damage(path)
    before = contents(path.parent)
    with only_failures(path):
        memory = opened(read_only=True)
        assert not knows(memory, A)
        memory.close()
    assert contents(path.parent) == before


# ---- several processes


PRODUCER = """
import sys
from cf_messaging.memory import Memory, Saying, Told
memory, name, count = Memory(sys.argv[1], print), sys.argv[2], int(sys.argv[3])
for number in range(count):
    saying = Saying("n", "state", f"{name} {number}", "1")
    sequence, _ = memory.queue("tcp://hub:5309", saying, False, lambda id: id.encode(), 1, 2**40)
    print(sequence, flush=True)
    if number % 5 == 4:
        memory.settle("tcp://hub:5309", "S", [Told(sequence, "n", 0, True)], {}, 1)
        print("settled", sequence, flush=True)
"""


def produce(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRODUCER, str(path), name, str(count)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def said(output: str) -> tuple[set[int], set[int]]:
    """Of a producer: the sequences that it queued, and those that it settled."""
    lines = [line.split() for line in output.splitlines()]
    return {int(line[0]) for line in lines if len(line) == 1}, {int(line[1]) for line in lines if len(line) == 2}


@pytest.mark.parametrize("attempt", range(3))
def test_agents_at_once(opened: Open, path: Path, attempt: int) -> None:
    """Four agents that come at once to a memory that is not there yet: no event is lost, no id is used twice."""
    producers = [produce(path, f"p{number}", 60) for number in range(4)]
    outputs = [producer.communicate(timeout=scaled(120)) for producer in producers]
    assert [errors for _, errors in outputs] == [""] * 4
    queued, settled = zip(*(said(output) for output, _ in outputs))
    assert len(set().union(*queued)) == sum(map(len, queued)) == 240
    left = opened().waiting(HUB, 0, 1000)
    assert {waiting.sequence for waiting in left} == set().union(*queued) - set().union(*settled)
    assert len({waiting.event for waiting in left}) == len(left) == 4 * 48


# Six processes that open the same new memory at the same moment; exit status: how many of them could not.
AT_ONCE = """
import os, sys, time
from cf_messaging.memory import Memory
moment, children = time.monotonic() + 0.02, []
for _ in range(6):
    children.append(os.fork())
    if not children[-1]:
        while time.monotonic() < moment:
            pass
        Memory(sys.argv[1], print).close()
        os._exit(0)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_agents_that_start_at_the_same_moment(tmp_path: Path) -> None:
    """A memory is made by one of them, and none finds it locked."""
    for number in range(40):
        command = [sys.executable, "-c", AT_ONCE, str(tmp_path / f"{number}/memory.db")]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_agents_that_are_killed(opened: Open, path: Path, reports: list[str]) -> None:
    """SIGKILL at twenty random moments: every event that was queued is there, and nothing that was settled comes back.

    What was settled when the agent had no time left to say so is the last event that it queued.
    """
    chance = random.Random(4)  # where exactly an agent is killed differs all the same
    there: set[int] = set()
    for attempt in range(20):
        producer = produce(path, f"run {attempt}", 100_000)
        assert producer.stdout and producer.stderr
        lines = [producer.stdout.readline() for _ in range(chance.randrange(1, 60))]
        os.kill(producer.pid, signal.SIGKILL)
        # Not communicate(), which would pass over what readline() has read ahead.
        text, errors = "".join(lines) + producer.stdout.read(), producer.stderr.read()
        producer.wait(scaled(60))
        queued, settled = said(text[: text.rfind("\n") + 1])
        with closing(opened()) as memory:
            waiting = {each.sequence for each in memory.waiting(HUB, 0, 1_000_000)}
        assert not errors and not reports and queued
        assert min(queued) > max(there, default=0) and there <= waiting  # of the agents before this one
        assert not settled & waiting and queued - settled - waiting <= {max(queued)}
        assert len(waiting - there - queued) <= 1  # queued, but not said so
        there = waiting
    assert len(there) > 100


# ---- a full disk


def test_a_full_disk(opened: Open, mount: Mount, path: Path, reports: list[str]) -> None:
    """Nothing can be queued or settled: a Failure that says so. What was there is there; with room again all works."""
    disk = folder_of(os.getuid(), path.parents[1])
    mount(disk, "-t", "tmpfs", "-o", "size=1m", "none")
    memory = opened()
    stored(memory, put(memory, A))
    first = put(memory, LOAD)
    fill(disk, b"x" * 4096)
    queued = 0

    def queue_more() -> None:
        nonlocal queued
        while queued < 1000:
            memory.queue(HUB, LOAD, False, lambda id: event(id) * 10, NOW, NEVER)
            queued += 1

    with pytest.raises(Failure, match=r"full") as failed:
        queue_more()
    assert failed.value.reason is Reason.LOCAL and str(path) in str(failed.value)
    for _ in range(2):
        with pytest.raises(Failure, match=r"full|disk|open"):
            memory.queue(HUB, LOAD, False, lambda id: event(id) * 100, NOW, NEVER)
    assert not reports
    assert knows(memory, A, now=NOW + 2 * DAY, refresh_s=9 * DAY)  # though that cannot be noted
    for filler in disk.glob("filler-*"):
        filler.unlink()
    assert names(memory) == ["load"] * (queued + 1) and memory.waiting(HUB, 0, 1)[0].sequence == first
    stored(memory, first)
    put(memory, B)
    memory.close()
    assert names(opened()) == [*["load"] * queued, "facts"] and not reports


def test_no_room_for_a_memory(opened: Open, mount: Mount, path: Path, reports: list[str]) -> None:
    """On a full disk a new memory is a Failure; with room again it is made."""
    disk = folder_of(os.getuid(), path.parents[1])
    mount(disk, "-t", "tmpfs", "-o", "size=256k", "none")
    fill(disk, b"x" * 4096)
    with pytest.raises(Failure, match=r"full|disk|No space") as failed:
        put(opened(), A)
    assert failed.value.reason is Reason.LOCAL and not reports
    for filler in disk.glob("filler-*"):
        filler.unlink()
    memory = opened()
    put(memory, A)
    assert names(memory) == ["facts"]


def test_a_folder_that_is_away_for_a_while(
    opened: Open, path: Path, reports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file can be neither written nor opened again, all is a Failure, and no damage; later it works on."""
    monkeypatch.setattr(module, "_BUSY_S", 0.1)
    memory = opened()
    put(memory, LOAD)
    away = path.parent.with_name("away")
    path.parent.rename(away)
    path.parent.write_text("no folder")
    with closing(sqlite3.connect(away / path.name, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Failure):
            put(memory, A)
        other.execute("ROLLBACK")
    path.parent.unlink()
    away.rename(path.parent)
    with suppress(Failure):
        put(memory, A)
    assert not reports and [each.name for each in path.parent.glob("*damaged*")] == []
    assert names(opened())[0] == "load"


def test_a_memory_that_another_agent_holds(
    opened: Open, path: Path, reports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another agent holds it for too long, and then is gone, that is a Failure and no damage."""
    monkeypatch.setattr(module, "_BUSY_S", 0.1)
    memory = opened()
    put(memory, LOAD)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(Failure, match="locked"):
                put(memory, A)
        assert names(memory) == ["load"]
        other.execute("ROLLBACK")
    put(memory, A)
    assert names(memory) == ["load", "facts"] and not reports


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file in the place of the folder, or a folder in the place of the file, is a Failure that names it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder/memory.db").mkdir(parents=True)
    for path in (tmp_path / "file/memory.db", tmp_path / "folder/memory.db"):
        for read_only in (False, True):
            with only_failures(path):
                Memory(str(path), ignore, read_only).close()
                assert read_only
