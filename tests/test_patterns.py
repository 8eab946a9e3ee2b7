"""Every pattern under a real cf-agent, against plain pyzmq peers: outcomes as the agent saw them, and what arrived."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from agent import Agent, Run, agent_version, quoted
from peers import Peer, free_port, refused_endpoint, resolves, scaled

StartPeer = Callable[..., Peer]

UNREACHABLE = ("not_kept", "failed", "unreachable")
TIMED_OUT = ("not_kept", "failed", "timed_out")
MISMATCHED = ("not_kept", "failed", "mismatched")
INVALID_REPLY = ("not_kept", "failed", "invalid_reply")
LOCAL = ("not_kept", "failed", "local")

ASKING = ("request", "async_request")
ANSWERING = ("reply", "async_reply")


class Body(str):
    """The name of a body, as an attribute has it."""


def promise(name: str, pattern: str, **attributes: str | Path | Sequence[str]) -> str:
    """A promise whose outcome becomes a class; a value @(x) is the variable."""
    given = {"pattern": pattern, "timeout": "10", **attributes}
    shown = ", ".join(f"{name} => {written(value)}" for name, value in given.items())
    return f'    {quoted(name)} {shown}, classes => outcome("{name}");\n'


def written(value: str | Path | Sequence[str]) -> str:
    if isinstance(value, (str, Path)):
        as_it_is = isinstance(value, Body) or str(value).startswith("@(")
        return str(value) if as_it_is else quoted(str(value))
    return f"{{ {', '.join(map(quoted, value))} }}"


def messages(*promises: str) -> str:
    return "  messages:\n" + "".join(promises)


def seen(name: str, *suffixes: str) -> set[str]:
    """The classes of one promise: its outcome, and what the module said."""
    return {f"{name}_{suffix}" for suffix in suffixes}


def bodies(peer: Peer) -> list[bytes]:
    """The last frame of each message that came."""
    return [frames[-1] for frames in peer.received]


@contextmanager
def own_socket(kind: int) -> Iterator[zmq.Socket[bytes]]:
    """A socket of this process, for what no peer of peers.py does."""
    with zmq.Context() as context, context.socket(kind) as sock:
        sock.linger = 0
        sock.reconnect_ivl = 20
        sock.rcvtimeo = int(scaled(30_000))
        yield sock


def bound(sock: zmq.Socket[bytes]) -> str:
    sock.bind("tcp://127.0.0.1:*")
    return sock.getsockopt_string(zmq.LAST_ENDPOINT)


# --- both sides of every pattern ----------------------------------------------------------------------------------


class Case(NamedTuple):
    peer: tuple[str, ...]
    says: bool
    hears: bool
    classes: tuple[str, ...]
    prefix: tuple[bytes, ...] = ()  # frames that the peer gets before the payload


CASES = {
    "request": Case(("rep", "--answer", "World"), True, True, ("delivered", "received")),
    "reply": Case(("req", "--answer", "World"), True, True, ("sent", "received")),
    "async_request": Case(("rep", "--answer", "World"), True, True, ("delivered", "received")),
    "async_reply": Case(("req", "--answer", "World"), True, True, ("sent", "received")),
    "publish": Case(("sub",), True, False, ("sent",), (b"",)),
    "subscribe": Case(("pub", "--answer", "World"), False, True, ("received",)),
    "push": Case(("pull",), True, False, ("sent",)),
    "pull": Case(("push", "--answer", "World"), False, True, ("received",)),
    "pair": Case(("pair", "--answer", "World"), True, True, ("delivered", "received")),
}
every_pattern = pytest.mark.parametrize("pattern", CASES)
every_speaker = pytest.mark.parametrize("pattern", [name for name, case in CASES.items() if case.says])


def meet(agent: Agent, peer: StartPeer, folder: Path, pattern: str) -> Run:
    """One run with both sides of a pattern, each with a fresh peer, which gets Hello and says World."""
    case, ours = CASES[pattern], f"ipc://{folder}/socket"
    peers = peer(*case.peer), peer(*case.peer, "--connect", ours)
    said = {"payload": "Hello"} if case.says else {}
    files = [{"file": folder / name} if case.hears else {} for name in ("connects", "binds")]
    run = agent.run(
        messages(
            promise("connects", pattern, endpoint=peers[0].endpoint, **said, **files[0]),
            promise("binds", pattern, endpoint=ours, bind="true", **said, **files[1]),
        )
    )
    for each in peers:
        if case.says:
            assert [event.frames for event in each.wait_for(1)] == [(*case.prefix, b"Hello")]
        each.kill()
    return run


@every_pattern
def test_both_sides_of_a_pattern_are_kept(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """Connecting or binding, a promise is repaired at first, then kept if the file holds what came, else said again."""
    case = CASES[pattern]
    for outcome in ("repaired", "kept" if case.hears else "repaired"):
        run = meet(agent, peer, tmp_path, pattern)
        assert run.classes == seen("connects", outcome, *case.classes) | seen("binds", outcome, *case.classes)
        if case.hears:
            assert [(tmp_path / name).read_bytes() for name in ("connects", "binds")] == [b"World", b"World"]


@pytest.mark.parametrize("bind", ["false", "true"], ids=["connects", "binds"])
def test_nobody_there(agent: Agent, tmp_path: Path, bind: str) -> None:
    """Every pattern is not kept and unreachable, with one error that names promise and endpoint, and writes no file."""
    where = [refused_endpoint() if bind == "false" else f"ipc://{tmp_path}/{pattern}" for pattern in CASES]
    promises = [
        promise(pattern, pattern, endpoint=endpoint, bind=bind, timeout="0.1", **optional(tmp_path, pattern))
        for pattern, endpoint in zip(CASES, where)
    ]
    run = agent.run(messages(*promises))
    assert run.classes == set().union(*(seen(pattern, *UNREACHABLE) for pattern in CASES))
    assert len(run.errors) == len(CASES)
    for error, pattern, endpoint in zip(run.errors, CASES, where):
        assert f"messages '{pattern}' (" in error and "policy-0.cf:" in error and f"{endpoint} unreachable" in error
    assert not list(tmp_path.glob("*.file"))


def optional(folder: Path, pattern: str) -> dict[str, str | Path]:
    """Payload and file, where the pattern has them."""
    case = CASES[pattern]
    said: dict[str, str | Path] = {"payload": "Hello"} if case.says else {}
    return {**said, "file": folder / f"{pattern}.file"} if case.hears else said


def test_somebody_there_but_silent(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Every pattern that waits for the other side is not kept and timed out, and writes no file."""
    silent = {
        "request": ("silent-router",),
        "async_request": ("silent-router",),
        "publish": ("sub", "--topic", "other"),
        "subscribe": ("pub", "--topic", "other"),
        "pull": ("push", "--delay", "1000"),
        "pair": ("pair-silent",),
    }
    where = {pattern: peer(*arguments).endpoint for pattern, arguments in silent.items()}
    topics = {"publish": {"topic": "this"}, "subscribe": {"topic": "this"}}
    with own_socket(zmq.DEALER) as first, own_socket(zmq.DEALER) as second:
        where |= {"reply": bound(first), "async_reply": bound(second)}
        promises = [
            promise(name, name, endpoint=endpoint, timeout="1", **optional(tmp_path, name), **topics.get(name, {}))
            for name, endpoint in where.items()
        ]
        run = agent.run(messages(*promises))
    assert run.classes == set().union(*(seen(pattern, *TIMED_OUT) for pattern in where))
    assert len(run.errors) == len(where)
    assert not list(tmp_path.glob("*.file"))


# --- request and async_request ------------------------------------------------------------------------------------


def test_requests_one_after_the_other(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Ten requests in one promise, then ten promises of one: all answered in order, over one connection."""
    server = peer("router", "--workers", "1")  # echoes; knows its callers apart
    texts = [f"request {i}" for i in range(10)]
    single = [
        promise(f"p{i}", "request", endpoint=server.endpoint, payload=text, file=tmp_path / f"{i}")
        for i, text in enumerate(texts)
    ]
    many = promise("many", "request", endpoint=server.endpoint, payload="@(texts)", file=tmp_path / "many")
    run = agent.run(messages(many, *single), vars={"texts": texts})
    names = ["many", *(f"p{i}" for i in range(10))]
    assert run.classes == set().union(*(seen(name, "repaired", "delivered", "received") for name in names))
    assert bodies(server) == [text.encode() for text in texts * 2]
    assert len({frames[0] for frames in server.received}) == 1
    assert (tmp_path / "many").read_text() == "".join(f"{text}\n" for text in texts)
    assert [(tmp_path / f"{i}").read_text() for i in range(10)] == texts


def test_requests_in_one_promise_wait_for_each_other(agent: Agent, peer: StartPeer) -> None:
    """`request` says the next one only when the one before was answered."""
    server = peer("rep", "--answer", "World")
    agent.run(messages(promise("x", "request", endpoint=server.endpoint, payload=["a", "b", "c"])))
    assert [event.kind for event in server.events()] == ["received", "sent"] * 3


def test_answers_out_of_order_are_matched(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """A ROUTER with several workers answers the last request first: the file is in payload order."""
    server = peer("router", "--workers", "4")
    asked = {"endpoint": server.endpoint, "payload": ["a", "b", "c", "d"]}
    run = agent.run(
        messages(
            promise("text", "async_request", **asked, file=tmp_path / "text"),
            promise("json", "async_request", **asked, file=tmp_path / "json", format="json"),
        )
    )
    delivered = ("repaired", "delivered", "received")
    assert run.classes == seen("text", *delivered) | seen("json", *delivered)
    assert (tmp_path / "text").read_text() == "a\nb\nc\nd\n"
    assert json.loads((tmp_path / "json").read_text()) == [{"payload": text, "topic": ""} for text in "abcd"]


def test_requests_reach_a_plain_router(agent: Agent, peer: StartPeer) -> None:
    """A program that unpacks caller, empty frame and body understands `request` and a single `async_request`."""
    server = peer("router", "--workers", "1")
    promises = (promise(name, name, endpoint=server.endpoint, payload="Hello") for name in ASKING)
    run = agent.run(messages(*promises))
    assert run.classes == set().union(*(seen(name, "repaired", "delivered") for name in ASKING))
    assert [frames[1:] for frames in server.received] == [(b"", b"Hello")] * 2


def test_workers_behind_a_proxy(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """REP workers of unequal speed behind a proxy answer many requests at once: the file is in payload order."""
    proxy = peer("rep-workers", "--delay", "0.01")
    texts = [f"request {i}" for i in range(20)]
    run = agent.run(
        messages(promise("x", "async_request", endpoint=proxy.endpoint, payload="@(texts)", file=tmp_path / "x")),
        vars={"texts": texts},
    )
    assert run.classes == seen("x", "repaired", "delivered", "received")
    assert (tmp_path / "x").read_text().splitlines() == texts
    assert sorted(bodies(proxy)) == sorted(text.encode() for text in texts)


def test_workers_that_connect(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """An `async_request` that binds is answered by whichever workers connect, a slow one among them."""
    ours = f"ipc://{tmp_path}/socket"
    for delay in ("0.05", "0", "0"):
        peer("rep", "--connect", ours, "--delay", delay)
    asked = {"endpoint": ours, "bind": "true", "payload": [f"{i}" for i in range(9)]}
    run = agent.run(messages(promise("x", "async_request", **asked, file=tmp_path / "x")))
    assert run.classes == seen("x", "repaired", "delivered", "received")
    assert (tmp_path / "x").read_text() == "".join(f"{i}\n" for i in range(9))


def test_an_answer_that_lost_its_number(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Of several requests, an answer without its number is an invalid reply; a single request has none to lose."""
    lossy = peer("router", "--bare", "--workers", "2").endpoint
    run = agent.run(
        messages(
            promise("one", "async_request", endpoint=lossy, payload="a"),
            promise("two", "async_request", endpoint=lossy, payload=["a", "b"], file=tmp_path / "x"),
        )
    )
    assert run.classes == seen("one", "repaired", "delivered") | seen("two", *INVALID_REPLY)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("pattern", ASKING)
def test_an_answer_of_several_frames(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """An answer has one frame; one of two is an invalid reply, and the old file stays."""
    (tmp_path / "x").write_text("old")
    server = peer("rep", "--answer", "a", "--answer", "b", "--multipart")
    run = agent.run(messages(promise("x", pattern, endpoint=server.endpoint, payload="?", file=tmp_path / "x")))
    assert run.classes == seen("x", *INVALID_REPLY)
    assert (tmp_path / "x").read_text() == "old"


def test_an_expression_without_an_end(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """It would take years; the promise after it has its turn, and its time is its own."""
    endless, fine = peer("rep", "--answer", 64 * "a"), peer("rep", "--answer", "World")
    run = agent.run(
        messages(
            promise("x", "request", endpoint=endless.endpoint, payload="?", expect="(a|a)*b", file=tmp_path / "x"),
            promise("next", "request", endpoint=fine.endpoint, payload="?", expect="W.*d", timeout="20"),
        )
    )
    assert run.classes == seen("x", *TIMED_OUT) | seen("next", "kept", "delivered")
    [said] = run.errors
    assert "timed out: to match what came with '(a|a)*b' (does it repeat a repetition?) takes too long" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("pattern", ASKING)
def test_expected_answers(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """`expect` must match every answer whole; without `file` such a request is a check, and kept."""
    endpoint = peer("rep", "--answer", "World").endpoint
    lines = peer("rep", "--answer", "a\nb").endpoint
    counting = [peer("rep", "--answer", "1", "--answer", "2", "--answer", "x").endpoint for _ in range(2)]
    (tmp_path / "mismatched").write_text("old")
    run = agent.run(
        messages(
            promise("check", pattern, endpoint=endpoint, payload="?", expect="W.*"),
            promise("filed", pattern, endpoint=endpoint, payload="?", expect="World", file=tmp_path / "filed"),
            promise("part", pattern, endpoint=endpoint, payload="?", expect="Wor"),
            promise("rest", pattern, endpoint=endpoint, payload="?", expect="orld"),
            promise("mismatched", pattern, endpoint=endpoint, payload="?", expect="x", file=tmp_path / "mismatched"),
            promise("lines", pattern, endpoint=lines, payload="?", expect="a$.^b"),
            promise("all", pattern, endpoint=counting[0], payload=["?", "?"], expect="[0-9]"),
            promise("not_all", pattern, endpoint=counting[1], payload=["?", "?", "?"], expect="[0-9]"),
        )
    )
    matched = ("kept", "delivered")
    assert run.classes == (
        seen("check", *matched)
        | seen("filed", "repaired", "delivered", "received")
        | seen("part", *MISMATCHED)
        | seen("rest", *MISMATCHED)
        | seen("mismatched", *MISMATCHED)
        | seen("lines", *matched)
        | seen("all", *matched)
        | seen("not_all", *MISMATCHED)
    )
    assert (tmp_path / "filed").read_text() == "World"
    assert (tmp_path / "mismatched").read_text() == "old"
    assert all("World" in error or "'x'" in error for error in run.errors) and len(run.errors) == 4


@pytest.mark.parametrize("pattern", ASKING)
def test_retries(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """A request that was lost is asked again, from a new socket; without retries it times out."""
    careless = peer("router", "--drop", "5", "--workers", "1")
    deaf = peer("router", "--drop", "1", "--workers", "1")
    run = agent.run(
        messages(
            promise(
                "x", pattern, endpoint=careless.endpoint, payload="a", retries="19", timeout="4", file=tmp_path / "x"
            ),
            promise("y", pattern, endpoint=deaf.endpoint, payload="a", timeout="0.3"),
        )
    )
    assert run.classes == seen("x", "repaired", "delivered", "received") | seen("y", *TIMED_OUT)
    assert (tmp_path / "x").read_text() == "a"
    assert len(careless.received) >= 6 and set(bodies(careless)) == {b"a"}
    assert len({frames[0] for frames in careless.received}) == len(careless.received)
    assert len(deaf.received) == 1


@pytest.mark.parametrize("pattern", ASKING)
def test_retries_of_several_requests(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """Each of several requests gets its own answer in the end, whichever were lost."""
    careless = peer("router", "--drop", "2", "--workers", "1")
    asked = {"endpoint": careless.endpoint, "payload": ["a", "b", "c", "d"], "retries": "9", "timeout": "3"}
    run = agent.run(messages(promise("x", pattern, **asked, file=tmp_path / "x")))
    assert run.classes == seen("x", "repaired", "delivered", "received")
    assert (tmp_path / "x").read_text() == "a\nb\nc\nd\n"


def test_the_file_follows_the_answer(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Run after run: repaired, kept while the answer stays the same, repaired when it changes."""
    server = peer("rep", "--answer", "one", "--answer", "one", "--answer", "two")
    asking = promise("x", "request", endpoint=server.endpoint, payload="?", file=tmp_path / "x")
    for outcome, answer in (("repaired", "one"), ("kept", "one"), ("repaired", "two")):
        assert agent.run(messages(asking)).classes == seen("x", outcome, "delivered", "received")
        assert (tmp_path / "x").read_text() == answer


# --- reply and async_reply ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ANSWERING)
def test_element_i_answers_request_i(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """The last element repeats; the requests go to the file."""
    ours = f"ipc://{tmp_path}/socket"
    client = peer("req", "--connect", ours, *(word for i in range(4) for word in ("--answer", f"q{i}")))
    given = {"endpoint": ours, "bind": "true", "payload": ["a", "b"], "count": "4"}
    run = agent.run(messages(promise("x", pattern, **given, file=tmp_path / "x")))
    assert run.classes == seen("x", "repaired", "sent", "received")
    client.wait_for_end()
    assert client.received == [(b"a",), (b"b",), (b"b",), (b"b",)]
    assert (tmp_path / "x").read_text() == "q0\nq1\nq2\nq3\n"


@pytest.mark.parametrize("pattern", ANSWERING)
@pytest.mark.parametrize("numbered", [False, True])
def test_a_dealer_is_answered(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str, numbered: bool) -> None:
    """Frames up to the empty one come back with the answer, the number too; connecting as well as binding."""
    ours = f"ipc://{tmp_path}/socket"
    arguments = ("--count", "3", *(["--number"] if numbered else []))
    clients = peer("dealer", *arguments), peer("dealer", *arguments, "--connect", ours)
    given = {"payload": ["a", "b", "c"], "count": "3", "format": "json"}
    run = agent.run(
        messages(
            promise("connects", pattern, endpoint=clients[0].endpoint, **given, file=tmp_path / "connects"),
            promise("binds", pattern, endpoint=ours, bind="true", **given, file=tmp_path / "binds"),
        )
    )
    answered = ("repaired", "sent", "received")
    assert run.classes == seen("connects", *answered) | seen("binds", *answered)
    for client, name in zip(clients, ("connects", "binds")):
        client.wait_for_end()
        numbers = [(b"%d" % i,) if numbered else () for i in range(3)]
        assert client.received == [(*number, b"", text) for number, text in zip(numbers, (b"a", b"b", b"c"))]
        assert json.loads((tmp_path / name).read_text()) == [{"payload": i, "topic": ""} for i in range(3)]


def test_a_dealer_without_a_delimiter_is_answered(agent: Agent, tmp_path: Path) -> None:
    """An `async_reply` to a message of one frame is a message of one frame."""
    ours = f"ipc://{tmp_path}/socket"
    with own_socket(zmq.DEALER) as client:
        client.connect(ours)
        client.send(b"Hello")
        given = {"endpoint": ours, "bind": "true", "payload": "World"}
        run = agent.run(messages(promise("x", "async_reply", **given, file=tmp_path / "x")))
        assert client.recv_multipart() == [b"World"]
    assert run.classes == seen("x", "repaired", "sent", "received")
    assert (tmp_path / "x").read_text() == "Hello"


def test_several_clients_are_answered(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """REQ and DEALER clients of one `async_reply` each get their answers."""
    ours = f"ipc://{tmp_path}/socket"
    clients = [peer(kind, "--count", "3", "--connect", ours) for kind in ("req", "req", "dealer")]
    run = agent.run(
        messages(
            promise("x", "async_reply", endpoint=ours, bind="true", payload="World", count="9", file=tmp_path / "x")
        )
    )
    assert run.classes == seen("x", "repaired", "sent", "received")
    for client in clients:
        client.wait_for_end()
        assert bodies(client) == [b"World"] * 3
    assert sorted((tmp_path / "x").read_text().split()) == sorted("012" * 3)


def test_fewer_requests_than_wanted(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Who asks is answered, what came is written; but the promise is not kept, and nothing is called received."""
    where = {pattern: f"ipc://{tmp_path}/{pattern}" for pattern in ANSWERING}
    clients = [peer("req", "--connect", endpoint, "--answer", "Hello") for endpoint in where.values()]
    given = {"bind": "true", "payload": "World", "count": "3", "timeout": "1"}
    run = agent.run(
        messages(
            *(promise(name, name, endpoint=where[name], **given, file=tmp_path / f"{name}.file") for name in where)
        )
    )
    assert run.classes == set().union(*(seen(name, *TIMED_OUT) for name in where))
    assert [client.received for client in clients] == [[(b"World",)]] * 2
    assert [(tmp_path / f"{name}.file").read_text() for name in where] == ["Hello\n"] * 2
    assert all("1 of 3" in error for error in run.errors)


@pytest.mark.parametrize("pattern", ANSWERING)
def test_answering_without_a_file(agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str) -> None:
    """Who answered is repaired each time, and received nothing that was wanted."""
    ours = f"ipc://{tmp_path}/socket"
    for _ in range(2):
        client = peer("req", "--connect", ours)
        run = agent.run(messages(promise("x", pattern, endpoint=ours, bind="true", payload="World")))
        assert run.classes == seen("x", "repaired", "sent")
        client.wait_for_end()


# --- publish and subscribe ----------------------------------------------------------------------------------------


def test_numbered_updates_are_collected(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Five of twenty updates, in order; the next promise goes on with the next update, since the socket stays open."""
    publisher = peer("pub", "--topic", "load", "--count", "20")
    wanted = {"endpoint": publisher.endpoint, "topic": "load", "count": "5"}
    run = agent.run(
        messages(
            promise("first", "subscribe", **wanted, file=tmp_path / "first"),
            promise("second", "subscribe", **wanted, file=tmp_path / "second"),
        )
    )
    assert run.classes == seen("first", "repaired", "received") | seen("second", "repaired", "received")
    assert (tmp_path / "first").read_text() == "0\n1\n2\n3\n4\n"
    assert (tmp_path / "second").read_text() == "5\n6\n7\n8\n9\n"


def test_topics_are_prefixes(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """A subscriber hears every topic that begins with its own, no other; the file tells topic and payload apart."""
    publisher = peer("pub", "--topic", "load.cpu", "--answer", '{"idle": 0.5}')
    wanted = {"endpoint": publisher.endpoint, "format": "json"}
    run = agent.run(
        messages(
            promise("every", "subscribe", **wanted, file=tmp_path / "every", count="2"),
            promise("part", "subscribe", **wanted, topic="load", file=tmp_path / "part"),
            promise("whole", "subscribe", **wanted, topic="load.cpu", file=tmp_path / "whole"),
            promise("longer", "subscribe", **wanted, topic="load.cpu.0", file=tmp_path / "longer", timeout="0.3"),
        )
    )
    heard = set().union(*(seen(name, "repaired", "received") for name in ("every", "part", "whole")))
    assert run.classes == heard | seen("longer", *TIMED_OUT)
    update = {"payload": {"idle": 0.5}, "topic": "load.cpu"}
    files = [json.loads((tmp_path / name).read_text()) for name in ("every", "part", "whole")]
    assert files == [[update] * 2, [update], [update]]
    assert not (tmp_path / "longer").exists()


def test_publishers_of_one_frame(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """A message of a single frame is payload; its topic is empty, though the prefix wanted is looked for in it."""
    publisher = peer("pub", "--topic", "load", "--single", "--answer", "high")
    wanted = {"endpoint": publisher.endpoint, "topic": "lo"}
    run = agent.run(
        messages(
            promise("text", "subscribe", **wanted, file=tmp_path / "text"),
            promise("json", "subscribe", **wanted, file=tmp_path / "json", format="json"),
        )
    )
    assert run.classes == seen("text", "repaired", "received") | seen("json", "repaired", "received")
    assert (tmp_path / "text").read_text() == "load high"
    assert json.loads((tmp_path / "json").read_text()) == [{"payload": "load high", "topic": ""}]


def test_published_messages_have_topic_and_payload(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Each element of a list is a message with the topic before it; a prefix subscribed to matches."""
    ours = f"ipc://{tmp_path}/socket"
    subscriber = peer("sub", "--topic", "ne", "--connect", ours)
    given = {"endpoint": ours, "bind": "true", "topic": "news"}
    run = agent.run(messages(promise("x", "publish", **given, payload=["a", "b", "c"])))
    assert run.classes == seen("x", "repaired", "sent")
    assert [e.frames for e in subscriber.wait_for(3)] == [(b"news", b"a"), (b"news", b"b"), (b"news", b"c")]


def test_two_subscribers_wanted(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """It speaks when both are there, and both hear it."""
    ours = f"ipc://{tmp_path}/socket"
    subscribers = [peer("sub", "--topic", topic, "--connect", ours) for topic in ("news", "new")]
    given = {"endpoint": ours, "bind": "true", "topic": "news", "subscribers": "2"}
    run = agent.run(messages(promise("x", "publish", **given, payload="Hello")))
    assert run.classes == seen("x", "repaired", "sent")
    for subscriber in subscribers:
        assert subscriber.wait_for(1)[0].frames == (b"news", b"Hello")


def test_same_subscription_by_two_subscribers(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Two subscribers to the very same topic are two."""
    ours = f"ipc://{tmp_path}/socket"
    subscribers = [peer("sub", "--topic", "news", "--connect", ours) for _ in range(2)]
    given = {"endpoint": ours, "bind": "true", "topic": "news", "subscribers": "2"}
    run = agent.run(messages(promise("x", "publish", **given, payload="Hello")))
    assert run.classes == seen("x", "repaired", "sent")
    for subscriber in subscribers:
        assert subscriber.wait_for(1)[0].frames == (b"news", b"Hello")


@pytest.mark.parametrize(
    "prefixes", [[b"n", b"news"], [b"n", b"other"], [b"n", b"news.more"]], ids=["two match", "other", "longer"]
)
def test_who_counts_as_a_subscriber(agent: Agent, peer: StartPeer, tmp_path: Path, prefixes: list[bytes]) -> None:
    """One subscriber counts once, however many of its prefixes match: two wanted, nothing is said."""
    ours = f"ipc://{tmp_path}/socket"
    given = {"endpoint": ours, "bind": "true", "topic": "news"}
    peer("sub", "--topic", "another", "--connect", ours)
    with own_socket(zmq.SUB) as subscriber:
        for prefix in prefixes:
            subscriber.subscribe(prefix)
        subscriber.connect(ours)
        running = agent.start(
            messages(
                promise("two", "publish", **given, subscribers="2", timeout="0.5", payload="too early"),
                promise("one", "publish", **given, payload="Hello"),
            )
        )
        assert subscriber.recv_multipart() == [b"news", b"Hello"]
        run = running.finish()
    assert run.classes == seen("two", *TIMED_OUT) | seen("one", "repaired", "sent")
    assert "1 of 2" in run.errors[0]


# --- push and pull ------------------------------------------------------------------------------------------------


def test_a_worker_pulls_tasks(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """One task exactly as its bytes; of several one a line, in order; without `file` listening alone is kept."""
    ventilators = [peer("push", "--count", "1000") for _ in range(2)]
    ours = f"ipc://{tmp_path}/socket"
    peer("push", "--answer", "a", "--connect", ours)
    peer("push", "--answer", "b", "--connect", ours)
    run = agent.run(
        messages(
            promise("one", "pull", endpoint=ventilators[0].endpoint, file=tmp_path / "one"),
            promise("many", "pull", endpoint=ventilators[1].endpoint, count="100", file=tmp_path / "many"),
            promise("unwritten", "pull", endpoint=ventilators[1].endpoint, count="2"),
            promise("binds", "pull", endpoint=ours, bind="true", count="2", file=tmp_path / "binds"),
        )
    )
    received = ("repaired", "received")
    listeners = seen("one", *received) | seen("many", *received) | seen("binds", *received)
    assert run.classes == listeners | {"unwritten_kept"}
    assert (tmp_path / "one").read_text() == "0"
    assert (tmp_path / "many").read_text() == "".join(f"{i}\n" for i in range(100))
    assert sorted((tmp_path / "binds").read_text().split()) == ["a", "b"]


def test_fewer_messages_than_wanted(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """What came is written, in the form of several; the promise is not kept, and nothing is called received."""
    speakers = {"pull": ("push",), "pair": ("pair-speaking",), "subscribe": ("pub", "--count", "2")}
    promises = []
    for pattern, arguments in speakers.items():
        endpoint = peer(*arguments, "--answer", "a", "--answer", "b").endpoint
        (tmp_path / pattern).write_text("old")
        given = {"endpoint": endpoint, "count": "3", "timeout": "0.7"}
        promises.append(promise(pattern, pattern, **given, file=tmp_path / pattern))
    run = agent.run(messages(*promises))
    assert run.classes == set().union(*(seen(pattern, *TIMED_OUT) for pattern in speakers))
    assert [(tmp_path / pattern).read_text() for pattern in speakers] == ["a\nb\n"] * 3
    assert all("2 of 3" in error for error in run.errors)


def test_messages_of_several_frames_among_others(agent: Agent, tmp_path: Path) -> None:
    """A listener cannot keep a message of several frames: an invalid reply; the others are written all the same."""
    with own_socket(zmq.PUSH) as pusher, own_socket(zmq.XPUB) as publisher:
        pulled, published = bound(pusher), bound(publisher)
        wanted = {"count": "0", "timeout": "0.7"}
        running = agent.start(
            messages(
                promise("pull", "pull", endpoint=pulled, **wanted, file=tmp_path / "pull"),
                promise("sub", "subscribe", endpoint=published, **wanted, file=tmp_path / "sub", format="json"),
            )
        )
        for frames in ([b"a"], [b"b", b"c"], [b"d"]):
            pusher.send_multipart(frames)  # waits for the worker
        publisher.recv()  # a subscription
        for frames in ([b"t", b"u"], [b"t", b"v", b"w"], [b"t", b"x"]):
            publisher.send_multipart(frames)
        run = running.finish()
    assert run.classes == seen("pull", *INVALID_REPLY) | seen("sub", *INVALID_REPLY)
    assert (tmp_path / "pull").read_text() == "a\nd\n"
    assert json.loads((tmp_path / "sub").read_text()) == [{"payload": text, "topic": "t"} for text in "ux"]


@pytest.mark.parametrize("bind", ["false", "true"], ids=["connects", "binds"])
def test_all_that_was_handed_over_arrives(agent: Agent, peer: StartPeer, tmp_path: Path, bind: str) -> None:
    """A run pushes a thousand tasks and ends: every one of them reaches the worker, in order."""
    ours = f"ipc://{tmp_path}/socket"
    worker = peer("pull", *(["--connect", ours] if bind == "true" else []))
    endpoint = ours if bind == "true" else worker.endpoint
    tasks = [f"task {i}" for i in range(1000)]
    run = agent.run(
        messages(promise("x", "push", endpoint=endpoint, bind=bind, payload="@(tasks)")),
        vars={"tasks": tasks},
        options=["--inform"],
    )
    assert run.classes == seen("x", "repaired", "sent")
    assert "handed over" in run.infos[0] and "delivered" not in run.output
    worker.wait_for(1000)
    assert bodies(worker) == [task.encode() for task in tasks]


def test_a_worker_that_takes_no_more(agent: Agent, tmp_path: Path) -> None:
    """A push that the worker's and this node's queues cannot hold is not kept, and timed out."""
    with own_socket(zmq.PULL) as worker:
        worker.rcvhwm = 1
        worker.bind(f"ipc://{tmp_path}/socket")
        (tmp_path / "tasks.json").write_text(json.dumps(["x" * 1000] * 3000))
        run = agent.run(
            f'  vars: "tasks" data => readjson("{tmp_path}/tasks.json");\n'
            + messages(promise("x", "push", endpoint=f"ipc://{tmp_path}/socket", payload="@(tasks)", timeout="0.7"))
        )
    assert run.classes == seen("x", *TIMED_OUT)


def test_a_bound_socket_stays_open(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Promises of one run that bind the same endpoint take turns on it: each gets the next message."""
    ours = {"endpoint": f"ipc://{tmp_path}/pull", "bind": "true"}, {"endpoint": f"ipc://{tmp_path}/rep", "bind": "true"}
    peer("push", "--count", "3", "--connect", ours[0]["endpoint"])
    client = peer("req", "--count", "3", "--connect", ours[1]["endpoint"])
    pulls = [promise(f"p{i}", "pull", **ours[0], file=tmp_path / f"p{i}") for i in range(3)]
    replies = [promise(f"r{i}", "reply", **ours[1], payload=f"a{i}", file=tmp_path / f"r{i}") for i in range(3)]
    run = agent.run(messages(*pulls, *replies))
    assert run.classes == set().union(
        *(seen(f"p{i}", "repaired", "received") | seen(f"r{i}", "repaired", "sent", "received") for i in range(3))
    )
    assert [(tmp_path / f"{name}{i}").read_text() for name in "pr" for i in range(3)] == list("012012")
    client.wait_for_end()
    assert bodies(client) == [b"a0", b"a1", b"a2"]


def test_what_a_peer_left_behind(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Messages that came are there for a later promise, though the one who said them has gone since."""
    ventilator = peer("push", "--count", "102")
    pause = peer("rep", "--delay", "0.5", "--answer", "World").endpoint
    run = agent.run(
        messages(
            promise("first", "pull", endpoint=ventilator.endpoint, count="100", file=tmp_path / "first"),
            promise("pause", "request", endpoint=pause, payload="?", expect="World"),
            promise("rest", "pull", endpoint=ventilator.endpoint, count="2", file=tmp_path / "rest", timeout="2"),
        )
    )
    received = ("repaired", "received")
    assert run.classes == seen("first", *received) | seen("pause", "kept", "delivered") | seen("rest", *received)
    assert (tmp_path / "rest").read_text() == "100\n101\n"


# --- pair ---------------------------------------------------------------------------------------------------------


def test_a_pair_that_is_answered(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """With `file` or `expect` each payload wants its answer: then it is delivered."""
    first, second, third, fourth = (peer("pair").endpoint for _ in range(4))
    run = agent.run(
        messages(
            promise("filed", "pair", endpoint=first, payload=["a", "b", "c"], file=tmp_path / "filed"),
            promise("matched", "pair", endpoint=second, payload="Hello", expect="H.*"),
            promise("mismatched", "pair", endpoint=third, payload="Hello", expect="World", file=tmp_path / "not"),
            promise("both", "pair", endpoint=fourth, payload="é", expect=".", file=tmp_path / "both", format="json"),
        )
    )
    assert run.classes == (
        seen("filed", "repaired", "delivered", "received")
        | seen("matched", "repaired", "delivered")
        | seen("mismatched", *MISMATCHED)
        | seen("both", "repaired", "delivered", "received")
    )
    assert (tmp_path / "filed").read_text() == "a\nb\nc\n"
    assert not (tmp_path / "not").exists()
    assert json.loads((tmp_path / "both").read_text()) == [{"payload": "é", "topic": ""}]


def test_a_pair_without_an_answer(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Without `file` and `expect` a message is sent, to a silent pair too; with one of them silence is a time-out."""
    quiet, waited, checked = (peer("pair-silent") for _ in range(3))
    run = agent.run(
        messages(
            promise("sent", "pair", endpoint=quiet.endpoint, payload=["a", "b"]),
            promise("waited", "pair", endpoint=waited.endpoint, payload="a", file=tmp_path / "x", timeout="0.3"),
            promise("checked", "pair", endpoint=checked.endpoint, payload="a", expect="x", timeout="0.3"),
        )
    )
    assert run.classes == seen("sent", "repaired", "sent") | seen("waited", *TIMED_OUT) | seen("checked", *TIMED_OUT)
    assert [event.frames for event in quiet.wait_for(2)] == [(b"a",), (b"b",)]
    assert waited.wait_for(1) and checked.wait_for(1)
    assert not (tmp_path / "x").exists()


def test_a_pair_that_listens(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Without payload a pair hears what the other one says."""
    first, second = (peer("pair-speaking", "--answer", "a", "--answer", "b").endpoint for _ in range(2))
    run = agent.run(
        messages(
            promise("filed", "pair", endpoint=first, count="2", file=tmp_path / "x"),
            promise("unwritten", "pair", endpoint=second, count="2"),
        )
    )
    assert run.classes == seen("filed", "repaired", "received") | {"unwritten_kept"}
    assert (tmp_path / "x").read_text() == "a\nb\n"


# --- count 0 ------------------------------------------------------------------------------------------------------


def test_all_that_come_until_the_timeout(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """`count` 0 takes what comes; none is fine, and then the file is empty; nobody at the other end is not."""
    ventilator = peer("push", "--count", "3", "--connect", f"ipc://{tmp_path}/socket")
    quiet = {"endpoint": peer("pub", "--topic", "other").endpoint, "topic": "this"}
    lonely = {"endpoint": f"ipc://{tmp_path}/lonely-socket", "bind": "true"}
    wanted = {"count": "0", "timeout": "0.3"}
    bound_to = {"endpoint": f"ipc://{tmp_path}/socket", "bind": "true", "count": "0", "timeout": "0.7"}
    (tmp_path / "dead").write_text("old")
    promises = messages(
        promise("some", "pull", **bound_to, file=tmp_path / "some"),
        promise("quiet", "subscribe", **quiet, **wanted, file=tmp_path / "quiet"),
        promise("lonely", "pull", **lonely, **wanted, file=tmp_path / "lonely"),
        promise("json", "pull", **lonely, **wanted, file=tmp_path / "json", format="json"),
        promise("dead", "pull", endpoint=refused_endpoint(), **wanted, file=tmp_path / "dead"),
        promise("unwritten", "subscribe", **quiet, **wanted),
    )
    run = agent.run(promises)
    received = set().union(*(seen(name, "repaired", "received") for name in ("some", "quiet", "lonely", "json")))
    assert run.classes == received | seen("dead", *UNREACHABLE) | {"unwritten_kept"}
    texts = {name: (tmp_path / name).read_text() for name in ("some", "quiet", "lonely", "dead")}
    assert texts == {"some": "0\n1\n2\n", "quiet": "", "lonely": "", "dead": "old"}
    assert json.loads((tmp_path / "json").read_text()) == []
    ventilator.wait_for_end()


def test_who_hands_over_and_leaves(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """What came is kept, though the one who said it ended at once, before the promise had a look."""
    ventilators = {f"p{i}": peer("push", "--answer", f"task {i}").endpoint for i in range(6)}
    run = agent.run(
        messages(
            *(
                promise(name, "pull", endpoint=it, timeout="0.5", file=tmp_path / name)
                for name, it in ventilators.items()
            )
        )
    )
    assert run.classes == set().union(*(seen(name, "repaired", "received") for name in ventilators))
    assert [(tmp_path / name).read_text() for name in ventilators] == [f"task {i}" for i in range(6)]


def test_all_requests_until_the_timeout(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """`count` 0 answers who asks; when nobody does, nothing was said and the promise is kept."""
    given = {"bind": "true", "count": "0", "payload": "World"}
    promises, clients = [], []
    for name in ANSWERING:
        asked, quiet = (f"ipc://{tmp_path}/{name}-{number}" for number in range(2))
        clients.append(peer("req", "--count", "3", "--connect", asked))
        promises.append(promise(name, name, endpoint=asked, **given, timeout="0.7", file=tmp_path / f"{name}.file"))
        promises.append(promise(f"{name}_none", name, endpoint=quiet, **given, timeout="0.1"))
    run = agent.run(messages(*promises))
    answered = set().union(*(seen(name, "repaired", "sent", "received") for name in ANSWERING))
    assert run.classes == answered | {f"{name}_none_kept" for name in ANSWERING}
    for name, client in zip(ANSWERING, clients):
        client.wait_for_end()
        assert (tmp_path / f"{name}.file").read_text() == "0\n1\n2\n"


# --- endpoints ----------------------------------------------------------------------------------------------------


def test_a_dead_endpoint_before_a_live_one(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Of several endpoints the first where somebody is serves, for whatever pattern."""
    dead = [refused_endpoint(), f"ipc://{tmp_path}/nobody"]
    kinds = {pattern: peer(*case.peer) for pattern, case in CASES.items()}
    promises = [
        promise(pattern, pattern, endpoint=[*dead, live.endpoint], **optional(tmp_path, pattern))
        for pattern, live in kinds.items()
    ]
    run = agent.run(messages(*promises))
    assert run.classes == set().union(*(seen(name, "repaired", *case.classes) for name, case in CASES.items()))
    for pattern, case in CASES.items():
        if case.says:
            assert kinds[pattern].wait_for(1)[0].frames == (*case.prefix, b"Hello")
        if case.hears:
            assert (tmp_path / f"{pattern}.file").read_text() == "World"


def test_dead_endpoints_alone(agent: Agent, tmp_path: Path) -> None:
    """The one error line of a promise names each endpoint that failed."""
    dead = [refused_endpoint(), f"ipc://{tmp_path}/nobody", refused_endpoint()]
    run = agent.run(messages(promise("x", "request", endpoint=dead, payload="?", timeout="0.6")))
    assert run.classes == seen("x", *UNREACHABLE)
    assert len(run.errors) == 1 and all(endpoint in run.errors[0] for endpoint in dead)


def test_a_silent_endpoint_before_a_live_one(agent: Agent, peer: StartPeer) -> None:
    """Who does not answer is left for the next one, in time."""
    endpoints = [peer("silent-router").endpoint, peer("rep", "--answer", "World").endpoint]
    asking = promise("x", "request", endpoint=endpoints, payload="?", expect="World", timeout="1.2")
    assert agent.run(messages(asking)).classes == seen("x", "kept", "delivered")


def test_endpoints_of_every_kind(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """ipc paths, abstract ones and IPv6; connecting and binding."""
    ports = [free_port(host) for host in ("::1", "127.0.0.1")]
    abstract = f"ipc://@messages-test-{os.getpid()}"
    servers = {"ipc": f"ipc://{tmp_path}/ipc", "abstract": abstract, "v6": "tcp://[::1]:*"}
    where = {name: peer("rep", "--bind", endpoint).endpoint for name, endpoint in servers.items()}
    clients = {"bind_v6": f"tcp://[::1]:{ports[0]}", "bind_all": f"tcp://127.0.0.1:{ports[1]}"}
    for endpoint in clients.values():
        peer("req", "--connect", endpoint)
    bound_at = {"bind_v6": clients["bind_v6"], "bind_all": f"tcp://*:{ports[1]}"}
    run = agent.run(
        messages(
            *(
                promise(name, "request", endpoint=endpoint, payload="?", expect="[?]")
                for name, endpoint in where.items()
            ),
            *(promise(name, "reply", endpoint=it, bind="true", payload="World") for name, it in bound_at.items()),
        )
    )
    asked = set().union(*(seen(name, "kept", "delivered") for name in where))
    assert run.classes == asked | set().union(*(seen(name, "repaired", "sent") for name in bound_at))


@pytest.mark.skipif(not resolves("localhost"), reason="this machine knows no address of localhost")
def test_an_endpoint_by_name(agent: Agent, peer: StartPeer) -> None:
    """A name is resolved, and each of its addresses tried: localhost may be ::1 first, where nobody listens."""
    endpoint = peer("rep").endpoint.replace("127.0.0.1", "localhost")
    run = agent.run(messages(promise("x", "request", endpoint=endpoint, payload="?", expect="[?]")))
    assert run.classes == seen("x", "kept", "delivered")


def test_the_promiser_is_an_endpoint(agent: Agent, peer: StartPeer) -> None:
    """Without `endpoint` the promiser says where; where both are endpoints, `endpoint` does."""
    server, dead = peer("rep", "--answer", "World"), refused_endpoint()
    live = server.endpoint
    run = agent.run(
        "  messages:\n"
        f'    "{live}" pattern => "request", payload => "a", classes => outcome("x");\n'
        f'    "{dead}" pattern => "request", payload => "b", endpoint => "{live}", classes => outcome("y");\n'
    )
    assert run.classes >= {"x_repaired", "y_repaired"}
    assert bodies(server) == [b"a", b"b"]


def test_classes_begin_with_the_canonified_promiser(agent: Agent, peer: StartPeer) -> None:
    """Policy finds them by canonify(), whatever the promiser: an endpoint, text outside ASCII, or nothing."""
    endpoint = peer("rep", "--answer", "World").endpoint
    names = {"where": endpoint, "marks": "a b/c-d.e", "umlaut": "größe", "colon": "name:space", "empty": ""}
    given = f'pattern => "request", endpoint => "{endpoint}", payload => "a", expect => "World"'
    run = agent.run(
        "  messages:\n"
        + "".join(f'    "$({name})" {given};\n' for name in names)
        + "  reports:\n"
        + "".join(f'    "{name}" if => canonify("$({name})_delivered");\n' for name in names),
        vars=names,
    )
    assert sorted(run.reports) == sorted(names)
    assert run.classes == {canonified(f"{text}_delivered") for text in names.values()}


def canonified(text: str) -> str:
    """As cf-agent does it, byte by byte."""
    return re.sub(rb"[^A-Za-z0-9_]", b"_", text.encode()).decode()


# --- payloads -----------------------------------------------------------------------------------------------------


def test_payloads_of_every_kind(agent: Agent, peer: StartPeer) -> None:
    """A string is one message, an element of a list each; what is no string goes as compact JSON, UTF-8 unescaped."""
    server = peer("rep")
    data = '{"k": [1, 2.5, "é", true, null], "o": {}}'
    kinds: dict[str, str | list[str]] = {
        "string": '{"a": 1}, and more',
        "json_text": '{"a":  1}',
        "empty_text": "",
        "literal": ["one", "two"],
        "slist": "@(slist)",
        "object": "@(object)",
        "array": "@(array)",
        "mixed": "@(mixed)",
    }
    promises = [promise(name, "request", endpoint=server.endpoint, payload=value) for name, value in kinds.items()]
    run = agent.run(
        f"""
        vars:
          "object" data => '{data}';
          "array" data => '["x", "y"]';
          "mixed" data => '["x", {data}, [1, [2]], 3, true, null]';
        """
        + messages(*promises),
        vars={"slist": ["three", "four"]},
    )
    assert run.classes == set().union(*(seen(name, "repaired", "delivered") for name in kinds))
    compact = '{"k":[1,2.5,"é",true,null],"o":{}}'
    said = ['{"a": 1}, and more', '{"a":  1}', "", "one", "two", "three", "four", compact, "x", "y"]
    said += ["x", compact, "[1,[2]]", "3", "true", "null"]
    assert [body.decode() for body in bodies(server)] == said


@every_speaker
def test_an_empty_list_says_nothing(agent: Agent, pattern: str) -> None:
    """An empty list, however it is written, is kept without a look for the other side."""
    payloads = {"literal": "{ }", "slist": "@(empty)", "array": "@(array)"}
    promises = "".join(
        promise(name, pattern, endpoint="tcp://name.invalid:1", payload="PAYLOAD").replace('"PAYLOAD"', text)
        for name, text in payloads.items()
    )
    run = agent.run('  vars: "empty" slist => {}; "array" data => \'[]\';\n' + messages(promises))
    assert run.classes == {f"{name}_kept" for name in payloads}
    assert run.output == ""


def test_cf_null_is_an_empty_list(agent: Agent, peer: StartPeer) -> None:
    """`{ "cf_null" }`, the empty list of older policies, says nothing either."""
    server = peer("rep")
    literal = promise("literal", "request", endpoint=server.endpoint, payload=["cf_null"])
    variable = promise("variable", "request", endpoint=server.endpoint, payload="@(empty)")
    run = agent.run(messages(literal, variable), vars={"empty": ["cf_null"]})
    assert run.classes == {"literal_kept", "variable_kept"}
    assert server.received == []


def test_a_payload_file_is_said_as_its_bytes(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Every byte of it, `$(x)` and an array included, is one message; an empty file is an empty one."""
    contents = {
        "policy": b"$(sys.fqhost) @(x) ${y}",
        "bytes": bytes(range(256)) * 5,
        "array": b'["a", "b", 3000000000]\n',
        "empty": b"",
    }
    server = peer("rep")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    run = agent.run(
        messages(
            *(
                promise(
                    name,
                    "request",
                    endpoint=server.endpoint,
                    payload_file=tmp_path / name,
                    file=tmp_path / f"{name}.file",
                )
                for name in contents
            )
        )
    )
    assert run.classes == set().union(*(seen(name, "repaired", "delivered", "received") for name in contents))
    assert bodies(server) == list(contents.values())
    assert [(tmp_path / f"{name}.file").read_bytes() for name in contents] == list(contents.values())


@every_speaker
def test_a_payload_file_goes_with_every_pattern_that_speaks(
    agent: Agent, peer: StartPeer, tmp_path: Path, pattern: str
) -> None:
    """What a `payload_file` holds reaches the peer; a file that is missing is this node's own fault."""
    case = CASES[pattern]
    (tmp_path / "payload").write_bytes(b"\x00\xff$(x)")
    live = peer(*case.peer)
    run = agent.run(
        messages(
            promise("missing", pattern, endpoint=live.endpoint, payload_file=tmp_path / "missing"),
            promise("there", pattern, endpoint=live.endpoint, payload_file=tmp_path / "payload"),
        )
    )
    classes = "delivered" if pattern in ASKING else "sent"
    assert run.classes == seen("missing", *LOCAL) | seen("there", "repaired", classes)
    assert live.wait_for(1)[0].frames == (*case.prefix, b"\x00\xff$(x)")


def test_text_outside_ascii(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """Payload, topic, expression, file name and answer are UTF-8; bytes that are none pass through unchanged.

    Not from cf-agent 3.27, which makes code points of them.
    """
    server = peer("rep", "--answer", "Grüße ☃")
    subscriber = peer("sub", "--topic", "größe", "--connect", f"ipc://{tmp_path}/s")
    run = agent.run(
        messages(
            promise(
                "x", "request", endpoint=server.endpoint, payload="grün 🐢", expect="Grü.e ☃", file=tmp_path / "grün"
            ),
            promise("bytes", "request", endpoint=server.endpoint, payload="\udcff\udcfe"),
            promise("pub", "publish", endpoint=f"ipc://{tmp_path}/s", bind="true", topic="größe", payload="é"),
        )
    )
    assert run.classes == (
        seen("x", "repaired", "delivered", "received")
        | seen("bytes", "repaired", "delivered")
        | seen("pub", "repaired", "sent")
    )
    assert bodies(server) == ["grün 🐢".encode(), b"\xff\xfe" if agent_version() < "3.27" else "ÿþ".encode()]
    assert (tmp_path / "grün").read_text() == "Grüße ☃"
    assert subscriber.wait_for(1)[0].frames == ("größe".encode(), "é".encode())


# --- files --------------------------------------------------------------------------------------------------------


def test_an_answer_is_data_in_the_same_run(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """What a promise received is read with readjson(), guarded by its class, by a report of the same run."""
    server = peer("rep", "--answer", '{"servers": ["10.0.0.1", "10.0.0.2"], "ttl": 60}')
    run = agent.run(
        "  vars:\n"
        "    dns_received::\n"
        f'      "dns" data => readjson("{tmp_path}/dns");\n'
        '      "servers" slist => getvalues("dns[0][payload][servers]");\n'
        "  messages:\n"
        "    any::\n"
        + promise("dns", "request", endpoint=server.endpoint, payload="?", file=tmp_path / "dns", format="json")
        + "  reports:\n"
        "    dns_received::\n"
        '      "server $(servers) for $(dns[0][payload][ttl]) s";\n'
    )
    assert run.reports == ["server 10.0.0.1 for 60 s", "server 10.0.0.2 for 60 s"]
    assert run.classes == seen("dns", "repaired", "delivered", "received")


def test_a_replaced_file(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """It has mode 600 whatever was there before, takes the place of a symbolic link, and leaves nothing beside it."""
    server = peer("rep", "--answer", "World").endpoint
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "target").write_text("precious")
    (folder / "link").symlink_to(tmp_path / "target")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "open").write_text("old")
    (folder / "open").chmod(0o666)
    names = ["link", "dangling", "open", "new"]
    run = agent.run(
        messages(*(promise(name, "request", endpoint=server, payload="?", file=folder / name) for name in names))
    )
    assert run.classes == set().union(*(seen(name, "repaired", "delivered", "received") for name in names))
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for name in names:
        status = (folder / name).lstat()
        assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        assert (folder / name).read_text() == "World"
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_text_and_json(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """As text one message is exactly its bytes, and each of several a line; JSON tells values from texts."""
    answers = ['{"a": [1, -2.5]}', "plain text", '"quoted"', "", "17", "line\nline"]
    options = [word for answer in answers for word in ("--answer", answer)]
    single, several = peer("rep", *options).endpoint, peer("rep", *options, *options).endpoint
    asked = ["?"] * len(answers)
    run = agent.run(
        messages(
            *(promise(f"p{i}", "request", endpoint=single, payload="?", file=tmp_path / f"{i}") for i in range(6)),
            promise("text", "request", endpoint=several, payload=asked, file=tmp_path / "text"),
            promise("json", "request", endpoint=several, payload=asked, file=tmp_path / "json", format="json"),
        )
    )
    names = [*(f"p{i}" for i in range(6)), "text", "json"]
    assert run.classes == set().union(*(seen(name, "repaired", "delivered", "received") for name in names))
    assert [(tmp_path / f"{i}").read_text() for i in range(6)] == answers
    assert (tmp_path / "text").read_text() == "".join(f"{answer}\n" for answer in answers)
    values = [{"a": [1, -2.5]}, "plain text", "quoted", "", 17, "line\nline"]
    assert json.loads((tmp_path / "json").read_text()) == [{"payload": value, "topic": ""} for value in values]


def test_a_file_that_cannot_be_written(agent: Agent, peer: StartPeer, tmp_path: Path) -> None:
    """It is this node's own fault, and known before anything is said."""
    server = peer("rep", "--answer", "World")
    (tmp_path / "folder").mkdir()
    files = {"folder": tmp_path / "folder", "nowhere": tmp_path / "missing/x", "below": tmp_path / "plain/x"}
    (tmp_path / "plain").write_text("a file")
    run = agent.run(
        messages(
            *(promise(name, "request", endpoint=server.endpoint, payload="?", file=f) for name, f in files.items())
        )
    )
    assert run.classes == set().union(*(seen(name, *LOCAL) for name in files))
    assert len(run.errors) == len(files)
    assert all(str(path) in error for path, error in zip(files.values(), run.errors))
    assert server.received == []
