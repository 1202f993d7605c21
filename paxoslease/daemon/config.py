"""From the configuration file and the command line to `DaemonOptions`.

Both are read as leniently as the original reads them: what is no number is 0, unknown keys and
values out of range are skipped. The command line wins.

Source: spec/cli.md 2, 6 and 7. What only newer releases than 3.8.5 have works too: -o and
io_timeout, watchdog_fire_timeout, kill_grace_seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from paxoslease.daemon.options import DaemonOptions
from paxoslease.lenient import to_int
from paxoslease.wire.sanlock import NAME_BYTES, Command

CONF_PATH: Final = "/etc/sanlock/sanlock.conf"

_LINE_MAX: Final = 127
_GRACE_MAX_S: Final = 60
_THREADS_MIN: Final = 2
_SECTORS_KB_MAX: Final = 8192
_FIRE_DEFAULT_S: Final = 60


def daemon_options(
    words: Mapping[str, bytes], *, foreground: bool = False, conf_path: str = CONF_PATH
) -> DaemonOptions:
    """Return the settings of a daemon. words: the values of the command line by letter.

    A configuration file that is missing or cannot be read counts as empty.
    """
    settings: dict[str, Any] = {"foreground": foreground}
    for key, value in read_conf(conf_path):
        _take(settings, _KEYS, key, value)
    for letter, value in words.items():
        _take(settings, _LETTERS, letter, value)
    if "grace_s" not in settings:
        settings["grace_s"] = _grace_s(settings.get("watchdog_fire_timeout", _FIRE_DEFAULT_S))
    return replace(DaemonOptions(), **settings)


def _grace_s(fire_timeout_s: int) -> int:
    """Return the grace that leaves time for killing before a watchdog fires."""
    if fire_timeout_s >= _FIRE_DEFAULT_S:
        return DaemonOptions().grace_s
    return 15 if fire_timeout_s >= _FIRE_DEFAULT_S // 2 else 0


def read_conf(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and values of a configuration file, in its order."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return
    for line in _lines(content):
        key, equals, value = line.partition(b"=")
        key = (key.split(maxsplit=1) or [b""])[0]
        word = value.split(maxsplit=1)[:1]
        if equals and key and word and line[:1] not in b"# \t":
            yield key.decode("latin-1"), word[0]


def _lines(content: bytes) -> Iterator[bytes]:
    """Yield lines; the rest of one that is too long counts as the next."""
    for line in content.split(b"\n"):
        for at in range(0, len(line), _LINE_MAX):
            yield line[at : at + _LINE_MAX]


_Setter = Callable[[dict[str, Any], bytes], None]


def _take(settings: dict[str, Any], table: Mapping[str, _Setter], key: str, value: bytes) -> None:
    setter = table.get(key)
    if setter is not None:
        setter(settings, value)


def _number(
    field: str, low: int = -(1 << 31), high: int = (1 << 31) - 1, *, is_cut: bool = False
) -> _Setter:
    """Set a number; one out of range is skipped, or the nearest is taken."""

    def take(settings: dict[str, Any], value: bytes) -> None:
        number = to_int(value)
        if is_cut:
            number = min(max(number, low), high)
        if low <= number <= high:
            settings[field] = number

    return take


def _flag(field: str) -> _Setter:
    def take(settings: dict[str, Any], value: bytes) -> None:
        settings[field] = bool(to_int(value))

    return take


def _text(field: str) -> _Setter:
    def take(settings: dict[str, Any], value: bytes) -> None:
        settings[field] = os.fsdecode(value[:NAME_BYTES])

    return take


def _max_sectors_kb(settings: dict[str, Any], value: bytes) -> None:
    number = to_int(value)
    is_number = 0 < number <= _SECTORS_KB_MAX and number % 2 == 0
    if value not in (b"ignore", b"align") and not is_number:
        return
    settings["max_sectors_kb_ignore"] = value == b"ignore"
    settings["max_sectors_kb_align"] = value == b"align"
    settings["max_sectors_kb"] = number if is_number else 0


def _debug_io(settings: dict[str, Any], value: bytes) -> None:
    settings["debug_io_submit"] = b"submit" in value
    settings["debug_io_complete"] = b"complete" in value


def _debug_command(settings: dict[str, Any], value: bytes) -> None:
    """Add or remove a command from those that are logged, or all."""
    mask = settings.get("debug_commands", DaemonOptions().debug_commands)
    sign, name = value[:1], value[1:].decode("latin-1").upper()
    if name == "ALL":
        bits = (1 << 64) - 1
    elif name in Command.__members__:
        bits = 1 << Command[name]
    else:
        return
    if sign == b"+":
        settings["debug_commands"] = mask | bits
    elif sign == b"-":
        settings["debug_commands"] = mask & ~bits


_THREADS: Final = _number("max_worker_threads", _THREADS_MIN, is_cut=True)
_GRACE: Final = _number("grace_s", 0, _GRACE_MAX_S)

_LETTERS: Final[dict[str, _Setter]] = {
    "Q": _flag("quiet_fail"),
    "R": _number("debug_renew"),
    "H": _number("renewal_history_size", 0, is_cut=True),
    "L": _number("log_file_priority"),
    "S": _number("syslog_priority"),
    "a": _flag("use_aio"),
    "t": _THREADS,
    "w": _flag("use_watchdog"),
    "h": _flag("high_priority"),
    "l": _number("mlock_level"),
    "o": _number("io_timeout", 1, 255),
    "b": _number("bitmap_s", 0),
    "g": _GRACE,
    "e": _text("host_name"),
    "U": _text("user"),
    "G": _text("group"),
}
_KEYS: Final[dict[str, _Setter]] = {
    "quiet_fail": _flag("quiet_fail"),
    "debug_renew": _number("debug_renew"),
    "logfile_priority": _number("log_file_priority"),
    "logfile_use_utc": _flag("log_file_utc"),
    "syslog_priority": _number("syslog_priority"),
    "names_log_priority": _number("names_log_priority"),
    "use_watchdog": _flag("use_watchdog"),
    "high_priority": _flag("high_priority"),
    "mlock_level": _number("mlock_level"),
    "sh_retries": _number("shared_retries", 0, is_cut=True),
    "uname": _text("user"),
    "gname": _text("group"),
    "our_host_name": _text("host_name"),
    "renewal_read_extend_sec": _number("renewal_read_extend_s", 0),
    "renewal_history_size": _number("renewal_history_size", 0, is_cut=True),
    "write_init_io_timeout": _number("write_init_io_timeout", 1),
    "max_worker_threads": _THREADS,
    "max_sectors_kb": _max_sectors_kb,
    "use_aio": _flag("use_aio"),
    "paxos_debug_all": _flag("paxos_debug_all"),
    "debug_io": _debug_io,
    "debug_clients": _flag("debug_clients"),
    "debug_cmd": _debug_command,
    "io_timeout": _number("io_timeout", 1, 255),
    "watchdog_fire_timeout": _number("watchdog_fire_timeout", 1, 3600),
    "kill_grace_seconds": _GRACE,
}
