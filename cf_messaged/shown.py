"""Rows for people: a table as wide as the terminal, or as wide as its rows for what reads a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# How narrow a column of text may be made. A time then has two lines, its date and its time of day.
LEAST, LEAST_OF_TIME = 6, len("2026-11-24")
_SECONDS = len("2026-11-24T12:00:00")


class Shown:
    """Rows as text; those that come later are as wide as the first. types: of columns, as a view has them."""

    def __init__(self, types: Mapping[str, str], width: int | None) -> None:
        """width: of the terminal; None where there is none, and every row is one line."""
        self._times = {column for column, type in types.items() if type == "time"}
        self._width = width
        self._widths: list[int] = []

    def text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The first time with the names of the columns."""
        if not rows:
            return ""
        names, first = list(rows[0]), not self._widths
        cells = [[self._told(name, row[name]) for name in names] for row in rows]
        self._fit(names, cells, self._least(rows[0]))
        return self._table(names, cells, first)

    def _told(self, column: str, cell: object) -> str:
        if isinstance(cell, str):
            return cell[:_SECONDS] + "Z" if column in self._times else one_line(cell)
        return "" if cell is None else one_line(json.dumps(cell, ensure_ascii=False))

    def _least(self, row: Mapping[str, Any]) -> list[int | None]:
        """None for what is not folded: numbers, true and false."""
        return [
            LEAST_OF_TIME if name in self._times else None if isinstance(cell, int | float) else LEAST
            for name, cell in row.items()
        ]

    def _fit(self, names: Sequence[str], cells: Sequence[Sequence[str]], least: Sequence[int | None]) -> None:
        natural = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
        if self._width is None:
            self._widths = [max(pair) for pair in zip(natural, self._widths or natural, strict=True)]
        elif not self._widths:
            self._widths = fitted(natural, least, self._width)

    def _table(self, names: Sequence[str], cells: Sequence[Sequence[str]], header: bool) -> str:
        gap = _gap(self._widths, self._width)
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=header, header_style="bold")
        for name, width in zip(names, self._widths, strict=True):
            table.add_column(name, overflow="fold", width=width)
        for row in cells:
            table.add_row(*map(Text, row))
        return rendered(table, self._width or sum(self._widths) + gap * len(names))


def fitted(natural: Sequence[int], least: Sequence[int | None], width: int) -> list[int]:
    """The widths of columns: the widest that can be folded gives way first, so that the narrow ones stay whole."""
    widths = [min(each, width) for each in natural]
    while sum(widths) + _gap(widths, width) * (len(widths) - 1) > width:
        wide = [at for at, narrowest in enumerate(least) if narrowest is not None and widths[at] > narrowest]
        if not wide:
            break
        widest = max(wide, key=widths.__getitem__)
        widths[widest] = LEAST_OF_TIME if least[widest] == LEAST_OF_TIME else widths[widest] - 1
    return widths


def _gap(widths: Sequence[int], width: int | None) -> int:
    """Two where there is room."""
    return 2 if width is None or sum(widths) + 2 * (len(widths) - 1) <= width else 1


def rendered(table: Table, width: int) -> str:
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as text:
        console.print(table)
    return text.get()


def one_line(text: str) -> str:
    """What others said may hold line ends and what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def fail(error: object) -> NoReturn:
    """The end of a command, with one line."""
    raise click.ClickException(one_line(str(error)))


def terminal_width() -> int | None:
    """Of standard output."""
    return Console().width if sys.stdout.isatty() else None


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's standard error for as long as something takes, and what changes it; else nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with Console(stderr=True, highlight=False, markup=False).status(Text(one_line(text))) as status:
        yield lambda text: status.update(Text(one_line(text)))
