"""What one node may say, ask and try in a minute, at a real cf-messaged with keys; others notice nothing of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import zmq

from agent import Agent
from cf_messaged.budget import INTERVAL_S
from cf_messaged.keyring import listed
from cf_messaged.view_pool import MAX_WAITING_OF_ONE
from cf_messaging.keys import public_key
from cf_messaging.wire import LATER, REFUSED, STORED, decode_answer
from listener import OTHER_STREAM, Keys, Listener, Node, Teller, accepted, event, new_keys, question
from peers import Socket, scaled
from test_attacks import curve, let_in
from test_cfengine import wait_for
from test_failures import policy
from test_information import says
from test_service import Start, own, select, start, statuses  # noqa: F401 - fixtures
from test_sockets import count_of

MINUTE = int(INTERVAL_S)


@pytest.fixture
def listen(start: Start, tmp_path: Path) -> Start:  # noqa: F811
    """Starts one with keys and metrics, and these settings."""

    def listen(*options: str, **settings: object) -> Listener:
        return start(*options, keys_dir=str(tmp_path / "keys"), metrics="127.0.0.1:0", **settings)

    return listen


def keys_of(listener: Listener, *names: str) -> list[Keys]:
    return accepted(listener.store.parent / "keys", names)


def nodes(context: zmq.Context[Socket], listener: Listener) -> tuple[Node, Node]:
    """web1, that says too much, and web2."""
    bomber, other = (Node(context, listener.endpoint, keys) for keys in keys_of(listener, "web1", "web2"))
    return bomber, other


def test_events_beyond_what_a_node_may_say(listen: Start, plain: zmq.Context[Socket]) -> None:
    """It is told to come later, when and why; nothing of it is stored. Questions count too; another node goes on."""
    listener = listen(node_events_a_second=1)
    bomber, other = nodes(plain, listener)
    answers = bomber.say_all(event(number) for number in range(1, MINUTE + 3))
    assert statuses(answers) == [STORED] * MINUTE + [LATER] * 2
    assert answers[-1].reason == "web1 has said 60 events in a minute, and node_events_a_second is 1"
    assert 1 <= answers[-1].retry_after <= INTERVAL_S
    assert bomber.ask("common").status == LATER
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED
    assert select(listener, "SELECT count(*) FROM history") == [(MINUTE + 1,)]
    assert listener.wait_for("put off: web1 has said 60 events in a minute") and count_of(listener, "later") == 3


def test_bytes_beyond_what_a_node_may_say(listen: Start, plain: zmq.Context[Socket]) -> None:
    """Few events, but large ones."""
    bomber, other = nodes(plain, listen(node_bytes_a_second=10_000))
    answers = bomber.say_all(event(number, data="x" * 100_000) for number in range(1, 9))
    assert statuses(answers) == [STORED] * 6 + [LATER] * 2
    assert answers[-1].reason == "web1 has said 600000 bytes in a minute, and node_bytes_a_second is 10000"
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED


def test_bytes_count_beside_events(listen: Start, plain: zmq.Context[Socket]) -> None:
    """Who is put off for the number of his events is hung up on for their size."""
    listener = listen(node_events_a_second=1, node_bytes_a_second=1000)
    bomber, other = nodes(plain, listener)
    for number in range(1, MINUTE + 1):
        bomber.send(event(number))
    for number in range(1, 4):
        bomber.send(event(MINUTE + number, data="x" * 60_000))
    wait_for(lambda: count_of(listener, "refused", "flooding") >= 1)
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED


def test_frames_count_too(listen: Start, plain: zmq.Context[Socket]) -> None:
    """A message of many is refused, and has used up the bytes of a minute, as it took so long."""
    listener = listen(node_bytes_a_second=10_000)
    bomber, other = nodes(plain, listener)
    bomber.socket.send_multipart([b""] * 3000 + [b"{}"])
    _, *_, frame = bomber.socket.recv_multipart()
    assert decode_answer(frame).status == REFUSED
    assert bomber.say(event(1)).status == LATER
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED


def test_who_goes_on_is_hung_up_on(listen: Start, plain: zmq.Context[Socket]) -> None:
    """Though it is told to come later; nothing of it is even read, in a new connection neither."""
    listener = listen(node_events_a_second=1)
    bomber, other = nodes(plain, listener)
    monitor = bomber.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    for number in range(1, 3 * MINUTE):
        bomber.send(event(number))
    assert monitor.poll(int(scaled(30) * 1000))
    bomber.socket.disable_monitor()
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED
    # And no scrape was cut off, by whose descriptor it may have now.
    assert {count_of(listener, "refused", "flooding") >= 1 for _ in range(20)} == {True}
    assert count_of(listener, "stored") + count_of(listener, "later") == 2 * MINUTE + 1


def test_what_is_pushed_beyond_it_is_lost(listen: Start, plain: zmq.Context[Socket]) -> None:
    """As nobody can be told; it is counted, and is in the log."""
    listener = listen(node_events_a_second=1)
    [keys] = keys_of(listener, "web1")
    Teller(plain, listener, "push", keys).tell(*(event(number) for number in range(1, MINUTE + 6)))
    wait_for(lambda: count_of(listener, "lost") == 5)
    assert count_of(listener, "stored") == MINUTE
    assert listener.wait_for("put off: web1 has said 60 events .*; what nobody answers is lost")


def test_other_limits_count_from_the_reload_on(listen: Start, plain: zmq.Context[Socket], tmp_path: Path) -> None:
    """For who is connected too."""
    listener = listen(node_events_a_second=1)
    bomber, _ = nodes(plain, listener)
    assert bomber.say_all(event(number) for number in range(1, MINUTE + 2))[-1].status == LATER
    settings = tmp_path / "settings.toml"
    settings.write_text(settings.read_text().replace("a_second = 1", "a_second = 100"))
    listener.process.send_signal(signal.SIGHUP)
    assert listener.wait_for("the settings are read again")
    assert bomber.say(event(MINUTE + 1)).status == STORED


# ---- handshakes


def comes_in(context: zmq.Context[Socket], listener: Listener, keys: Keys) -> bool:
    """Whether a new connection with these keys is let in; else it is left without a word, or refused."""
    peer = context.socket(zmq.DEALER)
    keys.secure(peer)
    peer.linger, peer.reconnect_ivl = 0, -1
    watched = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    monitor = peer.get_monitor_socket(watched | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    peer.connect(listener.endpoint)
    assert monitor.poll(int(scaled(30) * 1000))
    number = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
    peer.disable_monitor()
    peer.close()
    return number == zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_handshakes_of_a_node_are_bounded(listen: Start, plain: zmq.Context[Socket]) -> None:
    """Whoever has its key, others come in as before."""
    listener = listen(node_handshakes_a_minute=3)
    often, other = keys_of(listener, "web1", "web2")
    assert [comes_in(plain, listener, often) for _ in range(5)] == [True] * 3 + [False] * 2
    assert comes_in(plain, listener, other)


def test_handshakes_of_strangers_are_bounded(listen: Start, plain: zmq.Context[Socket]) -> None:
    """By their address, as they can have any number of keys; who is known and comes from the same one comes in."""
    listener = listen(node_handshakes_a_minute=3)
    server, [known] = keys_of(listener, "web1")[0].server, keys_of(listener, "web1")
    strangers = [new_keys(server) for _ in range(5)]
    assert not any(comes_in(plain, listener, stranger) for stranger in strangers)
    assert comes_in(plain, listener, known)
    wait_for(lambda: len(listed(str(listener.store.parent / "keys"))) == 4)
    noted = {row["key"] for row in listed(str(listener.store.parent / "keys"))}
    assert noted == {keys.public for keys in (known, *strangers[:3])}


def test_a_node_whose_handshakes_are_used_up_is_told(listen: Start, plain: zmq.Context[Socket], agent: Agent) -> None:
    """It cannot know whether its key or their number is why it was left without a word; what it says waits."""
    listener = listen(node_handshakes_a_minute=1)
    let_in(listener.store.parent / "keys", agent, "web1")
    server = public_key(str(listener.store.parent / "keys/listener.key")).hex()
    more = f'node => "web1", {curve(server)}'
    runs = [agent.run(policy({name: says("state", listener.endpoint, '"1"', more)})) for name in ("first", "second")]
    assert "first_delivered" in runs[0].classes and "second_queued" in runs[1].classes
    assert f"its key is not {server}, or it does not use CURVE or has let in enough for now" in runs[1].errors[0]


# ---- questions

SETTINGS = """
keys_dir = "{0}/keys"
views_dir = "{0}/views"
views_at_once = 1
view_timeout_s = 1
[[rights]]
nodes = ["web1"]
ask = ["slow"]
"""


def test_questions_of_a_node_that_wait_are_bounded(
    start: Start,  # noqa: F811
    own: Path,  # noqa: F811
    plain: zmq.Context[Socket],
) -> None:
    """It is told to come later; another one is not."""
    (own.parent / "settings.toml").write_text(SETTINGS.format(own.parent))
    greedy, other = nodes(plain, start("--config", str(own.parent / "settings.toml"), "--metrics", "127.0.0.1:0"))
    for number in range(MAX_WAITING_OF_ONE + 2):
        greedy.send(question("slow", id=f"q{number}"))
    _, told = greedy.receive()
    assert told.status == LATER and told.reason == "10 views of this node wait already"
    other.send(question("common")._replace(node="web2"))
    assert other.say(event(1, node="web2", stream=OTHER_STREAM)).status == STORED  # and no word of its question
