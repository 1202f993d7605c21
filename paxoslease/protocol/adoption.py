"""Going on with a membership that a dead predecessor left behind, without joining anew.

A daemon that is restarted, or was killed and started again, finds processes that use leases under
its predecessor's host id and generation. Joining anew would make a larger generation and so void
all of them at once (spec/algorithms.md 15.2). Instead the successor shows that the membership is
still good and renews it: same id, same generation, same name.

Why it is safe:

  - *One writer.* Nothing that the predecessor wrote can land any more. A crash: the kernel ends a
    process's asynchronous I/O (exit_aio waits for it) before it closes the process's files, and
    with them gives back the lock on the pid file that the predecessor held all its life; the
    successor holds that lock. This needs an address space that nobody shared: a child between
    vfork and exec, or a reader of /proc/PID that hangs, would put the wait off. A re-exec: the old
    image had nothing in flight (engine/adoption.py), and exec itself waits for what there might be.
    Should a renewal of the predecessor land in spite of that, it bears our own owner fields: it
    looks like life for a moment, and our next renewal finds a record that is not the last one
    written and ends the membership.
  - *Nobody took over.* Others take this host's leases only after its record stood still for `dead`,
    and its host id only with a change of the record. So a record that is still ours and, by our own
    clock, was renewed less than `fail` ago proves that no lease of this generation is another's
    (M2). The time counts from the last renewal, whoever made it: an adoption lengthens nothing,
    only the renewal that follows at once does.
  - *Which moment.* If the record is the one that was noted, the moment noted with it counts.
    Otherwise the predecessor renewed afterwards, and its timestamp is all there is. It is in
    seconds of CLOCK_BOOTTIME of this boot and at most one ahead of the moment before its write
    (membership._next_due), so a second is taken off.
  - *One boot.* The owner sees to it that what was noted is of this boot and of this clock; a reset
    ends every process that could be taken on.

What was under way at a crash, an acquisition or a release, is brought to an end by `outcome.py`;
the rules for writes that timed out (M7, M8) cover it, because a killed writer is only a slow one
whose writes have all landed.

Source: spec/algorithms.md 2.2, 13, 16; spec/timing-and-recovery.md 3 and 5; rules M1, M2, M7, M17.
"""

from __future__ import annotations

from typing import NamedTuple

from paxoslease.disk.records import Leader
from paxoslease.errors import AdoptionRefused, BadRecord, StorageError
from paxoslease.protocol.delta import Held, read_delta
from paxoslease.protocol.effects import Now, Protocol, Sleep
from paxoslease.protocol.membership import RETRY_PAUSE_US, Member, stay
from paxoslease.timing import SECOND_US

AHEAD_US = SECOND_US  # how far a timestamp may be ahead of the moment before its write


class Legacy(NamedTuple):
    """What a predecessor noted of its membership.

    held: as it was then. is_final: it did not renew after it had noted this.
    """

    held: Held
    is_final: bool


def resume(member: Member, legacy: Legacy) -> Protocol[None]:
    """Live in a lockspace as its member already: prove it, renew at once, then as `live`.

    Nothing is written before the proof, and nothing after a failed one. Notifies as `live`. Raises
    AdoptionRefused, BadRecord, DiskTimeout, DiskError, Cancelled before Joined; returns after it.
    """
    held = yield from prove(member, legacy)
    yield from stay(member, held)


def prove(member: Member, legacy: Legacy) -> Protocol[Held]:
    """Show that a membership is still ours and in time; return what is held. Raises as `resume`."""
    found = yield from _read_own(member, legacy)
    held = _recognise(member, legacy, found)
    now_us: int = yield Now()
    if member.failure is not None:
        raise _refused(member, member.failure.reason)
    if now_us < held.renewed_us:
        raise _refused(member, "its record is of a later time than it is")
    # Strictly more than one I/O must be left, or the first renewal could not be in time.
    if now_us + member.timing.io_us >= held.renewed_us + member.timing.fail_us:
        still_us = now_us - held.renewed_us
        raise _refused(member, f"it was not renewed for {still_us // SECOND_US} s")
    return held


def _read_own(member: Member, legacy: Legacy) -> Protocol[Leader]:
    """Read the own record once, and again while what was noted is surely in time.

    Raises BadRecord, DiskTimeout, DiskError, Cancelled.
    """
    until_us = legacy.held.renewed_us + member.timing.fail_us - member.timing.io_us
    while True:
        failure: StorageError
        try:
            return (yield from read_delta(member.space, member.host_id, member.timing))
        except BadRecord:
            raise
        except StorageError as error:
            failure = error
        now_us: int = yield Now()
        if now_us + RETRY_PAUSE_US >= until_us or member.failure is not None:
            raise failure
        del failure
        yield Sleep(RETRY_PAUSE_US, cancellable=True)


def _recognise(member: Member, legacy: Legacy, found: Leader) -> Held:
    """Return what is held if the record found is one that we wrote. Raises AdoptionRefused."""
    held = legacy.held
    noted = held.leader
    if found.is_free:
        raise _refused(member, "it was left")
    if _unchanging(found) != _unchanging(noted):
        raise _refused(member, "its record was changed by others")
    if held.certain and found == noted:
        return held
    if held.certain and (legacy.is_final or found.timestamp <= noted.timestamp):
        raise _refused(member, "its record is not the one that was written last")
    renewed_us = max(held.renewed_us, found.timestamp * SECOND_US - AHEAD_US)
    if found.timestamp < noted.timestamp:
        # The last write was uncertain and did not get there. Its timestamp is not used again (M17).
        return Held(noted, renewed_us, False)
    return Held(found, renewed_us, True)


def _unchanging(leader: Leader) -> Leader:
    """Return what no renewal changes: owner, generation, name, sizes, io_timeout."""
    return leader._replace(
        timestamp=0, checksum=0, write_id=0, write_generation=0, write_timestamp=0
    )


def _refused(member: Member, reason: str) -> AdoptionRefused:
    return AdoptionRefused(member.space.name, member.host_id, reason)
