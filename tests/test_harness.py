"""The harness itself, with a throwaway module in place of ours."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

import zmtp
from agent import Agent
from peers import Context, Peer, refused_endpoint

# Does what the promise's `want` says, also what no module may do.
THROWAWAY = """
import json, sys

def reply(**fields):
    print(json.dumps(fields) + "\\n", flush=True)

sys.stdin.readline(), sys.stdin.readline()
print("throwaway 1.0 v1 json_based action_policy\\n", flush=True)
while True:
    request = json.loads(sys.stdin.readline())
    sys.stdin.readline()
    operation, attributes = request["operation"], request.get("attributes", {})
    want = attributes.get("want", "kept")
    if operation == "terminate":
        break
    if operation == "validate_promise":
        reply(operation=operation, promiser=request["promiser"], attributes=attributes, result="valid")
        continue
    if want == "crash":
        raise RuntimeError("as promised")
    if want == "noise":
        print(attributes.get("noise", ""), file=sys.stderr, flush=True)
    if want == "wait":
        open(attributes["fifo"]).read()
    if want == "not_kept":
        print("log_error=not today")
    if want == "silent_repair":
        want = "repaired"
    elif want == "repaired":
        print("log_info=done")
    result = want if want in ("repaired", "not_kept") else "kept"
    reply(operation=operation, promiser=request["promiser"], attributes=attributes, result=result,
          result_classes=[request["promiser"] + "_delivered"])
reply(operation="terminate", result="success")
"""


@pytest.fixture
def throwaway(agent: Agent) -> Agent:
    agent.install("messages_promise.py", THROWAWAY)
    return agent


def test_every_outcome_and_result_class_of_each_pass_is_seen(throwaway: Agent) -> None:
    """Outcomes, result classes and the bundle's own classes are reported, also of promises made in the third pass."""
    run = throwaway.run("""
      classes:
        "second" expression => "a_kept";
        "third" expression => "b_repaired";
      messages:
        "one" want => "kept", classes => outcome("a");
        "two" want => "repaired", classes => outcome("b"), if => "second";
        "three" want => "not_kept", classes => outcome("c"), if => "third";
        "four" want => "not_kept", classes => outcome("d"), if => "never";
    """)
    outcomes = {"a_kept", "b_repaired", "c_not_kept"}
    assert run.classes == outcomes | {"one_delivered", "two_delivered", "three_delivered", "second", "third"}
    assert run.errors == ["not today"]


def test_no_class_at_all_is_seen_as_none(throwaway: Agent) -> None:
    """A run that sets no class gives an empty set, not an error."""
    assert throwaway.run('  messages: "x" want => "kept", if => "never";').classes == frozenset()


def test_classes_of_many_promises_are_all_seen(throwaway: Agent) -> None:
    """Three hundred promises, more than any buffer of cf-agent holds in one line."""
    promises = "".join(f'"p{i}" want => "kept", classes => outcome("a_rather_long_name_{i}");\n' for i in range(300))
    assert len(throwaway.run("  messages:\n" + promises).classes) == 600


@pytest.mark.parametrize("option", ["--dry-run", "--simulate=diff"])
def test_classes_are_seen_in_a_dry_run(throwaway: Agent, option: str) -> None:
    """The witness works where nothing may be changed and no report is made."""
    run = throwaway.run('  messages: "x" want => "kept", classes => outcome("a");', options=[option])
    assert run.classes == {"a_kept", "x_delivered"}


@pytest.mark.parametrize(
    "attributes",
    ['want => "silent_repair"', 'want => "crash"', 'want => "noise", noise => "a stray word"', 'want => "noise"'],
    ids=["CRITICAL", "traceback", "stray words", "empty line"],
)
def test_what_no_run_may_show_fails_the_test(throwaway: Agent, attributes: str) -> None:
    """A CRITICAL line, a traceback and stray output raise, with the output in the text."""
    with pytest.raises(AssertionError, match="and this output"):
        throwaway.run(f'  messages: "x" {attributes};')


def test_a_critical_line_can_be_asked_for(throwaway: Agent) -> None:
    """`allow_critical` hands the CRITICAL lines to the test instead."""
    run = throwaway.run('  messages: "x" want => "silent_repair", classes => outcome("a");', allow_critical=True)
    assert any("Bug in promise module" in text for text in run.critical)
    assert "a_repaired" in run.classes


def test_a_policy_that_does_not_run_fails_the_test(throwaway: Agent) -> None:
    """A syntax error is never taken for a run in which nothing happened."""
    with pytest.raises(AssertionError, match=r"policy-0\.cf"):
        throwaway.run("  messages: nonsense")


def test_variables_reach_the_policy_as_they_are(throwaway: Agent) -> None:
    """Quotes, backslashes and text outside ASCII survive the way into policy."""
    text = 'say "é" \\ and \\n'
    run = throwaway.run('  reports: "$(text)|$(list)";', vars={"text": text, "list": ["a", 'b"']})
    assert run.reports == [f"{text}|a", f'{text}|b"']


def test_a_test_can_act_during_a_run(throwaway: Agent, tmp_path: Path) -> None:
    """`start` returns while the module still waits; `finish` gives the results."""
    os.mkfifo(tmp_path / "fifo")
    running = throwaway.start(
        '  messages: "x" want => "wait", fifo => "$(fifo)", classes => outcome("a");',
        vars={"fifo": str(tmp_path / "fifo")},
    )
    (tmp_path / "fifo").write_text("go on")
    assert "a_kept" in running.finish().classes


def test_a_run_without_end_is_killed_with_its_module(throwaway: Agent, tmp_path: Path) -> None:
    """The outer deadline ends cf-agent and the module, and fails loudly."""
    os.mkfifo(tmp_path / "fifo")
    running = throwaway.start(
        '  messages: "x" want => "wait", fifo => "$(fifo)";', vars={"fifo": str(tmp_path / "fifo")}
    )
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)  # opens once the module reads
    with pytest.raises(AssertionError, match="did not end"):
        running.finish(timeout_s=0.05)
    module_is_gone = select.poll()
    module_is_gone.register(writer, 0)
    assert module_is_gone.poll(30_000) == [(writer, select.POLLERR)]
    os.close(writer)


def test_a_policy_file_runs_as_it_is(throwaway: Agent, tmp_path: Path) -> None:
    """`run_file` takes a whole policy, such as an example."""
    policy = tmp_path / "whole.cf"
    policy.write_text('bundle agent main { reports: "hello"; }\n')
    policy.chmod(0o600)
    assert throwaway.run_file(policy).reports == ["hello"]


def test_a_peer_answers_tells_it_and_is_killed(peer: Callable[..., Peer]) -> None:
    """A REP peer says World, reports both messages, and after SIGKILL nobody is there."""
    server = peer("rep", "--answer", "World")
    client = peer("req", "--connect", server.endpoint, "--answer", "Hello\xff")
    assert client.wait_for_end()[-1].frames == (b"World",)
    assert server.wait_for(1)[0].frames == ("Hello\xff".encode(),)
    server.kill()
    assert connect_fails(server.endpoint)


def test_a_stopped_peer_is_silent_until_it_goes_on(peer: Callable[..., Peer]) -> None:
    """SIGSTOP holds the answer back, SIGCONT lets it through."""
    server = peer("rep")
    server.stop()
    client = peer("req", "--connect", server.endpoint)
    client.wait_for(1, "sent")
    assert client.received == []
    server.cont()
    client.wait_for(1)


def test_waiting_for_a_peer_that_ended_fails_at_once(peer: Callable[..., Peer]) -> None:
    """No test sits out a deadline for an event that cannot come any more."""
    server = peer("rep")
    server.kill()
    with pytest.raises(AssertionError, match="ended"):
        server.wait_for(1, timeout_s=600)


def test_a_peer_with_a_wrong_option_fails_at_once() -> None:
    """A misspelt option is an error of the test."""
    with pytest.raises(AssertionError, match="ended"):
        Peer.start("rep", "--anwser", "x")


def test_updates_are_numbered(peer: Callable[..., Peer]) -> None:
    """A counting PUB waits for its subscriber, then sends topic and number in two frames or in one."""
    publisher = peer("pub", "--topic", "load", "--count", "20")
    subscriber = peer("sub", "--connect", publisher.endpoint, "--topic", "lo")
    assert [e.frames for e in subscriber.wait_for(20)] == [(b"load", b"%d" % i) for i in range(20)]
    endless = peer("pub", "--topic", "load", "--single")
    assert peer("sub", "--connect", endless.endpoint).wait_for(1)[0].frames[0].startswith(b"load ")


def test_tasks_are_pulled(peer: Callable[..., Peer], tmp_path: Path) -> None:
    """PUSH and PULL, either side bound, over tcp and ipc, with the bytes of a file and with several frames."""
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    puller = peer("pull", "--bind", f"ipc://{tmp_path}/p")
    peer("push", "--connect", puller.endpoint, "--answer-file", str(tmp_path / "bytes"), "--answer", "x", "--multipart")
    assert puller.wait_for(1)[0].frames == (bytes(range(256)), b"x")
    pusher = peer("push", "--count", "100")
    assert len(peer("pull", "--connect", pusher.endpoint, "--count", "100").wait_for_end()) == 100


def test_a_router_answers_out_of_order_and_keeps_the_envelope(peer: Callable[..., Peer]) -> None:
    """The last request is answered first, with its number, unless --bare loses it."""
    router = peer("router", "--workers", "4")
    dealer = peer("dealer", "--connect", router.endpoint, "--count", "4", "--number")
    dealer.wait_for_end()
    assert dealer.received == [(b"%d" % i, b"", b"%d" % i) for i in (3, 2, 1, 0)]
    bare = peer("router", "--bare", "--drop", "1", "--answer", "late")
    dealer = peer("dealer", "--connect", bare.endpoint, "--count", "2", "--number")
    assert [e.frames for e in dealer.wait_for(1)] == [(b"", b"late")]


def test_workers_behind_a_proxy_answer_everything(peer: Callable[..., Peer]) -> None:
    """REP workers of unequal speed return every number."""
    proxy = peer("rep-workers", "--delay", "0.01")
    dealer = peer("dealer", "--connect", proxy.endpoint, "--count", "9", "--number")
    dealer.wait_for_end()
    assert sorted(dealer.received) == [(b"%d" % i, b"", b"%d" % i) for i in range(9)]


def test_pairs_speak_echo_and_listen(peer: Callable[..., Peer]) -> None:
    """A PAIR answers, says something first, or is silent."""
    echo = peer("pair")
    speaker = peer("pair-speaking", "--connect", echo.endpoint, "--answer", "a", "--answer", "b")
    assert [e.frames for e in speaker.wait_for(2)] == [(b"a",), (b"b",)]
    silent = peer("pair-silent")
    peer("pair-speaking", "--connect", silent.endpoint)
    assert silent.wait_for(1)
    assert not silent.events("sent")


def test_peers_that_are_no_zeromq_peers(peer: Callable[..., Peer]) -> None:
    """One accepts and is silent, one greets as another protocol, one closes after that, and one wants CURVE."""
    with call(peer("tcp-banner").endpoint) as banner:
        assert banner.recv(4) == b"SSH-"
    with call(peer("tcp-banner", "--close", "--answer", "HTTP/1.1 400 Bad Request\r\n\r\n").endpoint) as closing:
        assert closing.makefile().read() == "HTTP/1.1 400 Bad Request\n\n"
    with call(peer("tcp-curve").endpoint) as greeting:
        assert greeting.recv(64, socket.MSG_WAITALL) == zmtp.greeting(mechanism=b"CURVE")
    silent = peer("tcp-silent")
    with call(silent.endpoint):
        silent.wait_for(1, "accepted")


def test_peers_that_never_answer(peer: Callable[..., Peer], plain: Context) -> None:
    """A silent ROUTER reads the request; a CURVE server does not even take it from a plain client."""
    silent = peer("silent-router")
    peer("req", "--connect", silent.endpoint)
    assert silent.wait_for(1)[0].frames[1:] == (b"", b"0")
    client = plain.socket(zmq.REQ)
    client.reconnect_ivl = 1  # only a connection that the client ends before the server does tells it
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    client.connect(peer("curve-rep").endpoint)
    assert monitor.poll(30_000)
    client.disable_monitor()


def test_nobody_listens_where_it_is_refused() -> None:
    """The port is reserved, so it stays refused."""
    assert connect_fails(refused_endpoint())


def call(endpoint: str) -> socket.socket:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), 30)


def connect_fails(endpoint: str) -> bool:
    try:
        call(endpoint).close()
    except ConnectionRefusedError:
        return True
    return False
