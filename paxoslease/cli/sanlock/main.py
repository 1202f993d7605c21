"""`paxoslease-sanlock`: sanlock(8)'s command line on paxoslease.

Exit code 0 only for a result of exactly 0, else 1. Messages, those of errors too, go to standard
output. Source: spec/cli.md 1.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from paxoslease.cli.sanlock.grammar import BadCommandLine, parse_options
from paxoslease.cli.sanlock.output import say, say_many
from paxoslease.client import DaemonError

RELEASE: Final = b"3.8.5"

# Which module has an action, and the name of its function: only what is used is loaded.
_CLIENT: Final = {
    b"status": ("status", "status"),
    b"host_status": ("status", "host_status"),
    b"renewal": ("status", "renewal"),
    b"gets": ("status", "gets"),
    b"log_dump": ("status", "log_dump"),
    b"version": ("status", "version"),
    b"shutdown": ("status", "shutdown"),
    b"add_lockspace": ("lockspaces", "add_lockspace"),
    b"inq_lockspace": ("lockspaces", "inq_lockspace"),
    b"rem_lockspace": ("lockspaces", "rem_lockspace"),
    b"set_config": ("lockspaces", "set_config"),
    b"set_event": ("lockspaces", "set_event"),
    b"examine": ("lockspaces", "examine"),
    b"command": ("leases", "command"),
    b"acquire": ("leases", "acquire"),
    b"release": ("leases", "release"),
    b"convert": ("leases", "convert"),
    b"inquire": ("leases", "inquire"),
    b"request": ("leases", "request"),
    b"init": ("storage", "init"),
    b"write": ("storage", "init"),
    b"read": ("storage", "read"),
    b"align": ("storage", "align"),
    b"format": ("indexes", "format_index"),
    b"create": ("indexes", "create"),
    b"delete": ("indexes", "delete"),
    b"lookup": ("indexes", "lookup"),
    b"update": ("indexes", "update"),
    b"rebuild": ("indexes", "rebuild"),
}


def main(words: Sequence[bytes], program: bytes = b"sanlock") -> int:
    """Run a command line, without the program's name. Returns the exit code."""
    first = words[0] if words else b""
    if first in (b"", b"help", b"--help", b"-h"):
        return _help()
    if first == b"version":
        say(RELEASE)
        return 0
    if first in (b"--version", b"-V"):
        say(program + b" " + RELEASE)
        return 0
    try:
        if first == b"daemon":
            return _daemon(words[1:])
        if first == b"direct":
            return _direct(words[1:])
        return _client(words[1:] if first == b"client" else words)
    except BadCommandLine:
        return 1


def _help() -> int:
    from paxoslease.cli.sanlock.usage import USAGE

    say_many(USAGE)
    return 0


def _client(words: Sequence[bytes]) -> int:
    if not words:
        _help()
        return 1
    found = _CLIENT.get(words[0])
    if found is None:
        say(b'client action "%b" is unknown' % words[0])
        return 1
    options = parse_options(words[1:])
    module, function = found
    try:
        result: int = getattr(_load(module), function)(options)
    except DaemonError as error:
        result = error.code
    return 0 if result == 0 else 1


def _direct(words: Sequence[bytes]) -> int:
    if not words:
        _help()
        return 1
    from paxoslease.cli.sanlock.direct import run

    return 0 if run(words[0], words[1:]) == 0 else 1


def _daemon(words: Sequence[bytes]) -> int:
    from paxoslease.daemon.config import daemon_options
    from paxoslease.daemon.main import run

    options = parse_options(words)
    return run(daemon_options(options.words, foreground=options.is_detailed))


def _load(module: str) -> object:
    return importlib.import_module(f"paxoslease.cli.sanlock.{module}")


def run_and_exit() -> NoReturn:
    """Run the command line as a process; the entry point."""
    # As a C program has them, for this one and for the one that may replace it.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program, *words = map(os.fsencode, sys.argv)
    sys.exit(main(words, program))


if __name__ == "__main__":
    run_and_exit()
