"""What every benchmark shares: its parser, its table, and the JSON object on its last line."""

import json
from collections.abc import Iterable, Mapping

from jobs.cli.options import Formatter, Parser

_COLUMN = 12  # least width of a column


def bench_parser(module: str, doc: str | None) -> Parser:
    """Make the parser of `python -m <module>`; the docstring of the module describes it."""
    return Parser(prog=f"python -m {module}", description=doc, formatter_class=Formatter)


def print_rows(rows: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Print each row under the names of its values as soon as it is measured; return all."""
    printed: list[Mapping[str, object]] = []
    for row in rows:
        for cells in (row.values(),) if printed else (row, row.values()):
            columns = zip(row, map(str, cells), strict=True)
            padded = (cell.rjust(max(_COLUMN, len(name))) for name, cell in columns)
            print("  ".join(padded), flush=True)
        printed.append(row)
    return printed


def print_value(name: str, value: object) -> None:
    """Print one measured value, or several by name, on a line of its own."""
    text = str(value)
    if isinstance(value, Mapping):
        text = "  ".join(f"{key}: {each}" for key, each in value.items())
    print(f"{name:32} {text}", flush=True)


def print_json(result: Mapping[str, object]) -> None:
    """Print the JSON object that ends the output of a benchmark."""
    print(json.dumps(result), flush=True)
