"""What the users of a simulated host do: take a lease, use it for a while, give it back, again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from paxoslease.errors import Cancelled, LockspaceFailed, PaxosleaseError, StorageError
from paxoslease.protocol.contention import NO_TURN, Turn, acquire_waiting, turn_after
from paxoslease.protocol.disks import Claim
from paxoslease.protocol.effects import Protocol, Sleep
from paxoslease.protocol.leases import (
    Lease,
    acquire_exclusive,
    acquire_shared,
    convert_to_exclusive,
    convert_to_shared,
    read_lvb,
    release,
)
from paxoslease.protocol.outcome import settle_unknown
from paxoslease.simulation.cluster.oracles import Use, Watched
from paxoslease.simulation.original import leases as original
from paxoslease.timing import SECOND_US

if TYPE_CHECKING:
    from paxoslease.simulation.cluster.hosts import Host

PATIENCE_US = 12 * SECOND_US
CALM_THINK_US = 10 * SECOND_US


class Cut(NamedTuple):
    """What a daemon was doing with a lease when it was killed; see protocol.outcome."""

    before: Lease | None
    keep: bool

    @property
    def was_shared(self) -> bool:
        """Tell whether the lease was held shared."""
        return self.before is not None and self.before.shared


class _Wanted(NamedTuple):
    """How a user goes about a lease. at_once: it does not wait for its turn."""

    shared: bool
    at_once: bool
    turn: Turn


def work(host: Host, watched: Watched, claim: Claim) -> Protocol[None]:
    """Take and give back one lease again and again until the host winds down or fails."""
    o, rng = host.world.options, host.world.rng
    turn = NO_TURN
    pushy = o.pushy
    while not host.winding_down:
        think_us = o.think_us if host.world.faults.is_on else max(o.think_us, CALM_THINK_US)
        yield from _rest(int(think_us * rng.expovariate(1.0)))
        if host.winding_down:
            return
        shared = rng.random() < o.shared
        host.busy(watched, True)
        wanted = _Wanted(shared, rng.random() < pushy, turn)
        lease = yield from _take(host, watched, claim, wanted)
        # A pushy user that gets nothing comes to its senses, else two of them may go on for ever.
        pushy = o.pushy if lease else pushy / 2
        if lease is None:
            host.busy(watched, False)
            continue
        use = host.begin_use(watched, lease)
        host.busy(watched, False)
        yield from _use(host, use)
        data = None
        if not use.shared and rng.random() < o.lvb:
            data = host.world.next_lvb(claim.sector_size)
        host.end_use(use)
        host.busy(watched, True, before=use.lease)
        yield from give_back(host, watched, use.lease, data)
        if not host.is_original:
            turn = turn_after(use.lease, host.local(host.world.driver.now))
        host.busy(watched, False)


def carry_on(
    host: Host, watched: Watched, claim: Claim, cut: Cut | None, use: Use | None
) -> Protocol[None]:
    """Go on with a lease that a predecessor held, or worked on when it was killed; then as `work`.

    cut: what it was about, None for nothing. use: whoever uses the lease, None for nobody.
    """
    world, oracle = host.world, host.world.oracle
    if cut is not None:
        host.busy(watched, True, before=cut.before, keep=cut.keep)
        settled = yield from settle_unknown(claim, cut.before, keep=cut.keep)
        world.trace(host, "settled", watched.name, settled.found, settled.lease)
        if cut.before is not None and not cut.keep:
            oracle.released(cut.before, world.driver.disks)
        if use is not None and settled.lease is None:
            host.stop_use(use)
            use = None
        elif use is not None and settled.lease is not None:
            if use.shared and not settled.lease.shared and not cut.was_shared:
                oracle.changed(use, False)
            use.lease = settled.lease
            if use.shared and not settled.lease.shared:
                oracle.converted(use, settled.lease, world.driver.now)
        host.busy(watched, False)
    if use is not None:
        yield from _rest(int(world.options.hold_us * world.rng.expovariate(1.0)))
        host.end_use(use)
        host.busy(watched, True, before=use.lease)
        yield from give_back(host, watched, use.lease, None)
        host.busy(watched, False)
    yield from work(host, watched, claim)


def _rest(duration_us: int) -> Protocol[None]:
    """Sleep, for less long when the host winds down."""
    with suppress(Cancelled):
        yield Sleep(duration_us, cancellable=True)


def _take(host: Host, watched: Watched, claim: Claim, wanted: _Wanted) -> Protocol[Lease | None]:
    """Acquire; None when it was not to be had. Raises LockspaceFailed."""
    until_us = host.local(host.world.driver.now) + int(PATIENCE_US * host.world.rng.random())
    try:
        if host.is_original:
            return (yield from original.acquire(claim))  # type: ignore[return-value]
        if wanted.at_once:
            lease = yield from (acquire_shared if wanted.shared else acquire_exclusive)(claim)
        else:
            lease = yield from acquire_waiting(
                claim, until_us, shared=wanted.shared, turn=wanted.turn
            )
    except LockspaceFailed:
        raise
    except PaxosleaseError as error:
        host.world.trace(host, "refused", watched.name, error)
        if host.is_original:
            yield Sleep(SECOND_US)
        return None
    host.member.standing(host.local(host.world.driver.now))
    return lease


def _use(host: Host, use: Use) -> Protocol[None]:
    """Use a lease: read its LVB, convert it perhaps, hold it for a while."""
    o, rng = host.world.options, host.world.rng
    if o.lvb:
        try:
            data = yield from read_lvb(use.lease.claim)
        except StorageError:
            data = b""
        if data:
            host.world.oracle.saw_lvb(use, data)
    yield from _rest(int(o.hold_us * rng.expovariate(1.0)))
    if rng.random() >= o.convert:
        return
    oracle, was_shared = host.world.oracle, use.shared
    host.busy(use.resource, True, before=use.lease, keep=True)
    try:
        if was_shared:
            lease = yield from convert_to_exclusive(use.lease)
        else:
            # Others may share it before the conversion returns.
            oracle.changed(use, True)
            lease = yield from convert_to_shared(use.lease)
    except LockspaceFailed:
        raise
    except PaxosleaseError as error:
        host.world.trace(host, "not converted", use.resource.name, error)
        oracle.changed(use, was_shared)
        host.busy(use.resource, False)
        return
    host.busy(use.resource, False)
    host.member.standing(host.local(host.world.driver.now))
    oracle.converted(use, lease, host.world.driver.now)
    host.world.trace(host, "converted", use.resource.name, use.lver, use.shared)
    yield from _rest(int(o.hold_us * rng.expovariate(1.0)))


def give_back(host: Host, watched: Watched, lease: Lease, data: bytes | None) -> Protocol[None]:
    """Release, until it is done. Raises LockspaceFailed."""
    world, member = host.world, host.member
    if host.is_original:
        yield from original.release(lease)  # type: ignore[arg-type]
        return
    if data is not None:
        watched.writing(
            data, lambda: host.member is member and host.is_up and member.failure is None
        )
    while True:
        try:
            refused = yield from release(lease, lvb=data)
        except LockspaceFailed:
            raise
        except StorageError as error:
            world.trace(host, "not released", watched.name, error)
            watched.gave_up_writing()
            data = None
            yield Sleep(SECOND_US)
            continue
        break
    world.trace(host, "released", watched.name, lease.lver, refused)
    world.oracle.released(lease, world.driver.disks)
