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

from collections import Counter
from functools import partial
from typing import Any, Final, NamedTuple

from paxoslease.disk.layout import SIZES_512
from paxoslease.disk.records import (
    HOST_SECTOR_BYTES,
    LEADER_BYTES,
    Leader,
    pack_leader,
    paxos_at_format,
    unpack_leader,
)
from paxoslease.protocol.disks import Claim
from paxoslease.protocol.effects import (
    BallotImage,
    Landed,
    Membership,
    Notify,
    Now,
    Observe,
    Protocol,
    Random,
    Read,
    ReadBallot,
    Sleep,
    Standing,
    Write,
)
from paxoslease.simulation import explore_faults
from paxoslease.simulation.explore_lives import Choose, Ended, Granted, Program, life
from paxoslease.simulation.explore_locals import DONE, Given, LocalStates
from paxoslease.simulation.explore_values import (
    CONFLICT,
    NOW_US,
    RESOURCE,
    REUSE,
    SPACE,
    TIMING,
    TWO_OWNERS,
    Bounds,
    Crashed,
    History,
    InFlight,
    Left,
    Life,
    Step,
    Table,
    corpse,
    delta_sector,
    host_sector,
    seen,
)
from paxoslease.simulation.explore_words import leader_in_words, sector_in_words

_SECTOR_BITS: Final = 14
_LOCAL_BITS: Final = 22
_SMALL_BITS: Final = 16
_SECTOR_MASK: Final = (1 << _SECTOR_BITS) - 1
_LOCAL_MASK: Final = (1 << _LOCAL_BITS) - 1
_SMALL_MASK: Final = (1 << _SMALL_BITS) - 1


# What a local state waits for. OWN is a read of the own sector, BEYOND a write that is out of
# bounds; DONE_WITH waits for nothing.
READ, BALLOT, WRITE, OWN, OBSERVE, DELTA, LANDED, CHOOSE, CRASHED, BEYOND, DONE_WITH = range(11)


class Op(NamedTuple):
    """A local state, prepared: what it waits for and what is remembered of its answers.

    next: local states by the number of the answer. place: bit position of the sector, or of the
    process looked at. data: number of the bytes to be written, ticket, or number of choices.
    owner: the version that the process owns here, 0 for none.
    """

    kind: int
    next: dict[int, int]
    host_id: int
    owner: int = 0
    sector: int = 0
    place: int = 0
    data: int = 0


class LeaseWorld:
    """All worlds of `programs`, one host each with ids 1, 2, ..., within `bounds`.

    sometimes: what was met in local transitions, to prove that a search is not vacuous:
    ("grant", host), ("adopt", host), ("takeover", host), ("ended", host, error).
    """

    WRITE = WRITE
    LANDED = LANDED
    READS = frozenset((READ, BALLOT, OWN, DELTA))

    def __init__(
        self, programs: tuple[Program, ...], bounds: Bounds, *, histories: bool = False
    ) -> None:
        self.programs = programs
        self.bounds = bounds
        self.hosts = range(1, len(programs) + 1)
        self.sectors = Table(_SECTOR_BITS)
        self.flights = Table(_SMALL_BITS)
        self.left = Table(_SMALL_BITS)
        self.sometimes: Counter[tuple[Any, ...]] = Counter()
        self.locals = LocalStates(self._resolve, histories=histories)
        self.ops: list[Op] = []
        self.lives: list[Life] = []
        self._faulty = any(bounds[2:8])
        self._starts: dict[Life, int] = {}
        self._idle: set[int] = set()
        self._histories = Table(_SMALL_BITS)
        self._progress = Table(_SMALL_BITS)
        self._leaders: dict[int, Leader] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        """Give every part of a world its bits."""
        disk_bits = (len(self.programs) + 1) * _SECTOR_BITS
        self.disk_mask = (1 << disk_bits) - 1
        self.processes = tuple((h, disk_bits + (h - 1) * _LOCAL_BITS) for h in self.hosts)
        self.place_of = dict(self.processes)
        end = disk_bits + len(self.programs) * _LOCAL_BITS
        self._flight_place, self._left_place, self._history_place = (
            end + i * _SMALL_BITS for i in range(3)
        )
        self._progress_place = {h: end + (2 + h) * _SMALL_BITS for h in self.hosts}

    # -- the first world ---------------------------------------------------------------------

    def initial(self) -> int:
        """Return the world after format and join: a free lease that was never used."""
        sizes = RESOURCE.disks[0].sizes
        free = paxos_at_format(SPACE.name, RESOURCE.name, sizes, len(self.programs))
        zeros = self.sectors.number(bytes(sizes.sector_size))
        b = self.bounds
        left = Left(b.crashes, b.rejoins, b.timeouts, b.read_timeouts, b.errors, b.pauses)
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

    def start(self, begun: Life) -> int:
        """Return the local state in which a host's life begins, or in which a corpse lies."""
        p = self._starts.get(begun)
        if p is None:
            self.lives.append(begun)
            p = self.locals.begin(partial(self._process, begun))
            self._starts[begun] = p
            self._idle.add(p)
            self._prepare()
        return p

    def _process(self, begun: Life) -> Protocol[None]:
        if begun.crashed:
            return corpse()
        claim = Claim(SPACE, RESOURCE, TIMING, begun.host_id)
        return life(self.programs[begun.host_id - 1], claim, self.bounds.attempts)

    # -- local states ------------------------------------------------------------------------

    def _resolve(self, number: int, effect: Any) -> Given | None:
        """Answer an effect that needs no world, None for the others."""
        me = self.lives[number]
        match effect:
            case Now():
                return Given(NOW_US)
            case Random():
                return Given(0)
            case Sleep():
                return Given()
            case Membership():
                return Given(Standing(me.host_id, me.generation, NOW_US + TIMING.fail_us))
            case Notify(Granted(lver)):
                self.sometimes["grant", me.host_id] += 1
                return Given(mark=lver)
            case Notify(Ended(error)):
                self.sometimes["ended", me.host_id, error] += 1
                return Given()
            case Notify():
                return Given()
            case Observe(host_id) if not self.bounds.crashes:
                return Given(seen(Life(host_id, 1, False)))
            case Read("lockspace", offset) if not self.bounds.crashes:
                return Given(delta_sector(offset // SIZES_512.sector_size + 1, 1))
        return None

    def _prepare(self) -> None:
        """Make an Op of every new local state."""
        for p in range(len(self.ops), len(self.locals.effect)):
            assert p < _LOCAL_MASK, "widen the field of local states"
            me = self.lives[self.locals.begun[p]]
            owner = self.locals.mark[p] or 0
            assert isinstance(owner, int)
            op = Op(DONE_WITH, {}, me.host_id, owner)
            self.ops.append(self._prepared(op, self.locals.effect[p]))

    def _prepared(self, op: Op, effect: Any) -> Op:
        if effect is DONE:
            return op
        match effect:
            case Read("lockspace", offset):
                host_id = offset // SIZES_512.sector_size + 1
                return op._replace(kind=DELTA, place=self.place_of[host_id])
            case Read("resource", offset):
                sector = self._sector_at(offset)
                kind = OWN if sector == op.host_id else READ
                return op._replace(kind=kind, sector=sector, place=sector * _SECTOR_BITS)
            case ReadBallot():
                return op._replace(kind=BALLOT)
            case Write("resource", offset, data):
                return self._prepared_write(op, self._sector_at(offset), data)
            case Observe(host_id):
                return op._replace(kind=OBSERVE, place=self.place_of[host_id])
            case Landed(ticket):
                return op._replace(kind=LANDED, data=ticket)
            case Choose(below):
                return op._replace(kind=CHOOSE, data=below)
            case Crashed():
                return op._replace(kind=CRASHED)
        raise AssertionError(f"the explorer cannot answer {effect!r}")

    def _sector_at(self, offset: int) -> int:
        index = offset // SIZES_512.sector_size
        assert index == 0 or index - 1 in self.hosts
        return max(0, index - 1)

    def _prepared_write(self, op: Op, sector: int, data: bytes) -> Op:
        """Prepare a write. Raises AssertionError when it is to a foreign sector."""
        assert sector in (0, op.host_id), "a foreign sector is written: reading it is not private"
        rounds = 0
        if sector:
            block = host_sector(data)
            lver = block.lver
            rounds = block.mbal // SIZES_512.max_hosts + 1 if block.mbal else 0
            if block.inp not in (0, op.host_id) and block.bal == block.mbal:
                self.sometimes["adopt", op.host_id] += 1
        else:
            lver = unpack_leader(data).lver
        beyond = lver > self.bounds.versions or rounds > self.bounds.rounds
        return op._replace(
            kind=BEYOND if beyond else WRITE,
            sector=sector,
            place=sector * _SECTOR_BITS,
            data=self.sectors.number(data),
        )

    def advance(self, p: int, key: int, answer: Any) -> int:
        """Return the local state after an answer, remembered under `key`."""
        q = self.ops[p].next.get(key)
        if q is None:
            q = self.locals.advance(p, answer)
            self._prepare()
            self.ops[p].next[key] = q
        return q

    # -- parts of a world --------------------------------------------------------------------

    def local(self, world: int, host_id: int) -> int:
        """Return the local state of a host."""
        return world >> self.place_of[host_id] & _LOCAL_MASK

    def life_in(self, world: int, host_id: int) -> Life:
        """Return the life of a host."""
        return self.lives[self.locals.begun[self.local(world, host_id)]]

    def owners(self, world: int) -> tuple[tuple[int, int], ...]:
        """Return who owns the lease: (host id, version) each."""
        owners = ((h, self.ops[world >> place & _LOCAL_MASK].owner) for h, place in self.processes)
        return tuple(owner for owner in owners if owner[1])

    def in_flight(self, world: int) -> tuple[InFlight, ...]:
        """Return the writes that timed out and have not landed."""
        flights: tuple[InFlight, ...] = self.flights.values[
            world >> self._flight_place & _SMALL_MASK
        ]
        return flights

    def with_flights(self, world: int, flights: tuple[InFlight, ...]) -> int:
        """Return the world with other writes in flight."""
        before = world >> self._flight_place & _SMALL_MASK
        return world + ((self.flights.number(tuple(sorted(flights))) - before) << self._flight_place)

    def left_in(self, world: int) -> Left:
        """Return the faults that may still happen."""
        left: Left = self.left.values[world >> self._left_place & _SMALL_MASK]
        return left

    def with_less(self, world: int, fault: str) -> int:
        """Return the world in which one fault of that kind less may happen."""
        before = world >> self._left_place & _SMALL_MASK
        after = self.left.number(self.left.values[before].less(fault))
        return world + ((after - before) << self._left_place)

    def with_local(self, world: int, host_id: int, q: int) -> int:
        """Return the world with a host in another local state."""
        return world + ((q - self.local(world, host_id)) << self.place_of[host_id])

    def without_read(self, world: int, host_id: int) -> int:
        """Return the world in which a host's area read under way is forgotten."""
        place = self._progress_place[host_id]
        return world - ((world >> place & _SMALL_MASK) << place)

    def disk_in(self, world: int) -> tuple[bytes, ...]:
        """Return the leader's sector and every host's."""
        return tuple(
            self.sectors.values[world >> i * _SECTOR_BITS & _SECTOR_MASK]
            for i in range(len(self.programs) + 1)
        )

    def is_idle(self, world: int) -> bool:
        """Tell whether every live host stands before an attempt, with nothing in flight."""
        if world >> self._flight_place & _SMALL_MASK:
            return False
        idle = self._idle
        return all((world >> place & _LOCAL_MASK) in idle for _, place in self.processes)

    def describe_disk(self, world: int) -> str:
        """Return what is on the disk, in words."""
        leader, *sectors = self.disk_in(world)
        lines = [f"     leader: {leader_in_words(leader)}"]
        lines += [f"     host {h}: {sector_in_words(s)}" for h, s in enumerate(sectors, 1)]
        return "\n".join(lines)

    def describe_step(self, world: int, step: Step) -> str:
        """Return a step from `world` in words."""
        op = self.ops[self.local(world, step.host_id)]
        who = f"host {step.host_id} ({self.programs[step.host_id - 1].name})"
        what = step.action
        if op.kind in (WRITE, BEYOND) and "write" in what:
            data = self.sectors.values[op.data]
            place = "own sector" if op.sector else "leader"
            content = sector_in_words(data) if op.sector else leader_in_words(data)
            what = f"{what}: {place}: {content}"
        elif op.kind == READ and what == "read":
            content = self.sectors.values[world >> op.place & _SECTOR_MASK]
            what = f"read sector of host {op.sector}" if op.sector else "read leader"
            words = sector_in_words(content) if op.sector else leader_in_words(content)
            what = f"{what}: {words}"
        bad = f"   <-- {', '.join(step.bad)}" if step.bad else ""
        return f"{who}: {what}{bad}"

    # -- steps -------------------------------------------------------------------------------

    def steps(self, world: int) -> list[Step]:
        """Return every step that can come next."""
        found = self.calm_steps(world)
        if world >> self._flight_place & _SMALL_MASK or self._faulty:
            explore_faults.add_steps(self, world, found)
        return found

    def calm_steps(self, world: int, *, beyond: bool = False) -> list[Step]:
        """Return every step that is no fault and not the landing of a late write.

        `beyond`: also the writes that are out of bounds.
        """
        found: list[Step] = []
        for host_id, place in self.processes:
            p = world >> place & _LOCAL_MASK
            op = self.ops[p]
            kind = op.kind
            if kind == READ:
                answer = world >> op.place & _SECTOR_MASK
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
            answer = world >> op.place & _SECTOR_MASK
            r = op.next.get(answer)
            q = r if r is not None else self.advance(q, answer, self.sectors.values[answer])
            op = self.ops[q]
        after = world + ((q - p) << self.place_of[host_id])
        if op.owner and not self.ops[p].owner:
            return self._granted(after, host_id, op.owner, action, bad)
        return Step(after, host_id, action, bad)

    def _own_in_flight(self, world: int, host_id: int) -> bool:
        if not world >> self._flight_place & _SMALL_MASK:
            return False
        return any(f.sector == f.host_id == host_id for f in self.in_flight(world))

    def _granted(
        self, world: int, host_id: int, lver: int, action: str, bad: tuple[str, ...]
    ) -> Step:
        number = world >> self._history_place & _SMALL_MASK
        history: History = self._histories.values[number]
        if lver <= history.granted:
            bad = (*bad, REUSE)
        else:
            after = self._histories.number(history._replace(granted=lver))
            world += (after - number) << self._history_place
        if len(self.owners(world)) > 1:
            bad = (*bad, TWO_OWNERS)
        return Step(world, host_id, action, bad)

    def _read_area(self, world: int, host_id: int, p: int, op: Op, found: list[Step]) -> None:
        """Read leader and host sectors, at once or one of them."""
        if not self.bounds.by_sector:
            disk = world & self.disk_mask
            q = op.next.get(disk)
            if q is None:
                q = self.advance(p, disk, self._image(disk))
            found.append(self.moved(world, host_id, p, q, "read area"))
            return
        place = self._progress_place[host_id]
        number = world >> place & _SMALL_MASK
        nothing = (-1,) * (len(self.programs) + 1)
        parts = self._progress.values[number] or nothing
        for sector, part in enumerate(parts):
            if part >= 0 or sector == host_id:
                continue
            content = world >> sector * _SECTOR_BITS & _SECTOR_MASK
            after = (*parts[:sector], content, *parts[sector + 1 :])
            if after.count(-1) > 1:
                more = self._progress.number(after)
                found.append(Step(world + ((more - number) << place), host_id, f"read {sector}"))
                continue
            # Only the own sector is missing, which nobody else writes.
            own = world >> host_id * _SECTOR_BITS & _SECTOR_MASK
            disk = sum(
                (own if i == host_id else content) << i * _SECTOR_BITS
                for i, content in enumerate(after)
            )
            q = self.advance(p, disk, self._image(disk))
            found.append(self.moved(world - (number << place), host_id, p, q, f"read {sector}"))

    def _image(self, disk: int) -> BallotImage:
        sectors = self.disk_in(disk)
        hosts = tuple((h, sectors[h][:HOST_SECTOR_BYTES]) for h in self.hosts if any(sectors[h]))
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
        place = sector * _SECTOR_BITS
        before = world >> place & _SECTOR_MASK
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
        number = world >> self._history_place & _SMALL_MASK
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
            content = world >> op.place & _SECTOR_MASK
            q = self.advance(p, content, self.sectors.values[content])
            found.append(self.moved(world, host_id, p, q, "read own"))
        elif op.kind in (OBSERVE, DELTA):
            number = self.locals.begun[world >> op.place & _LOCAL_MASK]
            they = self.lives[number]
            answer = seen(they) if op.kind == OBSERVE else delta_sector(they[0], they[1])
            q = self.advance(p, number, answer)
            action = "observe" if op.kind == OBSERVE else "read delta"
            found.append(self.moved(world, host_id, p, q, action))
        elif op.kind == CHOOSE:
            for choice in range(op.data):
                q = self.advance(p, choice, choice)
                found.append(self.moved(world, host_id, p, q, f"choose {choice}"))
