"""Killed at random moments, by SIGKILL: what was acknowledged is in the store, and each event there is once.

MESSAGES_KILLS=200 is how often a listener that twenty producers speak to is killed, and then how often a node.
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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import NamedTuple

import fuzz
from agent import MODULE_PYTHON
from cf_messaging.memory import Memory
from cf_messaging.wire import DUPLICATE, LATER, STORED, event_id
from demo import any_loopback
from listener import ANYWHERE, COMMAND, HISTORY, ROOT
from peers import scaled
from test_cfengine import HEADER, TERMINATE, Answer, Child, evaluate, read_answers
from test_information import sql
from test_service import Start, start  # noqa: F401 - a fixture

KILLS = int(os.environ.get("MESSAGES_KILLS", "2"))

IDS = "SELECT stream || '-' || printf('%012d', sequence) FROM seen JOIN streams ON streams.id = stream_id"
ONCE, LOST, TWICE = "neither lost nor twice", "lost", "twice"


def times(number: int) -> str:
    """What became of an event that is so often in the store."""
    return {0: LOST, 1: ONCE}.get(number, TWICE)


# ---- the listener

PRODUCERS = 20
LONGEST_LIFE_S = 0.5  # in which the listener serves, before it is killed


class Row(NamedTuple):
    id: str
    node: str
    name: str
    data: str


class Said(NamedTuple):
    """What a producer said; the sequences that were answered, by status."""

    node: str
    stream: str
    said: int
    answers: dict[str, list[int]]

    def rows(self, sequences: Iterable[int]) -> list[Row]:
        """As the store should have these events."""
        return [Row(event_id(self.stream, number), self.node, "load", str(number)) for number in sequences]


class Producer:
    """A producer.py that runs."""

    def __init__(self, endpoint: str, number: int) -> None:
        self.node, self.stream = f"web{number}", os.urandom(16).hex()
        command = [sys.executable, str(ROOT / "tests/producer.py"), endpoint, self.node, self.stream]
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
def producers(endpoint: str) -> Iterator[list[Producer]]:
    """Killed at its end, however the test ends."""
    with ExitStack() as stack:
        running = []
        for number in range(PRODUCERS):
            running.append(Producer(endpoint, number))
            stack.enter_context(running[-1].process)
            stack.callback(running[-1].process.kill)
        yield running


def killed_while_it_serves(start: Start, endpoint: str) -> float:  # noqa: F811
    """Returns how long it took to start."""
    began = monotonic()
    listener = start("--request", endpoint)
    start_s = monotonic() - began
    sleep(random.uniform(0, LONGEST_LIFE_S))
    listener.end(signal.SIGKILL)
    fuzz.count("kills", "of a listener that served")
    return start_s


def killed_while_it_starts(folder: Path, endpoint: str, start_s: float) -> None:
    command = [*COMMAND, "run", "--store", f"sqlite:///{folder}/store.db", *ANYWHERE, "--request", endpoint]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=null, cwd=ROOT) as process:
        sleep(random.uniform(0, start_s))
        process.kill()
    fuzz.count("kills", "of a listener that started")


def test_a_killed_listener(start: Start, tmp_path: Path) -> None:  # noqa: F811
    """What was acknowledged to twenty nodes is in its store, each event once, and nothing that was not said."""
    endpoint = f"{any_loopback()}:5309"  # where a listener that is started again is found
    with producers(endpoint) as running:
        start_s = killed_while_it_serves(start, endpoint)
        for _ in range(KILLS - 1):
            if random.random() < 0.25:
                killed_while_it_starts(tmp_path, endpoint, start_s)
            else:
                killed_while_it_serves(start, endpoint)
        start("--request", endpoint)
        for producer in running:
            producer.end()
        said = [producer.said() for producer in running]
    check_all_said(said, tmp_path / "store.db")


def check_all_said(producers: list[Said], store: Path) -> None:
    """The history is what was said, each event once; stored is said of it at most once."""
    answered = {
        status: Counter(row for one in producers for row in one.rows(one.answers.get(status, [])))
        for status in (STORED, DUPLICATE, LATER)
    }
    acknowledged = answered[STORED].keys() | answered[DUPLICATE].keys()
    said = {row for one in producers for row in one.rows(range(1, one.said + 1))}
    there = Counter(Row(*row) for row in sql(store, f"SELECT id, node, name, data FROM {HISTORY} WHERE kind = 'state'"))
    for row in said:
        statuses = [f"answered {status}" for status in answered if row in answered[status]]
        acknowledgements = ["acknowledged"] if row in acknowledged else []
        fuzz.count("events of producers", *acknowledgements, *statuses, times(there[row]))
    assert there.keys() - said == set()
    assert acknowledged - there.keys() == set()
    assert [row for row, number in there.items() if number > 1] == []
    assert said == acknowledged
    assert [row for row, number in answered[STORED].items() if number > 1] == []
    check_other_tables(producers, store)


def check_other_tables(producers: list[Said], store: Path) -> None:
    """What is seen, latest and counted of the nodes is the same as the history."""
    ids = {row.id for one in producers for row in one.rows(range(1, one.said + 1))}
    seen = [id for (id,) in sql(store, IDS)]
    assert len(seen) == len(ids) and set(seen) == ids
    said = {(one.node, one.said) for one in producers}
    assert set(sql(store, "SELECT node, events FROM nodes")) == said
    assert set(sql(store, "SELECT node, CAST(data AS INTEGER) FROM latest WHERE kind = 'state'")) == said


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

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._memory = folder / "messages/memory.db"
        with closing(Memory(str(self._memory), print)):
            pass
        for statement in WITNESS:
            sql(self._memory, statement)
        self._common = {"endpoint": endpoint, "timeout": str(scaled(30)), "state_dir": str(folder), "node": "web1"}
        # What the last run that was not killed took for all its promises; and without the first, which may load pyzmq.
        self.run_s = [1.0, 1.0]

    def run(self, values: dict[str, str], after: int, moment_s: float) -> tuple[bool, list[Answer]]:
        """Whether it was killed, so long after its first 0 or 1 promises, and what it answered for each until then."""
        child = Child([MODULE_PYTHON, str(ROOT / "messages_promise.py")], dict(os.environ))
        requests = self._requests(values)
        for sent in (HEADER, *requests[:after]):
            child.say(sent)
            child.hear(b"\n\n")
        began = monotonic()
        try:
            said, complaint = child.process.communicate(b"".join(requests[after:]), timeout=moment_s)
            self.run_s[after] = monotonic() - began
        except subprocess.TimeoutExpired:
            child.process.kill()
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
        killed += killed_at_random(node, values_of(runs), listener.store)
    last = values_of(runs + 1)
    was_killed, answers = node.run(last, 0, scaled(60))
    assert not was_killed and len(answers) == len(last) and node.waits() == 0
    check_delivered(last, answers, listener.store)
    check_all_held(node.held(), listener.store)
    listener.end()
    count_answers(listener.wait_for("ended: "))


def killed_at_random(node: KilledNode, values: dict[str, str], store: Path) -> bool:
    """False if the run had come to its end by then."""
    after = random.randrange(2)
    was_killed, answers = node.run(values, after, random.uniform(0, node.run_s[after]))
    check_delivered(values, answers, store)
    if was_killed:
        fuzz.count("kills", "of a node", *["of a node with something in its queue"] * bool(node.waits()))
    return was_killed


def check_delivered(values: dict[str, str], answers: list[Answer], store: Path) -> None:
    """What is kept or repaired is in the store, facts as the latest; the listener runs, so that is all."""
    there = sql(store, "SELECT name, data FROM history UNION SELECT name, data FROM latest WHERE kind = 'static'")
    for answer in answers:
        name = answer.reply["promiser"]
        fuzz.count("promises of a node", answer.result)
        assert answer.reply["result_classes"] == [f"{name}_delivered"]
        assert (name, json.dumps(values[name])) in there


def check_all_held(held: list[Held], store: Path) -> None:
    """Each sample is in the history once; of each fact the newest value is the latest; nothing else took effect."""
    seen = {id for (id,) in sql(store, IDS)}
    newest = {each.name: each for each in held}
    there = Counter(Held(*row) for row in sql(store, f"SELECT id, kind, name, data FROM {HISTORY}"))
    for each in held:
        replaced = each.kind == "static" and each.id not in seen and newest[each.name] != each
        number = there[each] if each.kind == "state" else int(each.id in seen)
        fuzz.count("events of a node", each.kind, "replaced while it waited" if replaced else times(number))
    assert there == Counter(each for each in held if each.kind == "state")
    assert seen <= {each.id for each in held}
    latest = set(sql(store, "SELECT name, data FROM latest"))
    assert latest == {(each.name, each.data) for each in newest.values()}
    assert seen >= {each.id for each in newest.values()}
    assert sql(store, "SELECT node, events FROM nodes") == [("web1", len(seen))]


def count_answers(ended: str) -> None:
    """What the listener counted."""
    for status in ("stored", "duplicates"):
        for _ in range(int(re.findall(f"{status} ([0-9]+)", ended)[0])):
            fuzz.count("answers to a node", status)
