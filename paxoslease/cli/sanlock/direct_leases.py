"""`sanlock direct` actions on leases: a host id or a resource, taken and given back by hand.

Nothing renews what is taken here, and nothing guards it: a host id is another's after `dead`
seconds, and a resource lease counts for as long as its host id does.

Source: spec/cli.md 5; spec/algorithms.md 2, 6 and 7.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from paxoslease.cli.sanlock.direct_place import (
    Refusal,
    areas_of,
    opened,
    perform,
    sizes_of,
    timing_of,
)
from paxoslease.cli.sanlock.direct_storage import done
from paxoslease.cli.sanlock.grammar import Options
from paxoslease.daemon.config import daemon_options
from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import NAME_BYTES, Area
from paxoslease.disk.records import Leader
from paxoslease.engine.operation import Context, now_us
from paxoslease.errors import HostIdInvalid, RenewalRefused
from paxoslease.protocol import delta, leases
from paxoslease.protocol.disks import Claim, Resource, read_host_sector, read_leader
from paxoslease.protocol.effects import PetWatchdog, Protocol, Standing
from paxoslease.timing import SECOND_US, Timing

_OWNED: Final = -241  # another host owns it, and nobody here can tell whether that is alive
_NOT_OURS: Final = -251


class _ByHand(Context):
    """A host without a daemon, for the time of one action: what -i and -g say, and no watchdog."""

    def __init__(self, host_id: int, generation: int, timing: Timing) -> None:
        self._standing = Standing(host_id, generation, now_us() + timing.fail_us)

    def membership(self, now: int) -> Standing:
        return self._standing

    def pet(self, effect: PetWatchdog) -> None:
        return


# -- host ids ----------------------------------------------------------------------------------


@contextmanager
def _space_of(options: Options) -> Iterator[tuple[delta.Lockspace, list[DirectFile]]]:
    """Open the lockspace given. Raises Refusal (-ENODEV, -EINVAL without a host id)."""
    wanted = options.lockspace
    with opened(wanted.disk, for_lockspace=True) as files:
        if not wanted.host_id:
            raise Refusal(errno.EINVAL)
        area = Area(files[0].path, wanted.disk.offset, sizes_of(options, files[0]))
        if wanted.host_id > area.sizes.max_hosts:
            raise HostIdInvalid(wanted.name, wanted.host_id, area.sizes.max_hosts)
        yield delta.Lockspace(wanted.name, area), list(files)


def _host_name(options: Options) -> bytes:
    """Return the name of this host: given, configured, or a new one."""
    configured = os.fsencode(daemon_options({}).host_name)
    name = options.text("e") or configured or f"{uuid.uuid4()}.{os.uname().nodename}".encode()
    return name[:NAME_BYTES]


def acquire_id(options: Options) -> int:
    """Take a host id, as joining does, and leave it taken."""

    def work() -> None:
        with _space_of(options) as (space, files):
            timing, name = timing_of(options), _host_name(options)
            perform(delta.acquire(space, options.lockspace.host_id, name, timing), files)

    return done(b"acquire_id", work)


def renew_id(options: Options) -> int:
    """Write a new timestamp for a host id that was acquired by hand. Spelt so."""

    def renew(space: delta.Lockspace, timing: Timing) -> Protocol[None]:
        held = yield from _held(space, options.lockspace.host_id, timing)
        yield from delta.renew(space, held, timing)

    return _with_held(b"rewew_id", options, renew)


def release_id(options: Options) -> int:
    """Free a host id that was acquired by hand."""

    def release(space: delta.Lockspace, timing: Timing) -> Protocol[None]:
        held = yield from _held(space, options.lockspace.host_id, timing)
        yield from delta.release(space, held, timing)

    return _with_held(b"release_id", options, release)


def _with_held(
    action: bytes,
    options: Options,
    protocol: Callable[[delta.Lockspace, Timing], Protocol[None]],
) -> int:
    def work() -> None:
        with _space_of(options) as (space, files):
            timing = timing_of(options)
            context = _ByHand(options.lockspace.host_id, 0, timing)
            perform(protocol(space, timing), files, context)

    return done(action, work)


def _held(space: delta.Lockspace, host_id: int, timing: Timing) -> Protocol[delta.Held]:
    """Read the record of a host id as what this host holds. Raises Refusal (-EINVAL): it is free.

    The timestamp is of this host's clock, or else the action is refused as too late or changed.
    """
    record = yield from delta.read_delta(space, host_id, timing)
    if record.is_free:
        raise Refusal(errno.EINVAL)
    if record.owner_id != host_id:
        raise RenewalRefused(space.name, host_id, True)
    return delta.Held(record, record.timestamp * SECOND_US, True)


# -- resources ---------------------------------------------------------------------------------


def _with_claim(
    action: bytes, options: Options, protocol: Callable[[Claim, int], Protocol[None]]
) -> int:
    def work() -> None:
        host_id, generation = options.unsigned("i"), options.unsigned("g")
        if not options.resources or not options.resources[0].disks or not host_id:
            raise Refusal(errno.EINVAL)
        wanted = options.resources[0]
        with opened(*wanted.disks) as files:
            areas = areas_of(options, wanted.disks, files)
            # Delta leases are not looked at, so where the lockspace lies does not matter.
            space = delta.Lockspace(wanted.lockspace, areas[0])
            timing = timing_of(options)
            claim = Claim(space, Resource(wanted.name, areas), timing, host_id)
            perform(protocol(claim, generation), files, _ByHand(host_id, generation, timing))

    return done(action, work)


def acquire(options: Options) -> int:
    """Acquire a lease for a host id and generation, unless another host owns it."""
    is_shared = any(one.is_shared for one in options.resources[:1])

    def protocol(claim: Claim, generation: int) -> Protocol[None]:
        leader = yield from read_leader(claim)
        if not leader.is_free and leader.owner_id != claim.host_id:
            raise Refusal(_OWNED)
        if is_shared:
            yield from leases.acquire_shared(claim)
        else:
            yield from leases.acquire_exclusive(claim)

    return _with_claim(b"acquire", options, protocol)


def release(options: Options) -> int:
    """Release a lease that a host id and generation own, or with :SH share."""
    is_shared = any(one.is_shared for one in options.resources[:1])

    def protocol(claim: Claim, generation: int) -> Protocol[None]:
        leader: Leader = yield from read_leader(claim)
        own = yield from read_host_sector(claim, claim.host_id)
        owner = (leader.owner_id, leader.owner_generation)
        holds = (
            own.shared_generation == generation
            if is_shared
            else not leader.is_free and owner == (claim.host_id, generation)
        )
        if not holds:
            raise Refusal(_NOT_OURS)
        refused = yield from leases.release(leases.Lease(claim, leader, own, is_shared))
        if refused is not None:
            raise refused

    return _with_claim(b"release", options, protocol)
