"""This process as a host: its memberships, the leases it holds, and what happens when one fails.

Threads (docs/safety.md has the whole table). The *renewal* runner owns every membership: its life,
its guard, its recovery. The *request* runner owns the lease operations. The caller's threads own
nothing; they hand over protocols and wait. What both runners look at is either set once (failure)
or replaced as a whole (the delta lease held, rows of the host table). `_lock` of a membership
protects the registry of leases only and is never held across I/O; the renewal runner takes it in
one place, to mark leases lost.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum
from typing import Any, Final, TypeVar

from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import Area, default_sizes
from paxoslease.engine.files import Files
from paxoslease.engine.processes import Process, Processes
from paxoslease.engine.runner import Context, Operation, Runner, now_us
from paxoslease.engine.watchdog import Watchdog
from paxoslease.errors import (
    Cancelled,
    LeaseBusy,
    LeaseLost,
    LockspaceFailed,
    PaxosleaseError,
    UnsuitableDevice,
)
from paxoslease.protocol import leases as protocol_leases
from paxoslease.protocol import recovery
from paxoslease.protocol.contention import NO_TURN, Turn, acquire_waiting, turn_after
from paxoslease.protocol.delta import open_lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import (
    HostSeen,
    PetWatchdog,
    Protocol,
    RunKillpath,
    Signal,
    Standing,
)
from paxoslease.protocol.leases import Lease
from paxoslease.protocol.membership import Failed, Joined, Marked, Member, Renewed, guard, live
from paxoslease.protocol.paxos import ANYTHING, Want
from paxoslease.protocol.settle import Unsettled
from paxoslease.timing import SECOND_US, Timing

T = TypeVar("T")
_log = logging.getLogger(__name__)

HISTORY: Final = 512
TURNS: Final = 1024


class Lost:
    """An event that comes at most once: a lease or a membership is lost. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """Make it happen; the first reason counts."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    def is_set(self) -> bool:
        """Tell whether it has happened."""
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for it; True when it has happened, False at the time-out."""
        return self._event.wait(timeout_s)


class Phase(Enum):
    """What this host does with a lease."""

    ACQUIRING = "being acquired"
    HELD = "held"
    RELEASING = "being released"


class Holding:
    """One lease in the registry of a membership."""

    __slots__ = ("file_paths", "lease", "lost", "phase")

    def __init__(self, file_paths: tuple[str, ...]) -> None:
        self.phase = Phase.ACQUIRING
        self.lease: Lease | None = None
        self.lost = Lost()
        self.file_paths = file_paths


class Engine:
    """What all memberships of this process share: two runners and the open files."""

    def __init__(self) -> None:
        self.files = Files()
        self.renewals = Runner("paxoslease-renew", depth=128)
        self.requests = Runner("paxoslease-request", depth=256)

    def run_once(self, protocol: Protocol[T], *paths: str, timeout_s: float | None = None) -> T:
        """Run a protocol without a membership on some paths, and wait for it."""
        held = [self.files.hold(path) for path in paths]
        try:
            operation = self.requests.start(protocol, {file.path: file for file in held})
            return operation.result(timeout_s)
        finally:
            for path in paths:
                self.files.drop(path)


_engine: list[Engine] = []
_engine_lock = threading.Lock()


def engine() -> Engine:
    """Return the engine of this process; its threads start with the first use."""
    with _engine_lock:
        if not _engine:
            _engine.append(Engine())
        return _engine[0]


class Membership(Context):
    """This host in one lockspace. Methods without a remark may be called by any thread."""

    def __init__(
        self,
        owner: Engine,
        member: Member,
        file: DirectFile,
        watchdog: Watchdog,
        on_event: Callable[[Any], None] | None,
    ) -> None:
        self.lockspace = member.space.name
        self.member = member
        self.lost = Lost()
        self.processes = Processes()
        self.history: deque[Renewed] = deque(maxlen=HISTORY)
        self._engine = owner
        self._file = file
        self._watchdog = watchdog
        self._on_event = on_event
        self._lock = threading.Lock()
        self._holdings: dict[bytes, Holding] = {}
        self._turns: OrderedDict[bytes, Turn] = OrderedDict()
        self._joined: Future[None] = Future()
        self._life: Operation[None] | None = None
        self._guard: Operation[None] | None = None
        self._recovery: recovery.Recovery | None = None

    # -- effects, on a runner's thread -----------------------------------------------------------

    def membership(self, now: int) -> Standing:
        return self.member.standing(now)

    def observe(self, host_id: int) -> HostSeen:
        return self.member.table.seen(host_id)

    def pet(self, effect: PetWatchdog) -> None:
        if effect.expire_us:
            self._watchdog.pet(effect.renewed_us, effect.expire_us)
        else:
            self._watchdog.disarm()

    def signal(self, effect: Signal) -> bool:
        process = self.processes.get(effect.process)
        return process is not None and process.signal(effect.signal)

    def killpath(self, effect: RunKillpath) -> bool:
        process = self.processes.get(effect.process)
        return process is not None and process.run_killpath()

    def notify(self, operation: Operation[Any], event: Any) -> None:
        if isinstance(event, Unsettled):
            if not operation.future.done():
                operation.future.set_exception(event.error)
            return
        if isinstance(event, Renewed):
            self.history.append(event)
            if event.error is not None:
                _log.warning("renewal_failed lockspace=%r error=%s", self.lockspace, event.error)
        elif isinstance(event, Joined):
            self._guard = self._engine.renewals.start(guard(self.member), {}, self)
            self._joined.set_result(None)
        elif isinstance(event, Failed):
            self._fail(event)
        elif not isinstance(event, Marked):
            _log.info("lockspace_event lockspace=%r event=%r", self.lockspace, event)
        if self._on_event is not None:
            self._on_event(event)

    def _fail(self, failed: Failed) -> None:
        """Mark every lease lost, and stop the processes that use them."""
        _log.critical("lockspace_failed lockspace=%r reason=%s", self.lockspace, failed.reason)
        if self.member.has_left:
            return
        with self._lock:
            holdings = list(self._holdings.values())
        for holding in holdings:
            holding.lost.set(failed.reason)
        self.lost.set(failed.reason)
        held = self.member.held
        ladder = recovery.begin(
            self.lockspace,
            0 if held is None else held.renewed_us,
            self.member.timing,
            tuple(_as_registered(process) for process in self.processes.alive()),
        )
        self._recovery = recovery.Recovery(ladder)
        self._tell_use()
        self._engine.renewals.start(recovery.recover(self._recovery), {}, self)

    def _tell_use(self) -> None:
        """Tell the recovery whether leases are still in use inside this process.

        A lost lease counts as used until its user has given it back: only then is it known that
        nothing would have to be stopped by the watchdog.
        """
        with self._lock:
            used = recovery.Used(bool(self._holdings))
        if self._recovery is not None:
            self._recovery.tell(used)

    # -- joining and leaving ---------------------------------------------------------------------

    def start_join(self) -> None:
        """Begin to acquire the host id. Raises WatchdogError."""
        self._watchdog.connect()
        self._life = self._engine.renewals.start(
            live(self.member), {self._file.path: self._file}, self
        )
        self._life.future.add_done_callback(self._life_ended)

    def await_join(self, timeout_s: float | None) -> None:
        """Wait until joined. Raises what delta.acquire raises, Cancelled, TimeoutError."""
        self._joined.result(timeout_s)

    def abandon_join(self) -> None:
        """End a join that is under way or failed; what was joined already is left."""
        if self._life is not None:
            if self._joined.done() and self._joined.exception() is None:
                self.leave(None)
                return
            self._life.cancel()
        self._close()

    def _life_ended(self, life: Future[None]) -> None:
        error = life.exception()
        if not self._joined.done():
            self._joined.set_exception(error or Cancelled())
        elif error is not None:
            # A membership never ends by an error of its own; if it does, nothing may go on.
            self.member.fail(f"internal error: {error}", None)
            _log.critical("membership_broken lockspace=%r", self.lockspace, exc_info=error)
            self._fail(Failed(f"internal error: {error}", None))

    def leave(self, timeout_s: float | None) -> None:
        """Release all leases and free the host id. Raises TimeoutError."""
        with self._lock:
            names = [n for n, h in self._holdings.items() if h.phase is Phase.HELD]
        for operation in [self._start_release(name, None, None) for name in names]:
            error = operation.future.exception(timeout_s)
            if error is not None and not isinstance(error, LockspaceFailed):
                _log.warning("release_failed lockspace=%r error=%s", self.lockspace, error)
        self.member.leave()
        assert self._life is not None
        self._life.cancel()
        if self._guard is not None:
            self._guard.cancel()
        self._life.result(timeout_s)
        self._close()

    def _close(self) -> None:
        self._watchdog.close()
        self._engine.files.drop(self._file.path)

    # -- leases ----------------------------------------------------------------------------------

    def claim(self, name: bytes, places: Sequence[tuple[str, int]]) -> tuple[Claim, dict[str, Any]]:
        """Return the claim on a resource and its open files, which the caller must drop.

        The sizes are assumed to be the lockspace's; the protocol adopts those of the lease.
        """
        files = {path: self._engine.files.hold(path) for path, _ in places}
        sizes = self.member.space.area.sizes
        coarse = max(file.sector_size for file in files.values())
        if sizes.sector_size < coarse:
            sizes = default_sizes(coarse)
        areas = tuple(Area(path, offset, sizes) for path, offset in places)
        resource = Resource(name, areas)
        claim = Claim(self.member.space, resource, self.member.timing, self.member.host_id)
        return claim, {**files, self._file.path: self._file}

    def start_acquire(
        self,
        name: bytes,
        places: Sequence[tuple[str, int]],
        *,
        shared: bool,
        wait_us: int | None,
        want: Want = ANYTHING,
    ) -> Operation[Lease]:
        """Begin to acquire. Raises LeaseBusy, DiskError, UnsuitableDevice, LockspaceFailed."""
        self.member.standing(now_us())
        paths = tuple(path for path, _ in places)
        with self._lock:
            present = self._holdings.get(name)
            if present is not None:
                raise LeaseBusy(self.lockspace, name, present.phase.value)
            self._holdings[name] = holding = Holding(paths)
            turn = self._turns.get(name, NO_TURN)
        try:
            claim, files = self.claim(name, places)
        except BaseException:
            self._forget(name, ())
            raise
        until_us = None if wait_us is None else now_us() + wait_us
        protocol = acquire_waiting(claim, until_us, shared=shared, want=want, turn=turn)
        return self._engine.requests.start(self._hold(name, holding, protocol), files, self)

    def _hold(self, name: bytes, holding: Holding, protocol: Protocol[Lease]) -> Protocol[Lease]:
        """Acquire, and attach the lease in one step with the check that the lockspace is good."""
        try:
            lease = yield from protocol
        except BaseException:
            self._forget(name, holding.file_paths)
            raise
        with self._lock:
            holding.lease = lease
            holding.phase = Phase.HELD
        if self.lost.is_set():
            holding.lost.set(self.lost.reason)
            self._forget(name, holding.file_paths)
            raise LeaseLost(self.lockspace, name, self.lost.reason)
        return lease

    def holding(self, name: bytes) -> Holding:
        """Return a lease that is held. Raises LeaseLost."""
        with self._lock:
            found = self._holdings.get(name)
        if found is None or found.lease is None:
            raise LeaseLost(self.lockspace, name, "it is not held")
        if found.lost.is_set():
            raise LeaseLost(self.lockspace, name, found.lost.reason)
        return found

    def start_release(
        self, name: bytes, lvb: bytes | None = None, new_name: bytes | None = None
    ) -> Operation[Any]:
        """Begin to release a lease whose user has stopped. Raises LeaseLost, LeaseBusy."""
        holding = self.holding(name)
        if holding.phase is not Phase.HELD:
            raise LeaseBusy(self.lockspace, name, holding.phase.value)
        return self._start_release(name, lvb, new_name)

    def _start_release(
        self, name: bytes, lvb: bytes | None, new_name: bytes | None
    ) -> Operation[Any]:
        with self._lock:
            holding = self._holdings[name]
            holding.phase = Phase.RELEASING
            lease = holding.lease
        assert lease is not None
        return self._engine.requests.start(
            self._give_back(name, holding, lease, lvb, new_name), self._files_of(holding), self
        )

    def _give_back(
        self,
        name: bytes,
        holding: Holding,
        lease: Lease,
        lvb: bytes | None,
        new_name: bytes | None,
    ) -> Protocol[PaxosleaseError | None]:
        try:
            refused = yield from protocol_leases.release(lease, lvb=lvb, new_name=new_name)
        except LockspaceFailed:
            self._forget(name, holding.file_paths)
            raise
        except PaxosleaseError:
            with self._lock:
                holding.phase = Phase.HELD  # the LVB could not be written: held as before
            raise
        self._forget(name, holding.file_paths)
        with self._lock:
            self._turns[name] = turn_after(lease, now_us())
            self._turns.move_to_end(name)
            if len(self._turns) > TURNS:
                self._turns.popitem(last=False)
        return refused

    def forget(self, name: bytes) -> None:
        """Drop a lost lease from the registry; the disk is left to those who take over."""
        with self._lock:
            holding = self._holdings.get(name)
        if holding is not None:
            self._forget(name, holding.file_paths)

    def _forget(self, name: bytes, paths: Sequence[str]) -> None:
        with self._lock:
            gone = self._holdings.pop(name, None)
        if gone is not None:
            for path in paths:
                self._engine.files.drop(path)
            self._engine.renewals.post(self._tell_use)

    def start_on_lease(
        self, name: bytes, make: Callable[[Lease], Protocol[T]], keep: bool = False
    ) -> Operation[T]:
        """Run a protocol on a lease that is held; `keep`: its result is the lease from now on."""
        holding = self.holding(name)
        lease = holding.lease
        assert lease is not None

        def run() -> Protocol[T]:
            result = yield from make(lease)
            if keep:
                with self._lock:
                    holding.lease = result  # type: ignore[assignment]
            return result

        return self._engine.requests.start(run(), self._files_of(holding), self)

    def start_protocol(self, protocol: Protocol[T], files: dict[str, DirectFile]) -> Operation[T]:
        """Run a protocol as this member on the request runner."""
        return self._engine.requests.start(protocol, {**files, self._file.path: self._file}, self)

    def _files_of(self, holding: Holding) -> dict[str, DirectFile]:
        files = {self._file.path: self._file}
        for path in holding.file_paths:
            files[path] = self._engine.files.hold(path)
            self._engine.files.drop(path)
        return files


def _as_registered(process: Process) -> recovery.Process:
    return recovery.Process(
        process.handle,
        recovery.Killpath.READY if process.killpath else recovery.Killpath.NONE,
        process.allows_sigterm,
        process.allows_sigkill,
    )


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


def microseconds(duration_s: float | None) -> int | None:
    """Return a duration in us; None stays None (no limit)."""
    return None if duration_s is None else int(duration_s * SECOND_US)
