"""What was written is brought to the disk, in the kernel's own count, and no lock of a database is lost by it."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cf_messaged.writeback import PARTS, write_out

PAGE = os.sysconf("SC_PAGE_SIZE")
CACHESTAT = 451  # the same for all processors; Linux 6.5 and newer
BEGIN = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"


def changed_pages(descriptor: int) -> int:
    """In memory, and not on the disk, or not yet."""
    all_of_it, counted = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(CACHESTAT, descriptor, all_of_it, counted, 0):
        pytest.skip(f"this kernel does not count the changed pages of a file: {os.strerror(ctypes.get_errno())}")
    return int(counted[1] + counted[2])


def test_all_is_brought_to_the_disk(tmp_path: Path) -> None:
    """Of a file whose length is no multiple of anything, with changes at its ends and between."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(bytes(3 * PARTS * PAGE + 1))
        file.flush()
        os.fsync(file.fileno())
        for number in (0, *range(5, 3 * PARTS, 7), 3 * PARTS):
            os.pwrite(file.fileno(), b"x", number * PAGE)
        if not changed_pages(file.fileno()):
            pytest.skip("this file system has no pages that wait for a disk")
        assert write_out(str(path))
        assert changed_pages(file.fileno()) == 0


def test_it_ends_when_it_should(tmp_path: Path) -> None:
    answers = iter([False, False, True])
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(bytes(PARTS * PAGE))
        assert not write_out(str(path), lambda: next(answers))
    assert next(answers, None) is None  # the third ended it


def test_what_is_not_open_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "closed").touch()
    assert not write_out(str(tmp_path / "closed"))
    assert not write_out(str(tmp_path / "not there"))


def test_a_database_stays_locked(tmp_path: Path) -> None:
    """Whoever closes any descriptor of it gives up all locks of his process."""
    path = str(tmp_path / "store.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE row (value)")
        connection.execute("BEGIN IMMEDIATE")
        write_out(path)
        other = subprocess.run([sys.executable, "-c", BEGIN, path], stderr=subprocess.PIPE, text=True, check=False)
    assert "database is locked" in other.stderr
