"""Brings what was written to a file to its disk a little at a time, so that others who sync have their turn too."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress

# Of a file, each of the same length. A sync of all pages that are changed keeps every other one of the disk waiting.
PARTS = 64
# After each part, in times of what it took; but no longer.
REST, LONGEST_REST_S = 2, 0.02
# Of sync_file_range(2): wait for what is on its way, begin the rest, and wait for that.
_ALL = 1 | 2 | 4


def write_out(path: str, is_stopping: Callable[[], bool] = lambda: False) -> bool:
    """Of a file that this process has open, and keeps open meanwhile. It is no sync: what the disk itself keeps in
    memory may be lost, and one that follows is only shorter. False: not all of it, or this system cannot.
    """
    sync_file_range, descriptor = getattr(ctypes.CDLL(None), "sync_file_range", None), _descriptor_of(path)
    if sync_file_range is None or descriptor is None:
        return False
    part = os.fstat(descriptor).st_size // PARTS + 1
    for number in range(PARTS):
        began_s = time.monotonic()
        if is_stopping() or sync_file_range(descriptor, *map(ctypes.c_int64, (number * part, part)), _ALL):
            return False
        time.sleep(min(REST * (time.monotonic() - began_s), LONGEST_REST_S))
    return True


def _descriptor_of(path: str) -> int | None:
    """One that is there: to open a database of SQLite and close it again would end all locks of this process."""
    with suppress(OSError):
        wanted = os.stat(path)
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.path.samestat(os.fstat(int(name)), wanted):
                    return int(name)
    return None
