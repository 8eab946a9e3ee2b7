"""`messages_promise.py explain` by the interpreter of a node, each of its stages made to fail in turn by a peer in a
process of its own. Against a real cf-messaged: test_explain_hub.py.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest

from agent import MODULE_PYTHON, Agent, environment
from peers import Peer, refused_endpoint, scaled
from stand_in import StandIn
from test_curve import Certificate, Keys, keys, node_key  # noqa: F401 - a fixture

STAGES = ("name", "TCP", "ZMTP", "mechanism", "key", "enrolment", "rights", "store")
LINE = re.compile(r"(\w+) +(ok|skipped|failed) +[0-9]+\.[0-9] ms  (\S.*)")
MEND = "what to do: "
# What a listener tells who asks what it knows of him.
SELF = {"node": "web1", "say": ["state/*"], "ask": ["common"], "subscribe": ["common/*"], "stores": True, "reason": ""}
StartPeer = Callable[..., Peer]


class Told(NamedTuple):
    """states, texts: by stage. mend: what to do; empty if nothing failed. stages: that there are."""

    status: int
    states: dict[str, str]
    texts: dict[str, str]
    mend: str
    stages: Sequence[str] = STAGES

    def check_well(self, *skipped: str) -> None:
        """Every stage is in order, or had nothing to look at."""
        assert (self.status, self.mend) == (0, ""), self
        assert self.states == {stage: "skipped" if stage in skipped else "ok" for stage in self.stages}, self

    def check_failed(self, stage: str, *words: str, mend: str) -> None:
        """The first that failed, and so the last; the words are in its line, and what mends it in the last one."""
        assert self.status == 1, self
        assert list(self.states) == list(self.stages[: self.stages.index(stage) + 1]), self
        assert [name for name, state in self.states.items() if state == "failed"] == [stage], self
        assert all(word in self.texts[stage] for word in words), self
        assert mend in self.mend, self


def explained(agent: Agent, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    module = agent.work / "modules/promises/messages_promise.py"
    command = [MODULE_PYTHON, str(module), "explain", *map(str, arguments)]
    return subprocess.run(
        command,
        check=False,
        env={**environment(agent.work), "RES_OPTIONS": "timeout:1 attempts:1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=scaled(120),
    )


def explain(agent: Agent, *arguments: str | Path, timeout_s: float = 30) -> Told:
    """What is told of an endpoint. It leaves the work directory as it is."""
    before = held(agent.work)
    done = explained(agent, *arguments, "--timeout", str(min(300.0, scaled(timeout_s))))
    assert held(agent.work) == before
    assert not done.stderr and done.stdout.isprintable() is False, done
    lines = done.stdout.splitlines()
    mend = lines.pop().removeprefix(MEND) if lines[-1].startswith(MEND) else ""
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), done
    parts = [match.groups() for match in found if match]
    states, texts = {name: state for name, state, _ in parts}, {name: text for name, _, text in parts}
    return Told(done.returncode, states, texts, mend)


def held(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything below it."""
    found = sorted(path for path in folder.rglob("*") if not path.is_socket())
    return {str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in found}


@pytest.fixture
def listen() -> Iterator[Callable[..., StandIn]]:
    """Starts stand-ins for a cf-messaged."""
    started: list[StandIn] = []

    def start(*options: str) -> StandIn:
        listener = StandIn.start("request", *options)
        assert isinstance(listener, StandIn)
        started.append(listener)
        return listener

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Options of a stand-in that tells this of who asks."""

    def write(**changed: Any) -> tuple[str, str]:
        path = tmp_path / "self.json"
        path.write_text(json.dumps([{**SELF, **changed}]))
        return "--rows", str(path)

    return write


def said(listener: StandIn, count: int) -> list[tuple[str, str]]:
    """Type and subject of everything that was said there, once so much was."""
    events = [json.loads(event.frames[-1]) for event in listener.wait_for(count)]
    return [(event["type"].rpartition(".")[2], event["subject"]) for event in events]


# ---- all is well


def test_a_listener_without_keys(agent: Agent, listen: Callable[..., StandIn], told: Callable[..., Any]) -> None:
    """What there is no name or key for is skipped, and says so; one question is all that is said."""
    listener = listen(*told())
    found = explain(agent, listener.endpoint, "--node", "web1")
    found.check_well("name", "key", "enrolment")
    assert "127.0.0.1 is an address" in found.texts["name"] and listener.endpoint in found.texts["TCP"]
    assert found.texts["ZMTP"].startswith("ZMTP 3.") and "NULL" in found.texts["mechanism"]
    assert all("without --curve" in found.texts[stage] for stage in ("key", "enrolment"))
    assert "known as web1; may say state/*, see all rows of common, subscribe to common/*" in found.texts["rights"]
    assert "first store" in found.texts["store"]
    assert said(listener, 1) == [("view", "self")]


def test_a_path_in_place_of_a_port(
    agent: Agent, listen: Callable[..., StandIn], told: Callable[..., Any], tmp_path: Path
) -> None:
    """It has no name, and a connection that is not TCP."""
    listener = listen(*told(), "--bind", f"ipc://{tmp_path}/listener")
    found = explain(agent, listener.endpoint, "--node", "web1")
    found.check_well("name", "key", "enrolment")
    assert "a path of this machine" in found.texts["name"] and "a Unix socket in place of TCP" in found.texts["TCP"]


def test_a_name(agent: Agent, listen: Callable[..., StandIn], told: Callable[..., Any]) -> None:
    """Its addresses are told; one where nobody listens does not keep the others from being looked at."""
    port = listen(*told()).endpoint.rpartition(":")[2]
    found = explain(agent, f"tcp://localhost:{port}", "--node", "web1")
    found.check_well("key", "enrolment")
    assert "localhost is " in found.texts["name"] and "127.0.0.1" in found.texts["name"]
    assert f"tcp://127.0.0.1:{port} accepts connections" in found.texts["TCP"]


@pytest.mark.parametrize("given", ["certificate", "object"])
def test_a_listener_with_keys(
    agent: Agent,
    keys: Keys,  # noqa: F811
    listen: Callable[..., StandIn],
    told: Callable[..., Any],
    tmp_path: Path,
    given: str,
) -> None:
    """By its certificate, or by what policy says in `curve`, the next key of the listener among it."""
    listener = listen(*told(), *keys.serves())
    curve = keys.peer.public
    if given == "object":
        curve = tmp_path / "curve.json"
        curve.write_text(json.dumps({"server_key": [keys.stranger.hex, str(keys.peer.public)], "enrol": "off"}))
    found = explain(agent, listener.endpoint, "--curve", curve, "--node", "web1")
    found.check_well("name")
    assert "CURVE" in found.texts["mechanism"]
    assert keys.peer.hex in found.texts["key"] and keys.stranger.hex not in found.texts["key"]
    assert keys.node.hex in found.texts["enrolment"]
    assert said(listener, 1) == [("view", "self")]


# ---- name, TCP, ZMTP


def test_a_name_that_does_not_resolve(agent: Agent) -> None:
    found = explain(agent, "tcp://nobody.invalid:5309")
    found.check_failed("name", "tcp://nobody.invalid:5309", "name does not resolve", mend="DNS")


def test_a_closed_port(agent: Agent) -> None:
    endpoint = refused_endpoint()
    found = explain(agent, endpoint)
    found.check_failed("TCP", endpoint, "connection refused", mend="whether the listener runs")


def test_a_path_where_nobody_listens(agent: Agent, tmp_path: Path) -> None:
    found = explain(agent, f"ipc://{tmp_path}/nobody")
    found.check_failed("TCP", "no such file", mend="on this path")


def test_packets_that_vanish(agent: Agent) -> None:
    """Linux drops attempts to connect where the queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        callers = [socket.socket() for _ in range(8)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        found = explain(agent, f"tcp://127.0.0.1:{full.getsockname()[1]}", timeout_s=1)
        for caller in callers:
            caller.close()
    found.check_failed("TCP", "no answer to the connection attempt", mend="firewalls")


HTTP = """
import http.server
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_web_server(agent: Agent, tmp_path: Path) -> None:
    """It waits for the end of a line, which no ZeroMQ says."""
    server = subprocess.Popen([MODULE_PYTHON, "-c", HTTP], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert server.stdout
        found = explain(agent, f"tcp://127.0.0.1:{server.stdout.readline().strip()}", timeout_s=1)
    finally:
        server.kill()
        server.communicate()
    found.check_failed("ZMTP", "says nothing", mend="which program listens there")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["tcp-silent"], "says nothing"),
        (["tcp-silent", "--close"], "hangs up"),
        (["tcp-banner"], "SSH-2.0-OpenSSH"),
        (["tcp-silent", "--answer", "HTTP/1.1 400 Bad Request\r\n\r\n"], "HTTP/1.1 400"),
        (["tcp-silent", "--answer", "\x1b[2J"], r"\x1b[2J"),
    ],
)
def test_what_is_no_zeromq(agent: Agent, peer: StartPeer, options: list[str], words: str) -> None:
    found = explain(agent, peer(*options).endpoint, timeout_s=1)
    found.check_failed("ZMTP", "no ZeroMQ", words, mend="which program listens there")


def test_a_zeromq_that_is_too_old(agent: Agent) -> None:
    """libzmq 3 has the signature, and then a revision before 3."""
    with socket.create_server(("127.0.0.1", 0)) as old:

        def greet() -> None:
            for _ in range(2):
                caller, _ = old.accept()
                caller.sendall(b"\xff" + bytes(8) + b"\x7f\1\4")

        Thread(target=greet, daemon=True).start()
        found = explain(agent, f"tcp://127.0.0.1:{old.getsockname()[1]}", timeout_s=1)
    found.check_failed("ZMTP", "before 3", mend="libzmq 4")


# ---- mechanism and key


def test_a_listener_without_keys_where_policy_has_them(agent: Agent, peer: StartPeer, keys: Keys) -> None:  # noqa: F811
    found = explain(agent, peer("rep").endpoint, "--curve", keys.peer.public)
    found.check_failed("mechanism", "wants NULL, this node wants CURVE", mend="keys_dir")


def test_a_listener_with_keys_where_policy_has_none(agent: Agent, peer: StartPeer, keys: Keys) -> None:  # noqa: F811
    found = explain(agent, peer("rep", *keys.serves()).endpoint)
    found.check_failed("mechanism", "wants CURVE, this node wants NULL", mend="--curve")


def test_another_key_of_the_listener(agent: Agent, peer: StartPeer, keys: Keys) -> None:  # noqa: F811
    """Nothing of this node's key is told to who has not shown his."""
    found = explain(agent, peer("rep", *keys.serves()).endpoint, "--curve", keys.stranger.public)
    found.check_failed("key", f"its key is not {keys.stranger.hex}", mend="cf-messaged keys show")


def test_a_listener_that_stops_in_the_handshake(agent: Agent, peer: StartPeer, keys: Keys) -> None:  # noqa: F811
    """It says that it wants CURVE, and no more."""
    found = explain(agent, peer("tcp-curve").endpoint, "--curve", keys.peer.public, timeout_s=1)
    found.check_failed("key", "does not answer in time", mend="cf-messaged keys show")


def test_a_certificate_that_is_gone(agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path) -> None:  # noqa: F811
    curve = tmp_path / "curve.json"
    curve.write_text(f'{{"server_key": "{tmp_path}/none.key"}}')
    found = explain(agent, peer("rep", *keys.serves()).endpoint, "--curve", curve)
    found.check_failed("key", f"{tmp_path}/none.key cannot be read", mend="cf-messaged keys export")


# ---- enrolment


class Door:
    """A listener that lets this node in nowhere but where nodes enrol."""

    def __init__(self, listen: Callable[..., StandIn], keys: Keys, folder: Path, *options: str) -> None:  # noqa: F811
        self.request = listen(*keys.serves(accept=keys.none))
        self.office = listen("--key", str(keys.peer.secret), *options)
        self._folder, self._server_key = folder, keys.peer.hex

    def curve(self, **given: str) -> Path:
        path = self._folder / "curve.json"
        path.write_text(json.dumps({"server_key": self._server_key, "enrol": self.office.endpoint, **given}))
        return path


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize(
    ("options", "words", "mend"),
    [
        (["--enrol", "enrolled"], "it would be enrolled", "nothing: the next promise"),
        (["--enrol", "waits", "--reason", "an operator decides"], "an operator decides", "cf-messaged keys "),
        (["--enrol", "refused", "--reason", "host key SHA=1 is not trusted here"], "SHA=1", "keys_dir/trusted"),
        (["--enrol", "refused", "--reason", "this CURVE key was revoked"], "was revoked", "state/messages/node.key"),
        (["--enrol", "refused", "--reason", "host key SHA=1 was revoked"], "SHA=1", "keys_dir/revoked"),
        (["--enrol", "refused", "--reason", "the moon"], "the moon", "cf-messaged explain NODE"),
        (["--enrol", "later", "--reason", "too many claims"], "too many claims", "cf-messaged explain NODE"),
    ],
)
def test_a_node_that_is_not_let_in(
    agent: Agent,
    keys: Keys,  # noqa: F811
    listen: Callable[..., StandIn],
    tmp_path: Path,
    has_key: bool,
    options: list[str],
    words: str,
    mend: str,
) -> None:
    """What would come of enrolling is told, and nothing comes of it; a node without a key has none afterwards."""
    door = Door(listen, keys, tmp_path, *options)
    if not has_key:
        node_key(agent).unlink()
        node_key(agent).parent.rmdir()
    found = explain(agent, door.request.endpoint, "--curve", door.curve(), "--node", "web1")
    found.check_failed("enrolment", words, mend=mend)
    key = keys.node.hex if has_key else f"this node has no key yet, its first promise makes {node_key(agent)}"
    assert key in found.texts["enrolment"]
    assert said(door.office, 2) == [("enrol", "hello"), ("enrol", "check")]
    assert not door.request.received


def test_nobody_enrols(agent: Agent, keys: Keys, listen: Callable[..., StandIn], tmp_path: Path) -> None:  # noqa: F811
    """Where nobody listens, or by policy, the key is carried by hand."""
    door = Door(listen, keys, tmp_path)
    accept = f"cf-messaged keys accept {keys.node.hex} web1"
    closed = refused_endpoint()
    found = explain(agent, door.request.endpoint, "--curve", door.curve(enrol=closed), "--node", "web1")
    found.check_failed("enrolment", keys.node.hex, closed, "connection refused", mend=accept)
    found = explain(agent, door.request.endpoint, "--curve", door.curve(enrol="off"), "--node", "web1")
    found.check_failed("enrolment", keys.node.hex, "policy enrols it nowhere", mend=accept)


def test_a_host_without_its_key(agent: Agent, keys: Keys, listen: Callable[..., StandIn], tmp_path: Path) -> None:  # noqa: F811
    (agent.work / "ppkeys/localhost.pub").unlink()
    door = Door(listen, keys, tmp_path)
    found = explain(agent, door.request.endpoint, "--curve", door.curve())
    found.check_failed("enrolment", f"{agent.work}/ppkeys/localhost.pub", mend="CFEngine key")


def test_a_key_of_this_node_that_is_no_use(agent: Agent, keys: Keys, listen: Callable[..., StandIn]) -> None:  # noqa: F811
    node_key(agent).chmod(0o644)
    found = explain(agent, listen(*keys.serves()).endpoint, "--curve", keys.peer.public)
    found.check_failed("enrolment", f"{node_key(agent)} has mode 644", mend="as it says")


def test_a_socket_of_another_kind(agent: Agent, peer: StartPeer, keys: Keys) -> None:  # noqa: F811
    """What publishes takes no question."""
    found = explain(agent, peer("pub", *keys.serves("pub")).endpoint, "--curve", keys.peer.public)
    found.check_failed("enrolment", "a socket of a kind that does not fit", mend="`request`")
    found = explain(agent, peer("pub").endpoint)
    found.check_failed("rights", "a socket of a kind that does not fit", mend="`request`")


# ---- rights and store


@pytest.mark.parametrize(
    ("changed", "words", "mend"),
    [
        ({"say": []}, "may say nothing", "[[rights]]"),
        ({"node": "web2"}, "by its key it is web2, not web1", "node => 'web2'"),
        ({"say": "*"}, "is this a cf-messaged?", "`request`"),
        ({"stores": None}, "is this a cf-messaged?", "`request`"),
    ],
)
def test_what_this_node_may(
    agent: Agent,
    listen: Callable[..., StandIn],
    told: Callable[..., Any],
    changed: Mapping[str, Any],
    words: str,
    mend: str,
) -> None:
    found = explain(agent, listen(*told(**changed)).endpoint, "--node", "web1")
    found.check_failed("rights", words, mend=mend)


def test_a_name_that_policy_may_have(agent: Agent, listen: Callable[..., StandIn], told: Callable[..., Any]) -> None:
    """Who does not say by which name policy knows this node is told by which the listener does."""
    found = explain(agent, listen(*told()).endpoint)
    found.check_well("name", "key", "enrolment")
    assert f"this host calls itself {os.uname().nodename}: its promises need node => 'web1'" in found.texts["rights"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--refuse", "self"], "'self' is not wanted"),
        (["--status", "later", "--reason", "too many events"], "too many events"),
        (["--status", "stored"], "'stored', which fits no such question"),
        (["--bytes", "World"], "is this a cf-messaged?"),
        (["--silent"], "no answer in time"),
    ],
)
def test_a_listener_that_tells_nothing(
    agent: Agent, listen: Callable[..., StandIn], options: list[str], words: str
) -> None:
    found = explain(agent, listen(*options).endpoint, timeout_s=2 if "--silent" in options else 30)
    found.check_failed("rights", words, mend="whether it is as new as this")


def test_a_store_that_is_away(agent: Agent, listen: Callable[..., StandIn], told: Callable[..., Any]) -> None:
    """The reason comes from the other side, and moves no cursor here."""
    found = explain(agent, listen(*told(stores=False, reason="gone\x1b[2J\n")).endpoint, "--node", "web1")
    found.check_failed("store", r"cannot store: gone\x1b[2J\n", mend="waits")


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: ENDPOINT"),
        (["hub:5309"], "allowed is tcp://host:port"),
        (["tcp://*:5309"], "for who binds"),
        (["tcp://hub:5309", "--timeout", "0"], "0.01 to 300"),
        (["tcp://hub:5309", "--node", "a b"], "a node is named by"),
        (["tcp://hub:5309", "--curve", "/nowhere"], "No such file"),
        (["tcp://hub:5309", "--curve", "/dev/null"], "is not a regular file"),
        (["tcp://hub:5309", "--curve", '{"accept": []}'], "needs 'server_key'"),
        (["tcp://hub:5309", "--curve", '{"server_key": "x"}'], "no key of 64 hex digits"),
        (["tcp://hub:5309", "--curve", "what is no certificate"], "no certificate"),
    ],
)
def test_what_is_asked_wrongly(agent: Agent, tmp_path: Path, arguments: list[str], words: str) -> None:
    """One line of what is wrong, and another status than that of a stage."""
    if arguments[1:2] == ["--curve"] and not arguments[2].startswith("/"):
        path = tmp_path / "curve"
        path.write_text(arguments[2])
        arguments = [*arguments[:2], str(path)]
    done = explained(agent, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done


def test_who_reads_no_more(agent: Agent) -> None:
    """As `head` does; nothing but the end comes of it."""
    reader, writer = os.pipe()
    os.close(reader)
    module = agent.work / "modules/promises/messages_promise.py"
    command = [MODULE_PYTHON, str(module), "explain", "tcp://127.0.0.1:1"]
    done = subprocess.run(
        command, check=False, env=environment(agent.work), stdout=writer, stderr=subprocess.PIPE, timeout=scaled(60)
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (130, b"")
