"""The raw I/O of each lease operation: the floor under which no lock manager can get.

The same reads and writes of the same lengths and in the same order as the operation, with
O_DIRECT|O_DSYNC into one reused buffer of huge pages, with nothing computed in between. The buffer
is an image of the area, so what is written is what was read, and the records stay as they were; but
never on an area that somebody uses meanwhile. Sequences: spec/algorithms.md 12, without the first
whole-area read of an acquire, of which the algorithm needs the leader and the own block only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

HUGE_PAGE: Final = 2 << 20
HOST_ID: Final = 1


class Step(NamedTuple):
    """One I/O of a sequence; offset relative to the area."""

    is_write: bool
    offset_bytes: int
    nbytes: int


def acquire_steps(sector: int, align: int) -> list[Step]:
    """Return the I/O of acquiring a free lease: leader, own block, then the two phases."""
    own = (HOST_ID + 1) * sector
    ballot = [Step(True, own, sector), Step(False, 0, align)] * 2
    return [Step(False, 0, sector), Step(False, own, sector), *ballot, Step(True, 0, sector)]


def release_steps(sector: int, align: int) -> list[Step]:
    """Return the I/O of releasing an exclusive lease."""
    own = (HOST_ID + 1) * sector
    return [Step(True, own, sector), Step(False, 0, sector), Step(True, 0, sector)]


def renew_steps(sector: int, align: int) -> list[Step]:
    """Return the I/O of one renewal of a host id."""
    return [Step(False, 0, align), Step(True, (HOST_ID - 1) * sector, sector)]


def format_steps(sector: int, align: int) -> list[Step]:
    """Return the I/O of formatting one resource."""
    return [Step(True, 0, align)]


class RawDevice:
    """A file or device, opened as the sequences need it, and the buffer that they share."""

    def __init__(self, path: str, sector: int, align: int) -> None:
        self.sector = sector
        self.align = align
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
        self._map = mmap.mmap(-1, align + 2 * HUGE_PAGE)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        head = ctypes.c_char.from_buffer(self._map)
        start = -ctypes.addressof(head) % HUGE_PAGE
        del head
        whole = memoryview(self._map)
        self._view = whole[start : start + align]
        whole.release()
        self._view[:] = bytes(align)  # every page is there before anything is measured

    def run(self, steps: list[Step], offset_bytes: int) -> None:
        """Do the I/O of one operation on the area at `offset_bytes`."""
        for step in steps:
            at = offset_bytes + step.offset_bytes
            view = [self._view[step.offset_bytes : step.offset_bytes + step.nbytes]]
            moved = (os.pwritev if step.is_write else os.preadv)(self._fd, view, at)
            if moved != step.nbytes:
                raise EOFError(f"{moved} of {step.nbytes} bytes at {at}")

    def read(self, offset_bytes: int, nbytes: int) -> bytes:
        """Return a copy of what lies at `offset_bytes`."""
        self.run([Step(False, 0, nbytes)], offset_bytes)
        return bytes(self._view[:nbytes])

    def prepare(self, offset_bytes: int, count: int) -> None:
        """Write zeroes over `count` areas, so that their blocks are allocated."""
        self._view[:] = bytes(self.align)
        for index in range(count):
            self.run(format_steps(self.sector, self.align), offset_bytes + index * self.align)

    def rewrite_ready(self, offset_bytes: int) -> None:
        """Fill the buffer from the area, so that sequences that begin with a write keep it."""
        self.run([Step(False, 0, self.align)], offset_bytes)

    def sample_ms(
        self, steps: Callable[[int, int], list[Step]], offset_bytes: int, count: int
    ) -> list[float]:
        """Return the milliseconds of each of `count` runs of a sequence."""
        sequence = steps(self.sector, self.align)
        self.rewrite_ready(offset_bytes)
        took_ms = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            self.run(sequence, offset_bytes)
            took_ms.append((time.perf_counter_ns() - begin) / 1e6)
        return took_ms

    def cpu_ms(
        self, steps: Callable[[int, int], list[Step]], offset_bytes: int, count: int
    ) -> float:
        """Return the CPU milliseconds, user and system, of one run, averaged over `count`."""
        sequence = steps(self.sector, self.align)
        self.rewrite_ready(offset_bytes)
        begin = time.thread_time_ns()
        for _ in range(count):
            self.run(sequence, offset_bytes)
        return (time.thread_time_ns() - begin) / 1e6 / count

    def close(self) -> None:
        """Close the file; the buffer goes with it."""
        self._view.release()
        self._map.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def raw_acquire(path: str, sector: int, align: int, count: int, offset: int = 0) -> list[float]:
    """Return the milliseconds of `count` raw acquisitions of the area at `offset`."""
    with RawDevice(path, sector, align) as device:
        return device.sample_ms(acquire_steps, offset, count)


def raw_release(path: str, sector: int, align: int, count: int, offset: int = 0) -> list[float]:
    """Return the milliseconds of `count` raw releases of the area at `offset`."""
    with RawDevice(path, sector, align) as device:
        return device.sample_ms(release_steps, offset, count)


def raw_cpu_ms(path: str, sector: int, align: int, count: int, offset: int = 0) -> float:
    """Return the CPU milliseconds of one raw acquire and release."""
    with RawDevice(path, sector, align) as device:
        cpu = [device.cpu_ms(steps, offset, count) for steps in (acquire_steps, release_steps)]
        return sum(cpu)


def raw_renewal_cpu_us(path: str, sector: int, align: int, count: int, offset: int = 0) -> float:
    """Return the CPU microseconds of one raw renewal."""
    with RawDevice(path, sector, align) as device:
        return device.cpu_ms(renew_steps, offset, count) * 1000


def raw_batch_s(path: str, sector: int, align: int, leases: int, offset: int = 0) -> float:
    """Return the seconds of acquiring `leases` neighbouring leases raw, one after another."""
    sequence = acquire_steps(sector, align)
    with RawDevice(path, sector, align) as device:
        device.rewrite_ready(offset)
        begin = time.perf_counter()
        for index in range(leases):
            device.run(sequence, offset + index * align)
        return time.perf_counter() - begin


def raw_format_s(path: str, sector: int, align: int, leases: int, offset: int = 0) -> float:
    """Return the seconds of writing `leases` whole areas, one after another. Destroys them."""
    with RawDevice(path, sector, align) as device:
        begin = time.perf_counter()
        device.prepare(offset, leases)
        return time.perf_counter() - begin


def raw_turns_per_s(
    path: str, sector: int, align: int, duration_s: float, work_s: float, offset: int = 0
) -> float:
    """Return how often per second one user can acquire, work and release, raw."""
    both = acquire_steps(sector, align) + release_steps(sector, align)
    with RawDevice(path, sector, align) as device:
        device.rewrite_ready(offset)
        begin, turns = time.perf_counter(), 0
        while time.perf_counter() - begin < duration_s:
            device.run(both, offset)
            time.sleep(work_s)
            turns += 1
        return turns / (time.perf_counter() - begin)
