"""What one would write today: a module on the SDK that posts over HTTP, one connection for the run."""

from __future__ import annotations

import http.client
from typing import Any

from cfengine import PromiseModule, Result


class HttpPost(PromiseModule):
    def __init__(self) -> None:
        super().__init__("http_post", "1.0")
        self.add_attribute("endpoint", str, required=True)
        self.add_attribute("payload", str, required=True)
        self.connection: http.client.HTTPConnection | None = None

    def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> str:
        if self.connection is None:
            self.connection = http.client.HTTPConnection(attributes["endpoint"], timeout=5)
        self.connection.request("POST", "/", attributes["payload"].encode())
        answer = self.connection.getresponse()
        answer.read()
        if answer.status != 200:
            self.log_error(f"{attributes['endpoint']}: status {answer.status}")
            return Result.NOT_KEPT
        self.log_info("answered")
        return Result.REPAIRED


HttpPost().start()
