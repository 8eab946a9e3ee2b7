"""A real cf-agent on a private work directory; the classes it set are told by cf-agent itself, not by our module."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest

from demo import make_work_directory, restrict
from peers import scaled

if TYPE_CHECKING:
    from typing import Unpack

# Runs the modules: by default the interpreter that a node has.
MODULE_PYTHON = os.environ.get("MESSAGES_PYTHON", "/usr/bin/python3")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/var/cfengine/bin"
LOG_LINE = re.compile(r"(CRITICAL| *(?:error|warning|notice|info|verbose|debug)): (.*)")

HEAD = """
promise agent messages
{
  interpreter => "INTERPRETER";
  path => "$(sys.workdir)/modules/promises/messages_promise.py";
}
promise agent witness
{
  interpreter => "/bin/sh";
  path => "$(sys.workdir)/modules/promises/witness.sh";
}
body common control { bundlesequence => { "main" }; }
body classes outcome(p)
{
  scope => "bundle";
  promise_kept => { "$(p)_kept" };
  promise_repaired => { "$(p)_repaired" };
  repair_failed => { "$(p)_not_kept" };
  repair_denied => { "$(p)_not_kept" };
  repair_timeout => { "$(p)_not_kept" };
}
"""

# Custom promises come last in each pass, in the order of their sections. So this one, the last of its bundle, sees what
# the ones before it have set, in the third pass and in a dry run too, where a `reports:` promise sees and says nothing.
TAIL = """
  witness:
    "SEEN" classes_set => join(" ", difference(classesmatching(".*"), classesmatching(".*", "hardclass")));
"""

# Writes the classes into the file that its promiser names.
WITNESS = r"""
IFS= read -r header; IFS= read -r blank
printf 'witness 1.0 v1 line_based action_policy\n\n'
while IFS= read -r line; do
  case $line in
    operation=*) operation=${line#operation=}; promiser=; set= ;;
    promiser=*) promiser=${line#promiser=} ;;
    attribute_classes_set=*) set=${line#attribute_classes_set=} ;;
    "")
      case $operation in
        validate_promise) result=valid ;;
        evaluate_promise) result=kept; printf '%s\n' "$set" > "$promiser" ;;
        *) result=success ;;
      esac
      printf 'operation=%s\npromiser=%s\nresult=%s\n\n' "$operation" "$promiser" "$result" ;;
  esac
done
"""


@dataclass(frozen=True)
class Run:
    """What came of one agent run. The lists hold texts without their prefix."""

    status: int
    output: str
    classes: frozenset[str]

    @property
    def lines(self) -> list[str]:
        # Not splitlines: a log text may hold other ends of line.
        return self.output.removesuffix("\n").split("\n") if self.output else []

    def logged(self, level: str) -> list[str]:
        matches = (LOG_LINE.fullmatch(line) for line in self.lines)
        return [match[2] for match in matches if match and match[1].strip() == level]

    @property
    def critical(self) -> list[str]:
        return self.logged("CRITICAL")

    @property
    def errors(self) -> list[str]:
        return self.logged("error")

    @property
    def warnings(self) -> list[str]:
        return self.logged("warning")

    @property
    def infos(self) -> list[str]:
        return self.logged("info")

    @property
    def reports(self) -> list[str]:
        return [line[3:] for line in self.lines if line.startswith("R: ")]

    @property
    def stray(self) -> list[str]:
        return [line for line in self.lines if not LOG_LINE.fullmatch(line) and not line.startswith("R: ")]

    def check(self) -> None:
        """Raises unless the agent ended well, with no CRITICAL line and nothing but log lines and reports."""
        if self.status or self.critical or self.stray or "Traceback (most recent call last)" in self.output:
            raise AssertionError(f"cf-agent ended with {self.status} and this output:\n{self.output}")


class Running:
    """An agent run under way. The test may act meanwhile; `finish`, once, waits for its end."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], output: Path, seen: Path | None) -> None:
        self._output = output
        self._seen = seen
        # Into a file, not a pipe: a pipe stays open as long as any module that outlives the agent.
        with output.open("wb") as out, open(os.devnull, "rb") as null:
            self._process = subprocess.Popen(
                command, env=env, stdin=null, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, *, allow_critical: bool = False, timeout_s: float = 120) -> Run:
        """The run's results, checked unless `allow_critical`. An agent that does not end in time is killed."""
        ended = self._ends_within(scaled(timeout_s))
        self.kill()
        run = Run(self._process.returncode, decoded(self._output), self._classes())
        if not ended:
            raise AssertionError(f"cf-agent did not end in {scaled(timeout_s)} s; output:\n{run.output}")
        if not allow_critical:
            run.check()
            if self._seen and not self._seen.exists():
                raise AssertionError(f"cf-agent did not come to the end of bundle main; output:\n{run.output}")
        return run

    def kill(self) -> None:
        """Ends the agent and its modules, which are in its process group; harmless when it was waited for already."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _ends_within(self, seconds: float) -> bool:
        """Does not reap it, so that its process id cannot be given to another process before `kill`."""
        descriptor = os.pidfd_open(self.pid)
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)

    def _classes(self) -> frozenset[str]:
        if self._seen is None or not self._seen.exists():
            return frozenset()
        return frozenset(decoded(self._seen).split())


class How(TypedDict, total=False):
    """The keyword arguments of `Agent.run` and `Agent.start`."""

    before: str  # policy text before bundle main: bodies, other bundles
    vars: Mapping[str, str | Sequence[str]]  # strings and slists for bundle main
    options: Sequence[str]  # of cf-agent
    env: Mapping[str, str]  # beside the little that cf-agent gets anyway
    interpreter: str  # of messages_promise.py; default MODULE_PYTHON


class Agent:
    """A work directory below `root`, a copy of the template, with `modules` (text or a file) beside or instead of ours.

    `run` is for most tests; `start` lets a test act during the run; `run_file` takes a whole policy as it is.
    """

    def __init__(self, root: Path, template: Path, modules: Mapping[str, str | Path] | None = None) -> None:
        self.root = root
        self.work = root / "work"
        shutil.copytree(template, self.work, symlinks=True)
        self._runs: list[Running] = []
        for name, content in (modules or {}).items():
            self.install(name, content)

    def install(self, name: str, content: str | Path) -> None:
        """Puts a file into modules/promises."""
        target = self.work / "modules/promises" / name
        target.write_text(content, "utf-8") if isinstance(content, str) else shutil.copy(content, target)
        target.chmod(0o600)

    def make_host_key(self) -> None:
        """One that no other has: until then each has that of the template."""
        for file in (self.work / "ppkeys").iterdir():
            file.unlink()
        command = [program("cf-key")]
        subprocess.run(command, env=environment(self.work), check=True, stdout=subprocess.DEVNULL, timeout=scaled(120))

    def start(self, promises: str, **how: Unpack[How]) -> Running:
        """Starts cf-agent on a bundle main of `promises`: whole sections of policy text."""
        seen = self.root / f"classes-{len(self._runs)}"
        policy = self.root / f"policy-{len(self._runs)}.cf"
        head = HEAD.replace("INTERPRETER", how.get("interpreter", MODULE_PYTHON)) + how.get("before", "")
        main = variables(how.get("vars", {})) + promises + TAIL.replace("SEEN", str(seen))
        policy.write_text(f"{head}\nbundle agent main\n{{\n{main}}}\n", "utf-8", "surrogateescape")
        policy.chmod(0o600)
        return self._launch(policy, how.get("options", ()), how.get("env", {}), seen)

    def run(self, promises: str, *, allow_critical: bool = False, timeout_s: float = 120, **how: Unpack[How]) -> Run:
        """The same, to its end."""
        return self.start(promises, **how).finish(allow_critical=allow_critical, timeout_s=timeout_s)

    def run_file(self, policy: Path, *, options: Sequence[str] = (), allow_critical: bool = False) -> Run:
        """Runs a policy file as it is, without a witness: `classes` is empty."""
        return self._launch(policy, options, {}, None).finish(allow_critical=allow_critical)

    def close(self) -> None:
        for running in self._runs:
            running.kill()

    def _launch(self, policy: Path, options: Sequence[str], env: Mapping[str, str], seen: Path | None) -> Running:
        command = [program("cf-agent"), "--no-lock", "-K", *options, "-f", str(policy)]
        output = self.root / f"output-{len(self._runs)}"
        running = Running(command, {**environment(self.work), **env}, output, seen)
        self._runs.append(running)
        return running


def make_template(path: Path) -> Path:
    """The work directory that every Agent starts from; made once, since a key pair and compiling take long."""
    modules = make_work_directory(path, program("cf-promises")) / "modules/promises"
    (modules / "witness.sh").write_text(WITNESS)
    restrict(path)
    for command in ([MODULE_PYTHON, "-m", "compileall", "-q", str(modules)], [program("cf-key")]):
        subprocess.run(command, env=environment(path), check=True, stdout=subprocess.DEVNULL, timeout=scaled(120))
    return path


def environment(work: Path) -> dict[str, str]:
    """What cf-agent gets: as little as from cron, so that nothing of the test's own Python reaches the module."""
    env = {"PATH": SEARCH_PATH, "CFENGINE_TEST_OVERRIDE_WORKDIR": str(work)}
    return {**env, "PYTHONOPTIMIZE": "1"} if sys.flags.optimize else env


def program(name: str) -> str:
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed (looked in {SEARCH_PATH})")
    return found


def agent_version() -> str:
    """The minor version of the cf-agent at hand, such as "3.21"."""
    told = subprocess.run([program("cf-agent"), "--version"], capture_output=True, check=True, text=True).stdout
    found = re.search(r"[0-9]+\.[0-9]+", told)
    assert found, told
    return found[0]


def standard_library() -> frozenset[str]:
    """The names of its modules; skips the test on a Python that cannot tell."""
    if sys.version_info < (3, 10):
        pytest.skip("Python 3.9 cannot list the modules of its standard library")
    return sys.stdlib_module_names


def decoded(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "backslashreplace")


def quoted(text: str) -> str:
    """A string of the policy language; `$(x)` in it is still expanded."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def variables(values: Mapping[str, str | Sequence[str]]) -> str:
    """A vars: section of strings and slists."""
    lines = []
    for name, value in values.items():
        if isinstance(value, str):
            lines.append(f'    "{name}" string => {quoted(value)};\n')
        else:
            lines.append(f'    "{name}" slist => {{ {", ".join(map(quoted, value))} }};\n')
    return "  vars:\n" + "".join(lines) if lines else ""
