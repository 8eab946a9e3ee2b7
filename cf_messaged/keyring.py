"""Whose keys are let in, and under which name: certificates in a directory, which `cf-messaged keys`, or whoever may
write it, changes while the listener runs.

    listener.key        the listener's own, with its secret; listener.next.key: that will take its place
    accepted/NODE.key   of a node; another one of it, while the first is replaced, is NODE~ANYTHING.key
    revoked/  rejected/ certificates that are never let in; of the latter nothing is said either
    waiting/            of nodes that are who they say, but whom only an operator may let in
    trusted/*.pub       CFEngine keys of hosts: what was let in by one is let in for as long as that is here
    strangers.json      who else knocked
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from cf_messaged.complaints import Complaints, in_words
from cf_messaged.host_keys import BadHostKey, HostKey, read_host_key
from cf_messaged.names import overlapped
from cf_messaged.times import rfc3339
from cf_messaging.keys import (
    SUFFIX,
    BadKey,
    certificate,
    from_hex,
    give_to_owner,
    public_key,
    read_certificate,
    write_private,
)

log = logging.getLogger(__name__)

FOLDERS = ACCEPTED, REVOKED, REJECTED, WAITING = "accepted", "revoked", "rejected", "waiting"
TRUSTED, TRUSTED_SUFFIX = "trusted", ".pub"
UNTRUSTED = "untrusted"  # accepted, but by a host that is trusted no more, or was revoked
UNKNOWN = "unknown"  # it knocked, and is in no folder
LISTENER, NEXT_LISTENER, STRANGERS = f"listener{SUFFIX}", f"listener.next{SUFFIX}", "strangers.json"
# Of a node, as files are named by it.
MAX_NAME_BYTES = 200
# That are noted; anybody can make up millions. The one that knocked longest ago is forgotten.
MAX_STRANGERS = 1000
WRITTEN_EACH_S = 0.2
# A directory that changed so short a time ago may have changed again at the same time of its clock.
SETTLED_NS = 100_000_000
# The files of a folder that has not changed are looked at so often: one may be written in place. And no more often than
# so many times as long as that takes.
LOOK_S, LOOK_REST = 1.0, 20
# A folder of so many files that changes all the time, as when a fleet enrols, is left alone for so many times as long
# as it took to read it.
MANY, REST = 1000, 4


class Held(NamedTuple):
    """Of a certificate. file: its name, without the folder. host_key: the digest of the CFEngine key by which it was
    enrolled, of a revoked one that may enrol no other; empty if by none. since: when it came to be in its folder,
    RFC 3339. reason: why it waits.
    """

    key: bytes
    node: str
    file: str
    host_key: str = ""
    since: str = ""
    reason: str = ""


class Stranger(NamedTuple):
    """first, last: when it knocked, UTC microseconds; times: how often."""

    key: bytes
    address: str
    first: int
    last: int
    times: int


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Version(NamedTuple):
    """Of a file: another one after each change."""

    name: str
    inode: int = 0
    changed_ns: int = 0
    size: int = 0


class Folder(Generic[_Key, _Value]):
    """What the files of one folder hold, read again when it has changed."""

    def __init__(
        self, path: Path, suffix: str, read: Callable[[Path], tuple[_Key, _Value] | None], keeps_out: bool = False
    ) -> None:
        """read: of one file; None if it is of no use. keeps_out: what is in it does, so all of it has to be known."""
        self.path, self._keeps_out = path, keeps_out
        self._suffix, self._read = suffix, read
        self._state: object = None
        self._look_s = 0.0  # when the files are looked at, though the folder has not changed
        self._not_before_s = 0.0
        self._files: dict[_Version, tuple[_Key, _Value] | None] = {}
        self.held: dict[_Key, _Value] = {}

    def read(self) -> bool:
        """Whether something may have changed. Raises OSError."""
        began_s = time.monotonic()
        status = os.stat(self.path)
        state = status.st_ino, status.st_mtime_ns
        if (state == self._state and began_s < self._look_s) or began_s < self._not_before_s:
            return False
        is_changed = self._read_files()
        self._state = state if time.time_ns() - status.st_mtime_ns > SETTLED_NS else None
        now_s = time.monotonic()
        self._look_s = now_s + max(LOOK_S, LOOK_REST * (now_s - began_s))
        if len(self._files) > MANY:
            self._not_before_s = now_s + REST * (now_s - began_s)
        return is_changed

    def _read_files(self) -> bool:
        """Those that have changed; whether they hold anything else than what is known."""
        with os.scandir(self.path) as entries:
            found = sorted(version for version in map(self._version, entries) if version)
        files, known = self._files, self.held
        self._files = {each: files[each] if each in files else self._read(self.path / each.name) for each in found}
        self.held = dict(each for each in self._files.values() if each)
        return self.held != known

    def _version(self, entry: os.DirEntry[str]) -> _Version | None:
        """None: it is nothing to read, or is gone again. What cannot be looked at cannot be read either, once."""
        if not entry.name.endswith(self._suffix):
            return None
        try:
            status = entry.stat()
        except FileNotFoundError:
            return None
        except OSError:
            if self._keeps_out:
                raise
            return _Version(entry.name)
        return _Version(entry.name, status.st_ino, status.st_ctime_ns, status.st_size)


def certificates(directory: str, state: str) -> Folder[bytes, Held]:
    return Folder(Path(directory) / state, SUFFIX, _read_held, keeps_out=state in (REVOKED, REJECTED))


def _read_held(path: Path) -> tuple[bytes, Held] | None:
    """One that is none keeps nobody else out."""
    try:
        key, told = read_certificate(str(path))
    except BadKey as error:
        log.error("nobody is let in by it: %s", error)
        return None
    node = path.name.removesuffix(SUFFIX).partition("~")[0]
    return key, Held(key, node, path.name, told.get("host_key", ""), told.get("since", ""), told.get("reason", ""))


def _read_trusted(path: Path) -> tuple[str, HostKey] | None:
    try:
        key = read_host_key(path)
    except BadHostKey as error:
        log.error("nobody is enrolled by it: %s", error)
        return None
    return key.digest, key


class Keyring:
    """For the threads of the listener; `names` may be asked at any time, by any of them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._accepted, self._revoked, self._rejected, self._waiting = (certificates(directory, it) for it in FOLDERS)
        self._trusted = Folder(Path(directory) / TRUSTED, TRUSTED_SUFFIX, _read_trusted)
        self._names: Mapping[bytes, str] = {}
        self._barred: set[str] = set()  # hosts that were revoked, whatever key they come with
        self._next_path = os.path.join(directory, NEXT_LISTENER)
        self._next_version: object = None
        self._next_key: str | None = None
        self._overlap_ends_us = 0.0
        self._complaint = ""
        self._turn = Lock()

    def names(self) -> Mapping[bytes, str]:
        """The node of each key that is let in now; of nobody, if that cannot be told."""
        with self._turn:
            try:
                folders = (self._accepted, self._revoked, self._rejected, self._trusted)
                changed = [folder.read() for folder in folders]
                if any(changed) or self._complaint:  # folders that were away are there again, as they were
                    self._names = self._let_in()
                self._complaint = ""
            except OSError as error:
                self._names = {}
                self._complain(f"nobody is let in: {in_words(error)}")
            return self._names

    def next_key(self) -> str | None:
        """The listener's, in hex, while its own is to be replaced."""
        try:
            status = os.stat(self._next_path)
            version = status.st_ino, status.st_mtime_ns
            if version != self._next_version:
                self._next_version = version
                self._next_key = public_key(self._next_path).hex()
        except FileNotFoundError:
            self._next_version = self._next_key = None
        except (OSError, BadKey) as error:
            log.error("the next key is not told to nodes: %s", error)
        return self._next_key

    def is_rejected(self, key: bytes) -> bool:
        return key in self._rejected.held

    def is_revoked(self, key: bytes) -> bool:
        return key in self._revoked.held

    def trusted(self, host_key: str) -> HostKey | None:
        """By its digest; None if it is not trusted, or its host was revoked, or while that cannot be told."""
        return None if self._complaint or host_key in self._barred else self._trusted.held.get(host_key)

    def is_trusted(self, host_key: str) -> bool:
        return self.trusted(host_key) is not None

    def is_barred(self, host_key: str) -> bool:
        """Whether its host was revoked."""
        return host_key in self._barred

    def accepted(self) -> list[Held]:
        return list(self._accepted.held.values())

    def accept(self, new: Held, gone: Sequence[Held]) -> None:
        """Let one in, and others in no more; it counts at once. Raises OSError."""
        with self._turn:
            accept(self.directory, new)
            self._remove(gone)
            self._accepted.held = {**self._accepted.held, new.key: new}
            self._names = self._let_in()

    def end_overlaps(self, now_us: int, heard_s: Callable[[bytes], float]) -> None:
        """Let the older key of a host in no more, once the newer one is there for long enough. heard_s: how long ago
        something was said by a key. Raises OSError.
        """
        if now_us < self._overlap_ends_us:
            return
        with self._turn:
            over, self._overlap_ends_us = overlapped(self.accepted(), now_us, heard_s)
            if over:
                self._remove(over)
                self._names = self._let_in()

    def _remove(self, gone: Sequence[Held]) -> None:
        for held in gone:
            (self._accepted.path / held.file).unlink(missing_ok=True)
        self._accepted.held = {key: held for key, held in self._accepted.held.items() if held not in gone}

    def wait(self, new: Held) -> bool:
        """Let an operator see who waits, one of each host; whether he could not see it before. Raises OSError."""
        self._waiting.read()
        before = [held for held in self._waiting.held.values() if held.host_key == new.host_key]
        if [(held.key, held.node, held.reason) for held in before] == [(new.key, new.node, new.reason)]:
            return False
        for held in before:
            (self._waiting.path / held.file).unlink(missing_ok=True)
        new = new._replace(file=file_of(new.node, new.key, self._waiting.held.values()))
        put(self.directory, WAITING, new, "Waits for an operator")
        return True

    def _let_in(self) -> Mapping[bytes, str]:
        self._overlap_ends_us = 0.0  # to be looked at again
        out = self._revoked.held.keys() | self._rejected.held.keys()
        self._barred = {held.host_key for held in self._revoked.held.values() if held.host_key}
        trusted = self._trusted.held.keys() - self._barred
        return {
            key: held.node
            for key, held in self._accepted.held.items()
            if key not in out and (not held.host_key or held.host_key in trusted)
        }

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
    for name in ("", *FOLDERS, TRUSTED):
        path = Path(directory) / name
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            give_to_owner(str(path.parent), descriptor)
            os.close(descriptor)


def write(path: Path, text: str) -> None:
    os.replace(write_private(str(path), text), path)


def file_of(node: str, key: bytes, others: Iterable[Held] = ()) -> str:
    """Of a certificate, beside these."""
    name = f"{node}{SUFFIX}"
    return f"{node}~{key.hex()[:16]}{SUFFIX}" if any(held.file == name for held in others) else name


def put(directory: str, state: str, held: Held, about: str) -> None:
    """Raises OSError."""
    told = {"host_key": held.host_key, "since": held.since, "reason": held.reason}
    write(Path(directory) / state / held.file, certificate(held.key, about, **told))


def accept(directory: str, held: Held) -> None:
    """Raises OSError."""
    put(directory, ACCEPTED, held._replace(reason=""), f"Accepted as {held.node}")
    with suppress(OSError):  # it is let in, also if it is listed as one that waits
        wait_no_more(directory, held.key)


def wait_no_more(directory: str, key: bytes) -> None:
    """Raises OSError."""
    waiting = held_in(directory, WAITING).get(key)
    if waiting:
        os.unlink(Path(directory) / WAITING / waiting.file)


def revoke(directory: str, held: Held, bars_host: bool = False) -> None:
    """First what keeps it out: if the rest fails, it is out. bars_host: with its host, whatever other key that comes
    with. Raises OSError.
    """
    file, since = f"{held.node}~{held.key.hex()}{SUFFIX}", rfc3339(time.time_ns() // 1000)
    out = held._replace(file=file, host_key=held.host_key if bars_host else "", since=since)
    put(directory, REVOKED, out, f"Revoked, was {held.node}")
    os.unlink(Path(directory) / ACCEPTED / held.file)


def held_in(directory: str, state: str) -> Mapping[bytes, Held]:
    """By key. Raises OSError."""
    folder = certificates(directory, state)
    folder.read()
    return folder.held


def trusted_files(directory: str) -> list[tuple[str, str]]:
    """Of each host that is trusted, the digest of its key, and the name of the file. Raises OSError."""
    folder = Folder(Path(directory) / TRUSTED, TRUSTED_SUFFIX, _read_named)
    folder.read()
    return [(host_key, name) for name, host_key in sorted(folder.held.items())]


def _read_named(path: Path) -> tuple[str, str] | None:
    """The file, and the digest."""
    found = _read_trusted(path)
    return found and (path.name, found[0])


def listed(directory: str) -> list[dict[str, Any]]:
    """Rows for people, all of the same columns: who is let in, who was, and who knocked. Raises OSError."""
    let_in = Keyring(directory).names()
    states = (WAITING, ACCEPTED, REJECTED, REVOKED)  # of a key in several folders the last one counts
    known = {each.key: (state, each) for state in states for each in held_in(directory, state).values()}
    for key, (state, held) in known.items():
        if state == ACCEPTED and key not in let_in:
            known[key] = UNTRUSTED, held
    strangers = {stranger.key: stranger for stranger in read_strangers(directory)}
    rows = [_row(state, held, strangers.get(held.key)) for state, held in known.values()]
    unknown = [stranger for stranger in strangers.values() if stranger.key not in known]
    return rows + [_row(UNKNOWN, Held(stranger.key, "", ""), stranger) for stranger in unknown]


def _row(state: str, held: Held, knocked: Stranger | None) -> dict[str, Any]:
    return {
        "key": held.key.hex(),
        "state": state,
        "node": held.node,
        "host_key": held.host_key,
        "reason": held.reason,
        "address": knocked.address if knocked else "",
        "first": f"{rfc3339(knocked.first)[:19]}Z" if knocked else "",
        "last": f"{rfc3339(knocked.last)[:19]}Z" if knocked else "",
        "times": knocked.times if knocked else "",
    }
