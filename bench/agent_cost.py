"""Measures cf-agent runs. Started by bench/agent_cost; --pairs N changes how often candidate and floor take turns.

What one promise costs is the difference of two whole runs of cf-agent, so that everything is in it that a node pays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

T = TypeVar("T")

FLOORS = Path(__file__).resolve().parent / "floors"
sys.path.append(str(FLOORS.parent.parent / "script"))
from demo import make_work_directory, restrict  # noqa: E402 - from the folder just added

MANY = 1000
LIST = 10_000
COMMANDS = 20  # each starts a Python, so fewer do

POLICY = """
promise agent measured
{{
  interpreter => "/usr/bin/python3";
  path => "$(sys.workdir)/modules/promises/{module}";
}}
body common control {{ bundlesequence => {{ "main" }}; }}
bundle agent main
{{
  vars:
    "n" data => readjson("{names}"); # a container: cf-agent takes seconds for an slist of 10,000
  {promise}
}}
"""


class Way(NamedTuple):
    """A way to have a question answered, as policy writes it; {zmq} and {http} are where the answers are."""

    name: str
    module: str
    promise: str
    many: int = MANY


OURS = Way(
    "messages: request",
    "messages_promise.py",
    'measured: "p $(n)" pattern => "request", endpoint => "{zmq}", payload => "Hello $(n)";',
)
ASYNC = Way(
    "messages: async_request",
    "messages_promise.py",
    'measured: "p" pattern => "async_request", endpoint => "{zmq}", payload => @(n), timeout => "60";',
)
KEPT = Way(
    "messages: information, kept",
    "messages_promise.py",
    'measured: "p $(n)" information => "static", endpoint => "{zmq}", payload => "Hello $(n)", refresh => "525600";',
)
# What cf-agent itself pays for more attributes is in this floor too.
SAME = Way("trivial module, the same promise", "trivial.py", KEPT.promise)
TRIVIAL = Way("trivial module", "trivial.py", 'measured: "p $(n)" payload => "Hello $(n)";')
MINIMAL = Way("minimal REQ module", "minimal.py", 'measured: "p $(n)" endpoint => "{zmq}", payload => "Hello $(n)";')
OTHERS = (
    TRIVIAL,
    MINIMAL,
    Way("HTTP POST module", "http_post.py", 'measured: "p $(n)" endpoint => "{http}", payload => "Hello $(n)";'),
    Way("commands: with a script", "", 'commands: "/usr/bin/python3 {floors}/command.py {zmq} Hello_$(n)";', COMMANDS),
)


class Bench:
    """Runs policies on a work directory of its own."""

    def __init__(self, folder: Path, zmq: str, http: str) -> None:
        self.work = make_work_directory(folder / "work", "/usr/bin/cf-promises")
        self.places = {"zmq": zmq, "http": http, "floors": str(FLOORS)}
        self.folder = folder
        for module in FLOORS.glob("*.py"):
            (self.work / "modules/promises" / module.name).write_bytes(module.read_bytes())
        restrict(self.work)
        # As little as from cron: Python's own variables would change what is measured.
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CFENGINE_TEST_OVERRIDE_WORKDIR": str(self.work)}
        subprocess.run(["cf-key"], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def policy(self, way: Way, count: int) -> Path:
        """A policy of so many promises, or of one promise with so many payloads."""
        names = self.folder / f"{count}.json"
        names.write_text(json.dumps([f"N{number}" for number in range(count)]))
        promise = way.promise.format(**self.places) if count else ""
        path = self.folder / f"{way.name}-{count}.cf".replace(" ", "_").replace(":", "")
        path.write_text(POLICY.format(module=way.module or "trivial.py", names=names, promise=promise))
        path.chmod(0o600)
        return path

    def run_s(self, policy: Path) -> float:
        """Seconds that a run takes, which must say nothing."""
        started = time.perf_counter()
        ended = subprocess.run(
            ["cf-agent", "-K", "-f", str(policy)],
            env=self.environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        took = time.perf_counter() - started
        if b"error" in ended.stdout or b"warning" in ended.stdout:
            sys.exit(f"{policy}: {ended.stdout.decode(errors='replace')}")
        return took

    def bare_dealer_s(self) -> float:
        command = [sys.executable, str(FLOORS / "dealer.py"), self.places["zmq"], str(LIST)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    answers = subprocess.Popen(
        [sys.executable, str(FLOORS / "answers.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert answers.stdout
    with answers, tempfile.TemporaryDirectory(prefix="messages-bench-") as folder:
        bench = Bench(Path(folder), *answers.stdout.readline().split())
        print(f"{os.uname().release}, {os.cpu_count()} cores, {pairs} pairs, medians; candidate and floor in turn")
        print("| candidate | floor | its first, ms | candidate, times that | each more, ms | candidate, times that |")
        print("|---|---|---|---|---|---|")
        for other in OTHERS:
            compare(bench, OURS, other, pairs)
        for floor in (TRIVIAL, SAME):
            compare(bench, KEPT, floor, pairs)
        compare_lists(bench, pairs)
        answers.communicate()


def compare(bench: Bench, candidate: Way, other: Way, pairs: int) -> None:
    empty = bench.policy(other, 0)
    ours, theirs = in_turn(pairs, costing(bench, candidate, empty), costing(bench, other, empty))
    firsts = [first / floor for (first, _), (floor, _) in zip(ours, theirs)]
    each = [more / floor for (_, more), (_, floor) in zip(ours, theirs)]
    first_ms, each_ms = (1000 * median(column) for column in zip(*theirs))
    names = f"{candidate.name} | {other.name}"
    print(f"| {names} | {first_ms:.1f} | {median(firsts):.2f} | {each_ms:.3f} | {median(each):.2f} |", flush=True)


def costing(bench: Bench, way: Way, empty: Path) -> Callable[[], tuple[float, float]]:
    """Measures, in seconds, what the first promise of a run costs, and each further one."""
    one, many = bench.policy(way, 1), bench.policy(way, way.many)

    def cost() -> tuple[float, float]:
        with_none, with_one, with_many = bench.run_s(empty), bench.run_s(one), bench.run_s(many)
        return with_one - with_none, (with_many - with_one) / (way.many - 1)

    return cost


def compare_lists(bench: Bench, pairs: int) -> None:
    one, many = bench.policy(ASYNC, 1), bench.policy(ASYNC, LIST)
    ours, theirs = in_turn(pairs, lambda: bench.run_s(many) - bench.run_s(one), bench.bare_dealer_s)
    ratio = median(floor / cost for cost, floor in zip(ours, theirs))
    print(f"{LIST} payloads in one async_request: {LIST / median(ours):,.0f}/s, a bare DEALER loop")
    print(f"{LIST / median(theirs):,.0f}/s: {ratio:.2f} of it")


def in_turn(pairs: int, candidate: Callable[[], T], floor: Callable[[], T]) -> tuple[list[T], list[T]]:
    """The measurements of both, after one of each that does not count."""
    candidate(), floor()
    measured = [(candidate(), floor()) for _ in range(pairs)]
    return [ours for ours, _ in measured], [theirs for _, theirs in measured]


if __name__ == "__main__":
    main()
