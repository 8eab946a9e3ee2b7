"""Runs the example policies under real cf-agents, each on a private work directory, and tells what came of them.

Exit status 0 only if every promise came out as it should. Started by script/demo.
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
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = ("messages_promise.py", "cfengine.py", "cf_messaging")
OUTCOME = re.compile(r"Promise with promiser '(.*)' was (kept|repaired|not kept) by promise module")
TOLD = re.compile(r"(?:info|error): messages '(.*?)'(?: \(.*?\))?: (.*)")

# What a bundle of an example shall come to. outcomes: as cf-agent counts them, by promiser. reports: its reports:.
Side = namedtuple("Side", "bundle outcomes reports")
Scene = namedtuple("Scene", "title example sides")

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


def main() -> None:
    hub = f"tcp://127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    with tempfile.TemporaryDirectory(prefix="messages-demo-") as folder:
        stage = Path(folder)
        shutil.copytree(REPOSITORY / "examples", stage / "examples")
        (stage / "examples/def.json").write_text(json.dumps({"vars": {"messages_hub": hub}}))
        restrict(stage / "examples")
        template = make_work_directory(stage / "template", shutil.which("cf-promises") or sys.exit("no cf-promises"))
        subprocess.run(["cf-key"], env=environment(template), check=True, stdout=subprocess.DEVNULL)
        good = [play(scene, stage, template) for scene in SCENES]
        with subprocess.Popen([sys.executable, "-c", WORLD_SERVER, f"{hub}:5301"]) as server:
            good.append(play(WORLD, stage, template))
            server.kill()
    if not all(good):
        sys.exit(f"{good.count(False)} of {len(good)} scenes did not go as they should.")
    print("All promises came out as they should.")


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


def play(scene: Scene, stage: Path, template: Path) -> bool:
    """Run all sides of a scene at once, each as a node of its own; returns whether it went as it should."""
    print(f"{scene.title} (examples/{scene.example}.cf)")
    agents = [start(scene.example, side, stage, template) for side in scene.sides]
    good = [tell(side, agent.communicate()[0], stage) for side, agent in zip(scene.sides, agents)]
    print(flush=True)
    return all(good)


def start(example: str, side: Side, stage: Path, template: Path) -> subprocess.Popen[str]:
    work = stage / side.bundle
    if not work.exists():
        shutil.copytree(template, work, symlinks=True)
    command = ["cf-agent", "-Kv", "-f", str(stage / f"examples/{example}.cf"), "-b", side.bundle]
    return subprocess.Popen(
        command, env=environment(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def tell(side: Side, output: str, stage: Path) -> bool:
    """Say what cf-agent made of a bundle; returns whether that is what it should be."""
    outcomes, told = dict(OUTCOME.findall(output)), dict(TOLD.findall(output))
    reports = re.findall(r"^R: (.*)", output, re.MULTILINE)
    print(f"  {side.bundle}")
    for promiser, outcome in outcomes.items():
        print(f"    '{promiser}' {outcome}: {told.get(promiser, 'nothing was told').replace(str(stage), '...')}")
    for report in reports:
        print(f"    policy reports: {report}")
    good = bool(outcomes == side.outcomes and reports == side.reports)
    if not good:
        print(f"    It should be {side.outcomes} and {side.reports}. All that cf-agent said:\n{output}")
    return good


if __name__ == "__main__":
    main()
