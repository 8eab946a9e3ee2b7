"""How promises fail under a real cf-agent: each failure has its class and its words, and the run goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agent import Agent, How, Run, quoted
from peers import Gate, Peer, refused_endpoint, scaled

if TYPE_CHECKING:
    from typing import Unpack

Start = Callable[..., Peer]

SPEAKS = ("request", "reply", "async_request", "async_reply", "publish", "push")
PATTERNS = (*SPEAKS, "pair", "subscribe", "pull")
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024


REASONS = {"unreachable", "refused", "timed_out", "mismatched", "invalid_reply", "expired", "local"}
DONE = {"delivered", "sent", "received", "queued"}


class Failed(NamedTuple):
    reason: str  # the one reason class that was set
    text: str  # of the error line, behind promiser and place


def promise(pattern: str, endpoint: str, more: str = "", timeout_s: float = 0.5) -> str:
    """Attributes of a promise; what must speak says one payload unless it is told what."""
    said = ', payload => "x"' if pattern in SPEAKS and "payload" not in more else ""
    more = f", {more}" if more else ""
    return f'pattern => "{pattern}", endpoint => {quoted(endpoint)}, timeout => "{scaled(timeout_s)}"{said}{more}'


def policy(promises: Mapping[str, str]) -> str:
    lines = [f'    "{name}" {attributes}, classes => outcome("{name}");\n' for name, attributes in promises.items()]
    return "  messages:\n" + "".join(lines)


def outcome(run: Run, name: str) -> str:
    """What cf-agent made of the promise; its classes body's prefix is the promiser."""
    found = [word for word in ("kept", "repaired", "not_kept") if f"{name}_{word}" in run.classes]
    assert len(found) == 1, f"{name}: {found}\n{run.output}"
    return found[0]


def failure(run: Run, name: str) -> Failed:
    """How the promise failed: one reason class beside _failed, one error line with promiser and place."""
    assert outcome(run, name) == "not_kept", run.output
    suffixes = {suffix for suffix in REASONS | DONE if f"{name}_{suffix}" in run.classes}
    assert f"{name}_failed" in run.classes and len(suffixes) == 1 and suffixes <= REASONS, (name, suffixes)
    texts = [text for text in run.errors if text.startswith(f"messages '{name}' (")]
    assert len(texts) == 1, run.output
    _, place, text = texts[0].partition(".cf:")
    assert place, texts[0]
    return Failed(suffixes.pop(), text.partition("): ")[2])


def failures(agent: Agent, promises: Mapping[str, str], **how: Unpack[How]) -> dict[str, Failed]:
    """Runs promises that all fail."""
    run = agent.run(policy(promises), **how)
    assert len(run.errors) == len(promises), run.output
    return {name: failure(run, name) for name in promises}


def all_say(failed: Mapping[str, Failed], reason: str, *words: str) -> None:
    """Each of them failed for the reason, with these words in its text."""
    for name, each in failed.items():
        assert each.reason == reason and all(word in each.text for word in words), (name, each)


# ---- nobody there


def test_a_name_that_does_not_resolve(agent: Agent) -> None:
    """All patterns: _unreachable, the text names the endpoint and says that the name does not resolve."""
    promises = {name: promise(name, f"tcp://{name.replace('_', '-')}.invalid:5309", "", 20) for name in PATTERNS}
    failed = failures(agent, promises, env={"RES_OPTIONS": "timeout:1 attempts:1"})
    all_say(failed, "unreachable", ".invalid:5309", "name does not resolve")


def test_a_name_that_no_name_service_can_have(agent: Agent) -> None:
    """Labels that are empty or too long do not resolve either; the run goes on."""
    hosts = {"empty": "a..b", "long": "a" * 64 + ".example", "dots": "..", "endless": "a." * 300}
    promises = {name: promise("push", f"tcp://{host}:1") for name, host in hosts.items()}
    all_say(failures(agent, promises), "unreachable", "name does not resolve")


def test_a_refused_connection(agent: Agent) -> None:
    """All patterns: _unreachable, "connection refused"."""
    dead = {name: refused_endpoint() for name in PATTERNS}
    failed = failures(agent, {name: promise(name, endpoint, "", 0.3) for name, endpoint in dead.items()})
    all_say(failed, "unreachable", "connection refused")
    assert all(dead[name] in each.text for name, each in failed.items())


def test_an_ipc_path_where_nobody_listens(agent: Agent, tmp_path: Path) -> None:
    """A path that is missing, and one that a dead listener left behind, are told apart."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "stale"))
    promises = {
        "missing": promise("request", f"ipc://{tmp_path}/missing", "", 0.3),
        "subscribe": promise("subscribe", f"ipc://{tmp_path}/nothing", "", 0.3),
        "stale": promise("pull", f"ipc://{tmp_path}/stale", "", 0.3),
        "abstract": promise("push", f"ipc://@{tmp_path}", "", 0.3),
    }
    failed = failures(agent, promises)
    all_say(failed, "unreachable", "ipc://")
    assert "no such file" in failed["missing"].text and "no such file" in failed["subscribe"].text
    assert "connection refused" in failed["stale"].text and "connection refused" in failed["abstract"].text


@pytest.fixture
def deaf_endpoint() -> Iterator[str]:
    """A listener whose queue is full: Linux drops further connection attempts without a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        callers = [socket.socket() for _ in range(8)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        for caller in callers:
            caller.close()


def test_a_host_that_never_answers(agent: Agent, deaf_endpoint: str) -> None:
    """A connection attempt that is dropped silently is _unreachable, but not refused; later promises do not wait."""
    promises = {name: promise(name, deaf_endpoint) for name in ("request", "pull", "publish", "pair")}
    failed = failures(agent, promises)
    all_say(failed, "unreachable", deaf_endpoint, "no answer to the connection attempt")
    assert "seen before in this run" not in failed["request"].text
    assert all("seen before in this run" in failed[name].text for name in ("pull", "publish", "pair"))


def test_nobody_connects(agent: Agent, tmp_path: Path) -> None:
    """All patterns, bound, one after the other at one address: _unreachable; nothing was refused."""
    address = f"ipc://{tmp_path}/bound"
    failed = failures(agent, {name: promise(name, address, 'bind => "true"', 0.1) for name in PATTERNS})
    all_say(failed, "unreachable", address, "nobody has connected")


# ---- somebody there, but silent


def test_somebody_who_never_answers(agent: Agent, peer: Start) -> None:
    """Connected, and then silence: _timed_out, with the timeout in the text."""
    promises = {
        "request": promise("request", peer("silent-router").endpoint),
        "async": promise("async_request", peer("silent-router").endpoint, 'payload => { "a", "b" }'),
        "pair": promise("pair", peer("pair-silent").endpoint, 'payload => "x", expect => ".*"'),
        "heard_pair": promise("pair", peer("pair-silent").endpoint),
        "subscribe": promise("subscribe", peer("pub", "--topic", "other").endpoint, 'topic => "mine"'),
        "pull": promise("pull", peer("push", "--delay", "600").endpoint),
        "publish": promise("publish", peer("sub", "--topic", "other").endpoint, 'topic => "mine"'),
    }
    failed = failures(agent, promises)
    all_say(failed, "timed_out", "tcp://127.0.0.1:", f"timeout {scaled(0.5):g} s")
    assert "0 of 2" in failed["async"].text
    assert "0 of 1" in failed["subscribe"].text and "0 of 1" in failed["pull"].text
    assert "0 of 1" in failed["publish"].text and "mine" in failed["publish"].text


def test_somebody_who_never_answers_is_asked_again(agent: Agent, peer: Start) -> None:
    """With `retries`, the request is said so many times more, and then _timed_out."""
    router = peer("silent-router")
    all_say(failures(agent, {"p": promise("request", router.endpoint, 'retries => "2"', 1.5)}), "timed_out")
    assert [event.frames[1:] for event in router.wait_for(3)] == [(b"", b"x")] * 3


def test_fewer_answers_than_questions(agent: Agent, peer: Start) -> None:
    """Some of several answers are not enough; the text says how many came."""
    promises = {
        "async": promise("async_request", peer("router", "--drop", "1").endpoint, 'payload => { "a", "b", "c" }'),
        "pair": promise("pair", peer("pair-speaking").endpoint, 'payload => { "a", "b", "c" }, expect => ".*"'),
    }
    failed = failures(agent, promises)
    all_say(failed, "timed_out")
    assert "2 of 3" in failed["async"].text and "1 of 3" in failed["pair"].text


def test_silence_behind_a_bound_socket(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """Somebody connected, but said nothing or too little: _timed_out."""
    silent = {"pull": ("push", "--delay", "600"), "publish": ("sub", "--topic", "other"), "pair": ("pair-silent",)}
    promises = {}
    for pattern, arguments in silent.items():
        more = ', payload => "x", expect => ".*"' if pattern == "pair" else ""
        more += ', topic => "mine"' if pattern == "publish" else ""
        promises[pattern] = promise(pattern, f"ipc://{tmp_path}/{pattern}", 'bind => "true"' + more)
        peer(*arguments, "--connect", f"ipc://{tmp_path}/{pattern}")
    promises["reply"] = promise("reply", f"ipc://{tmp_path}/reply", 'bind => "true", count => "2"')
    asker = peer("req", "--connect", f"ipc://{tmp_path}/reply")
    failed = failures(agent, promises)
    all_say(failed, "timed_out", f"ipc://{tmp_path}")
    assert "1 of 2" in failed["reply"].text and asker.received == [(b"x",)]


# ---- not who was expected


def test_no_zeromq_peer(agent: Agent, peer: Start) -> None:
    """A listener that is no ZeroMQ peer is _refused, and the text asks whether it is a ZeroMQ socket."""
    http = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
    promises = {
        "silent": promise("request", peer("tcp-silent").endpoint),
        "silent_push": promise("push", peer("tcp-silent").endpoint),
        "ssh": promise("subscribe", peer("tcp-banner").endpoint),
        "ssh_closes": promise("push", peer("tcp-banner", "--close").endpoint),
        "http": promise("async_request", peer("tcp-banner", "--answer", http).endpoint),
        "closes": promise("request", peer("tcp-banner", "--answer", "", "--close").endpoint),
        "closes_pull": promise("pull", peer("tcp-banner", "--answer", "", "--close").endpoint),
    }
    failed = failures(agent, promises)
    all_say(failed, "refused", "is this a ZeroMQ socket")
    assert not any("CURVE" in each.text for each in failed.values())


def test_another_security_mechanism(agent: Agent, peer: Start) -> None:
    """A listener that wants CURVE is _refused, and the text says so.

    Only a connection that we end before the listener does tells it: several attempts may be needed.
    """
    promises = {
        name: promise(name, peer("curve-rep").endpoint, "", 10) for name in ("request", "async_request", "subscribe")
    }
    all_say(failures(agent, promises), "refused", "mechanism", "CURVE")


def test_a_socket_of_another_kind(agent: Agent, peer: Start) -> None:
    """A ZeroMQ socket that does not fit the pattern is _refused, and the text says so."""
    promises = {
        "request": promise("request", peer("pub").endpoint),
        "subscribe": promise("subscribe", peer("rep").endpoint),
        "push": promise("push", peer("router").endpoint),
        "pair": promise("pair", peer("pull").endpoint),
        "reply": promise("reply", peer("rep").endpoint),
    }
    all_say(failures(agent, promises), "refused", "kind", "pattern")


def test_each_failure_has_its_own_words(agent: Agent, peer: Start, deaf_endpoint: str) -> None:
    """No two situations of one pattern have the same text behind the endpoint."""
    promises = {
        "name": promise("request", "tcp://nowhere.invalid:1", "", 20),
        "refused": promise("request", refused_endpoint()),
        "deaf": promise("request", deaf_endpoint),
        "silent": promise("request", peer("silent-router").endpoint),
        "foreign": promise("request", peer("tcp-silent").endpoint),
        "curve": promise("request", peer("curve-rep").endpoint, "", 10),
        "kind": promise("request", peer("pub").endpoint),
        "mismatch": promise("request", peer("rep", "--answer", "a").endpoint, 'expect => "b"'),
        "frames": promise("request", peer("rep", "--answer", "a", "--answer", "b", "--multipart").endpoint),
        "file": promise("request", refused_endpoint(), 'file => "/nonexistent/directory/f"'),
        "payload": promise("request", refused_endpoint(), 'payload_file => "/nonexistent"'),
    }
    failed = failures(agent, promises, env={"RES_OPTIONS": "timeout:1 attempts:1"})
    texts = {each.text.partition("tcp://")[2].partition(" ")[2] or each.text for each in failed.values()}
    assert len(texts) == len(promises), failed
    reasons = (
        "unreachable unreachable unreachable timed_out refused refused refused mismatched invalid_reply local local"
    )
    assert [each.reason for each in failed.values()] == reasons.split()


def test_several_endpoints_that_fail_in_different_ways(agent: Agent, peer: Start) -> None:
    """The text names each endpoint with its own words; one reason is chosen."""
    endpoints = [refused_endpoint(), peer("silent-router").endpoint, peer("tcp-curve").endpoint]
    attributes = promise("request", "x", "", 9).replace('"x"', "@(several)", 1)
    run = agent.run(policy({"p": attributes}), vars={"several": endpoints})
    failed = failure(run, "p")
    for words in (*endpoints, "connection refused", "CURVE", "no answer"):
        assert words in failed.text


# ---- what came is not what was wanted


def test_an_answer_that_does_not_match(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """_mismatched, with the answer and what was expected; the file stays as it was."""
    (tmp_path / "f").write_text("before")
    more = f'expect => "Wor", file => "{tmp_path}/f"'
    promises = {
        "request": promise("request", peer("rep", "--answer", "World").endpoint, more),
        "async_request": promise("async_request", peer("router", "--answer", "World").endpoint, more),
        "pair": promise("pair", peer("pair", "--answer", "World").endpoint, 'payload => "x", ' + more),
        "second": promise(
            "async_request", peer("router", "--workers", "1").endpoint, 'payload => { "Wor", "World" }, expect => "Wor"'
        ),
    }
    all_say(failures(agent, promises), "mismatched", "'World'", "'Wor'")
    assert (tmp_path / "f").read_text() == "before"


def test_a_message_of_several_frames(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """_invalid_reply for every pattern that receives; the text tells the frames."""
    two = ("--answer", "a", "--answer", "b", "--multipart")
    promises = {
        "request": promise("request", peer("rep", *two).endpoint, f'file => "{tmp_path}/request"'),
        "pair": promise("pair", peer("pair", *two).endpoint, 'payload => "x", expect => ".*"'),
        "subscribe": promise("subscribe", peer("pub", *two, "--count", "1").endpoint),
        "pull": promise("pull", peer("push", *two).endpoint),
    }
    all_say(failures(agent, promises), "invalid_reply", "frames")
    assert not (tmp_path / "request").exists()


def test_answers_that_lost_their_envelope(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """Answers to several requests that come without their numbers are _invalid_reply, and nothing is written."""
    more = f'payload => {{ "a", "b", "c" }}, file => "{tmp_path}/f"'
    promises = {"async": promise("async_request", peer("router", "--bare").endpoint, more, 5)}
    all_say(failures(agent, promises), "invalid_reply", "envelope")
    assert not (tmp_path / "f").exists()


def test_an_answer_that_is_too_large(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """An answer over 16 MiB is not taken; the text names the limit, and the next promise is kept."""
    (tmp_path / "large").write_bytes(b"x" * (MAX_PAYLOAD_BYTES + 1))
    large = ("--answer-file", str(tmp_path / "large"))
    promises = {
        "request": promise("request", peer("rep", *large).endpoint, "", 10),
        "async_request": promise("async_request", peer("router", *large).endpoint, "", 10),
        "pair": promise("pair", peer("pair", *large).endpoint, 'payload => "x", expect => ".*"', 1),
        "pull": promise("pull", peer("push", *large).endpoint, "", 1),
    }
    run = agent.run(policy(promises) + policy({"next": promise("request", peer("rep").endpoint, "", 10)}))
    assert outcome(run, "next") == "repaired"
    for name in promises:
        assert "MAX_PAYLOAD_BYTES" in failure(run, name).text, failure(run, name)


def test_an_answer_as_large_as_allowed(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """16 MiB go through, both ways."""
    (tmp_path / "large").write_bytes(b"x" * MAX_PAYLOAD_BYTES)
    attributes = f'payload_file => "{tmp_path}/large", file => "{tmp_path}/f"'
    listener = peer("rep", "--answer-file", str(tmp_path / "large"), "--count", "1")
    run = agent.run(policy({"p": promise("request", listener.endpoint, attributes, 60)}))
    assert outcome(run, "p") == "repaired"
    assert (tmp_path / "f").stat().st_size == MAX_PAYLOAD_BYTES


# ---- this node


def test_an_address_that_cannot_be_bound(agent: Agent, tmp_path: Path) -> None:
    """_local for all patterns: in use, not an address of this host, a directory that is missing."""
    with socket.create_server(("127.0.0.1", 0)) as owner:
        in_use = f"tcp://127.0.0.1:{owner.getsockname()[1]}"
        promises = {name: promise(name, in_use, 'bind => "true"', 0.1) for name in PATTERNS}
        failed = failures(agent, promises)
    all_say(failed, "local", in_use, "in use")
    elsewhere = {"192.0.2.1:5309": "assign", "[2001:db8::1]:5309": "assign"}
    promises = {
        f"p{number}": promise("reply", f"tcp://{address}", 'bind => "true"') for number, address in enumerate(elsewhere)
    }
    promises["ipc"] = promise("reply", f"ipc://{tmp_path}/missing/socket", 'bind => "true"')
    failed = failures(agent, promises)
    all_say(failed, "local", "cannot bind")
    assert "assign" in failed["p0"].text and "o such file" in failed["ipc"].text


def test_an_address_in_use_by_a_zeromq_socket(agent: Agent, peer: Start) -> None:
    """The text tells "in use" apart from "nobody has connected"; the owner is not disturbed."""
    owner = peer("rep")
    promises = {"p": promise("reply", owner.endpoint, 'bind => "true"', 0.2)}
    all_say(failures(agent, promises), "local", "in use")
    assert outcome(agent.run(policy({"q": promise("request", owner.endpoint, "", 10)})), "q") == "repaired"


def test_a_file_that_cannot_be_written(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """_local, known before anything is said: the peer hears nothing."""
    (tmp_path / "file").write_text("")
    listener = peer("rep")
    files = {"nowhere": "missing/f", "directory": "", "below_a_file": "file/f"}
    promises = {
        name: promise("request", listener.endpoint, f'file => "{tmp_path}/{path}"'.replace('/"', '"'))
        for name, path in files.items()
    }
    all_say(failures(agent, promises), "local", "cannot be written", str(tmp_path))
    assert outcome(agent.run(policy({"last": promise("request", listener.endpoint, 'payload => "last"', 10)})), "last")
    assert listener.received == [(b"last",)]


def test_a_directory_that_takes_no_files(agent: Agent, peer: Start) -> None:
    """A file that turns out not to be writable once the answer is there is _local too."""
    promises = {"p": promise("request", peer("rep").endpoint, 'file => "/proc/self/new"', 10)}
    all_say(failures(agent, promises), "local", "/proc/self/new", "cannot be written")


def test_a_payload_file_that_cannot_be_read(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """_local: missing, a directory, a FIFO that nobody writes, larger than the named limit; nothing is said."""
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(MAX_PAYLOAD_BYTES + 1)
    listener = peer("rep")
    paths = {"missing": "missing", "directory": ".", "fifo": "fifo", "large": "large"}
    promises = {
        name: promise("request", listener.endpoint, f'payload_file => "{tmp_path}/{path}"')
        for name, path in paths.items()
    }
    failed = failures(agent, promises)
    all_say(failed, "local", "payload_file", str(tmp_path))
    assert "o such file" in failed["missing"].text and "regular" in failed["fifo"].text
    assert "MAX_PAYLOAD_BYTES" in failed["large"].text
    assert listener.received == []


# ---- peers that go away


def test_a_listener_killed_in_the_middle(agent: Agent, peer: Start) -> None:
    """Of 50 requests, those after SIGKILL are not kept, _unreachable, without waiting; no traceback, no CRITICAL."""
    listener = peer("rep", "--delay", "0.1")
    names = [f"p{number}" for number in range(50)]
    running = agent.start(policy({name: promise("request", listener.endpoint, "", 30) for name in names}))
    listener.wait_for(10)
    listener.kill()
    run = running.finish()
    outcomes = [outcome(run, name) for name in names]
    answered = outcomes.index("not_kept")
    assert answered >= 9 and set(outcomes[answered:]) == {"not_kept"}
    failed = [failure(run, name) for name in names[answered:]]
    assert {each.reason for each in failed} == {"unreachable"}
    assert "seen before" not in failed[0].text and all("seen before" in each.text for each in failed[1:])


def test_a_listener_stopped_in_the_middle(agent: Agent, peer: Start) -> None:
    """A peer that hangs during a request: two promises wait for it in vain, _timed_out, the rest fails at once."""
    listener = peer("rep")
    with Gate() as gate:
        asked = {f"p{number}": promise("request", listener.endpoint) for number in range(5)}
        first = policy({"p0": promise("request", listener.endpoint, "", 30)})
        rest = policy({name: asked[name] for name in list(asked)[1:]})
        running = agent.start(first + gate.promise + rest)
        gate.reached()
        listener.stop()
        gate.open()
        run = running.finish()
    listener.cont()
    assert outcome(run, "p0") == "repaired"
    failed = [failure(run, name) for name in list(asked)[1:]]
    assert failed[0].reason == "timed_out" and "seen before" not in failed[1].text
    assert all("seen before" in each.text for each in failed[2:])


@pytest.mark.parametrize("pattern", ["request", "async_request", "push", "pair", "publish", "subscribe", "reply"])
def test_a_peer_that_died_between_two_promises(agent: Agent, peer: Start, pattern: str) -> None:
    """The socket is still open, its peer is gone: the next promise is _unreachable."""
    kinds = {
        "request": ("rep",),
        "async_request": ("router",),
        "push": ("pull",),
        "pair": ("pair",),
        "publish": ("sub",),
        "subscribe": ("pub", "--count", "1"),  # whatever more it had said might be heard after its end
        "reply": ("req",),
    }
    speaker = peer(*kinds[pattern])
    more = 'payload => "x"' if pattern == "pair" else ""
    both = [promise(pattern, speaker.endpoint, more, timeout_s) for timeout_s in (20, 0.5)]
    with Gate() as gate:
        running = agent.start(policy({"before": both[0]}) + gate.promise + policy({"after": both[1]}))
        gate.reached()
        speaker.kill()
        gate.open()
        run = running.finish()
    assert outcome(run, "before") in ("kept", "repaired")
    failed = failure(run, "after")
    assert failed.reason == "unreachable" and speaker.endpoint in failed.text


def test_a_peer_that_came_back_between_two_promises(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """A listener that is restarted at its address serves the next promise on it."""
    address = f"ipc://{tmp_path}/rep"
    listener = peer("rep", "--bind", address)
    with Gate() as gate:
        promises = [policy({name: promise("request", address, "", 30)}) for name in ("before", "after")]
        running = agent.start(promises[0] + gate.promise + promises[1])
        gate.reached()
        listener.kill()
        peer("rep", "--bind", address)
        gate.open()
        run = running.finish()
    assert [outcome(run, name) for name in ("before", "after")] == ["repaired", "repaired"]


def test_a_pusher_that_left_after_it_spoke(agent: Agent, peer: Start, tmp_path: Path) -> None:
    """What came before the pusher ended is received, also when the end is known before the promise is evaluated."""
    pusher = peer("push", "--answer", "a", "--answer", "b")
    promises = [policy({name: promise("pull", pusher.endpoint, f'file => "{tmp_path}/{name}"')}) for name in "pq"]
    with Gate() as gate:
        running = agent.start(promises[0] + gate.promise + promises[1])
        gate.reached()
        pusher.wait_for_end()
        gate.open()
        run = running.finish()
    assert [outcome(run, name) for name in "pq"] == ["repaired", "repaired"], run.output
    assert [(tmp_path / name).read_text() for name in "pq"] == ["a", "b"]


def test_a_puller_that_dies_after_the_handing_over(agent: Agent, peer: Start) -> None:
    """Tasks that were handed over before the puller died stay _sent: nobody can know; no class says delivered."""
    puller = peer("pull")
    with Gate() as gate:
        running = agent.start(
            policy({"p": promise("push", puller.endpoint, 'payload => { "a", "b" }', 30)}) + gate.promise
        )
        gate.reached()
        puller.kill()
        gate.open()
        run = running.finish()
    assert {"p_repaired", "p_sent"} <= run.classes and not {"p_failed", "p_delivered"} & run.classes
    assert not any("delivered" in text for text in run.infos)


def test_second_answers_are_not_taken_for_the_next(agent: Agent, peer: Start) -> None:
    """A ROUTER answers earlier requests again just before it answers the next ones: each has its own answer."""
    router = peer("router", "--workers", "2", "--twice")
    promises = {}
    for name in ("a", "b", "c"):
        more = f'payload => {{ "{name}1", "{name}2" }}, expect => "{name}."'
        promises[name] = promise("async_request", router.endpoint, more, 30)
    run = agent.run(policy(promises))
    assert [outcome(run, name) for name in promises] == ["kept", "kept", "kept"]
