"""Who may connect to the sockets that promises bind with keys: decided in a thread, as libzmq asks at any time."""

from __future__ import annotations

from threading import Thread

import zmq

from .keys import ZAP_ADDRESS, answered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from .keys import Caller

# Of all other sockets, which are asked for too once somebody answers.
OPEN = "messages"


class Door:
    """Lives as long as its context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._accepted: dict[str, Collection[bytes]] = {}  # by domain
        self._asked = context.socket(zmq.REP)
        self._asked.linger = 0
        self._asked.bind(ZAP_ADDRESS)
        Thread(target=self._serve, daemon=True).start()

    def domain(self, accepted: Collection[bytes]) -> bytes:
        """A new one, in which these keys are let in."""
        name = f"{OPEN}-{len(self._accepted)}"
        self._accepted[name] = accepted
        return name.encode()

    def _serve(self) -> None:
        try:
            while True:
                self._asked.send_multipart(answered(self._asked.recv_multipart(), self._admit))
        except zmq.ContextTerminated:
            self._asked.close()

    def _admit(self, caller: Caller) -> str:
        # Nobody has a user id: libzmq would put it before the first message, where a REQ takes it for a broken answer,
        # and where it fills the queue of a PULL that has room for one message, for ever.
        if caller.domain == OPEN and caller.mechanism == "NULL":
            return ""
        if caller.mechanism == "CURVE" and caller.key in self._accepted.get(caller.domain, ()):
            return ""
        raise PermissionError("this key is not accepted")
