"""`sanlock client` actions on lockspaces.

Source: spec/cli.md 4.4 and 4.8.
"""

from __future__ import annotations

from typing import Final

from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say
from paxoslease.cli.sanlock.steps import missing, result_of, step
from paxoslease.client import Connection
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S
from paxoslease.wire.sanlock import Config, HostEvent

_PREPARED: Final = {
    "u": (Config.UNUSED, Config.USED),
    "O": (Config.UNUSED_BY_ORPHANS, Config.USED_BY_ORPHANS),
}


def add_lockspace(options: Options) -> int:
    """Join a lockspace."""
    space, io_timeout = options.lockspace, options.io_timeout
    if io_timeout in (0, IO_TIMEOUT_DEFAULT_S):
        name, about, io_timeout = b"add_lockspace", b"", 0
    else:
        name, about = b"add_lockspace_timeout", b" %d" % io_timeout
    return step(name, lambda: Connection().add_lockspace(space, io_timeout), about)


def inq_lockspace(options: Options) -> int:
    """Tell whether a lockspace is joined."""
    return step(b"inq_lockspace", lambda: Connection().inq_lockspace(options.lockspace))


def rem_lockspace(options: Options) -> int:
    """Leave a lockspace."""
    return step(b"rem_lockspace", lambda: Connection().rem_lockspace(options.lockspace))


def set_config(options: Options) -> int:
    """Say whether a lockspace counts as used."""
    letter = next((letter for letter in "Ou" if options.has(letter)), None)
    value = _PREPARED[letter][bool(options.number(letter))].value if letter else 0
    name = options.lockspace.name
    say(b"set_config %b %d" % (name, value))
    result = result_of(lambda: Connection().set_config(name, value))
    say(b"set_config done %d" % result)
    return result


def set_event(options: Options) -> int:
    """Send an event to another host."""
    event = HostEvent(*map(options.unsigned, "iged"))
    name = options.lockspace.name
    say(b"set_event %d %d event 0x%x data 0x%x" % event)
    result = result_of(lambda: Connection().set_event(name, event))
    say(b"set_event done %d" % result)
    return result


def examine(options: Options) -> int:
    """Look for requests to a lease, or to all of a lockspace."""
    space = options.lockspace

    def look() -> None:
        if space.disk.path:
            Connection().examine_lockspace(space)
        elif options.resources:
            Connection().examine_resource(options.resources[0])
        else:
            raise missing("examine")

    return step(b"examine", look)
