"""Performs effects in virtual time: the duties of protocol/effects.py on virtual disks and clocks.

Everything that happens is an entry of one heap, ordered by true time in microseconds; equal times
keep the order in which they were planned. So a run is a function of its seed.

A host's clock is `origin + true time * rate`. A paused host does nothing: what would reach it waits
for the end of the pause.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random as Rng
from typing import TYPE_CHECKING, Any, Final

from paxoslease.errors import (
    Cancelled,
    DecisionStale,
    DiskError,
    DiskTimeout,
    PaxosleaseError,
)
from paxoslease.protocol.effects import (
    Gather,
    Landed,
    Membership,
    Notify,
    Now,
    Observe,
    PetWatchdog,
    Random,
    Read,
    ReadBallot,
    ReadLockspace,
    RunKillpath,
    Signal,
    Sleep,
    Write,
)
from paxoslease.simulation.cluster.disk import Disk
from paxoslease.simulation.cluster.faults import Faults

if TYPE_CHECKING:
    from paxoslease.simulation.cluster.hosts import Host

BLOCKED: Final = object()
EIO: Final = 5


class Task:
    """A protocol that runs on a host. `ended` is called with its result or error."""

    __slots__ = (
        "alive",
        "cancelled",
        "ended",
        "gathered",
        "host",
        "member",
        "missing",
        "name",
        "protocol",
        "sleeping",
    )

    def __init__(self, host: Host, name: str, protocol: Any, ended: Callable[..., None]) -> None:
        self.host = host
        self.member = host.member
        self.name = name
        self.protocol = protocol
        self.ended = ended
        self.alive = True
        self.cancelled = False
        self.sleeping = 0  # serial of the event that would wake a cancellable sleep
        self.gathered: list[Any] | None = None
        self.missing = 0


class Flight:
    """A write that was given to a disk. `sectors`: what has not landed yet."""

    __slots__ = (
        "disk",
        "effect",
        "error",
        "host",
        "sectors",
        "slot",
        "task",
        "timed_out",
        "waiter",
    )

    def __init__(self, task: Task, effect: Write, slot: int, disk: Disk) -> None:
        self.task = task
        self.host = task.host
        self.effect = effect
        self.slot = slot
        self.disk = disk
        size = disk.sector_size
        data = effect.data
        self.sectors = [(effect.offset + i, data[i : i + size]) for i in range(0, len(data), size)]
        self.error: DiskError | None = None
        self.timed_out = False
        self.waiter: Task | None = None


class Driver:
    """The clock, the heap and the disks of a run."""

    def __init__(self, rng: Rng, faults: Faults) -> None:
        self.now = 0
        self.rng = rng
        self.faults = faults
        self.disks: dict[str, Disk] = {}
        self.steps = 0
        self.ios = 0
        self._serial = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._tickets: dict[int, Flight] = {}
        self.on_land: Callable[[Flight, int, bytes], None] | None = None
        self._handlers: dict[type, Callable[[Task, Any], Any]] = {
            Now: lambda task, effect: task.host.local(self.now),
            Random: lambda task, effect: rng.randrange(effect.below) if effect.below > 1 else 0,
            Sleep: self._sleep,
            Read: self._io,
            ReadBallot: self._io,
            ReadLockspace: self._io,
            Write: self._io,
            Gather: self._gather,
            Landed: self._landed,
            Membership: lambda task, effect: task.member.standing(task.host.local(self.now)),
            Observe: lambda task, effect: task.member.table.seen(effect.host_id),
            PetWatchdog: lambda task, effect: task.host.pet(task, effect),
            Signal: lambda task, effect: task.host.signal(effect),
            RunKillpath: lambda task, effect: False,
            Notify: lambda task, effect: task.host.notify(task, effect.event),
        }

    # -- time ------------------------------------------------------------------------------------

    def at(self, when_us: int, action: Callable[..., None], *arguments: Any) -> int:
        """Plan an action for a moment of true time. Returns its serial number."""
        self._serial += 1
        heapq.heappush(self._heap, (when_us, self._serial, action, arguments))
        return self._serial

    def run_until(self, end_us: int, done: Callable[[], bool]) -> None:
        """Let time pass until a moment, or until `done` says so."""
        heap = self._heap
        while heap and heap[0][0] <= end_us:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.steps += 1
            action(*arguments)
            if not self.steps & 15 and done():
                return
        if not done():
            self.now = end_us

    # -- tasks -----------------------------------------------------------------------------------

    def start(self, task: Task) -> None:
        """Begin to run a task, as soon as its host runs."""
        task.host.tasks.append(task)
        self.at(self.now, self._resume, task, None, None)

    def drop(self, task: Task) -> None:
        """End a task without asking it; what it has in flight goes on."""
        task.alive = False

    def cancel(self, task: Task) -> None:
        """Cancel a task at its next cancellable sleep."""
        if task.sleeping:
            task.sleeping = 0
            self.at(self.now, self._resume, task, None, Cancelled())
        else:
            task.cancelled = True

    def _resume(self, task: Task, answer: Any, error: PaxosleaseError | None) -> None:
        if not task.alive:
            return
        if task.host.paused_until > self.now:
            self.at(task.host.paused_until, self._resume, task, answer, error)
            return
        handlers = self._handlers
        protocol = task.protocol
        while task.alive:
            try:
                effect = protocol.send(answer) if error is None else protocol.throw(error)
            except StopIteration as end:
                self._end(task, end.value, None)
                return
            except PaxosleaseError as failure:
                self._end(task, None, failure)
                return
            error = None
            try:
                answer = handlers[type(effect)](task, effect)
            except PaxosleaseError as failure:
                error = failure
            else:
                if answer is BLOCKED:
                    return

    def _end(self, task: Task, result: Any, error: PaxosleaseError | None) -> None:
        task.alive = False
        task.host.tasks.remove(task)
        task.ended(task, result, error)

    def _sleep(self, task: Task, effect: Sleep) -> Any:
        if effect.cancellable and task.cancelled:
            task.cancelled = False
            raise Cancelled
        if effect.duration_us <= 0:
            return None
        host = task.host
        wake = host.true_at(host.local(self.now) + effect.duration_us)
        if effect.cancellable:
            task.sleeping = self.at(wake, self._wake, task, self._serial + 1)
        else:
            self.at(wake, self._resume, task, None, None)
        return BLOCKED

    def _wake(self, task: Task, serial: int) -> None:
        if task.sleeping == serial:
            task.sleeping = 0
            self._resume(task, None, None)

    # -- disks -----------------------------------------------------------------------------------

    def _io(self, task: Task, effect: Any) -> Any:
        if self._stands_still(task, effect):
            return BLOCKED
        self._submit(task, effect, -1)
        return BLOCKED

    def _stands_still(self, task: Task, effect: Any) -> bool:
        """Let the host pause between a decision and the I/O that it leads to."""
        if type(effect) not in (Write, Gather) or not self.faults.pauses():
            return False
        host = task.host
        host.pause(self.faults.pause_us())
        self.at(host.paused_until, self._again, task, effect)
        return True

    def _again(self, task: Task, effect: Any) -> None:
        if not task.alive:
            return
        if task.host.paused_until > self.now:
            self.at(task.host.paused_until, self._again, task, effect)
            return
        try:
            if type(effect) is Gather:
                answer = self._gather(task, effect)
                if answer is not BLOCKED:
                    self._resume(task, answer, None)
            else:
                self._submit(task, effect, -1)
        except PaxosleaseError as error:
            self._resume(task, None, error)

    def _gather(self, task: Task, effect: Gather) -> Any:
        if self._stands_still(task, effect):
            return BLOCKED
        task.gathered = results = [None] * len(effect.effects)
        task.missing = len(results)
        for slot, one in enumerate(effect.effects):
            try:
                self._submit(task, one, slot)
            except PaxosleaseError as error:
                results[slot] = error  # type: ignore[call-overload]
                task.missing -= 1
        if task.missing:
            return BLOCKED
        task.gathered = None
        return tuple(results)

    def _answer(self, task: Task, slot: int, answer: Any, error: PaxosleaseError | None) -> None:
        if slot < 0:
            self._resume(task, answer, error)
            return
        if not task.alive:
            return
        gathered = task.gathered
        assert gathered is not None
        gathered[slot] = answer if error is None else error
        task.missing -= 1
        if task.missing == 0:
            task.gathered = None
            self._resume(task, tuple(gathered), None)

    def _submit(self, task: Task, effect: Any, slot: int) -> None:
        """Give an I/O to its disk. Raises DecisionStale, DiskTimeout (over a stuck write)."""
        host = task.host
        is_write = type(effect) is Write
        if is_write:
            late_us = (
                0 if effect.not_after_us is None else host.local(self.now) - effect.not_after_us
            )
            if late_us > 0:
                raise DecisionStale(task.member.space.name, late_us)
            if host.flights and host.is_over_stuck(effect):
                raise DiskTimeout(effect.path, effect.offset, "write", effect.timeout_us)
        self.ios += 1
        latency = self.faults.latency_us(effect.timeout_us)
        if host.hangs_until > self.now:
            latency += host.hangs_until - self.now
        if is_write:
            self._write(task, effect, slot, latency)
        else:
            self._read(task, effect, slot, latency)

    def _read(self, task: Task, effect: Any, slot: int, latency: int) -> None:
        if latency > effect.timeout_us:
            error: StorageTrouble = DiskTimeout(
                effect.path, effect.offset, "read", effect.timeout_us
            )
            self.at(self.now + effect.timeout_us, self._answer, task, slot, None, error)
            return
        if self.faults.fails():
            error = DiskError(effect.path, effect.offset, "read", EIO, "simulated")
            self.at(self.now + latency, self._answer, task, slot, None, error)
            return
        disk = self.disks[effect.path]
        early: dict[int, bytes] = {}
        kind = type(effect)
        if kind is not Read and self.faults.splits():
            early = {o: d for o, d in disk.sample(effect).items() if self.rng.random() < 0.5}
        elif self.rng.random() < 0.5:
            early = disk.sample(effect)
        self.at(self.now + latency, self._did_read, task, effect, slot, disk, early)

    def _did_read(
        self, task: Task, effect: Any, slot: int, disk: Disk, early: dict[int, bytes]
    ) -> None:
        if not task.alive:
            return
        seen = disk.sample(effect)
        seen.update(early)
        self._answer(task, slot, disk.answer(effect, seen), None)

    def _write(self, task: Task, effect: Write, slot: int, latency: int) -> None:
        flight = Flight(task, effect, slot, self.disks[effect.path])
        task.host.flights.append(flight)
        end = self.now + latency
        if self.faults.fails():
            flight.error = DiskError(effect.path, effect.offset, "write", EIO, "simulated")
            if self.rng.random() < 0.5:
                flight.sectors = flight.sectors[1:]
        if latency > effect.timeout_us:
            self.at(self.now + effect.timeout_us, self._time_out, flight)
        elif self.rng.random() < 0.3:
            self.land(flight)
        elif self.rng.random() < 0.3:
            self.at(self.now + latency // 2, self.land, flight)
        if len(flight.sectors) > 1:
            self.rng.shuffle(flight.sectors)
            for i in range(len(flight.sectors)):
                self.at(self.now + latency * i // len(flight.sectors), self._land_one, flight)
        self.at(end, self.finish, flight)

    def _land_one(self, flight: Flight) -> None:
        if flight.sectors:
            offset, data = flight.sectors.pop()
            if self.on_land is not None:
                self.on_land(flight, offset, data)
            flight.disk.sectors[offset] = data

    def land(self, flight: Flight) -> None:
        """Let what is left of a write reach the disk."""
        while flight.sectors:
            self._land_one(flight)

    def finish(self, flight: Flight) -> None:
        host = flight.host
        if flight not in host.flights:
            return  # the host was reset meanwhile
        self.land(flight)
        host.flights.remove(flight)
        if not flight.timed_out:
            self._answer(flight.task, flight.slot, None, flight.error)
        elif flight.waiter is not None:
            self._resume(flight.waiter, None, flight.error)

    def _time_out(self, flight: Flight) -> None:
        host = flight.host
        if flight not in host.flights:
            return
        if host.paused_until > self.now:
            self.at(host.paused_until, self._time_out, flight)
            return
        flight.timed_out = True
        self._serial += 1
        self._tickets[self._serial] = flight
        effect = flight.effect
        error = DiskTimeout(effect.path, effect.offset, "write", effect.timeout_us, self._serial)
        self._answer(flight.task, flight.slot, None, error)

    def _landed(self, task: Task, effect: Landed) -> Any:
        flight = self._tickets.pop(effect.ticket, None)
        if flight is None or flight not in task.host.flights:
            if flight is not None and flight.error is not None:
                raise flight.error
            return None
        flight.waiter = task
        return BLOCKED


StorageTrouble = DiskTimeout | DiskError
