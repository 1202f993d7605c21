"""Reading and writing one resource lease that lies on one to four disks.

With one disk these are single effects. With more, a write must be acknowledged by a majority and a
read must succeed on one, as in Gafni & Lamport's Disk Paxos: any two majorities share a disk, so a
reader sees every acknowledged write. A disk counts as read only if its leader and every dblock in
it are valid (rule M6).

A timed-out write is only a slow one (rule M7): with one disk we wait for it without limit; with
more, its disk does not count, and the drivers submit nothing over it until it has landed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from paxoslease.disk.layout import Area
from paxoslease.disk.records import (
    NEVER_USED,
    HostSector,
    Leader,
    Where,
    pack_host_sector,
    pack_leader,
    parse_host_sector,
    parse_paxos,
)
from paxoslease.errors import BadRecord, DecisionStale, DiskTimeout, PaxosleaseError, StorageError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import (
    BallotImage,
    Gather,
    Landed,
    Protocol,
    Read,
    ReadBallot,
    Write,
)
from paxoslease.timing import Timing

_MAX_DISKS = 4
_NEAR_BYTES = 16_384  # a read of so much takes hardly longer than one of a sector


class Resource(NamedTuple):
    """A resource lease: its name (1 to 48 bytes) and its area on each of one to four disks."""

    name: bytes
    disks: tuple[Area, ...]


class Claim(NamedTuple):
    """A resource lease as seen by one host: where it is, and in which lockspace."""

    space: Lockspace
    resource: Resource
    timing: Timing
    host_id: int

    @property
    def sector_size(self) -> int:
        return self.resource.disks[0].sector_size

    def where(self, disk: int) -> Where:
        area = self.resource.disks[disk]
        return Where(area.path, area.offset)


class Ballot(NamedTuple):
    """What a ballot's read shows: the leader, and (host id, sector) of every host that wrote.

    With several disks a host stands in `hosts` once per disk that shows it. is_freed: the leader
    names an owner, which no majority confirms and which freed this version on one of the disks.
    """

    leader: Leader
    hosts: tuple[tuple[int, HostSector], ...]
    is_freed: bool = False

    def sector_of(self, host_id: int) -> HostSector:
        """Return a host's newest sector, a never used one if it has none."""
        sectors = [sector for owner, sector in self.hosts if owner == host_id]
        return max(sectors, key=_age, default=NEVER_USED)

    def newest(self) -> tuple[tuple[int, HostSector], ...]:
        """Return `hosts` with each host once, in its newest sector: a disk may have missed some."""
        owners = tuple(dict.fromkeys(owner for owner, _ in self.hosts))
        if len(owners) == len(self.hosts):
            return self.hosts
        return tuple((owner, self.sector_of(owner)) for owner in owners)


def _age(sector: HostSector) -> tuple[int, int, int, bool, bool]:
    """Return what grows with every write of a host's sector.

    With one ballot number a host writes phase 1, phase 2, then the mode block if it wants to share
    the lease, then RELEASED, and at last RELEASED without the mode block. After a conversion it
    also takes the mode block away before RELEASED; it owns the leader then, so that nobody gets as
    far as to look at mode blocks.
    """
    shares = sector.shared_generation is not None
    return (sector.lver, sector.mbal, sector.bal, sector.released, shares != sector.released)


def read_leader(claim: Claim) -> Protocol[Leader]:
    """Read the leader record. Raises BadRecord, DiskTimeout, DiskError."""
    leader, _ = yield from _read_leaders(claim)
    return leader


def _read_leaders(claim: Claim) -> Protocol[tuple[Leader, bool]]:
    areas = claim.resource.disks
    answers = yield from _all(
        tuple(Read(a.path, a.offset, a.sector_size, claim.timing.io_us) for a in areas)
    )
    return _merge_leaders(claim, answers)


def read_start(claim: Claim) -> Protocol[Ballot]:
    """Read what an attempt begins with: the leader, then the own sector (M11).

    When both lie close together they are read at once, with the sectors of the hosts between them;
    that is one of the orders in which a whole-area read may return them. A leader of other sizes
    than assumed comes back without any sector. Raises BadRecord, DiskTimeout, DiskError.
    """
    area = claim.resource.disks[0]
    if area.host_sector(claim.host_id) - area.offset >= _NEAR_BYTES:
        leader, is_freed = yield from _read_leaders(claim)
        if leader.sizes != area.sizes:
            return Ballot(leader, ())
        own = yield from read_host_sector(claim, claim.host_id)
        return Ballot(leader, ((claim.host_id, own),), is_freed)
    try:
        return (yield from read_ballot(claim, claim.host_id))
    except BadRecord as error:
        failure = error
    # What was taken for a host's sector may be something else in a lease of other sizes.
    leader = yield from read_leader(claim)
    if leader.sizes == area.sizes:
        raise failure
    return Ballot(leader, ())


def read_host_sector(claim: Claim, host_id: int) -> Protocol[HostSector]:
    """Read a host's sector, the newest of a majority. Raises BadRecord, DiskTimeout, DiskError."""
    areas = claim.resource.disks
    answers = yield from _all(
        tuple(
            Read(a.path, a.host_sector(host_id), a.sector_size, claim.timing.io_us) for a in areas
        )
    )
    sectors: list[tuple[int, HostSector]] = []
    errors: list[PaxosleaseError] = []
    for area, answer in zip(areas, answers, strict=True):
        if isinstance(answer, PaxosleaseError):
            errors.append(answer)
            continue
        try:
            sector = parse_host_sector(answer, Where(area.path, area.host_sector(host_id)))
        except BadRecord as error:
            errors.append(error)
        else:
            sectors.append((host_id, sector))
    _need_majority(claim, len(sectors), errors)
    return Ballot(_NO_LEADER, tuple(sectors)).sector_of(host_id)


def read_ballot(claim: Claim, num_hosts: int) -> Protocol[Ballot]:
    """Read leader and host sectors 1..num_hosts. Raises BadRecord, DiskTimeout, DiskError."""
    areas = claim.resource.disks
    answers = yield from _all(
        tuple(
            ReadBallot(a.path, a.offset, a.sector_size, num_hosts, claim.timing.io_us)
            for a in areas
        )
    )
    hosts: list[tuple[int, HostSector]] = []
    leaders: list[bytes | PaxosleaseError] = []
    for area, answer in zip(areas, answers, strict=True):
        if isinstance(answer, PaxosleaseError):
            leaders.append(answer)
            continue
        try:
            hosts.extend(_parse_hosts(area, answer))
        except BadRecord as error:
            leaders.append(error)
        else:
            leaders.append(answer.leader)
    leader, is_freed = _merge_leaders(claim, tuple(leaders))
    return Ballot(leader, tuple(hosts), is_freed)


def _parse_hosts(area: Area, image: BallotImage) -> list[tuple[int, HostSector]]:
    return [
        (host_id, parse_host_sector(data, Where(area.path, area.host_sector(host_id))))
        for host_id, data in image.hosts
    ]


def write_leader(claim: Claim, leader: Leader, not_after_us: int) -> Protocol[None]:
    """Write the leader record. Raises DecisionStale (not written), DiskError (unknown)."""
    data = pack_leader(leader, claim.sector_size)
    yield from _write(claim, tuple(a.offset for a in claim.resource.disks), data, not_after_us)


def write_own(claim: Claim, sector: HostSector, not_after_us: int) -> Protocol[None]:
    """Write the own host sector. Raises DecisionStale (not written), DiskError (unknown)."""
    data = pack_host_sector(sector, claim.sector_size)
    offsets = tuple(a.host_sector(claim.host_id) for a in claim.resource.disks)
    yield from _write(claim, offsets, data, not_after_us)


def write_at(
    claim: Claim, offsets: tuple[int, ...], data: bytes, not_after_us: int
) -> Protocol[None]:
    """Write one sector per disk, a majority of them at least (LVB)."""
    yield from _write(claim, offsets, data, not_after_us)


def read_at(claim: Claim, offsets: tuple[int, ...]) -> Protocol[bytes]:
    """Read one sector that write_at wrote (LVB), as most disks show it.

    Raises BadRecord when too few disks answer to know, DiskTimeout, DiskError.
    """
    areas = claim.resource.disks
    answers = yield from _all(
        tuple(
            Read(a.path, offset, a.sector_size, claim.timing.io_us)
            for a, offset in zip(areas, offsets, strict=True)
        )
    )
    good: list[bytes] = [a for a in answers if not isinstance(a, PaxosleaseError)]
    _need_majority(claim, len(good), [a for a in answers if isinstance(a, PaxosleaseError)])
    newest = max(good, key=good.count)
    if len(good) < len(areas) and 2 * good.count(newest) <= len(areas):
        # A disk that we cannot see decides which of these was acknowledged.
        raise claim.where(0).bad("LVB", "content", "a majority that agrees", "none", -222)
    return newest


def _all(effects: tuple[Read | ReadBallot, ...]) -> Protocol[tuple[Any, ...]]:
    """Perform one effect plainly, several together; failures are answers in both cases."""
    assert 1 <= len(effects) <= _MAX_DISKS
    if len(effects) > 1:
        answers: tuple[Any, ...] = yield Gather(effects)
        return answers
    try:
        answer = yield effects[0]
    except StorageError as error:
        return (error,)
    return (answer,)


def _write(
    claim: Claim, offsets: tuple[int, ...], data: bytes, not_after_us: int
) -> Protocol[None]:
    areas = claim.resource.disks
    writes = tuple(
        Write(a.path, offset, data, claim.timing.io_us, not_after_us)
        for a, offset in zip(areas, offsets, strict=True)
    )
    if len(writes) == 1:
        try:
            yield writes[0]
        except DiskTimeout as error:
            if not error.ticket:
                raise
            ticket = error.ticket
        else:
            return
        yield Landed(ticket)
        return
    answers: tuple[object, ...] = yield Gather(writes)
    while True:
        errors = [a for a in answers if isinstance(a, PaxosleaseError)]
        good = len(answers) - len(errors)
        if 2 * good > len(writes):
            return
        stale = next((e for e in errors if isinstance(e, DecisionStale)), None)
        waiting = [e for e in errors if isinstance(e, DiskTimeout) and e.ticket]
        if not waiting:
            raise stale if stale is not None and good == 0 else errors[0]
        which = answers.index(waiting[0])
        ticket = waiting[0].ticket
        del errors, waiting, stale
        try:
            yield Landed(ticket)
        except StorageError as error:
            answers = (*answers[:which], error, *answers[which + 1 :])
        else:
            answers = (*answers[:which], None, *answers[which + 1 :])


def _merge_leaders(claim: Claim, answers: tuple[object, ...]) -> tuple[Leader, bool]:
    """Return the leader that a majority of the disks shows, else the newest that any shows.

    Returned with it: Ballot.is_freed.
    Two disks agree when everything before the timestamp is equal (spec/disk-format.md 5.2); of
    agreeing records that differ behind it, one that says "owned" counts, since a release that did
    not reach a majority has not happened. No majority agrees after a write that reached a minority
    only, its host crashed perhaps. A leader is a hint and stands for a ballot that was won, so the
    newest is as good as any: what follows rests on the sectors (M12, M22).
    """
    found: list[Leader] = []
    errors: list[PaxosleaseError] = []
    for index, answer in enumerate(answers):
        if isinstance(answer, PaxosleaseError):
            errors.append(answer)
            continue
        assert isinstance(answer, bytes)
        try:
            found.append(_parse_leader(claim, index, answer))
        except BadRecord as error:
            errors.append(error)
    _need_majority(claim, len(found), errors)
    leader, is_exact = _agreed(found, len(answers))
    freed = [x for x in found if x.is_free and _version(x) == _version(leader)]
    return leader, bool(freed) and not (is_exact or leader.is_free)


def _version(leader: Leader) -> tuple[int, int, int]:
    return leader.lver, leader.owner_id, leader.owner_generation


def _agreed(found: list[Leader], disks: int) -> tuple[Leader, bool]:
    """Return the leader that counts, and whether a majority shows just that."""
    for candidate in found:
        same = [x for x in found if x[:11] == candidate[:11]]
        if 2 * len(same) > disks:
            exact = [x for x in same if x == candidate]
            if 2 * len(exact) > disks:
                return candidate, True
            return _newest(same), False
    return _newest(found), False


def _newest(leaders: list[Leader]) -> Leader:
    return max(leaders, key=lambda x: (x.lver, x.timestamp != 0, x.write_timestamp, x.write_id))


def _parse_leader(claim: Claim, disk: int, data: bytes) -> Leader:
    return parse_paxos(
        data, claim.where(disk), claim.space.name, claim.resource.name, claim.host_id
    )


def _need_majority(claim: Claim, good: int, errors: list[PaxosleaseError]) -> None:
    if 2 * good <= len(claim.resource.disks):
        raise errors[0]


_NO_LEADER = Leader(0, 0, 0, 0, 0, 0, 0, 0, 0, b"", b"", 0, 0, 0, 0, 0, 0, 0, 0)
