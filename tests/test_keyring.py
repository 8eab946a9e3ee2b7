"""Who is let in by a cf-messaged with keys: real listeners and peers, and an operator at the command line. Who tries to
get in anyhow is in test_attacks.py.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

import fuzz
from cf_messaged.budget import Budget
from cf_messaged.keyring import (
    MAX_STRANGERS,
    SETTLED_NS,
    Held,
    Keyring,
    Strangers,
    listed,
    make,
    put,
    read_strangers,
    write,
)
from cf_messaged.times import rfc3339
from cf_messaged.zap import Handler
from cf_messaging.keys import answered, certificate
from cf_messaging.wire import STORED, encode_event
from claimant import host_key
from listener import OTHER_STREAM, Keys, Listener, Node, Teller, accepted, cf_messaged, event, new_keys, subscriber
from peers import Socket, scaled
from test_cfengine import wait_for
from test_files import small_disk  # noqa: F401 - a fixture
from test_service import Start, select, start  # noqa: F401 - a fixture

STREAM_2 = "2" * 32


class Hub(NamedTuple):
    """A listener with keys, and the operator of it."""

    directory: Path
    listener: Listener
    server: str  # its key, in hex

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return cf_messaged("keys", "--keys-dir", str(self.directory), *arguments)

    def new_node(self, name: str) -> Keys:
        """Keys that are let in: a file of them is all that it takes."""
        [keys] = accepted(self.directory, [name])
        return keys

    def knocks(self) -> list[dict[str, object]]:
        return [row for row in listed(str(self.directory)) if row["state"] == "unknown"]


@pytest.fixture
def hub(start: Start, tmp_path: Path) -> Hub:  # noqa: F811
    directory, settings = tmp_path / "keys", tmp_path / "settings.toml"
    settings.write_text('[[rights]]\nnodes = ["*"]\nsubscribe = ["*"]\n')
    listener = start("--keys-dir", str(directory), "--config", str(settings))
    return Hub(directory, listener, cf_messaged("keys", "--keys-dir", str(directory), "show").stdout.strip())


def is_silent(socket: Socket, wait_s: float = 0.5) -> bool:
    """Whether nothing comes; that it never does, no test can wait for."""
    return not socket.poll(int(scaled(wait_s) * 1000))


def failure(context: zmq.Context[Socket], endpoint: str, watched: int, keys: Keys | None = None) -> int:
    """A peer with an event to say connects: the number that its monitor tells with the first event of this kind."""
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    if keys:
        keys.secure(socket)
    monitor = socket.get_monitor_socket(watched)  # before there is anything to tell
    monitor.rcvtimeo = int(scaled(30) * 1000)
    socket.connect(endpoint)
    with suppress(zmq.Again):  # there is nobody to whom libzmq would keep it
        socket.send_multipart([b"", encode_event(event())], zmq.DONTWAIT)
    frames = monitor.recv_multipart()
    socket.disable_monitor()
    return int.from_bytes(frames[0][2:6], "little")


# ---- by hand


def test_a_key_is_let_in_by_hand(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It knocks, is listed with its address, is accepted by its first digits, and gets in without a restart."""
    keys = new_keys(hub.server)
    node = Node(plain, hub.listener.endpoint, keys)
    said = node.send(event())
    wait_for(lambda: bool(hub.knocks()))
    [row] = hub.knocks()
    assert (row["key"], row["address"], row["node"]) == (keys.public, "127.0.0.1", "")
    assert hub.listener.wait_for(keys.public)
    assert is_silent(node.socket)
    told = hub.operate("accept", keys.public[:8], "web1")
    assert told.stdout == f"accepted {keys.public} as web1\n"
    again = Node(plain, hub.listener.endpoint, keys)  # libzmq tries no more where it was refused
    assert again.say(event()).status == STORED
    assert said == 0 and [row["state"] for row in listed(str(hub.directory))] == ["accepted"]


def test_who_knocks_is_listed_beside_who_is_accepted(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """With address and time, whatever comes before in the list."""
    hub.new_node("web1")
    keys = new_keys(hub.server)
    stranger = Node(plain, hub.listener.endpoint, keys)
    stranger.send(event())
    wait_for(lambda: bool(hub.knocks()))
    head, accepted_one, knocked = (line.split() for line in hub.operate("list").stdout.splitlines())
    assert head == ["key", "state", "node", "host_key", "reason", "address", "first", "last", "times"]
    assert accepted_one[1:] == ["accepted", "web1"]
    assert knocked[:3] == [keys.public, "unknown", "127.0.0.1"] and len(knocked) == 6


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_what_root_makes_is_the_listeners(tmp_path: Path) -> None:
    """Before the listener was ever started: its key, its folders and what is accepted belong to its user."""
    tmp_path.chmod(0o711)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    for arguments in (("show",), ("accept", 64 * "a", "web1")):
        ended = cf_messaged("keys", "--keys-dir", str(home / "keys"), *arguments)
        assert ended.returncode == 0, ended.stderr
    made = [home / "keys", *(home / "keys").rglob("*")]
    assert len(made) == 8 and {path.stat().st_uid for path in made} == {65534}


@pytest.mark.parametrize("role", ["push", "publish"])
def test_a_name_is_that_of_the_key_where_nobody_is_answered(hub: Hub, plain: zmq.Context[Socket], role: str) -> None:
    """What is told under another name is refused in the log; what is told without a key never comes."""
    stranger = plain.socket({"push": zmq.PUSH, "publish": zmq.PUB}[role])
    stranger.linger = 0
    stranger.connect(hub.listener.endpoints[role])
    teller = Teller(plain, hub.listener, role, hub.new_node("web1"))
    teller.tell(event(1, node="web2"), event(2))
    with suppress(zmq.Again):  # there is nobody to whom libzmq would keep it
        stranger.send(encode_event(event(3)), zmq.DONTWAIT)
    assert hub.listener.wait_for("by its key it is web1, not web2")
    wait_for(lambda: select(hub.listener, "SELECT sequence FROM history") == [(2,)])


def test_a_pair_has_a_name(start: Start, tmp_path: Path, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    directory = tmp_path / "keys"
    listener = start("--keys-dir", str(directory), "--pair", "tcp://127.0.0.1:*")
    hub = Hub(directory, listener, cf_messaged("keys", "--keys-dir", str(directory), "show").stdout.strip())
    teller = Teller(plain, listener, "pair", hub.new_node("web1"))
    teller.tell(event(1, node="web2"), event(2))
    wait_for(lambda: select(listener, "SELECT sequence FROM history") == [(2,)])


def test_a_subscriber_needs_a_key(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Who has one that is accepted hears; the others do not."""
    given = hub.new_node("web2"), new_keys(hub.server), None
    subscribers = [subscriber(plain, hub.listener, keys, b"state/") for keys in given]
    assert Node(plain, hub.listener.endpoint, hub.new_node("web1")).say(event()).status == STORED
    assert subscribers[0].poll(int(scaled(30) * 1000))
    assert subscribers[0].recv_multipart()[0] == b"state/load/web1/"
    assert is_silent(subscribers[1]) and is_silent(subscribers[2], 0)


# ---- revocation


def test_what_is_revoked_is_out_at_once(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """Over a connection that is there nothing is stored or answered, and nothing is published to it any more."""
    keys = hub.new_node("web1")
    node = Node(plain, hub.listener.endpoint, keys)
    assert node.say(event(1)).status == STORED
    heard = subscriber(plain, hub.listener, keys, b"")
    assert heard.poll(int(scaled(30) * 1000)) and heard.recv_multipart()
    told = hub.operate("revoke", "web1")
    assert told.stdout == f"revoked {keys.public} of web1\n"
    node.send(event(2))
    other = Node(plain, hub.listener.endpoint, hub.new_node("web2"))
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED
    assert is_silent(node.socket) and is_silent(heard, 0)
    assert select(hub.listener, "SELECT node, sequence FROM history ORDER BY row") == [("web1", 1), ("web2", 1)]
    back = hub.operate("accept", keys.public, "web1")
    assert back.returncode == 1 and "was revoked, and stays so" in back.stderr


def test_a_key_of_another_name(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """What was granted to it under the name before ends: it is hung up on, and comes again as who it is now."""
    settings = hub.directory.parent / "settings.toml"
    settings.write_text('[[rights]]\nnodes = ["web1"]\nsubscribe = ["*"]\n')
    hub.listener.process.send_signal(signal.SIGHUP)
    hub.listener.wait_for("the settings are read again")
    node, keys = Node(plain, hub.listener.endpoint, hub.new_node("web2")), hub.new_node("web1")
    heard = subscriber(plain, hub.listener, keys, b"state/")
    assert node.say(event(1, node="web2")).status == STORED
    assert heard.poll(int(scaled(30) * 1000)) and heard.recv_multipart()
    os.rename(hub.directory / "accepted/web1.key", hub.directory / "accepted/web3.key")
    assert node.say(event(2, node="web2")).status == STORED  # with nothing to do, the listener looks in a minute
    wait_for(lambda: not heard.poll(50) and any("web3 may not subscribe" in line for line in hub.listener.heard))
    assert node.say(event(3, node="web2")).status == STORED
    assert is_silent(heard)


def test_on_a_path_too(start: Start, tmp_path: Path, plain: zmq.Context[Socket]) -> None:  # noqa: F811
    """Whose key is revoked is hung up on, where no peer has an address."""
    directory = tmp_path / "keys"
    listener = start("--keys-dir", str(directory), "--request", f"ipc://{tmp_path}/request")
    [keys] = accepted(directory, ["web1"])
    node = Node(plain, listener.endpoint, keys)
    assert node.say(event(1)).status == STORED
    assert cf_messaged("keys", "--keys-dir", str(directory), "revoke", "web1").returncode == 0
    monitor = node.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    node.send(event(2))
    assert monitor.poll(int(scaled(30) * 1000))
    node.socket.disable_monitor()
    assert listener.end() == 0 and not [line for line in listener.heard if "bug" in line]


def test_a_key_is_replaced_without_a_gap(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """A node has two keys for a while: what it says by either is its own."""
    old, new = hub.new_node("web1"), new_keys(hub.server)
    before = Node(plain, hub.listener.endpoint, old)
    assert before.say(event(1)).status == STORED
    told = hub.operate("accept", new.public, "web1")
    assert f"`cf-messaged keys revoke {old.public}` once it uses this one" in told.stdout
    after = Node(plain, hub.listener.endpoint, new)
    assert [before.say(event(2)).status, after.say(event(3)).status] == [STORED, STORED]
    assert hub.operate("revoke", old.public).returncode == 0
    assert after.say(event(4)).status == STORED
    before.send(event(5))
    assert is_silent(before.socket)


# ---- nobody gets in


@pytest.mark.parametrize("folder", ["accepted", "revoked"])
def test_without_its_folders_nobody_gets_in(hub: Hub, plain: zmq.Context[Socket], folder: str) -> None:
    """Not who was in, nor anybody new; when they are there again, all are."""
    keys = hub.new_node("web1")
    node = Node(plain, hub.listener.endpoint, keys)
    assert node.say(event(1)).status == STORED
    os.rename(hub.directory / folder, hub.directory / "away")
    node.send(event(2))
    assert hub.listener.wait_for(f"nobody is let in: .*{folder}: No such file or directory")
    assert is_silent(node.socket)
    os.rename(hub.directory / "away", hub.directory / folder)
    assert Node(plain, hub.listener.endpoint, keys).say(event(3)).status == STORED
    assert select(hub.listener, "SELECT sequence FROM history ORDER BY row") == [(1,), (3,)]


def test_the_listeners_key_is_kept_for_itself(start: Start, tmp_path: Path) -> None:  # noqa: F811
    """Mode 600 in a directory of mode 700, the same after a restart; another mode is refused with what mends it."""
    directory = tmp_path / "keys"
    first = start("--keys-dir", str(directory))
    own = directory / "listener.key"
    assert (own.stat().st_mode & 0o777, directory.stat().st_mode & 0o777) == (0o600, 0o700)
    text = own.read_text()
    assert first.end() == 0
    assert start("--keys-dir", str(directory)).end() == 0
    assert own.read_text() == text
    own.chmod(0o644)
    refused = cf_messaged("run", "--store", f"sqlite:///{tmp_path}/other.db", "--keys-dir", str(directory))
    assert refused.returncode == 1 and f"chmod 600 {own}" in refused.stderr
    [secret] = [line.split('"')[1] for line in text.splitlines() if "secret" in line]
    assert secret not in refused.stderr and not any(secret in line for line in first.heard)


def test_it_ends_without_a_word(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """The thread that answers who may come in ends with its listener."""
    assert Node(plain, hub.listener.endpoint, hub.new_node("web1")).say(event()).status == STORED
    assert hub.listener.end() == 0
    assert [line for line in hub.listener.heard if "bug" in line or "Traceback" in line] == []


def test_beyond_this_machine_keys_are_enough(tmp_path: Path) -> None:
    """Without keys_dir any other address than loopback is refused; with it, it is not."""
    settings = tmp_path / "settings.toml"
    settings.write_text(f'store = "sqlite:///{tmp_path}/store.db"\nrequest = "tcp://*:5309"\n')
    assert "allowed is" in cf_messaged("check-config", "--config", str(settings)).stderr
    settings.write_text(settings.read_text() + f'keys_dir = "{tmp_path}/keys"\n')
    assert cf_messaged("check-config", "--config", str(settings)).returncode == 0


# ---- the operator


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("accept", "00", "web1"), "no key of 64 hex digits, and no key that knocked"),
        (("revoke", "web9"), "no accepted key is, or is of, 'web9'"),
        (("accept", 64 * "b", "web2"), "is accepted already, as web1"),
        (("reject", 64 * "b"), "`cf-messaged keys revoke` it"),
        (("export", "/proc/none/file"), "/proc/none/file: No such file or directory"),
    ],
)
def test_what_an_operator_cannot_do(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    """One line says why, and nothing has changed."""
    make(str(tmp_path / "keys"))
    write(tmp_path / "keys/accepted/web1.key", certificate(bytes.fromhex(64 * "b")))
    ended = cf_messaged("keys", "--keys-dir", str(tmp_path / "keys"), *arguments)
    assert ended.returncode == 1 and told in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert [row["node"] for row in listed(str(tmp_path / "keys"))] == ["web1"]


def test_a_disk_that_is_full(small_disk: Path) -> None:  # noqa: F811
    """The line tells for which file there is no room."""
    make(str(small_disk))
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
    ended = cf_messaged("keys", "--keys-dir", str(small_disk), "accept", 64 * "a", "web1")
    assert ended.stderr == f"Error: {small_disk}/accepted/web1.key: No space left on device\n"
    assert listed(str(small_disk)) == []


def test_a_rejected_key_is_not_heard_of_any_more(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """It is kept out, and not noted when it knocks; an operator may let it in later."""
    keys = new_keys(hub.server)
    assert hub.operate("reject", keys.public).returncode == 0
    assert failure(plain, hub.listener.endpoint, zmq.EVENT_HANDSHAKE_FAILED_AUTH, keys) == 400
    assert [row["state"] for row in listed(str(hub.directory))] == ["rejected"]
    assert hub.operate("accept", keys.public, "web1").returncode == 0
    assert Node(plain, hub.listener.endpoint, keys).say(event()).status == STORED


def test_a_certificate_of_other_programs_will_do(hub: Hub, plain: zmq.Context[Socket]) -> None:
    """A file of pyzmq, in the folder under the node's name; one that is none keeps nobody else out."""
    import zmq.auth

    (hub.directory / "accepted/broken.key").write_text("nothing")
    public, _ = zmq.auth.create_certificates(hub.directory / "accepted", "web7")
    key, secret = zmq.auth.load_certificate(public + "_secret")
    assert secret
    node = plain.socket(zmq.REQ)
    node.curve_publickey, node.curve_secretkey, node.curve_serverkey = key, secret, bytes.fromhex(hub.server)
    node.linger, node.rcvtimeo = 0, int(scaled(30) * 1000)
    node.connect(hub.listener.endpoint)
    node.send(encode_event(event(node="web7", stream=STREAM_2)))
    assert b'"stored"' in node.recv()
    assert hub.listener.wait_for("broken.key is no certificate")


# ---- without a listener


def test_changes_of_the_same_moment_are_seen(tmp_path: Path) -> None:
    """The clock of a file system is coarse: a folder that has just changed is read again."""
    make(str(tmp_path))
    keyring = Keyring(str(tmp_path))
    for number in range(50):
        write(tmp_path / f"accepted/web{number}.key", certificate(bytes([number]) * 32))
        assert len(keyring.names()) == number + 1
    write(tmp_path / "revoked/any.key", certificate(bytes(32)))
    assert bytes(32) not in keyring.names() and len(keyring.names()) == 49


def test_what_is_gone_keeps_nobody_out(tmp_path: Path) -> None:
    """A file that is removed while the folder is read is as if it had not been there; a link to nowhere too."""
    make(str(tmp_path))
    write(tmp_path / "accepted/web1.key", certificate(bytes([1]) * 32))
    (tmp_path / "accepted/web2.key").symlink_to("nowhere")
    assert Keyring(str(tmp_path)).names() == {bytes([1]) * 32: "web1"}


def test_what_cannot_be_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link that leads to itself lets nobody in, and keeps nobody else out, with one line of log; where it may be what
    keeps somebody out, nobody is let in.
    """
    make(str(tmp_path))
    write(tmp_path / "accepted/web1.key", certificate(bytes([1]) * 32))
    (tmp_path / "accepted/web2.key").symlink_to("web2.key")
    (tmp_path / "trusted/host.pub").symlink_to("host.pub")
    keyring = Keyring(str(tmp_path))
    for number in range(3):
        assert keyring.names() == {bytes([1]) * 32: "web1"}
        write(tmp_path / "accepted/other", f"{number}")
    assert [each.message.partition(":")[0] for each in caplog.records] == [
        "nobody is let in by it",
        "nobody is enrolled by it",
    ]
    (tmp_path / "revoked/web3.key").symlink_to("web3.key")
    wait_for(lambda: keyring.names() == {})


def test_a_certificate_that_is_written_in_place(tmp_path: Path) -> None:
    """Its folder does not change by that, and its time may be set back."""
    make(str(tmp_path))
    path = tmp_path / "accepted/web1.key"
    path.write_text(certificate(bytes([1]) * 32))
    keyring = Keyring(str(tmp_path))
    wait_for(lambda: keyring.names() == {bytes([1]) * 32: "web1"})
    time.sleep(2 * SETTLED_NS / 1e9)
    before = os.stat(path)
    path.write_text(certificate(bytes([2]) * 32))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    wait_for(lambda: keyring.names() == {bytes([2]) * 32: "web1"})


def test_what_is_let_in_and_removed_at_once(tmp_path: Path) -> None:
    """By an operator, before the folder was read with it."""
    make(str(tmp_path))
    keyring = Keyring(str(tmp_path))
    assert keyring.names() == {}
    keyring.accept(Held(bytes([1]) * 32, "web1", "web1.key"), [])
    (tmp_path / "accepted/web1.key").unlink()
    assert keyring.names() == {} and keyring.accepted() == []


def test_what_is_listed_is_what_counts(tmp_path: Path) -> None:
    """Of a key in several folders, and of a host that was revoked, whatever else is there."""
    directory = str(tmp_path)
    make(directory)
    mine, other = host_key("mine"), host_key("other")
    for name, host in (("mine", mine), ("other", other)):
        (tmp_path / f"trusted/{name}.pub").write_bytes(host.pem)
    for number, host_digest in enumerate(("", "", mine.digest, mine.digest, other.digest), 1):
        put(directory, "accepted", Held(bytes([number]) * 32, f"web{number}", f"web{number}.key", host_digest), "")
    put(directory, "revoked", Held(bytes([1]) * 32, "web1", "web1.key"), "")
    put(directory, "rejected", Held(bytes([2]) * 32, "web2", "web2.key"), "")
    put(directory, "revoked", Held(bytes([3]) * 32, "web3", "web3.key", mine.digest), "")
    states = {row["node"]: row["state"] for row in listed(directory)}
    expected = {"web1": "revoked", "web2": "rejected", "web3": "revoked", "web4": "untrusted", "web5": "accepted"}
    assert states == expected and list(Keyring(directory).names().values()) == ["web5"]


def test_a_key_of_a_host_that_was_revoked(tmp_path: Path) -> None:
    """Accepting it would let nobody in, so it is not done."""
    make(str(tmp_path))
    mine = host_key("mine").digest
    put(str(tmp_path), "waiting", Held(bytes([1]) * 32, "web1", "web1.key", mine), "")
    put(str(tmp_path), "revoked", Held(bytes([2]) * 32, "web1", "web1.key", mine), "")
    ended = cf_messaged("keys", "--keys-dir", str(tmp_path), "accept", 32 * "01")
    assert ended.returncode == 1 and f"{mine} was revoked, and with it all its keys" in ended.stderr
    assert not list((tmp_path / "accepted").iterdir())


def test_strangers_are_bounded(tmp_path: Path) -> None:
    """Whoever makes up keys is noted a thousand times; a damaged file is begun anew."""
    strangers = Strangers(str(tmp_path))
    for number in range(MAX_STRANGERS + 100):
        strangers.note(number.to_bytes(32, "big"), "192.0.2.1", number)
    strangers.write(10.0)
    noted = read_strangers(str(tmp_path))
    assert (len(noted), noted[0].last, noted[-1].last) == (MAX_STRANGERS, 100, MAX_STRANGERS + 99)
    assert Strangers(str(tmp_path)).is_new is False
    for text in ("", "{}", "[1]", '[{"key": "00"}]', "[" * 100_000, '[{"key": "' + 64 * "0" + '"}]'):
        (tmp_path / "strangers.json").write_text(text)
        assert read_strangers(str(tmp_path)) == []


ACCEPTED_KEY, REVOKED_KEY, REJECTED_KEY = (bytes([number]) * 32 for number in (1, 2, 3))


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handler]:
    """With one key of each kind."""
    directory = tmp_path_factory.mktemp("keys")
    make(str(directory))
    for folder, key in (("accepted", ACCEPTED_KEY), ("revoked", REVOKED_KEY), ("rejected", REJECTED_KEY)):
        write(directory / folder / "web1.key", certificate(key))
    context: zmq.Context[Socket] = zmq.Context()
    yield Handler(context, Keyring(str(directory)), Strangers(str(directory)), Budget(math.inf))
    context.destroy(linger=0)


def request(domain: bytes, mechanism: bytes, *credentials: bytes) -> list[bytes]:
    return [b"1.0", b"7", domain, b"192.0.2.1", b"", mechanism, *credentials]


known_keys = st.sampled_from([ACCEPTED_KEY, REVOKED_KEY, REJECTED_KEY, bytes(32)])
keys_of_all_kinds = known_keys | st.binary(min_size=32, max_size=32) | st.binary(max_size=40)
domains = st.sampled_from([b"cf-messaged", b"messages", b""]) | st.binary(max_size=12)
mechanisms = st.sampled_from([b"CURVE", b"NULL", b"PLAIN", b""]) | st.binary(max_size=6)
requests = st.builds(request, domains, mechanisms, keys_of_all_kinds) | st.builds(request, domains, mechanisms)
frames_of_requests = st.sampled_from([b"1.0", b"CURVE", b"cf-messaged", ACCEPTED_KEY])
anything = st.lists(st.binary(max_size=40) | frames_of_requests, max_size=9)
sound = st.builds(request, st.just(b"cf-messaged"), st.just(b"CURVE"), known_keys)


@pytest.mark.fuzz
@given(st.one_of(sound, requests, anything))
def test_any_request_is_answered(handler: Handler, frames: list[bytes]) -> None:
    """Let in is who has an accepted key and asks for this listener, and nobody else; what is no request is told so."""
    fuzz.watch()
    version, _, status, _, user, _ = answered(frames, handler.admit)
    is_let_in = frames[:1] + frames[2:3] + frames[5:] == [b"1.0", b"cf-messaged", b"CURVE", ACCEPTED_KEY]
    assert (status == b"200") == is_let_in and version == b"1.0"
    assert user == (ACCEPTED_KEY.hex().encode() if is_let_in else b"")
    fuzz.count(fuzz.ZAP_REQUESTS, f"answered {status.decode()}")


def never_heard(key: bytes) -> float:
    return math.inf


def test_the_older_key_of_a_host_ends(tmp_path: Path) -> None:
    """An hour after the newer one came, unless it goes on to speak; keys that were accepted by hand stay."""
    directory = str(tmp_path / "keys")
    make(directory)
    mine = host_key("mine")
    (tmp_path / "keys/trusted/host.pub").write_bytes(mine.pem)
    older, newer, by_hand = (bytes([number]) * 32 for number in (1, 2, 3))
    hour = 3_600_000_000
    put(directory, "accepted", Held(older, "web1", "web1.key", mine.digest, rfc3339(8 * hour)), "older")
    put(directory, "accepted", Held(newer, "web1", "web1~2.key", mine.digest, rfc3339(9 * hour)), "newer")
    put(directory, "accepted", Held(by_hand, "web2", "web2.key"), "by hand")
    keyring = Keyring(directory)
    assert keyring.names() == {older: "web1", newer: "web1", by_hand: "web2"}
    keyring.end_overlaps(10 * hour - 1, never_heard)
    assert keyring.names() == {older: "web1", newer: "web1", by_hand: "web2"}
    keyring.end_overlaps(10 * hour, lambda key: 60)
    assert keyring.names() == {older: "web1", newer: "web1", by_hand: "web2"}
    keyring.end_overlaps(10 * hour + 60_000_000, never_heard)
    assert keyring.names() == {newer: "web1", by_hand: "web2"} == Keyring(directory).names()
