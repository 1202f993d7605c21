"""`sanlock client` actions on resource indexes.

Source: spec/cli.md 4.7.
"""

from __future__ import annotations

from collections.abc import Callable

from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say
from paxoslease.cli.sanlock.steps import INVALID, result_of
from paxoslease.cli.sanlock.strings import parse_rentry
from paxoslease.client import Connection
from paxoslease.wire.sanlock import Rentry, Rindex


def wanted_index(options: Options) -> Rindex:
    """Return the index that -x names, with the sizes given."""
    return options.rindex._replace(flags=options.size_flags)


def wanted_entry(options: Options) -> Rentry:
    """Return the entry that -e names."""
    return parse_rentry(options.text("e"))


def say_entry(entry: Rentry) -> None:
    """Print an entry that was found."""
    say(b"name %b offset %d" % (entry.name or b"-", entry.offset))


def _done(action: bytes, options: Options, work: Callable[[], None]) -> int:
    is_complete = options.rindex.lockspace and options.rindex.disk.path
    result = result_of(work) if is_complete else INVALID
    say(b"%b done %d" % (action, result))
    return result


def format_index(options: Options) -> int:
    """Format an index, whatever is there."""
    return _done(b"format", options, lambda: Connection().format_rindex(wanted_index(options)))


def rebuild(options: Options) -> int:
    """Make an index anew."""
    return _done(b"rebuild", options, lambda: Connection().rebuild_rindex(wanted_index(options)))


def update(options: Options) -> int:
    """Add or remove an entry."""

    def work() -> None:
        Connection().update_rindex(
            wanted_index(options), wanted_entry(options), remove=options.has("z")
        )

    return _done(b"update", options, work)


def delete(options: Options) -> int:
    """Remove a resource."""

    def work() -> None:
        Connection().delete_resource(wanted_index(options), wanted_entry(options))

    return _done(b"delete_resource", options, work)


def lookup(options: Options) -> int:
    """Print an entry."""
    found: list[Rentry] = []

    def work() -> None:
        found.append(Connection().lookup_rindex(wanted_index(options), wanted_entry(options)))

    result = _done(b"lookup", options, work)
    for entry in found:
        say_entry(entry)
    return result


def create(options: Options) -> int:
    """Make a resource in an index."""
    made: list[int] = []

    def work() -> None:
        name = wanted_entry(options).name
        made.append(Connection().create_resource(wanted_index(options), name))

    result = _done(b"create_resource", options, work)
    for offset in made:
        say(b"offset %d" % offset)
    return result
