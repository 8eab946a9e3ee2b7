"""The least that a promise module written in Python can be: keeps everything, at once."""

from __future__ import annotations

import json
import sys

RESULTS = {"validate_promise": "valid", "evaluate_promise": "kept", "terminate": "success"}


def serve() -> None:
    sys.stdin.readline()
    sys.stdin.readline()
    print("trivial 1.0 v1 json_based\n", flush=True)
    operation = ""
    while operation != "terminate":
        operation = json.loads(sys.stdin.readline())["operation"]
        sys.stdin.readline()
        print(json.dumps({"operation": operation, "result": RESULTS[operation]}) + "\n", flush=True)


serve()
