"""What crosses the network: encoding and limits. No I/O."""

from __future__ import annotations

import json
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A message is held in memory several times on its way, on small nodes too; larger things are files:, not messages:.
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
# What one promise may receive in all: it is kept in memory until it is written to its file.
MAX_RECEIVED_BYTES = 64 * 1024 * 1024
# What Python holds of a message beside its bytes; counted, so that a flood of empty messages ends too.
MESSAGE_OVERHEAD_BYTES = 64
# Subscriptions and topics travel with every message and are compared for each.
MAX_TOPIC_BYTES = 1024

# payload, topic: bytes as they came; topic is empty for patterns that have none.
Message = namedtuple("Message", "payload topic")


def encode(value: Any) -> bytes:
    """A payload as its bytes: a string as it is (bytes that were no UTF-8 included), everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("text with half a surrogate pair, which no message can carry") from None
