"""How leases and areas are named on the command line.

`NAME:PATH` or `NAME:PATH:OFFSET` names a lockspace or a resource, `PATH` or `PATH:OFFSET` a place
without a name. A colon that belongs to a name or path is written `\\:`, a backslash `\\\\`, as
sanlock(8) does. Offsets and sizes are in bytes, or end in K, M or G (powers of 1024).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

from paxoslease.disk.layout import check_name
from paxoslease.errors import ConfigError
from paxoslease.timing import IO_TIMEOUT_MAX_S

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Place(NamedTuple):
    """An offset in bytes on a device or file."""

    path: str
    offset: int

    def __str__(self) -> str:
        return f"{self.path}:{self.offset}" if self.offset else self.path


class NamedPlace(NamedTuple):
    """A lockspace or resource: its name and where it is."""

    name: str
    path: str
    offset: int


def size(text: str) -> int:
    """Return a number of bytes such as 1048576, 8M or 2GiB; for argparse."""
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = _UNITS.get(digits[-1:], 1)
    digits = digits[:-1] if factor > 1 else digits
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a size: write bytes, or 512K, 8M, 2G")
    return int(digits) * factor


def split_colons(text: str) -> list[str]:
    """Split at colons that no backslash precedes, and remove the backslashes."""
    parts = [""]
    escaped = False
    for character in text:
        if escaped:
            parts[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ":":
            parts.append("")
        else:
            parts[-1] += character
    if escaped:
        parts[-1] += "\\"
    return parts


def whole_path(path: str) -> str:
    """Return a path as others can use it, whose current directory is not ours."""
    return path if not path or os.path.isabs(path) else os.path.abspath(path)


def place(text: str) -> Place:
    """Return PATH[:OFFSET]; for argparse."""
    parts = split_colons(text)
    if len(parts) > 2 or not parts[0]:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not PATH or PATH:OFFSET (write a colon in a path as '\\:')"
        )
    return Place(parts[0], size(parts[1]) if len(parts) == 2 and parts[1] else 0)


def named_place(text: str) -> NamedPlace:
    """Return NAME:PATH[:OFFSET]; for argparse."""
    parts = split_colons(text)
    if len(parts) not in (2, 3) or not parts[1]:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not NAME:PATH or NAME:PATH:OFFSET "
            "(write a colon in a name or path as '\\:')"
        )
    offset = size(parts[2]) if len(parts) == 3 and parts[2] else 0
    return NamedPlace(name(parts[0]), parts[1], offset)


def name(text: str) -> str:
    """Return a lockspace or resource name; for argparse."""
    try:
        check_name("name", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.reason) from None
    return text


def host_id(text: str) -> int:
    """Return a host id; for argparse. The lockspace's own limit is checked when it is read."""
    if not text.isdecimal() or not 1 <= int(text) <= 2000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a host id: they run from 1 to 2000")
    return int(text)


def number_from(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number of that range, both ends included; for argparse."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {low} to {high}")
        return int(text)

    return read


def io_timeout(text: str) -> int:
    """Return an io_timeout in seconds; for argparse."""
    return number_from(1, IO_TIMEOUT_MAX_S)(text)


def seconds(text: str) -> float:
    """Return a duration in seconds, not negative; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value
