"""What every benchmark shares: its parser, its table, and the JSON object on its last line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.cli.options import Formatter, Parser


def bench_parser(module: str, doc: str | None) -> Parser:
    """Make the parser of `python -m <module>`; the docstring of the module describes it."""
    return Parser(prog=f"python -m {module}", description=doc, formatter_class=Formatter)


@dataclass(frozen=True)
class Column:
    """One column of a `Table`."""

    title: str
    key: str  # of the value in a row
    spec: str  # format of the values, as in `format(value, spec)`
    unit: float = 1  # by which numbers are divided before they are printed


class Table:
    """Prints each row as soon as it is measured, and keeps all rows for the JSON object."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self.rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Print one row, under the titles if it is the first one."""
        cells = [_cell(row[column.key], column) for column in self._columns]
        if not self.rows:
            self._widths = [
                max(len(cell), len(column.title))
                for cell, column in zip(cells, self._columns, strict=True)
            ]
            self._print([column.title for column in self._columns])
        self._print(cells)
        self.rows.append(row)

    def _print(self, cells: list[str]) -> None:
        padded = (cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))
        print("  ".join(padded), flush=True)


def _cell(value: Any, column: Column) -> str:
    return format(value if column.unit == 1 else value / column.unit, column.spec)


def print_value(name: str, value: object) -> None:
    """Print one measured value, or several by name, on a line of its own."""
    text = str(value)
    if isinstance(value, Mapping):
        text = "  ".join(f"{key}: {each}" for key, each in value.items())
    print(f"{name:32} {text}", flush=True)


def print_json(result: Mapping[str, object]) -> None:
    """Print the JSON object that ends the output of a benchmark."""
    print(json.dumps(result), flush=True)
