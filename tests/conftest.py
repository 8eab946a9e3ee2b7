"""Fixtures of all tests: a fresh cf-agent, peers that are always reaped, and how hard hypothesis tries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import settings

from agent import Agent, make_template
from peers import Peer

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=False, print_blob=True)
settings.register_profile("proof", settings.get_profile("ci"), max_examples=10_000)
settings.load_profile("proof" if os.environ.get("MESSAGES_PROOF") else "ci")


@pytest.fixture(scope="session")
def agent_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def agent(tmp_path: Path, agent_template: Path) -> Iterator[Agent]:
    """A cf-agent with a work directory of its own and this repository's module in it."""
    agent = Agent(tmp_path / "agent", agent_template)
    yield agent
    agent.close()


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
