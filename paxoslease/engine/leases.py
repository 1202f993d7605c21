"""The leases that this process holds in one lockspace: who uses which, and when they are lost.

A lease has one user per host: what is being acquired, held or released here cannot be had a second
time (LeaseBusy). A lease that is lost stays in the registry until its user has given it back, since
until then nobody knows that he has stopped.

`_lock` protects the registry and is never held across I/O. Losing happens in one critical section:
after it no lease can become held, and every one that is held is marked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import Area, Sizes, default_sizes
from paxoslease.engine.operation import Operation, now_us
from paxoslease.engine.state import LeaseState, lease_state
from paxoslease.errors import (
    BadState,
    Cancelled,
    LeaseBusy,
    LeaseLost,
    LockspaceFailed,
    PaxosleaseError,
    ReleaseRefused,
)
from paxoslease.protocol import leases as protocol
from paxoslease.protocol.contention import NO_TURN, Turn, acquire_waiting, turn_after
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.leases import Lease
from paxoslease.protocol.outcome import Settled, settle_unknown
from paxoslease.protocol.paxos import ANYTHING, Want

if TYPE_CHECKING:
    from paxoslease.engine.host import Membership

T = TypeVar("T")

TURNS: Final = 1024


class Lost:
    """An event that comes at most once: a lease or a membership is lost. Thread-safe."""

    __slots__ = ("_event", "reason")

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
    CONVERTING = "being converted"
    RELEASING = "being released"
    SETTLING = "being settled after a restart"
    GONE = "not held"


class Holding:
    """One lease in the registry.

    files: the open files of its disks and of the lockspace, by path; paths: those to give back.
    is_unwanted: whoever asked for it does not want it any more, it is released once acquired.
    """

    __slots__ = (
        "files",
        "is_unwanted",
        "lease",
        "lost",
        "name",
        "operation",
        "paths",
        "phase",
    )

    def __init__(self, name: bytes, paths: tuple[str, ...]) -> None:
        self.name = name
        self.paths = paths
        self.phase = Phase.ACQUIRING
        self.lost = Lost()
        self.is_unwanted = False
        self.files: Mapping[str, DirectFile] = {}
        self.lease: Lease | None = None
        self.operation: Operation[Any] | None = None  # the last thing that was done with it


class Leases:
    """The registry of one membership. Its methods may be called by any thread."""

    def __init__(self, membership: Membership, used_changed: Callable[[], None]) -> None:
        self.lost = Lost()
        self._membership = membership
        self._engine = membership.engine
        self._lockspace = membership.lockspace
        self._used_changed = used_changed
        self._lock = threading.Lock()
        self._holdings: dict[bytes, Holding] = {}
        self._turns: OrderedDict[bytes, Turn] = OrderedDict()
        self._is_closed = False

    def lose(self, reason: str) -> bool:
        """Mark all leases as lost, for ever; False when they were already.

        Who waits for something that is done with one of them is told now: its thread may hang in
        the disk.
        """
        with self._lock:
            if self.lost.is_set():
                return False
            holdings = list(self._holdings.values())
            for holding in holdings:
                holding.lost.set(reason)
            self.lost.set(reason)
        for holding in holdings:
            if holding.operation is not None:
                holding.operation.tell(None, LeaseLost(self._lockspace, holding.name, reason))
        return True

    @property
    def are_used(self) -> bool:
        """Tell whether any lease is held or worked on in this process."""
        return bool(self._holdings)

    # -- acquiring -------------------------------------------------------------------------------

    def start_acquire(
        self,
        name: bytes,
        places: Sequence[tuple[str, int]],
        *,
        shared: bool,
        wait_us: int | None,
        want: Want = ANYTHING,
    ) -> Holding:
        """Begin to acquire; opens the files. `operation` of the result is to be waited for.

        Raises LeaseBusy, DiskError, UnsuitableDevice, LockspaceFailed.
        """
        self._membership.member.standing(now_us())
        holding, claim = self._enter(name, places, Phase.ACQUIRING)
        with self._lock:
            turn = self._turns.get(name, NO_TURN)
        until_us = None if wait_us is None else now_us() + wait_us
        attempt = acquire_waiting(claim, until_us, shared=shared, want=want, turn=turn)
        self._start(holding, self._acquire(holding, attempt))
        return holding

    def _enter(
        self,
        name: bytes,
        places: Sequence[tuple[str, int]],
        phase: Phase,
        sizes: Sizes | None = None,
        take: Callable[[str], DirectFile] | None = None,
    ) -> tuple[Holding, Claim]:
        """Enter a lease into the registry and open its files, or `take` them.

        Raises LeaseBusy, DiskError, UnsuitableDevice, LockspaceFailed.
        """
        holding = Holding(name, tuple(path for path, _ in places))
        holding.phase = phase
        with self._lock:
            if self._is_closed:
                raise LockspaceFailed(self._lockspace, "it is being left")
            present = self._holdings.get(name)
            if present is not None:
                raise LeaseBusy(self._lockspace, name, present.phase.value)
            self._holdings[name] = holding
            if self.lost.is_set():
                holding.lost.set(self.lost.reason)
        try:
            return holding, self._claim(holding, places, sizes, take or self._engine.files.hold)
        except BaseException:
            holding.paths = ()
            self._remove(holding)
            raise

    def _claim(
        self,
        holding: Holding,
        places: Sequence[tuple[str, int]],
        sizes: Sizes | None,
        take: Callable[[str], DirectFile],
    ) -> Claim:
        """Open the files of a holding and return the claim on its resource.

        Sizes that are not known are assumed to be the lockspace's; the protocol adopts those of
        the lease.
        """
        member = self._membership.member
        held: list[DirectFile] = []
        try:
            for path in holding.paths:
                held.append(take(path))
        except BaseException:
            for file in held:
                self._engine.files.drop(file.path)
            raise
        holding.files = {file.path: file for file in (*held, self._membership.file)}
        if sizes is None:
            sizes = member.space.area.sizes
            coarse = max(file.sector_size for file in held)
            if sizes.sector_size < coarse:
                sizes = default_sizes(coarse)
        resource = Resource(
            holding.name, tuple(Area(path, offset, sizes) for path, offset in places)
        )
        return Claim(member.space, resource, member.timing, member.host_id)

    def _acquire(self, holding: Holding, attempt: Protocol[Lease]) -> Protocol[None]:
        """Acquire, and attach the lease in one step with the check that the lockspace is good."""
        try:
            lease = yield from attempt
        except BaseException:
            self._remove(holding)
            raise
        operation = holding.operation
        assert operation is not None
        with self._lock:
            holding.lease = lease
            # Told already: the caller got the error of a write that came back late after all.
            wanted = not holding.is_unwanted and not operation.done
            holding.phase = Phase.HELD if wanted else Phase.RELEASING
        if not wanted:
            yield from self._give_back(holding, lease, None, None)
            raise Cancelled
        try:
            # A pause since the attempt's last write may have outlasted the membership (M2).
            self._membership.member.standing(now_us())
        except LockspaceFailed as error:
            holding.lost.set(error.reason)
        if holding.lost.is_set():
            self._remove(holding)
            raise LeaseLost(self._lockspace, holding.name, holding.lost.reason)

    def give_up(self, holding: Holding) -> Operation[Any] | None:
        """Release what is held or comes of what is under way; nobody wants it any more.

        Returns the operation after whose end nothing is left of it.
        """
        with self._lock:
            holding.is_unwanted = True
            operation = holding.operation
            is_held = holding.phase is Phase.HELD
        if is_held:
            return self.start_release(holding)
        if operation is not None:
            operation.cancel()
        return operation

    def close(self) -> list[tuple[bytes, Operation[Any]]]:
        """Let no lease be had any more, and begin to release or forget all that there are.

        Returns what is to be waited for. Whoever still uses one of them learns that it is lost.
        """
        with self._lock:
            self._is_closed = True
            present = list(self._holdings.values())
        running: list[tuple[bytes, Operation[Any]]] = []
        for holding in present:
            if holding.lost.is_set():
                self.forget(holding)
            elif holding.phase is Phase.HELD:
                running.append((holding.name, self.start_release(holding)))
                holding.lost.set("its lockspace is being left")
            else:
                operation = self.give_up(holding)
                if operation is not None:
                    running.append((holding.name, operation))
        return running

    # -- what a predecessor held -----------------------------------------------------------------

    def snapshot(self, holding: Holding) -> LeaseState:
        """Return what a successor needs to hold a lease on. Raises LeaseLost, LeaseBusy."""
        return lease_state(self.check(holding))

    def restore(self, state: LeaseState) -> Holding:
        """Hold what a predecessor held; never blocks: its files are to be opened (Files.fulfil).

        It counts once the membership has joined. Raises BadState (not of this membership),
        LeaseBusy, LockspaceFailed.
        """
        self._check_state(state)
        holding, claim = self._enter(
            state.name, state.places, Phase.CONVERTING, state.sizes, self._engine.files.promise
        )
        with self._lock:
            holding.lease = Lease(claim, state.leader, state.own, state.shared)
            holding.phase = Phase.HELD
        return holding

    def _check_state(self, state: LeaseState) -> None:
        mine = (self._lockspace, *self._membership.identity)
        if (state.lockspace, state.host_id, state.generation) != mine:
            owner = f"{state.lockspace!r}, {state.host_id}, {state.generation}"
            raise BadState("state of a lease", "owner", f"{mine}", owner)

    def start_settle(
        self,
        name: bytes,
        places: Sequence[tuple[str, int]],
        *,
        before: LeaseState | None,
        keep: bool,
    ) -> Holding:
        """Begin to find out what became of an operation that a predecessor died over.

        before, keep: see protocol.outcome. `operation` of the result ends with a Settled; what it
        says is held is held then, all else is gone. It does not end before the disk takes it or
        the lockspace fails (LeaseLost).

        Raises LockspaceFailed, BadState, LeaseBusy, DiskError, UnsuitableDevice.
        """
        self._membership.member.standing(now_us())
        if before is not None:
            self._check_state(before)
        sizes = None if before is None else before.sizes
        holding, claim = self._enter(name, places, Phase.SETTLING, sizes)
        lease = None if before is None else Lease(claim, before.leader, before.own, before.shared)
        work = self._settle(holding, settle_unknown(claim, lease, keep=keep))
        self._start(holding, work, is_patient=True)
        return holding

    def _settle(self, holding: Holding, work: Protocol[Settled]) -> Protocol[Settled]:
        try:
            settled = yield from work
        except BaseException as error:
            holding.lost.set(str(error))
            self._remove(holding)
            raise
        if settled.lease is None:
            holding.lost.set(settled.found.value)
            self._remove(holding)
            return settled
        with self._lock:
            holding.lease = settled.lease
            holding.phase = Phase.HELD
        if holding.is_unwanted:
            yield from self._give_back(holding, settled.lease, None, None)
        return settled

    @property
    def unrest(self) -> str:
        """Say which lease is being worked on; empty for none."""
        with self._lock:
            present = list(self._holdings.values())
        for holding in present:
            if holding.phase is not Phase.HELD:
                name = holding.name.decode("utf-8", "backslashreplace")
                return f"lease {name} is {holding.phase.value}"
        return ""

    # -- what is held ----------------------------------------------------------------------------

    def check(self, holding: Holding) -> Lease:
        """Return the lease of a holding that is good. Raises LeaseLost, LeaseBusy."""
        if holding.lost.is_set():
            raise LeaseLost(self._lockspace, holding.name, holding.lost.reason)
        if holding.phase is Phase.GONE or holding.lease is None:
            raise LeaseLost(self._lockspace, holding.name, "it was released")
        if holding.phase is not Phase.HELD:
            raise LeaseBusy(self._lockspace, holding.name, holding.phase.value)
        return holding.lease

    def start_on_lease(
        self, holding: Holding, make: Callable[[Lease], Protocol[T]]
    ) -> Operation[T]:
        """Run a protocol that leaves the lease as it is. Raises LeaseLost, LeaseBusy."""
        work = make(self.check(holding))
        return self._engine.requests.start(work, holding.files, self._membership)

    def start_convert(
        self, holding: Holding, make: Callable[[Lease], Protocol[Lease]], *, gives_up: bool
    ) -> Operation[None]:
        """Run a protocol whose result is the lease from now on. Raises LeaseLost, LeaseBusy.

        gives_up: ReleaseRefused means that the lease is another's. After any other error it is held
        as before.
        """
        with self._lock:
            lease = self.check(holding)
            holding.phase = Phase.CONVERTING
            work = self._convert(holding, make(lease), gives_up)
            return self._start(holding, work)

    def _convert(
        self, holding: Holding, conversion: Protocol[Lease], gives_up: bool
    ) -> Protocol[None]:
        try:
            lease = yield from conversion
        except PaxosleaseError as error:
            is_gone = gives_up and isinstance(error, ReleaseRefused)
            if is_gone or isinstance(error, LockspaceFailed):
                holding.lost.set(str(error))
                self._remove(holding)
                raise
            with self._lock:
                holding.phase = Phase.HELD
            failure: PaxosleaseError | None = error
        else:
            with self._lock:
                holding.lease = lease
                holding.phase = Phase.HELD
            failure = None
        if holding.is_unwanted:
            assert holding.lease is not None
            yield from self._give_back(holding, holding.lease, None, None)
        if failure is not None:
            raise failure

    # -- releasing -------------------------------------------------------------------------------

    def start_release(
        self, holding: Holding, lvb: bytes | None = None, new_name: bytes | None = None
    ) -> Operation[PaxosleaseError | None]:
        """Begin to release a lease whose user has stopped. Raises LeaseLost, LeaseBusy."""
        with self._lock:
            lease = self.check(holding)
            holding.phase = Phase.RELEASING
            work = self._give_back(holding, lease, lvb, new_name)
            return self._start(holding, work)

    def _start(
        self, holding: Holding, work: Protocol[T], *, is_patient: bool = False
    ) -> Operation[T]:
        """Run the one thing that is done with a lease now."""
        operation = Operation(self._engine.requests, work, holding.files, self._membership)
        operation.is_patient = is_patient
        operation.is_impatient = not is_patient
        holding.operation = operation
        self._engine.requests.post(operation)
        return operation

    def _give_back(
        self, holding: Holding, lease: Lease, lvb: bytes | None, new_name: bytes | None
    ) -> Protocol[PaxosleaseError | None]:
        try:
            refused = yield from protocol.release(lease, lvb=lvb, new_name=new_name)
        except LockspaceFailed:
            self._remove(holding)
            raise
        except PaxosleaseError:
            holding.phase = Phase.HELD  # the LVB could not be written: held as before
            raise
        with self._lock:
            self._turns[holding.name] = turn_after(
                lease, now_us(), self._turns.get(holding.name, NO_TURN)
            )
            self._turns.move_to_end(holding.name)
            if len(self._turns) > TURNS:
                self._turns.popitem(last=False)
        self._remove(holding)
        return refused

    def forget(self, holding: Holding) -> None:
        """Drop a lost lease from the registry: its user has stopped.

        The disk is left to those who take over. What is under way with the lease may still write,
        so it keeps the lease in use, and the watchdog armed, until it has ended.
        """
        with self._lock:
            holding.is_unwanted = True
            is_idle = holding.phase is Phase.HELD
        if is_idle:
            self._remove(holding)

    def _remove(self, holding: Holding) -> None:
        with self._lock:
            if holding.phase is Phase.GONE:
                return
            holding.phase = Phase.GONE
            del self._holdings[holding.name]
        for path in holding.paths:
            self._engine.files.drop(path)
        if self.lost.is_set():
            self._used_changed()
