"""What the command prints: tables for people, JSON for programs, errors as one line and a hint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from paxoslease.disk.records import cut_name
from paxoslease.errors import PaxosleaseError

if TYPE_CHECKING:
    from rich.console import Console

Json = Mapping[str, object]


def console(*, to_stderr: bool = False) -> Console:
    """Return a rich console; imported here because only people need it."""
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a value as JSON, names as text."""
    json.dump(value, sys.stdout, default=_plain, indent=2, sort_keys=False)
    sys.stdout.write("\n")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return cut_name(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Enum):
        return value.name.lower()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print rows under column heads; numbers are set to the right."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    cells = [[_cell(value) for value in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(_is_number(row[index]) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console().print(table)


def _cell(value: object) -> str:
    from rich.markup import escape

    plain = _plain(value) if isinstance(value, bytes | Enum) else value
    return escape(str(plain))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdecimal()


def error_as_json(error: PaxosleaseError) -> Json:
    """Return an error with its fields, for programs."""
    fields = {name: _field(value) for name, value in vars(error).items()}
    return {
        "error": type(error).__name__,
        "code": error.code,
        "message": str(error),
        "hint": error.hint,
        **fields,
    }


def _field(value: object) -> object:
    if isinstance(value, PaxosleaseError):
        return error_as_json(value)
    return _plain(value) if isinstance(value, bytes | Enum) else value


def print_error(error: PaxosleaseError, *, as_json: bool) -> None:
    """Print an error: on standard output as JSON, else as a line and a hint on standard error."""
    if as_json:
        print_json(error_as_json(error))
        return
    sys.stderr.write(f"paxoslease: {error} (code {error.code})\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")
