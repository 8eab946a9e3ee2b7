"""Whose keys are let in, and under which name: certificates in a directory, which `cf-messaged keys`, or whoever may
write it, changes while the listener runs.

    listener.key        the listener's own, with its secret
    accepted/NODE.key   of a node; another one of it, while the first is replaced, is NODE~ANYTHING.key
    revoked/  rejected/ certificates that are never let in; of the latter nothing is said either
    strangers.json      who else knocked
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from cf_messaged.complaints import Complaints
from cf_messaged.times import rfc3339
from cf_messaging.keys import SUFFIX, BadKey, from_hex, give_to_owner, public_key, write_private

log = logging.getLogger(__name__)

FOLDERS = ACCEPTED, REVOKED, REJECTED = "accepted", "revoked", "rejected"
LISTENER, STRANGERS = f"listener{SUFFIX}", "strangers.json"
# That are noted; anybody can make up millions. The one that knocked longest ago is forgotten.
MAX_STRANGERS = 1000
WRITTEN_EACH_S = 0.2
# A directory that changed so short a time ago may have changed again at the same time of its clock.
SETTLED_NS = 100_000_000


class Held(NamedTuple):
    """Of a certificate. file: its name, without the folder."""

    key: bytes
    node: str
    file: str


class Stranger(NamedTuple):
    """first, last: when it knocked, UTC microseconds; times: how often."""

    key: bytes
    address: str
    first: int
    last: int
    times: int


class Folder:
    """The certificates of one folder, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: object = None
        self._files: dict[tuple[str, int, int], Held | None] = {}
        self.held: dict[bytes, Held] = {}

    def read(self) -> bool:
        """Whether something may have changed. Raises OSError."""
        status = os.stat(self.path)
        state = status.st_ino, status.st_mtime_ns
        if state == self._state:
            return False
        with os.scandir(self.path) as entries:
            found = sorted(version for version in map(_version, entries) if version)
        self._files = {each: self._files[each] if each in self._files else self._read(each[0]) for each in found}
        self.held = {held.key: held for held in self._files.values() if held}
        self._state = state if time.time_ns() - status.st_mtime_ns > SETTLED_NS else None
        return True

    def _read(self, name: str) -> Held | None:
        """One that is none keeps nobody else out."""
        try:
            return Held(public_key(str(self.path / name)), name.removesuffix(SUFFIX).partition("~")[0], name)
        except BadKey as error:
            log.error("nobody is let in by it: %s", error)
            return None


def _version(entry: os.DirEntry[str]) -> tuple[str, int, int] | None:
    """None: it is no certificate, or is gone again."""
    if not entry.name.endswith(SUFFIX):
        return None
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None
    return entry.name, status.st_ino, status.st_mtime_ns


class Keyring:
    """For the threads of the listener; `names` may be asked at any time, by any of them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._folders = [Folder(Path(directory) / name) for name in FOLDERS]
        self._names: Mapping[bytes, str] = {}
        self._complaint = ""
        self._turn = Lock()

    def names(self) -> Mapping[bytes, str]:
        """The node of each key that is let in now; of nobody, if that cannot be told."""
        with self._turn:
            try:
                changed = [folder.read() for folder in self._folders]
                if any(changed) or self._complaint:  # folders that were away are there again, as they were
                    self._names = self._let_in()
                self._complaint = ""
            except OSError as error:
                self._names = {}
                self._complain(f"nobody is let in: {error.filename}: {error.strerror}")
            return self._names

    def is_rejected(self, key: bytes) -> bool:
        return key in self._folders[2].held

    def _let_in(self) -> Mapping[bytes, str]:
        accepted, revoked, rejected = (folder.held for folder in self._folders)
        return {key: held.node for key, held in accepted.items() if key not in revoked and key not in rejected}

    def _complain(self, complaint: str) -> None:
        """Once, until it is something else."""
        if complaint != self._complaint:
            log.error("%s", complaint)
        self._complaint = complaint


class Strangers:
    """Keys that are not known, as they knock; written to a file soon, but not at each knock."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / STRANGERS
        self._noted: dict[bytes, Stranger] = {stranger.key: stranger for stranger in read_strangers(directory)}
        self._written_s = 0.0
        self._complaints = Complaints()
        self.is_new = False  # something is not written yet

    def note(self, key: bytes, address: str, now_us: int) -> None:
        before = self._noted.pop(key, None)
        first, times = (before.first, before.times) if before else (now_us, 0)
        if before is None:
            self._complaints.say(address, f"a key that is not known was not let in: {key.hex()}, from {address}")
        self._noted[key] = Stranger(key, address, first, now_us, times + 1)
        while len(self._noted) > MAX_STRANGERS:
            del self._noted[next(iter(self._noted))]
        self.is_new = True

    def write(self, now_s: float) -> None:
        """If it is time."""
        if not self.is_new or now_s - self._written_s < WRITTEN_EACH_S:
            return
        self._written_s, self.is_new = now_s, False
        rows = [{**stranger._asdict(), "key": stranger.key.hex()} for stranger in self._noted.values()]
        try:
            write(self._path, json.dumps(rows))
        except OSError as error:
            log.error("who knocks cannot be noted: %s: %s", self._path, error.strerror)


# ---- the files, for `cf-messaged keys` too


def read_strangers(directory: str) -> list[Stranger]:
    """None, if they cannot be read: they are noted again when they knock."""
    try:
        rows = json.loads((Path(directory) / STRANGERS).read_text())
        return [Stranger(from_hex(row.pop("key")), **row) for row in rows][-MAX_STRANGERS:]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return []


def make(directory: str) -> None:
    """What is not there yet."""
    for name in ("", *FOLDERS):
        path = Path(directory) / name
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            give_to_owner(str(path.parent), descriptor)
            os.close(descriptor)


def write(path: Path, text: str) -> None:
    os.replace(write_private(str(path), text), path)


def held(directory: str, state: str) -> Mapping[bytes, Held]:
    """By key. Raises OSError."""
    folder = Folder(Path(directory) / state)
    folder.read()
    return folder.held


def listed(directory: str) -> list[dict[str, Any]]:
    """Rows for people, all of the same columns: who is let in, who was, and who knocked. Raises OSError."""
    known = {each.key: (state, each.node) for state in FOLDERS for each in held(directory, state).values()}
    strangers = {stranger.key: stranger for stranger in read_strangers(directory) if stranger.key not in known}
    return [_row(key, state, node) for key, (state, node) in known.items()] + [
        _row(key, "unknown", "", stranger) for key, stranger in strangers.items()
    ]


def _row(key: bytes, state: str, node: str, knocked: Stranger | None = None) -> dict[str, Any]:
    return {
        "key": key.hex(),
        "state": state,
        "node": node,
        "address": knocked.address if knocked else "",
        "first": f"{rfc3339(knocked.first)[:19]}Z" if knocked else "",
        "last": f"{rfc3339(knocked.last)[:19]}Z" if knocked else "",
        "times": knocked.times if knocked else "",
    }
