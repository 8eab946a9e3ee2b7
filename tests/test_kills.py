"""Killed at random moments, by SIGKILL: what was acknowledged is in the store, and each event there is once.

MESSAGES_KILLS=200 is how often a listener that twenty producers speak to is killed, and how often a node; a PostgreSQL
is crashed a tenth as often.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any, NamedTuple

import fuzz
from agent import MODULE_PYTHON
from cf_messaging.memory import Memory
from cf_messaging.wire import DUPLICATE, LATER, STORED, event_id
from demo import any_loopback
from listener import ANYWHERE, COMMAND, HISTORY, ROOT
from peers import scaled
from postgres import Server, rows
from test_cfengine import HEADER, TERMINATE, Answer, Child, evaluate, read_answers
from test_information import sql
from test_postgresql import server, wait_for  # noqa: F401 - a fixture
from test_service import Start, start  # noqa: F401 - a fixture

KILLS = int(os.environ.get("MESSAGES_KILLS", "2"))
CRASHES = max(1, KILLS // 10)  # of a PostgreSQL

IDS = (
    "SELECT stream || '-' || substr(CAST(1000000000000 + sequence AS TEXT), 2)"
    " FROM seen JOIN streams ON streams.id = stream_id"
)
ONCE, LOST, TWICE = "neither lost nor twice", "lost", "twice"


def times(number: int) -> str:
    """What became of an event that is so often in the store."""
    return {0: LOST, 1: ONCE}.get(number, TWICE)


# ---- listeners

PRODUCERS = 20
LONGEST_LIFE_S = 0.5  # in which the listener serves, before it is killed


class Row(NamedTuple):
    id: str
    node: str
    name: str
    data: str


class Said(NamedTuple):
    """What a producer said; how often it went on elsewhere; the sequences that were answered, by status."""

    node: str
    stream: str
    said: int
    moves: int
    answers: dict[str, list[int]]

    def rows(self, sequences: Iterable[int]) -> list[Row]:
        """As the store should have these events."""
        return [Row(event_id(self.stream, number), self.node, "load", str(number)) for number in sequences]


class Producer:
    """A producer.py that runs."""

    def __init__(self, number: int, endpoints: Iterable[str]) -> None:
        self.node, self.stream = f"web{number}", os.urandom(16).hex()
        command = [sys.executable, str(ROOT / "tests/producer.py"), self.node, self.stream, *endpoints]
        pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def end(self) -> None:
        """It says nothing new any more."""
        assert self.process.stdin
        self.process.stdin.close()

    def said(self) -> Said:
        """Returns once all is acknowledged, or it has given up."""
        assert self.process.stdout
        text = self.process.stdout.read()
        assert self.process.wait() == 0
        return Said(self.node, self.stream, **json.loads(text))


@contextmanager
def producers(url: str, *endpoints: str) -> Iterator[list[Producer]]:
    """All of them are heard; each endpoint is the first of as many. Killed at its end, however the test ends."""
    with ExitStack() as stack:
        running = []
        for number in range(PRODUCERS):
            first = number % len(endpoints)
            running.append(Producer(number, endpoints[first:] + endpoints[:first]))
            stack.enter_context(running[-1].process)
            stack.callback(running[-1].process.kill)
        wait_until_all_are_heard(url)
        yield running


def wait_until_all_are_heard(url: str) -> None:
    """Returns once something new of each producer is in the store."""

    def heard() -> Counter[str]:
        return Counter(dict(rows(url, "SELECT node, events FROM nodes")))

    before = heard()
    wait_for(lambda: len(heard() - before) == PRODUCERS)


def all_said(producers: list[Producer]) -> list[Said]:
    """Ends them."""
    for producer in producers:
        producer.end()
    return [producer.said() for producer in producers]


class Mortal:
    """A listener that is killed and started again; it is found at the same endpoint then."""

    def __init__(self, start: Start, url: str) -> None:  # noqa: F811
        self.endpoint = f"{any_loopback()}:5309"
        self._start, self._url = start, url
        self.start()

    def start(self) -> None:
        began = monotonic()
        self._listener = self._start("--request", self.endpoint, url=self._url)
        self._start_s = monotonic() - began
        self.lives = True

    def kill(self) -> None:
        self._listener.end(signal.SIGKILL)
        self.lives = False
        fuzz.count("kills", "of a listener that served")

    def kill_soon(self) -> None:
        """At a random moment; and perhaps again, while it starts."""
        sleep(random.uniform(0, LONGEST_LIFE_S))
        self.kill()
        if random.random() < 0.25:
            self._kill_as_it_starts()

    def _kill_as_it_starts(self) -> None:
        command = [*COMMAND, "run", "--store", self._url, *ANYWHERE, "--request", self.endpoint]
        null = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=null, stdout=null, stderr=null, cwd=ROOT) as process:
            sleep(random.uniform(0, self._start_s))
            process.kill()
        fuzz.count("kills", "of a listener that started")


def test_a_killed_listener(start: Start, fresh: Callable[..., str]) -> None:  # noqa: F811
    """What was acknowledged to twenty nodes is in its store, each event once, and nothing that was not said."""
    url = fresh(empty=True)
    listener = Mortal(start, url)
    with producers(url, listener.endpoint) as running:
        for _ in range(KILLS):
            listener.kill_soon()
            listener.start()
        said = all_said(running)
    check_all_said("a listener on " + url.partition(":")[0], said, url)


def test_one_of_two_listeners_is_killed(start: Start, shared: str) -> None:  # noqa: F811
    """All twenty nodes go on with the other one; at last with that alone."""
    listeners = [Mortal(start, shared), Mortal(start, shared)]
    with producers(shared, *(each.endpoint for each in listeners)) as running:
        for _ in range(KILLS):
            killed = random.choice(listeners)
            killed.kill_soon()
            wait_until_all_are_heard(shared)
            killed.start()
        random.choice(listeners).kill()
        said = all_said(running)
    assert sum(one.moves for one in said) >= PRODUCERS / 2  # those of the first one that was killed
    check_all_said("two listeners", said, shared)


def test_a_postgresql_that_crashes(start: Start, server: Server) -> None:  # noqa: F811
    """What its two listeners acknowledged before is there when it is back, and all goes on."""
    url = server.new()
    listeners = [Mortal(start, url), Mortal(start, url)]
    with producers(url, *(each.endpoint for each in listeners)) as running:
        for _ in range(CRASHES):
            sleep(random.uniform(0, LONGEST_LIFE_S))
            server.stop()
            fuzz.count("kills", "of a PostgreSQL")
            server.start()
            wait_until_all_are_heard(url)
        said = all_said(running)
    check_all_said("a crashed server", said, url)


def check_all_said(of: str, producers: list[Said], url: str) -> None:
    """What is kept, seen, latest and counted of the nodes is what they said, and nothing else is there."""
    for one in producers:
        check_said(of, one, url)
    said = {(one.node, one.said) for one in producers}
    total = sum(one.said for one in producers)
    assert rows(url, "SELECT count(*) FROM history") == rows(url, "SELECT count(*) FROM seen") == [(total,)]
    assert set(rows(url, "SELECT node, events FROM nodes")) == said
    assert set(rows(url, "SELECT node, CAST(data AS INTEGER) FROM latest WHERE kind = 'state'")) == said


def check_said(of: str, one: Said, url: str) -> None:
    """The history of a node is what it said, each event once; stored is said of it at most once."""
    answered = {status: Counter(one.rows(one.answers.get(status, []))) for status in (STORED, DUPLICATE, LATER)}
    acknowledged = answered[STORED].keys() | answered[DUPLICATE].keys()
    said = set(one.rows(range(1, one.said + 1)))
    of_it = f"FROM {HISTORY} WHERE kind = 'state' AND node = '{one.node}'"
    there = Counter(Row(*row) for row in rows(url, f"SELECT id, node, name, data {of_it}"))
    for row in said:
        statuses = [f"answered {status}" for status in answered if row in answered[status]]
        fuzz.count(f"events of {of}", *["acknowledged"] * (row in acknowledged), *statuses, times(there[row]))
    for _ in range(one.moves):
        fuzz.count("moves to another endpoint", f"of nodes of {of}")
    assert there.keys() - said == set()
    assert acknowledged - there.keys() == set()
    assert [row for row, number in there.items() if number > 1] == []
    assert said == acknowledged
    assert [row for row, number in answered[STORED].items() if number > 1] == []
    seen = [id for (id,) in rows(url, f"{IDS} WHERE node = '{one.node}'")]
    assert sorted(seen) == sorted(row.id for row in said)


# ---- a node

STATES = [f"load {number}" for number in range(2)]
FACTS = [f"fact {number}" for number in range(4)]

# Notes in the memory file itself, in the same transactions, all that was ever in the queue.
WITNESS = (
    "CREATE TABLE witness (id, kind, name, data)",
    "CREATE TRIGGER witness AFTER INSERT ON queue"
    " BEGIN INSERT INTO witness VALUES (new.id, new.kind, new.name, new.data); END",
)


class Held(NamedTuple):
    """An event that was in the queue; data is JSON."""

    id: str
    kind: str
    name: str
    data: str


class KilledNode:
    """A node under a cf-agent's protocol that keeps state and static promises, run after run."""

    def __init__(self, folder: Path, *endpoints: str) -> None:
        self._memory = folder / "messages/memory.db"
        with closing(Memory(str(self._memory), print)):
            pass
        for statement in WITNESS:
            sql(self._memory, statement)
        self._common: dict[str, Any] = {"endpoint": endpoints, "state_dir": str(folder), "node": "web1"}
        self._common["timeout"] = str(scaled(30))
        # What the last run that was not killed took for all its promises; and without the first, which may load pyzmq.
        self.run_s = [1.0, 1.0]

    def run(
        self, values: dict[str, str], after: int, moment_s: float, kill: Callable[[], None] | None = None
    ) -> tuple[bool, list[Answer]]:
        """Whether it was killed, so long after its first 0 or 1 promises, and what it answered for each until then.

        kill: another one, in its place.
        """
        child = Child([MODULE_PYTHON, str(ROOT / "messages_promise.py")], dict(os.environ))
        requests = self._requests(values)
        for sent in (HEADER, *requests[:after]):
            child.say(sent)
            child.hear(b"\n\n")
        began = monotonic()
        try:
            child.say_last(b"".join(requests[after:]))
            said, complaint = child.process.communicate(timeout=moment_s)
            self.run_s[after] = monotonic() - began
        except subprocess.TimeoutExpired:
            (kill or child.process.kill)()
            said, complaint = child.process.communicate()
        assert complaint == b""
        answers = read_answers(child.heard + said, cut_off=True)
        return child.process.returncode != 0, [each for each in answers if each.reply["operation"] != "terminate"]

    def _requests(self, values: dict[str, str]) -> list[bytes]:
        kinds = dict.fromkeys(STATES, "state") | dict.fromkeys(FACTS, "static")
        promises = [
            evaluate(name, information=kinds[name], payload=value, **self._common) for name, value in values.items()
        ]
        return [*promises, TERMINATE]

    def held(self) -> list[Held]:
        """All that was ever in the queue, in this order."""
        return [Held(*row) for row in sql(self._memory, "SELECT * FROM witness ORDER BY rowid")]

    def waits(self) -> int:
        """How many events are in the queue; from a copy, since to recover is left to the next run."""
        with TemporaryDirectory() as folder:
            copied = shutil.copytree(self._memory.parent, f"{folder}/messages")
            return int(sql(Path(copied) / "memory.db", "SELECT count(*) FROM queue")[0][0])


def values_of(run: int) -> dict[str, str]:
    """In any order: a sample of each state, and of each fact a value that may be that of an earlier run."""
    values = [(name, str(run)) for name in STATES] + [(name, random.choice("AB")) for name in FACTS]
    return dict(random.sample(values, len(values)))


def test_a_killed_node(start: Start, tmp_path: Path) -> None:  # noqa: F811
    """What its queue ever held is in the store once, but for facts that newer ones replaced; delivered is only that."""
    listener = start()
    node = KilledNode(tmp_path / "node", listener.endpoint)
    killed, runs = 0, 0
    while killed < KILLS:
        runs += 1
        killed += killed_at_random(node, values_of(runs), listener.url)
    last = values_of(runs + 1)
    was_killed, answers = node.run(last, 0, scaled(60))
    assert not was_killed and len(answers) == len(last) and node.waits() == 0
    check_delivered(last, answers, listener.url)
    check_all_held(node.held(), listener.url)
    listener.end()
    count_answers(listener.wait_for("ended: "))


def killed_at_random(node: KilledNode, values: dict[str, str], url: str) -> bool:
    """False if the run had come to its end by then."""
    after = random.randrange(2)
    was_killed, answers = node.run(values, after, random.uniform(0, node.run_s[after]))
    check_delivered(values, answers, url)
    if was_killed:
        fuzz.count("kills", "of a node", *["of a node with something in its queue"] * bool(node.waits()))
    return was_killed


def check_delivered(values: dict[str, str], answers: list[Answer], url: str) -> None:
    """What is kept or repaired is in the store, facts as the latest; the listener runs, so that is all."""
    there = rows(url, "SELECT name, data FROM history UNION SELECT name, data FROM latest WHERE kind = 'static'")
    for answer in answers:
        name = answer.reply["promiser"]
        fuzz.count("promises of a node", answer.result)
        assert answer.reply["result_classes"] == [f"{name}_delivered"]
        assert (name, json.dumps(values[name])) in there


def check_all_held(held: list[Held], url: str) -> None:
    """Each sample is in the history once; of each fact the newest value is the latest; nothing else took effect."""
    seen = {id for (id,) in rows(url, IDS)}
    newest = {each.name: each for each in held}
    there = Counter(Held(*row) for row in rows(url, f"SELECT id, kind, name, data FROM {HISTORY}"))
    for each in held:
        replaced = each.kind == "static" and each.id not in seen and newest[each.name] != each
        number = there[each] if each.kind == "state" else int(each.id in seen)
        fuzz.count("events of a node", each.kind, "replaced while it waited" if replaced else times(number))
    assert there == Counter(each for each in held if each.kind == "state")
    assert seen <= {each.id for each in held}
    latest = set(rows(url, "SELECT name, data FROM latest"))
    assert latest == {(each.name, each.data) for each in newest.values()}
    assert seen >= {each.id for each in newest.values()}
    assert rows(url, "SELECT node, events FROM nodes") == [("web1", len(seen))]


def test_a_node_of_two_listeners(start: Start, shared: str, tmp_path: Path) -> None:  # noqa: F811
    """Whichever is killed while it speaks, what it has is delivered within the run, by this one or by the other."""
    listeners = [Mortal(start, shared), Mortal(start, shared)]
    node = KilledNode(tmp_path / "node", *(each.endpoint for each in listeners))
    kills, runs = 0, 0
    while kills < KILLS:
        runs, killed = runs + 1, random.choice(listeners)
        delivered_in_time(node, values_of(runs), killed.kill, shared)
        if not killed.lives:
            kills += 1
            killed.start()
    check_all_held(node.held(), shared)


def delivered_in_time(node: KilledNode, values: dict[str, str], kill: Callable[[], None], url: str) -> None:
    """A run in which somebody else is killed, unless it has come to its end by then."""
    after = random.randrange(2)
    _, answers = node.run(values, after, random.uniform(0, node.run_s[after]), kill)
    check_delivered(values, answers, url)
    assert len(answers) == len(values) and node.waits() == 0


def count_answers(ended: str) -> None:
    """What the listener counted."""
    for status in ("stored", "duplicates"):
        for _ in range(int(re.findall(f"{status} ([0-9]+)", ended)[0])):
            fuzz.count("answers to a node", status)
