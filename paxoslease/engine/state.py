"""What a process writes down of its memberships and leases for its successor.

Plain values, and their form in JSON: bytes as hex, numbers as numbers, no field more or less. What
is read back may be anything: it is checked as records from a disk are, and a value that is not
right raises BadState, naming the field. Whether it still counts is not judged here (adoption.py).

A state holds for one boot and one clock: `boot_identity` names both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from paxoslease.disk.layout import LEGAL_SIZES, NAME_BYTES, Sizes
from paxoslease.disk.records import (
    BITMAP_OFFSET,
    HostSector,
    Leader,
    Where,
    pack_host_sector,
    pack_leader,
    parse_delta,
    parse_host_sector,
    parse_paxos,
)
from paxoslease.engine.operation import now_us
from paxoslease.errors import BadRecord, BadState, ConfigError, LockspaceFailed
from paxoslease.protocol.leases import Lease
from paxoslease.protocol.membership import Member
from paxoslease.protocol.requests import Advertiser, HostEvent
from paxoslease.timing import Timing, check_timing

_U64: Final = (1 << 64) - 1
_I63: Final = (1 << 63) - 1
_PLACES_MAX: Final = 4
_HOSTS_MAX: Final = 2000


class MembershipState(NamedTuple):
    """A membership as it was at some moment.

    boot: `boot_identity` of that moment. path, offset, sizes: where the lockspace is. leader: the
    delta lease as last written, or tried; renewed_us, certain: see delta.Held. is_final: nothing
    was renewed after it (taken while everything stood still). advertiser: what was being told to
    others, None for nothing.
    """

    boot: str
    path: str
    offset: int
    sizes: Sizes
    name: bytes
    host_id: int
    host_name: bytes
    timing: Timing
    leader: Leader
    renewed_us: int
    certain: bool
    is_final: bool
    advertiser: Advertiser | None = None


class LeaseState(NamedTuple):
    """A lease that was held: its name, its place on each disk, and protocol.leases.Lease's fields.

    sizes: of the resource's areas, which may differ from the lockspace's.
    """

    lockspace: bytes
    name: bytes
    places: tuple[tuple[str, int], ...]
    sizes: Sizes
    leader: Leader
    own: HostSector
    shared: bool

    @property
    def lver(self) -> int:
        """Return the version that is held."""
        return self.leader.lver

    @property
    def host_id(self) -> int:
        """Return the host id under which it is held."""
        return self.leader.owner_id

    @property
    def generation(self) -> int:
        """Return the generation under which it is held."""
        return self.leader.owner_generation


def boot_identity() -> str:
    """Return what stays the same as long as CLOCK_BOOTTIME goes on: boot and time namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().decode("ascii").strip()
    try:
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:  # a kernel without time namespaces has one clock
        return boot


def membership_state(
    member: Member, advertiser: Advertiser | None, *, is_final: bool
) -> MembershipState:
    """Return the state of a membership that is good. Raises LockspaceFailed."""
    member.standing(now_us())
    held = member.held
    if member.is_leaving or held is None:
        raise LockspaceFailed(member.space.name, "it is being left")
    area = member.space.area
    return MembershipState(
        boot_identity(),
        area.path,
        area.offset,
        area.sizes,
        member.space.name,
        member.host_id,
        member.host_name,
        member.timing,
        held.leader,
        held.renewed_us,
        held.certain,
        is_final,
        advertiser,
    )


def lease_state(lease: Lease) -> LeaseState:
    """Return the state of a lease that is held."""
    disks = lease.claim.resource.disks
    return LeaseState(
        lease.claim.space.name,
        lease.claim.resource.name,
        tuple((area.path, area.offset) for area in disks),
        disks[0].sizes,
        lease.leader,
        lease.own,
        lease.shared,
    )


# -- writing -----------------------------------------------------------------------------------


def dump_membership(state: MembershipState) -> dict[str, Any]:
    """Return a membership's state in values that JSON knows."""
    return {
        **state._asdict(),
        "sizes": list(state.sizes),
        "name": state.name.hex(),
        "host_name": state.host_name.hex(),
        "timing": list(state.timing),
        "leader": _leader_hex(state.leader),
        "advertiser": None if state.advertiser is None else _dump_advertiser(state.advertiser),
    }


def _dump_advertiser(state: Advertiser) -> dict[str, Any]:
    return {
        "marks": [list(mark) for mark in state.marks],
        "event": list(state.event),
        "targets": list(state.targets),
        "event_end_us": state.event_end_us,
    }


def dump_lease(state: LeaseState) -> dict[str, Any]:
    """Return a lease's state in values that JSON knows."""
    own = pack_host_sector(state.own, state.sizes.sector_size)
    return {
        **state._asdict(),
        "lockspace": state.lockspace.hex(),
        "name": state.name.hex(),
        "places": [list(place) for place in state.places],
        "sizes": list(state.sizes),
        "leader": _leader_hex(state.leader),
        "own": own.rstrip(b"\0").hex(),
    }


def _leader_hex(leader: Leader) -> str:
    return pack_leader(leader, 0).hex()


# -- reading -----------------------------------------------------------------------------------


class _Fields:
    """The fields of one value, each taken out once and checked."""

    def __init__(self, what: str, value: object) -> None:
        self.what = what
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise BadState(what, "value", "an object", _short(value))
        self._left: dict[str, object] = dict(value)

    def bad(self, field: str, expected: str, found: object) -> BadState:
        return BadState(self.what, field, expected, _short(found))

    def take(self, field: str) -> object:
        if field not in self._left:
            raise self.bad(field, "a value", "missing")
        return self._left.pop(field)

    def number(self, field: str, low: int, high: int) -> int:
        return self.as_number(field, self.take(field), low, high)

    def as_number(self, field: str, value: object, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.bad(field, f"a number from {low} to {high}", value)
        return value

    def flag(self, field: str) -> bool:
        value = self.take(field)
        if not isinstance(value, bool):
            raise self.bad(field, "true or false", value)
        return value

    def text(self, field: str) -> str:
        return self.as_text(field, self.take(field))

    def as_text(self, field: str, value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= 4096 or "\0" in value:
            raise self.bad(field, "a text of 1 to 4096 characters", value)
        return value

    def octets(self, field: str, longest: int) -> bytes:
        value = self.take(field)
        try:
            if not isinstance(value, str) or len(value) > 2 * longest:
                raise ValueError
            return bytes.fromhex(value)
        except ValueError:
            raise self.bad(field, f"hex of at most {longest} bytes", value) from None

    def name(self, field: str) -> bytes:
        value = self.octets(field, NAME_BYTES)
        if not value or b"\0" in value:
            raise self.bad(field, f"a name of 1 to {NAME_BYTES} bytes", value)
        return value

    def items(self, field: str, shortest: int, longest: int) -> list[object]:
        return self.as_items(field, self.take(field), shortest, longest)

    def as_items(self, field: str, value: object, shortest: int, longest: int) -> list[object]:
        if not isinstance(value, list) or not shortest <= len(value) <= longest:
            raise self.bad(field, f"a list of {shortest} to {longest}", value)
        return value

    def numbers(self, field: str, value: object, count: int) -> tuple[int, ...]:
        items = self.as_items(field, value, count, count)
        return tuple(self.as_number(field, item, 0, _U64) for item in items)

    def sizes(self, field: str) -> Sizes:
        pair = self.numbers(field, self.take(field), 2)
        if pair not in LEGAL_SIZES:
            raise self.bad(field, "a legal pair of sizes", pair)
        return Sizes(*pair)

    def end(self) -> None:
        """Refuse what nobody asked for: it was written by somebody who means more by it."""
        for field, value in self._left.items():
            raise self.bad(field, "nothing of that name", value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def load_membership(value: object) -> MembershipState:
    """Return the state that `dump_membership` made this of. Raises BadState."""
    fields = _Fields("state of a membership", value)
    name = fields.name("name")
    sizes = fields.sizes("sizes")
    seconds = fields.numbers("timing", fields.take("timing"), 2)
    try:
        timing = check_timing(Timing(*seconds))
    except ConfigError as error:
        raise fields.bad("timing", error.reason, seconds) from None
    host_id = fields.number("host_id", 1, sizes.max_hosts)
    raw = fields.octets("leader", BITMAP_OFFSET)
    try:
        leader = parse_delta(raw.ljust(BITMAP_OFFSET, b"\0"), Where("", 0), name)
    except BadRecord as error:
        raise fields.bad("leader", f"a delta lease of the lockspace ({error.field})", raw) from None
    if leader.owner_id != host_id or leader.is_free or leader.sizes != sizes:
        raise fields.bad("leader", f"a delta lease held by host {host_id}", tuple(leader))
    told = fields.take("advertiser")
    state = MembershipState(
        fields.text("boot"),
        fields.text("path"),
        fields.number("offset", 0, _I63),
        sizes,
        name,
        host_id,
        fields.name("host_name"),
        timing,
        leader,
        fields.number("renewed_us", 0, _I63),
        fields.flag("certain"),
        fields.flag("is_final"),
        None if told is None else _load_advertiser(told, name, host_id, sizes, timing),
    )
    fields.end()
    return state


def _load_advertiser(
    value: object, name: bytes, host_id: int, sizes: Sizes, timing: Timing
) -> Advertiser:
    fields = _Fields("state of what a membership tells others", value)
    marks: list[tuple[int, int]] = []
    for item in fields.items("marks", 0, _HOSTS_MAX):
        host, end_us = fields.numbers("marks", item, 2)
        marks.append((fields.as_number("marks", host, 1, sizes.max_hosts), end_us))
    targets = [
        fields.as_number("targets", item, 1, sizes.max_hosts)
        for item in fields.items("targets", 0, _HOSTS_MAX)
    ]
    state = Advertiser(
        name,
        host_id,
        sizes.max_hosts,
        timing.bitmap_us,
        tuple(marks),
        HostEvent(*fields.numbers("event", fields.take("event"), 3)),
        tuple(targets),
        fields.number("event_end_us", 0, _I63),
    )
    fields.end()
    return state


def load_lease(value: object) -> LeaseState:
    """Return the state that `dump_lease` made this of. Raises BadState."""
    fields = _Fields("state of a lease", value)
    lockspace, name, sizes = fields.name("lockspace"), fields.name("name"), fields.sizes("sizes")
    places: list[tuple[str, int]] = []
    for item in fields.items("places", 1, _PLACES_MAX):
        path, offset = fields.as_items("places", item, 2, 2)
        places.append((fields.as_text("places", path), fields.as_number("places", offset, 0, _I63)))
    raw = fields.octets("leader", BITMAP_OFFSET)
    try:
        padded = raw.ljust(BITMAP_OFFSET, b"\0")
        leader = parse_paxos(padded, Where("", 0), lockspace, name, 0)
    except BadRecord as error:
        raise fields.bad("leader", f"a leader record of the lease ({error.field})", raw) from None
    if leader.is_free or not 1 <= leader.owner_id <= sizes.max_hosts or leader.sizes != sizes:
        raise fields.bad("leader", "the record of a lease that is held", tuple(leader))
    raw = fields.octets("own", sizes.sector_size)
    try:
        own = parse_host_sector(raw.ljust(sizes.sector_size, b"\0"), Where("", 0))
    except BadRecord as error:
        raise fields.bad("own", f"a host sector ({error.field})", raw) from None
    if own.lver < leader.lver:
        raise fields.bad("own", f"a host sector of version {leader.lver}", raw)
    shared = fields.flag("shared")
    if shared and own.shared_generation != leader.owner_generation:
        raise fields.bad("own", "a sector that shares the lease", raw)
    state = LeaseState(lockspace, name, tuple(places), sizes, leader, own, shared)
    fields.end()
    return state
