"""The processes of an explored world: their lives, and their local states made ready for steps."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, Final, NamedTuple

from paxoslease.disk.layout import SIZES_512
from paxoslease.disk.records import (
    unpack_leader,
)
from paxoslease.protocol.disks import Claim
from paxoslease.protocol.effects import (
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
from paxoslease.simulation.explorer.lives import (
    Choose,
    Ended,
    Granted,
    Program,
    Releasing,
    life,
    life_in_modes,
)
from paxoslease.simulation.explorer.local_states import DONE, Given, LocalStates, Mark
from paxoslease.simulation.explorer.values import (
    NOW_US,
    RESOURCE,
    SPACE,
    TIMING,
    Bounds,
    Crashed,
    Life,
    Table,
    corpse,
    delta_sector,
    host_sector,
    seen,
)

SECTOR_BITS: Final = 14
LOCAL_BITS: Final = 22
SMALL_BITS: Final = 16
SECTOR_MASK: Final = (1 << SECTOR_BITS) - 1
LOCAL_MASK: Final = (1 << LOCAL_BITS) - 1
SMALL_MASK: Final = (1 << SMALL_BITS) - 1


# What a local state waits for. OWN is a read of the own sector, BEYOND a write that is out of
# bounds; DONE_WITH waits for nothing.
READ, BALLOT, WRITE, OWN, OBSERVE, DELTA, LANDED, CHOOSE, CRASHED, BEYOND, DONE_WITH = range(11)


class Op(NamedTuple):
    """A local state, prepared: what it waits for and what is remembered of its answers.

    next: local states by the number of the answer. place: bit position of the sector, or of the
    process looked at. data: number of the bytes to be written, ticket, number of choices, or the
    bits that an area read sees, of so many sectors.
    owner: the version that the process owns here, negative if shared, 0 for none.
    """

    kind: int
    next: dict[int, int]
    host_id: int
    owner: int = 0
    sector: int = 0
    place: int = 0
    data: int = 0


class Processes:
    """The processes of all worlds of `programs`, one host each with ids 1, 2, ...

    ops[p]: local state p, prepared. lives: by the number of a process's beginning. sometimes: what
    was met in local transitions, to prove that a search is not vacuous: ("grant", host),
    ("adopt", host), ("takeover", host), ("ended", host, error), ("settled", host).
    """

    WRITE = WRITE
    LANDED = LANDED
    READS = frozenset((READ, BALLOT, OWN, DELTA))

    def __init__(self, programs: tuple[Program, ...], bounds: Bounds, *, histories: bool) -> None:
        self.programs = programs
        self.bounds = bounds
        self.hosts = range(1, len(programs) + 1)
        self.sectors = Table(SECTOR_BITS)
        self.sometimes: Counter[tuple[Any, ...]] = Counter()
        self.locals = LocalStates(self._resolve, histories=histories)
        self.ops: list[Op] = []
        self.lives: list[Life] = []
        self.idle: set[int] = set()
        self._starts: dict[Life, int] = {}
        first = len(programs) + 1
        self.place_of = {h: first * SECTOR_BITS + (h - 1) * LOCAL_BITS for h in self.hosts}

    def start(self, begun: Life) -> int:
        """Return the local state in which a host's life begins, or in which a corpse lies."""
        p = self._starts.get(begun)
        if p is None:
            self.lives.append(begun)
            p = self.locals.begin(partial(self._process, begun))
            self._starts[begun] = p
            if not begun.succeeds:
                self.idle.add(p)
            self._prepare()
        return p

    def _process(self, begun: Life) -> Protocol[None]:
        if begun.crashed:
            return corpse()
        claim = Claim(SPACE, RESOURCE, TIMING, begun.host_id)
        program = self.programs[begun.host_id - 1]
        if begun.succeeds:
            assert program.settle is not None
            return program.settle(claim)
        lifelong = life if program.modes is None else life_in_modes
        return lifelong(program, claim, self.bounds.attempts)

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
            case Notify(Granted(lver, shared)):
                self.sometimes["share" if shared else "grant", me.host_id] += 1
                return Given(mark=Mark(-lver if shared else lver, True))
            case Notify(Releasing()):
                return Given(ends=True)
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
            assert p < LOCAL_MASK, "widen the field of local states"
            me = self.lives[self.locals.begun[p]]
            op = Op(DONE_WITH, {}, me.host_id, self.locals.mark[p].value)
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
                return op._replace(kind=kind, sector=sector, place=sector * SECTOR_BITS)
            case ReadBallot(num_hosts=num_hosts):
                sectors = min(num_hosts, len(self.programs)) + 1
                return op._replace(
                    kind=BALLOT, sector=sectors, data=(1 << sectors * SECTOR_BITS) - 1
                )
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
            place=sector * SECTOR_BITS,
            data=self.sectors.number(data),
        )

    def advance(self, p: int, key: int, answer: Any) -> int:
        """Return the local state after an answer, remembered under `key`."""
        q = self.ops[p].next.get(key)
        if q is None:
            q = self.locals.advance(p, answer)
            self._prepare()
            me = self.lives[self.locals.begun[q]]
            if me.succeeds and self.locals.effect[q] is DONE:
                self.sometimes["settled", me.host_id] += 1
                q = self.start(me._replace(succeeds=False))
            self.ops[p].next[key] = q
        return q
