"""The sockets of a cf-messaged: what is said on each, who is held up by whom, and where each can be bound."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import sleep

import pytest
import zmq

import listener as module
import zmtp
from agent import Agent
from cf_messaged import sockets
from cf_messaged.config import Config
from cf_messaged.sockets import REQUEST, Sockets, receive
from cf_messaging.wire import LATER, MAX_EVENT_BYTES, STORED, Event, encode_event
from listener import COMMAND, OTHER_STREAM, ROLES, TELLS, Listener, Node, Teller, cf_messaged, event, question
from peers import Socket, scaled
from test_cfengine import wait_for
from test_failures import policy
from test_information import says
from test_metrics import scrape
from test_service import Start, select, start  # noqa: F401 - a fixture

A_PAIR = ("--pair", "tcp://127.0.0.1:*")
WITH_METRICS = ("--metrics", "127.0.0.1:0")

each_unanswered = pytest.mark.parametrize("role", TELLS)
each_role = pytest.mark.parametrize("role", [*ROLES, "pair"])
Flood = Callable[[int, str, list[bytes]], None]


@pytest.fixture
def running(start: Start) -> Listener:  # noqa: F811
    """A listener with all its sockets."""
    return start(*A_PAIR, *WITH_METRICS)


def names(listener: Listener) -> list[str]:
    """Of the values that it has."""
    return [name for (name,) in select(listener, "SELECT name FROM latest ORDER BY name")]


def count_of(listener: Listener, name: str, label: str = "") -> int:
    """A counter, as it is now."""
    return int(scrape(listener.endpoints["metrics"])[f"cf_messaged_{name}_total", label])


# ---- what is said


@each_unanswered
def test_what_is_said_is_stored(running: Listener, plain: zmq.Context[Socket], role: str) -> None:
    """Where nobody answers too: views show it, and it is counted by its socket."""
    Teller(plain, running, role).tell(*(event(number, data={"load": number}) for number in (1, 2, 3)))
    wait_for(lambda: count_of(running, "stored") == 3)
    node = Node(plain, running.endpoint)
    assert [row["data"] for row in node.ask("history", {"name": "load"}).rows] == [{"load": n} for n in (3, 2, 1)]
    assert [(row["node"], row["data"]) for row in node.ask("latest").rows] == [("web1", {"load": 3})]
    assert count_of(running, "received", role) == 3 and count_of(running, "later") == 0


@each_unanswered
def test_what_is_said_twice_counts_once(running: Listener, plain: zmq.Context[Socket], role: str) -> None:
    """By whichever socket it came first; what another one says by the same id is refused."""
    node, teller = Node(plain, running.endpoint), Teller(plain, running, role)
    assert node.say(event(1)).status == STORED
    teller.tell(event(1), event(1, data="another"), event(2))
    wait_for(lambda: count_of(running, "stored") == 2)
    assert (count_of(running, "duplicates"), count_of(running, "refused", "cloned")) == (1, 1)
    running.wait_for("refused state load of web1: .* a clone")


def test_real_agents_are_heard_on_every_socket(running: Listener, agent: Agent) -> None:
    """State that a cf-agent pushes, publishes, and says as a pair is stored."""
    promises = {
        f"by_{role}": says("state", running.endpoints[role], f'"{role}"', f'pattern => "{role}", node => "web1"')
        for role in TELLS
    }
    run = agent.run(policy(promises))
    assert {f"by_{role}_sent" for role in TELLS} <= run.classes and not run.errors
    wait_for(lambda: names(running) == ["by_pair", "by_publish", "by_push"])
    assert {(row["name"], row["data"]) for row in running.view("latest")} == {(f"by_{role}", role) for role in TELLS}


def test_one_pair_after_the_other(running: Listener, plain: zmq.Context[Socket]) -> None:
    """Each agent run is another peer: when one has left, the next is heard. What it says before that may be lost."""

    def is_heard(number: int) -> bool:
        pair = Teller(plain, running, "pair")
        pair.tell(event(number))
        sleep(0.2)  # in which it would be heard
        pair.socket.close(linger=0)
        return count_of(running, "stored") == number

    for number in range(1, 6):
        wait_for(partial(is_heard, number))


# ---- what is no event

EVENT = encode_event(event())
BAD = {
    "empty": (b"", "no event"),
    "no UTF-8": (b"\xff", "no UTF-8"),
    "deep": (b"[" * 10_000, "nested deeper"),
    "cut": (EVENT[:-2], "no event"),
    "too large": (b" " * (MAX_EVENT_BYTES + 1), "bytes, where an event may have"),
    "unknown type": (EVENT.replace(b"messages.state", b"messages.gossip"), "unsupported type"),
    "question": (encode_event(question("nodes")), "q1: a question for a view, where nobody is answered"),
}


@each_unanswered
def test_what_is_no_event_is_refused(running: Listener, plain: zmq.Context[Socket], role: str) -> None:
    """Each is one line of log and is counted; what is sound before, between and behind is stored."""
    teller = Teller(plain, running, role)
    for number, (body, _) in enumerate(BAD.values(), 1):
        teller.tell(event(number, name=f"sound {number}"), body)
    teller.tell(event(100, name="sound"))
    wait_for(lambda: count_of(running, "stored") == len(BAD) + 1)
    assert count_of(running, "refused", "malformed") == len(BAD)
    for _, reason in BAD.values():
        running.wait_for(f"warning: refused .*{reason}")
    assert len([line for line in running.heard if "warning" in line]) == len(BAD)


@each_unanswered
def test_frames_of_another_number_are_refused(running: Listener, plain: zmq.Context[Socket], role: str) -> None:
    """An envelope, as of a request; a topic too few or too many."""
    teller, allowed = Teller(plain, running, role), 2 if role == "publish" else 1
    for frames in range(1, 4):
        if frames != allowed:
            teller.socket.send_multipart([b""] * (frames - 1) + [EVENT])
    teller.tell(event(2))
    wait_for(lambda: count_of(running, "stored") == 1)
    for frames in {1, 2, 3} - {allowed}:
        running.wait_for(f"refused a message without an id: {frames} frames?, where {allowed}")
    assert count_of(running, "refused", "malformed") == 2 and count_of(running, "stored") == 1


@each_unanswered
def test_who_says_far_too_much_is_cut_off_alone(running: Listener, plain: zmq.Context[Socket], role: str) -> None:
    """A frame of 20 MB ends its own connection; others are heard on the same socket, and on the others."""
    Teller(plain, running, role).tell(b" " * 20_000_000)
    if role == "pair":
        wait_for(lambda: _is_heard(running, plain, role))
    else:
        Teller(plain, running, role).tell(event(1))
    assert Node(plain, running.endpoint).say(event(2)).status == STORED
    wait_for(lambda: count_of(running, "stored") == 2)
    assert count_of(running, "refused", "malformed") == 0


def _is_heard(listener: Listener, plain: zmq.Context[Socket], role: str) -> bool:
    """Of a pair, which is not while another one is connected."""
    pair = Teller(plain, listener, role)
    pair.tell(event(1))
    heard = bool(pair.socket.poll(0)) or count_of(listener, "stored") == 1
    pair.socket.close()
    return heard


def test_a_subscriber_that_says_events_is_not_heard(running: Listener, plain: zmq.Context[Socket]) -> None:
    """What comes to the socket that publishes is a subscription, or nothing at all."""
    subscriber = plain.socket(zmq.XSUB)
    subscriber.connect(running.endpoints["subscribe"])
    subscriber.send(EVENT)
    subscriber.send_multipart([b"\1state/", EVENT])
    subscriber.send(b"\1state/load/web1/")
    Node(plain, running.endpoint).say(event(2, data="said"))
    assert subscriber.poll(60_000) and json.loads(subscriber.recv_multipart()[1])["data"] == "said"
    assert names(running) == ["load"] and not [line for line in running.heard if "bug" in line]


# ---- who is gone, or takes nothing

# A listener that is held up, by its disk say, while a node that has said more than a pipe takes leaves.
HELD_UP = """
import time, zmq
from cf_messaged import sockets
from cf_messaged.config import Config
sockets.GONE_AFTER_S = 3
bound = sockets.Sockets(Config(request="tcp://127.0.0.1:*", push="off", publish="off", subscribe="off"))
router = bound.get(sockets.REQUEST)
context = zmq.Context()
node = context.socket(zmq.DEALER)
node.connect(bound.endpoints["request"])
for _ in range(10 * sockets.RECEIVE_HIGH_WATER_MARK):
    node.send_multipart([b"", b"an event"])
assert router.poll(60_000)
router.send_multipart([sockets.receive(router)[0][0], b"", b"an answer that it does not read"])
node.close(linger=0)
context.term()
time.sleep(3 * sockets.GONE_AFTER_S)
while router.poll(100):
    sockets.receive(router)
print("goes on")
"""


def test_a_node_that_leaves_while_the_listener_is_held_up() -> None:
    """It costs nothing but its answers; with heartbeats of ZMTP, libzmq would abort the process."""
    command = [sys.executable, "-c", HELD_UP]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=module.ROOT, timeout=scaled(60))
    assert (ended.stdout, ended.stderr) == ("goes on\n", "")


def test_who_takes_nothing_of_what_it_is_answered_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it says something now and then: else all that it is answered would stay in memory."""
    monkeypatch.setattr(sockets, "GONE_AFTER_S", 3)
    bound = Sockets(Config(request="tcp://127.0.0.1:*", push="off", publish="off", subscribe="off"))
    router = bound.get(REQUEST)
    assert router
    with socket.create_connection(("127.0.0.1", int(bound.endpoints["request"].rsplit(":")[-1]))) as deaf:
        deaf.sendall(zmtp.greeting())
        assert len(deaf.recv(64, socket.MSG_WAITALL)) == 64
        deaf.sendall(zmtp.ready(b"DEALER") + zmtp.message("3.0", [b"", b"a question"]))
        assert router.poll(int(scaled(30) * 1000))
        peer = receive(router)[0][0]
        for _ in range(20):
            router.send_multipart([peer, b"", b"x" * 1_000_000], zmq.DONTWAIT)
        wait_for(lambda: is_cut_off(deaf))
    bound.close()


def is_cut_off(peer: socket.socket) -> bool:
    try:
        peer.sendall(zmtp.message("3.0", [b"", b"another one"]))
    except ConnectionError:
        return True
    return False


# ---- nobody is held up by others

# Says the same without end, and takes what is answered. Arguments: kind of socket, endpoint, a file of each frame.
FLOOD = """
import sys, zmq
socket = zmq.Context().socket(int(sys.argv[1]))
socket.connect(sys.argv[2])
frames = [open(path, "rb").read() for path in sys.argv[3:]]
while True:
    socket.send_multipart(frames)
    while int(sys.argv[1]) == zmq.DEALER and socket.poll(0):
        socket.recv_multipart()
"""


@pytest.fixture
def flood(tmp_path: Path) -> Iterator[Flood]:
    """Starts a process that says these frames without end."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(kind: int, endpoint: str, frames: list[bytes]) -> None:
        paths = [tmp_path / f"frame{number}" for number in range(len(frames))]
        for path, frame in zip(paths, frames, strict=True):
            path.write_bytes(frame)
        started.append(subprocess.Popen([sys.executable, "-c", FLOOD, str(kind), endpoint, *map(str, paths)]))

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("body", [EVENT, b"no event"], ids=["sound", "malformed"])
@each_unanswered
def test_a_flood_holds_up_no_request(
    running: Listener,
    plain: zmq.Context[Socket],
    flood: Flood,
    role: str,
    body: bytes,
) -> None:
    """While one says all that it can where nobody answers, requests and views are answered."""
    flood(TELLS[role], running.endpoints[role], [b"topic", body] if role == "publish" else [body])
    wait_for(lambda: count_of(running, "received", role) > 1000)
    before = count_of(running, "received", role)
    node = Node(plain, running.endpoint)
    for number in range(1, 31):
        assert node.say(event(number, stream=OTHER_STREAM, name="mine")).status == STORED
    assert [row["data"] for row in node.ask("latest", {"name": "mine"}).rows] == [1]
    wait_for(lambda: count_of(running, "received", role) > before)  # it still says


@each_unanswered
def test_a_flood_of_requests_holds_up_nobody(
    running: Listener, plain: zmq.Context[Socket], flood: Flood, role: str
) -> None:
    """While one requests all that it can, what is said on the other sockets is stored."""
    flood(zmq.DEALER, running.endpoint, [b"", EVENT])
    wait_for(lambda: count_of(running, "received", "request") > 1000)
    before = count_of(running, "received", "request")
    Teller(plain, running, role).tell(*(event(number, stream=OTHER_STREAM, name="mine") for number in range(1, 31)))
    wait_for(lambda: count_of(running, "received", role) == 30)
    wait_for(lambda: "mine" in names(running) and count_of(running, "stored") == 31)
    wait_for(lambda: count_of(running, "received", "request") > before)  # it still says


# ---- a store that is not there


@each_unanswered
def test_what_is_said_while_nothing_can_be_stored_is_lost(
    running: Listener, plain: zmq.Context[Socket], role: str
) -> None:
    """One line of log says so when it begins, and one how many were lost when it is over; they are counted."""
    node, teller = Node(plain, running.endpoint), Teller(plain, running, role)
    lock = sqlite3.connect(running.store, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    teller.tell(event(1, name="lost"), event(2, name="lost"))
    assert node.say(event(3)).status == LATER
    wait_for(lambda: count_of(running, "lost") == 2)
    running.wait_for("error: nothing can be stored: .* locked.*; what is pushed, published or said by a pair is lost")
    lock.close()
    assert node.say(event(3)).status == STORED
    running.wait_for("warning: the store is there again: .*; lost since the start: 2")
    teller.tell(event(4, name="stored"))
    wait_for(lambda: names(running) == ["load", "stored"])
    assert count_of(running, "later") == 3
    assert len([line for line in running.heard if "nothing can be stored" in line]) == 1


# ---- where they are bound


@pytest.mark.parametrize("role", ROLES[1:])
def test_a_socket_may_be_off(start: Start, plain: zmq.Context[Socket], role: str) -> None:  # noqa: F811
    """Then it is not among the endpoints that are printed; all others are served."""
    running = start(f"--{role}", "off")
    assert running.endpoints.keys() == {*ROLES} - {role}
    for teller in (Teller(plain, running, each) for each in running.endpoints.keys() & TELLS.keys()):
        teller.tell(event(1))
    assert Node(plain, running.endpoint).say(event(2)).status == STORED
    wait_for(lambda: select(running, "SELECT events FROM nodes") == [(2,)])
    assert running.end() == 0


def test_without_requests_nothing_is_started(tmp_path: Path) -> None:
    """The line says why."""
    done = cf_messaged("run", "--store", f"sqlite:///{tmp_path}/s.db", "--request", "off")
    assert (done.returncode, done.stdout) == (1, "")
    assert "request is 'off': without it nobody could be answered" in done.stderr


def test_a_pair_and_metrics_are_off_by_default(start: Start) -> None:  # noqa: F811
    """Each of the others has a port of its own, printed in the order of the settings."""
    running = start()
    assert list(running.endpoints) == list(ROLES)
    assert len(set(running.endpoints.values())) == len(ROLES)
    assert all(endpoint.rpartition(":")[2].isdigit() for endpoint in running.endpoints.values())


def refused(folder: Path, *options: str) -> str:
    """The one line of a listener that does not start; what is not among the options is at any port."""
    others = [word for each in (*ROLES, "pair") for word in (f"--{each}", "tcp://127.0.0.1:*")]
    done = cf_messaged("run", "--store", f"sqlite:///{folder}/s.db", *others, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr


@each_role
def test_a_port_that_is_taken(tmp_path: Path, role: str) -> None:
    """The line names the endpoint and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        line = refused(tmp_path, f"--{role}", endpoint)
    assert line == f"Error: cannot listen on {endpoint} for {role}: Address already in use\n"


def test_a_port_of_metrics_that_is_taken(tmp_path: Path) -> None:
    """Likewise; and the listener ends, though its other sockets were bound."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused(tmp_path, "--metrics", address)
    assert line == f"Error: cannot serve metrics on {address}: Address already in use\n"


def test_a_path_that_is_taken(start: Start, plain: zmq.Context[Socket], tmp_path: Path) -> None:  # noqa: F811
    """A second listener takes nothing away from the first; a path that one left behind is no hindrance."""
    endpoint = f"ipc://{tmp_path}/s"
    first = start("--request", endpoint)
    line = refused(tmp_path, "--request", endpoint)
    assert line == f"Error: cannot listen on {endpoint} for request: Address already in use\n"
    assert Node(plain, endpoint).say(event(1)).status == STORED
    first.end(9)
    assert (tmp_path / "s").exists()
    start("--request", endpoint)
    assert Node(plain, endpoint).say(event(2)).status == STORED


def test_two_settings_with_one_endpoint(tmp_path: Path) -> None:
    """The line names both."""
    endpoint = f"ipc://{tmp_path}/s"
    line = refused(tmp_path, "--push", endpoint, "--subscribe", endpoint)
    assert line == f"Error: push and subscribe are both '{endpoint}': each needs an endpoint of its own\n"


@each_role
def test_beyond_this_machine_only_if_told_so(start: Start, tmp_path: Path, role: str) -> None:  # noqa: F811
    """Without --insecure the line names the setting; with it, the endpoint is bound on all addresses."""
    line = refused(tmp_path, f"--{role}", "tcp://0.0.0.0:*")
    assert line.startswith(f"Error: {role} 'tcp://0.0.0.0:*': everybody who reaches it could say and read everything;")
    running = start(f"--{role}", "tcp://0.0.0.0:*", "--insecure")
    assert running.endpoints[role].startswith("tcp://0.0.0.0:")


def test_metrics_beyond_this_machine_only_if_told_so(start: Start, tmp_path: Path) -> None:  # noqa: F811
    """Likewise."""
    assert "metrics '0.0.0.0:0': everybody who reaches it" in refused(tmp_path, "--metrics", "0.0.0.0:0")
    running = start("--metrics", "0.0.0.0:0", "--insecure")
    assert scrape(running.endpoints["metrics"].replace("0.0.0.0", "127.0.0.1"))["cf_messaged_stored_total", ""] == 0


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_every_socket_on_ipv6(start: Start, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """The endpoints are printed with their ports, and are served."""
    plain.setsockopt(zmq.IPV6, 1)
    running = start(*(word for role in (*ROLES, "pair") for word in (f"--{role}", "tcp://[::1]:*")))
    assert all(endpoint.startswith("tcp://[::1]:") for endpoint in running.endpoints.values())
    subscriber = plain.socket(zmq.SUB)
    subscriber.connect(running.endpoints["subscribe"])
    subscriber.subscribe(b"state/")
    assert Node(plain, running.endpoint).say(event(1, name="by request")).status == STORED
    for number, role in enumerate(TELLS, 2):
        Teller(plain, running, role).tell(event(number, name=f"by {role}"))
    heard: set[bytes] = set()
    while len(heard) < 4:
        assert subscriber.poll(60_000), heard
        heard.add(subscriber.recv_multipart()[0])


# ---- descriptors


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on each listener may open so many files: SOFT:HARD."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not on PATH")

    def limit(files: str) -> None:
        monkeypatch.setattr(module, "COMMAND", ["prlimit", f"--nofile={files}", *COMMAND])

    return limit


def test_too_few_descriptors_are_no_start(tmp_path: Path, limited: Callable[[str], None]) -> None:
    """The line says how many are needed, where to raise the limit, and which setting fits it as it is."""
    limited("300:300")
    line = refused(tmp_path)
    assert line == (
        "Error: 1000 connections need 1128 open files, and 300 are allowed: raise the limit"
        " (LimitNOFILE=1128 in the unit of systemd), or set connections to 172\n"
    )


def test_descriptors_that_are_enough(
    start: Start,  # noqa: F811
    plain: zmq.Context[Socket],
    limited: Callable[[str], None],
) -> None:
    """What the line advises does start; and the limit is raised as far as it may be."""
    limited("64:300")
    running = start(connections=172)
    [told] = [line for line in Path(f"/proc/{running.process.pid}/limits").read_text().splitlines() if "files" in line]
    assert told.split()[3:5] == ["300", "300"]
    nodes = [Node(plain, running.endpoint) for _ in range(172)]
    assert {node.say(said(number)).status for number, node in enumerate(nodes)} == {STORED}


def said(number: int) -> Event:
    return event(1, node=f"web{number}", stream=os.urandom(16).hex())


def test_too_few_descriptors_for_even_one(tmp_path: Path, limited: Callable[[str], None]) -> None:
    """No number of connections is advised that would be refused in turn."""
    limited("100:100")
    line = refused(tmp_path)
    assert "1000 connections need 1128 open files, and 100 are allowed" in line and "connections to" not in line
