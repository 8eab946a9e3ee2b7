"""The least that keeps events before it acknowledges them. Argument: the database. Prints where it listens, and runs
until its input ends.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading

import zmq

# As large as a listener's.
ANSWER = json.dumps(
    {"have": 12345, "id": "0" * 45, "status": "stored", "store": "0" * 32}, separators=(",", ":")
).encode()


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def take(router: zmq.Socket[bytes]) -> list[list[bytes]]:
    """All that is there, once there is something: the larger the transaction, the less each event costs."""
    messages = [router.recv_multipart()]
    try:
        while True:
            messages.append(router.recv_multipart(zmq.DONTWAIT))
    except zmq.Again:
        return messages


threading.Thread(target=end_with_input, daemon=True).start()
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("PRAGMA journal_mode = WAL")
store.execute("PRAGMA synchronous = FULL")
store.execute("CREATE TABLE events (event BLOB NOT NULL)")
# Its high water marks are the default, 1000 messages a peer, which 100 in flight do not reach.
router: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
print(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
while True:
    messages = take(router)
    store.execute("BEGIN IMMEDIATE")
    store.executemany("INSERT INTO events VALUES (?)", [frames[-1:] for frames in messages])
    store.execute("COMMIT")
    for *envelope, _ in messages:
        router.send_multipart([*envelope, ANSWER])
