"""`sanlock direct`: work on the storage itself, without a daemon.

Source: spec/cli.md 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from paxoslease.cli.sanlock import (
    direct_dump,
    direct_leader,
    direct_leases,
    direct_storage,
)
from paxoslease.cli.sanlock.grammar import Options, parse_options
from paxoslease.cli.sanlock.output import say

_ACTIONS: Final[dict[bytes, Callable[[Options], int]]] = {
    b"init": direct_storage.init,
    b"format": direct_storage.format_index,
    b"lookup": direct_storage.lookup,
    b"update": direct_storage.update,
    b"rebuild": direct_storage.rebuild,
    b"read_leader": direct_leader.read_leader,
    b"write_leader": direct_leader.write_leader,
    b"acquire_id": direct_leases.acquire_id,
    b"renew_id": direct_leases.renew_id,
    b"release_id": direct_leases.release_id,
    b"acquire": direct_leases.acquire,
    b"release": direct_leases.release,
}
# The next word is what to walk over; options come behind it.
_WALKS: Final[dict[bytes, Callable[[bytes, Options], int]]] = {
    b"dump": direct_dump.dump,
    b"next_free": direct_dump.next_free,
}


def run(action: bytes, words: Sequence[bytes]) -> int:
    """Carry out an action. Returns its result. Raises BadCommandLine."""
    walk = _WALKS.get(action)
    if walk is not None:
        return walk(words[0], parse_options(words[1:])) if words else -1
    found = _ACTIONS.get(action)
    if found is None:
        say(b'direct action "%b" is unknown' % action)
        return -1
    return found(parse_options(words))
