"""Fixtures of all tests: a fresh cf-agent, peers that are always reaped; how hard hypothesis tries, and what it tried.

MESSAGES_EXAMPLES=5000 is how many examples each @given has.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from hypothesis import settings

import fuzz
from agent import Agent, make_template
from peers import Peer

if TYPE_CHECKING:
    from postgres import Kept, Server

# Of the listener, which asks for a newer Python and for packages that a node does without.
LISTENERS_TESTS = (
    "attacks budget cli codec complaints config durable endless enrolment enrolment_attacks explain_hub fleet follow"
    " forget fuzz_enrolment growth guard intake journal keyring kills loop metrics names news postgresql publisher"
    " reload retention rights rotation secrecy service share shown sockets store subscribers systemd unit views"
).split()
HAS_LISTENER = sys.version_info >= (3, 11) and find_spec("msgspec") is not None
needs_listener = pytest.mark.skipif(not HAS_LISTENER, reason="wants Python 3.11 or newer and cf-messaged's packages")
collect_ignore = [] if HAS_LISTENER else [f"test_{name}.py" for name in LISTENERS_TESTS]

# All tests of such a file share what takes seconds to make, so one worker of pytest-xdist runs them.
MADE_ONCE = ("test_bad_input", "test_cfbs", "test_demo", "test_unhealthy")

settings.register_profile(
    "messages", max_examples=int(os.environ.get("MESSAGES_EXAMPLES", "50")), deadline=None, print_blob=True
)
settings.load_profile("messages")


def pytest_configure(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        fuzz.terminal = os.dup(2)


def pytest_report_header() -> str:
    left_out = f"left out, for want of Python 3.11 or of cf-messaged's packages: {', '.join(collect_ignore)}"
    return left_out if collect_ignore else "all tests, those of cf-messaged among them"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a cf-agent, so that it can be chosen or left out."""
    for item in items:
        if isinstance(item, pytest.Function) and "agent_template" in item.fixturenames:
            item.add_marker("policy")
        if item.path.stem in MADE_ONCE:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist, which has no summary, hands on what it has counted."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["fuzz"] = fuzz.counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of pytest-xdist: a worker has ended. One that was killed has handed on nothing, and its test failed."""
    fuzz.add(getattr(node, "workeroutput", {}).get("fuzz", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = fuzz.report()
    if lines:
        terminalreporter.section("fuzz")
    for line in lines:
        terminalreporter.line(line)


@pytest.fixture(autouse=True)
def watched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each example of a fuzz test re-arms the watch; the test ends it."""
    yield
    if request.node.get_closest_marker("fuzz"):
        fuzz.end_watch()


@pytest.fixture(scope="session")
def agent_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def agent(tmp_path: Path, agent_template: Path) -> Iterator[Agent]:
    """A cf-agent with a work directory of its own and this repository's module in it."""
    agent = Agent(tmp_path / "agent", agent_template)
    yield agent
    agent.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Ended with the tests; those that want it are skipped where it is not installed."""
    from postgres import Server, why_not

    if reason := why_not():
        pytest.skip(reason)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def postgresql(postgres: Server) -> Iterator[Callable[..., str]]:
    """URLs of new databases: of stores that are made, or of nothing."""
    urls: list[str] = []

    def make(empty: bool = False) -> str:
        urls.append(postgres.new() if empty else postgres.new_store())
        return urls[-1]

    yield make
    for url in urls:
        postgres.drop(url)


@pytest.fixture
def shared(postgresql: Callable[..., str]) -> str:
    """The URL of a store of several listeners, with nothing in it."""
    return postgresql()


@pytest.fixture
def stores(shared: str) -> Iterator[Callable[[], Kept]]:
    """Opens that store, each time as another listener does."""
    from postgres import Kept

    opened: list[Kept] = []

    def open() -> Kept:
        opened.append(Kept(shared))
        return opened[-1]

    yield open
    for store in opened:
        store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """URLs of new stores of either kind, or with `empty=True` of what none was made of."""
    if request.param == "sqlite":
        numbers = itertools.count()
        return lambda empty=True: f"sqlite:///{tmp_path}/store{next(numbers)}.db"
    make: Callable[..., str] = request.getfixturevalue("postgresql")
    return make


@pytest.fixture
def plain() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Of the peers in this process."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Starts peers, `peer("rep", "--answer", "World")`, and ends them with the test."""
    peers: list[Peer] = []

    def start(kind: str, *arguments: str) -> Peer:
        peers.append(Peer.start(kind, *arguments))
        return peers[-1]

    yield start
    for started in peers:
        started.kill()
