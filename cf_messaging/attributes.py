"""The attributes of messages: promises, and how a promise is read from what cf-agent sends. Decides only."""

from __future__ import annotations

import json
import re
from collections import namedtuple
from functools import lru_cache

from .addresses import is_local
from .addresses import parse as parse_endpoint
from .patterns import ACKNOWLEDGED, PATTERNS, objection
from .wire import KINDS, MAX_PAYLOAD_BYTES, MAX_TOPIC_BYTES, check_name, check_node, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .patterns import Pattern

# What cf-agent passes on with a promise of any type; the agent's own business, or the SDK's.
COMMON_ATTRIBUTES = frozenset(
    "action_policy audit background comment expireafter handle ifelapsed log_failed log_kept log_priority"
    " log_repaired log_string measurement_class report_level".split()
)


# ---- values: each reader returns the value of an attribute, or raises ValueError with what is allowed


def _read_pattern(value: Any) -> Any:
    if isinstance(value, str) and value in PATTERNS:
        return PATTERNS[value]
    raise ValueError(_one_of(value, PATTERNS))


def _read_endpoints(value: Any) -> tuple[str, ...]:
    endpoints = [value] if isinstance(value, str) else value
    if not isinstance(endpoints, list) or not endpoints:
        raise ValueError("allowed is an endpoint or a list of at least one")
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            raise ValueError("allowed is an endpoint or a list of at least one")
        try:
            parse_endpoint(endpoint)
        except ValueError as error:
            raise ValueError(f"{shown(endpoint)} is no endpoint: {error}") from None
    return tuple(endpoints)


def _read_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "yes", "on", "false", "no", "off"):
        return value in ("true", "yes", "on")
    raise ValueError("allowed are true, false, yes, no, on, off")


def _read_payload(value: Any) -> list[bytes]:
    if not isinstance(value, (str, list, dict)):
        raise ValueError("allowed is a string, a list or an object")
    if value == ["cf_null"]:  # how policy writes an empty list
        return []
    payloads = [encode(element) for element in (value if isinstance(value, list) else [value])]
    if max(map(len, payloads), default=0) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a message may have at most MAX_PAYLOAD_BYTES, {MAX_PAYLOAD_BYTES} bytes")
    return payloads


def _read_path(value: Any) -> str:
    if isinstance(value, str) and value.startswith("/") and not value.endswith("/") and "\0" not in value:
        encode(value)  # no path has half a surrogate pair
        return value
    raise ValueError("allowed is the absolute path of a file")


def _read_topic(value: Any) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("allowed is text without NUL")
    topic = encode(value)
    if len(topic) > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic may have at most MAX_TOPIC_BYTES, {MAX_TOPIC_BYTES} bytes")
    return topic


def _read_format(value: Any) -> str:
    if value in ("text", "json"):
        return str(value)
    raise ValueError(_one_of(value, ("text", "json")))


def _read_expression(value: Any) -> re.Pattern[str]:
    import warnings

    if not isinstance(value, str):
        raise ValueError("allowed is a regular expression")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax of the future, on cf-agent's terminal
            return re.compile(value, re.DOTALL | re.MULTILINE)  # as cf-agent compiles its own
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no regular expression: {error}") from None


def _read_seconds(value: Any) -> float:
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) in (1, 2) and all(map(_is_number, parts)) and 0.01 <= float(value) <= 300:
        return float(value)
    raise ValueError("allowed are 0.01 to 300 seconds")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10  # here a regular expression costs each run 0.2 ms


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and _is_number(value) and least <= int(value) <= most:
            return int(value)
        raise ValueError(f"allowed are {least} to {most}, in decimal digits")

    return read


def _read_kind(value: Any) -> Any:
    if isinstance(value, str) and value in KINDS:
        return KINDS[value]
    raise ValueError(_one_of(value, KINDS))


def _named(what: str, check: Callable[[str], None]) -> Callable[[Any], str]:
    """A reader of text that passes this check."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"allowed is {what}")
        check(value)
        return value

    return read


def _read_object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, dict):
        return value
    raise ValueError("allowed is an object: a data container, or text that is a JSON object")


_MAX_SERVER_KEYS = 8

# server_key: each bytes, or the path of a certificate; accept: bytes each, or the path of a directory; enrol: an
# endpoint, or "off"; renew: minutes. None: not given.
Curve = namedtuple("Curve", "server_key key_file accept enrol renew", defaults=(None, None))


def _read_curve(value: Any) -> Curve:
    given = _read_object(value)
    for name in given:
        if name not in Curve._fields:
            raise ValueError(f"unknown key '{name}': {_one_of(name, Curve._fields)}")
    if "server_key" in given and "accept" in given:
        raise ValueError("'server_key' is for who connects, 'accept' for who binds: allowed is one of both")
    for name in ("enrol", "renew"):
        if name in given and "accept" in given:
            raise ValueError(f"'{name}' is for who connects to a cf-messaged: it is not allowed beside 'accept'")
    return Curve(*(_READ_KEYS[name](name, given[name]) if name in given else None for name in Curve._fields))


def _read_server_keys(name: str, value: Any) -> tuple[bytes | str, ...]:
    """Several, while a listener's key is replaced: it has one of them."""
    keys = value if isinstance(value, list) else [value]
    if not 1 <= len(keys) <= _MAX_SERVER_KEYS:
        raise ValueError(f"'{name}' allowed are 1 to {_MAX_SERVER_KEYS} keys")
    return tuple(_read_server_key(name, key) for key in keys)


def _read_server_key(name: str, value: Any) -> bytes | str:
    from .keys import from_hex

    if isinstance(value, str) and value.startswith("/"):
        return _read_key_path(name, value)
    try:
        return from_hex(value)
    except ValueError as error:
        raise ValueError(f"'{name}' is {error}, and no absolute path of a certificate") from None


def _read_key_path(name: str, value: Any) -> str:
    try:
        return _read_path(value)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from None


def _read_accepted(name: str, value: Any) -> tuple[bytes, ...] | str:
    from .keys import from_hex

    if isinstance(value, str) and value.startswith("/"):
        return _read_path(value.rstrip("/") or value)
    try:
        return tuple(from_hex(key) for key in (value if isinstance(value, list) else [value]))
    except ValueError as error:
        raise ValueError(f"'{name}' holds {error}; allowed is a list of keys, or the path of a directory") from None


def _read_enrol(name: str, value: Any) -> str:
    if value == "off":
        return "off"
    try:
        [endpoint] = _read_endpoints(value) if isinstance(value, str) else ()
        return endpoint
    except ValueError:
        raise ValueError(f"'{name}' is {shown(value)}: allowed is an endpoint, or off") from None


def _read_renew(name: str, value: Any) -> int:
    try:
        return _whole(1, 5_256_000)(str(value) if type(value) is int else value)
    except ValueError as error:
        raise ValueError(f"'{name}' is {shown(value)}: minutes, {error}") from None


_READ_KEYS: dict[str, Callable[[str, Any], Any]] = {
    "server_key": _read_server_keys,
    "key_file": _read_key_path,
    "accept": _read_accepted,
    "enrol": _read_enrol,
    "renew": _read_renew,
}


# type: as policy writers know it. default: as policy would write it, None where there is none.
Attribute = namedtuple("Attribute", "type default read")

ATTRIBUTES = {
    "pattern": Attribute("string", None, _read_pattern),
    "endpoint": Attribute("string, slist", None, _read_endpoints),
    "bind": Attribute("boolean", "false", _read_boolean),
    "payload": Attribute("string, list, object", None, _read_payload),
    "payload_file": Attribute("string", None, _read_path),
    "topic": Attribute("string", "", _read_topic),
    "file": Attribute("string", None, _read_path),
    "format": Attribute("string", "text", _read_format),
    "count": Attribute("int", "1", _whole(0, 1_000_000)),
    "expect": Attribute("string", None, _read_expression),
    "timeout": Attribute("real", "5", _read_seconds),
    "retries": Attribute("int", "0", _whole(0, 100)),
    "subscribers": Attribute("int", "1", _whole(1, 100_000)),
    "information": Attribute("string", None, _read_kind),
    "refresh": Attribute("int", "1440", _whole(1, 525_600)),
    "expire": Attribute("int", "10080", _whole(1, 43_200)),
    "view": Attribute("string", None, _named("a name", check_name)),
    "parameters": Attribute("object", "{}", _read_object),
    "node": Attribute("string", None, _named("the name of a node", check_node)),
    "curve": Attribute("body, object", None, _read_curve),
    "state_dir": Attribute("string", None, _read_path),
}
_DEFAULTS = {name: None if each.default is None else each.read(each.default) for name, each in ATTRIBUTES.items()}


class Promise:
    """A promise that can be kept: the value of each attribute, its default where none was given, None without one."""

    name: str  # the promiser
    handle: Any
    pattern: Pattern
    endpoint: tuple[str, ...]
    bind: bool
    payload: list[bytes] | None  # of each message
    payload_file: str | None
    topic: bytes
    file: str | None
    format: str
    count: int
    expect: re.Pattern[str] | None
    timeout: float  # seconds
    retries: int
    subscribers: int
    information: Any  # a wire.Kind, or None
    refresh: int  # minutes
    expire: int  # minutes
    view: str | None
    parameters: dict[str, Any]
    node: str | None  # None: none was given; it is kept under the host name then
    curve: Curve | None
    state_dir: str | None
    value: Any  # of information: the payload as it came
    dry_run: bool  # say what would be done, and do nothing

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values

    @property
    def service(self) -> str:
        """How a cf-messaged is named, in memory and in words: by all its endpoints."""
        return " ".join(self.endpoint)


def is_dry_run(attributes: dict[str, Any]) -> bool:
    """Whether cf-agent wants to be told what would be done, and nothing done."""
    return bool(attributes.get("action_policy", "fix") != "fix")


def read_promise(promiser: str, attributes: dict[str, Any]) -> Promise:
    """The promise in what cf-agent sent. Raises ValueError, which names attribute, value and what is allowed."""
    given = _given(promiser, attributes)
    values = {**_DEFAULTS, "dry_run": is_dry_run(attributes), "name": promiser}
    values["handle"], values["value"] = attributes.get("handle"), attributes.get("payload")
    for name, value in given.items():
        values[name] = _read(name, value)
    attribute, wrong = objection(values["pattern"], tuple(given), values["information"])
    if wrong:
        raise ValueError(f"attribute '{attribute}' is {shown(given.get(attribute))}: {wrong}")
    promise = Promise(values)
    if promise.information:
        _check_promiser(promiser)
    if promise.bind and len(promise.endpoint) > 1:
        raise ValueError(f"attribute 'endpoint' is {shown(given['endpoint'])}: with 'bind' allowed is exactly one")
    for endpoint in promise.endpoint:
        if endpoint.startswith("tcp://*:") and not promise.bind:
            raise ValueError(f"attribute 'endpoint' is {shown(given['endpoint'])}: the host '*' needs 'bind'")
    _check_curve(promise, given)
    return promise


def _check_curve(promise: Promise, given: dict[str, Any]) -> None:
    """Who connects must know whom he talks to, who binds whom he lets in; information stays on this machine without."""
    if promise.curve:
        needed, other = ("accept", "server_key") if promise.bind else ("server_key", "accept")
        if getattr(promise.curve, other) is not None or getattr(promise.curve, needed) is None:
            side = "with 'bind'" if promise.bind else "without 'bind'"
            raise ValueError(f"attribute 'curve' is {shown(given['curve'])}: {side} it needs '{needed}', not '{other}'")
    elif promise.information or promise.view:
        for endpoint in promise.endpoint:
            if not is_local(endpoint):
                beyond = "beyond this machine all could read and change it: 'curve' is needed"
                raise ValueError(f"attribute 'endpoint' is {shown(given['endpoint'])}: {beyond}")


def _check_promiser(promiser: str) -> None:
    try:
        check_name(promiser)
    except ValueError as error:
        raise ValueError(f"the promiser names the information, and {shown(promiser)} cannot: {error}") from None


def _given(promiser: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of messages: in the promise, complete as far as names go."""
    given = {name: value for name, value in attributes.items() if name in ATTRIBUTES}
    if len(given) < len(attributes):
        _refuse_unknown(attributes)
    if "://" in promiser:
        given.setdefault("endpoint", promiser)
    if "pattern" not in given and ("information" in given or "view" in given):
        given["pattern"] = ACKNOWLEDGED[0]
    if "pattern" not in given:
        raise ValueError(f"missing attribute 'pattern': allowed are {', '.join(PATTERNS)}")
    if "endpoint" not in given:
        raise ValueError("missing attribute 'endpoint': where, unless the promiser is an endpoint")
    return given


def _refuse_unknown(attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if name not in ATTRIBUTES and name not in COMMON_ATTRIBUTES:
            raise ValueError(f"unknown attribute '{name}' is {shown(value)}: {_one_of(name, ATTRIBUTES)}")


def _read(name: str, value: Any) -> Any:
    try:
        return _read_text(name, value) if type(value) is str and name != "payload" else ATTRIBUTES[name].read(value)
    except RecursionError:
        raise ValueError(f"attribute '{name}' is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"attribute '{name}' is {shown(value)}: {error}") from None


@lru_cache(256)  # the promises of a policy differ in their payloads, hardly in the rest
def _read_text(name: str, value: str) -> Any:
    return ATTRIBUTES[name].read(value)


def shown(value: Any) -> str:
    """A value in a message, cut if it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = "something nested too deeply"
    return text if len(text) <= 100 else text[:97] + "..."


def _one_of(value: Any, allowed: Iterable[str]) -> str:
    from difflib import get_close_matches

    names = list(allowed)
    close = get_close_matches(value, names, 1, 0.6) if isinstance(value, str) and len(value) < 100 else []
    return (f"did you mean '{close[0]}'? " if close else "") + "allowed are " + ", ".join(names)
