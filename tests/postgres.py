"""A PostgreSQL of its own for the tests: a private directory, a Unix socket alone, ended with this process."""

from __future__ import annotations

import glob
import itertools
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
import sqlalchemy as sa

from cf_messaged.store import Store
from peers import scaled

# Ends the server when its standard input does: with this process, however that ends. A line there leaves the directory.
WATCHER = """
folder=$1; shift
"$@" & server=$!
read -r word; kill -QUIT $server; wait $server
[ "$word" ] || rm -rf "$folder"
"""
# initdb and the server refuse root; the directory belongs to this user then.
USERS = ("postgres", "nobody")
ADMIN = "admin"
_LONGEST_S = 60


def folder_of_programs() -> str | None:
    """Of the newest: Debian keeps them out of PATH."""
    debian = glob.glob("/usr/lib/postgresql/*/bin")
    newest = sorted(debian, key=lambda path: int(re.findall("[0-9]+", path)[0]))[-1:]
    found = shutil.which("initdb")
    return newest[0] if newest else found and os.path.dirname(found)


def why_not() -> str | None:
    """Why there can be none here; None if there can."""
    if folder_of_programs() is None:
        return "PostgreSQL is not installed: Debian's package postgresql has it"
    if os.geteuid() == 0 and _user() is None:
        return f"PostgreSQL refuses root, and there is no user {' or '.join(USERS)}"
    return None


def _user() -> pwd.struct_passwd | None:
    known = {each.pw_name: each for each in pwd.getpwall()}
    return next((known[name] for name in USERS if name in known), None)


def _as_user() -> dict[str, Any]:
    """What makes a process that of a user who is not root."""
    user = _user() if os.geteuid() == 0 else None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}


class Server:
    """settings: lines of postgresql.conf. Made, it runs; it may be stopped and started."""

    def __init__(self, *settings: str, below: Path | None = None) -> None:
        """below: which directory its own is made, that of temporary files by default."""
        # Not below pytest's directories, which only their owner may enter.
        self.folder = tempfile.mkdtemp(prefix="messages-pg-", dir=below)
        os.chmod(self.folder, 0o711)  # the socket in it is for us
        self._data = f"{self.folder}/data"
        self._numbers = itertools.count(1)
        self._first: str | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        os.mkdir(self._data)
        if as_user := _as_user():
            shutil.chown(self.folder, as_user["user"], as_user["group"])
            shutil.chown(self._data, as_user["user"], as_user["group"])
        self._initialise(settings)
        self.start()

    def _initialise(self, settings: tuple[str, ...]) -> None:
        """What is made here need not outlive a loss of power; what is written later is synced as ever."""
        made = [f"{folder_of_programs()}/initdb", "--no-sync", "-A", "trust", "-U", ADMIN, "-E", "UTF8", "--locale=C"]
        subprocess.run([*made, "-D", self._data], check=True, capture_output=True, **_as_user())
        private = ["listen_addresses = ''", f"unix_socket_directories = '{self.folder}'", "logging_collector = off"]
        lines = [*private, "max_connections = 200", "shared_buffers = 32MB", *settings]
        with open(f"{self._data}/postgresql.conf", "a") as file:
            file.writelines(f"{line}\n" for line in lines)
        rules = Path(f"{self._data}/pg_hba.conf")
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())

    def start(self) -> None:
        """Returns once it answers."""
        with open(f"{self.folder}/log", "ab") as log:
            command = ["sh", "-c", WATCHER, "sh", self.folder, f"{folder_of_programs()}/postgres", "-D", self._data]
            self._watcher = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd="/", **_as_user()
            )
        until = monotonic() + scaled(_LONGEST_S)
        while not self._answers():
            if self._watcher.poll() is not None or monotonic() > until:
                raise RuntimeError(f"PostgreSQL does not start: {Path(f'{self.folder}/log').read_text()[-2000:]}")
            sleep(0.02)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """At once, as after a loss of power: it recovers at its next start."""
        self._end(b"stay\n")

    def close(self) -> None:
        self._end(b"")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, word: bytes) -> None:
        if self._watcher:
            self._watcher.communicate(word)
        self._watcher = None

    def url(self, database: str, user: str = ADMIN) -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def new(self, options: str = "") -> str:
        """The URL of a new database, which is empty."""
        name = f"test{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def new_store(self) -> str:
        """The URL of a store with nothing in it: a copy of the first one, which is faster made."""
        if self._first is None:
            self._first = self.new()
            Kept(self._first).close()
        return self.new(f"TEMPLATE {_name(self._first)}")

    def drop(self, url: str) -> None:
        """Also while somebody is connected."""
        self.run(f"DROP DATABASE IF EXISTS {_name(url)} (FORCE)")

    def run(self, statement: str, database: str = "postgres") -> None:
        """As an administrator."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)


def _name(url: str) -> str | None:
    return sa.make_url(url).database


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """What a store of either kind answers; the query may also write."""
    parsed = sa.make_url(url)
    is_file = parsed.drivername == "sqlite"
    engine = sa.create_engine(parsed if is_file else parsed.set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        found = connection.exec_driver_sql(query if is_file else query.replace("%", "%%"))
        return [tuple(row) for row in found] if found.returns_rows else []


class Kept(Store):
    """A store, and what is in its tables."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return rows(self.url, query)
