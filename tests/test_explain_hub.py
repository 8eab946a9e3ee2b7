"""Both sides of `explain` with a real cf-messaged: what a node finds out of it, and what its hub tells of the node."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from agent import Agent
from cf_messaged.keyring import Held, put
from cf_messaged.times import rfc3339
from cf_messaging.keys import public_key
from cf_messaging.wire import STORED
from listener import Listener, Node, accepted, cf_messaged, event, question
from peers import Peer, Socket, refused_endpoint
from postgres import Server
from test_cfengine import wait_for
from test_curve import body
from test_enrolment import Host, Hub, host, hub  # noqa: F401 - fixtures
from test_explain import LINE, MEND, Told, explain, held
from test_failures import policy
from test_information import says
from test_service import Start, start  # noqa: F401 - a fixture

HUB_STAGES = ("listener", "key", "enrolment", "rights", "store")
MakeHost = Callable[[str], Host]


# ---- what both are asked


def settings_of(folder: Path, listener: Listener | None = None, more: str = "", **given: str) -> Path:
    """A file of settings, of a listener as it is bound."""
    bound = {**dict.fromkeys(("push", "publish", "subscribe"), "off"), **(listener.endpoints if listener else {})}
    path = folder / "of_hub.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in {**bound, **given}.items()) + more)
    return path


def at_hub(settings: Path, node: str, *options: str) -> Told:
    done = cf_messaged("explain", node, "--config", str(settings), *options)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    mend = lines.pop().removeprefix(MEND) if lines[-1].startswith(MEND) else ""
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found) and not done.stderr, done
    parts = [match.groups() for match in found if match]
    texts = {name: text for name, _, text in parts}
    more = [line for line in done.stdout.splitlines() if line.startswith(" ")]
    if more:
        texts["enrolment"] = "\n".join([texts["enrolment"], *more])
    return Told(done.returncode, {name: state for name, state, _ in parts}, texts, mend, HUB_STAGES)


class Both:
    """A hub and what it is asked of web1, and a host that is asked too. Nothing changes where they are asked."""

    def __init__(self, hub: Hub, folder: Path, more: str = "") -> None:  # noqa: F811
        self.hub, self._folder = hub, folder
        given = {"store": hub.listener.url, "keys_dir": str(hub.directory)}
        self.settings = settings_of(folder, hub.listener, more, **given)

    def of_node(self, host: Host, **curve: str) -> Told:  # noqa: F811
        path = self._folder / "curve.json"
        office = self.hub.listener.endpoints.get("enrolment", "off")
        path.write_text(json.dumps({"server_key": self.hub.server, "enrol": office, **curve}))
        with unchanged(self.hub):
            return explain(host.agent, self.hub.listener.endpoint, "--curve", path, "--node", host.name)

    def of_hub(self, node: str = "web1") -> Told:
        with unchanged(self.hub):
            return at_hub(self.settings, node)


def dumped(store: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


@contextmanager
def unchanged(hub: Hub) -> Iterator[None]:  # noqa: F811
    """Neither its store nor its keys; but who knocks is noted."""

    def now() -> tuple[list[str], dict[str, Any]]:
        files = {path: each for path, each in held(hub.directory).items() if "/strangers.json" not in path}
        return dumped(hub.listener.store), files

    before = now()
    yield
    assert now() == before


@pytest.fixture
def both(hub: Hub, tmp_path: Path) -> Both:  # noqa: F811
    return Both(hub, tmp_path)


# ---- keys and enrolment


def test_all_is_well(both: Both, host: MakeHost) -> None:  # noqa: F811
    """Both tell by which name and host key the node is known, what it may, and that there is a store."""
    web1 = host("web1")
    both.hub.trust(web1)
    assert "os_delivered" in web1.run(both.hub).classes
    found = both.of_node(web1)
    found.check_well("name")
    assert "known as web1; may say static/* dynamic/* state/*" in found.texts["rights"]
    found = both.of_hub()
    found.check_well()
    assert public_key(str(web1.key_file)).hex() in found.texts["key"]
    assert f"host key {web1.digest}, which is trusted" in found.texts["enrolment"]
    assert "enrolled: key " in found.texts["enrolment"]
    assert "no rule names it" in found.texts["rights"] and "with 1 events" in found.texts["store"]
    assert "none is of web2; 0 that knocked have no name" in both.of_hub("web2").texts["key"]  # web1 has, before


def test_a_node_that_was_never_here(both: Both, host: MakeHost) -> None:  # noqa: F811
    """It is trusted, so it would be enrolled. Nobody knocks, and it makes no key."""
    web1 = host("web1")
    both.hub.trust(web1)
    both.of_node(web1).check_failed("enrolment", "no key yet", "it would be enrolled", mend="nothing")
    assert not web1.key_file.exists() and not (both.hub.directory / "strangers.json").exists()
    both.of_hub().check_failed("enrolment", "nobody has claimed to be web1", mend="on the node")


def test_a_host_that_is_not_trusted(both: Both, host: MakeHost) -> None:  # noqa: F811
    """Its hub knows of it once it has tried to enrol, and why it was refused."""
    web1 = host("web1")
    told = f"host key {web1.digest} is not trusted here"
    both.of_node(web1).check_failed("enrolment", told, mend="keys_dir/trusted")
    assert both.hub.rows() == []
    assert "os_refused" in web1.run(both.hub).classes
    both.of_node(web1).check_failed("enrolment", told, public_key(str(web1.key_file)).hex(), mend="keys_dir/trusted")
    both.of_hub().check_failed("enrolment", told, "refused: key ", mend="`trusted` of keys_dir")
    assert len(both.hub.rows()) == 1


def test_a_name_of_another_host(both: Both, host: MakeHost) -> None:  # noqa: F811
    """Who comes second waits for an operator; the first goes on, and the hub tells of both."""
    first, second = host("web1"), host("web1")
    both.hub.trust(first)
    first.run(both.hub)
    (both.hub.directory / "trusted/second.pub").write_bytes((second.agent.work / "ppkeys/localhost.pub").read_bytes())
    second.run(both.hub)
    told = f"web1 is host key {first.digest}, not {second.digest}"
    both.of_node(second).check_failed("enrolment", "would wait for an operator", told, mend="cf-messaged keys accept")
    both.of_node(first).check_well("name")
    found = both.of_hub()
    found.check_well()
    assert told in found.texts["key"] and told in found.texts["enrolment"]


def test_a_node_that_waits(start: Start, tmp_path: Path, host: MakeHost) -> None:  # noqa: F811
    """Where an operator accepts each key."""
    both = Both(Hub(start, tmp_path, 'enrol = "manual"\n'), tmp_path, 'enrol = "manual"\n')
    web1 = host("web1")
    both.hub.trust(web1)
    web1.run(both.hub)
    wait_for(lambda: [row["what"] for row in both.hub.rows()] == ["waits"])
    key = public_key(str(web1.key_file)).hex()
    accept = f"cf-messaged keys accept {key} web1"
    both.of_node(web1).check_failed("enrolment", "an operator accepts each key", mend=accept)
    both.of_hub().check_failed("key", f"waiting: {key}", "an operator accepts each key", mend=accept)


def test_a_node_that_was_revoked(both: Both, host: MakeHost) -> None:  # noqa: F811
    """With its host; a key alone is another case for the node, which may have a new one."""
    web1, web2 = host("web1"), host("web2")
    for each in (web1, web2):
        both.hub.trust(each)
        each.run(both.hub)
    keys = {each.name: public_key(str(each.key_file)).hex() for each in (web1, web2)}
    assert both.hub.operate("revoke", "web1").returncode == both.hub.operate("revoke", keys["web2"]).returncode == 0
    assert "os_refused" in web1.run(both.hub, '"other"').classes
    both.of_node(web1).check_failed("enrolment", f"host key {web1.digest} was revoked", mend="keys_dir/revoked")
    both.of_node(web2).check_failed("enrolment", "this CURVE key was revoked", mend=str(web2.key_file))
    for each in (web1, web2):
        both.of_hub(each.name).check_failed("key", f"revoked: {keys[each.name]} since 20", mend="stays out")
    put(str(both.hub.directory), "accepted", Held(bytes.fromhex(keys["web2"]), "web2", "web2.key"), "by a copy")
    both.of_hub("web2").check_failed("enrolment", "this key was revoked", mend="stays out")


def test_since_when_a_key_is_revoked(both: Both) -> None:
    """Not since when it was let in."""
    put(str(both.hub.directory), "accepted", Held(bytes(32), "web1", "web1.key", since="2020-01-01T00:00:00Z"), "")
    before = rfc3339(time.time_ns() // 1000)
    assert both.hub.operate("revoke", "web1").returncode == 0
    text = at_hub(both.settings, "web1").texts["key"]  # its listener may note meanwhile what it sees
    assert text.startswith(f"revoked: {bytes(32).hex()} since ") and before[:19] <= text.split()[-1] < "9"


def test_a_key_that_was_rejected(both: Both, host: MakeHost) -> None:  # noqa: F811
    """The hub knows whose it is by what happened before."""
    web1 = host("web1")
    web1.run(both.hub)
    key = public_key(str(web1.key_file)).hex()
    assert both.hub.operate("reject", key).returncode == 0
    both.of_hub().check_failed("key", f"rejected: {key}", mend=f"cf-messaged keys accept {key} web1")
    both.hub.trust(web1)
    both.of_node(web1).check_failed("enrolment", "an operator has rejected this CURVE key", mend="cf-messaged explain")


def test_a_host_that_is_trusted_no_more(both: Both, host: MakeHost) -> None:  # noqa: F811
    web1 = host("web1")
    both.hub.trust(web1)
    web1.run(both.hub)
    (both.hub.directory / "trusted/web1.pub").unlink()
    assert "os_refused" in web1.run(both.hub, '"other"').classes
    both.of_node(web1).check_failed("enrolment", "is not trusted here", mend="keys_dir/trusted")
    both.of_hub().check_failed("enrolment", f"host key {web1.digest} is trusted no more", mend="`trusted` of keys_dir")


def test_a_hub_that_enrols_nobody(start: Start, tmp_path: Path, host: MakeHost) -> None:  # noqa: F811
    """The node finds that port closed, and both that a key is let in by hand; then all is well."""
    both = Both(Hub(start, tmp_path, 'enrol = "off"\n'), tmp_path, 'enrol = "off"\n')
    web1, closed = host("web1"), refused_endpoint()
    more = 'node => "web1", curve => keys'
    promises = policy({"os": says("static", both.hub.listener.endpoint, '"debian"', more, timeout_s=1)})
    before = body("keys", server_key=both.hub.server, enrol=closed)
    assert "os_refused" in web1.agent.run(promises, before=before).classes
    key = public_key(str(web1.key_file)).hex()
    accept = f"cf-messaged keys accept {key} web1"
    both.of_node(web1, enrol=closed).check_failed("enrolment", key, closed, "connection refused", mend=accept)
    both.of_hub().check_failed("enrolment", "`enrol` is off", mend="cf-messaged keys accept")
    assert both.hub.operate("accept", key, "web1").returncode == 0
    assert "os_delivered" in web1.agent.run(promises, before=before).classes
    both.of_node(web1).check_well("name")
    found = both.of_hub()
    found.check_well()
    assert "let in by hand" in found.texts["enrolment"]


# ---- rights and store


def test_rights_that_allow_nothing(start: Start, tmp_path: Path, host: MakeHost) -> None:  # noqa: F811
    """Both tell what it may do all the same; the hub, by which rule."""
    rules = '[[rights]]\nnodes = ["db*"]\n[[rights]]\nnodes = ["web*"]\nsay = []\n'
    both = Both(Hub(start, tmp_path, rules), tmp_path, rules)
    web1 = host("web1")
    both.hub.trust(web1)
    assert "os_refused" in web1.run(both.hub).classes
    told = "may say nothing, see all rows of common, subscribe to common/*"
    both.of_node(web1).check_failed("rights", "known as web1", told, mend="[[rights]]")
    both.of_hub().check_failed("rights", "rule 2 of [[rights]], for web*", told, mend="`say`")


def test_a_store_that_is_locked(both: Both, host: MakeHost) -> None:  # noqa: F811
    """For as long as that, nothing can be stored; to the hub it can be read."""
    web1 = host("web1")
    both.hub.trust(web1)
    web1.run(both.hub)
    with closing(sqlite3.connect(both.hub.listener.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        both.of_node(web1).check_failed("store", "another program holds it locked", mend="waits")
        both.of_hub().check_well()
    both.of_node(web1).check_well("name")


def test_a_store_that_is_away(start: Start, tmp_path: Path, agent: Agent) -> None:  # noqa: F811
    """With its directory."""
    folder = tmp_path / "there"
    folder.mkdir()
    listener = start(folder=folder)
    settings = settings_of(tmp_path, listener, store=listener.url)
    at_hub(settings, "web1").check_well("key", "enrolment", "rights")
    folder.rename(tmp_path / "away")
    for _ in range(2):
        explain(agent, listener.endpoint).check_failed("store", str(listener.store), mend="waits")
    at_hub(settings, "web1").check_failed("store", "does not exist", mend="keep what they say")
    (tmp_path / "away").rename(folder)
    explain(agent, listener.endpoint).check_well("name", "key", "enrolment")


def test_a_store_on_a_full_disk(start: Start, tmp_path: Path, agent: Agent, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """It is told once something could not be stored, until something is."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        listener = start(folder=folder)
        (folder / "ballast").write_bytes(b"x" * 1_000_000)
        node, numbers = Node(plain, listener.endpoint), itertools.count(1)
        while node.say(event(next(numbers), data="x" * 50_000)).status == STORED:
            pass
        explain(agent, listener.endpoint).check_failed("store", "s ago", "the disk is full: make room", mend="waits")
        (folder / "ballast").unlink()
        assert node.say(event(next(numbers))).status == STORED
        explain(agent, listener.endpoint).check_well("name", "key", "enrolment")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_store_on_a_server(
    start: Start,  # noqa: F811
    tmp_path: Path,
    agent: Agent,
    postgresql: Callable[..., str],
    postgres: Server,
) -> None:
    """Which is there, and then is not."""
    listener = start(url=postgresql())
    settings = settings_of(tmp_path, listener, store=listener.url)
    explain(agent, listener.endpoint).check_well("name", "key", "enrolment")
    at_hub(settings, "web1").check_well("key", "enrolment", "rights")
    postgres.drop(listener.url)
    explain(agent, listener.endpoint).check_failed("store", "does not exist", mend="waits")
    at_hub(settings, "web1").check_failed("store", "does not exist", mend="keep what they say")


# ---- what the hub finds at its own endpoints


@pytest.mark.parametrize(
    ("kind", "words", "mend"),
    [
        ((), "onnection refused", "systemctl start"),
        (("tcp-silent",), "is no ZeroMQ, or hangs", "which program listens there"),
        (("tcp-banner", "--close"), "is no ZeroMQ, or hangs", "which program listens there"),
        (("router",), "wants NULL, and by its settings CURVE", "a restart"),
    ],
)
def test_what_listens(tmp_path: Path, peer: Callable[..., Peer], kind: Sequence[str], words: str, mend: str) -> None:
    """That of which the settings say that it is the listener."""
    where = peer(*kind).endpoint if kind else refused_endpoint()
    right = peer("tcp-curve").endpoint
    for names in (("request", "enrolment"), ("enrolment", "request")):
        endpoints = dict(zip(names, (where, right)))
        settings = settings_of(
            tmp_path, None, "", keys_dir=str(tmp_path), store=f"sqlite:///{tmp_path}/none.db", **endpoints
        )
        at_hub(settings, "web1").check_failed("listener", f"{names[0]} {where}", words, mend=mend)


def test_a_path_and_a_wildcard(tmp_path: Path, start: Start) -> None:  # noqa: F811
    """Wherever it is bound, and as it is written in the settings."""
    bound = ("--request", f"ipc://{tmp_path}/request", "--push", "tcp://*:*", "--publish", "tcp://lo:*")
    listener = start(*bound, "--insecure")
    port = {name: listener.endpoints[name].rpartition(":")[2] for name in ("push", "publish")}
    given = {"push": f"tcp://*:{port['push']}", "publish": f"tcp://lo:{port['publish']}", "subscribe": "tcp://[::1]:*"}
    settings = settings_of(tmp_path, listener, "insecure = true\n", store=listener.url, **given)
    found = at_hub(settings, "web1")
    found.check_well("key", "enrolment", "rights")
    assert "a port that only its log tells" in found.texts["listener"]


def test_folders_of_keys_that_are_gone(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    """They are not made by looking for them; nor is a store."""
    store = f"sqlite:///{tmp_path}/none.db"
    there = {"request": peer("tcp-curve").endpoint, "enrolment": peer("tcp-curve").endpoint}
    settings = settings_of(tmp_path, None, "", keys_dir=f"{tmp_path}/keys", store=store, **there)
    at_hub(settings, "web1").check_failed("key", f"{tmp_path}/keys", "No such file", mend="cf-messaged run")
    assert {path.name for path in tmp_path.iterdir()} == {"of_hub.toml"}


# ---- the question


def test_whom_a_listener_without_keys_knows(start: Start, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """Nobody, so everybody may do everything."""
    answer = Node(plain, start().endpoint).ask("self")
    everything = {"say": ["*"], "ask": ["*"], "subscribe": ["*"]}
    assert answer.rows == [{"node": None, **everything, "stores": True, "reason": ""}]
    assert (answer.status, answer.view, answer.have, len(answer.store)) == ("answered", "self", 0, 32)


def test_whom_a_listener_with_keys_knows(start: Start, tmp_path: Path, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """Each by his key, whatever he calls himself; for what is no such question his name must be the right one."""
    (tmp_path / "settings.toml").write_text('[[rights]]\nnodes = ["root"]\nsay = ["*"]\n')
    listener = start("--keys-dir", f"{tmp_path}/keys", "--config", f"{tmp_path}/settings.toml")
    for name, keys in zip(("web1", "root"), accepted(tmp_path / "keys", ["web1", "root"])):
        node = Node(plain, listener.endpoint, keys)
        [row] = node.say(question("self")._replace(node="somebody")).rows
        assert row["node"] == name and row["say"] == (["*"] if name == "root" else ["static/*", "dynamic/*", "state/*"])
        assert node.say(question("latest")._replace(node="somebody")).status == "refused"
