"""This process as a host: its memberships, and what happens when one fails.

Threads (docs/safety.md has the whole table). The *renewal* runner runs every membership's life. The
*guard* runner, which never touches a disk, watches over their expiry and runs their recovery. The
*request* runner runs what is done with leases. The caller's threads own nothing; they hand over
protocols and wait. What several threads look at is either set once (failure, lost) or replaced as a
whole (the delta lease held, rows of the host table).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from paxoslease.disk.direct import DirectFile
from paxoslease.engine.core import Engine, engine as engine
from paxoslease.engine.leases import Leases
from paxoslease.engine.operation import Context, Operation, StillArmed, now_us
from paxoslease.engine.processes import Process, Processes, Wishes, as_registered
from paxoslease.engine.state import MembershipState, membership_state
from paxoslease.engine.watchdog_base import Watchdog
from paxoslease.errors import (
    Cancelled,
    LockspaceFailed,
    PaxosleaseError,
    UnsuitableDevice,
    WatchdogError,
)
from paxoslease.protocol import recovery
from paxoslease.protocol.adoption import Legacy, resume
from paxoslease.protocol.delta import open_lockspace
from paxoslease.protocol.effects import (
    HostSeen,
    PetWatchdog,
    Protocol,
    RunKillpath,
    Signal,
    Standing,
)
from paxoslease.protocol.membership import Failed, Joined, Marked, Member, Renewed, guard, live
from paxoslease.protocol.requests import Advertiser
from paxoslease.protocol.settle import Unsettled
from paxoslease.timing import IO_TIMEOUT_MAX_S, SECOND_US, Timing

T = TypeVar("T")
_log = logging.getLogger(__name__)

HISTORY: Final = 512
_SLICE_S: Final = 0.2


class Membership(Context):
    """This host in one lockspace. Methods without a remark may be called by any thread."""

    def __init__(
        self,
        owner: Engine,
        member: Member,
        file: DirectFile,
        watchdog: Watchdog,
        on_event: Callable[[Any], None] | None,
        legacy: Legacy | None = None,
    ) -> None:
        self.engine = owner
        self.lockspace = member.space.name
        self.member = member
        self.file = file
        self.leases = Leases(self, self._tell_use)
        self.processes = Processes()
        self.history: deque[Renewed] = deque(maxlen=HISTORY)
        self._watchdog = watchdog
        self._on_event = on_event
        self._legacy = legacy
        self._joined = threading.Event()
        self._join_error: BaseException | None = None
        self._life: Operation[None] | None = None
        self._guard: Operation[None] | None = None
        self._recovery: recovery.Recovery | None = None  # of the guard thread, as all below
        self._recovering: Operation[None] | None = None
        self._pet_lock = threading.Lock()  # held over a message to the watchdog, never over a disk
        self._is_disarmed = False
        self._is_used_otherwise = False
        self._waits_for_leases = True
        self._has_file = True

    # -- effects, on a runner's thread -----------------------------------------------------------

    def membership(self, now: int) -> Standing:
        return self.member.standing(now)

    def observe(self, host_id: int) -> HostSeen:
        return self.member.table.seen(host_id)

    def pet(self, effect: PetWatchdog) -> None:
        with self._pet_lock:
            if not effect.expire_us:
                self._is_disarmed = True
                self._watchdog.disarm()
            elif not self._is_disarmed:
                # A renewal whose answer comes after the recovery is over must not arm again.
                self._watchdog.pet(effect.renewed_us, effect.expire_us)

    def signal(self, effect: Signal) -> bool:
        process = self.processes.get(effect.process)
        return process is not None and process.signal(effect.signal)

    def killpath(self, effect: RunKillpath) -> bool:
        process = self.processes.get(effect.process)
        if process is None:
            return False

        def failed() -> None:
            self._post_event(recovery.NoKillpath(effect.process))

        return process.run_killpath(failed)

    def notify(self, operation: Operation[Any], event: Any) -> None:
        if isinstance(event, Unsettled):
            if not operation.is_patient:
                operation.tell(None, event.error)
            return
        if isinstance(event, Renewed):
            self._renewed(event)
        elif isinstance(event, Joined):
            self._start_guard()
            self._joined.set()
        elif isinstance(event, Failed):
            self.engine.guards.post(lambda: self._fail(event))
        elif not isinstance(event, Marked):
            _log.warning("lockspace_event lockspace=%r event=%r", self.lockspace, event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                # Somebody else's code; a membership does not end by it.
                _log.exception("on_event_failed lockspace=%r event=%r", self.lockspace, event)

    def _start_guard(self) -> None:
        """Watch over the expiry known now; one that watches over an earlier one is ended."""
        if self._guard is not None:
            self._guard.cancel()
        self._guard = self.engine.guards.start(guard(self.member), {}, self)
        self._guard.on_end(self._guard_ended)

    def _renewed(self, event: Renewed) -> None:
        self.history.append(event)
        if event.error is not None:
            _log.warning("renewal_failed lockspace=%r error=%s", self.lockspace, event.error)
        elif self._recovery is not None:
            self._post_event(recovery.LateRenewal(event.renewed_us))

    # -- failure, on the guard thread ------------------------------------------------------------

    def _fail(self, failed: Failed) -> None:
        """Mark every lease lost, and stop the processes that use them."""
        if self.member.has_left:
            _log.warning("lockspace_left lockspace=%r remark=%s", self.lockspace, failed.reason)
            return
        if self.leases.lose(failed.reason):
            _log.critical("lockspace_failed lockspace=%r reason=%s", self.lockspace, failed.reason)
            self._recover(is_forced=False)

    def _recover(self, *, is_forced: bool) -> None:
        """Start to stop the guarded processes; they are watched, so that an end is seen at once."""
        held = self.member.held or (self._legacy and self._legacy.held)
        processes = self.processes.alive()
        ladder = recovery.begin(
            self.lockspace,
            0 if held is None else held.renewed_us,
            self.member.timing,
            tuple(as_registered(process) for process in processes),
            is_forced=is_forced,
        )
        self._recovery = recovery.Recovery(ladder)
        # When the lockspace is left in good order, leases are released after the processes.
        self._waits_for_leases = not is_forced
        self._recovery.tell(recovery.Used(self._is_used and self._waits_for_leases))
        for process in processes:
            self._watch(process)
        context = StillArmed(self) if is_forced else self
        self._recovering = self.engine.guards.start(recovery.recover(self._recovery), {}, context)
        self._recovering.on_end(self._recovered)

    def _recovered(self, recovering: Operation[None]) -> None:
        error = recovering.exception()
        if error is not None:
            _log.critical("recovery_failed lockspace=%r error=%s", self.lockspace, error)

    def _watch(self, process: Process) -> None:
        def ended() -> None:
            self._post_event(recovery.Gone(process.handle))

        if process.pidfd >= 0:
            self.engine.guards.watch(process.pidfd, ended)

    def _post_event(self, event: recovery.Event) -> None:
        """Tell the recovery of something, on the thread that runs it."""

        def tell() -> None:
            if self._recovery is not None:
                self._recovery.tell(event)

        self.engine.guards.post(tell)

    def _tell_use(self) -> None:
        """Tell the recovery whether leases are still in use inside this process.

        A lost lease counts as used until its user has given it back: only then is it known that
        nothing would have to be stopped by the watchdog.
        """

        def tell() -> None:
            if self._recovery is not None:
                self._recovery.tell(recovery.Used(self._is_used and self._waits_for_leases))

        self.engine.guards.post(tell)

    @property
    def _is_used(self) -> bool:
        return self.leases.are_used or self._is_used_otherwise

    def set_used(self, is_used: bool) -> None:
        """Say whether somebody who holds no lease needs the lockspace until it is cleared."""
        self._is_used_otherwise = is_used
        self._tell_use()

    def kill_processes(self) -> None:
        """Begin to kill the guarded processes, as a part of leaving; `leave` waits for them."""
        if not self.leases.lost.is_set():
            self.engine.guards.post(lambda: self._recover(is_forced=True))

    def _guard_ended(self, guarding: Operation[None]) -> None:
        error = guarding.exception()
        if error is None:
            return
        # Without a guard nobody would see the expiry: nothing may go on.
        reason = f"internal error: {error}"
        self.member.fail(reason, None)
        self.leases.lose(reason)
        for process in self.processes.alive():
            process.signal(signal.SIGKILL)

    # -- joining and leaving ---------------------------------------------------------------------

    def start_join(self) -> None:
        """Begin to acquire the host id, or to go on with a predecessor's.

        Raises WatchdogError, LockspacePresent; with a predecessor's, which opens the file and may
        block, DiskError, UnsuitableDevice and LockspaceFailed, too.
        """
        self.engine.enter(self.member)
        try:
            if self._legacy is None:
                self._watchdog.connect()
            else:
                self._prepare(self._legacy)
        except BaseException as error:
            self.engine.leave(self.member)
            if self._legacy is not None:
                self._refused(error)
            raise
        life = live(self.member) if self._legacy is None else resume(self.member, self._legacy)
        self._life = self.engine.renewals.start(life, {self.file.path: self.file}, self)
        self._life.on_end(self._life_ended)

    def _prepare(self, legacy: Legacy) -> None:
        """See that a predecessor's membership can be gone on with, by the clock.

        The disk may not answer, or a thread hang in it: the clock goes on (M2). Raises as
        `start_join`.
        """
        if not self._watchdog.is_connected:
            reason = "the predecessor's claim was not handed over; it resets this host"
            raise WatchdogError(self.lockspace, reason)
        timing = self.member.timing
        expires_us = legacy.held.renewed_us + timing.fail_us
        self.member.limit_us = max(expires_us, now_us() + 2 * timing.io_us)
        self._start_guard()
        self.engine.files.fulfil(self.file.path)
        if not self._has_file:
            raise LockspaceFailed(self.lockspace, "it was given up while its disk was opened")

    def await_join(self, timeout_s: float | None) -> None:
        """Wait until joined. Raises what delta.acquire raises, Cancelled, TimeoutError."""
        if not self._joined.wait(timeout_s):
            raise TimeoutError
        if self._join_error is not None:
            raise self._join_error.with_traceback(None)

    def abandon_join(self) -> None:
        """End a join that is under way or failed; what was joined already is left.

        Returns at once. A join that had written its record goes on for the time that it needs to
        find out whether it may free it (`await_abandoned`).
        """
        if self._legacy is not None and self.member.held is None:
            # Somebody uses its leases, or did; that has to end before anything is given up.
            self._refused(Cancelled())
            self.leave(None)
        elif self._life is None:
            self._watchdog.close()
            self._drop_file()
        elif self._joined.is_set() and self._join_error is None:
            self.leave(None)
        else:
            # A join that succeeds in this very moment is left by the cancellation, too.
            self._life.cancel()
            self._life.on_end(lambda _: self._watchdog.close())

    def await_abandoned(self) -> None:
        """Wait until nothing of an abandoned join runs any more.

        No longer than it takes to settle beside the slowest contender and to write once.
        """
        if self._life is not None:
            with suppress(TimeoutError):
                self._life.exception(2 * IO_TIMEOUT_MAX_S + self.member.timing.dead_us / SECOND_US)

    def _life_ended(self, life: Operation[None]) -> None:
        self.engine.leave(self.member)
        self._drop_file()
        error = life.exception()
        if not self._joined.is_set():
            self._join_error = error or Cancelled()
            self._joined.set()
            if self._legacy is not None:
                self._refused(self._join_error)
        elif error is not None:
            # A membership never ends by an error of its own; if it does, nothing may go on.
            failed = Failed(f"internal error: {error}", None)
            if self.member.fail(*failed):
                self.engine.guards.post(lambda: self._fail(failed))

    def _refused(self, error: BaseException) -> None:
        """Stop what uses the leases of a membership that could not be gone on with."""
        failed = Failed(str(error), error if isinstance(error, PaxosleaseError) else None)
        if self.member.fail(*failed):
            self.engine.guards.post(lambda: self._fail(failed))

    def snapshot(self, advertiser: Advertiser | None = None) -> MembershipState:
        """Return what a successor needs to go on with this membership; does no I/O.

        advertiser: what is being told to others, kept for the successor. Raises LockspaceFailed
        when there is nothing to go on with: not joined, failed, left or being left.
        """
        return membership_state(self.member, advertiser, is_final=self.engine.is_resting)

    @property
    def identity(self) -> tuple[int, int]:
        """Return host id and generation; generation 0 while it is not known."""
        held = self.member.held or (self._legacy and self._legacy.held)
        return self.member.host_id, held.generation if held else 0

    @property
    def unrest(self) -> str:
        """Say what keeps this membership from being handed over; empty when nothing does."""
        if self._recovery is not None or self.member.failure is not None:
            return "it has failed and is being cleared"
        if self.member.held is None:
            return "it is being joined"
        if self.member.is_leaving or self.member.has_left:
            return "it is being left"
        return self.leases.unrest

    def leave(self, timeout_s: float | None) -> None:
        """Stop guarded processes, release all leases and free the host id.

        When the lockspace has failed, nothing is written; then it waits until nothing is left that
        the watchdog would have to stop. Raises TimeoutError: it can be called again.
        """
        until_us = None if timeout_s is None else now_us() + int(timeout_s * SECOND_US)

        def left_s() -> float | None:
            return None if until_us is None else max(0.0, (until_us - now_us()) / SECOND_US)

        self._sync_guards(left_s)
        self._stop_processes(left_s)
        for name, operation in self.leases.close():
            error = operation.exception(left_s())
            if error is not None and not isinstance(error, Cancelled):
                _log.warning(
                    "release_failed lockspace=%r lease=%r error=%s", self.lockspace, name, error
                )
        self.member.leave()
        if self._life is not None:
            self._life.cancel()
            while not self._life_is_over(left_s):
                continue
        if self._guard is not None:
            self._guard.cancel()
        self._await_recovery(left_s)
        self._watchdog.close()
        if self._life is None:
            self._drop_file()

    def _drop_file(self) -> None:
        """Give the lockspace's file back, once."""
        if self._has_file:
            self._has_file = False
            self.engine.files.drop(self.file.path)

    def _life_is_over(self, left_s: Callable[[], float | None]) -> bool:
        """Wait a little for the end of the life; a life that has failed may hang in a write."""
        assert self._life is not None
        if self._life.done or self.leases.lost.is_set():
            return True
        left = left_s()
        try:
            self._life.exception(_SLICE_S if left is None else min(left, _SLICE_S))
        except TimeoutError:
            if left is not None and left <= _SLICE_S:
                raise
            return False
        return True

    def _stop_processes(self, left_s: Callable[[], float | None]) -> None:
        """Kill what is guarded, since its leases are about to be given away."""
        alive = self.processes.alive()
        if alive and not self.leases.lost.is_set():
            _log.warning("processes_killed lockspace=%r reason=it is being left", self.lockspace)
            self.kill_processes()
        for process in alive:
            if not process.wait(left_s()):
                raise TimeoutError(f"process {process.pid} does not end")

    def _sync_guards(self, left_s: Callable[[], float | None]) -> None:
        """Wait until the guard thread has done what it was asked for."""
        settled = threading.Event()
        self.engine.guards.post(settled.set)
        if not settled.wait(left_s()):
            raise TimeoutError

    def _await_recovery(self, left_s: Callable[[], float | None]) -> None:
        """Wait for a recovery that is on; it ends by disarming the watchdog."""
        self._sync_guards(left_s)
        if self._recovering is not None:
            self._recovering.exception(left_s())

    # -- what is run as this member --------------------------------------------------------------

    def start_protocol(self, protocol: Protocol[T], files: dict[str, DirectFile]) -> Operation[T]:
        """Run a protocol as this member on the request runner."""
        return self.engine.requests.start(protocol, {**files, self.file.path: self.file}, self)

    def guard(self, pid: int, wishes: Wishes) -> Process:
        """Have a process stopped when the lockspace fails.

        Raises ConfigError when there is none, LockspaceFailed when it has failed already.
        """
        process = self.processes.add(pid, wishes)
        if self.leases.lost.is_set() or self.member.is_leaving:
            # Either this sees that leases are lost, or whoever lost them sees this process.
            self.unguard(process)
            raise LockspaceFailed(self.lockspace, self.leases.lost.reason or "it is being left")
        return process

    def unguard(self, process: Process) -> None:
        """Stop following a process, which does not use leases any more."""
        self.processes.remove(process)

        def end() -> None:
            self.engine.guards.unwatch(process.pidfd)
            process.close()
            if self._recovery is not None:
                self._recovery.tell(recovery.Gone(process.handle))

        self.engine.guards.post(end)


def open_membership(
    path: str,
    offset: int,
    name: bytes,
    host_id: int,
    host_name: bytes,
    timing: Timing,
    watchdog: Watchdog,
    on_event: Callable[[Any], None] | None = None,
) -> Membership:
    """Find the lockspace and return a membership that can `join`.

    Raises BadRecord, DiskError, DiskTimeout, UnsuitableDevice.
    """
    owner = engine()
    file = owner.files.hold(path)
    try:
        operation = owner.requests.start(open_lockspace(path, offset, name, timing), {path: file})
        space = operation.result()
        if file.sector_size > space.area.sector_size:
            raise UnsuitableDevice(
                path,
                offset,
                f"its sectors have {file.sector_size} bytes, the lockspace's "
                f"{space.area.sector_size}",
            )
        member = Member(space, host_id, host_name, timing)
        return Membership(owner, member, file, watchdog, on_event)
    except BaseException:
        owner.files.drop(path)
        raise
