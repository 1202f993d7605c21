"""`paxoslease daemon`: run the lease daemon, set up by a TOML file or by options."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from paxoslease.cli.addresses import io_timeout
from paxoslease.disk.layout import check_name
from paxoslease.errors import ConfigError
from paxoslease.timing import IO_TIMEOUT_MAX_S, WATCHDOG_FIRE_TIMEOUT_MAX_S

if TYPE_CHECKING:
    from paxoslease.daemon.options import DaemonOptions

CONFIG: Final = "/etc/paxoslease/daemon.toml"

# Numbers that are not just anything from 0 on: the least and the most.
_RANGES: Final = {
    "watchdog_fire_timeout": (1, WATCHDOG_FIRE_TIMEOUT_MAX_S),
    "io_timeout": (1, IO_TIMEOUT_MAX_S),
    "kill_grace": (0, 60),
    "lock_memory": (0, 2),
    "log_file_priority": (-1, 7),
    "syslog_priority": (-1, 7),
}
_NUMBER_MAX: Final = (1 << 31) - 1
# Key of the file, field of DaemonOptions, what it may be.
_KEYS: Final[dict[str, tuple[str, type]]] = {
    "host_name": ("host_name", str),
    "user": ("user", str),
    "group": ("group", str),
    "watchdog": ("watchdog", str),
    "watchdog_fire_timeout": ("watchdog_fire_timeout", int),
    "io_timeout": ("io_timeout", int),
    "kill_grace": ("grace_s", int),
    "high_priority": ("high_priority", bool),
    "lock_memory": ("mlock_level", int),
    "keep_unused_lockspaces": ("keep_unused_lockspaces", bool),
    "renewal_history": ("renewal_history_size", int),
    "log_file_priority": ("log_file_priority", int),
    "syslog_priority": ("syslog_priority", int),
    "log_utc": ("log_file_utc", bool),
}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `daemon`."""
    parser = commands.add_parser(
        "daemon",
        help="run the lease daemon in the foreground",
        description="Run the lease daemon, behind sanlock's socket, in the foreground. SIGTERM "
        "ends it when it has no lockspace; SIGUSR2 has it execute its program anew with everything "
        "kept. `paxoslease-sanlock daemon` is the same with sanlock's own command line.",
        epilog="keys of the file, each also an option: " + ", ".join(_KEYS),
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"settings in TOML (default: {CONFIG}, if it is there)"
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where the socket is (default: $SANLOCK_RUN_DIR, or /run/sanlock)",
    )
    parser.add_argument("--host-name", metavar="NAME", help="default: random, new at each start")
    parser.add_argument("--watchdog", metavar="WHAT", help="'wdmd' (default), a device, or 'none'")
    parser.add_argument("--io-timeout", type=io_timeout, metavar="S", help="default: 10")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the file, with a value as TOML writes it: user='\"sanlock\"'",
    )
    parser.set_defaults(run=_run, has_own_log=True)


def _run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    if arguments.run_dir:
        os.environ["SANLOCK_RUN_DIR"] = arguments.run_dir
    # Under our own command the daemon runs as whoever starts it, unless it is told a user.
    if not options.user and not options.group:
        os.environ.setdefault("SANLOCK_PRIVILEGED", "0")
    from paxoslease.daemon.main import run

    return run(options)


def _options(arguments: argparse.Namespace) -> DaemonOptions:
    import tomllib

    from paxoslease.daemon.options import DaemonOptions

    options = replace(DaemonOptions(), foreground=True, keep_unused_lockspaces=True)
    path = arguments.config or CONFIG
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except FileNotFoundError:
        if arguments.config:
            raise ConfigError("--config", f"there is no file {path}") from None
        settings = {}
    except OSError as error:
        raise ConfigError("--config", f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, str(error)) from error
    for setting in arguments.set:
        try:
            settings.update(tomllib.loads(setting))
        except tomllib.TOMLDecodeError as error:
            reason = f"'{setting}': {error}; a text is written in quotes: key=\"text\""
            raise ConfigError("--set", reason) from error
    for key in ("host_name", "watchdog", "io_timeout"):
        if getattr(arguments, key) is not None:
            settings[key] = getattr(arguments, key)
    for key, value in settings.items():
        options = _set(options, key, value)
    return options


def _set(options: DaemonOptions, key: str, value: object) -> DaemonOptions:
    if key not in _KEYS:
        raise ConfigError(key, f"is no setting; there are {', '.join(_KEYS)}")
    field, kind = _KEYS[key]
    if type(value) is not kind:
        raise ConfigError(key, f"{value!r} is not of type {kind.__name__}")
    if isinstance(value, int):
        low, high = _RANGES.get(key, (0, _NUMBER_MAX))
        if not low <= value <= high:
            raise ConfigError(key, f"{value} is not between {low} and {high}")
    if key == "host_name" and value:
        check_name(key, str(value))
    if key == "watchdog":
        if value not in ("none", "wdmd") and not str(value).startswith("/"):
            raise ConfigError(key, f"'{value}' is neither 'none' nor 'wdmd' nor a device")
        return replace(options, watchdog=str(value), use_watchdog=value != "none")
    values: dict[str, Any] = {field: value}
    return replace(options, **values)
