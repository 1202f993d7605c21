"""O_DIRECT files, buffers and asynchronous I/O, on real files and loop devices."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.disk.direct import (
    HUGE_PAGE_BYTES,
    Aio,
    BufferPool,
    Completion,
    DirectFile,
    Request,
    open_direct,
    shared_pool,
)
from paxoslease.errors import DiskError, UnsuitableDevice

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DirectFile]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * MIB))
    with open_direct(str(path)) as file:
        yield file


@pytest.fixture
def aio() -> Iterator[Aio]:
    context = Aio(depth=8)
    yield context
    context.close()


def finish(aio: Aio, count: int) -> list[Completion]:
    """Reap until `count` requests have completed."""
    done: list[Completion] = []
    while len(done) < count:
        done += aio.reap(5.0)
    return done


def test_what_is_written_is_read_back(disk: DirectFile, aio: Aio) -> None:
    """A sector written through one buffer is read into another."""
    out, back = shared_pool().take(512), shared_pool().take(512)
    out.view[:] = bytes(range(256)) * 2
    assert aio.submit([Request(1, disk, True, 1024, out, 512)]) == []
    (written,) = finish(aio, 1)
    assert (written.request.token, written.result) == (1, 512)
    aio.submit([Request(2, disk, False, 1024, back, 512)])
    (read,) = finish(aio, 1)
    assert read.result == 512
    assert bytes(back.view) == bytes(range(256)) * 2
    assert Path(disk.path).read_bytes()[1024:1536] == bytes(range(256)) * 2
    out.release()
    back.release()


def test_more_requests_than_depth_all_complete(disk: DirectFile, aio: Aio) -> None:
    """Requests beyond the depth of the context wait in its queue and none is lost."""
    buffers = [shared_pool().take(4096) for _ in range(100)]
    requests = [Request(i, disk, False, 4096 * i, b, 4096) for i, b in enumerate(buffers)]
    refused = aio.submit(requests)
    assert refused == []
    assert aio.in_flight <= 8
    done = finish(aio, 100)
    assert {c.request.token for c in done} == set(range(100))
    assert all(c.result == 4096 for c in done)
    for buffer in buffers:
        buffer.release()


def test_buffer_is_not_released_while_the_kernel_has_it(disk: DirectFile, aio: Aio) -> None:
    """A buffer in flight cannot go back to the pool; after its completion it can."""
    buffer = shared_pool().take(MIB)
    aio.submit([Request(1, disk, False, 0, buffer, MIB)])
    with pytest.raises(RuntimeError, match="kernel has it"):
        buffer.release()
    aio.abandon(1)
    assert aio.abandoned == {1}
    finish(aio, 1)
    assert aio.abandoned == set()
    buffer.release()


def test_eventfd_tells_of_completions(disk: DirectFile, aio: Aio) -> None:
    """The context's descriptor becomes readable when something has completed."""
    poll = select.poll()
    poll.register(aio.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    buffer = shared_pool().take(512)
    aio.submit([Request(1, disk, False, 0, buffer, 512)])
    assert poll.poll(5000)
    assert [c.result for c in aio.reap()] == [512]
    assert poll.poll(0) == []
    buffer.release()


def test_unaligned_request_is_refused_with_its_errno(disk: DirectFile, aio: Aio) -> None:
    """What the kernel refuses comes back as a completion with -EINVAL, at once or later."""
    buffer = shared_pool().take(512)
    done = aio.submit([Request(1, disk, False, 7, buffer, 512)]) or finish(aio, 1)
    assert [c.result for c in done] == [-errno.EINVAL]
    buffer.release()


def test_read_behind_the_end_is_short(disk: DirectFile, aio: Aio) -> None:
    """Reading behind the end moves fewer bytes than asked for; nobody takes them for data."""
    buffer = shared_pool().take(4096)
    aio.submit([Request(1, disk, False, 4 * MIB - 512, buffer, 4096)])
    assert [c.result for c in finish(aio, 1)] == [512]
    buffer.release()


def test_close_waits_for_what_is_in_flight(disk: DirectFile) -> None:
    """Closing a context gives its buffers back only after the kernel has let go of them."""
    context = Aio(depth=4)
    buffer = shared_pool().take(MIB)
    context.submit([Request(1, disk, False, 0, buffer, MIB)])
    context.close()
    buffer.release()
    context.close()


def test_pool_reuses_and_counts() -> None:
    """A returned buffer is handed out again, and the pool accounts for every byte."""
    pool = BufferPool(huge=False)
    first = pool.take(512)
    assert len(first.view) == 512
    assert pool.stats().taken == 4096
    address = first.address
    assert address % 4096 == 0
    first.release()
    assert pool.take(100).address == address
    assert pool.stats().mapped == HUGE_PAGE_BYTES
    assert pool.stats().pages == "4 KiB pages"


def test_large_buffers_are_huge_page_aligned() -> None:
    """A buffer of 2 MiB or more begins at a huge page, so that reads into it are fast."""
    pool = BufferPool()
    for nbytes in (2 * MIB, 8 * MIB):
        assert pool.take(nbytes).address % HUGE_PAGE_BYTES == 0


def test_pool_is_bounded() -> None:
    """A pool refuses to grow beyond its limit."""
    pool = BufferPool(limit_bytes=2 * HUGE_PAGE_BYTES)
    pool.take(2 * MIB)
    pool.take(2 * MIB)
    with pytest.raises(MemoryError, match="limit"):
        pool.take(512)


def test_opening_what_cannot_hold_leases(tmp_path: Path) -> None:
    """Paths that cannot hold leases are refused with a reason that names the path."""
    with pytest.raises(DiskError, match="No such file") as missing:
        open_direct(str(tmp_path / "missing"))
    assert missing.value.code == -errno.ENOENT
    with pytest.raises(UnsuitableDevice, match="directory"):
        open_direct(str(tmp_path))
    with pytest.raises(UnsuitableDevice, match="character device"):
        open_direct("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsuitableDevice, match="neither"):
        open_direct(str(tmp_path / "pipe"))


def test_o_direct_refused() -> None:
    """A file system without O_DIRECT is refused by name."""
    path = "/proc/self/status"
    with pytest.raises((UnsuitableDevice, DiskError), match="/proc/self/status"):
        open_direct(path, writable=False)
