"""What a node remembers, in SQLite: what a cf-messaged has acknowledged, and what waits to be said.

A service is a cf-messaged, named by the endpoints of the promises that speak to it; of a store behind it all is
remembered until another store answers there. Times are seconds of the wall clock, which may jump.
"""

from __future__ import annotations

import os
import sqlite3
from collections import namedtuple

from .outcomes import Failure, Reason
from .wire import Malformed, decode_event, encode_event, event_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    T = TypeVar("T")

_VERSION = 1
_SCHEMA = (
    "CREATE TABLE stream (id TEXT NOT NULL, next INTEGER NOT NULL)",
    "CREATE TABLE service (id INTEGER PRIMARY KEY, endpoints TEXT NOT NULL UNIQUE, store TEXT NOT NULL)",
    "CREATE TABLE heard (service INTEGER NOT NULL, node TEXT NOT NULL, highest INTEGER NOT NULL,"
    " PRIMARY KEY (service, node)) WITHOUT ROWID",
    "CREATE TABLE said (service INTEGER NOT NULL, node TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,"
    " data TEXT NOT NULL, at INTEGER NOT NULL, promised INTEGER NOT NULL, PRIMARY KEY (service, node, kind, name))"
    " WITHOUT ROWID",
    "CREATE INDEX said_promised ON said (promised)",
    "CREATE TABLE queue (sequence INTEGER PRIMARY KEY, service INTEGER NOT NULL, node TEXT NOT NULL,"
    " kind TEXT NOT NULL, name TEXT NOT NULL, data TEXT NOT NULL, id TEXT NOT NULL, event BLOB NOT NULL,"
    " queued INTEGER NOT NULL, expires INTEGER NOT NULL)",
    "CREATE INDEX queue_name ON queue (service, node, kind, name)",
    "CREATE TABLE size (bytes INTEGER NOT NULL)",
    "INSERT INTO size VALUES (0)",
    "CREATE TRIGGER came AFTER INSERT ON queue BEGIN UPDATE size SET bytes = bytes + length(new.event); END",
    "CREATE TRIGGER went AFTER DELETE ON queue BEGIN UPDATE size SET bytes = bytes - length(old.event); END",
)
# A listener that is down for a week must not fill a node's disk.
MAX_QUEUE_BYTES = 64 * 1024 * 1024
STORE, NODE = "store", "node"  # who has lost its memory
_BUSY_S = 2  # that another agent may take for its transaction
_LOOK_S = 1  # of one transaction; to begin one for each promise takes longer than all else about a kept one
_DAY = 86400
_FORGOTTEN_AFTER = 90 * _DAY
_SERVICE = "(SELECT id FROM service WHERE endpoints = ?)"
_SAME = "service = ? AND node = ? AND kind = ? AND name = ?"
_KNOWN = (
    f"SELECT data, at, promised FROM said WHERE service = {_SERVICE} AND node = ? AND kind = ? AND name = ?"
    " AND NOT EXISTS (SELECT 1 FROM queue WHERE queue.service = said.service"
    " AND queue.node = said.node AND queue.kind = said.kind AND queue.name = said.name)"
)
_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter where SQLite quotes what is damaged
_TROUBLE = ("locked", "busy", "full", "readonly", "disk i/o", "unable to open", "out of memory")  # but no damage

# What is to be said, before it has a place in the queue: data is its canonical text.
Saying = namedtuple("Saying", "node kind name data")
# An event in the queue.
Waiting = namedtuple("Waiting", "sequence node kind name id event queued expires")
# What a listener has told of an event. have: the highest sequence of the node that its store had before; stored: bool.
Told = namedtuple("Told", "sequence node have stored")


class Memory:
    """The memory file of a node, which two agents may use at once. Raises Failure, of this node, where it cannot."""

    def __init__(self, path: str, report: Callable[[str], None], read_only: bool = False) -> None:
        """report: is told in words of a damaged file, which is set aside."""
        self._path = path
        self._report = report
        self._read_only = read_only
        self._looks_since = 0.0
        self._inode = 0  # of the file that is open
        self._promised: dict[tuple[str, ...], float] = {}  # by endpoints, node, kind, name; not noted in the file yet
        self._connection = self._opened()

    def close(self) -> None:
        try:
            if self._promised:
                self._write(self._note_promised)
        except Failure:  # a full disk does not make a value less known; it is noted another day
            pass
        self._connection.close()

    # ---- what is known

    def is_acknowledged(self, endpoints: str, saying: Saying, refresh_s: int, now: float) -> bool:
        """Whether the listener has this value, nothing of its name waits, and it need not be said again yet."""
        data, at, promised = self._known(endpoints, saying, now)
        if data != saying.data or not 0 <= now - at < refresh_s:  # or the clock was set back
            return False
        if not 0 <= now - promised < _DAY and not self._read_only:
            self._promised[(endpoints, *saying[:3])] = now
        return True

    def _known(self, endpoints: str, saying: Saying, now: float) -> tuple[str | None, int, int]:
        """Value, when it was acknowledged and when it was last promised, of a name of which nothing waits.

        A run asks for one name after the other. It looks in one transaction, and in another after a second, since
        another agent may have written.
        """
        if not 0 <= now - self._looks_since < _LOOK_S:
            self._end_look()
        if not self._connection.in_transaction:
            self._looks_since = now
            self._do("BEGIN")
        rows = self._tried(lambda: self._do(_KNOWN, (endpoints, *saying[:3])))
        return rows[0] if rows else (None, 0, 0)

    def _end_look(self) -> None:
        if self._connection.in_transaction:
            self._do("COMMIT")

    def _note_promised(self) -> None:
        where = f"service = {_SERVICE} AND node = ? AND kind = ? AND name = ?"
        for same, now in self._promised.items():
            self._do(f"UPDATE said SET promised = ? WHERE {where}", (int(now), *same))
        self._promised.clear()

    def acknowledged(self, endpoints: str) -> dict[str, int]:
        """The highest sequence of each node that this service's store is known to have."""
        return dict(self._read(f"SELECT node, highest FROM heard WHERE service = {_SERVICE}", (endpoints,)))

    # ---- the queue

    def queue(
        self, endpoints: str, saying: Saying, replaces: bool, event: Callable[[str], bytes], now: float, expires: float
    ) -> tuple[int, list[str]]:
        """Put an event at the end of the queue, on disk when this returns; the one that waits there with the same value
        stays in its place instead.

        replaces: whether a new value of the name is all that is worth saying; event: makes it from its id. Returns its
        sequence, and of each event that had to go since the queue is full, the endpoints that it was for.
        """

        def work() -> tuple[int, list[str]]:
            same = (self._service(endpoints), *saying[:3])
            if replaces:
                waiting = self._do(f"SELECT sequence, data FROM queue WHERE {_SAME}", same)
                if [data for _, data in waiting] == [saying.data]:
                    if self._connection.total_changes == 0:
                        self._next()  # for the sync: a run that was killed may have left what waits without it
                    return waiting[0][0], []
                self._do(f"DELETE FROM queue WHERE {_SAME}", same)
                # The listener may get this value without our hearing of it: what it had before is no more known.
                self._do(f"DELETE FROM said WHERE {_SAME}", same)
            stream, sequence = self._next()
            id = event_id(stream, sequence)
            row = (sequence, *same, saying.data, id, event(id), int(now), int(expires))
            self._do("INSERT INTO queue VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            return sequence, self._shrink(sequence)

        return self._write(work)

    def next_id(self) -> str:
        """The id of an event that is not queued."""
        return event_id(*self._write(self._next))

    def waiting(self, endpoints: str, after: int, limit: int) -> list[Waiting]:
        """The oldest events behind a sequence, in the order in which they were queued."""
        rows = self._read(
            f"SELECT sequence, node, kind, name, id, event, queued, expires FROM queue WHERE service = {_SERVICE}"
            " AND sequence > ? ORDER BY sequence LIMIT ?",
            (endpoints, after, limit),
        )
        return [Waiting(*row) for row in rows]

    def backlog(self, endpoints: str) -> tuple[int, int]:
        """How many events wait for this service, and when the oldest was queued."""
        rows = self._read(f"SELECT count(*), min(queued) FROM queue WHERE service = {_SERVICE}", (endpoints,))
        return rows[0][0], rows[0][1] or 0

    def drop(self, sequences: Iterable[int]) -> None:
        """Take events out of the queue that are worth nothing any more."""
        self._write(lambda: self._delete(sequences))

    def settle(self, endpoints: str, store: str, told: list[Told], known: dict[str, int], now: float) -> str:
        """Remember what is stored, and take it out of the queue.

        known: what acknowledged() was before the events were said. Returns "", or who has lost its memory. STORE: it is
        another one, or an older copy, and all that was remembered of it is void. NODE: this memory is an older copy,
        and nothing of the answers counts.
        """

        def work() -> str:
            service = self._service(endpoints)
            if max(each.have for each in told) >= self._one("SELECT next FROM stream")[0]:
                # This memory is an older copy: its ids were used before, and the answers were to other events.
                self._begin_stream()
                return NODE
            before = self._one("SELECT store FROM service WHERE id = ?", (service,))[0]
            void = bool(before) and (before != store or any(each.have < known.get(each.node, 0) for each in told))
            if void:
                self._do("DELETE FROM said WHERE service = ?", (service,))
                self._do("DELETE FROM heard WHERE service = ?", (service,))
            self._do("UPDATE service SET store = ? WHERE id = ?", (store, service))
            for each in told:
                self._remember(service, each, int(now))
            self._note_promised()
            self._do("DELETE FROM said WHERE promised < ?", (int(now) - _FORGOTTEN_AFTER,))
            return STORE if void else ""

        return self._write(work)

    def _remember(self, service: int, told: Told, now: int) -> None:
        highest = max(told.have, told.sequence) if told.stored else told.have
        self._do(
            "INSERT INTO heard VALUES (?, ?, ?)"  # another agent may have heard more meanwhile
            " ON CONFLICT (service, node) DO UPDATE SET highest = max(highest, excluded.highest)",
            (service, told.node, highest),
        )
        if told.stored:
            self._do(
                "INSERT OR REPLACE INTO said SELECT service, node, kind, name, data, ?, ? FROM queue"
                " WHERE sequence = ? AND kind != 'state'",
                (now, now, told.sequence),
            )
            self._delete([told.sequence])

    def give_up(self, endpoints: str, now: float) -> int:
        """Drop what expired a day ago for services that no promise speaks to any more; returns how many events."""
        where = f"service IS NOT {_SERVICE} AND expires < ?"
        values = (endpoints, int(now) - _DAY)
        count = self._read(f"SELECT count(*) FROM queue WHERE {where}", values)[0][0]
        if count:
            self._write(lambda: self._do(f"DELETE FROM queue WHERE {where}", values))
        return int(count)

    def _service(self, endpoints: str) -> int:
        self._do("INSERT OR IGNORE INTO service (endpoints, store) VALUES (?, '')", (endpoints,))
        return int(self._one("SELECT id FROM service WHERE endpoints = ?", (endpoints,))[0])

    def _next(self) -> tuple[str, int]:
        stream, sequence = self._one("SELECT id, next FROM stream")
        self._do("UPDATE stream SET next = next + 1")
        return stream, sequence

    def _begin_stream(self) -> None:
        """A new stream, in which all that waits gets new ids; what was said since this copy was made is not known."""
        self._do("UPDATE stream SET id = ?", (os.urandom(16).hex(),))
        self._do("DELETE FROM heard")
        self._do("DELETE FROM said")
        for sequence, event in self._do("SELECT sequence, event FROM queue ORDER BY sequence"):
            id = event_id(self._one("SELECT id FROM stream")[0], sequence)
            try:
                again = encode_event(decode_event(event)._replace(id=id))
            except Malformed:  # damaged on disk: nobody would take it
                self._delete([sequence])
                continue
            self._do("UPDATE queue SET id = ?, event = ? WHERE sequence = ?", (id, again, sequence))

    def _delete(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            self._do("DELETE FROM queue WHERE sequence = ?", (sequence,))

    def _shrink(self, newest: int) -> list[str]:
        """Take the oldest state, then the oldest of all, out of a queue that is too large; returns whose it was."""
        gone: list[str] = []
        while self._one("SELECT bytes FROM size")[0] > MAX_QUEUE_BYTES:
            oldest = self._do(
                "SELECT sequence, endpoints FROM queue JOIN service ON service.id = queue.service WHERE sequence != ?"
                " ORDER BY kind != 'state', sequence LIMIT 1",
                (newest,),
            )
            if not oldest:
                break
            self._delete([oldest[0][0]])
            gone.append(oldest[0][1])
        return gone

    # ---- the file

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except _ERRORS as error:
            if self._read_only or not _is_damage(error):
                raise self._failure(error) from error
            self._set_aside(error)
        try:
            return self._connected()
        except _ERRORS as error:
            raise self._failure(error) from error

    def _connected(self) -> sqlite3.Connection:
        if self._read_only:
            return _checked(self._look(), self._path, _prepare)
        self._make_file()
        self._inode = _inode(self._path)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        # SQLite does not wait where two change a new file to WAL.
        return _checked(connection, self._path, lambda new: _alone(self._path, lambda: _prepare(new)))

    def _look(self) -> sqlite3.Connection:
        """A connection that writes nothing, not even the files that SQLite makes beside a database."""
        if not os.path.exists(self._path):
            return sqlite3.connect(":memory:", isolation_level=None)
        wal = self._path + "-wal"
        how = "mode=ro" if os.path.exists(wal) and os.path.getsize(wal) else "immutable=1"
        path = self._path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        return sqlite3.connect(f"file:{path}?{how}", uri=True, timeout=_BUSY_S, isolation_level=None)

    def _make_file(self) -> None:
        """Not left to SQLite, which would let others read it."""
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise Failure(Reason.LOCAL, f"memory {self._path} cannot be made: {error.strerror}") from error

    def _set_aside(self, error: Exception) -> None:
        """Rename a damaged file, unless another agent has done so and may have begun another. Raises Failure."""
        try:
            _alone(self._path, lambda: self._rename(error))
        except OSError as trouble:
            raise self._failure(trouble) from trouble

    def _rename(self, error: Exception) -> None:
        if _inode(self._path) != self._inode:
            return
        number = 1
        while os.path.exists(f"{self._path}.damaged-{number}"):
            number += 1
        aside = f"{self._path}.damaged-{number}"
        for suffix in ("", "-wal", "-shm"):  # and what SQLite keeps beside it
            if os.path.exists(self._path + suffix):
                os.replace(self._path + suffix, aside + suffix)
        self._report(f"memory {self._path} is damaged ({error}): set aside as {aside}, started anew")

    def _read(self, statement: str, values: Iterable[object]) -> list[tuple[Any, ...]]:
        self._end_look()
        return self._tried(lambda: self._do(statement, values))

    def _write(self, work: Callable[[], T]) -> T:
        """Do this in a transaction that is on disk when it returns."""
        self._end_look()
        return self._tried(lambda: self._transaction(work))

    def _tried(self, work: Callable[[], T]) -> T:
        """Once more with a new file if this one turns out to be damaged."""
        try:
            return work()
        except _ERRORS as error:
            if self._read_only or not _is_damage(error):
                raise self._failure(error) from error
            self._connection.close()
            self._set_aside(error)
        self._connection = self._opened()
        try:
            return work()
        except _ERRORS as error:
            raise self._failure(error) from error

    def _transaction(self, work: Callable[[], T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._connection.execute("COMMIT")
            return result
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _do(self, statement: str, values: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, tuple(values)).fetchall()

    def _one(self, statement: str, values: Iterable[object] = ()) -> tuple[Any, ...]:
        rows = self._do(statement, values)
        if len(rows) != 1 or None in rows[0]:
            raise sqlite3.DatabaseError(f"{len(rows)} rows where there is one: {statement}")
        return rows[0]

    def _failure(self, error: Exception) -> Failure:
        return Failure(Reason.LOCAL, f"memory {self._path}: {error}")


def _checked(
    connection: sqlite3.Connection, path: str, prepare: Callable[[sqlite3.Connection], None]
) -> sqlite3.Connection:
    """A connection to a memory of this version; a new file is made one."""
    try:
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise Failure(Reason.LOCAL, f"memory {path} is of a newer version, {version}: update the promise module")
        if version < _VERSION:
            prepare(connection)
        return connection
    except BaseException:
        connection.close()
        raise


def _alone(path: str, work: Callable[[], None]) -> None:
    """Of agents that would make a new memory, or set a damaged one aside, at once, one does so after the other."""
    import fcntl  # here, as it is needed once in the life of a node

    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        work()
    finally:
        os.close(folder)


def _inode(path: str) -> int:
    """0 where there is no file."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables and the stream, unless another agent has done so."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO stream VALUES (?, 1)", (os.urandom(16).hex(),))
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def _is_damage(error: Exception) -> bool:
    """Whether the file is what is wrong, not the disk, another agent or this program."""
    if isinstance(error, sqlite3.ProgrammingError):
        return False
    return not isinstance(error, sqlite3.OperationalError) or not any(word in str(error).lower() for word in _TROUBLE)
