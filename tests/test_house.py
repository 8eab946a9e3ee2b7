"""Who may import whom: an agent run pays for every import of a node file, and data walks one way."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent import standard_library

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
NODE_FILES = [ROOT / "messages_promise.py", ROOT / "cfengine.py", *sorted((ROOT / "cf_messaging").glob("*.py"))]

OURS = {"messages_promise", "cfengine", "cf_messaging"}
# On the way from cf-agent to the wire; then all the others.
DOWNWARDS = [
    "messages_promise",
    "explain",
    "promise",
    "information",
    "delivery",
    "memory",
    "exchange",
    "enrolment",
    "conversations",
    "link",
]
KNOWS_ZMQ = {"exchange", "explain", "handshake", "link", "zap"}
MAY_HAVE = {"host_key": {"cryptography"}}  # and does without where it is not there
DECIDES = {"patterns", "outcomes", "wire"}
THE_WORLD = {"os", "socket", "sqlite3", "time", "zmq"}
SLOW = {"argparse", "asyncio", "contextlib", "dataclasses", "logging", "pathlib", "shutil", "tempfile", "typing"}
SLOW |= {"urllib", "uuid"}

each_node_file = pytest.mark.parametrize("path", NODE_FILES, ids=lambda path: path.name)


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported anywhere in this code, but for what only the type checker sees."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = f"cf_messaging.{node.module or ''}".rstrip(".") if node.level else node.module
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        node = ast.Module(node.orelse, [])
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def imports(path: Path) -> set[str]:
    """Dotted names of what a node file imports."""
    return set(imported(ast.parse(path.read_bytes()))) - {"__future__.annotations"}


def packages(path: Path) -> set[str]:
    """The first part of each name that a node file imports."""
    return {name.split(".")[0] for name in imports(path)}


@each_node_file
def test_a_node_needs_only_the_standard_library_and_zmq(path: Path) -> None:
    """Node files import the standard library and each other; zmq only where messages cross the network."""
    foreign = packages(path) - standard_library() - OURS - MAY_HAVE.get(path.stem, set())
    assert foreign <= ({"zmq"} if path.stem in KNOWS_ZMQ else set())


@each_node_file
def test_a_node_imports_nothing_slow(path: Path) -> None:
    """Node files do without the modules of the standard library that cost an agent run many milliseconds."""
    assert not packages(path) & SLOW - ({"argparse"} if path.stem == "explain" else set())


def test_an_agent_run_does_without_what_explains() -> None:
    """What cf-agent starts loads it only for who asks for it."""
    parts = ast.parse((ROOT / "messages_promise.py").read_bytes()).body
    at_once = {name for node in parts if not isinstance(node, ast.If) for name in imported(node)}
    assert at_once == {"__future__.annotations", "gc", "os", "sys", "cf_messaging.promise.run"}


@each_node_file
def test_a_node_may_have_python_3_9(path: Path) -> None:
    """Node files use no syntax that came after Python 3.9."""
    ast.parse(path.read_bytes(), feature_version=(3, 9))


def test_the_sdk_knows_nothing_of_messages() -> None:
    """cfengine.py serves any promise type and imports nothing of ours."""
    assert not packages(ROOT / "cfengine.py") & OURS


@each_node_file
def test_decisions_know_no_world(path: Path) -> None:
    """The files that decide import no socket, clock, file system or database."""
    assert path.stem not in DECIDES or not packages(path) & THE_WORLD


@each_node_file
def test_data_walks_one_way(path: Path) -> None:
    """No file imports one that stands above it on the way from the promise to the wire."""
    ours = {name.removeprefix("cf_messaging.").split(".")[0] for name in imports(path) if name.split(".")[0] in OURS}
    above = DOWNWARDS[: DOWNWARDS.index(path.stem)] if path.stem in DOWNWARDS else DOWNWARDS
    assert not ours.intersection(above)


@pytest.mark.parametrize("path", sorted((ROOT / "cf_messaged").rglob("*.py")), ids=lambda path: path.name)
def test_the_daemon_knows_little_of_the_nodes_house(path: Path) -> None:
    """Of what is copied to nodes, cf-messaged imports the wire and the keys alone."""
    of_nodes = {name for name in imports(path) if name.split(".")[0] in OURS}
    assert all(name.startswith(("cf_messaging.wire", "cf_messaging.keys")) for name in of_nodes)
