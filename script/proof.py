"""The long proofs: the tests where they cannot run every day, and at full count. Started by script/proof.

Exit status 0 only if every proof held. What could not be run is in the table, with the reason.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
TEST_PACKAGES = ("pytest", "hypothesis")


class Tally(NamedTuple):
    """What came of a run of pytest."""

    passed: int
    failed: int
    skipped: Counter[str]  # by reason
    output: str


def main() -> None:
    names = sys.argv[1:] or list(PROOFS)
    if unknown := set(names) - PROOFS.keys():
        sys.exit(f"unknown proof {', '.join(unknown)}: there are {', '.join(PROOFS)}")
    broken = [name for name in names if not PROOFS[name]()]
    if broken:
        sys.exit(f"Not proven: {', '.join(broken)}")
    print("All that was tried is proven.")


def run_tests(command: list[str], environment: dict[str, str], folder: Path, results: Path) -> Tally:
    """Run pytest by this command in this folder; it writes its results there."""
    results.unlink(missing_ok=True)
    ended = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    output = ended.stdout + ended.stderr
    if not results.exists():
        return Tally(0, 1, Counter(), output)
    cases = list(ET.parse(results).iter("testcase"))
    skipped = Counter(reason for case in cases for reason in map(_reason, case.iter("skipped")))
    failed = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    return Tally(len(cases) - failed - skipped.total(), failed or int(ended.returncode != 0), skipped, output)


def _reason(skipped: ET.Element) -> str:
    return skipped.get("message") or "no reason"


def tell(what: str, tally: Tally) -> bool:
    """A row of a table, with why tests were skipped; the output of pytest where a test failed."""
    print(f"| {what} | {tally.passed} | {tally.failed} | {tally.skipped.total()} |", flush=True)
    if tally.failed:
        print(tally.output)
    return not tally.failed


def tell_skipped(tallies: list[Tally]) -> None:
    for reason, times in sum((tally.skipped for tally in tallies), Counter[str]()).items():
        print(f"skipped {times}: {reason}")


# ---- agents


class Distribution(NamedTuple):
    suite: str
    agent: str  # the version of cf-agent that it is wanted for


DISTRIBUTIONS = (Distribution("bookworm", "3.21"), Distribution("trixie", "3.24"), Distribution("sid", "3.27"))
PACKAGES = "cfengine3 python3-zmq python3-venv gcc libc6-dev".split()
VERSIONS = "import sys, zmq; print(sys.version.split()[0], zmq.__version__, zmq.zmq_version(), sep=' | ')"


def agents() -> bool:
    """The tests under each cf-agent, Python and pyzmq of a Debian, in minimal roots made anew and thrown away."""
    print("| Debian | cf-agent | Python | pyzmq | libzmq | passed | failed | skipped |\n|" + "---|" * 8, flush=True)
    tallies = []
    for distribution in DISTRIBUTIONS:
        with tempfile.TemporaryDirectory(prefix=f"messages-{distribution.suite}-") as folder:
            tallies.append(_under(distribution, Path(folder)))
    tell_skipped(tallies)
    return not any(tally.failed for tally in tallies)


def _under(distribution: Distribution, root: Path) -> Tally:
    try:
        _make_root(distribution.suite, root)
    except subprocess.CalledProcessError as error:
        print(f"| {distribution.suite} | could not be made: {error} |\n{error.output}")
        return Tally(0, 1, Counter(), "")
    version = re.search(r"[0-9]+(\.[0-9]+)+", _output(in_root(root, "cf-agent", "--version")))
    agent = version[0] if version else "?"
    tests = ["/venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ignore=tests/test_cfbs.py"]
    command = in_root(root, "sh", "-c", f"cd /project && exec {' '.join(tests)} --junitxml=/results.xml")
    tally = run_tests(command, _bare_environment(), root, root / "results.xml")
    tell(f"{distribution.suite} | {agent} | {_output(in_root(root, '/venv/bin/python', '-c', VERSIONS))}", tally)
    if not agent.startswith(distribution.agent):
        print(f"{distribution.suite} has cf-agent {agent}, not {distribution.agent}")
    return tally


def _make_root(suite: str, root: Path) -> None:
    root.chmod(0o755)  # other users of it shall find its libraries
    _output(["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(root)])
    if suite == "sid":  # a mirror may hold a release file that is past its date
        (root / "etc/apt/apt.conf.d/99valid").write_text('Acquire::Check-Valid-Until "false";\n')
    for name in ("/etc/resolv.conf", CERTIFICATES):  # what this machine resolves and trusts, for the downloads
        shutil.copy(name, root / name[1:])
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    _output(in_root(root, "apt-get", "update", "-qq"))
    _output(in_root(root, "apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES))
    _output(in_root(root, "python3", "-m", "venv", "--system-site-packages", "/venv"))
    _output(in_root(root, "/venv/bin/pip", "install", "-q", *TEST_PACKAGES))
    _clone(root / "project")


def _clone(folder: Path) -> None:
    """A proof is of what is committed, and runs for longer than a work tree stays as it is."""
    _output(["git", "clone", "-q", str(REPOSITORY), str(folder)])


def in_root(root: Path, *command: str) -> list[str]:
    """The command in a root of its own, whose mounts and processes end with it."""
    mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", mounts, str(root), *command]


def _output(command: list[str]) -> str:
    ended = subprocess.run(
        command, env=_bare_environment(), check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ended.stdout.strip()


def _bare_environment() -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_CERT": CERTIFICATES,
    }


# ---- python

OLDEST_PYTHON = (3, 9)
PYZMQS = ("pyzmq==22.0.*", "pyzmq==22.*", "pyzmq==24.*", "pyzmq")  # the oldest of a node, ..., the newest there is


def pythons() -> bool:
    """The unit and socket tests by every Python at hand, with pyzmq from the oldest of a node to the newest.

    The oldest of both also keeps promises under cf-agent.
    """
    print("| Python | pyzmq | libzmq | passed | failed | skipped |\n|" + "---|" * 6, flush=True)
    tallies: list[Tally] = []
    for python in _pythons_at_hand():
        for pyzmq in PYZMQS:
            with tempfile.TemporaryDirectory(prefix="messages-python-") as folder:
                tallies += _by(python, pyzmq, Path(folder), everything=not tallies)
    tell_skipped(tallies)
    return bool(tallies) and not any(tally.failed for tally in tallies)


def _pythons_at_hand() -> list[str]:
    """One interpreter of each minor version, oldest first; of this machine and of pyenv."""
    found = {}
    folders = [*os.get_exec_path(), *glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin")), "/usr/bin"]
    for python in (path for folder in folders for path in glob.glob(f"{folder}/python3.*[0-9]")):
        with suppress(subprocess.CalledProcessError):  # a name that leads nowhere
            version = tuple(map(int, _output([python, "-c", "import sys; print(*sys.version_info[:2])"]).split()))
            found[version] = python
    return [found[version] for version in sorted(found) if version >= OLDEST_PYTHON]


def _by(python: str, pyzmq: str, venv: Path, everything: bool) -> list[Tally]:
    """The tests in a new venv of these; nothing if there is no such wheel for it."""
    try:
        _output([python, "-m", "venv", str(venv)])
        pip = [f"{venv}/bin/pip", "--disable-pip-version-check", "install", "-q", "--only-binary", "pyzmq"]
        _output([*pip, pyzmq, *TEST_PACKAGES])
    except subprocess.CalledProcessError as error:
        reason = error.output.strip().splitlines()[-1]
        print(f"| {Path(python).name} | {pyzmq} | could not be run: {reason} |||", flush=True)
        return []
    tests = [f"{venv}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ignore=tests/test_cfbs.py"]
    chosen = [] if everything else ["-m", "not policy"]
    environment = {**_bare_environment(), "MESSAGES_PYTHON": f"{venv}/bin/python"}
    _clone(venv / "project")
    results = venv / "results.xml"
    tally = run_tests([*tests, *chosen, f"--junitxml={results}"], environment, venv / "project", results)
    tell(_output([f"{venv}/bin/python", "-c", VERSIONS]) + (" (all tests)" if everything else ""), tally)
    return [tally]


# ---- fuzz

FUZZED = {  # and under python -O
    "agent inputs": 100_000,
    "frame sequences": 100_000,
    "events and answers": 280_000,
    "ZAP requests": 250_000,
    "claims and answers to them": 300_000,
}
FUZZ_EXAMPLES = {  # of each test, to come to that
    "tests/test_fuzz_agent.py": 5_200,
    "tests/test_fuzz_peers.py": 4_500,
    "tests/test_fuzz_events.py": 4_000,
    "tests/test_keyring.py": 250_000,
    "tests/test_fuzz_enrolment.py": 8_000,
}
COUNTED = re.compile(rf"^({'|'.join(FUZZED)}): ([0-9,]+)", re.MULTILINE)


def fuzz() -> bool:
    """Generated agent inputs, frame sequences of peers, events, claims and answers; what was given is counted."""
    print("| Python | file | given | passed | failed | skipped |\n|" + "---|" * 6, flush=True)
    with tempfile.TemporaryDirectory(prefix="messages-fuzz-") as folder, ThreadPoolExecutor() as pool:
        _clone(Path(folder) / "project")
        runs = [pool.submit(_fuzzed, file, options, Path(folder)) for file in FUZZ_EXAMPLES for options in ([], ["-O"])]
        held = [run.result() for run in runs]
    return all(held)


def _fuzzed(file: str, options: list[str], folder: Path) -> bool:
    tally = _in_clone(file, folder, {"MESSAGES_EXAMPLES": str(FUZZ_EXAMPLES[file])}, options, ["-m", "fuzz"])
    given = {what: int(number.replace(",", "")) for what, number in COUNTED.findall(tally.output)}
    enough = any(number >= FUZZED[what] for what, number in given.items())
    shown = ", ".join(f"{number:,} {what}" for what, number in given.items() if number)
    passed = tell(f"{' '.join(['python', *options])} | {file} | {shown}{'' if enough else ', too few'}", tally)
    tell_figures(tally)
    return passed and enough


def _in_clone(
    file: str, folder: Path, environment: dict[str, str], python: Sequence[str] = (), chosen: Sequence[str] = ()
) -> Tally:
    """Run the tests of a file of the clone in this folder, by this Python with these options."""
    name = f"{Path(file).stem}{''.join(python)}"
    results = folder / f"{name}.xml"
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/{name}", *chosen, file]
    command = [sys.executable, *python, *pytest, f"--junitxml={results}"]
    return run_tests(command, {**_bare_environment(), **environment}, folder / "project", results)


def tell_figures(tally: Tally) -> None:
    """What the tests have counted."""
    for line in re.findall(r"^[a-z_ ]+: [0-9,]+ \(of which.*", tally.output, re.MULTILINE):
        print(line)


# ---- kills, durable

KILLS = 200  # of each kind; a PostgreSQL crashes a tenth as often


def kills() -> bool:
    """Killed at random moments, nothing acknowledged is lost, or twice: a listener on SQLite, on PostgreSQL, one of two
    on one PostgreSQL, that server itself, a node. Half an hour; on a busy machine twice that.
    """
    return _without_a_skip("tests/test_kills.py", {"MESSAGES_KILLS": str(KILLS)})


def durable() -> bool:
    """What strace sees: what is said was synced to disk before. Without strace it is not proven."""
    return _without_a_skip("tests/test_durable.py", {})


def _without_a_skip(file: str, environment: dict[str, str]) -> bool:
    """Whether all tests of a file of a clone hold."""
    print("| file | passed | failed | skipped |\n|" + "---|" * 4, flush=True)
    with tempfile.TemporaryDirectory(prefix="messages-proof-") as folder:
        _clone(Path(folder) / "project")
        tally = _in_clone(file, Path(folder), environment)
    passed = tell(file, tally)
    tell_skipped([tally])
    tell_figures(tally)
    return passed and not tally.skipped


# ---- subscribers

SUBSCRIBERS = 1000  # a hundred a second


def subscribers() -> bool:
    """They join and leave: each gets every last value, and who stays is said each again at most once an interval."""
    return _without_a_skip("tests/test_subscribers.py", {"MESSAGES_SUBSCRIBERS": str(SUBSCRIBERS)})


# ---- rotation

ROTATED = 20  # nodes


def rotation() -> bool:
    """Keys of nodes and of a listener are replaced while nodes speak without pause: all of it is stored, once."""
    return _without_a_skip("tests/test_rotation.py", {"MESSAGES_NODES": str(ROTATED)})


# ---- growth


def growth() -> bool:
    """What a kept promise, an acknowledgement and each view cost with little and with much that is kept."""
    return subprocess.run([sys.executable, str(REPOSITORY / "bench/growth.py")], check=False).returncode == 0


PROOFS = {
    "agents": agents,
    "python": pythons,
    "fuzz": fuzz,
    "kills": kills,
    "durable": durable,
    "subscribers": subscribers,
    "rotation": rotation,
    "growth": growth,
}


if __name__ == "__main__":
    main()
