"""`sanlock client` actions on the leases of registered processes.

Source: spec/cli.md 4.5 and 4.8.
"""

from __future__ import annotations

import os
import signal
import sys

from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say
from paxoslease.cli.sanlock.state_text import parse_state_text
from paxoslease.cli.sanlock.steps import missing, result_of, step
from paxoslease.cli.sanlock.strings import resource_text
from paxoslease.client import Connection, DaemonError
from paxoslease.wire.sanlock import SELF, AcquireFlag, Resource, ResourceFlag


def _pid(options: Options) -> int:
    """Return the pid that -p names as the protocol has it; without -p the sender itself."""
    return options.number("p", -1) & SELF


def _wanted(options: Options) -> tuple[list[Resource], int]:
    """Return the resources to acquire, and how."""
    num_hosts = options.number("n") & 0xFFFFFFFF
    extra = (ResourceFlag.NUM_HOSTS if num_hosts else 0) | (
        ResourceFlag.PERSISTENT if options.number("P") else 0
    )
    resources = [
        one._replace(flags=one.flags | extra, data32=num_hosts) for one in options.resources
    ]
    return resources, AcquireFlag.ORPHAN if options.number("O") else 0


def acquire(options: Options) -> int:
    """Acquire leases for another process."""
    resources, flags = _wanted(options)
    say(b"acquire pid %d" % options.number("p", -1))
    result = result_of(lambda: Connection().acquire(resources, pid=_pid(options), flags=flags))
    say(b"acquire done %d" % result)
    return result


def command(options: Options) -> int:
    """Register, acquire leases, and become another program that holds them."""
    connection = Connection()
    say(b"register")
    try:
        connection.register(inheritable=True)
    except DaemonError as error:
        say(b"register done %d" % error.code)
        return 0
    fd = connection.fileno()
    say(b"register done %d" % fd)
    resources, flags = _wanted(options)
    say(b"acquire fd %d" % fd)
    result = result_of(lambda: connection.acquire(resources, flags=flags))
    say(b"acquire done %d" % result)
    if result:
        return result
    if options.program is None:
        while True:  # holding the leases, until a signal ends it
            signal.pause()
    try:
        os.execv(options.program[0], options.program)
    except OSError as error:
        sys.stderr.write(f"execv failed: {error.strerror}\n")
    return 0


def release(options: Options) -> int:
    """Release leases of a process, all of them, or orphans."""
    pid = _pid(options)
    connection = Connection()
    say(b"release pid %d" % options.number("p", -1))

    def work() -> int:
        if options.number("a"):
            connection.release_all(pid=pid)
        elif options.number("O"):
            name = options.lockspace.name
            one = options.resources[0] if options.resources else Resource(name, b"")
            return connection.release_orphans(one, pid=pid)
        else:
            connection.release(options.resources, pid=pid)
        return 0

    result = result_of(work)
    say(b"release done %d" % result)
    return result


def convert(options: Options) -> int:
    """Make a lease of a process shared or exclusive."""
    say(b"convert pid %d" % options.number("p", -1))

    def work() -> None:
        if not options.resources:
            raise missing("convert")
        Connection().convert(options.resources[0], pid=_pid(options))

    result = result_of(work)
    say(b"convert done %d" % result)
    return result


def inquire(options: Options) -> int:
    """Print what a process holds."""
    say(b"inquire pid %d" % options.number("p", -1))
    result, count, text = 0, 0, b""
    try:
        count, text = Connection().inquire(pid=_pid(options))
    except DaemonError as error:
        result = error.code
    say(b"inquire done %d res_count %d" % (result, count))
    if result:
        return result
    say(b'"%b"' % (text or b"(null)"))
    if options.is_detailed and text:
        resources = parse_state_text(text)
        say(b"")
        say(b"state_to_args done 0 res_count %d" % len(resources))
        for one in resources:
            say(b'"%b"' % resource_text(one._replace(flags=0), one.lver))
        say(b"")
        say(b"args_to_state done 0")
        say(b'"%b"' % b" ".join(resource_text(one, one.lver) for one in resources))
    return 0


def request(options: Options) -> int:
    """Ask the holder of a lease, on whatever host, to give it up."""

    def work() -> None:
        if not options.resources:
            raise missing("request")
        Connection().request(options.resources[0], options.unsigned("f") & 0xFFFFFFFF)

    return step(b"request", work)
