"""The types that a parameter of a view can have, and how what a node or an operator says is read as one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cf_messaged.times import microseconds


class Type(NamedTuple):
    allowed: str
    read: Callable[[Any], Any]  # raises ValueError


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:  # which PostgreSQL would not even compare
        raise ValueError
    value.encode("utf-8")  # half a surrogate pair, from a command line that was no UTF-8, is a ValueError
    return value


def _int(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,19}(\.[0-9]{1,19})?", value):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in words:
        raise ValueError
    return words[value]


def _time(value: Any) -> int:
    return microseconds(_text(value))


# Strings are read too: a policy's attributes, and a command line, have nothing else.
TYPES = {
    "text": Type("a text without NUL", _text),
    "int": Type("an integer", _int),
    "real": Type("a number", _real),
    "boolean": Type("true or false", _boolean),
    "time": Type("an RFC 3339 time in UTC, as 2026-11-24T12:40:00Z", _time),
}
