"""`sanlock client` actions that ask the daemon about itself and what it knows.

Source: spec/cli.md 4.1 to 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say, say_many
from paxoslease.cli.sanlock.strings import lockspace_text, resource_text
from paxoslease.client import Connection, DaemonError, DaemonUnreachable, Record
from paxoslease.wire.sanlock import (
    PROTOCOL_VERSION,
    RELEASE_NUMBER,
    HostFlag,
    Lockspace,
    LockspaceFlag,
    Resource,
    StateType,
)

_AGAIN: Final = -11
_WITH_LOCKSPACES: Final = 3  # of STATUS: daemon, clients and lockspaces
_HOST_STATES: Final = {flag.value: flag.name.encode() for flag in HostFlag}


def status(options: Options) -> int:
    """Print daemon, clients, lockspaces and resources."""
    records: Iterable[Record | None] = Connection().status()
    order = options.text("o")[:1]
    if order == b"p":
        records = _by_process(list(records))
    elif order == b"s":
        records = _by_lockspace(list(records))
    for record in records:
        if record is None:
            say(b"-")
            continue
        say(_line(record))
        if options.is_detailed:
            _say_items(record)
    return 0


def _by_process(records: list[Record | None]) -> Iterator[Record | None]:
    """Yield each process with its resources behind it; None before what belongs to none."""

    def is_held_by(client: Record) -> Callable[[Record], bool]:
        pid = client.state.data32
        return lambda one: one.state.type == StateType.RESOURCE and one.state.data32 == pid

    yield from _take(records, _is_daemon)
    yield from _take(records, _is_nobody)
    yield from _take(records, lambda one: one.state.type == StateType.LOCKSPACE)
    while client := next(_take(records, _is_client), None):
        yield client
        yield from _take(records, is_held_by(client))
    yield from _rest(records)


def _by_lockspace(records: list[Record | None]) -> Iterator[Record | None]:
    """Yield each lockspace with its resources behind it; None before what belongs to none."""

    def belongs_to(space: Record) -> Callable[[Record], bool]:
        name = space.state.name
        return lambda one: isinstance(one.subject, Resource) and one.subject.lockspace == name

    yield from _take(records, _is_daemon)
    yield from _take(records, _is_nobody)
    yield from _take(records, _is_client)
    while space := next(_take(records, lambda one: isinstance(one.subject, Lockspace)), None):
        yield space
        yield from _take(records, belongs_to(space))
    yield from _rest(records)


def _is_daemon(record: Record) -> bool:
    return record.state.type == StateType.DAEMON


def _is_client(record: Record) -> bool:
    return record.state.type == StateType.CLIENT


def _is_nobody(record: Record) -> bool:
    return _is_client(record) and record.state.data32 == -1


def _take(records: list[Record | None], is_wanted: Callable[[Record], bool]) -> Iterator[Record]:
    """Yield the records that are wanted, in their order, and take them out of the list."""
    at = 0
    while at < len(records):
        record = records[at]
        if record is not None and is_wanted(record):
            del records[at]
            yield record
        else:
            at += 1


def _rest(records: list[Record | None]) -> Iterator[Record | None]:
    if records:
        yield None
        yield from records


def _line(record: Record) -> bytes:
    state, subject = record
    if state.type == StateType.DAEMON:
        return b"daemon %b" % state.name
    if state.type == StateType.CLIENT:
        return b"p %d %b" % (state.data32, state.name)
    if isinstance(subject, Lockspace):
        return b"s %b%b" % (lockspace_text(subject), _list_of(state.text, (b"add", b"rem")))
    assert isinstance(subject, Resource)
    where = _list_of(state.text, (b"add", b"rem", b"orphan"))
    return b"r %b p %d%b" % (resource_text(subject, state.data64), state.data32, where)


def _list_of(text: bytes, names: tuple[bytes, ...]) -> bytes:
    """Return which list a record is on, if it is one worth telling."""
    found = next((name for name in names if b"list=" + name in text), b"")
    return b" " + found.upper() if found else b""


def _say_items(record: Record) -> None:
    for item in record.state.text.split(b" "):
        say(b"    " + item)


def host_status(options: Options) -> int:
    """Print the hosts of one lockspace, or of all."""
    if options.lockspace.name:
        _say_hosts(options.lockspace.name, options)
        return 0
    try:
        records = list(Connection().status(_WITH_LOCKSPACES))
    except DaemonUnreachable as error:
        return error.code
    except DaemonError:
        return 0
    for space in [one.subject for one in records]:
        if isinstance(space, Lockspace):
            say(b"lockspace %b" % space.name)
            try:
                _say_hosts(space.name, options)
            except DaemonError:
                continue  # it is gone meanwhile
    return 0


def _say_hosts(name: bytes, options: Options) -> None:
    for record in Connection().host_status(name):
        say(b"%d timestamp %d" % (record.state.data32, record.state.data64))
        if options.is_detailed:
            _say_items(record)


def renewal(options: Options) -> int:
    """Print the latest renewals of a lockspace."""
    if not options.lockspace.name:
        return -1
    for record in Connection().renewals(options.lockspace.name).records:
        say(record.state.text)
    return 0


def gets(options: Options) -> int:
    """Print the lockspaces, and with -h 1 the hosts of each."""
    try:
        spaces = Connection().get_lockspaces()
    except DaemonError as error:
        say(b"gets error %d" % error.code)
        return error.code
    for space in spaces:
        flags = b""
        if space.flags & LockspaceFlag.ADD:
            flags += b"ADD "
        if space.flags & LockspaceFlag.REM:
            flags += b"REM "
        say(b"s %b %b" % (lockspace_text(space, is_raw=True), flags))
        if options.number("h"):
            _say_host_states(space.name)
    return 0


def _say_host_states(name: bytes) -> None:
    try:
        hosts = Connection().get_hosts(name)
    except DaemonError as error:
        say(b"hosts not ready" if error.code == _AGAIN else b"hosts error %d" % error.code)
        return
    for host in hosts:
        state = _HOST_STATES.get(host.flags & 0xF, b"")
        numbers = (host.host_id, host.generation, host.timestamp)
        say(b"h %d gen %d timestamp %d %b" % (*numbers, state))


def log_dump(options: Options) -> int:
    """Print the log. Its size is the result, so that success is not 0."""
    log = Connection().log_dump()
    if not log:
        return -1
    say_many(log + b"\n")
    return len(log)


def version(options: Options) -> int:
    """Print the versions of this program and the daemon."""
    release = protocol = 0
    try:
        release, protocol = Connection().version()
    except DaemonError as error:
        say(b"daemon version error %d" % error.code)
    say(b"client version " + _release(RELEASE_NUMBER))
    say(b"daemon version " + _release(release))
    for side, number in ((b"client", PROTOCOL_VERSION), (b"daemon", protocol)):
        say(b"%b socket protocol %d.%d" % (side, number >> 16, number & 0xFFFF))
    return 0


def _release(number: int) -> bytes:
    parts = (number >> 24, number >> 16 & 0xFF, number >> 8 & 0xFF, number)
    return b"%d.%d.%d (0x%08x)" % parts


def shutdown(options: Options) -> int:
    """End the daemon."""
    force, wait = options.unsigned("f") & 0xFFFFFFFF, options.number("w")
    say(b"shutdown force %d wait %d" % (force - (force >> 31 << 32), wait))
    result = 0
    try:
        if wait:
            Connection().shutdown_wait(force=force)
        else:
            Connection().shutdown(force=force)
    except DaemonError as error:
        result = error.code
    say(b"shutdown done %d" % result)
    return result
