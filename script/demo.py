"""Runs the example policies under real cf-agents, each on a private work directory, and tells what came of them: first
those where nodes talk with each other, then those where three nodes share what they are with a cf-messaged.

Exit status 0 only if every promise came out, and every view is, as it should. Started by script/demo.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

SHIPPED = ("messages_promise.py", "cfengine.py", "cf_messaging")
OUTCOME = re.compile(r"Promise with promiser '(.*)' was (kept|repaired|not kept) by promise module")
TOLD = re.compile(r"(?:verbose|info|error): messages '(.*?)'(?: \(.*?\))?: (.*)")
CF_MESSAGED = [sys.executable, "-m", "cf_messaged"]

# What a bundle of an example shall come to. outcomes: as cf-agent counts them, by promiser. reports: its reports:.
# node: where it runs; without one, it is a node of its own.
Side = namedtuple("Side", "bundle outcomes reports node", defaults=[None])
Scene = namedtuple("Scene", "title example sides")
# A view by the command line. rows: what these columns of it shall hold.
View = namedtuple("View", "arguments columns rows")
# folder: for all that the demo writes. hub: where everybody listens, an endpoint without its port.
Stage = namedtuple("Stage", "folder hub")

SCENES = (
    Scene(
        "Synchronous request/reply: ten requests, one after the other",
        "request",
        (
            Side("request_server", {"greeter": "repaired"}, ["server: ten requests were answered"]),
            Side("request_client", {"greeting": "repaired"}, ["client: 10 answers, the first is Welcome"]),
        ),
    ),
    Scene(
        "Asynchronous request/reply: twenty requests in flight at once",
        "async_request",
        (
            Side("async_request_server", {"oracle": "repaired"}, ["server: twenty requests were answered"]),
            Side("async_request_client", {"survey": "repaired"}, ["client: 20 answers, the last is answer 20"]),
        ),
    ),
    Scene(
        "Publish/subscribe: twenty updates published, five collected",
        "publish",
        (
            Side("publish_server", {"weather": "repaired"}, ["server: twenty updates were published"]),
            Side(
                "publish_client",
                {"forecast": "repaired"},
                ["client: five updates, the last is weather/north/: Oslo 5 degrees"],
            ),
        ),
    ),
    Scene(
        "Push/pull: a ventilator, a worker and a sink with 100 tasks",
        "push",
        (
            Side("push_ventilator", {"ventilator": "repaired"}, ["ventilator: 100 tasks were handed out"]),
            Side("push_sink", {"sink": "repaired"}, ["sink: 100 results, the last is done: task 100"]),
            Side("push_worker", {"worker": "repaired", "result": "repaired"}, ["worker: its results were handed on"]),
        ),
    ),
    Scene(
        "Exclusive pair: one node hands over to another",
        "pair",
        (
            Side(
                "pair_second",
                {"takeover": "repaired", "confirmation": "repaired"},
                ["second: heard 'I leave the service to you' and confirmed"],
            ),
            Side("pair_first", {"handover": "repaired"}, ["first: the partner has it"]),
        ),
    ),
    Scene(
        "An answer used as data in the same run",
        "answer_as_data",
        (
            Side("data_server", {"resolver_book": "repaired"}, ["server: the request was answered"]),
            Side("data_client", {"resolvers": "repaired"}, ["client: in example.org ask 192.0.2.1 or 192.0.2.2"]),
        ),
    ),
    Scene(
        "Nobody listens: the promise is not kept, and says why",
        "request",
        (Side("request_client", {"greeting": "not kept"}, []),),
    ),
)
WORLD = Scene(
    "The same client against a server that is no cf-agent: a few lines of pyzmq that answer World",
    "request",
    (Side("request_client", {"greeting": "repaired"}, ["client: 10 answers, the first is World"]),),
)
WORLD_SERVER = """
import sys, zmq
socket = zmq.Context().socket(zmq.REP)
socket.bind(sys.argv[1])
for number in range(10):
    socket.recv()
    socket.send_string("World")
socket.close()
socket.context.term()
"""

HUB, WEB1, WEB2 = NODES = ("hub.example.org", "web1.example.org", "web2.example.org")
FACTS = ("hard_classes", "os", "addresses")
FACTS_TOLD = ["share: the listener has what this node is"]
STRANGER = "web3.example.org"
TRUSTED = Scene(
    "The hub gives its cf-messaged the public keys of the hosts that it trusts",
    "trusted_keys",
    [Side("trusted_keys", {}, ["trusted keys: 3"], HUB)],
)
SHARED = (
    Scene(
        "Three nodes that nobody knows yet enrol by the CFEngine keys of their hosts, and tell what they are",
        "share",
        [Side("share", dict.fromkeys(FACTS, "repaired"), FACTS_TOLD, node) for node in NODES],
    ),
    Scene(
        "A fourth, whose host the hub does not trust, is not let in, and says why",
        "share",
        [Side("share", dict.fromkeys(FACTS, "not kept"), [], STRANGER)],
    ),
    Scene(
        "Each run is a sign of life",
        "heartbeat",
        [Side("heartbeat", {"heartbeat": "repaired"}, ["heartbeat: heard"], node) for node in NODES],
    ),
    Scene(
        "What is the same for all is said by one",
        "common",
        [Side("common_says", {"name_servers": "repaired"}, ["hub: the listener has the name servers"], HUB)],
    ),
    Scene(
        "What is the same for all is used by another, in the run that asks for it",
        "common",
        [Side("common_uses", {"name_servers": "repaired"}, ["node: name servers are 192.0.2.1 and 192.0.2.2"], WEB1)],
    ),
    Scene(
        "Two nodes say that they are web servers",
        "web_servers",
        [
            Side("web_server_says", {"role": "repaired"}, ["web server: the listener knows"], node)
            for node in (WEB1, WEB2)
        ],
    ),
    Scene(
        "Who is a web server in this domain is asked for, and used in the same run",
        "web_servers",
        [Side("web_servers", {"web_servers": "repaired"}, [f"proxy: web servers are {WEB1}, {WEB2}"], HUB)],
    ),
    Scene(
        "A second run: what the listener has is kept, and nothing is said",
        "share",
        [Side("share", dict.fromkeys(FACTS, "kept"), FACTS_TOLD, WEB1)],
    ),
)
SETTINGS = """keys_dir = "{folder}/keys"

[[rights]]
nodes = ["hub.example.org"]
say = ["*"]
ask = ["*"]
"""
VIEWS = (
    View(["nodes"], ["node", "alive", "events"], [[HUB, True, 5], [WEB1, True, 5], [WEB2, True, 5]]),
    View(["latest", "--param", "name=role"], ["node", "data"], [[WEB1, "web server"], [WEB2, "web server"]]),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="messages-demo-") as folder:
        stage = Stage(Path(folder), any_loopback())
        template = make_work_directory(
            stage.folder / "template", shutil.which("cf-promises") or sys.exit("no cf-promises")
        )
        make_host_key(template)
        good = [*among_nodes(stage), *with_a_listener(stage)]
    if not all(good):
        sys.exit(f"{good.count(False)} of {len(good)} scenes and views are not as they should be.")
    print("All promises and views came out as they should.")


def any_loopback() -> str:
    """Where on this machine nobody else is likely to listen: an endpoint without its port."""
    return ".".join(["tcp://127", *(str(random.randint(1, 254)) for _ in range(3))])


def among_nodes(stage: Stage) -> list[bool]:
    """Play the scenes that need no cf-messaged; returns of each whether it went as it should."""
    good = [play(scene, stage) for scene in SCENES]
    with subprocess.Popen([sys.executable, "-c", WORLD_SERVER, f"{stage.hub}:5301"]) as server:
        good.append(play(WORLD, stage))
        server.kill()
    return good


def with_a_listener(stage: Stage) -> list[bool]:
    """Play the scenes that need one, then show its views; returns of each whether it is as it should be."""
    store = f"sqlite:///{stage.folder}/store.db"
    (stage.folder / "cf-messaged.toml").write_text(SETTINGS.format(folder=stage.folder))
    key = operate(stage, "show")
    (stage.folder / "hub.key").write_text(key)
    with listening(store, stage):
        bootstrap(stage)
        good = [*(play(scene, stage) for scene in (TRUSTED, *SHARED)), *(show(view, store) for view in VIEWS)]
        operate(stage, "list")
        return good


def bootstrap(stage: Stage) -> None:
    """Each host has a key of its own, and the hub those of two others, as bootstrapping to it leaves them."""
    for node in (*NODES, STRANGER):
        work = make_node(node, stage)
        for file in (work / "ppkeys").iterdir():
            file.unlink()
        make_host_key(work)
    for node in (WEB1, WEB2):
        shutil.copy(stage.folder / node / "ppkeys/localhost.pub", stage.folder / HUB / f"ppkeys/root-{node}.pub")


def make_host_key(work: Path) -> None:
    subprocess.run(["cf-key"], env=environment(work), check=True, stdout=subprocess.DEVNULL)


def operate(stage: Stage, *arguments: str) -> str:
    """What `cf-messaged keys` says to these arguments, which is shown."""
    print("$ cf-messaged keys", *arguments)
    command = [*CF_MESSAGED, "keys", "--config", f"{stage.folder}/cf-messaged.toml", *arguments]
    said = subprocess.check_output(command, cwd=REPOSITORY, text=True)
    print(said, end="", flush=True)
    return said.strip()


@contextmanager
def listening(store: str, stage: Stage) -> Iterator[None]:
    """A cf-messaged where the examples look for it, which lets in whom it knows."""
    log = stage.folder / "cf-messaged.log"
    endpoint = f"{stage.hub}:5309"
    print(f"\n$ cf-messaged run --config cf-messaged.toml --request {endpoint} --enrol {stage.hub}:5313\n", flush=True)
    others = [f"--enrol={stage.hub}:5313", *(f"--{role}={stage.hub}:*" for role in ("push", "publish", "subscribe"))]
    config = ["--config", f"{stage.folder}/cf-messaged.toml"]
    command = [*CF_MESSAGED, "run", *config, "--store", store, "--request", endpoint, *others]
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=file) as daemon,
    ):
        try:
            if not (daemon.stdout and daemon.stdout.readline()):  # its endpoint, once it listens
                sys.exit(f"cf-messaged did not start: {log.read_text()}")
            yield
        finally:
            daemon.terminate()


def hub_key(stage: Stage) -> str:
    """Nobody's, where no cf-messaged is talked to."""
    known = stage.folder / "hub.key"
    return known.read_text() if known.exists() else 64 * "0"


def show(view: View, store: str) -> bool:
    """Print a view as a table; returns whether it has the rows that it should have."""
    print("$ cf-messaged view", *view.arguments, flush=True)
    command = [*CF_MESSAGED, "view", *view.arguments, "--store", store]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    print(flush=True)
    rows = json.loads(subprocess.check_output([*command, "--json"], cwd=REPOSITORY))
    good = bool([[row[column] for column in view.columns] for row in rows] == view.rows)
    if not good:
        print(f"It should be {view.rows}.\n")
    return good


def make_work_directory(work: Path, cf_promises: str) -> Path:
    """What cf-agent needs to run apart from the machine's own one, with the promise type in it; no key pair yet."""
    for name in ("inputs", "bin", "state", "ppkeys", "modules/promises"):
        (work / name).mkdir(parents=True)
    (work / "bin/cf-promises").symlink_to(cf_promises)
    modules = work / "modules/promises"
    for source in (REPOSITORY / name for name in SHIPPED):
        if source.is_dir():
            shutil.copytree(source, modules / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, modules)
    restrict(work)
    return work


def restrict(path: Path) -> None:
    """cf-agent takes only what nobody else could have written."""
    for folder, _, files in os.walk(path):
        os.chmod(folder, 0o700)
        for name in files:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o600)


def environment(work: Path) -> dict[str, str]:
    return {**os.environ, "CFENGINE_TEST_OVERRIDE_WORKDIR": str(work)}


def copy_examples(folder: Path, variables: dict[str, str]) -> None:
    """The examples, as policy that a cf-agent takes; variables: what they find in def."""
    shutil.copytree(REPOSITORY / "examples", folder)
    (folder / "def.json").write_text(json.dumps({"vars": variables}))
    restrict(folder)


def play(scene: Scene, stage: Stage) -> bool:
    """Run all sides of a scene at once, each on its node; returns whether it went as it should."""
    print(f"{scene.title} (examples/{scene.example}.cf)")
    agents = [start(scene.example, side, stage) for side in scene.sides]
    good = [tell(side, agent.communicate()[0], stage) for side, agent in zip(scene.sides, agents)]
    print(flush=True)
    return all(good)


def start(example: str, side: Side, stage: Stage) -> subprocess.Popen[str]:
    work = make_node(side.node or side.bundle, stage)
    command = ["cf-agent", "-Kv", "-f", str(work / f"examples/{example}.cf"), "-b", side.bundle]
    return subprocess.Popen(
        command, env=environment(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def make_node(node: str, stage: Stage) -> Path:
    """Its work directory, with the examples in it."""
    work: Path = stage.folder / node
    if not work.exists():
        shutil.copytree(stage.folder / "template", work, symlinks=True)
        variables = {"messages_hub": stage.hub, "messages_node": node, "messages_hub_key": hub_key(stage)}
        copy_examples(work / "examples", {**variables, "listener_trusted": f"{stage.folder}/keys/trusted"})
    return work


def tell(side: Side, output: str, stage: Stage) -> bool:
    """Say what cf-agent made of a bundle; returns whether that is what it should be."""
    outcomes, told = dict(OUTCOME.findall(output)), dict(TOLD.findall(output))
    reports = re.findall(r"^R: (.*)", output, re.MULTILINE)
    print(f"  {side.bundle}" + (f" on {side.node}" if side.node else ""))
    for promiser, outcome in outcomes.items():
        text = told.get(promiser, "nothing was told").replace(str(stage.folder), "...")
        print(f"    '{promiser}' {outcome}: {text}")
    for report in reports:
        print(f"    policy reports: {report}")
    good = bool(outcomes == side.outcomes and reports == side.reports)
    if not good:
        print(f"    It should be {side.outcomes} and {side.reports}. All that cf-agent said:\n{output}")
    return good


if __name__ == "__main__":
    main()
