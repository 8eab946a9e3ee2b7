"""Which node may say, ask and hear what, by the name that its key vouches for. No socket, clock or database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from cf_messaging.wire import KINDS


class Rule(NamedTuple):
    """Patterns, in which * is any text. say: of KIND/NAME; ask: of views, of which all rows may be seen; subscribe: of
    topics, KIND/NAME/NODE/. Its own rows everybody may see, of each view with a parameter `node`.
    """

    nodes: tuple[str, ...]
    say: tuple[str, ...]
    ask: tuple[str, ...]
    subscribe: tuple[str, ...]


# Where there are no keys.
EVERYBODY = Rule(("*",), ("*",), ("*",), ("*",))
# Of who is named by no other; common information is said by who is named for it.
OTHERS = Rule(("*",), tuple(f"{kind.name}/*" for kind in KINDS.values() if not kind.single), ("common",), ("common/*",))
WHERE = "see `rights` in the listener's settings"


class Rights:
    """The first rule in whose `nodes` a node is holds for it."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = (*rules, OTHERS)
        self.of = lru_cache(100_000)(self._found)

    def may_say(self, node: str, kind: str, name: str) -> bool:
        return _is_in(f"{kind}/{name}", self.of(node).say)

    def may_ask(self, node: str, view: str) -> bool:
        """For all rows."""
        return _is_in(view, self.of(node).ask)

    def may_subscribe(self, node: str, topic: bytes) -> bool:
        """topic: the beginning of those that are wanted. As each pattern ends in *, it matches all of them, or not."""
        return _is_in(topic.decode("utf-8", "surrogateescape"), self.of(node).subscribe)

    def _found(self, node: str) -> Rule:
        return next(rule for rule in self._rules if _is_in(node, rule.nodes))


def _is_in(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text, _literal(pattern)) for pattern in patterns)


@lru_cache(1000)
def _literal(pattern: str) -> str:
    """All of it but *: fnmatch knows [ and ? too, which are in names of information."""
    return re.sub(r"[\[?]", r"[\g<0>]", pattern)


def read(tables: Sequence[Any]) -> list[Rule]:
    """From the settings; what a rule does not tell is as for all others. Raises ValueError."""
    return [_read(number, table) for number, table in enumerate(tables, 1)]


def _read(number: int, table: Any) -> Rule:
    if not isinstance(table, dict):
        raise ValueError(f"rule {number} is {table!r:.100}: allowed is a table, [[rights]]")
    for name, value in table.items():
        if name not in Rule._fields:
            raise ValueError(f"rule {number} has '{name:.100}': there are {', '.join(Rule._fields)}")
        if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
            raise ValueError(f"'{name}' of rule {number} is {value!r:.100}: allowed is a list of patterns")
    if "nodes" not in table:
        raise ValueError(f"rule {number} has no 'nodes': whom it is for")
    for pattern in table.get("say", ()):
        if "/" not in pattern and pattern != "*":
            raise ValueError(f"'say' of rule {number} is '{pattern:.100}': allowed is KIND/NAME, with * for any text")
    for pattern in table.get("subscribe", ()):
        if not pattern.endswith("*"):
            raise ValueError(f"'subscribe' of rule {number} is '{pattern:.100}': allowed is KIND/NAME/* or *")
    return OTHERS._replace(**{name: tuple(value) for name, value in table.items()})
