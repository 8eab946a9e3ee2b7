"""cf-messaged as nodes see it: real processes, real sockets, a real database."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from cf_messaged.budget import INTERVAL_S
from cf_messaged.view_pool import BYTES_TO_A_NODE
from cf_messaging.wire import (
    ANSWERED,
    DUPLICATE,
    LATER,
    MAX_EVENT_BYTES,
    REFUSED,
    STORED,
    Answer,
    Event,
    decode_answer,
    encode_event,
    parse_id,
)
from listener import HISTORY, OTHER_STREAM, Listener, Node, event, question
from peers import Peer, Socket, scaled
from test_cfengine import wait_for

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS i FROM n"
Start = Callable[..., Listener]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts listeners, all with one store, and ends them with the test; settings go to a file of settings."""
    started: list[Listener] = []

    def start(*options: str, folder: Path = tmp_path, url: str | None = None, **settings: Any) -> Listener:
        if settings:
            lines = (
                f"{name} = {str(value).lower() if isinstance(value, bool) else value!r}"
                for name, value in settings.items()
            )
            (tmp_path / "settings.toml").write_text("\n".join(lines))
            options += ("--config", str(tmp_path / "settings.toml"))
        started.append(Listener(folder, *options, url=url))
        return started[-1]

    yield start
    for listener in started:
        listener.end(signal.SIGKILL)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Views of an operator."""
    folder = tmp_path / "views"
    folder.mkdir()
    (folder / "slow.sql").write_text(ENDLESS)
    (folder / "big.sql").write_text("SELECT printf('%.*c', 1000000, 'x') AS big")
    # One step of SQLite, in which it does not look at the clock.
    (folder / "stuck.sql").write_text(
        "SELECT instr(printf('%.*c', 9000000, 'a'), printf('%.*c', 1000000, 'a') || 'b') AS found"
    )
    return folder


def select(listener: Listener, query: str) -> list[Any]:
    connection = sqlite3.connect(listener.store)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def statuses(answers: list[Answer]) -> list[str]:
    return [answer.status for answer in answers]


def test_a_node_is_told_stored_and_sees_it_in_a_view(start: Start, plain: zmq.Context[Socket]) -> None:
    """The loop closes: said, stored, said again a duplicate, and there in a view."""
    listener = start()
    node = Node(plain, listener.endpoint)
    said = event(7, "static", "os", {"name": "debian"})
    stored, duplicate = node.say(said), node.say(said)
    assert (stored.id, stored.status, stored.have, len(stored.store)) == (said.id, STORED, 0, 32)
    assert (duplicate.status, duplicate.have, duplicate.store) == (DUPLICATE, 7, stored.store)
    view = node.ask("latest", {"alive": True})
    assert (view.id, view.status, view.view, view.store) == ("q1", ANSWERED, "latest", stored.store)
    [row] = view.rows
    assert (row["node"], row["name"], row["data"], row["age_s"] >= 0) == ("web1", "os", {"name": "debian"}, True)
    assert view.time >= row["received"]


def test_any_program_can_be_a_node(start: Start, peer: Callable[..., Peer]) -> None:
    """REQ, and DEALER with and without a number, written without a word of this project."""
    endpoint = start().endpoint
    events = [os.fsdecode(encode_event(event(number))) for number in (1, 2, 3)]
    answers = [word for said in events for word in ("--answer", said)]
    for kind in (("req",), ("dealer",), ("dealer", "--number")):
        heard = peer(*kind, "--connect", endpoint, *answers).wait_for(3)
        told = [decode_answer(one.frames[-1]) for one in heard]
        assert sorted(one.id for one in told) == [event(number).id for number in (1, 2, 3)]
        assert set(statuses(told)) == {STORED if kind == ("req",) else DUPLICATE}
        assert {one.frames[:-1] for one in heard} == (
            {()} if kind == ("req",) else {(b"",)} if len(kind) == 1 else {(b"%d" % n, b"") for n in range(3)}
        )


def test_many_in_flight_are_stored_in_groups(start: Start, plain: zmq.Context[Socket]) -> None:
    """What is there at once goes into one transaction; every event is answered under its own number."""
    listener = start()
    node = Node(plain, listener.endpoint)
    answers = node.say_all([event(number) for number in range(1, 1001)])
    assert [answer.id for answer in answers] == [event(number).id for number in range(1, 1001)]
    assert set(statuses(answers)) == {STORED}
    assert [answer.have for answer in answers] == list(range(1000))
    assert listener.end() == 0
    ended = listener.wait_for("ended: received 1000, stored 1000, duplicates 0, refused 0, later 0")
    assert int(ended.split("batches ")[1]) < 500


def test_a_clone_and_a_second_speaker_are_refused(start: Start, plain: zmq.Context[Socket]) -> None:
    """Each with its reason, one line of log, and a counter of its own."""
    listener = start()
    node = Node(plain, listener.endpoint)
    node.say_all([event(1, data=1), event(2, "common", "ntp")])
    clone = node.say(event(1, data=2))
    second = node.say(event(1, "common", "ntp", node="web2", stream=OTHER_STREAM))
    assert clone.status == REFUSED and "clone" in clone.reason
    assert (second.status, second.reason, second.id) == (REFUSED, "promised by web1", event(1, stream=OTHER_STREAM).id)
    listener.wait_for("warning: refused common ntp of web2: promised by web1")
    listener.end()
    listener.wait_for(r"refused 2 \(1 cloned, 1 promised\)")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no event"),
        (b"\xff", "no UTF-8"),
        (b"[" * 10_000, "nested deeper"),
        (encode_event(event())[:-2], "no event"),
        (encode_event(event()).replace(b"load", b"x" * 10_000), "MAX_NAME_BYTES"),
        (encode_event(event()).replace(b"static", b"gossip").replace(b"state", b"gossip"), "unsupported type"),
        (b" " * (MAX_EVENT_BYTES + 1), "bytes, where an event may have"),
    ],
)
def test_bad_input_is_refused_and_harms_nobody(
    start: Start, plain: zmq.Context[Socket], body: bytes, reason: str
) -> None:
    """The reason says what is wrong; others are served, nothing is stored, and the log has one line."""
    listener = start()
    node = Node(plain, listener.endpoint)
    refused = node.say(body)
    assert (refused.status, refused.have) == (REFUSED, 0) and reason in refused.reason
    assert select(listener, "SELECT count(*) FROM latest") == [(0,)]
    assert node.say(event()).status == STORED
    listener.end()
    assert len(listener.heard) == 3, listener.heard


def test_messages_of_other_shapes_are_refused(start: Start, plain: zmq.Context[Socket]) -> None:
    """Without the empty frame, or with several frames after it."""
    node = Node(plain, start().endpoint)
    node.socket.send_multipart([encode_event(event())])
    [bare] = node.socket.recv_multipart()
    assert "no empty frame" in decode_answer(bare).reason
    node.socket.send_multipart([b"5", b"", encode_event(event()), b"more"])
    number, empty, answer = node.socket.recv_multipart()
    assert (number, empty) == (b"5", b"") and "2 frames" in decode_answer(answer).reason


def test_who_says_far_too_much_is_cut_off_alone(start: Start, plain: zmq.Context[Socket]) -> None:
    """A frame of 20 MB ends its own connection; others are served."""
    endpoint = start().endpoint
    Node(plain, endpoint).send(b" " * 20_000_000)
    assert Node(plain, endpoint).say(event()).status == STORED


def test_hostile_strings_are_only_text(start: Start, plain: zmq.Context[Socket]) -> None:
    """SQL, markup and control characters in any string come back as they were, and log lines stay lines."""
    hostile = "'; DROP TABLE latest; --\"\\ [bold]\x1b[2J\n$(sys.workdir) \u202e"
    listener = start()
    node = Node(plain, listener.endpoint)
    name = hostile.translate({27: None, 10: None})
    said = event(1, "static", name, {hostile: hostile})._replace(policy=hostile, handle=hostile)
    assert statuses([node.say(said), node.say(event(2, "static", name))]) == [STORED, STORED]
    assert [row["after"] for row in node.ask("changes", {"name": name}).rows] == [1]
    assert node.ask("latest", {"name": hostile}).rows == []
    refused = node.ask(name)
    assert refused.status == REFUSED and refused.reason.startswith("no view ''; DROP")
    assert node.say(event(3)).status == STORED
    line = listener.wait_for("static information")
    assert "\\u202e" in line and "\x1b" not in line


def test_questions_that_cannot_be_answered(start: Start, plain: zmq.Context[Socket]) -> None:
    """An unknown view, an unknown parameter and a wrong type are refused with what is allowed."""
    node = Node(plain, start().endpoint)
    for view, parameters, reason in (
        ("lates", {}, "did you mean 'latest'?"),
        ("latest", {"nod": "a"}, "did you mean 'node'?"),
        ("latest", {"alive": [1]}, "allowed is true or false"),
    ):
        answer = node.ask(view, parameters)
        assert answer.status == REFUSED and reason in answer.reason


def test_what_is_stored_can_be_shown(start: Start, plain: zmq.Context[Socket]) -> None:
    """Data as deeply nested as is accepted fits into the answer to a view, so that one node cannot spoil it for all."""
    node = Node(plain, start().endpoint)
    data: list[Any] = []
    for _ in range(60):
        data = [data]
    assert node.say(event(1, data=data)).status == STORED
    assert node.say(event(2, data=[data])).status == REFUSED
    assert [row["data"] for row in node.ask("latest").rows] == [data]


def test_a_slow_view_holds_up_nobody(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """While a view runs until it is cut, events are acknowledged and other views answered."""
    endpoint = start(views_dir=str(own), view_timeout_s=3).endpoint
    asking, saying = Node(plain, endpoint), Node(plain, endpoint)
    asking.send(question("slow"))
    acknowledged = answered = 0
    while not asking.socket.poll(0):
        acknowledged += saying.say(event(acknowledged + 1)).status == STORED
        if acknowledged == 5:
            answered = saying.ask("nodes").status == ANSWERED
    _, cut = asking.receive()
    assert cut.status == REFUSED and cut.reason == "view 'slow' took longer than 3 s: ask for less"
    assert acknowledged > 10 and answered


def test_a_stuck_view_is_killed(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """A view that does not end by itself ends with its process; the next view has another one."""
    node = Node(plain, start(views_dir=str(own), view_timeout_s=0.5, views_at_once=1).endpoint)
    for _ in range(2):
        stuck = node.ask("stuck")
        assert stuck.status == REFUSED and "took longer than 0.5 s: its process was killed" in stuck.reason
    assert node.ask("nodes").status == ANSWERED


def test_a_process_of_views_that_ends_by_itself(start: Start, plain: zmq.Context[Socket]) -> None:
    """Who was answered by it before is not answered again; the next view has another one."""
    listener = start(views_at_once=1)
    node = Node(plain, listener.endpoint)
    assert node.ask("nodes").status == ANSWERED
    command = ["pgrep", "-P", str(listener.process.pid), "-f", "spawn_main"]
    process = int(subprocess.run(command, check=True, capture_output=True).stdout)
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{process}"))  # the listener has seen it
    assert node.ask("nodes").status == ANSWERED
    assert listener.end() == 0
    assert "views answered 2" in listener.heard[-1] and "refused 0" in listener.heard[-1]


@pytest.mark.parametrize("left", [1, 2, 4])
def test_a_process_of_views_that_cannot_be_started(start: Start, plain: zmq.Context[Socket], left: int) -> None:
    """Where descriptors run out, at its pipe or after that, who asks is told; once there are some, all goes on."""
    listener = start()
    node = Node(plain, listener.endpoint)
    assert node.say(event(1)).status == STORED
    with few_descriptors(listener, left):
        told = node.ask("nodes")
        assert told.status == LATER and "the process that runs views cannot be asked" in told.reason
        assert "Too many open files" in told.reason
        assert node.say(event(2)).status == STORED
    assert node.ask("nodes").status == ANSWERED


@contextmanager
def few_descriptors(listener: Listener, left: int) -> Iterator[None]:
    """So many more it may open."""
    pid = listener.process.pid
    allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    last = next(itertools.islice((number for number in itertools.count() if number not in taken), left - 1, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (last + 1, allowed[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)


def test_parameters_of_a_view_are_bounded(start: Start, plain: zmq.Context[Socket]) -> None:
    """More than the pipe to its process takes at once would hold up the listener until that has started."""
    node = Node(plain, start().endpoint)
    refused = node.ask("latest", {"node": "x" * 40_000})
    assert refused.status == REFUSED and "the parameters of view 'latest' have more than 32768" in refused.reason


def test_views_are_cut_by_rows_and_bytes(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """A view that is too large is refused with its limit."""
    node = Node(plain, start(views_dir=str(own), view_max_rows=2, view_max_bytes=5000).endpoint)
    node.say_all([event(number, node=f"web{number}") for number in (1, 2, 3)])
    assert node.ask("nodes").reason == "view 'nodes' has more than 2 rows: ask for less"
    assert node.ask("big").reason == "view 'big' has more than 5000 bytes: ask for less"


def test_the_largest_view_fits_into_an_answer(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """Rows that grow when they are written as JSON are refused if the answer would be too large."""
    (own / "quotes.sql").write_text("SELECT printf('%.*c', 10000000, '\"') AS big")
    node = Node(plain, start(views_dir=str(own)).endpoint)
    refused = node.ask("quotes")
    assert refused.status == REFUSED and "MAX_ANSWER_BYTES" in refused.reason
    assert len(node.ask("big").rows[0]["big"]) == 1_000_000


def test_views_answered_to_a_node_are_bounded(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """It is told to come later, with the reason; others are answered."""
    listener = start(views_dir=str(own))
    greedy, other = Node(plain, listener.endpoint), Node(plain, listener.endpoint)
    asked = [greedy.ask("big") for _ in range(BYTES_TO_A_NODE // 1_000_000 + 2)]
    assert set(statuses(asked[:-1])) == {ANSWERED}
    assert asked[-1].status == LATER and asked[-1].reason == "too many bytes of views were answered in this minute"
    assert 0 < asked[-1].retry_after <= INTERVAL_S
    assert other.ask("nodes").status == ANSWERED and greedy.say(event(1)).status == STORED


def test_a_node_that_does_not_read_stops_nobody(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """Answers that it does not take are dropped and counted; all others are served."""
    listener = start(views_dir=str(own))
    deaf, other = Node(plain, listener.endpoint), Node(plain, listener.endpoint)
    deaf.socket.rcvhwm, deaf.socket.rcvbuf = 1, 4096  # of the connections that are made from now on
    deaf.socket.disconnect(listener.endpoint)
    deaf.socket.connect(listener.endpoint)
    for _ in range(20):  # more than the network holds
        deaf.send(question("big"))
    deaf.send(event(1, node="deaf"))
    served_until_stored(other, event(1))
    assert other.ask("nodes").status == ANSWERED  # so all those before it were, but for one at most
    for _ in range(4000):
        deaf.send(event(1, node="deaf"))
    deaf.send(event(2, node="deaf"))
    served_until_stored(other, event(2))
    assert listener.end() == 0
    assert int(listener.wait_for("answers dropped").split("answers dropped ")[1].split(",")[0]) > 0


def served_until_stored(node: Node, wanted: Event) -> None:
    """Another node is served, events and views alike, until the listener has this event of the deaf one."""
    for number in itertools.count(parse_id(wanted.id)[1] * 1000):
        assert node.say(event(number)).status == STORED
        if wanted.id in {row["id"] for row in node.ask("history", {"node": "deaf"}).rows}:
            return


def test_a_node_that_left_stops_nobody(start: Start, plain: zmq.Context[Socket]) -> None:
    """Events of nodes that are gone before their answer are stored all the same."""
    listener = start()
    for number in range(1, 21):
        gone = Node(plain, listener.endpoint)
        assert gone.say(event(2 * number)).status == STORED
        gone.send(event(2 * number + 1))
        gone.socket.close(linger=int(scaled(10) * 1000))
    node = Node(plain, listener.endpoint)
    assert statuses([node.say(event(1)), node.say(event(1))]) == [STORED, DUPLICATE]


# ---- a store that is not healthy


def test_a_locked_database_is_answered_later(start: Start, plain: zmq.Context[Socket]) -> None:
    """With a reason and a time; once it is free the same event is stored. Each is one line of log."""
    listener = start()
    node = Node(plain, listener.endpoint)
    lock = sqlite3.connect(listener.store, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        later = node.say(event())
        assert later.status == LATER and "another program holds it locked" in later.reason and later.retry_after > 0
    lock.close()
    assert node.say(event()).status == STORED
    listener.wait_for("warning: the store is there again")
    assert len([line for line in listener.heard if "nothing can be stored" in line]) == 1


def test_a_deleted_database_is_noticed(start: Start, plain: zmq.Context[Socket]) -> None:
    """Nothing is acknowledged into a file that is gone; then a new store begins, which its id tells."""
    listener = start()
    node = Node(plain, listener.endpoint)
    before = node.say(event(1))
    listener.store.unlink()
    stored = node.say(event(2))
    if stored.status == LATER:  # else it was noticed before, when the listener looked for what is too old
        assert stored.store == before.store
        stored = node.say(event(2))
    assert stored.status == STORED and stored.store != before.store
    assert select(listener, f"SELECT id FROM {HISTORY}") == [(event(2).id,)]
    assert [row["id"] for row in node.ask("history").rows] == [event(2).id]


def test_a_full_disk_is_answered_later(start: Start, plain: zmq.Context[Socket], tmp_path: Path) -> None:
    """With the reason; once there is room the same event is stored, and all that was acknowledged is there."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        _fill_and_make_room(start(folder=folder), plain, folder / "ballast")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill_and_make_room(listener: Listener, plain: zmq.Context[Socket], ballast: Path) -> None:
    ballast.write_bytes(b"x" * 1_000_000)
    node = Node(plain, listener.endpoint)
    number = 0
    answer = node.say(event(1, data="x" * 50_000))
    while answer.status == STORED:
        number += 1
        answer = node.say(event(number + 1, data="x" * 50_000))
    assert (number > 3, answer.status) == (True, LATER) and "the disk is full: make room" in answer.reason
    listener.wait_for("error: nothing can be stored: .*the disk is full: make room")
    ballast.unlink()
    assert node.say(event(number + 1, data="x" * 50_000)).status == STORED
    assert select(listener, f"SELECT count(*), count(DISTINCT id) FROM {HISTORY}") == [(number + 1, number + 1)]


# ---- its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_was_acknowledged_outlives_the_listener(
    start: Start, plain: zmq.Context[Socket], number: signal.Signals
) -> None:
    """Ended in the middle of a load: every acknowledged event is in the store, and after a second try each once."""
    listener = start()
    node = Node(plain, listener.endpoint)
    events = [event(sequence) for sequence in range(1, 2001)]
    for one in events:
        node.send(one)
    acknowledged = {node.receive()[1].id for _ in range(100)}
    code = listener.end(number)
    assert code == (-9 if number == signal.SIGKILL else 0)
    while node.socket.poll(int(scaled(0.2) * 1000)):
        acknowledged.add(node.receive()[1].id)
    assert acknowledged <= {id for (id,) in select(listener, f"SELECT id FROM {HISTORY}")}
    again = Node(plain, start().endpoint).say_all(events)
    assert set(statuses(again)) <= {STORED, DUPLICATE}
    assert select(listener, f"SELECT count(*), count(DISTINCT id) FROM {HISTORY}") == [(2000, 2000)]


def test_a_signal_ends_it_at_once_when_nothing_happens(start: Start, own: Path, plain: zmq.Context[Socket]) -> None:
    """Idle, or with a view that runs for long: its end is clean, with its counters as the last line."""
    idle = start()
    assert idle.end() == 0
    assert "ended: received 0" in idle.heard[-1]
    busy = start(views_dir=str(own), view_timeout_s=600)
    Node(plain, busy.endpoint).send(question("slow"))
    assert Node(plain, busy.endpoint).say(event()).status == STORED
    assert busy.end() == 0


def test_lines_of_the_log(start: Start) -> None:
    """One line each, with the time in RFC 3339 and UTC."""
    listener = start()
    listener.end()
    assert all(line.endswith("\n") and line[10] == "T" and line[26:28] == "Z " for line in listener.heard)


def test_insecure_is_a_warning_at_each_start(start: Start, plain: zmq.Context[Socket]) -> None:
    """A wildcard address is served with --insecure, and the log says what that means."""
    listener = start("--request", "tcp://*:*", "--insecure")
    listener.wait_for("warning: --insecure: everybody who reaches .* can say and read everything")
    port = listener.endpoint.rsplit(":", 1)[1]
    assert Node(plain, f"tcp://127.0.0.1:{port}").say(event()).status == STORED


def test_other_local_endpoints(start: Start, plain: zmq.Context[Socket], tmp_path: Path) -> None:
    """ipc:// is served like loopback."""
    listener = start("--request", f"ipc://{tmp_path}/s")
    assert listener.endpoint == f"ipc://{tmp_path}/s"
    assert Node(plain, listener.endpoint).say(event()).status == STORED
