"""Moves what was written from the log of a SQLite database into its file, in a thread, so that no commit has to."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time

from cf_messaged.writeback import write_out

log = logging.getLogger(__name__)

# The log is begun anew when it has grown to this and all of it is moved. A larger one holds more versions of a page, of
# which one is moved; a smaller one is sooner recovered after a crash.
LOG_BYTES = 16 * 1024 * 1024
# Between two tries, while a view reads what was there before: as long as it does, the log cannot be begun anew.
PAUSE_S = 0.5
# What was written meanwhile is little enough for the writer to wait for if a checkpoint beside it took no longer than
# this; but after so many it waits anyway, or the log of a slow disk would grow for ever.
SHORT_S, MOST = 0.003, 6
# How long the next of them waits for something to move; a writer that says nothing for longer can wait too.
MOMENT_S = 0.01


class Checkpoints:
    """Of an open database. The writer calls `begin` before each transaction, `committed` after it, and `stop`.

    Only passive checkpoints are made, which wait for nobody and hold up nobody. Beside a writer that never rests they
    move all but what is written meanwhile, and the log would never end: so the last of them has the writer wait.

    SQLite before 3.51.3 can lose pages if a checkpoint that finds nothing to move begins just when a writer begins the
    log anew (sqlite.org/wal.html#walresetbug). Here each beside the writer finds something: what was changed after the
    one before ended.
    """

    def __init__(self, path: str, writer: sqlite3.Connection) -> None:
        self._path, self._writer = path, writer
        # Opened now, and its log too, while they are what the writer has.
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        self._turn = threading.Condition()  # who has it writes, or keeps the writer waiting
        self._is_writing = self._stopping = self._is_told = False
        # Rows changed so far: of what is committed, and of what was when the last checkpoint began, and ended.
        self._changes = self._moved = self._ended = writer.total_changes
        self._size = 0
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    # ---- for the writer

    def begin(self) -> None:
        self._turn.acquire()
        self._is_writing = True

    def committed(self) -> None:
        """Raises OSError if there is no log any more: SQLite would write on into a file that nobody can read again."""
        self._changes = self._writer.total_changes
        # When it is begun anew it is cut to LOG_BYTES: one that is larger was not.
        self._size = os.stat(f"{self._path}-wal").st_size
        self._end()

    def stop(self) -> None:
        """Nothing is moved any more when this returns. A transaction that was begun counts as ended."""
        self._stopping = True
        if not self._is_writing:
            self._turn.acquire()
        self._end()
        while self._thread.is_alive():
            self._connection.interrupt()
            self._thread.join(0.05)
        self._connection.close()

    def _end(self) -> None:
        self._is_writing = False
        if self._size > LOG_BYTES or self._stopping:  # to wake the thread for nothing costs as much as a commit
            self._turn.notify_all()
        self._turn.release()

    # ---- in the thread

    def _run(self) -> None:
        while self._is_due():
            try:
                self._checkpoint()
            except sqlite3.Error as error:
                self._tell(error)
            with self._turn:
                self._turn.wait_for(lambda: self._stopping, PAUSE_S)

    def _is_due(self) -> bool:
        """Returns once it is; False if it is to stop."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopping or (self._size > LOG_BYTES and self._changes > self._ended))
            return not self._stopping

    def _checkpoint(self) -> None:
        """Beside the writer until little is left, and that while it waits. The file is synced only by a checkpoint that
        has moved all; what the first has moved, which is most of it, is brought to the disk before, with pauses for
        the syncs of the writer.
        """
        self._move()
        if self._is_something_left():
            write_out(self._path, lambda: self._stopping)
            self._move_the_rest()
        with self._turn:
            if not self._stopping and self._changes > self._moved:
                self._move()

    def _move_the_rest(self) -> None:
        for _ in range(1, MOST):
            began_s = time.monotonic()
            self._move()
            if time.monotonic() - began_s < SHORT_S or not self._is_something_left():
                return

    def _is_something_left(self) -> bool:
        """Within a moment."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopping or self._changes > self._ended, MOMENT_S)
            return not self._stopping and self._changes > self._ended

    def _move(self) -> None:
        self._moved = self._changes
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            with self._turn:
                self._ended = self._changes

    def _tell(self, error: sqlite3.Error) -> None:
        """Once: the writer notices by itself what is wrong with the database."""
        if not (self._stopping or self._is_told):
            log.warning("%s-wal grows, since it cannot be moved into the database: %s", self._path, error)
        self._is_told = True
