"""The other side: answers whatever is asked over ZeroMQ and HTTP until its input ends. Prints both addresses."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading

import zmq


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nWorld")


def acknowledged(event: bytes) -> bytes:
    """As a cf-messaged answers, without one."""
    id = json.loads(event)["id"]
    return json.dumps({"id": id, "store": "0" * 32, "have": int(id[-12:]), "status": "stored"}).encode()


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


web = http.server.HTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=web.serve_forever, daemon=True).start()
threading.Thread(target=end_with_input, daemon=True).start()
router: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
port = router.bind_to_random_port("tcp://127.0.0.1")
print(f"tcp://127.0.0.1:{port}", f"127.0.0.1:{web.server_port}", flush=True)
while True:
    *envelope, asked = router.recv_multipart()
    router.send_multipart([*envelope, acknowledged(asked) if asked.startswith(b"{") else b"World"])
