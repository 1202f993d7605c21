"""The world of one resource lease: a disk, hosts that want the lease, and everything in flight.

A world is one integer: the sectors of the lease (leader and one per host, as numbers of their
bytes), the local state of every host's process, the writes in flight after their time-out, how
many faults are left to happen, and what the properties must remember. `LeaseWorld.steps` returns
every world that can follow.

Time is abstract. The clock stands still, random numbers are 0, sleeping costs nothing. A host is
seen as it is: as just renewed while it lives, as having stood still for longer than `dead` as soon
as it crashed; for what comes between those two it is simply slow. A crashed host is reset, and with
it goes what it had in flight. Whether the waits are long enough for that is not asked here; the
simulation has the clocks.

What one host alone can see or change is done together with the step before it: reading its own
sector (nobody else writes it; a world in which somebody does is refused), and reading delta leases
where nobody crashes.
"""

from __future__ import annotations

from typing import Any

from paxoslease.disk.records import (
    HOST_SECTOR_BYTES,
    LEADER_BYTES,
    Leader,
    pack_leader,
    paxos_at_format,
    unpack_leader,
)
from paxoslease.protocol.effects import (
    BallotImage,
)
from paxoslease.simulation.explorer import faults
from paxoslease.simulation.explorer.lives import Program
from paxoslease.simulation.explorer.processes import (
    BALLOT,
    BEYOND,
    CHOOSE,
    DELTA,
    LOCAL_BITS,
    LOCAL_MASK,
    OBSERVE,
    OWN,
    READ,
    SECTOR_BITS,
    SECTOR_MASK,
    SMALL_BITS,
    SMALL_MASK,
    WRITE,
    Op,
    Processes,
)
from paxoslease.simulation.explorer.values import (
    CONFLICT,
    RESOURCE,
    REUSE,
    SPACE,
    TWO_OWNERS,
    Bounds,
    History,
    InFlight,
    Left,
    Life,
    Step,
    Table,
    delta_sector,
    seen,
)
from paxoslease.simulation.explorer.words import describe_disk, describe_step


class LeaseWorld(Processes):
    """All worlds of `programs`, one host each with ids 1, 2, ..., within `bounds`."""

    def __init__(
        self, programs: tuple[Program, ...], bounds: Bounds, *, histories: bool = False
    ) -> None:
        super().__init__(programs, bounds, histories=histories)
        self.flights = Table(SMALL_BITS)
        self.left = Table(SMALL_BITS)
        self._histories = Table(SMALL_BITS)
        self._progress = Table(SMALL_BITS)
        self._leaders: dict[int, Leader] = {}
        self._faulty = any(bounds[2:8]) or bounds.kills > 0
        self._lay_out()

    def _lay_out(self) -> None:
        """Give every part of a world its bits."""
        disk_bits = (len(self.programs) + 1) * SECTOR_BITS
        self.processes = tuple(self.place_of.items())
        end = disk_bits + len(self.programs) * LOCAL_BITS
        self._flight_place, self._left_place, self._history_place = (
            end + i * SMALL_BITS for i in range(3)
        )
        self._progress_place = {h: end + (2 + h) * SMALL_BITS for h in self.hosts}

    # -- the first world ---------------------------------------------------------------------

    def initial(self) -> int:
        """Return the world after format and join: a free lease that was never used."""
        sizes = RESOURCE.disks[0].sizes
        free = paxos_at_format(SPACE.name, RESOURCE.name, sizes, len(self.programs))
        zeros = self.sectors.number(bytes(sizes.sector_size))
        b = self.bounds
        left = Left(*(getattr(b, fault) for fault in Left._fields))
        history = History(0, ((0, 0),) * (b.versions + 1))
        firsts = (
            zeros,
            self.flights.number(()),
            self.left.number(left),
            self._histories.number(history),
            self._progress.number(()),
        )
        assert not any(firsts), "fields that are zero stand for these"
        world = self.sectors.number(pack_leader(free, sizes.sector_size))
        for host_id, place in self.processes:
            world |= self.start(Life(host_id, 1, False)) << place
        return world

    # -- parts of a world --------------------------------------------------------------------

    def local(self, world: int, host_id: int) -> int:
        """Return the local state of a host."""
        return world >> self.place_of[host_id] & LOCAL_MASK

    def life_in(self, world: int, host_id: int) -> Life:
        """Return the life of a host."""
        return self.lives[self.locals.begun[self.local(world, host_id)]]

    def owners(self, world: int) -> tuple[tuple[int, int], ...]:
        """Return who owns the lease: (host id, version) each, the version negative if shared."""
        owners = ((h, self.ops[world >> place & LOCAL_MASK].owner) for h, place in self.processes)
        return tuple(owner for owner in owners if owner[1])

    def in_flight(self, world: int) -> tuple[InFlight, ...]:
        """Return the writes that timed out and have not landed."""
        flights: tuple[InFlight, ...] = self.flights.values[
            world >> self._flight_place & SMALL_MASK
        ]
        return flights

    def with_flights(self, world: int, flights: tuple[InFlight, ...]) -> int:
        """Return the world with other writes in flight."""
        before = world >> self._flight_place & SMALL_MASK
        return world + (
            (self.flights.number(tuple(sorted(flights))) - before) << self._flight_place
        )

    def left_in(self, world: int) -> Left:
        """Return the faults that may still happen."""
        left: Left = self.left.values[world >> self._left_place & SMALL_MASK]
        return left

    def with_less(self, world: int, fault: str) -> int:
        """Return the world in which one fault of that kind less may happen."""
        before = world >> self._left_place & SMALL_MASK
        after = self.left.number(self.left.values[before].less(fault))
        return world + ((after - before) << self._left_place)

    def with_local(self, world: int, host_id: int, q: int) -> int:
        """Return the world with a host in another local state."""
        return world + ((q - self.local(world, host_id)) << self.place_of[host_id])

    def without_read(self, world: int, host_id: int) -> int:
        """Return the world in which a host's area read under way is forgotten."""
        place = self._progress_place[host_id]
        return world - ((world >> place & SMALL_MASK) << place)

    def disk_in(self, world: int) -> tuple[bytes, ...]:
        """Return the leader's sector and every host's."""
        return tuple(
            self.sectors.values[world >> i * SECTOR_BITS & SECTOR_MASK]
            for i in range(len(self.programs) + 1)
        )

    def is_idle(self, world: int) -> bool:
        """Tell whether every live host stands before an attempt, with nothing in flight."""
        if world >> self._flight_place & SMALL_MASK:
            return False
        idle = self.idle
        return all((world >> place & LOCAL_MASK) in idle for _, place in self.processes)

    def value_of(self, world: int) -> tuple[Any, ...]:
        """Return a world by its content: equal for equal worlds of different models."""
        keys = self.locals.keys
        return (
            self.disk_in(world),
            tuple(
                (
                    self.life_in(world, h),
                    keys[self.locals.key_of[self.local(world, h)]].state,
                    self._read_so_far(world, h),
                )
                for h in self.hosts
            ),
            tuple(f._replace(data=self.sectors.values[f.data]) for f in self.in_flight(world)),
            self.left_in(world),
            self._histories.values[world >> self._history_place & SMALL_MASK],
        )

    def _read_so_far(self, world: int, host_id: int) -> tuple[bytes | None, ...]:
        parts = self._progress.values[world >> self._progress_place[host_id] & SMALL_MASK]
        return tuple(None if part < 0 else self.sectors.values[part] for part in parts)

    def words_of(self, world: int) -> str:
        """Return what is on the disk, in words."""
        return describe_disk(self, world)

    def words_of_step(self, world: int, step: Step) -> str:
        """Return a step from `world` in words."""
        return describe_step(self, world, step)

    # -- steps -------------------------------------------------------------------------------

    def steps(self, world: int) -> list[Step]:
        """Return every step that can come next."""
        found = self.calm_steps(world)
        if world >> self._flight_place & SMALL_MASK or self._faulty:
            faults.add_steps(self, world, found)
        return found

    def calm_steps(self, world: int, *, beyond: bool = False) -> list[Step]:
        """Return every step that is no fault and not the landing of a late write.

        `beyond`: also the writes that are out of bounds.
        """
        found: list[Step] = []
        for host_id, place in self.processes:
            p = world >> place & LOCAL_MASK
            op = self.ops[p]
            kind = op.kind
            if kind == READ:
                answer = world >> op.place & SECTOR_MASK
                q = op.next.get(answer)
                if q is None:
                    q = self.advance(p, answer, self.sectors.values[answer])
                found.append(self.moved(world, host_id, p, q, "read"))
            elif kind == BALLOT:
                self._read_area(world, host_id, p, op, found)
            elif kind == WRITE:
                found.append(self._written(world, host_id, p, op))
            elif kind == BEYOND:
                if beyond:
                    found.append(self._written(world, host_id, p, op))
            else:
                self._seldom(world, host_id, p, op, found)
        return found

    def moved(
        self, world: int, host_id: int, p: int, q: int, action: str, bad: tuple[str, ...] = ()
    ) -> Step:
        """Return the step that brings a process from p to q, its private reads included."""
        op = self.ops[q]
        while op.kind == OWN and not self._own_in_flight(world, host_id):
            answer = world >> op.place & SECTOR_MASK
            r = op.next.get(answer)
            q = r if r is not None else self.advance(q, answer, self.sectors.values[answer])
            op = self.ops[q]
        after = world + ((q - p) << self.place_of[host_id])
        held = self.ops[p].owner
        if op.owner and op.owner != held:
            return self._granted(after, host_id, op.owner, abs(op.owner) == abs(held), action, bad)
        return Step(after, host_id, action, bad)

    def _own_in_flight(self, world: int, host_id: int) -> bool:
        if not world >> self._flight_place & SMALL_MASK:
            return False
        return any(f.sector == f.host_id == host_id for f in self.in_flight(world))

    def _granted(
        self, world: int, host_id: int, lver: int, again: bool, action: str, bad: tuple[str, ...]
    ) -> Step:
        """Return the step in which a lease is granted, or goes on in the other mode (`again`)."""
        number = world >> self._history_place & SMALL_MASK
        history: History = self._histories.values[number]
        if 0 < lver <= history.granted and not again:
            bad = (*bad, REUSE)
        elif lver > history.granted:
            after = self._histories.number(history._replace(granted=lver))
            world += (after - number) << self._history_place
        owners = self.owners(world)
        if len(owners) > 1 and any(version > 0 for _, version in owners):
            bad = (*bad, TWO_OWNERS)
        return Step(world, host_id, action, bad)

    def _read_area(self, world: int, host_id: int, p: int, op: Op, found: list[Step]) -> None:
        """Read leader and host sectors, at once or one of them."""
        if not self.bounds.by_sector:
            disk = world & op.data
            q = op.next.get(disk)
            if q is None:
                q = self.advance(p, disk, self._image(disk, op.sector))
            found.append(self.moved(world, host_id, p, q, "read area"))
            return
        place = self._progress_place[host_id]
        number = world >> place & SMALL_MASK
        parts = self._progress.values[number] or (-1,) * op.sector
        for sector, part in enumerate(parts):
            if part >= 0 or sector == host_id:
                continue
            content = world >> sector * SECTOR_BITS & SECTOR_MASK
            after = (*parts[:sector], content, *parts[sector + 1 :])
            if after.count(-1) > (host_id < op.sector):
                more = self._progress.number(after)
                found.append(Step(world + ((more - number) << place), host_id, f"read {sector}"))
                continue
            # At most the own sector is missing, which nobody else writes.
            own = world >> host_id * SECTOR_BITS & SECTOR_MASK
            disk = sum(
                (own if i == host_id else content) << i * SECTOR_BITS
                for i, content in enumerate(after)
            )
            q = self.advance(p, disk, self._image(disk, op.sector))
            found.append(self.moved(world - (number << place), host_id, p, q, f"read {sector}"))

    def _image(self, disk: int, count: int) -> BallotImage:
        sectors = self.disk_in(disk)[:count]
        hosts = tuple(
            (h, sectors[h][:HOST_SECTOR_BYTES]) for h in range(1, count) if any(sectors[h])
        )
        return BallotImage(sectors[0][:LEADER_BYTES], hosts)

    def _written(self, world: int, host_id: int, p: int, op: Op) -> Step:
        """Return the step in which a write lands and is acknowledged."""
        world, bad = self.landed(world, host_id, op.sector, op.data)
        q = op.next.get(-1)
        if q is None:
            q = self.advance(p, -1, None)
        return self.moved(world, host_id, p, q, "write", bad)

    def landed(
        self, world: int, host_id: int, sector: int, data: int
    ) -> tuple[int, tuple[str, ...]]:
        """Return the world in which a write has reached the disk, and what that violates."""
        place = sector * SECTOR_BITS
        before = world >> place & SECTOR_MASK
        after = world + ((data - before) << place)
        if sector:
            return after, ()
        leader = self._leader(data)
        if leader.is_free:
            return after, ()
        old = self._leader(before)
        if leader.owner_id == host_id and old.owner_id not in (0, host_id) and not old.is_free:
            owner = self.life_in(world, old.owner_id)
            if owner.crashed or owner.generation > old.owner_generation:
                self.sometimes["takeover", host_id] += 1
        return self._remember_owner(after, leader)

    def _leader(self, number: int) -> Leader:
        leader = self._leaders.get(number)
        if leader is None:
            leader = self._leaders[number] = unpack_leader(self.sectors.values[number])
        return leader

    def _remember_owner(self, world: int, leader: Leader) -> tuple[int, tuple[str, ...]]:
        number = world >> self._history_place & SMALL_MASK
        history: History = self._histories.values[number]
        owner = (leader.owner_id, leader.owner_generation)
        if leader.lver > self.bounds.versions:
            return world, ()
        known = history.owners[leader.lver]
        if known == owner:
            return world, ()
        if known != (0, 0):
            return world, (CONFLICT,)
        owners = (*history.owners[: leader.lver], owner, *history.owners[leader.lver + 1 :])
        after = self._histories.number(history._replace(owners=owners))
        return world + ((after - number) << self._history_place), ()

    def _seldom(self, world: int, host_id: int, p: int, op: Op, found: list[Step]) -> None:
        """Add the steps of local states that are rare."""
        if op.kind == OWN:
            content = world >> op.place & SECTOR_MASK
            q = self.advance(p, content, self.sectors.values[content])
            found.append(self.moved(world, host_id, p, q, "read own"))
        elif op.kind in (OBSERVE, DELTA):
            number = self.locals.begun[world >> op.place & LOCAL_MASK]
            they = self.lives[number]
            answer = seen(they) if op.kind == OBSERVE else delta_sector(they[0], they[1])
            q = self.advance(p, number, answer)
            action = "observe" if op.kind == OBSERVE else "read delta"
            found.append(self.moved(world, host_id, p, q, action))
        elif op.kind == CHOOSE:
            for choice in range(op.data):
                q = self.advance(p, choice, choice)
                found.append(self.moved(world, host_id, p, q, f"choose {choice}"))
