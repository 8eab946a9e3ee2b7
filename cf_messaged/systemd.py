"""What systemd wants to be told, without its library: datagrams to the socket that it names (sd_notify(3)), and how
grave a line of log is (sd-daemon(3)).
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Mapping, MutableMapping
from time import monotonic, monotonic_ns

# How long systemd is waited for if its socket is full: at boot it is busy, and a lost READY=1 ends the service.
PATIENCE_S = 1.0


# Of sd-daemon(3), by which journalctl -p chooses.
_PRIORITIES = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether what is written there is read by the journal, which has the time of each line itself."""
    status = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def priority(record: logging.LogRecord) -> str:
    """With which a line of the journal begins, and which it takes off."""
    return f"<{_PRIORITIES[record.levelno]}>"


class Notifier:
    """Tells systemd; does nothing where nobody asked for it, and a message that cannot be sent harms nobody.

    What was in the environment for it is removed: children would else speak, or be watched, for the listener.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_s = _watchdog_s(environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", ""))
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @ is for an abstract socket
        self._beat_s = watchdog_s / 3 if address and watchdog_s else None
        self._last_beat = -math.inf

    @property
    def poll_s(self) -> float | None:
        """The longest that the loop may wait between two calls of `alive`; None: for ever.

        Half a beat, so that beats are never farther apart than half the watchdog time, which systemd advises.
        """
        return None if self._beat_s is None else self._beat_s / 2

    def ready(self, status: str) -> None:
        """At the end of the start, and of each reload. status: what `systemctl status` shows."""
        self._send(f"READY=1\nSTATUS={' '.join(status.split())}", PATIENCE_S)

    def reloading(self) -> None:
        """With the time, by which Type=notify-reload tells this reload from one before."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}", PATIENCE_S)

    def stopping(self) -> None:
        self._send("STOPPING=1", PATIENCE_S)

    def alive(self) -> None:
        """To be called every round of the loop. It never waits; a beat that failed is tried again the next time."""
        now = monotonic()
        if self._beat_s is None or now - self._last_beat < self._beat_s:
            return
        if self._send("WATCHDOG=1", 0):
            self._last_beat = now

    def _send(self, text: str, wait_s: float) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(wait_s)
                sender.connect(self._address)  # sendto() would not wait, but try again at a full core
                sender.send(text.encode(errors="replace"))
        except OSError:
            return False
        return True


def _watchdog_s(microseconds: str, pid: str) -> float | None:
    """None without a watchdog, or with one that is for another process."""
    try:
        watched = not pid or int(pid) == os.getpid()
        return int(microseconds) / 1_000_000 if watched and int(microseconds) > 0 else None
    except (ValueError, OverflowError):
        return None
