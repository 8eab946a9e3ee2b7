"""The command line: what each command prints, and that every error is one line."""

from __future__ import annotations

import json
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from cf_messaged.store import Store
from listener import Listener, Node, cf_messaged, event
from peers import Socket


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with one node and two values."""
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store(url)
    store.add([(event(1, "static", "os", "debian"), 1_000_000), (event(2, data={"one": 1}), 2_000_000)])
    store.close()
    return url


def ok(*arguments: str) -> str:
    done = cf_messaged(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failed(*arguments: str) -> str:
    """The one line."""
    done = cf_messaged(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_view_without_a_name_lists_the_views() -> None:
    """With their parameters and what they show."""
    lines = ok("view").splitlines()
    assert [line.split()[0] for line in lines] == "view changes common history key_changes latest nodes silent".split()
    assert "node (text), kind (text), name (text), since (time), limit (int)" in lines[3]
    assert "Every node that was heard" in lines[6]


def test_view_as_a_table(url: str) -> None:
    """One row a line, data as JSON."""
    lines = ok("view", "latest", "--store", url, "--param", "node=web1", "--param", "kind=state").splitlines()
    assert lines[0].split() == "node kind name data time received age_s overdue alive".split()
    assert lines[1].split()[:5] == ["web1", "state", "load", '{"one":', "1}"]
    assert ok("view", "common", "--store", url) == "no rows\n"


def test_view_as_json(url: str) -> None:
    """What a node would get."""
    [row] = json.loads(ok("view", "history", "--store", url, "--json"))
    assert (row["data"], row["received"]) == ({"one": 1}, "1970-01-01T00:00:02.000000Z")


def test_what_others_said_moves_no_cursor(tmp_path: Path) -> None:
    """Control characters and markup are shown, not obeyed."""
    store = Store(f"sqlite:///{tmp_path}/hostile.db")
    store.add([(event(1, name="[red]\u202e", data="\x1b[2J\n"), 1)])
    store.close()
    shown = ok("view", "latest", "--store", f"sqlite:///{tmp_path}/hostile.db")
    assert "[red]\\u202e" in shown and "\\x1b[2J\\n" in shown and "\x1b" not in shown


def test_status(url: str, tmp_path: Path) -> None:
    """Where the store is, which it is, how large, how many nodes and events."""
    told = dict(
        line.split(maxsplit=1) for line in ok("status", "--store", url).replace("last event", "last").splitlines()
    )
    assert (told["store"], told["nodes"], told["events"]) == (f"{tmp_path}/store.db", "1", "2")
    assert len(told["id"]) == 32 and told["size"].endswith(" bytes") and told["last"].endswith(" s ago")


def test_forget(url: str) -> None:
    """One name, then the node; what is not there cannot be forgotten."""
    assert ok("forget", "web1", "os", "--store", url) == "forgot os of web1: 1 rows\n"
    assert ok("forget", "web1", "--store", url) == "forgot web1: 3 rows\n"
    assert "nothing is kept of web1" in failed("forget", "web1", "--store", url)
    assert ok("view", "nodes", "--store", url) == "no rows\n"


def test_commands_work_beside_a_listener(tmp_path: Path, plain: zmq.Context[Socket]) -> None:
    """They read and write the store while it runs."""
    listener = Listener(tmp_path)
    url = f"sqlite:///{listener.store}"
    node = Node(plain, listener.endpoint)
    node.say(event(1))
    assert json.loads(ok("view", "nodes", "--store", url, "--json"))[0]["events"] == 1
    ok("forget", "web1", "--store", url)
    assert node.say(event(2)).status == "stored"
    assert "events     1\n" in ok("status", "--store", url)
    assert listener.end() == 0


def test_check_config(tmp_path: Path) -> None:
    """Tells the settings as they are, or what is wrong with them."""
    path = tmp_path / "settings.toml"
    path.write_text("view_timeout_s = 3\n")
    assert "view_timeout_s = 3\n" in ok("check-config", "--config", str(path))
    path.write_text("view_timeout = 3\n")
    assert "did you mean 'view_timeout_s'?" in failed("check-config", "--config", str(path))
    path.write_text(f"views_dir = '{tmp_path}'\n")
    (tmp_path / "mine.sql").write_text("SELECT :who")
    assert f"{tmp_path}/mine.sql: :who is used" in failed("check-config", "--config", str(path))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["view", "lates"], "no view 'lates' (did you mean 'latest'?)"),
        (["view", "latest", "--param", "nod=1"], "no parameter 'nod' (did you mean 'node'?)"),
        (["view", "nodes", "--param", "alive_within=soon"], 'is "soon": allowed is a number'),
        (["view", "nodes", "--store", "sqlite:////none/store.db"], "/none/store.db: it, or its directory, does not"),
        (["status", "--store", "sqlite:////none/store.db"], "does not exist"),
        (["forget", "web1", "--store", "sqlite:////none/store.db"], "does not exist"),
        (["run", "--store", "sqlite:////none/store.db"], "does not exist"),
        (["run", "--store", "mysql://u:secret@h/d"], "mysql://u:***@h/d cannot be used"),
        (["run", "--request", "tcp://0.0.0.0:5309"], "allowed is a loopback address or ipc://"),
        (["run", "--config", "/none.toml"], "/none.toml: No such file or directory"),
        (["run", "--store", "sqlite:////dev/null"], "/dev/null: "),
    ],
)
def test_an_error_is_one_line(arguments: list[str], reason: str) -> None:
    """With what to do, exit code 1, and no traceback."""
    assert reason in failed(*arguments)


@pytest.mark.parametrize("arguments", [["status"], ["view", "nodes"], ["forget", "web1"]], ids=" ".join)
def test_a_database_that_is_no_store(tmp_path: Path, arguments: list[str]) -> None:
    """One of another program, or one that was never run with: the line says what makes it one."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE other (a)")
    line = failed(*arguments, "--store", f"sqlite:///{tmp_path}/other.db")
    assert f"{tmp_path}/other.db: it is no store of this cf-messaged: `cf-messaged run` makes one" in line


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["run", "--frobnicate"], ["forget"], ["view", "nodes", "--param", "x"], ["view", "a", "b"]],
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    """As other programs do."""
    done = cf_messaged(*arguments)
    assert (done.returncode, done.stdout) == (2, "") and "Error: " in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The line names the endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        line = failed("run", "--store", f"sqlite:///{tmp_path}/s.db", "--request", endpoint)
    assert f"cannot listen on {endpoint} for request: Address already in use" in line


def test_a_view_that_is_broken_stops_the_start(tmp_path: Path) -> None:
    """An operator learns of it when he starts the listener, not when a node asks."""
    (tmp_path / "nodes.sql").write_text("SELECT 1")
    (tmp_path / "settings.toml").write_text(f"views_dir = '{tmp_path}'\nstore = 'sqlite:///{tmp_path}/s.db'\n")
    assert "a view 'nodes' is built in" in failed("run", "--config", str(tmp_path / "settings.toml"))


def test_help_and_version() -> None:
    """Every command has a line of help."""
    shown = ok("--help")
    assert all(f"  {command}  " in shown for command in ("run", "view", "status", "forget", "check-config"))
    assert ok("--version").startswith("cf-messaged, version ")
