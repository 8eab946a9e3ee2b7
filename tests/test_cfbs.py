"""`cfbs add` of this repository, `cfbs build`, policy update, cf-agent: the way from a clone to a kept promise.

cfbs adds a module by an https URL, which it hands to git. Here git is told (url.*.insteadOf) to find the URLs in a
folder, so cfbs does all it does in the field without a network. Beside a copy of this repository the folder holds
the masterfiles that come with Debian's cfengine3, as a module of its own: that one is in an index on the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CFBS = Path(sys.executable).parent / "cfbs"
MASTERFILES = Path("/usr/share/cfengine3/masterfiles")
NOT_COMMITTED = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__")
NOBODYS_SETTINGS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
NOBODYS_SETTINGS |= {f"GIT_{who}_NAME": "test" for who in ("AUTHOR", "COMMITTER")}
NOBODYS_SETTINGS |= {f"GIT_{who}_EMAIL": "test@localhost" for who in ("AUTHOR", "COMMITTER")}

MASTERFILES_MODULE = {
    "name": "masterfiles",
    "description": "The masterfiles of this machine.",
    "type": "module",
    "provides": {
        "masterfiles": {
            "description": "The masterfiles of this machine.",
            "subdirectory": "masterfiles",
            "steps": ["copy ./ ./"],
        }
    },
}
USERS_POLICY = """
bundle agent nothing_to_say
{
  messages:
    "tcp://127.0.0.1:1"
      pattern => "push",
      payload => {},
      classes => test_outcome;

  reports:
    test_kept::
      "kept";
    test_other::
      "not kept or repaired";
}

body classes test_outcome
{
  promise_kept => { "test_kept" };
  promise_repaired => { "test_other" };
  repair_failed => { "test_other" };
}
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """What a command printed; the test fails if the command does."""
    environment = {**os.environ, **NOBODYS_SETTINGS, **env}
    done = subprocess.run(
        command, check=False, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def commit_all(repository: Path) -> None:
    """Make a folder a git repository with all that is in it, but for what its .gitignore names."""
    run("git", "init", "--quiet", cwd=repository)
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", "all", cwd=repository)


def repositories(folder: Path) -> None:
    """The two repositories that the project is built from, with a user's policy in services/main.cf."""
    shutil.copytree(ROOT, folder / "messages", ignore=NOT_COMMITTED)
    shutil.copytree(MASTERFILES, folder / "masterfiles/masterfiles")
    with (folder / "masterfiles/masterfiles/services/main.cf").open("a") as main:
        main.write(USERS_POLICY)
    (folder / "masterfiles/cfbs.json").write_text(json.dumps(MASTERFILES_MODULE))
    commit_all(folder / "messages")
    commit_all(folder / "masterfiles")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masterfiles that cfbs built from the two repositories."""
    folder = tmp_path_factory.mktemp("cfbs")
    repositories(folder / "repositories")
    project = folder / "project"
    project.mkdir()
    env = {
        "HOME": str(folder),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder}/repositories/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://messages.example/",
    }
    run(CFBS, "--non-interactive", "init", "--masterfiles=no", "--git=no", cwd=project, **env)
    for module in ("masterfiles", "messages"):
        run(CFBS, "--non-interactive", "add", f"https://messages.example/{module}", cwd=project, **env)
    run(CFBS, "build", cwd=project, **env)
    return project / "out/masterfiles"


def agent_prints(workdir: Path, policy: str, bundle: str) -> str:
    """What cf-agent prints when it keeps one bundle of the policy in a private work directory."""
    no_apt = "-Ddisable_inventory_package_refresh"  # else masterfiles ask apt about updates, whatever the bundle
    command = ["cf-agent", "-K", no_apt, "-b", bundle, "-f", str(workdir / "inputs" / policy)]
    return run(*command, cwd=workdir, CFENGINE_TEST_OVERRIDE_WORKDIR=str(workdir))


@pytest.fixture
def workdir(built: Path, tmp_path: Path) -> Path:
    """A private work directory with the built policy as its inputs."""
    workdir = tmp_path / "workdir"
    shutil.copytree(built, workdir / "inputs")
    for folder in ("bin", "modules", "ppkeys", "state"):
        (workdir / folder).mkdir()
    run("chmod", "-R", "go=", workdir, cwd=tmp_path)
    cf_promises = shutil.which("cf-promises")
    assert cf_promises
    (workdir / "bin/cf-promises").symlink_to(cf_promises)
    run("cf-key", cwd=workdir, CFENGINE_TEST_OVERRIDE_WORKDIR=str(workdir))
    return workdir


def test_build_holds_module_sdk_and_package(built: Path) -> None:
    """The built masterfiles hold all that a node needs, as it is in this repository, in modules/promises."""
    wanted = [Path("messages_promise.py"), Path("cfengine.py")]
    wanted += [path.relative_to(ROOT) for path in (ROOT / "cf_messaging").glob("*.py")]
    for path in wanted:
        assert (built / "modules/promises" / path).read_bytes() == (ROOT / path).read_bytes()


def test_build_enables_the_promise_type(built: Path) -> None:
    """services/init.cf, which masterfiles read first, ends with the promise block."""
    assert (built / "services/init.cf").read_text().endswith((ROOT / "examples/enable.cf").read_text())


def test_built_policy_runs(workdir: Path) -> None:
    """Policy update puts the module in its place, and an agent that has nothing to say keeps its promise silently."""
    agent_prints(workdir, "update.cf", "modules_presence")
    assert agent_prints(workdir, "promises.cf", "nothing_to_say") == "R: kept\n"
