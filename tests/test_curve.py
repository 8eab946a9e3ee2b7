"""Promises with keys under a real cf-agent, against plain pyzmq peers with CURVE and pyzmq's own ZAP."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq
import zmq.auth
import zmq.utils.z85
from zmq.utils.monitor import recv_monitor_message

from agent import Agent, Run, quoted
from peers import Context, Gate, Peer, Socket, scaled
from test_patterns import CASES, LOCAL, UNREACHABLE, Body, StartPeer, bodies, messages, promise, seen

REFUSED = ("not_kept", "failed", "refused")


class Certificate(NamedTuple):
    """A key as pyzmq makes it, in the files of which pyzmq reads it."""

    public: Path
    secret: Path

    @property
    def hex(self) -> str:
        """The public key, as policy has it."""
        return zmq.utils.z85.decode(zmq.auth.load_certificate(self.public)[0]).hex()


def certificate(folder: Path, name: str) -> Certificate:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public, secret = map(Path, zmq.auth.create_certificates(folder, name))
    secret.chmod(0o600)
    return Certificate(public, secret)


class Keys(NamedTuple):
    """Whose they are."""

    node: Certificate  # of the node under test, at its usual place
    peer: Certificate
    stranger: Certificate
    known: Path  # a directory with the node's certificate alone, for a peer
    none: Path  # one with no certificate

    def serves(self, kind: str = "rep", accept: Path | None = None) -> tuple[str, ...]:
        """Options of a peer of this kind with CURVE; accept: by default it lets the node in."""
        # A REQ that binds gets no answer from who has a user id, as by pyzmq's ZAP: see zap.py. So it lets in all.
        return "--key", str(self.peer.secret), *(("--accept", str(accept or self.known)) if kind != "req" else ())

    def calls(self, as_who: Certificate | None = None) -> tuple[str, ...]:
        """Options of a peer that connects to the node."""
        return "--key", str((as_who or self.peer).secret), "--server-key", str(self.node.public)


def node_key(agent: Agent) -> Path:
    return agent.work / "state/messages/node.key"


@pytest.fixture
def keys(agent: Agent, tmp_path: Path) -> Keys:
    known, none = tmp_path / "known", tmp_path / "none"
    made = {name: certificate(tmp_path / name, name) for name in ("node", "peer", "stranger")}
    for folder in (known, none):
        folder.mkdir()
    shutil.copy(made["node"].public, known)
    node_key(agent).parent.mkdir(mode=0o700)
    shutil.copy(made["node"].secret, node_key(agent))
    return Keys(known=known, none=none, **made)


def body(name: str, **words: str | Path | list[str]) -> str:
    """A body curve of policy."""
    values = {
        word: f"{{ {', '.join(map(quoted, value))} }}" if isinstance(value, list) else quoted(str(value))
        for word, value in words.items()
    }
    return f"body curve {name}\n{{\n" + "".join(f"  {word} => {value};\n" for word, value in values.items()) + "}\n"


# --- both sides of every pattern ----------------------------------------------------------------------------------


def met(
    agent: Agent, peers: dict[str, Peer], folder: Path, before: str, where: Callable[[str], dict[str, str]]
) -> None:
    """One run with every pattern, each with a peer that gets Hello and says World."""
    promises = []
    for pattern, case in CASES.items():
        given: dict[str, str | Path] = {**where(pattern), **({"payload": "Hello"} if case.says else {})}
        if case.hears:
            given["file"] = folder / f"{pattern}.file"
        promises.append(promise(pattern, pattern, timeout="30", **given))
    run = agent.run(messages(*promises), before=before)
    assert run.classes == set().union(*(seen(pattern, "repaired", *case.classes) for pattern, case in CASES.items()))
    for pattern, case in CASES.items():
        if case.says:
            assert [event.frames for event in peers[pattern].wait_for(1)] == [(*case.prefix, b"Hello")]
        if case.hears:
            assert (folder / f"{pattern}.file").read_bytes() == b"World"


@pytest.mark.parametrize("given", ["key", "certificate"])
def test_every_pattern_connects(agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path, given: str) -> None:
    """With the peer's key or the file of its certificate, from a body; the peer lets in this node's key alone."""
    peers = {pattern: peer(*case.peer, *keys.serves(case.peer[0])) for pattern, case in CASES.items()}
    before = body("of_peer", server_key=keys.peer.hex if given == "key" else keys.peer.public)
    met(agent, peers, tmp_path, before, lambda pattern: {"endpoint": peers[pattern].endpoint, "curve": Body("of_peer")})


@pytest.mark.parametrize("given", ["keys", "directory"])
def test_every_pattern_binds(agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path, given: str) -> None:
    """With a list of keys from a body, or the directory of certificates in a container's text."""
    folder = tmp_path / "accepted"
    folder.mkdir()
    shutil.copy(keys.peer.public, folder)
    where = {pattern: f"ipc://{tmp_path}/{pattern}" for pattern in CASES}
    peers = {pattern: peer(*case.peer, "--connect", where[pattern], *keys.calls()) for pattern, case in CASES.items()}
    before = body("of_peers", accept=[keys.stranger.hex, keys.peer.hex])
    curve = Body("of_peers") if given == "keys" else f'{{"accept": "{folder}/"}}'
    met(
        agent,
        peers,
        tmp_path,
        before,
        lambda pattern: {"endpoint": where[pattern], "bind": "true", "curve": curve},
    )


def test_plain_promises_beside_those_with_keys(agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path) -> None:
    """Once somebody is asked who may come in, nothing changes for all others, connecting and bound."""
    ours = {name: f"ipc://{tmp_path}/{name}" for name in ("before", "keyed", "after", "pulls", "binds")}
    asks, binds = {"payload": "?", "timeout": "30"}, {"bind": "true", "timeout": "30"}
    for name in ("before", "keyed", "after"):
        peer("req", "--answer", name, "--connect", ours[name], *(keys.calls() if name == "keyed" else ()))
    peer("push", "--answer", "pulls", "--connect", ours["pulls"])
    peer("rep", "--answer", "binds", "--connect", ours["binds"])
    servers = {name: peer("rep").endpoint for name in ("asks_before", "asks_after", "asks_many")}
    curve = f'{{"accept": "{keys.peer.hex}"}}'
    run = agent.run(
        messages(
            promise("asks_before", "request", endpoint=servers["asks_before"], **asks),
            promise("before", "reply", endpoint=ours["before"], payload="!", file=tmp_path / "0", **binds),
            promise("keyed", "reply", endpoint=ours["keyed"], payload="!", file=tmp_path / "1", curve=curve, **binds),
            promise("after", "async_reply", endpoint=ours["after"], payload="!", file=tmp_path / "2", **binds),
            promise("pulls", "pull", endpoint=ours["pulls"], file=tmp_path / "3", **binds),
            promise("binds", "request", endpoint=ours["binds"], payload="?", file=tmp_path / "4", **binds),
            promise("asks_again", "request", endpoint=servers["asks_before"], **asks),
            promise("asks_after", "request", endpoint=servers["asks_after"], **asks),
            promise("asks_many", "async_request", endpoint=servers["asks_many"], **asks),
        )
    )
    assert run.classes == set().union(
        *(seen(name, "repaired", "delivered") for name in (*servers, "asks_again")),
        *(seen(name, "repaired", "sent", "received") for name in ("before", "keyed", "after")),
        seen("pulls", "repaired", "received"),
        seen("binds", "repaired", "delivered", "received"),
    )
    assert [(tmp_path / f"{number}").read_text() for number in range(5)] == list(ours)


@pytest.mark.parametrize("meant", ["information", "view"])
def test_information_and_views_have_keys(agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path, meant: str) -> None:
    """They are said with this node's key from its usual place: this peer got them, and is no cf-messaged."""
    server = peer("rep", "--answer", "World", *keys.serves())
    given: dict[str, dict[str, str | Path]] = {
        "information": {"information": "static", "payload": "x"},
        "view": {"view": "v", "file": tmp_path / "f"},
    }
    run = agent.run(
        messages(
            promise(
                "p", "request", endpoint=server.endpoint, curve=f'{{"server_key": "{keys.peer.hex}"}}', **given[meant]
            )
        )
    )
    assert {"p_not_kept", "p_failed", "p_invalid_reply"} <= run.classes
    assert "is this a cf-messaged?" in run.errors[0]
    assert len(server.received) == 1


# --- this node's key ----------------------------------------------------------------------------------------------


def test_the_first_promise_makes_the_key(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """At its usual place or where policy says, for the owner alone; the next run has the same."""
    server = certificate(tmp_path / "server", "server")
    endpoint = peer("rep", "--answer", "World", "--key", str(server.secret)).endpoint
    paths = [node_key(agent), tmp_path / "elsewhere/my.key"]
    before = body("usual", server_key=server.hex) + body("own", server_key=server.hex, key_file=paths[1])
    told: list[list[str]] = []
    for _ in range(2):
        run = agent.run(
            messages(
                promise("usual", "request", endpoint=endpoint, payload="?", curve=Body("usual")),
                promise("own", "request", endpoint=endpoint, payload="?", curve=Body("own")),
            ),
            before=before,
        )
        assert run.classes == seen("usual", "repaired", "delivered") | seen("own", "repaired", "delivered")
        told.append([path.read_text() for path in paths])
    assert told[0] == told[1] and told[0][0] != told[0][1]
    for path in paths:
        assert path.stat().st_mode & 0o7777 == 0o600 and path.parent.stat().st_mode & 0o7777 == 0o700
        assert list(path.parent.iterdir()) == [path]


def test_a_dry_run_makes_no_key(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Nor does it need the files that it names."""
    endpoint = peer("rep").endpoint
    curve = f'{{"server_key": "{tmp_path}/none.key"}}'
    run = agent.run(
        messages(promise("p", "request", endpoint=endpoint, payload="?", curve=curve)), options=["--dry-run"]
    )
    assert len(run.warnings) == 1 and "Should ask" in run.warnings[0] and not run.errors
    assert not node_key(agent).parent.exists()


def modules_of(pid: int) -> list[Path]:
    """The directories in /proc of what runs in the process group of an agent, but for itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            group = int((path / "stat").read_text().rpartition(")")[2].split()[2])
        except OSError:
            continue  # it has ended
        if group == pid and path.name != str(pid):
            found.append(path)
    return found


@pytest.mark.parametrize("options", [[], ["--verbose"], ["--debug"]], ids=str)
def test_the_secret_stays_in_its_file(
    agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path, options: list[str]
) -> None:
    """It is in nothing that the agent says, kept or not, nor where others may see a process's words and environment."""
    _, secret = zmq.auth.load_certificate(node_key(agent))
    assert secret
    texts = [secret, zmq.utils.z85.decode(secret), zmq.utils.z85.decode(secret).hex().encode()]
    server, stern = peer("rep", *keys.serves()), peer("rep", *keys.serves(accept=keys.none))
    curve = f'{{"server_key": "{keys.peer.hex}"}}'
    own = f'{{"server_key": "{node_key(agent)}"}}'  # somebody has mistaken the one file for the other
    with Gate() as gate:
        running = agent.start(
            messages(
                promise("kept", "request", endpoint=server.endpoint, payload="?", curve=curve),
                promise("refused", "request", endpoint=stern.endpoint, payload="?", curve=curve),
                promise("mistaken", "request", endpoint=server.endpoint, payload="?", curve=own),
                gate.promise,
            ),
            options=options,
        )
        gate.reached()
        modules = modules_of(running.pid)
        seen_by_others = [(path / name).read_bytes() for path in modules for name in ("cmdline", "environ")]
        gate.open()
        run = running.finish(allow_critical="--debug" in options)  # its lines are no log lines
    assert any(b"messages_promise.py" in words for words in seen_by_others)
    assert {"kept_repaired", "refused_refused", "mistaken_refused"} <= run.classes
    assert keys.node.hex in run.output  # its public key is told
    for text in texts:
        assert text not in run.output.encode() and not any(text in words for words in seen_by_others)


# --- who is refused -----------------------------------------------------------------------------------------------


def error_of(run: Run, name: str) -> str:
    """The one error of a promise."""
    (error,) = [text for text in run.errors if f"messages '{name}' (" in text]
    return error


def test_who_connects_and_is_refused(agent: Agent, peer: StartPeer, keys: Keys) -> None:
    """Each case has words of its own, which name endpoint and key; nobody got the payload."""
    servers = {
        "wrong_key": peer("rep", *keys.serves()),
        "not_let_in": peer("rep", *keys.serves(accept=keys.none)),
        "plain_promise": peer("rep", *keys.serves()),
        "plain_peer": peer("rep"),
    }
    right, wrong = (f'{{"server_key": "{key.hex}"}}' for key in (keys.peer, keys.stranger))
    curves = {"wrong_key": {"curve": wrong}, "not_let_in": {"curve": right}, "plain_peer": {"curve": right}}
    run = agent.run(
        messages(
            *(
                promise(name, "request", endpoint=server.endpoint, payload="?", timeout="60", **curves.get(name, {}))
                for name, server in servers.items()
            )
        )
    )
    assert run.classes == set().union(*(seen(name, *REFUSED) for name in servers))
    assert len(run.errors) == len(servers)
    for name, server in servers.items():
        assert f"{server.endpoint} refused: " in error_of(run, name) and not server.received
    assert f"its key is not {keys.stranger.hex}" in error_of(run, "wrong_key")
    denied = f"does not let this node in (ZAP status 400): accept its key there, {keys.node.hex}"
    assert denied in error_of(run, "not_let_in")
    assert "it wants CURVE" in error_of(run, "plain_promise")
    # Which of the two ends it first decides.
    assert any(words in error_of(run, "plain_peer") for words in ("does not want CURVE", "does not use CURVE"))


def test_the_right_endpoint_after_one_with_another_key(agent: Agent, peer: StartPeer, keys: Keys) -> None:
    """Of several endpoints, one that has not the key does not keep the promise from being kept at the next."""
    impostor = peer("rep", "--key", str(keys.stranger.secret))
    server = peer("rep", "--answer", "World", *keys.serves())
    curve = f'{{"server_key": "{keys.peer.hex}"}}'
    run = agent.run(
        messages(promise("p", "request", endpoint="@(both)", payload="?", timeout="60", curve=curve)),
        vars={"both": [impostor.endpoint, server.endpoint]},
    )
    assert run.classes == seen("p", "repaired", "delivered")
    assert bodies(server) == [b"?"] and not impostor.received


def test_what_was_learnt_with_one_key_says_nothing_of_another(agent: Agent, peer: StartPeer, keys: Keys) -> None:
    """After promises with the wrong key and none, the one with the right key is kept at the same endpoint."""
    server = peer("rep", "--answer", "World", *keys.serves())
    asks = {"endpoint": server.endpoint, "payload": "?", "timeout": "30"}
    right, wrong = (f'{{"server_key": "{key.hex}"}}' for key in (keys.peer, keys.stranger))
    run = agent.run(
        messages(
            promise("wrong", "request", curve=wrong, **asks),
            promise("none", "request", **asks),
            promise("right", "request", curve=right, **asks),
        )
    )
    assert run.classes == seen("wrong", *REFUSED) | seen("none", *REFUSED) | seen("right", "repaired", "delivered")


def test_a_slow_peer_that_has_one_of_the_keys(agent: Agent, peer: StartPeer, keys: Keys) -> None:
    """It has all the time, though another key is there to be tried."""
    slow = peer("rep", "--answer", "World", "--delay", "8", *keys.serves())
    curve = f'{{"server_key": ["{keys.peer.hex}", "{keys.stranger.hex}"]}}'
    run = agent.run(messages(promise("p", "request", endpoint=slow.endpoint, payload="?", timeout="15", curve=curve)))
    assert run.classes == seen("p", "repaired", "delivered")


@pytest.mark.parametrize("order", [1, -1])
def test_a_silent_peer_that_has_one_of_the_keys(agent: Agent, peer: StartPeer, keys: Keys, order: int) -> None:
    """It is not said to have another key."""
    silent = peer("rep", "--delay", "600", *keys.serves())
    both = '", "'.join([keys.peer.hex, keys.stranger.hex][::order])
    curve = f'{{"server_key": ["{both}"]}}'
    run = agent.run(messages(promise("p", "request", endpoint=silent.endpoint, payload="?", timeout="3", curve=curve)))
    assert run.classes == seen("p", "not_kept", "failed", "timed_out")
    assert "its key is not" not in error_of(run, "p")


@contextmanager
def caller(endpoint: str, keys: Keys, who: str) -> Iterator[Callable[[], None]]:
    """Connects a REQ with a question to a promise, as `stranger`, `plain` or `impostor`: the right key, which takes
    this node for another. What is yielded waits until it was refused.
    """
    with Context() as context, context.socket(zmq.REQ) as sock:
        sock.linger = 0
        sock.reconnect_ivl = 20
        if who != "plain":
            mine = keys.stranger if who == "stranger" else keys.peer
            theirs = keys.node if who == "stranger" else keys.stranger
            sock.curve_publickey, sock.curve_secretkey = zmq.auth.load_certificate(mine.secret)
            sock.curve_serverkey = zmq.auth.load_certificate(theirs.public)[0]
        monitor: Socket = sock.get_monitor_socket()
        monitor.rcvtimeo = int(scaled(60) * 1000)
        sock.connect(endpoint)
        sock.send(b"let me in")

        def refused() -> None:
            connected = False
            while True:
                event = recv_monitor_message(monitor)["event"]
                connected |= event == zmq.EVENT_CONNECTED
                assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
                if (connected and event == zmq.EVENT_DISCONNECTED) or event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    return

        yield refused
        sock.disable_monitor()
        monitor.close(0)


TURNED_AWAY = {
    "stranger": "somebody has a key that is not in 'accept'",
    # Which of them, who hangs up first decides.
    "plain": "somebody (uses another security mechanism than this node: it does not want CURVE|ends CURVE's handshake)",
}


@pytest.mark.parametrize("who", TURNED_AWAY)
def test_nobody_but_who_is_turned_away(agent: Agent, keys: Keys, tmp_path: Path, who: str) -> None:
    """A bound promise is not kept, says who came, and writes nothing of what he said."""
    ours = f"ipc://{tmp_path}/s"
    curve = f'{{"accept": "{keys.peer.hex}"}}'
    answers: dict[str, str | Path] = {
        "endpoint": ours,
        "bind": "true",
        "payload": "!",
        "timeout": f"{scaled(2):g}",
        "file": tmp_path / "heard",
    }
    with caller(ours, keys, who):
        run = agent.run(messages(promise("p", "reply", curve=curve, **answers)))
    assert run.classes == seen("p", *REFUSED)
    assert re.search(f"{ours} refused: {TURNED_AWAY[who]}", error_of(run, "p"))
    assert not (tmp_path / "heard").exists()


@pytest.mark.parametrize("who", [*TURNED_AWAY, "impostor"])
def test_the_right_one_after_a_wrong_one(agent: Agent, peer: StartPeer, keys: Keys, tmp_path: Path, who: str) -> None:
    """Who is turned away does not keep the right one out: he alone is served."""
    ours = f"ipc://{tmp_path}/s"
    answers: dict[str, str | Path] = {
        "endpoint": ours,
        "bind": "true",
        "payload": "!",
        "timeout": "60",
        "file": tmp_path / "heard",
    }
    curve = f'{{"accept": "{keys.peer.hex}"}}'
    with caller(ours, keys, who) as refused:
        running = agent.start(messages(promise("p", "reply", curve=curve, **answers)))
        refused()
        right = peer("req", "--answer", "Hello", "--connect", ours, *keys.calls())
        run = running.finish()
    assert run.classes == seen("p", "repaired", "sent", "received")
    assert (tmp_path / "heard").read_bytes() == b"Hello" and bodies(right) == [b"!"]


def test_nobody_comes(agent: Agent, keys: Keys, tmp_path: Path) -> None:
    """An empty list lets nobody in, which is no error by itself."""
    where = {"endpoint": f"ipc://{tmp_path}/s", "bind": "true", "timeout": "0.1"}
    run = agent.run(messages(promise("p", "pull", curve='{"accept": []}', **where)))
    assert run.classes == seen("p", *UNREACHABLE) and "nobody has connected" in error_of(run, "p")


# --- files that are no use ----------------------------------------------------------------------------------------


def local_failures(agent: Agent, curves: dict[str, str], where: str) -> dict[str, str]:
    """The error of each promise, pushed to or pulled from there, which is `local` and reached nobody."""
    promises = []
    for name, curve in curves.items():
        side = {"pattern": "pull", "bind": "true"} if '"accept"' in curve else {"pattern": "push", "payload": "x"}
        promises.append(promise(name, side.pop("pattern"), endpoint=where, curve=curve, **side))
    run = agent.run(messages(*promises))
    assert run.classes == set().union(*(seen(name, *LOCAL) for name in curves))
    assert len(run.errors) == len(curves)
    return {name: error_of(run, name) for name in curves}


def test_certificates_that_are_no_use(agent: Agent, keys: Keys, tmp_path: Path) -> None:
    """The error names the file and what is wrong with it; a sound promise after them is not held up."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(keys.peer.public, mixed)
    (mixed / "web9.key").write_text("")
    os.mkfifo(tmp_path / "fifo")
    curves = {
        "no_server": f'{{"server_key": "{tmp_path}/none.key"}}',
        "fifo_server": f'{{"server_key": "{tmp_path}/fifo"}}',
        "folder_server": f'{{"server_key": "{mixed}"}}',
        "bad_server": f'{{"server_key": "{mixed}/web9.key"}}',
        "no_folder": f'{{"accept": "{tmp_path}/nobody"}}',
        "file_as_folder": f'{{"accept": "{keys.peer.public}"}}',
        "bad_in_folder": f'{{"accept": "{mixed}"}}',
    }
    told = local_failures(agent, curves, f"ipc://{tmp_path}/s")
    assert f"{tmp_path}/none.key cannot be read: No such file" in told["no_server"]
    assert f"{tmp_path}/fifo is not a regular file" in told["fifo_server"]
    assert f"{mixed} cannot be read: Is a directory" in told["folder_server"]
    assert f"{mixed}/web9.key is no certificate" in told["bad_server"]
    assert f"directory of keys {tmp_path}/nobody: No such file" in told["no_folder"]
    assert f"directory of keys {keys.peer.public}: Not a directory" in told["file_as_folder"]
    assert f"{mixed}/web9.key is no certificate" in told["bad_in_folder"]
    assert not (tmp_path / "s").exists()


def test_a_key_of_this_node_that_is_no_use(agent: Agent, keys: Keys, tmp_path: Path) -> None:
    """The error names the file and, where that helps, the command that mends it; no other key is made instead."""
    copies = {
        name: certificate(tmp_path / f"own_{name}", name).secret for name in ("mode", "shared", "garbage", "public")
    }
    copies["mode"].chmod(0o640)
    copies["shared"].parent.chmod(0o777)
    copies["garbage"].write_text("x")
    copies["public"] = copies["public"].with_suffix(".key")
    copies["public"].chmod(0o600)
    curves = {name: f'{{"server_key": "{keys.peer.hex}", "key_file": "{path}"}}' for name, path in copies.items()}
    before = {path: path.read_bytes() for path in copies.values()}
    told = local_failures(agent, curves, f"ipc://{tmp_path}/s")
    assert f"has mode 640, so others may know it: chmod 600 {copies['mode']}" in told["mode"]
    assert f"can be written by others: chmod 700 {copies['shared'].parent}" in told["shared"]
    assert f"{copies['garbage']} is no certificate with a public key" in told["garbage"]
    assert f"{copies['public']} is no certificate with a secret key" in told["public"]
    assert before == {path: path.read_bytes() for path in copies.values()}
