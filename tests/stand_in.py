"""A small stand-in for cf-messaged, written from docs/wire.md alone: an independent witness of what nodes say.

`python stand_in.py request [OPTION]...` prints its endpoint, then one JSON line for each message: what was received,
then what became of it (its status) with the event. Tests start it with `StandIn.start("request", ...)`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from typing import TYPE_CHECKING

import zmq

from peers import Peer, end_with_parent, secure, tell

if TYPE_CHECKING:
    from typing import Any

    Fields = dict[str, Any]

TIME = "2026-01-01T00:00:00.000000Z"
TYPE = "cfengine.messages."
ROWS = "the rows"


# --- the listener's own process -----------------------------------------------------------------------------------


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("socket", choices=["request"])
    add("--bind", default="tcp://127.0.0.1:*")
    add("--store", default="first store", help="the id of the store")
    add("--events", default="", help="a file that keeps what is stored, an event a line; default: in memory")
    add("--have", type=int, help="tell this of every stream")
    add("--drop-answers", type=int, default=0, help="do not answer so many first messages, but do what they ask for")
    add("--later", type=int, default=0, help="put off so many first events")
    add("--retry-after", type=float, default=1.0, help="seconds, of what is put off")
    add("--refuse", action="append", default=[], help="information or a view of this name, more than once")
    add("--rows", default="", help="a file with the rows of every view, an array")
    add("--strict", action="store_true", help="refuse an id that was said before with other data")
    add("--silent", action="store_true", help="never answer, and store nothing")
    add("--status", default="", help="answer this, and store nothing")
    add("--bytes", type=os.fsencode, help="answer these, and store nothing")
    add("--id", help="answers carry this id")
    add("--enrol", default="enrolled", help="what comes of a claim, or of a check")
    add("--reason", default="so it was told", help="of what is refused, or waits, or is put off")
    add("--key", default="", help="speak CURVE with the key pair in this certificate")
    add("--accept", default="", help="let in whose certificates are in this directory; without it, everybody")
    parser.set_defaults(server_key="")
    return parser.parse_args(arguments)


class Store:
    """What was stored, by source and id."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._data: dict[tuple[str, str], Any] = {}
        self._highest: dict[tuple[str, str], int] = {}
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    self._note(json.loads(line))

    def add(self, event: Fields) -> bool:
        """False if it was there before."""
        if (event["source"], event["id"]) in self._data:
            return False
        self._note(event)
        if self._path:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        return True

    def differs(self, event: Fields) -> bool:
        """Whether the id was said before with other data."""
        return bool(self._data.get((event["source"], event["id"]), event["data"]) != event["data"])

    def have(self, source: str, id: str) -> int:
        """The highest sequence of the source and the stream of this id."""
        return self._highest.get((source, id.partition("-")[0]), 0)

    def _note(self, event: Fields) -> None:
        source, id = event["source"], event["id"]
        stream, sequence = id.split("-")
        self._data[source, id] = event["data"]
        self._highest[source, stream] = max(self.have(source, id), int(sequence))


def unique(pairs: list[tuple[str, Any]]) -> Fields:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def read(frame: bytes) -> Fields:
    event = json.loads(frame.decode("utf-8"), object_pairs_hook=unique)
    if event["specversion"] != "1.0" or not event["source"].startswith("cfengine://"):
        raise ValueError("no event of a node")
    return dict(event)


def answered(event: Fields, store: Store, options: argparse.Namespace) -> Fields:
    """The part of the answer that depends on the event: its status, and what goes with that."""
    kind = event["type"][len(TYPE) :]
    if event["subject"] in options.refuse:
        return {"status": "refused", "reason": f"'{event['subject']}' is not wanted"}
    if options.status:
        more = {"view": "x", "rows": [], "time": TIME, "reason": options.reason, "retry_after": options.retry_after}
        return {"status": options.status, **more}
    if kind == "enrol":
        if event["subject"] == "hello":
            return {"status": "challenged", "challenge": "5a" * 40}
        return {"status": options.enrol, "reason": options.reason, "retry_after": options.retry_after}
    if options.later:
        options.later -= 1
        return {"status": "later", "reason": "the disk is full", "retry_after": options.retry_after}
    if kind == "view":
        return {"status": "answered", "view": event["subject"], "rows": ROWS, "time": TIME}
    if kind not in ("static", "dynamic", "state", "common"):
        return {"status": "refused", "reason": f"unsupported type '{event['type']}'"}
    if options.strict and store.differs(event):
        return {"status": "refused", "reason": "the same id with other data"}
    return {"status": "stored" if store.add(event) else "duplicate"}


def answer(frame: bytes, store: Store, options: argparse.Namespace) -> bytes:
    try:
        event = read(frame)
    except (ValueError, KeyError, TypeError) as error:
        fields = {"id": "", "store": options.store, "have": 0, "status": "refused", "reason": f"no event: {error}"}
        return json.dumps(fields).encode()
    have = store.have(event["source"], event["id"]) if options.have is None else options.have
    known = answered(event, store, options)
    tell(known["status"], [frame])
    id = event["id"] if options.id is None else options.id
    text = json.dumps({"id": id, "store": options.store, "have": have, **known})
    return text.replace(json.dumps(ROWS), rows_of(options)).encode()


def rows_of(options: argparse.Namespace) -> str:
    """The text of the file as it is, since Python would not write every number again."""
    if not options.rows:
        return "[]"
    with open(options.rows, encoding="utf-8") as file:
        return file.read()


def main() -> None:
    options = options_of(sys.argv[1:])
    threading.Thread(target=end_with_parent, daemon=True).start()
    store, sock = Store(options.events), zmq.Context().socket(zmq.ROUTER)
    if options.key:
        secure(sock, options)
    sock.bind(options.bind)
    print(sock.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    while True:
        frames = sock.recv_multipart()
        tell("received", frames[-1:])
        if options.silent or frames[-1].startswith(b"?"):
            continue
        words = answer(frames[-1], store, options) if options.bytes is None else options.bytes
        if options.drop_answers:
            options.drop_answers -= 1
        else:
            sock.send_multipart([*frames[:-1], words])


# --- the test's side ----------------------------------------------------------------------------------------------


class StandIn(Peer):
    """The stand-in as a process; what is asked of it is answered for everything that it received until now."""

    PROGRAM = __file__

    def heard(self) -> list[Fields]:
        """Every event that was received, in order, those that were said again too."""
        self._catch_up()
        return [json.loads(event.frames[0]) for event in self.events("received") if event.frames[0][:1] != b"?"]

    def told(self, *statuses: str) -> list[Fields]:
        """The events that were answered so, in order."""
        self._catch_up()
        return [json.loads(event.frames[0]) for event in self.events() if event.kind in statuses]

    def stored(self) -> list[tuple[str, Any]]:
        """Name and value of what was stored, in order."""
        return [(event["subject"], event["data"]) for event in self.told("stored")]

    def _catch_up(self) -> None:
        """Returns once everything that the listener received before this call has been seen."""
        mark = b"?%d" % len(self.events("received"))
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.connect(self.endpoint)
            sock.send_multipart([b"", mark])
            self.wait_for(lambda events: any(event.frames == (mark,) for event in events))


if __name__ == "__main__":
    main()
