"""What the engine does with one entry of the registry: win its lease, and its value block.

Source: spec/wire-protocol.md 9.1 and 9.7; spec/errors.md 1.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Final

from paxoslease.daemon.bridge import finished
from paxoslease.daemon.entries import Entry, HeldFiles
from paxoslease.daemon.refusal import Refusal
from paxoslease.engine.leases import Leases, Phase as HoldingPhase
from paxoslease.errors import DiskError, DiskTimeout, LeaseBusy, LeaseHeld, WaitTimeout
from paxoslease.protocol import leases as protocol
from paxoslease.protocol.paxos import Want
from paxoslease.wire import sanlock as wire

_BLOCK_NOT_WRITTEN: Final = -211
_SHORT_HOLD_STAYS: Final = -246
_OWNER_POLL_US: Final = 2_000_000
_SHARED_RETRY_US: Final = 500_000


def leases_of(entry: Entry) -> Leases:
    """Return the engine's leases of the entry's lockspace."""
    assert entry.space.membership is not None
    return entry.space.membership.leases


async def win(entry: Entry, no_wait: bool, shared_retries: int) -> None:
    """Acquire a resource for this host, waiting for an owner that may be dead.

    shared_retries: sh_retries of the configuration. Each one of the original's pauses for half a
    second on average; ours tries more often, for as long as they would take together.
    """
    resource = entry.resource
    membership = entry.space.membership
    assert membership is not None
    want = Want(
        lver=(resource.lver or None) if resource.flags & wire.ResourceFlag.LVER else None,
        num_hosts=resource.data32 if resource.flags & wire.ResourceFlag.NUM_HOSTS else None,
        patience_us=shared_retries * _SHARED_RETRY_US,
    )
    places = [(os.fsdecode(disk.path), disk.offset) for disk in resource.disks]
    async with HeldFiles([path for path, _ in places]):
        wait_us = 0
        while True:
            try:
                holding = membership.leases.start_acquire(
                    resource.name, places, shared=entry.shared, wait_us=wait_us, want=want
                )
            except LeaseBusy as error:
                is_leaving = error.state == HoldingPhase.RELEASING.value
                raise Refusal(errno.EAGAIN if is_leaving else errno.EBUSY) from error
            entry.holding = holding
            assert holding.operation is not None
            try:
                await finished(holding.operation)
            except asyncio.CancelledError:
                membership.leases.give_up(holding)
                raise
            except (LeaseHeld, WaitTimeout) as error:
                last = error.last if isinstance(error, WaitTimeout) else error
                if entry.shared and isinstance(last, LeaseHeld) and last.short_hold:
                    # Held for a moment only, by a host on its way to a shared lease; but the
                    # moment does not end.
                    raise Refusal(_SHORT_HOLD_STAYS) from last
                if no_wait or not isinstance(last, LeaseHeld) or last.alive:
                    raise last from None
                # Neither alive nor dead: the next attempt watches it for a while.
                wait_us = _OWNER_POLL_US
                continue
            except (DiskError, DiskTimeout) as error:
                if error.operation == "write" and (error.path, error.offset) not in places:
                    raise Refusal(_BLOCK_NOT_WRITTEN) from error
                raise
            break
    lease = holding.lease
    assert lease is not None
    entry.lver = lease.lver


async def read_lvb(entry: Entry) -> None:
    """Attach the value block as it is on the disk. Raises PaxosleaseError."""
    leases = leases_of(entry)
    assert entry.holding is not None
    reading = leases.start_on_lease(entry.holding, lambda lease: protocol.read_lvb(lease.claim))
    data: bytes = await finished(reading)
    entry.lvb = bytearray(data)
    entry.is_lvb_dirty = False


async def write_lvb(entry: Entry) -> None:
    """Write the value block if it was changed. Raises PaxosleaseError."""
    if entry.lvb is None or not entry.is_lvb_dirty:
        return
    data = bytes(entry.lvb)
    assert entry.holding is not None
    leases = leases_of(entry)
    await finished(
        leases.start_on_lease(entry.holding, lambda lease: protocol.write_lvb(lease, data))
    )
    entry.is_lvb_dirty = False
