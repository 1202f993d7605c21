"""Bringing what was written to an end, however long the disk takes.

A write that failed may have landed or not, and a lease that may be ours must not be forgotten: the
disk would name a live owner for ever. So the writes that give a lease up are repeated until one is
acknowledged, or until the membership is over: then the host's leases are void with it.

Source: spec/algorithms.md 16, rules M7, M8, M23.
"""

from __future__ import annotations

from typing import NamedTuple

from paxoslease.disk.records import SHORT_HOLD, HostSector, Leader
from paxoslease.errors import BadRecord, DecisionStale, ReleaseRefused, StorageError
from paxoslease.protocol.disks import (
    Claim,
    read_host_sector,
    read_leader,
    write_leader,
    write_own,
)
from paxoslease.protocol.effects import Membership, Notify, Now, Protocol, Sleep, Standing
from paxoslease.timing import SECOND_US


class Unsettled(NamedTuple):
    """The end of an operation does not get through to the disk; it goes on being tried.

    Yielded in Notify once per operation, so that a waiting caller can be told: the outcome is
    `error`, and until it is settled the lease counts as busy on this host.
    """

    error: StorageError


class Retry(NamedTuple):
    """How long the pause before the last try was."""

    pause_us: int = 0


def pause_before_retry(retry: Retry, error: StorageError | None, claim: Claim) -> Protocol[Retry]:
    """Wait before the next try: a tenth of io_timeout, doubled up to twice io_timeout.

    Notifies Unsettled before the first; `error` None: nothing went wrong, a decision was stale.
    """
    if error is not None and retry.pause_us == 0:
        yield Notify(Unsettled(error))
    pause_us = min(2 * claim.timing.io_us, max(claim.timing.io_us // 10, 2 * retry.pause_us))
    yield Sleep(pause_us)
    return Retry(pause_us)


class Shelf(NamedTuple):
    """A moment, and until when what is read after it may be acted upon."""

    standing: Standing
    now_us: int
    not_after_us: int


def shelf_life(claim: Claim) -> Protocol[Shelf]:
    """Begin to read and decide: a decision counts for one I/O time-out, and never beyond ours (M2).

    Raises LockspaceFailed.
    """
    standing: Standing = yield Membership()
    now_us: int = yield Now()
    return Shelf(standing, now_us, min(standing.expires_us, now_us + claim.timing.io_us))


def write_released(claim: Claim, own: HostSector) -> Protocol[HostSector]:
    """Write the own sector with RELEASED, everything else as it is, until it is on disk (M8).

    Raises LockspaceFailed.
    """
    own = own._replace(released=True)
    retry = Retry()
    while True:
        failure: StorageError | None = None
        shelf = yield from shelf_life(claim)
        try:
            yield from write_own(claim, own, shelf.not_after_us)
        except DecisionStale:
            failure = None
        except StorageError as error:
            failure = error
        else:
            return own
        retry = yield from pause_before_retry(retry, failure, claim)


def write_unshared(claim: Claim) -> Protocol[HostSector]:
    """Give up a shared lease: write the own sector without mode block and with RELEASED (7.2, M8).

    The block to keep is read each time: conversions that failed may have written a newer one (M3).
    Repeated until it is on disk; raises LockspaceFailed.
    """
    retry = Retry()
    while True:
        failure: StorageError | None = None
        shelf = yield from shelf_life(claim)
        try:
            own = yield from read_host_sector(claim, claim.host_id)
            own = own._replace(shared_generation=None, released=True)
            yield from write_own(claim, own, shelf.not_after_us)
        except DecisionStale:
            failure = None
        except StorageError as error:
            failure = error
        else:
            return own
        retry = yield from pause_before_retry(retry, failure, claim)


def free_leader(
    claim: Claim, last: Leader, name: bytes | None = None
) -> Protocol[ReleaseRefused | None]:
    """Write the leader of our version as free, whoever wrote it and even if it was rolled back.

    As long as neither a free leader nor RELEASED is visible nobody can take the next version, so
    this write cannot roll anything back (M23). A leader that is not ours any more is left alone
    and reported. A leader that is free already is not written again: somebody may be about to
    write the next version. Repeated until it is on disk; raises LockspaceFailed. A write that was
    reported as failed may have landed: a larger version that is found after it is no refusal.

    Raises ReleaseRefused when the resource is not there any more, or was deleted and made anew:
    then nothing in its area is ours to write. A leader with an older version is a rolled back one
    only if our own sector still shows our version; a formatter wipes that, nobody else does.
    """
    retry = Retry()
    tried = False
    while True:
        failure: StorageError | None = None
        writing = False
        shelf = yield from shelf_life(claim)
        try:
            found = yield from read_leader(claim)
            if found.lver < last.lver:
                mine = yield from read_host_sector(claim, claim.host_id)
                if mine.lver < last.lver:
                    raise _refused(claim, last, found.lver, found.owner_id)
            went_on = tried and found.lver > last.lver
            refused = None if went_on else _refusal(claim, last, found)
            is_free = found.lver == last.lver and found.is_free
            if refused is None and not (went_on or is_free):
                freed = last._replace(
                    timestamp=0,
                    flags=last.flags & ~SHORT_HOLD,
                    resource_name=last.resource_name if name is None else name,
                    write_id=claim.host_id,
                    write_generation=shelf.standing.generation,
                    write_timestamp=shelf.now_us // SECOND_US,
                ).sealed()
                writing = True
                yield from write_leader(claim, freed, shelf.not_after_us)
        except DecisionStale:
            failure = None
        except BadRecord as error:
            if error.field in ("magic", "space_name", "resource_name"):
                raise _refused(claim, last, 0, 0) from None
            failure = error
        except StorageError as error:
            failure = error
            tried = tried or writing
        else:
            return refused
        retry = yield from pause_before_retry(retry, failure, claim)


def _refusal(claim: Claim, last: Leader, found: Leader) -> ReleaseRefused | None:
    owner = (last.owner_id, last.owner_generation)
    foreign = found.lver > last.lver or (
        found.lver == last.lver and (found.owner_id, found.owner_generation) != owner
    )
    if not foreign:
        return None
    return _refused(claim, last, found.lver, found.owner_id)


def _refused(claim: Claim, last: Leader, lver: int, owner_id: int) -> ReleaseRefused:
    return ReleaseRefused(claim.space.name, claim.resource.name, last.lver, lver, owner_id)


def settle_release(claim: Claim, last: Leader, own: HostSector) -> Protocol[HostSector]:
    """Free a lease that may be ours: the leader first, then RELEASED (M23). Raises LockspaceFailed.

    A refusal needs nothing more than RELEASED: the version is over in either case. A resource that
    is gone needs nothing at all.
    """
    try:
        yield from free_leader(claim, last)
    except ReleaseRefused:
        return own._replace(released=True)
    return (yield from write_released(claim, own))
