"""Who may connect: answers what libzmq asks of each handshake, in a thread. Without an answer nobody gets in."""

from __future__ import annotations

import logging
import time
from threading import Thread

import zmq

from cf_messaged.budget import Budget
from cf_messaged.keyring import WRITTEN_EACH_S, Keyring, Strangers
from cf_messaging.keys import ZAP_ADDRESS, Caller, NotNow, answered

log = logging.getLogger(__name__)

DOMAIN = "cf-messaged"
ENROLS = "cf-messaged-enrolment"  # where any key is let in, to say whose it is


class Handler:
    """Made before any socket is bound; lives until its context is terminated, and is not closed by `destroy`: a socket
    belongs to its thread.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring, strangers: Strangers, handshakes: Budget
    ) -> None:
        """handshakes: a minute, of each key that is let in, and of each address for all others."""
        self._keyring, self._strangers, self._handshakes = keyring, strangers, handshakes
        shared: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
        self._asked = shared.socket(zmq.REP)
        self._asked.linger = 0
        self._asked.bind(ZAP_ADDRESS)
        self._thread = Thread(target=self._serve, name="zap", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                if self._asked.poll(int(1000 * WRITTEN_EACH_S) if self._strangers.is_new else None):
                    self._asked.send_multipart(answered(self._asked.recv_multipart(), self.admit))
                self._strangers.write(time.monotonic())
        except zmq.ContextTerminated:
            self._asked.close()
        except BaseException:
            log.exception("a bug, please report it: nobody is let in until a restart")
            raise

    def admit(self, caller: Caller) -> str:
        """The key in hex: by it each message is known. Raises PermissionError, NotNow."""
        if caller.domain not in (DOMAIN, ENROLS) or caller.mechanism != "CURVE":
            raise PermissionError("a key is needed")
        is_known = caller.key in self._keyring.names()
        self._count(caller.key if is_known else caller.address)
        if is_known or caller.domain == ENROLS:
            return str(caller.key.hex())
        if not self._keyring.is_rejected(caller.key):
            self._strangers.note(caller.key, caller.address, time.time_ns() // 1000)
        raise PermissionError("this key is not accepted")

    def _count(self, who: bytes | str) -> None:
        if self._handshakes.wait_s(who, time.monotonic()):
            raise NotNow("too many handshakes in this minute")
        self._handshakes.spend(who, 1)
