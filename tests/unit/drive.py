"""Two small drivers for protocols in tests: scripted answers, and disks in memory.

`drive` sends given answers (or throws given errors) and records what the protocol yielded. `Desk`
performs effects on bytearrays and a clock that only sleeping moves; a test may make any effect
fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paxoslease.disk.areas import delta_columns, nonzero_host_sectors
from paxoslease.disk.layout import Sizes
from paxoslease.errors import DecisionStale, DiskError, PaxosleaseError
from paxoslease.protocol.effects import (
    UNSEEN,
    BallotImage,
    Gather,
    HostSeen,
    Landed,
    LockspaceImage,
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
    RunKillpath,
    Signal,
    Sleep,
    Standing,
    Write,
)


class Outcome:
    """What a scripted protocol yielded, and how it ended."""

    def __init__(self) -> None:
        self.effects: list[Any] = []
        self.result: Any = None
        self.error: PaxosleaseError | None = None
        self.is_done = False

    def of(self, kind: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]


def drive(protocol: Protocol[Any], answers: Sequence[Any]) -> Outcome:
    """Send each answer in turn, throw it if it is an error; stop when they are used up."""
    outcome = Outcome()
    left = list(answers)
    try:
        effect = next(protocol)
        while True:
            outcome.effects.append(effect)
            if not left:
                return outcome
            answer = left.pop(0)
            if isinstance(answer, BaseException):
                effect = protocol.throw(answer)
            else:
                effect = protocol.send(answer)
    except StopIteration as stop:
        outcome.result = stop.value
    except PaxosleaseError as error:
        outcome.error = error
    outcome.is_done = True
    assert not left, f"answers not asked for: {left}"
    return outcome


class Desk:
    """One host with disks in memory."""

    def __init__(self, now_us: int = 10**9) -> None:
        self.disks: dict[str, bytearray] = {}
        self.standing: Standing | PaxosleaseError = Standing(1, 1, 10**15)
        self.now_us = now_us
        self.io_us = 0
        self.seen: dict[int, HostSeen] = {}
        self.random: Callable[[int], int] = lambda below: 0
        self.signals: Callable[[Any], bool] = lambda effect: True
        self.log: list[Any] = []
        self.notified: list[Any] = []
        self.fail: Callable[[Any], PaxosleaseError | None] = lambda effect: None
        self.after: Callable[[Any], None] = lambda effect: None

    def disk(self, path: str, nbytes: int) -> bytearray:
        return self.disks.setdefault(path, bytearray(nbytes))

    def run(self, protocol: Protocol[Any]) -> Any:
        """Perform a protocol to its end; returns its result or raises its error."""
        answer: Any = None
        error: PaxosleaseError | None = None
        for _ in range(1_000_000):
            try:
                effect = protocol.throw(error) if error is not None else protocol.send(answer)
            except StopIteration as stop:
                return stop.value
            answer, error = None, None
            self.log.append(effect)
            try:
                answer = self.perform(effect)
            except PaxosleaseError as failure:
                error = failure
            self.after(effect)
        raise AssertionError("the protocol does not end")

    def perform(self, effect: Any) -> Any:
        failure = self.fail(effect)
        if failure is not None:
            raise failure
        match effect:
            case Now():
                return self.now_us
            case Random(below):
                return min(self.random(below), max(0, below - 1))
            case Sleep(duration_us):
                self.now_us += duration_us
                return None
            case Membership():
                if isinstance(self.standing, PaxosleaseError):
                    raise self.standing
                return self.standing
            case Observe(host_id):
                return self.seen.get(host_id, UNSEEN)
            case Gather(effects):
                return tuple(self._gathered(one) for one in effects)
            case Signal() | RunKillpath():
                return self.signals(effect)
            case Notify(event):
                self.notified.append(event)
                return None
            case Landed() | PetWatchdog():
                return None
        self.now_us += self.io_us
        return self._io(effect)

    def _gathered(self, effect: Any) -> Any:
        try:
            return self.perform(effect)
        except PaxosleaseError as error:
            return error

    def _io(self, effect: Any) -> Any:
        disk = self.disks[effect.path]
        match effect:
            case Read(path, offset, length):
                if offset < 0 or offset + length > len(disk):
                    raise DiskError(path, offset, "read", 5, "beyond the end")
                return bytes(disk[offset : offset + length])
            case ReadBallot(path, offset, sector_size, num_hosts):
                area = bytes(disk[offset : offset + (num_hosts + 2) * sector_size])
                hosts = nonzero_host_sectors(area, sector_size, num_hosts)
                return BallotImage(area[:200], hosts)
            case ReadLockspace(path, offset, sector_size, align_size, name, host_id):
                area = bytes(disk[offset : offset + align_size])
                own = area[(host_id - 1) * sector_size : host_id * sector_size]
                columns = delta_columns(area, Sizes(sector_size, align_size), name, host_id)
                return LockspaceImage(own, columns)
            case Write(path, offset, data, _, not_after_us):
                if not_after_us is not None and self.now_us > not_after_us:
                    raise DecisionStale(b"ls", self.now_us - not_after_us)
                if offset < 0 or offset + len(data) > len(disk):
                    raise DiskError(path, offset, "write", 28, "beyond the end")
                disk[offset : offset + len(data)] = data
                return None
        raise AssertionError(effect)
