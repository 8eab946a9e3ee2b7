"""The table of attacks: each is refused with a reason of its own, and nobody else notices.

Where a listener is attacked, it is a process of its own with keys, and a bystander says events to it all the time, each
of which is stored. Where a node is attacked, the same run of cf-agent keeps a promise with that listener.

 1. no key, a CURVE peer at a plain port    here; on the sockets that do not answer, in test_keyring.py
 2. an unknown key                          here; how it is listed, in test_keyring.py
 3. a revoked key                           here; over a connection that is there, in test_keyring.py
 4. the name of another node                here; on the sockets that do not answer, in test_keyring.py
 5. a listener with another key             here; all patterns, with peers that are no listener, in test_curve.py
 6. garbage, altered and repeated words     here; any garbage to a node, in test_fuzz_peers.py
 7. connections that say nothing more       here
 8. paths as names                          here
 9. variables and commands as names, data   here; SQL and control characters, in test_service.py
10. an answer without end                   here; one that is a little too large, in test_failures.py
11. a view, a topic without the right       here the view, the topic in test_rights.py
12. more events than a node may say         here; each limit, in test_guard.py
"""

from __future__ import annotations

import json
import random
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event as Flag
from typing import NamedTuple

import pytest
import zmq

import zmtp
from agent import Agent, Run
from bomber import bombing
from cf_messaged.keyring import make, write
from cf_messaging.keys import certificate, own_pair, public_key
from cf_messaging.wire import LATER, MAX_PAYLOAD_BYTES, REFUSED, STORED, Answer, encode_event
from listener import OTHER_STREAM, Node, accepted, cf_messaged, event, new_keys, question
from peers import Gate, Socket, scaled
from test_cfengine import wait_for
from test_curve import certificate as certificate_of_pyzmq
from test_curve import modules_of
from test_exchange import in_background
from test_failures import policy
from test_information import REPAIRED, asks, queued, result, says
from test_keyring import Hub, failure
from test_patterns import StartPeer
from test_service import Start, select, start  # noqa: F401 - a fixture
from zmtp import MORE

BYSTANDER = "bystander"
EVENT = encode_event(event())
HALF_OPEN = 2000
SETTINGS = """
keys_dir = "{folder}/keys"
views_dir = "{folder}/views"
connections = 3000
[[rights]]
nodes = ["hub"]
ask = ["*"]
subscribe = ["*"]
"""


@pytest.fixture
def hub(start: Start, tmp_path: Path, plain: zmq.Context[Socket]) -> Iterator[Hub]:  # noqa: F811
    """Under attack. A bystander says events to it until the test is over: each is stored."""
    (tmp_path / "views").mkdir()
    (tmp_path / "settings.toml").write_text(SETTINGS.format(folder=tmp_path))
    listener = start("--config", str(tmp_path / "settings.toml"))
    hub = Hub(tmp_path / "keys", listener, public_key(str(tmp_path / "keys/listener.key")).hex())
    with bystander(hub, plain):
        yield hub
    assert [line for line in listener.heard if "bug" in line or "Traceback" in line] == []


@contextmanager
def bystander(hub: Hub, context: zmq.Context[Socket]) -> Iterator[None]:
    """It speaks before, all the time, and after."""
    node, spoke, over = Node(context, hub.listener.endpoint, hub.new_node(BYSTANDER)), Flag(), Flag()
    with ThreadPoolExecutor(1) as pool:
        saying = pool.submit(go_on, node, spoke, over)
        try:
            assert spoke.wait(scaled(60))
            yield
        finally:
            over.set()
        answers = saying.result()
    assert {answer.status for answer in answers} == {STORED}
    assert select(hub.listener, f"SELECT events FROM nodes WHERE node = '{BYSTANDER}'") == [(len(answers),)]


def go_on(node: Node, spoke: Flag, over: Flag) -> list[Answer]:
    """Says an event after the other, and a last one when it is over."""
    answers: list[Answer] = []
    for number in count(1):
        is_last = over.wait(0.005)
        answers.append(node.say(event(number, node=BYSTANDER, stream=OTHER_STREAM, data=number)))
        spoke.set()
        if is_last:
            break
    return answers


def stored(hub: Hub) -> list[tuple[str, str]]:
    """Nodes and names of the values that the listener has, but for the bystander's."""
    return select(hub.listener, f"SELECT node, name FROM latest WHERE node != '{BYSTANDER}' ORDER BY node, name")


# ---- where a node is attacked


def curve(key: str) -> str:
    """An attribute: the key of the listener."""
    return f"""curve => '{{ "server_key": "{key}" }}'"""


def attacked(hub: Hub, agent: Agent, promises: dict[str, str]) -> Run:
    """A run with these promises, and then one with the listener: it is kept."""
    run = agent.run(policy({**promises, "beside": beside(hub, agent)}))
    assert result(run, "beside") == REPAIRED
    return run


def beside(hub: Hub, agent: Agent) -> str:
    """Attributes of a promise with the listener, which is the only one that lets this node in: as web1."""
    let_in(hub.directory, agent, "web1")
    return says("state", hub.listener.endpoint, more=f'node => "web1", {curve(hub.server)}')


def let_in(directory: Path, agent: Agent, name: str) -> None:
    """The key of an agent's node, by its file."""
    own = own_pair(str(agent.work / "state/messages/node.key"), zmq.curve_keypair)
    write(directory / f"accepted/{name}.key", certificate(own.public))


def error_of(run: Run, name: str) -> str:
    """The one error of a promise, without what comes before its words."""
    [error] = [text for text in run.errors if text.startswith(f"messages '{name}' (")]
    return error.partition("): ")[2]


# ---- 1 to 4: who it is


def test_no_key(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """libzmq ends the connection, on either side, as that of another mechanism."""
    ended = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
    assert failure(plain, hub.listener.endpoint, ended)
    assert not stored(hub) and not hub.knocks()


def test_a_key_on_one_side_alone(hub: Hub, agent: Agent, start: Start, tmp_path: Path) -> None:  # noqa: F811
    """A promise without a key where one is wanted, and one with a key where none is: each says which of both it is."""
    (tmp_path / "plain").mkdir()
    endpoint = start(folder=tmp_path / "plain").endpoint
    promises = {
        "without": says("static", hub.listener.endpoint),
        "with": says("static", endpoint, more=curve(hub.server)),
    }
    run = attacked(hub, agent, promises)
    assert [result(run, name) for name in promises] == [queued("refused")] * 2
    assert "uses another security mechanism than this node: it wants CURVE" in error_of(run, "without")
    assert "uses another security mechanism than this node: it does not want CURVE" in error_of(run, "with")
    assert stored(hub) == [("web1", "beside")]


def test_an_unknown_key(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Status 400 of ZAP, and a line of log with the key."""
    keys = new_keys(hub.server)
    assert failure(plain, hub.listener.endpoint, zmq.EVENT_HANDSHAKE_FAILED_AUTH, keys) == 400
    assert hub.listener.wait_for(f"a key that is not known was not let in: {keys.public}, from 127.0.0.1")
    assert stored(hub) == []


def test_a_revoked_key(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Likewise, also when its file is among those of accepted keys again; what it said before is still there."""
    keys = hub.new_node("web1")
    assert Node(plain, hub.listener.endpoint, keys).say(event(1, name="before")).status == STORED
    assert hub.operate("revoke", "web1").returncode == 0
    write(hub.directory / "accepted/web1.key", certificate(bytes.fromhex(keys.public)))
    assert failure(plain, hub.listener.endpoint, zmq.EVENT_HANDSHAKE_FAILED_AUTH, keys) == 400
    assert stored(hub) == [("web1", "before")]


def test_the_name_of_another_node(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """In an event and in a question: the answer says by which key it came; under its own name it may speak."""
    node = Node(plain, hub.listener.endpoint, hub.new_node("web2"))
    for said in (event(), question("latest")):
        answer = node.say(said)
        assert (said.node, answer.status, answer.id) == ("web1", REFUSED, said.id)
        assert "by its key it is web2, not web1" in answer.reason and answer.rows is None
    assert node.say(event(node="web2")).status == STORED
    assert stored(hub) == [("web2", "load")]


# ---- 5: who the listener is


def test_a_listener_with_another_key(hub: Hub, agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Nobody speaks to it, nor to one without keys: no event, question or payload leaves the node; words say why."""
    key = certificate_of_pyzmq(tmp_path / "impostor", "impostor")
    impostors = {"other": peer("rep", "--key", str(key.secret)), "plain": peer("rep")}
    promises = {}
    for name, each in impostors.items():
        promises[f"{name}_fact"] = says("static", each.endpoint, more=curve(hub.server))
        promises[f"{name}_view"] = asks("latest", each.endpoint, tmp_path / "f", curve(hub.server))
        plain = f'pattern => "request", endpoint => "{each.endpoint}", payload => "x", timeout => "{scaled(30)}"'
        promises[f"{name}_text"] = f"{plain}, {curve(hub.server)}"
    run = attacked(hub, agent, promises)
    assert [each.received for each in impostors.values()] == [[], []] and not (tmp_path / "f").exists()
    for name in promises:
        assert result(run, name) == (queued("refused") if "fact" in name else ("not_kept", {"failed", "refused"}))
        words = f"its key is not {hub.server}" if "other" in name else "it does not want CURVE"
        assert words in error_of(run, name)


# ---- 6: what is no handshake, or not of this connection


def dial(endpoint: str) -> socket.socket:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), scaled(60))


def told(connection: socket.socket) -> bytes:
    """All that it is told until the other side hangs up."""
    heard = b""
    with suppress(ConnectionError), connection:
        while more := connection.recv(65536):
            heard += more
    return heard


CURVE = zmtp.greeting(mechanism=b"CURVE")
SAID = zmtp.message("3.0", [b"", EVENT])
GARBAGE = {
    "random bytes": random.Random(1).randbytes(4096),
    "random bytes after a signature": zmtp.SIGNATURE + random.Random(2).randbytes(4096),
    "random bytes after a greeting": CURVE + random.Random(3).randbytes(4096),
    "HTTP": b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(508),
    "ZMTP 1": zmtp.handshake("1.0", "DEALER") + zmtp.message("1.0", [b"", EVENT]),
    "ZMTP 2": zmtp.handshake("2.0", "DEALER") + zmtp.message("2.0", [b"", EVENT]),
    "no mechanism": zmtp.handshake("3.0", "DEALER"),
    "an unknown mechanism": zmtp.greeting(mechanism=b"CURVES") + SAID,
    "PLAIN": zmtp.greeting(mechanism=b"PLAIN") + zmtp.command(b"HELLO", b"\4root\4root") + SAID,
    "READY": CURVE + zmtp.ready(b"DEALER") + SAID,
    "an event": CURVE + SAID,
    "a huge frame": CURVE + zmtp.frame(b"", zmtp.COMMAND | zmtp.LONG, 2**63 - 1),
    "a HELLO of 20 bytes": CURVE + zmtp.command(b"HELLO", bytes(20)),
    "a HELLO cut short": CURVE + zmtp.command(b"HELLO", b"\1\0" + bytes(192))[:99],
    "a HELLO that nobody has signed": CURVE + zmtp.command(b"HELLO", b"\1\0" + bytes(192)),
    "an INITIATE": CURVE + zmtp.command(b"INITIATE", bytes(248)),
}


def test_garbage(hub: Hub) -> None:
    """Whatever it is, on each of the sockets: the listener hangs up, and never was ready for what comes next."""
    connections = {
        (what, role): dial(endpoint) for what in GARBAGE for role, endpoint in hub.listener.endpoints.items()
    }
    for (what, _), connection in connections.items():
        with suppress(ConnectionError):
            connection.sendall(GARBAGE[what])
    for which, connection in connections.items():
        assert b"READY" not in told(connection) and hub.listener.process.poll() is None, which
    assert not stored(hub) and not hub.knocks()


class Relay:
    """Between a node and the listener. tapes: what nodes said, of each connection; flip: the place of a byte that is
    not passed on as it is.
    """

    def __init__(self, target: str, flip: int = -1) -> None:
        self._target, self._flip = target, flip
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self.tapes: list[bytearray] = []
        self.ended = Flag()  # a connection was
        self._serving = in_background(self._serve)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._serving.join(scaled(60))
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                node, listener = self._server.accept()[0], dial(self._target)
                self.tapes.append(bytearray())
                in_background(partial(self._pass, node, listener, self.tapes[-1], self._flip))
                in_background(partial(self._pass, listener, node, bytearray(), -1))

    def _pass(self, source: socket.socket, target: socket.socket, tape: bytearray, flip: int) -> None:
        with suppress(OSError):
            while said := bytearray(source.recv(65536)):
                if 0 <= flip - len(tape) < len(said):
                    said[flip - len(tape)] ^= 1
                tape += said
                target.sendall(said)
        self.ended.set()
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(hub: Hub, flip: int = -1) -> Iterator[Relay]:
    between = Relay(hub.listener.endpoint, flip)
    try:
        yield between
    finally:
        between.close()


HELLO_BYTES = len(CURVE) + 202
PLACES = {  # of bytes that a node says
    "version": len(CURVE) + 8,
    "key": len(CURVE) + 90,
    "box of HELLO": HELLO_BYTES - 1,
    "cookie": HELLO_BYTES + 50,
    "box of INITIATE": HELLO_BYTES + 200,
    "event": -1,
}


@pytest.fixture
def tape(hub: Hub, plain: zmq.Context[Socket]) -> bytes:
    """All that web1 says of an event that is stored."""
    with relay(hub) as between:
        node = Node(plain, between.endpoint, hub.new_node("web1"))
        assert node.say(event(name="taped")).status == STORED
        node.socket.close()
        assert between.ended.wait(scaled(60))
    return bytes(between.tapes[0])


def test_a_bit_that_is_changed_on_the_way(hub: Hub, plain: zmq.Context[Socket], tape: bytes) -> None:
    """In the handshake or in an event: the connection is ended, and nothing of it is stored."""
    keys = hub.new_node("web2")
    for what, place in PLACES.items():
        with relay(hub, place % len(tape)) as between:
            node = Node(plain, between.endpoint, keys)
            node.send(event(name="taped", node="web2"))
            assert between.ended.wait(scaled(60)), what
            node.socket.close()
        assert stored(hub) == [("web1", "taped")], what


def test_what_is_said_again(hub: Hub, tape: bytes) -> None:
    """A whole conversation of another node: welcomed like any stranger, but its keys are not of this connection."""
    connection, heard = dial(hub.listener.endpoint), b""
    connection.sendall(tape[:HELLO_BYTES])
    while b"WELCOME" not in heard:
        heard += connection.recv(65536)
        assert heard
    connection.sendall(tape[HELLO_BYTES:])
    assert b"READY" not in heard + told(connection)
    assert select(hub.listener, "SELECT events FROM nodes WHERE node = 'web1'") == [(1,)]


# ---- 7: who connects, and says nothing more


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many as this process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors(hub: Hub) -> int:
    """That the listener has open."""
    return len(list(Path(f"/proc/{hub.listener.process.pid}/fd").iterdir()))


@pytest.mark.usefixtures("many_files")
def test_half_open_connections(hub: Hub, plain: zmq.Context[Socket], tape: bytes) -> None:
    """Half of them say nothing at all, half greet and say HELLO: all are let go of, and meanwhile others are let in."""
    before = descriptors(hub)
    connections = [dial(hub.listener.endpoint) for _ in range(HALF_OPEN)]
    for connection in connections[::2]:
        connection.sendall(tape[:HELLO_BYTES])
    newcomer = Node(plain, hub.listener.endpoint, hub.new_node("web2"))
    assert newcomer.say(event(node="web2")).status == STORED
    newcomer.socket.close()
    heard = [told(connection) for connection in connections]
    assert {each[:10] for each in heard} == {tape[:10]}  # a greeting begins like any other of libzmq
    assert [b"WELCOME" in each for each in heard] == [True, False] * (HALF_OPEN // 2)
    wait_for(lambda: descriptors(hub) == before)


# ---- 8: paths


PATHS = ["../outside", "../../outside", "{folder}/outside", "views/../../outside"]


def files(folder: Path) -> set[Path]:
    """All of them, but for what SQLite has beside its store."""
    return {path for path in folder.rglob("*") if "store.db" not in path.name}


def test_a_path_as_a_name(hub: Hub, plain: zmq.Context[Socket], tmp_path: Path) -> None:
    """Of a node and of a view it is refused, also where there is such a file; of information it is a name as any."""
    (tmp_path / "outside.sql").write_text("SELECT 1 AS seen")
    node = Node(plain, hub.listener.endpoint, hub.new_node("web1"))
    paths, before = [path.format(folder=tmp_path) for path in PATHS], files(tmp_path)
    for number, path in enumerate(paths, 1):
        of_node, of_view = node.say(event(node=path)), node.ask(path)
        assert of_node.status == of_view.status == REFUSED and of_view.rows is None
        assert "a node is named by 1 to 253 letters" in of_node.reason
        assert of_view.reason.startswith(f"no view '{path}'")
        assert node.say(event(number, name=path)).status == STORED
    assert sorted(stored(hub)) == [("web1", path) for path in sorted(paths)]
    assert files(tmp_path) == before


def test_a_nul_in_a_name(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It is no event: of whatever it is the name."""
    node = Node(plain, hub.listener.endpoint, hub.new_node("web1"))
    for said in (event(node="a\0b"), event(name="a\0b"), question("a\0b")):
        answer = node.say(said)
        assert answer.status == REFUSED and re.search("a node is named by|has no control characters", answer.reason)
    assert stored(hub) == []


# A process cannot have an argument with a NUL.
@pytest.mark.parametrize("node", [*PATHS, "web1/../../../outside", "$(sys.fqhost)", ""])
def test_a_path_as_the_node_of_a_key(tmp_path: Path, node: str) -> None:
    """An operator is told that it is no node, and no file is made, wherever it would be."""
    make(str(tmp_path / "keys"))
    before = files(tmp_path)
    ended = cf_messaged("keys", "--keys-dir", str(tmp_path / "keys"), "accept", 64 * "a", node.format(folder=tmp_path))
    assert ended.returncode == 1 and "is no node" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert files(tmp_path) == before


# ---- 9: what other programs would execute or expand


def expressions(folder: Path) -> list[str]:
    """Each is somebody's variable, list or command; the commands would make a file."""
    command = f"touch {folder}/made"
    return [
        "$(sys.host)",
        "${sys.workdir}",
        "@(def.acl)",
        "@{def.acl}",
        f"$(execresult('{command}', useshell))",
        f"$({command})",
        f"`{command}`",
        f"; {command} #",
    ]


@pytest.fixture
def said(hub: Hub, plain: zmq.Context[Socket], tmp_path: Path) -> list[str]:
    """Expressions as names and values, of web2."""
    node = Node(plain, hub.listener.endpoint, hub.new_node("web2"))
    said = expressions(tmp_path)
    events = [event(number, "static", text, {text: [text]}, "web2") for number, text in enumerate(said, 1)]
    assert {answer.status for answer in node.say_all(events)} == {STORED}
    return said


def test_expressions_are_text(hub: Hub, plain: zmq.Context[Socket], said: list[str], tmp_path: Path) -> None:
    """For a node that asks, for programs and for people: each is shown as it was said."""
    [keys] = accepted(hub.directory, ["hub"])
    answer = Node(plain, hub.listener.endpoint, keys).say(question("latest", {"kind": "static"})._replace(node="hub"))
    for rows in (answer.rows, hub.listener.view("latest")):
        shown = {row["name"]: row["data"] for row in rows if row["node"] == "web2"}
        assert shown == {text: {text: [text]} for text in said}
    table = cf_messaged("view", "latest", "--store", hub.listener.url).stdout
    assert all(text in table for text in said)
    assert not (tmp_path / "made").exists()


def reading(view: Path) -> str:
    """Policy that reads a view in the same run, and uses all of it."""
    return f"""
      vars:
        view_received::
          "rows" data => readjson("{view}");
          "values" slist => getvalues("rows");
      reports:
        view_received::
          "$(values)";
      """


def test_an_agent_expands_nothing(hub: Hub, agent: Agent, said: list[str], tmp_path: Path) -> None:
    """What cf-agent would expand comes to no file that policy reads, in a view and in what is published."""
    let_in(hub.directory, agent, "hub")
    view, heard = tmp_path / "view", tmp_path / "heard"
    heard.write_text("before")
    asked = asks("latest", hub.listener.endpoint, view, f'node => "hub", {curve(hub.server)}')
    published = hub.listener.endpoints["subscribe"]
    subscribed = (
        f'pattern => "subscribe", endpoint => "{published}", topic => "static/", count => "{len(said)}",'
        f' file => "{heard}", format => "json", timeout => "{scaled(30)}", {curve(hub.server)}'
    )
    run = agent.run(reading(view) + policy({"view": asked, "heard": subscribed}))
    assert "text with '$(', which cf-agent would expand" in error_of(run, "heard") and heard.read_text() == "before"
    assert result(run, "view") == ("repaired", {"delivered", "received"})
    shown = {row["name"]: row["data"] for row in json.loads(view.read_text()) if row["node"] == "web2"}
    assert shown == dict([(None, None), *((text, {text: [text]}) for text in said[-2:])])
    assert {text for text in run.reports if "made" in text} == set(said[-2:]) and not (tmp_path / "made").exists()


# ---- 10: an answer without end

# Answers each question with the beginning of a message, and goes on with zeros. Arguments: what is said before, the
# answer, and what comes before zeros, in hex; how many zeros at once; seconds between them.
ENDLESS = """
import socket, sys, time
opening, answer, before = map(bytes.fromhex, sys.argv[1:4])
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    caller, heard = server.accept()[0], b""
    try:
        caller.sendall(opening)
        while b"question" not in heard:
            heard += caller.recv(65536) or b"question"
        caller.sendall(answer)
        for _ in range(2**30 // int(sys.argv[4])):
            caller.sendall(before + bytes(int(sys.argv[4])))
            time.sleep(float(sys.argv[5]))
    except OSError:
        pass
"""


def begun(size: int, flags: int = 0) -> bytes:
    """A frame that is said to have so many bytes, without them."""
    return zmtp.frame(b"", zmtp.LONG | flags, size)


class Endless(NamedTuple):
    """begun: its last frame. before: what comes before zeros each time. most_mb: that a node may have of it."""

    begun: bytes
    before: bytes
    at_once: int
    pause_s: float
    most_mb: int
    reason: str
    words: str


ANSWERS = {
    "1 GB": Endless(begun(2**30), b"", 2**20, 0, 64, "unreachable", "sent more than MAX_PAYLOAD_BYTES"),
    "1 GB in frames": Endless(
        b"", begun(2**20, MORE), 2**20, 0, 500, "invalid_reply", "grows beyond MAX_RECEIVED_BYTES"
    ),
    "byte by byte": Endless(begun(MAX_PAYLOAD_BYTES), b"", 1, 0.01, 64, "timed_out", "no answer in time"),
}


@contextmanager
def answering(how: Endless) -> Iterator[str]:
    """The endpoint of a process that does so."""
    said = zmtp.handshake("3.0", "ROUTER"), zmtp.frame(b"", MORE) + how.begun, how.before
    words = [*(each.hex() for each in said), str(how.at_once), str(how.pause_s)]
    with subprocess.Popen([sys.executable, "-c", ENDLESS, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"tcp://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def most_mb(pid: int) -> float:
    """The most memory that a module of this agent has had."""
    told = [re.search(r"VmHWM:\s+(\d+) kB", (path / "status").read_text()) for path in modules_of(pid)]
    return max(int(found[1]) for found in told if found) / 1024


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_without_end(hub: Hub, agent: Agent, tmp_path: Path, answer: str) -> None:
    """To a request, and to a question for a view: not kept, in time, and little of it is ever in memory."""
    how, names = ANSWERS[answer], ("text", "view")
    given = f'timeout => "{scaled(1)}", file => "{tmp_path}/f"'
    with Gate() as gate, answering(how) as endpoint:
        promises = {
            "text": f'pattern => "request", endpoint => "{endpoint}", payload => "question", {given}',
            "view": f'view => "question", endpoint => "{endpoint}", {given}',
            "beside": beside(hub, agent),
        }
        running = agent.start(policy(promises) + f"  messages:\n    {gate.promise}")
        gate.reached()
        most = most_mb(running.pid)
        gate.open()
        run = running.finish()
    assert most < how.most_mb and not (tmp_path / "f").exists()
    assert [result(run, name) for name in names] == [("not_kept", {"failed", how.reason})] * 2
    assert all(how.words in error_of(run, name) for name in names)
    assert result(run, "beside") == REPAIRED


# ---- 11: what others may see


def test_a_view_without_the_right(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Rows of another node, and a view of all nodes: each is refused in words, without a row."""
    node = Node(plain, hub.listener.endpoint, hub.new_node("web1"))
    others, of_all = node.ask("latest", {"node": BYSTANDER}), node.ask("nodes")
    assert (others.status, others.rows, of_all.status, of_all.rows) == (REFUSED, None, REFUSED, None)
    assert "may see its own rows of view 'latest', no others" in others.reason
    assert "may not see view 'nodes', which is of all nodes" in of_all.reason


# ---- 12


def test_an_event_bomb(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Who says events as fast as it can is told to come later; of twenty others none is refused or lost."""
    names = [f"web{number}" for number in range(20)]
    others = [Node(plain, hub.listener.endpoint, keys) for keys in accepted(hub.directory, names)]
    answers: list[Answer] = []
    with bombing(hub.listener.endpoint, "bomber", hub.new_node("bomber")) as told:
        for number in count(1):
            answers += say_each(others, number)
            if any("put off: bomber has said 30000 events" in line for line in hub.listener.heard):
                break
        answers += say_each(others, number + 1)
    assert {answer.status for answer in answers} == {STORED}
    counted = select(hub.listener, "SELECT events FROM nodes WHERE node LIKE 'web%'")
    assert counted == [(number + 1,)] * 20
    assert told[LATER] > 0 and told[STORED] == 30_000


def say_each(nodes: Sequence[Node], number: int) -> list[Answer]:
    """All at once; in the order of the nodes."""
    for place, node in enumerate(nodes):
        node.send(event(number, node=f"web{place}", stream=f"{place:032x}", data=number))
    return [node.receive()[1] for node in nodes]
