"""`view --follow`: what counts as new, when a database is read, and that it goes on until nobody looks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from cf_messaged import views
from cf_messaged.database import Limits, StoreUnavailable, database
from cf_messaged.follow import Follower, Following, Watch
from cf_messaged.journal import KeyChange
from cf_messaged.store import Store
from listener import COMMAND, ROOT, Listener, Node, event
from peers import Socket, scaled

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND


def view(text: str) -> views.View:
    return views.parse("mine", text)


# ---- what is new


def test_a_row_is_new_once() -> None:
    """A row that was there is not shown again; one that was gone meanwhile is."""
    following = Following(view("SELECT a FROM t"), None)
    assert following.new([{"a": 1}, {"a": 2}]) == [{"a": 1}, {"a": 2}]
    assert following.new([{"a": 2}, {"a": 1}, {"a": {"b": [3]}}]) == [{"a": {"b": [3]}}]
    assert following.new([{"a": 1}]) == []
    assert following.new([{"a": 1}, {"a": 2}]) == [{"a": 2}]


def test_equal_rows_are_counted() -> None:
    """Of three equal rows, where there were two, one is new."""
    following = Following(view("SELECT a FROM t"), None)
    following.new([{"a": 1}, {"a": 1}])
    assert following.new([{"a": 1}] * 3) == [{"a": 1}]


def test_an_age_makes_no_row_new() -> None:
    """A column of type age is not compared; any other number is."""
    following = Following(view("-- column s age\nSELECT s, n FROM t"), None)
    following.new([{"s": 1, "n": 1}])
    assert following.new([{"s": 2, "n": 1}]) == []
    assert following.new([{"s": 2, "n": 2}]) == [{"s": 2, "n": 2}]


def test_a_log_ends_with_its_newest_row() -> None:
    """Where there is a limit the rows are turned; as many new ones as it allows may not be all."""
    following = Following(view("-- :limit int = 2\nSELECT a FROM t LIMIT :limit"), 2)
    assert following.new([{"a": 2}, {"a": 1}]) == [{"a": 1}, {"a": 2}]
    new = following.new([{"a": 3}, {"a": 2}])
    assert new == [{"a": 3}] and not following.may_lack(new)
    assert following.may_lack(following.new([{"a": 5}, {"a": 4}]))


@pytest.mark.parametrize("name", sorted(views.names(None)))
def test_time_alone_makes_nothing_new(tmp_path: Path, name: str) -> None:
    """In no built-in view, where nothing came and no node has become silent or a value overdue."""
    store = Store(f"sqlite:///{tmp_path}/store.db")
    kinds = enumerate(("state", "dynamic", "common"), 1)
    said = [event(number, kind, data=number, refresh=86400) for number, kind in kinds]
    changed = [event(number, "static", "os", number) for number in (4, 5)]
    store.add([(one, NOW) for one in said + changed])
    store.note_keys([KeyChange(NOW, "accepted", "web1", "0" * 64)])
    store.close()
    found, following = views.load(name, None), Following(views.load(name, None), None)

    def rows(now_us: int) -> list[views.Row]:
        given = {"alive_within": 86400, "after": 0.001}
        return views.rows(f"sqlite:///{store.name}", found, views.values(found, {}, given, now_us), Limits())

    assert following.new(rows(NOW + SECOND))
    assert following.new(rows(NOW + 1000 * SECOND)) == []


# ---- when it is asked, and what fails


class Script:
    """A view that is asked for in turn at these answers; then nobody reads any more."""

    def __init__(self, sql: str, versions: list[object], *answers: list[views.Row] | Exception) -> None:
        self.asked = 0
        self.shown: list[Any] = []
        self.notes: list[str] = []
        self._answers, self._versions = list(answers), versions
        follower = Follower(view(sql), None, self._ask, self.shown.extend, self.notes.append)
        follower.begin()
        follower.go_on(lambda: self._versions.pop(0), lambda _: bool(self._versions))

    def _ask(self) -> list[views.Row]:
        self.asked += 1
        answer = self._answers[min(self.asked, len(self._answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


ONE, TWO = {"a": 1}, {"a": 2}


def test_it_is_asked_when_something_may_have_changed() -> None:
    """Once where the database stays as it is, and again for each change."""
    script = Script("SELECT a FROM t", [7, 7, 7, 8, 8, 9], [ONE], [ONE], [ONE, TWO])
    assert (script.asked, script.shown, script.notes) == (4, [ONE, TWO], [])


def test_what_rests_on_the_clock_is_always_asked() -> None:
    """A node becomes silent although nothing is written."""
    script = Script("SELECT a FROM t WHERE :now - a > 5", [7, 7, 7], [], [], [ONE])
    assert (script.asked, script.shown) == (4, [ONE])


def test_trouble_is_told_once_and_passes() -> None:
    """What fails is told when it begins, or is another; it is asked again although nothing was written."""
    lost, slow = StoreUnavailable("gone"), views.Refused("slow")
    script = Script("SELECT a FROM t", [7] * 6, [ONE], lost, lost, slow, [ONE, TWO], [ONE])
    assert script.shown == [ONE, TWO]
    told = ["gone; it is asked again each second", "slow; it is asked again each second", "it is answered again"]
    assert script.notes == told


def test_what_fails_at_first_is_an_error() -> None:
    """A name or parameter that is wrong is not asked again."""
    with pytest.raises(views.Refused):
        Script("SELECT a FROM t", [7], views.Refused("no"))


def test_a_change_is_seen(tmp_path: Path) -> None:
    """SQLite tells a transaction of another process, and no other; a file that was replaced is trouble once."""
    url = f"sqlite:///{tmp_path}/store.db"
    store, watch = Store(url), Watch(database(url))
    before = watch.version()
    assert watch.version() == before
    store.add([(event(1), NOW)])
    after = watch.version()
    assert before != after == watch.version()
    store.close()
    os.replace(tmp_path / "store.db", tmp_path / "old.db")
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        watch.version()
    with pytest.raises(StoreUnavailable, match="does not exist"):
        watch.version()
    os.replace(tmp_path / "old.db", tmp_path / "store.db")
    assert watch.version() == watch.version()
    watch.close()


# ---- as a process, beside a listener


class Follows:
    """`cf-messaged view ... --follow` on pipes."""

    def __init__(self, store: Path, *arguments: str) -> None:
        command = [*COMMAND, "view", *arguments, "--follow", "--store", f"sqlite:///{store}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout and self.process.stderr
        self.out, self.err = self.process.stdout, self.process.stderr

    def row(self) -> Any:
        return json.loads(self.out.readline())

    def end(self) -> tuple[int, str]:
        """Ctrl-C; returns the exit code and all that came after what was read."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=scaled(60))
        return self.process.returncode, out + err


Follow = Callable[..., Follows]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    started = Listener(tmp_path)
    yield started
    started.end()


@pytest.fixture
def follow(listener: Listener) -> Iterator[Follow]:
    started: list[Follows] = []

    def start(*arguments: str) -> Follows:
        started.append(Follows(listener.store, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def node(listener: Listener, plain: zmq.Context[Socket]) -> Node:
    return Node(plain, listener.endpoint)


def test_new_rows_appear(node: Node, follow: Follow) -> None:
    """As one object a line, each once, the oldest first; Ctrl-C ends it without a word."""
    node.say(event(1, data="a"))
    node.say(event(2, data="b"))
    follows = follow("history", "--json")
    assert [follows.row()["data"] for _ in range(2)] == ["a", "b"]
    node.say_all([event(number, data=number) for number in range(3, 23)])
    assert [follows.row()["data"] for _ in range(20)] == list(range(3, 23))
    assert follows.end() == (130, "")


def test_a_table_goes_on(node: Node, follow: Follow) -> None:
    """The names of the columns stand above the first rows, and later ones stand below in the same columns."""
    node.say(event(1, name="longer"))
    follows = follow("latest")
    header, first = follows.out.readline(), follows.out.readline()
    node.say(event(2, name="x", data=True))
    second = follows.out.readline()
    assert header.split() == "node kind name data time received age_s overdue alive".split()
    assert [line.index(word) for line, word in ((first, "longer"), (second, "x "))] == [header.index("name")] * 2
    assert header.index("data") == second.index("true") == first.index(" 1 ") + 1


def test_a_node_becomes_silent(node: Node, follow: Follow) -> None:
    """It appears in the view although nothing is written."""
    follows = follow("silent", "--json", "--param", "after=2")
    node.say(event(1))
    assert follows.row()["node"] == "web1"


def test_nobody_reads_any_more(node: Node, follow: Follow) -> None:
    """Where the pipe is closed it ends, although nothing new comes."""
    node.say(event(1))
    follows = follow("nodes")
    assert follows.out.readline().startswith("node")
    follows.out.close()
    assert follows.process.wait(scaled(60)) == 0
    assert follows.err.read() == ""


def test_a_store_that_is_gone_for_a_while(node: Node, listener: Listener, follow: Follow) -> None:
    """One line tells of it and another that it is over; then it goes on, without what it had shown."""
    node.say(event(1))
    follows = follow("history", "--json")
    assert follows.row()["data"] == 1
    os.replace(listener.store, f"{listener.store}.aside")
    trouble = [follows.err.readline()]
    while "does not exist" not in trouble[-1]:
        trouble.append(follows.err.readline())
    os.replace(f"{listener.store}.aside", listener.store)
    assert follows.err.readline().endswith(" history: it is answered again\n")
    assert len(trouble) <= 2 and all("it is asked again each second" in line for line in trouble)
    node.say(event(2, data=2))
    assert follows.row()["data"] == 2


@pytest.mark.parametrize("arguments", [["lates"], ["nodes", "--param", "x=1"]], ids=" ".join)
def test_a_question_that_is_wrong(follow: Follow, arguments: list[str]) -> None:
    """It ends with one line, as without --follow."""
    follows = follow(*arguments)
    out, err = follows.process.communicate(timeout=scaled(60))
    assert (follows.process.returncode, out) == (1, "") and err.startswith("Error: ") and err.count("\n") == 1
