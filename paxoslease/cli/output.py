"""What the command prints: tables for people, JSON for programs, errors as one line and a hint."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from paxoslease.channel import DaemonError, DaemonUnreachable
from paxoslease.errors import (
    BadRecord,
    ConfigError,
    DiskError,
    PaxosleaseError,
)

if TYPE_CHECKING:
    from rich.console import Console

Json = Mapping[str, object]

_WIDE = 100_000  # columns

_DISK_HINTS = {
    errno.ENOENT: "look at how the path is written; only `format` creates files",
    errno.EINVAL: "offsets must be multiples of the sector size, and areas lie at multiples of 1M",
    errno.EMSGSIZE: "there is less than an area needs: look at the path and offset",
    errno.ENXIO: "the device is not there (any more)",
    errno.EACCES: "run it as a user who may write there, such as root",
    errno.EPERM: "run it as a user who may write there, such as root",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENOSPC: "make room on the file system, or choose another place",
    errno.EDQUOT: "make room on the file system, or choose another place",
    errno.EISDIR: "name a device or a file in it",
    errno.ENOTDIR: "look at how the path is written",
}

_JOINED = "`paxoslease status` lists what is joined"
_PLACE = "look at the path and offset; `paxoslease inspect PATH` shows what is there"
# What to do when the daemon refuses something, by its number.
_DAEMON_HINTS = {
    -errno.ESRCH: "`paxoslease status` lists the processes that are registered",
    -errno.EAGAIN: "wait for it, or ask the holders with `paxoslease request`",
    -errno.EEXIST: "a lease has one user per host at a time; `paxoslease leases` lists them",
    -errno.ENODEV: "look at how the path is written, and whether the daemon may open it",
    -errno.EINVAL: "areas lie at multiples of 1M; `paxoslease inspect PATH` shows them",
    -errno.ENOSPC: _JOINED,
    -errno.EMSGSIZE: _PLACE,
    -202: "look at the storage path",
    -203: "start wdmd, or start the daemon with another --watchdog",
    -262: "give every host an id of its own; `paxoslease hosts` lists those in use",
    **dict.fromkeys(
        (-243, -244, -245, -246, -247),
        "wait for it, ask the holder with `paxoslease request`, or stop the holder",
    ),
    **dict.fromkeys(range(-229, -221), _PLACE),
}
# The same, where it depends on the command.
_COMMAND_HINTS = {
    ("acquire", -errno.ENOENT): _DAEMON_HINTS[-errno.ENODEV],
    ("request", -errno.ENOENT): _DAEMON_HINTS[-errno.ENODEV],
    ("reg_event", -errno.ENOENT): _JOINED,
    ("set_event", -errno.ENOENT): _JOINED,
    ("set_event", -errno.EBUSY): "it ends by itself after some renewals",
    ("rem_lockspace", -errno.EBUSY): "`paxoslease leases` lists who uses it; without --unused they "
    "are killed",
    ("shutdown_wait", -errno.EBUSY): "`paxoslease leave` them first, or give --force",
    ("release", -errno.EPERM): "`paxoslease leases` lists who holds what",
    ("add_lockspace", -errno.EAGAIN): "join again in a moment",
}


@dataclass(eq=False)
class UsageError(ConfigError):
    """A command line that cannot be understood; `what` is the command, `advice` the hint."""

    advice: str


def _magic_hint(found: str) -> str:
    """Say what a wrong magic means; records are imported here because they need NumPy."""
    from paxoslease.disk.records import CLEARED_MAGIC, DELTA_MAGIC, PAXOS_MAGIC, RINDEX_MAGIC

    hints = {
        DELTA_MAGIC: "there is a lockspace at this place; look at the path and offset",
        PAXOS_MAGIC: "there is a resource at this place; look at the path and offset",
        CLEARED_MAGIC: "there is a deleted resource at this place",
        RINDEX_MAGIC: "there is a resource index at this place; look at the path and offset",
    }
    texts = {f"{magic:#010x}": hint for magic, hint in hints.items()}
    return texts.get(found, "nothing of paxoslease or sanlock is there")


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
        return value.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
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
    shown = console()
    if not shown.is_terminal:
        shown.width = _WIDE  # a row is a line, whatever its length
    shown.print(table)


def _cell(value: object) -> str:
    from rich.markup import escape

    plain = _plain(value) if isinstance(value, bytes | Enum) else value
    return escape(str(plain))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdecimal()


def error_as_json(error: PaxosleaseError, command: str = "") -> Json:
    """Return an error with its fields, for programs; `command` is the one that failed."""
    fields = {name: _field(value) for name, value in vars(error).items()}
    return {
        "error": type(error).__name__,
        "code": error.code,
        "message": str(error),
        "hint": hint_of(error, command),
        **fields,
    }


def _field(value: object) -> object:
    if isinstance(value, PaxosleaseError):
        return error_as_json(value)
    return _plain(value) if isinstance(value, bytes | Enum) else value


def print_error(error: PaxosleaseError, *, as_json: bool, command: str = "") -> None:
    """Print an error: on standard output as JSON, else as a line and a hint on standard error."""
    if as_json:
        print_json(error_as_json(error, command))
        return
    sys.stderr.write(f"paxoslease: {error} (code {error.code})\n")
    hint = hint_of(error, command)
    if hint:
        sys.stderr.write(f"  hint: {hint}\n")


def hint_of(error: PaxosleaseError, command: str = "") -> str:
    """Return what to do about an error: more to the point than its class knows, where possible."""
    if isinstance(error, UsageError):
        return error.advice
    if isinstance(error, ConfigError) and command:
        return f"`{command} --help` shows what can be given"
    if isinstance(error, DaemonError) and not isinstance(error, DaemonUnreachable):
        return _daemon_hint(error)
    if isinstance(error, DiskError):
        if error.operation == "create" and error.errno == errno.ENOENT:
            return "the directory is not there: look at how the path is written"
        return _DISK_HINTS.get(error.errno, error.hint)
    if isinstance(error, BadRecord) and error.field == "magic":
        return _magic_hint(str(error.found))
    if isinstance(error, BadRecord) and error.field == "checksum":
        return "the record is damaged: `paxoslease check PATH` says what else is"
    return error.hint


def _daemon_hint(error: DaemonError) -> str:
    if type(error).hint != DaemonError.hint:
        return error.hint
    special = _COMMAND_HINTS.get((error.command, error.result))
    return special or _DAEMON_HINTS.get(error.result, error.hint)
