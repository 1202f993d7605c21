"""A stage: a few machines in virtual time, on which a scenario says who is slow and who dies when.

Nothing here is random. Every I/O takes one millisecond unless the scenario made it slow, and a read
sees the disk as it is at its end. A machine has users of leases, which live on when its daemon is
killed, and a watchdog that resets it the fire time-out after the last expiry it was told. What two
users do at the same true instant is noted in `Stage.clashes`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import delta_at_format, pack_leader, paxos_at_format
from paxoslease.errors import DecisionStale, DiskError, DiskTimeout, PaxosleaseError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import (
    Landed,
    Membership,
    Notify,
    Now,
    Observe,
    PetWatchdog,
    Protocol,
    Random,
    Read,
    ReadBallot,
    ReadLockspace,
    Sleep,
    Write,
)
from paxoslease.protocol.hosts import HostTable
from paxoslease.protocol.membership import Failed, Member
from paxoslease.simulation.cluster.disk import Disk
from paxoslease.timing import SECOND_US, Timing

IO_US: Final = 1_000
PATH: Final = "disk"
SPACE: Final = Lockspace(b"ls", Area(PATH, 0, SIZES_512))
RESOURCE: Final = Resource(b"lease", (Area(PATH, SIZES_512.align_size, SIZES_512),))
_IOS = (Read, ReadBallot, ReadLockspace, Write)


class Job:
    """A protocol that runs on a machine. `is_done` when it ended, with `result` or `error`."""

    __slots__ = ("error", "is_alive", "is_done", "machine", "protocol", "result")

    def __init__(self, machine: Machine, protocol: Any) -> None:
        self.machine = machine
        self.protocol = protocol
        self.is_alive = True
        self.is_done = False
        self.result: Any = None
        self.error: PaxosleaseError | None = None


class Machine:
    """A host: its clock, its membership, its users, its watchdog."""

    def __init__(self, stage: Stage, label: str, host_id: int, timing: Timing) -> None:
        self.stage = stage
        self.label = label
        self.timing = timing
        self.member = Member(SPACE, host_id, b"", timing)
        self.claim = Claim(SPACE, RESOURCE, timing, host_id)
        self.jobs: list[Job] = []
        self.uses: list[str] = []
        self.events: list[Any] = []
        self.reads_fail = False  # those of renewals
        self.fires_us = 0
        self._slow: list[tuple[type, int, int]] = []
        self._naps: list[tuple[type, int, int]] = []
        self.acknowledges_late = False  # a slow write is on disk at once
        self.landings: dict[int, int] = {}  # ticket: when its write lands

    def local(self) -> int:
        """Return what the machine's clock shows."""
        return self.stage.now_us + 1000 * SECOND_US * self.claim.host_id

    def new_member(self, name: bytes) -> Member:
        """Return a membership for a new life."""
        self.member = Member(SPACE, self.claim.host_id, name, self.timing)
        self.member.table = HostTable(self.stage.hosts, self.claim.host_id)
        return self.member

    def start(self, protocol: Protocol[Any]) -> Job:
        """Begin to run a protocol."""
        job = Job(self, protocol)
        self.jobs.append(job)
        self.stage.resume(job, None, None)
        return job

    def slow(self, kind: type, offset: int, seconds: float) -> None:
        """Make the next I/O of a kind at an offset take this long."""
        self._slow.append((kind, offset, int(seconds * SECOND_US)))

    def nap(self, kind: type, offset: int, seconds: float) -> None:
        """Let the machine stand still just before the next I/O of a kind at an offset."""
        self._naps.append((kind, offset, int(seconds * SECOND_US)))

    def latency_us(self, effect: Any) -> int:
        """Return how long an I/O takes; what was made slow is slow once."""
        return _take(self._slow, effect) or IO_US

    def nap_us(self, effect: Any) -> int:
        """Return how long the machine stands still before an I/O, once."""
        return _take(self._naps, effect)

    def use(self, what: str) -> None:
        """Let somebody use a lease exclusively, until `stop` or the end of the machine."""
        others = [m.label for m in self.stage.machines if m is not self and what in m.uses]
        self.uses.append(what)
        self.stage.clashes.extend(
            (self.stage.now_us // SECOND_US, {label, self.label}) for label in others
        )

    def stop(self, what: str) -> None:
        """Let the user of a lease stop."""
        self.uses.remove(what)

    def pet(self, effect: PetWatchdog) -> None:
        """Arm the watchdog, or disarm it."""
        stage = self.stage
        self.fires_us = 0
        if effect.expire_us:
            left_us = effect.expire_us - self.local()
            self.fires_us = (
                stage.now_us + left_us + self.timing.watchdog_fire_timeout * SECOND_US - IO_US
            )
            stage.at(self.fires_us, self._fire, self.fires_us)

    def _fire(self, planned_us: int) -> None:
        if planned_us == self.fires_us:
            self.reset()

    def kill_daemon(self) -> None:
        """End what keeps the leases. Users live on, until the watchdog."""
        for job in self.jobs:
            job.is_alive = False
        self.jobs.clear()

    def reset(self) -> None:
        """End everything on the machine."""
        self.kill_daemon()
        self.uses.clear()
        self.fires_us = 0
        self.events.append("reset")


def _take(entries: list[tuple[type, int, int]], effect: Any) -> int:
    """Take the entry that was made for an effect; 0 if there is none."""
    for entry in entries:
        if entry[:2] == (type(effect), effect.offset):
            entries.remove(entry)
            return entry[2]
    return 0


class Stage:
    """The clock, the disk and the machines of a scenario."""

    def __init__(self, *, hosts: int = 3, format_io_timeout: int = 1) -> None:
        self.hosts = hosts
        self.now_us = 0
        self.machines: list[Machine] = []
        self.clashes: list[tuple[int, set[str]]] = []
        self.disk = Disk(PATH, SIZES_512.sector_size, hosts)
        self._serial = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        record = pack_leader(
            delta_at_format(SPACE.name, SIZES_512, format_io_timeout), SIZES_512.sector_size
        )
        for host_id in range(1, hosts + 1):
            self.disk.sectors[SPACE.area.delta(host_id)] = record
        leader = paxos_at_format(SPACE.name, RESOURCE.name, SIZES_512, hosts)
        self.disk.sectors[RESOURCE.disks[0].offset] = pack_leader(leader, SIZES_512.sector_size)

    def machine(self, host_id: int, io_timeout: int, watchdog: int = 60) -> Machine:
        """Put another machine on the stage."""
        label = f"{chr(64 + len(self.machines) + 1)}"
        machine = Machine(self, label, host_id, Timing(io_timeout, watchdog))
        self.machines.append(machine)
        return machine

    # -- time ------------------------------------------------------------------------------------

    def at(self, when_us: int, action: Callable[..., None], *arguments: Any) -> None:
        """Plan an action."""
        self._serial += 1
        heapq.heappush(self._heap, (when_us, self._serial, action, arguments))

    def run(self, seconds: float, until: Callable[[], bool] | Job | None = None) -> float:
        """Let time pass, at most so long; returns the seconds on the clock at the end."""
        end_us = self.now_us + int(seconds * SECOND_US)
        heap = self._heap
        while heap and heap[0][0] <= end_us:
            if until is not None and (until.is_done if isinstance(until, Job) else until()):
                return self.now_us / SECOND_US
            self.now_us, _, action, arguments = heapq.heappop(heap)
            action(*arguments)
        self.now_us = max(self.now_us, end_us if until is None else self.now_us)
        return self.now_us / SECOND_US

    # -- effects ---------------------------------------------------------------------------------

    def resume(self, job: Job, answer: Any, error: PaxosleaseError | None) -> None:
        """Go on with a job until it waits for something."""
        while job.is_alive:
            try:
                effect = job.protocol.send(answer) if error is None else job.protocol.throw(error)
            except StopIteration as end:
                self._end(job, end.value, None)
                return
            except PaxosleaseError as failure:
                self._end(job, None, failure)
                return
            error = None
            try:
                waits, answer = self._perform(job, effect)
            except PaxosleaseError as failure:
                error = failure
                continue
            if waits:
                return

    def _end(self, job: Job, result: Any, error: PaxosleaseError | None) -> None:
        job.is_alive, job.is_done, job.result, job.error = False, True, result, error
        job.machine.jobs.remove(job)

    def _perform(self, job: Job, effect: Any) -> tuple[bool, Any]:
        machine = job.machine
        answer: Any = None
        match effect:
            case Now():
                answer = machine.local()
            case Random(below):
                answer = below // 2
            case Sleep(duration_us):
                self.at(self.now_us + max(1, duration_us), self.resume, job, None, None)
                return True, None
            case Membership():
                answer = machine.member.standing(machine.local())
            case Observe(host_id):
                answer = machine.member.table.seen(host_id)
            case PetWatchdog():
                machine.pet(effect)
            case Notify(event):
                machine.events.append(event)
                if isinstance(event, Failed):
                    machine.uses.clear()
            case Landed(ticket):
                return self._await_landing(job, ticket)
            case _ if isinstance(effect, _IOS):
                nap_us = machine.nap_us(effect)
                if nap_us:
                    self.at(self.now_us + nap_us, self._after_nap, job, effect)
                else:
                    self._submit(job, effect)
                return True, None
            case _:
                raise AssertionError(f"the stage cannot perform {effect!r}")
        return False, answer

    def _after_nap(self, job: Job, effect: Any) -> None:
        try:
            self._submit(job, effect)
        except PaxosleaseError as error:
            self.resume(job, None, error)

    def _submit(self, job: Job, effect: Any) -> None:
        machine = job.machine
        if isinstance(effect, Write):
            if effect.not_after_us is not None and machine.local() > effect.not_after_us:
                raise DecisionStale(SPACE.name, machine.local() - effect.not_after_us)
        elif machine.reads_fail and isinstance(effect, ReadLockspace):
            raise DiskError(effect.path, effect.offset, "read", 5, "the scenario says so")
        latency_us = machine.latency_us(effect)
        end_us = self.now_us + latency_us
        name = "write" if isinstance(effect, Write) else "read"
        if isinstance(effect, Write):
            self.at(self.now_us if machine.acknowledges_late else end_us, self._land, effect)
        if latency_us <= effect.timeout_us:
            self.at(end_us, self._done, job, effect)
            return
        self._serial += 1
        machine.landings[self._serial] = end_us
        error = DiskTimeout(effect.path, effect.offset, name, effect.timeout_us, self._serial)
        self.at(self.now_us + effect.timeout_us, self.resume, job, None, error)

    def _land(self, write: Write) -> None:
        self.disk.sectors[write.offset] = write.data

    def _done(self, job: Job, effect: Any) -> None:
        answer = None
        if not isinstance(effect, Write):
            answer = self.disk.answer(effect, self.disk.sample(effect))
        self.resume(job, answer, None)

    def _await_landing(self, job: Job, ticket: int) -> tuple[bool, Any]:
        end_us = job.machine.landings[ticket]
        if end_us < self.now_us:
            return False, None
        self.at(end_us, self.resume, job, None, None)
        return True, None
