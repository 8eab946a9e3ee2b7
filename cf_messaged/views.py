"""Views: SQL files with typed parameters, run on a connection that cannot write, within limits.

A file begins with a comment: what it shows, `-- :NAME TYPE = DEFAULT` for each parameter (a type of parameters.py;
the default in JSON, or NULL), `-- column NAME TYPE` for each column that is not shown as it is stored (time, json or
boolean), or is a number that grows by itself (age). `:now` is always given, in UTC microseconds. A line that ends in
`-- if :NAME` counts only if that parameter is not NULL, so that the database sees the conditions that there are, and
takes the index for them.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from cf_messaged.database import Limits, StoreUnavailable, database
from cf_messaged.parameters import TYPES
from cf_messaged.times import rfc3339
from cf_messaging.wire import SELF

BUILT_IN = Path(__file__).parent / "sql"
AGE = "age"  # the type of a column; who compares rows leaves it out

Row = dict[str, Any]


class Refused(Exception):
    """The question cannot be answered, now or later. One line: why."""


class BadView(Exception):
    """A file is no view. One line: which, and why."""


class Parameter(NamedTuple):
    name: str
    type: str
    default: Any


class View(NamedTuple):
    """columns: the type of those that are not shown as they are stored, or grow by themselves."""

    name: str
    about: str
    parameters: dict[str, Parameter]
    columns: dict[str, str]
    sql: str


# ---- files


def names(directory: str | None) -> dict[str, Path]:
    """The views that there are, built in and the operator's own; raises BadView if one is both."""
    built_in = {path.stem: path for path in sorted(BUILT_IN.glob("*.sql"))}
    try:
        own = (
            {path.stem: path for path in sorted(Path(directory).iterdir()) if path.suffix == ".sql"}
            if directory
            else {}
        )
    except OSError as error:
        raise BadView(f"directory of views {directory}: {error.strerror}") from None
    if SELF in own:
        raise BadView(f"{own[SELF]}: what a node asks for as '{SELF}' is no view; give the file another name")
    both = sorted(built_in.keys() & own.keys())
    if both:
        raise BadView(f"{own[both[0]]}: a view '{both[0]}' is built in; give the file another name")
    return built_in | own


def load(name: str, directory: str | None) -> View:
    """A name from outside is looked up, never made into a path. Raises Refused, BadView."""
    paths = names(directory)
    if name not in paths:
        raise Refused(f"no view '{name:.100}'{likely(name, paths)}; there are {', '.join(paths)}")
    try:
        return parse(name, paths[name].read_text())
    except OSError as error:
        raise BadView(f"{paths[name]}: {error.strerror}") from None
    except ValueError as error:
        raise BadView(f"{paths[name]}: {error}") from None


def likely(word: str, words: Iterator[str] | Mapping[str, Any]) -> str:
    close = get_close_matches(word, list(words), 1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def parse(name: str, text: str) -> View:
    """Raises ValueError."""
    header = re.match(r"(?:[ \t]*--[^\n]*\n|[ \t]*\n)*", text)
    view = View(name, "", {}, {}, text[header.end() :] if header else text)
    about = []
    for line in header[0].splitlines() if header else ():
        words = line.strip().removeprefix("--").strip()
        if words.startswith(":"):
            parameter = _declared(words)
            view.parameters[parameter.name] = parameter
        elif words.startswith("column "):
            column, type = _column(words)
            view.columns[column] = type
        else:
            about.append(words)
    _check_use(view)
    return view._replace(about=" ".join(about).strip())


def _declared(words: str) -> Parameter:
    parts = re.fullmatch(r":([a-z_]+) +([a-z]+) *= *(.+)", words)
    if not parts or parts[2] not in TYPES:
        raise ValueError(f"'-- {words}' is no '-- :NAME TYPE = DEFAULT' with a TYPE of {', '.join(TYPES)}")
    try:
        default = None if parts[3] == "NULL" else json.loads(parts[3])
        if default is not None:
            TYPES[parts[2]].read(default)
    except ValueError:
        raise ValueError(f"default of '-- {words}' is neither NULL nor JSON of {TYPES[parts[2]].allowed}") from None
    return Parameter(parts[1], parts[2], default)


def _column(words: str) -> tuple[str, str]:
    parts = re.fullmatch(r"column +(\w+) +(\w+)", words)
    if not parts or parts[2] not in _SHOWN:
        raise ValueError(f"'-- {words}' is no '-- column NAME TYPE' with a TYPE of {', '.join(_SHOWN)}")
    return parts[1], parts[2]


def _check_use(view: View) -> None:
    bare = re.sub(r"'(?:[^']|'')*'", "", view.sql)
    for name in re.findall(r"(?<![:\w]):([A-Za-z_]\w*)", bare):
        if name not in (*view.parameters, "now"):
            raise ValueError(f":{name} is used, but '-- :{name} TYPE = DEFAULT' is missing")


# ---- parameters


def values(view: View, asked: Mapping[str, Any], settings: Mapping[str, Any], now_us: int) -> dict[str, Any]:
    """What the SQL gets. settings: replace the defaults of parameters of their names. Raises Refused."""
    for name in asked:
        if name not in view.parameters:
            there = ", ".join(view.parameters) or "none"
            close = likely(name, view.parameters)
            raise Refused(f"view '{view.name}' has no parameter '{name:.100}'{close}; there are {there}")
    defaults = {name: settings.get(name, parameter.default) for name, parameter in view.parameters.items()}
    given = {name: _value(view, name, value) for name, value in {**defaults, **asked}.items()}
    return {**given, "now": now_us}


def _value(view: View, name: str, value: Any) -> Any:
    parameter = view.parameters[name]
    if value is None and parameter.default is None:
        return None
    try:
        return TYPES[parameter.type].read(value)
    except ValueError:
        told = json.dumps(value, ensure_ascii=True)
        allowed = TYPES[parameter.type].allowed
        raise Refused(f"parameter '{name}' of view '{view.name}' is {told:.100}: allowed is {allowed}") from None


# ---- rows


def rows(url: str, view: View, given: Mapping[str, Any], limits: Limits) -> list[Row]:
    """url: of the store. Raises Refused, which says what was over its limit; StoreUnavailable."""
    kept = database(url)
    try:
        with (
            kept.reading(limits) as connection,
            closing(kept.ask(connection, counting(view, given), given, _types(view))) as cursor,
        ):
            return _fetched(cursor, view, limits)
    except kept.errors as error:
        wrong = kept.in_words_of_views(error, limits)
        if wrong:
            raise Refused(f"view '{view.name}' {wrong}") from None
        raise StoreUnavailable(f"{kept.name}: {kept.in_words(error)}") from None


def _types(view: View) -> dict[str, str]:
    return {"now": "int", **{parameter.name: parameter.type for parameter in view.parameters.values()}}


def counting(view: View, given: Mapping[str, Any]) -> str:
    """The lines that count."""

    def counts(line: str) -> bool:
        condition = re.search(r"-- if :(\w+)\s*$", line)
        return not condition or given.get(condition[1]) is not None

    return "\n".join(line for line in view.sql.splitlines() if counts(line))


def _fetched(cursor: Any, view: View, limits: Limits) -> list[Row]:
    if cursor.description is None:
        raise Refused(f"view '{view.name}' selects nothing")
    columns = [column[0] for column in cursor.description]
    if len(set(columns)) < len(columns):
        raise Refused(f"view '{view.name}' has two columns of one name")
    fetched: list[Row] = []
    size, deadline = 0, time.monotonic() + limits.seconds
    for row in cursor:
        if len(fetched) == limits.rows:
            raise Refused(f"view '{view.name}' has more than {limits.rows} rows: ask for less")
        size += sum(
            len(column) + 6 + (len(cell) if isinstance(cell, str) else 1)
            for column, cell in zip(columns, row, strict=True)
        )
        if size > limits.bytes:
            raise Refused(f"view '{view.name}' has more than {limits.bytes} bytes: ask for less")
        if time.monotonic() > deadline:
            raise Refused(f"view '{view.name}' took longer than {limits.seconds:g} s: ask for less")
        fetched.append({column: _cell(view, column, cell) for column, cell in zip(columns, row, strict=True)})
    return fetched


def _cell(view: View, column: str, cell: Any) -> Any:
    if column in view.columns and cell is not None:
        try:
            return _SHOWN[view.columns[column]](cell)
        except (ValueError, TypeError, OverflowError):
            raise Refused(f"view '{view.name}': column '{column}' holds no {view.columns[column]}") from None
    if isinstance(cell, Decimal):  # what PostgreSQL makes of a sum of integers
        number = float(cell)
        cell = int(cell) if math.isfinite(number) and cell == cell.to_integral_value() else number
    if not isinstance(cell, _JSON) or (isinstance(cell, float) and not math.isfinite(cell)):
        raise Refused(f"view '{view.name}': column '{column}' holds what JSON has no text for")
    return cell


def _number(cell: Any) -> int | float:
    if isinstance(cell, str):
        raise ValueError(cell)
    return int(cell) if int(cell) == cell else float(cell)


_JSON = (str, int, float, NoneType)
_SHOWN: dict[str, Callable[[Any], Any]] = {"time": rfc3339, "json": json.loads, "boolean": bool, AGE: _number}
