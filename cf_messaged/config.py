"""The settings, as one object that cannot be wrong; from a TOML file and what the command line says."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from cf_messaged import rights
from cf_messaged.database import MAX_ROWS_BYTES, Limits, database
from cf_messaged.metrics import read_address
from cf_messaged.names import CFENGINE, FIRST, NAMES, RULES
from cf_messaged.retention import Keep
from cf_messaged.store import ALIVE_WITHIN_S

OFF = "off"
ENDPOINTS = ("request", "push", "publish", "subscribe", "pair", "enrolment")


class BadConfig(ValueError):
    """One line: which setting, its value, what is allowed."""


@dataclass(frozen=True)
class Config:
    """Raises BadConfig if it is wrong in itself."""

    store: str = "sqlite:////var/lib/cf-messaged/store.db"
    request: str = "tcp://127.0.0.1:5309"
    push: str = "tcp://127.0.0.1:5310"
    publish: str = "tcp://127.0.0.1:5311"
    subscribe: str = "tcp://127.0.0.1:5312"
    pair: str = OFF
    enrolment: str = "tcp://127.0.0.1:5313"
    metrics: str = OFF
    connections: int = 1000
    keys_dir: str | None = None
    enrol: str = CFENGINE
    names: str = FIRST
    listed: dict[str, Any] = field(default_factory=dict)
    rights: list[Any] = field(default_factory=list)
    insecure: bool = False
    node_events_a_second: int = 500
    node_bytes_a_second: int = 1_048_576
    node_handshakes_a_minute: int = 300
    alive_within_s: float = ALIVE_WITHIN_S
    keep_state_days: float = Keep().state
    keep_dynamic_days: float = Keep().dynamic
    keep_changes_days: float = Keep().changes
    views_dir: str | None = None
    views_at_once: int = 2
    view_timeout_s: float = Limits().seconds
    view_max_rows: int = Limits().rows
    view_max_bytes: int = Limits().bytes

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check_type(setting.name, getattr(self, setting.name), str(setting.type))
        try:
            database(self.store)
            rights.read(self.rights)
        except ValueError as error:
            raise BadConfig(str(error)) from None
        self._check_ranges()
        self._check_endpoints()
        self._check_names()

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        return None if self.metrics == OFF else read_address(self.metrics)

    def listens(self, name: str) -> bool:
        """Whether it listens on the endpoint of this name."""
        if name == "enrolment" and (self.keys_dir is None or self.enrol == OFF):
            return False
        return bool(getattr(self, name) != OFF)

    def unchangeable(self, new: Config) -> list[str]:
        """The settings in which another one differs, but which only a restart can change."""
        bound = ("store", *ENDPOINTS, "metrics", "connections", "keys_dir", "insecure")
        fixed = (*bound, "enrol", "node_handshakes_a_minute", "views_at_once")
        return [name for name in fixed if getattr(self, name) != getattr(new, name)]

    def _check_ranges(self) -> None:
        _check_range("alive_within_s", self.alive_within_s, 1, 10**9)
        for kept in ("state", "dynamic", "changes"):
            _check_range(f"keep_{kept}_days", getattr(self, f"keep_{kept}_days"), 0.001, 36500)
        _check_range("connections", self.connections, 1, 10**7)
        _check_range("views_at_once", self.views_at_once, 1, 64)
        _check_range("view_timeout_s", self.view_timeout_s, 0.01, 3600)
        _check_range("view_max_rows", self.view_max_rows, 1, 10**9)
        _check_range("view_max_bytes", self.view_max_bytes, 1, MAX_ROWS_BYTES)
        for name in ("node_events_a_second", "node_bytes_a_second", "node_handshakes_a_minute"):
            _check_range(name, getattr(self, name), 1, 10**12)
        for name in ("views_dir", "keys_dir"):
            path = getattr(self, name)
            if path is not None and not os.path.isabs(path):
                raise BadConfig(f"{name} '{path}': allowed is an absolute path")

    def _check_endpoints(self) -> None:
        if self.request == OFF:
            raise BadConfig(f"request is '{OFF}': without it nobody could be answered")
        local = {name: is_local(getattr(self, name)) for name in ENDPOINTS if self.listens(name)}
        if self.metrics != OFF:
            local["metrics"] = _is_local_address(self.metrics)
        for name, is_here in local.items():
            is_guarded = self.keys_dir is not None and name != "metrics"
            if not (is_here or is_guarded or self.insecure):
                otherwise = "anything with --insecure" if name == "metrics" else "anything with keys_dir, or --insecure"
                raise BadConfig(
                    f"{name} '{getattr(self, name)}': everybody who reaches it could say and read everything;"
                    f" allowed is a loopback address or ipc://, or {otherwise}"
                )
        self._check_distinct([name for name in ENDPOINTS if name in local])

    def _check_names(self) -> None:
        for setting, allowed in (("enrol", RULES), ("names", NAMES)):
            if getattr(self, setting) not in allowed:
                raise BadConfig(f"{setting} is '{getattr(self, setting):.100}': allowed are {', '.join(allowed)}")
        for node, host_key in self.listed.items():
            if not isinstance(host_key, str) or not re.fullmatch("SHA=[0-9a-f]{64}", host_key):
                raise BadConfig(
                    f"listed: '{node:.100}' is {host_key!r:.100}: allowed is SHA=..., see `cf-messaged keys trusted`"
                )

    def _check_distinct(self, names: list[str]) -> None:
        """Of an ipc:// path libzmq would not say that it is taken."""
        for name, other in combinations(names, 2):
            endpoint = getattr(self, name)
            if endpoint == getattr(self, other) and not endpoint.endswith(":*"):
                raise BadConfig(f"{name} and {other} are both '{endpoint}': each needs an endpoint of its own")


_ALLOWED: dict[str, tuple[str, tuple[type, ...]]] = {
    "str": ("a string", (str,)),
    "str | None": ("a string", (str, type(None))),
    "bool": ("true or false", (bool,)),
    "int": ("an integer", (int,)),
    "float": ("a number", (int, float)),
    "list[Any]": ("a list of tables", (list,)),
    "dict[str, Any]": ("a table", (dict,)),
}


def _check_type(name: str, value: object, type: str) -> None:
    words, allowed = _ALLOWED[type]
    if not isinstance(value, allowed) or (isinstance(value, bool) and type != "bool"):
        raise BadConfig(f"{name} is {value!r:.100}: allowed is {words}")


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadConfig(f"{name} is {value}: allowed is {least} to {most}")


def is_local(endpoint: str) -> bool:
    """Whether only this machine reaches it. Raises BadConfig if it is no endpoint to listen on."""
    if re.fullmatch(r"ipc://.{1,100}", endpoint):
        return True
    parts = re.fullmatch(r"tcp://(\*|[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):(\*|[0-9]{1,5})", endpoint)
    if not parts or (parts[2] != "*" and int(parts[2]) > 65535):
        raise BadConfig(
            f"'{endpoint:.100}' is no endpoint: allowed are tcp://ADDRESS:PORT, tcp://[V6]:PORT, ipc://PATH"
        )
    try:
        return ipaddress.ip_address(parts[1].strip("[]")).is_loopback
    except ValueError:  # a wildcard, or the name of an interface
        return False


def _is_local_address(address: str) -> bool:
    try:
        host, _ = read_address(address)
    except ValueError as error:
        raise BadConfig(f"metrics: {error}, {OFF}") from None
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def load(path: str | None, said: Mapping[str, Any]) -> Config:
    """said: what the command line says, which counts more than the file. Raises BadConfig."""
    settings = _read(path) if path else {}
    known = [setting.name for setting in fields(Config)]
    for name in settings:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise BadConfig(f"{path}: unknown setting '{name:.100}': {hint}")
    try:
        return Config(**{**settings, **{name: value for name, value in said.items() if value is not None}})
    except BadConfig as error:
        raise BadConfig(f"{path}: {error}" if path else str(error)) from None


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from None
    except ValueError as error:  # TOML that is none, or no UTF-8
        raise BadConfig(f"{path}: {error}") from None
