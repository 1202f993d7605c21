"""What can go wrong in an explored world: each fault is a step, and the bounds say how often.

A write that times out stays in flight and lands at any later step; our programs wait for that
(rule M7), the original goes on. A crash is a reset: what the host had in
flight is gone, for that it landed before is another order of the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paxoslease.errors import DecisionStale, DiskError, DiskTimeout
from paxoslease.simulation.explorer.local_states import Throw
from paxoslease.simulation.explorer.values import SPACE, TIMING, InFlight, Left, Life, Step

if TYPE_CHECKING:
    from paxoslease.simulation.explorer.lease_world import LeaseWorld

# Numbers of answers that are errors, beside those of sectors and of landed writes (-1).
_TIMED_OUT, _FAILED, _STALE, _LANDED_AT_LAST = -2, -3, -4, -5
_TICKETS = -100  # minus the ticket


def add_steps(model: LeaseWorld, world: int, found: list[Step]) -> None:
    """Add every fault that may happen next, and every late landing."""
    left = model.left_in(world)
    for host_id in model.hosts:
        if not any(left):
            break
        _faults_of(model, world, host_id, left, found)
    flights = model.in_flight(world)
    for i, flight in enumerate(flights):
        rest = flights[:i] + flights[i + 1 :]
        found.append(_lands(model, model.with_flights(world, rest), flight))


def _faults_of(model: LeaseWorld, world: int, host_id: int, left: Left, found: list[Step]) -> None:
    me = model.life_in(world, host_id)
    if me.crashed:
        if left.rejoins:
            again = model.start(Life(host_id, me.generation + 1, False))
            after = model.with_less(world, "rejoins")
            found.append(Step(model.with_local(after, host_id, again), host_id, "rejoin"))
        return
    if left.crashes:
        corpse = model.start(Life(host_id, me.generation, True))
        flights = tuple(f for f in model.in_flight(world) if f.host_id != host_id)
        after = model.with_flights(model.with_less(world, "crashes"), flights)
        after = model.with_local(model.without_read(after, host_id), host_id, corpse)
        found.append(Step(after, host_id, "crash"))
    if left.kills:
        _kill(model, world, host_id, found)
    p = model.local(world, host_id)
    kind = model.ops[p].kind
    if kind == model.WRITE:
        _write_faults(model, world, host_id, left, found)
    elif kind in model.READS:
        _read_faults(model, world, host_id, left, found)


def _kill(model: LeaseWorld, world: int, host_id: int, found: list[Step]) -> None:
    """Add the step in which a process that is about something is killed, and has a successor.

    That begins when nothing is in flight any more. A process that owns the lease has a user, and
    the successor goes on with that where this one was: no other world.
    """
    p = model.local(world, host_id)
    if model.programs[host_id - 1].settle is None or p in model.idle or model.ops[p].owner:
        return
    if any(flight.host_id == host_id for flight in model.in_flight(world)):
        return
    me = model.life_in(world, host_id)
    successor = model.start(me._replace(succeeds=True))
    after = model.without_read(model.with_less(world, "kills"), host_id)
    found.append(model.moved(after, host_id, p, successor, "is killed, has a successor"))


def _read_faults(
    model: LeaseWorld, world: int, host_id: int, left: Left, found: list[Step]
) -> None:
    p = model.local(world, host_id)
    effect: Any = model.locals.effect[p]
    if left.read_timeouts:
        fields: tuple[Any, ...] = (effect.path, effect.offset, "read", TIMING.io_us, 0)
        q = model.advance(p, _TIMED_OUT, Throw(DiskTimeout, fields))
        after = model.without_read(model.with_less(world, "read_timeouts"), host_id)
        found.append(model.moved(after, host_id, p, q, "read times out"))
    if left.errors:
        fields = (effect.path, effect.offset, "read", 5, "I/O error")
        q = model.advance(p, _FAILED, Throw(DiskError, fields))
        after = model.without_read(model.with_less(world, "errors"), host_id)
        found.append(model.moved(after, host_id, p, q, "read fails"))


def _write_faults(
    model: LeaseWorld, world: int, host_id: int, left: Left, found: list[Step]
) -> None:
    p = model.local(world, host_id)
    op = model.ops[p]
    effect: Any = model.locals.effect[p]
    place = (effect.path, effect.offset, "write")
    if left.timeouts:
        ticket = model.bounds.timeouts - left.timeouts + 1
        q = model.advance(p, _TICKETS - ticket, Throw(DiskTimeout, (*place, TIMING.io_us, ticket)))
        flight = InFlight(host_id, op.sector, op.data, ticket)
        after = model.with_less(world, "timeouts")
        after = model.with_flights(after, (*model.in_flight(world), flight))
        found.append(model.moved(after, host_id, p, q, "write times out"))
    if left.errors:
        q = model.advance(p, _FAILED, Throw(DiskError, (*place, 5, "I/O error")))
        after = model.with_less(world, "errors")
        found.append(model.moved(after, host_id, p, q, "write fails"))
        after, bad = model.landed(after, host_id, op.sector, op.data)
        found.append(model.moved(after, host_id, p, q, "write fails but landed", bad))
    if left.pauses and effect.not_after_us is not None:
        q = model.advance(p, _STALE, Throw(DecisionStale, (SPACE.name, 1)))
        after = model.with_less(world, "pauses")
        found.append(model.moved(after, host_id, p, q, "write is too late"))


def _lands(model: LeaseWorld, world: int, flight: InFlight) -> Step:
    """Return the step in which a timed-out write lands; whoever waits for it goes on."""
    host_id = flight.host_id
    world, bad = model.landed(world, host_id, flight.sector, flight.data)
    p = model.local(world, host_id)
    op = model.ops[p]
    if op.kind == model.LANDED and op.data == flight.ticket:
        q = model.advance(p, _LANDED_AT_LAST, None)
        return model.moved(world, host_id, p, q, "late write lands", bad)
    return Step(world, host_id, "late write lands", bad)
