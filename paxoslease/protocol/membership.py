"""A host's life in a lockspace: join, renew until told to stop or until it fails, leave.

The endless loop lives here and nowhere else; each renewal is one call of `delta`. What others must
know of the membership (may leases be used, until when) is in `Member`.

A membership ends in one of three ways. *Left*: no lease is held any more, the delta lease is
freed. *Failed*: `fail` has passed since the last acknowledged renewal; nothing is written any more,
processes are stopped (`recovery.py`), and others take over after `dead`. *Corrupt*: our record is
not ours any more; as failed, but at once.

Source: spec/algorithms.md 4; spec/timing-and-recovery.md 2 and 3; rules M2, M18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from paxoslease.errors import (
    BadRecord,
    Cancelled,
    LockspaceFailed,
    PaxosleaseError,
    RenewalRefused,
)
from paxoslease.protocol.delta import (
    NOTHING_ADVERTISED,
    Advertised,
    Held,
    Lockspace,
    acquire,
    next_record,
    read_image,
    release,
    write_renewal,
)
from paxoslease.protocol.effects import (
    LockspaceImage,
    Notify,
    Now,
    PetWatchdog,
    Protocol,
    Random,
    Sleep,
    Standing,
)
from paxoslease.protocol.hosts import HostTable
from paxoslease.timing import SECOND_US, Timing

RETRY_PAUSE_US = 500_000
NOT_IN_TIME = "its host id was not renewed in time"


class Joined(NamedTuple):
    """Notified when the host id is ours: leases may be had from now on."""

    held: Held


class Renewed(NamedTuple):
    """Notified after each renewal: how it went (times in us, on the own clock)."""

    renewed_us: int
    read_us: int
    write_us: int
    error: PaxosleaseError | None


class Marked(NamedTuple):
    """Notified when hosts want us to look at requests and events: their ids."""

    host_ids: tuple[int, ...]


class Failed(NamedTuple):
    """Notified once, when the membership is over without having been left."""

    reason: str
    error: PaxosleaseError | None


def _nothing(now_us: int) -> Advertised:
    return NOTHING_ADVERTISED


class Member:
    """The state of one membership, changed only by the thread that runs its life.

    `advertise(now_us)` says what the next renewal tells others (requests.py has one that does).
    Others read single attributes; the flags only ever go from false to true. `leave()` may be
    called by any thread: it only sets a flag that the life looks at, and its driver wakes it.

    limit_us: until when a membership that is taken on from a predecessor must have been found good
    (adoption.py); 0 for one that is joined, which has nothing to lose before.
    """

    def __init__(self, space: Lockspace, host_id: int, host_name: bytes, timing: Timing) -> None:
        self.space = space
        self.host_id = host_id
        self.host_name = host_name
        self.timing = timing
        self.table = HostTable(space.area.sizes.max_hosts, host_id)
        self.held: Held | None = None
        self.failure: Failed | None = None
        self.is_leaving = False
        self.has_left = False
        self.is_failure_told = False
        self.renewals = 0
        self.limit_us = 0
        self.advertise: Callable[[int], Advertised] = _nothing

    def leave(self) -> None:
        """Ask for the end: no new lease from now on, the host id is freed when the life sees it."""
        self.is_leaving = True

    def fail(self, reason: str, error: PaxosleaseError | None) -> bool:
        """End the membership without leaving; False when it had ended before."""
        if self.failure is not None or self.has_left:
            return False
        self.failure = Failed(reason, error)
        return True

    def untold_failure(self) -> Failed | None:
        """Return the failure to whoever asks first after it happened: it is notified once."""
        if self.failure is None or self.is_failure_told:
            return None
        self.is_failure_told = True
        return self.failure

    def standing(self, now_us: int) -> Standing:
        """Answer the effect Membership. Raises LockspaceFailed when no lease may be had or kept."""
        if self.held is None:
            raise LockspaceFailed(self.space.name, "not joined")
        if self.failure is not None:
            raise LockspaceFailed(self.space.name, self.failure.reason)
        if self.has_left:
            raise LockspaceFailed(self.space.name, "this host has left it")
        expires_us = self.held.renewed_us + self.timing.fail_us
        if now_us >= expires_us:
            raise LockspaceFailed(self.space.name, NOT_IN_TIME)
        return Standing(self.host_id, self.held.generation, expires_us)

    def expires_us(self) -> int:
        """Return when everything that uses leases must have stopped; 0 before the join."""
        held = self.held
        return self.limit_us if held is None else held.renewed_us + self.timing.fail_us


def live(member: Member, *, earlier_life_over: bool = False) -> Protocol[None]:
    """Live in a lockspace: join, renew until left or failed.

    Notifies Joined, Renewed, Marked, Failed. Raises what delta.acquire raises while joining; once
    joined it returns, with `member.has_left` or `member.failure` set.
    """
    held = yield from acquire(
        member.space,
        member.host_id,
        member.host_name,
        member.timing,
        earlier_life_over=earlier_life_over,
    )
    yield from stay(member, held)


def stay(member: Member, held: Held) -> Protocol[None]:
    """Be a member from now on, by a host id that is ours: renew at once, until left or failed.

    Arms the watchdog first; notifies and returns as `live`.
    """
    member.held = held
    yield PetWatchdog(member.space.name, held.renewed_us, held.renewed_us + member.timing.fail_us)
    yield Notify(Joined(held))
    now_us: int = yield Now()
    due_us = max(now_us, _next_second_us(held))
    while True:
        ended = yield from _pause(member, due_us)
        if ended:
            break
        began_us: int = yield Now()
        renewal = yield from _renew_once(member, began_us)
        yield Notify(renewal)
        if member.failure is not None:
            break
        due_us = yield from _next_due(member, began_us, renewal)
    if member.failure is not None:
        untold = member.untold_failure()
        if untold is not None:
            yield Notify(untold)
        return
    yield from _leave(member)


def guard(member: Member) -> Protocol[None]:
    """See to it that a membership fails in time, also while its life waits for a disk.

    `live` may hang in one write for as long as `dead`. Users of leases must have stopped before
    others may take over, so the clock decides, not the disk (M2). Notifies Failed.
    """
    while member.failure is None and not member.has_left:
        now_us: int = yield Now()
        left_us = member.expires_us() - now_us
        if left_us <= 0:
            member.fail(NOT_IN_TIME, None)
            untold = member.untold_failure()
            if untold is not None:
                yield Notify(untold)
            return
        try:
            yield Sleep(left_us, cancellable=True)
        except Cancelled:
            return


def _next_second_us(held: Held) -> int:
    """Return the moment from which on the next timestamp is at most a second ahead of the clock."""
    return held.leader.timestamp * SECOND_US


def _next_due(member: Member, began_us: int, renewal: Renewed) -> Protocol[int]:
    """Return when to renew next: half a second after a failure, else one interval on.

    After a failure the clock has to reach the timestamp that was tried: the next one is above it
    (M17), and so no timestamp is ever more than a second ahead of the clock. That is what whoever
    takes the membership over from a dead daemon relies on (adoption.py).

    The second renewal comes at a random moment of the interval, so that lockspaces joined together
    don't renew together ever after.
    """
    if renewal.error is not None:
        now_us: int = yield Now()
        assert member.held is not None
        return max(now_us + RETRY_PAUSE_US, _next_second_us(member.held))
    member.renewals += 1
    interval_us = member.timing.renewal_us
    if member.renewals == 1:
        spread_us: int = yield Random(interval_us * 3 // 4)
        return began_us + interval_us // 4 + spread_us
    # On a twentieth of the interval, never later: the lockspaces that fall on the same one wake the
    # thread once, which halves what a renewal costs, and still they are spread.
    due_us = began_us + interval_us
    return due_us - due_us % (interval_us // 20)


def _pause(member: Member, due_us: int) -> Protocol[bool]:
    """Wait until the next renewal is due; True when the membership ends instead."""
    while True:
        now_us: int = yield Now()
        if now_us >= member.expires_us():
            member.fail(NOT_IN_TIME, None)
            return True
        if member.is_leaving:
            return True
        if now_us >= due_us:
            return False
        try:
            yield Sleep(min(due_us, member.expires_us()) - now_us, cancellable=True)
        except Cancelled:
            member.leave()


def _renew_once(member: Member, began_us: int) -> Protocol[Renewed]:
    """Renew once and take the answer into the host table; every failure becomes part of `Renewed`.

    The table is fed before the write, while the image is at hand, and also when the write fails.
    """
    held = member.held
    assert held is not None
    wrote = is_uncertain = False
    read_us = began_us
    error: PaxosleaseError | None = None
    advertised = member.advertise(began_us)
    try:
        image: LockspaceImage = yield from read_image(member.space, held.host_id, member.timing)
        read_us = yield Now()
        marked = member.table.update(image.columns, read_us)
        wrote = True
        renewed = yield from write_renewal(member.space, held, member.timing, image, advertised)
        acknowledged_us: int = yield Now()
        if acknowledged_us >= member.expires_us():
            # Somebody may have been told meanwhile that the membership is over, so it is.
            member.fail(NOT_IN_TIME, None)
        member.held = renewed
        if marked:
            yield Notify(Marked(marked))
    except (RenewalRefused, BadRecord) as refusal:
        error = refusal
        member.fail("its delta lease was changed by others", refusal)
    except PaxosleaseError as failure:
        error = failure
        is_uncertain = wrote
    done_us: int = yield Now()
    if is_uncertain:
        # Either record may be on the disk now, or come there later. The timestamp kept is that of
        # this moment, which is no smaller than the one tried, so that the next differs (M17).
        tried = next_record(held, done_us, member.timing, advertised)
        member.held = held._replace(leader=tried, certain=False)
    return Renewed(
        member.held.renewed_us if member.held else 0, read_us - began_us, done_us - read_us, error
    )


def _leave(member: Member) -> Protocol[None]:
    """Free the host id, unless the disk does not let us: then others wait until we are dead."""
    assert member.held is not None
    member.has_left = True
    failure: PaxosleaseError | None = None
    try:
        yield from release(member.space, member.held, member.timing)
    except PaxosleaseError as error:
        failure = error
    if failure is not None:
        yield Notify(Failed("left, but the host id could not be freed", failure))
    yield PetWatchdog(member.space.name, 0, 0)
