"""Resource indexes on real devices and files."""

from __future__ import annotations

import os
from typing import NamedTuple, TypeVar

from paxoslease.disk.layout import PROBE_BYTES, RINDEX_LEASE_NAME, Area, check_name
from paxoslease.disk.records import Where, cut_name, parse_rindex_header
from paxoslease.engine.host import Membership, engine
from paxoslease.errors import ConfigError
from paxoslease.protocol import rindex
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.timing import Timing

T = TypeVar("T")


class IndexEntry(NamedTuple):
    """A resource in an index: its name, and its offset in bytes on the index's device."""

    name: str
    offset: int


def lookup(path: str, name: str | None = None, *, offset: int = 0) -> list[IndexEntry]:
    """Return the resource of a name, or all resources, of the index at `offset`.

    Needs no membership. Raises RindexError (not found), BadRecord, storage errors.
    """
    raw = None if name is None else check_name("resource name", name)
    found = engine().run_once(_lookup(os.fspath(path), offset, raw), os.fspath(path))
    return [IndexEntry(_text(one.name), one.offset) for one in found]


def _lookup(path: str, offset: int, name: bytes | None) -> Protocol[tuple[rindex.Located, ...]]:
    timing = Timing()
    data = yield Read(path, offset, PROBE_BYTES, timing.io_us)
    header = parse_rindex_header(data, Where(path, offset), None)
    assert header.sizes is not None
    area = Area(path, offset, header.sizes)
    # A bystander reads no delta lease, so it need not know where the lockspace is.
    index = rindex.Index(Lockspace(cut_name(header.lockspace_name), area), area, timing, 0)
    if name is None:
        return (yield from rindex.list_all(index))
    return ((yield from rindex.lookup(index, name)),)


def create(
    membership: Membership,
    path: str,
    name: str,
    *,
    offset: int,
    num_hosts: int,
    until_us: int | None,
) -> int:
    """Create a resource in an index; returns its offset. Raises as rindex.create, ConfigError."""
    raw = check_name("resource name", name)
    if raw == RINDEX_LEASE_NAME:
        raise ConfigError("resource name", f"'{name}' is the name of the index's own lease")

    def work() -> Protocol[int]:
        index = yield from _open(membership, path, offset)
        made = yield from rindex.create(index, raw, num_hosts, until_us=until_us)
        return made.offset

    return _run(membership, path, work())


def delete(
    membership: Membership, path: str, name: str, *, offset: int, until_us: int | None
) -> int:
    """Delete a resource from an index; returns where it was. Raises as rindex.delete."""
    raw = check_name("resource name", name)

    def work() -> Protocol[int]:
        index = yield from _open(membership, path, offset)
        gone = yield from rindex.delete(index, raw, until_us=until_us)
        return gone.offset

    return _run(membership, path, work())


def rebuild(
    membership: Membership, path: str, *, offset: int, until_us: int | None
) -> rindex.Rebuilt:
    """Make an index anew from what lies behind it. Raises as rindex.rebuild."""
    owner = engine()
    size_bytes = owner.files.hold(path).size_bytes
    owner.files.drop(path)

    def work() -> Protocol[rindex.Rebuilt]:
        index = yield from _open(membership, path, offset)
        return (yield from rindex.rebuild(index, size_bytes, until_us=until_us))

    return _run(membership, path, work())


def _open(membership: Membership, path: str, offset: int) -> Protocol[rindex.Index]:
    member = membership.member
    return (yield from rindex.open_index(member.space, path, offset, member.timing, member.host_id))


def _run(membership: Membership, path: str, protocol: Protocol[T]) -> T:
    owner = engine()
    file = owner.files.hold(path)
    try:
        return membership.start_protocol(protocol, {path: file}).result()
    finally:
        owner.files.drop(path)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
