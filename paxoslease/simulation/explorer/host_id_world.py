"""Two contenders for one host id, in every order and with every delay of their I/O.

What protects them is a wait, so time counts here. It goes in ticks of half an io_timeout (the
smallest, 1 s); both contenders' clocks are the tick. Nothing is urgent: a process may be paused
before and after every effect, for as long as the search's horizon, and only these bounds hold:

  - an I/O takes effect strictly after it was submitted;
  - a write is not submitted after its `not_after_us` (DecisionStale is thrown instead);
  - a write is reported done only if it reached the disk within its time-out; else DiskTimeout is
    thrown, it reaches the disk at any later tick, and `Landed` returns after that;
  - a sleep is not shorter than asked.

So delays are never underestimated, and a search without a violation covers all real delays of
whole ticks up to the horizon, which is counted from the first contender's beginning. It is shorter
than the wait for a dead owner: whoever has the host id at its end is entitled to it, and there
must be no second one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import Where, delta_at_format, pack_leader, parse_delta
from paxoslease.errors import DecisionStale, DiskTimeout, HostIdBusy
from paxoslease.protocol import delta
from paxoslease.protocol.delta import Held, Lockspace
from paxoslease.protocol.effects import Landed, Notify, Now, Protocol, Read, Sleep, Write
from paxoslease.simulation.explorer.local_states import DONE, Given, LocalStates, Mark, Throw
from paxoslease.simulation.explorer.values import TWO_OWNERS, Step, Table
from paxoslease.timing import SECOND_US, Timing

HOST_ID: Final = 1
TIMING: Final = Timing(1, 15)
TICK_US: Final = SECOND_US // 2
FIRST_TICK: Final = 200  # clocks do not begin at 0, which stands for a free record
HORIZON_TICKS: Final = 40  # at most; ends before `dead`
SPACE: Final = Lockspace(b"ls", Area("lockspace", 0, SIZES_512))

assert TIMING.dead_us > HORIZON_TICKS * TICK_US

Acquire: TypeAlias = Callable[[Lockspace, int, bytes, Timing], Protocol[Held]]


class Won(NamedTuple):
    """The contender holds the host id."""


class Io(NamedTuple):
    """How far the effect that a contender waits for has come.

    since: the tick at which the contender came to it, or submitted it. stage: 0 before, 1
    submitted, 2 on the disk in time, 3 timed out and not on the disk, 4 timed out and on the disk.
    content: what a read has seen, or a write will bring, as a number; -1 for nothing yet.
    """

    since: int
    stage: int = 0
    content: int = -1


_NO_IO: Final = Io(0)


class Contender(NamedTuple):
    """A contender: its local state (-1 before it begins) and its I/O."""

    p: int
    io: Io


class Contest(NamedTuple):
    """A world of two contenders."""

    tick: int
    sector: int
    contenders: tuple[Contender, ...]


def contend(acquire: Acquire, name: bytes, timing: Timing) -> Protocol[None]:
    """Try once to get the host id."""
    try:
        yield from acquire(SPACE, HOST_ID, name, timing)
    except HostIdBusy:
        return
    yield Notify(Won())
    yield Landed(0)  # for ever


class HostIdWorld:
    """All worlds of contenders for one free host id.

    acquire: delta.acquire or a mutant. io_timeouts: s, one per contender. formatted: s, the
    io_timeout in the free record. horizon_ticks: how long the world lasts.
    """

    def __init__(
        self,
        acquire: Acquire = delta.acquire,
        *,
        io_timeouts: tuple[int, ...] = (1, 1),
        formatted: int = 1,
        horizon_ticks: int = HORIZON_TICKS,
    ) -> None:
        assert horizon_ticks <= HORIZON_TICKS
        self._formatted = formatted
        self._last_tick = FIRST_TICK + horizon_ticks
        self.locals = LocalStates(self._resolve)
        self.sometimes: Counter[tuple[Any, ...]] = Counter()
        self._sectors = Table(16)
        self._memory: dict[tuple[int, Any], int] = {}
        self._firsts = tuple(
            self.locals.begin(
                partial(contend, acquire, b"host %c" % (65 + i), TIMING._replace(io_timeout=io))
            )
            for i, io in enumerate(io_timeouts)
        )

    def _resolve(self, number: int, effect: Any) -> Given | None:
        if isinstance(effect, Notify):
            self.sometimes["won", number + 1] += 1
            return Given(mark=Mark(1, True))
        return None

    def initial(self) -> Contest:
        """Return the world in which the first contender has just begun."""
        free = delta_at_format(SPACE.name, SIZES_512, self._formatted)
        sector = self._sectors.number(pack_leader(free, SIZES_512.sector_size))
        contenders = tuple(Contender(-1, _NO_IO) for _ in self._firsts)
        world: Contest = self._go(
            Contest(FIRST_TICK, sector, contenders), 0, self._firsts[0], "begins"
        ).world
        return world

    def owners(self, world: Contest) -> tuple[tuple[int, int], ...]:
        """Return the contenders that hold the host id."""
        return tuple(
            (i + 1, 1)
            for i, contender in enumerate(world.contenders)
            if contender.p >= 0 and self.locals.mark[contender.p].value
        )

    def steps(self, world: Contest) -> list[Step]:
        """Return every step that can come next: a tick, or one of a contender."""
        found: list[Step] = []
        if world.tick < self._last_tick:
            found.append(Step(world._replace(tick=world.tick + 1), 0, "tick"))
        for i, contender in enumerate(world.contenders):
            if contender.p < 0:
                first = self._firsts[i]
                found.append(self._go(world, i, first, "begins"))
                continue
            effect = self.locals.effect[contender.p]
            if isinstance(effect, Read):
                self._read(world, i, contender, found)
            elif isinstance(effect, Write):
                self._write(world, i, contender, effect, found)
            elif isinstance(effect, Sleep):
                if (world.tick - contender.io.since) * TICK_US >= effect.duration_us:
                    found.append(self._answer(world, i, contender.p, None, "wakes"))
            elif isinstance(effect, Landed) and effect.ticket:
                self._await_landing(world, i, contender, found)
        return found

    def _answer(self, world: Contest, i: int, p: int, answer: Any, action: str) -> Step:
        return self._go(world, i, self._next(p, answer), action)

    def _next(self, p: int, answer: Any) -> int:
        q = self._memory.get((p, answer))
        if q is None:
            q = self._memory[p, answer] = self.locals.advance(p, answer)
        return q

    def _go(self, world: Contest, i: int, p: int, action: str) -> Step:
        """Bring a contender to local state p, past all questions for the time."""
        while isinstance(self.locals.effect[p], Now):
            p = self._next(p, world.tick * TICK_US)
        if self.locals.effect[p] is DONE:
            self.sometimes["lost", i + 1] += 1
            io = _NO_IO
        else:
            io = Io(world.tick)
        after = self._with(world, i, Contender(p, io))
        bad = (TWO_OWNERS,) if len(self.owners(after)) > 1 else ()
        return Step(after, i + 1, action, bad)

    def _with(self, world: Contest, i: int, contender: Contender) -> Contest:
        them = world.contenders
        return world._replace(contenders=(*them[:i], contender, *them[i + 1 :]))

    def _read(self, world: Contest, i: int, contender: Contender, found: list[Step]) -> None:
        p, io = contender
        if io.content >= 0:
            data = self._sectors.values[io.content]
            found.append(self._answer(world, i, p, data, "gets what it read"))
        elif world.tick > io.since:
            seen = Io(0, 0, world.sector)
            found.append(Step(self._with(world, i, Contender(p, seen)), i + 1, "reads"))

    def _write(
        self, world: Contest, i: int, contender: Contender, effect: Write, found: list[Step]
    ) -> None:
        p, io = contender
        if io.stage == 0:
            assert effect.not_after_us is not None
            if world.tick * TICK_US > effect.not_after_us:
                stale = Throw(DecisionStale, (SPACE.name, 1))
                found.append(self._answer(world, i, p, stale, "writes too late"))
                return
            sent = Io(world.tick, 1, self._sectors.number(effect.data))
            found.append(Step(self._with(world, i, Contender(p, sent)), i + 1, "submits"))
            return
        if io.stage == 1 and world.tick > io.since:
            in_time = world.tick <= io.since + effect.timeout_us // TICK_US
            if in_time:
                done = world._replace(sector=io.content)
                landed = Contender(p, io._replace(stage=2))
                found.append(Step(self._with(done, i, landed), i + 1, "write lands"))
        if io.stage == 2:
            found.append(self._answer(world, i, p, None, "write is acknowledged"))
        if world.tick >= io.since + effect.timeout_us // TICK_US:
            self.sometimes["timeout", i + 1] += 1
            fields = (effect.path, effect.offset, "write", effect.timeout_us, 1)
            step = self._answer(world, i, p, Throw(DiskTimeout, fields), "write times out")
            q = step.world.contenders[i].p
            late = Contender(q, Io(0, io.stage + 2, io.content))
            found.append(step._replace(world=self._with(step.world, i, late)))

    def _await_landing(
        self, world: Contest, i: int, contender: Contender, found: list[Step]
    ) -> None:
        p, io = contender
        if io.stage == 3:
            done = world._replace(sector=io.content)
            landed = Contender(p, io._replace(stage=4))
            found.append(Step(self._with(done, i, landed), i + 1, "late write lands"))
        else:
            found.append(self._answer(world, i, p, None, "late write is reported"))

    # -- in words ----------------------------------------------------------------------------

    def words_of(self, world: Contest) -> str:
        """Return the time and the record on disk, in words."""
        leader = parse_delta(
            self._sectors.values[world.sector], Where(SPACE.area.path, 0), SPACE.name
        )
        name = leader.resource_name.split(b"\0", 1)[0].decode()
        state = "free" if leader.is_free else f"{name}, generation {leader.owner_generation}"
        return f"     tick {world.tick - FIRST_TICK}, record: {state}"

    def words_of_step(self, world: Contest, step: Step) -> str:
        """Return a step in words."""
        if not step.host_id:
            return f"tick {step.world.tick - FIRST_TICK}"
        bad = f"   <-- {', '.join(step.bad)}" if step.bad else ""
        return f"contender {chr(64 + step.host_id)} {step.action}{bad}"
