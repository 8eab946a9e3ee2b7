"""The least that asks over ZeroMQ: one REQ socket, one answer a promise, no deadline, no check, no error handling."""

from __future__ import annotations

import json
import sys
from typing import Any

import zmq

socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.REQ)
connected: list[bool] = []


def evaluate(promiser: str, attributes: dict[str, Any]) -> str:
    if not connected:
        socket.connect(attributes["endpoint"])
        connected.append(True)
    socket.send_string(attributes["payload"])
    socket.recv()
    print(f"log_info={promiser}: {attributes['endpoint']} answered")
    return "repaired"


def serve() -> None:
    sys.stdin.readline()
    sys.stdin.readline()
    print("minimal 1.0 v1 json_based\n", flush=True)
    operation = ""
    while operation != "terminate":
        request = json.loads(sys.stdin.readline())
        sys.stdin.readline()
        operation = request["operation"]
        promiser, result = request.get("promiser"), "valid"
        if operation == "evaluate_promise":
            result = evaluate(promiser, request["attributes"])
        print(json.dumps({"operation": operation, "promiser": promiser, "result": result}) + "\n", flush=True)


serve()
socket.close(0)
socket.context.term()
