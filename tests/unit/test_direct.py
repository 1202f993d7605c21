"""O_DIRECT files, buffers and asynchronous I/O, on real files and loop devices."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from paxoslease.disk import direct
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
from tests.conftest import MakeLoop, frozen, loop_device, run

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


class HangingDisk(NamedTuple):
    """A device whose writes hang until it is thawed."""

    file: DirectFile
    thaw: Callable[[], None]


@pytest.fixture
def hanging(mounted: Path) -> Iterator[HangingDisk]:
    """A loop device on a file of a file system that is frozen: its writes do not end."""
    backing = mounted / "disk"
    backing.write_bytes(bytes(MIB))
    with loop_device(backing, 512) as device, open_direct(device) as file, ExitStack() as stack:
        stack.enter_context(frozen(mounted))
        yield HangingDisk(file, stack.close)


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


def test_many_requests_in_flight_at_once(disk: DirectFile) -> None:
    """More requests than one system call takes are submitted together and none is lost."""
    aio = Aio(depth=150)
    buffers = [shared_pool().take(4096) for _ in range(150)]
    requests = [Request(i, disk, False, 4096 * i, b, 4096) for i, b in enumerate(buffers)]
    assert aio.submit(requests) == []
    done = finish(aio, 150)
    assert {c.request.token for c in done} == set(range(150))
    assert all(c.result == 4096 for c in done)
    assert aio.in_flight == 0
    for buffer in buffers:
        buffer.release()
    aio.close()


def test_what_has_no_room_is_refused(disk: DirectFile, aio: Aio) -> None:
    """Beyond the depth a request is refused and not kept for later, and its buffer is free."""
    buffers = [shared_pool().take(512) for _ in range(10)]
    requests = [Request(i, disk, True, 512 * i, b, 512) for i, b in enumerate(buffers)]
    refused = aio.submit(requests)
    assert [(c.request.token, c.result) for c in refused] == [
        (8, -errno.EAGAIN),
        (9, -errno.EAGAIN),
    ]
    assert [b.in_flight for b in buffers] == [True] * 8 + [False] * 2
    finish(aio, 8)
    for buffer in buffers:
        buffer.release()


def test_a_bad_request_does_not_keep_the_others_back(disk: DirectFile, aio: Aio) -> None:
    """Of a batch with one that the kernel refuses, all others are done."""
    with open_direct(disk.path) as closed:
        buffers = [shared_pool().take(512) for _ in range(3)]
    requests = [
        Request(i, file, False, 0, b, 512)
        for i, (file, b) in enumerate(zip((disk, closed, disk), buffers, strict=True))
    ]
    assert [(c.request.token, c.result) for c in aio.submit(requests)] == [(1, -errno.EBADF)]
    assert {c.request.token for c in finish(aio, 2)} == {0, 2}
    for buffer in buffers:
        buffer.release()


def test_requests_that_would_corrupt_memory_are_refused(disk: DirectFile, aio: Aio) -> None:
    """A request beyond its buffer, on a used buffer or token, raises; nothing is submitted."""
    first, second, gone = (shared_pool().take(512) for _ in range(3))
    gone.release()
    good = Request(1, disk, False, 0, first, 512)
    for bad in (
        Request(2, disk, False, 0, second, 1024),
        Request(2, disk, False, 0, second, 0),
        Request(2, disk, False, -512, second, 512),
        Request(2, disk, False, 0, first, 512),
        Request(2, disk, False, 0, gone, 512),
        Request(1, disk, False, 0, second, 512),
        Request(-1, disk, False, 0, second, 512),
    ):
        with pytest.raises(ValueError, match="request"):
            aio.submit([good, bad])
        assert aio.in_flight == 0
        assert not first.in_flight
    first.release()
    second.release()


def test_buffer_is_not_released_while_the_kernel_has_it(disk: DirectFile, aio: Aio) -> None:
    """A buffer in flight cannot go back to the pool; after its completion it can."""
    buffer = shared_pool().take(MIB)
    aio.submit([Request(1, disk, False, 0, buffer, MIB)])
    with pytest.raises(RuntimeError, match="kernel has it"):
        buffer.release()
    aio.abandon(1)
    aio.abandon(2)
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


def test_close_waits_for_what_is_in_flight(hanging: HangingDisk) -> None:
    """Closing a context gives its buffers back only after the kernel has let go of them."""
    context = Aio(depth=4)
    buffer = shared_pool().take(512)
    context.submit([Request(1, hanging.file, True, 0, buffer, 512)])
    closing = threading.Thread(target=context.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    assert buffer.in_flight
    hanging.thaw()
    closing.join(10)
    assert not closing.is_alive()
    buffer.release()
    context.close()


def test_waiting_has_an_end(aio: Aio, hanging: HangingDisk) -> None:
    """While a disk hangs, reap returns at its time-out, at once when that has passed already."""
    buffer = shared_pool().take(512)
    aio.submit([Request(1, hanging.file, True, 0, buffer, 512)])
    for timeout_s in (0.05, 0.0, -1.0):
        begin = time.monotonic()
        assert aio.reap(timeout_s) == []
        assert max(timeout_s, 0) <= time.monotonic() - begin < 2
    hanging.thaw()
    assert [c.request.token for c in aio.reap(None)] == [1]
    buffer.release()


def test_a_hanging_disk_holds_nobody_up(aio: Aio, disk: DirectFile, hanging: HangingDisk) -> None:
    """Submitting to a disk that hangs does not block, other disks go on, and the timed-out write
    keeps its buffer, and its content, until the kernel gives them back: then it has landed."""
    stuck, other = shared_pool().take(512), shared_pool().take(512)
    stuck.view[:] = b"S" * 512
    assert aio.submit([Request(1, hanging.file, True, 0, stuck, 512)]) == []
    assert aio.submit([Request(2, disk, True, 0, other, 512)]) == []
    assert [c.request.token for c in finish(aio, 1)] == [2]
    aio.abandon(1)
    with pytest.raises(RuntimeError, match="kernel has it"):
        stuck.release()
    assert (aio.in_flight, aio.abandoned) == (1, {1})
    other.release()
    hanging.thaw()
    assert [(c.request.token, c.result) for c in finish(aio, 1)] == [(1, 512)]
    assert (aio.in_flight, aio.abandoned) == (0, frozenset())
    stuck.release()
    assert Path(hanging.file.path).read_bytes()[:512] == b"S" * 512


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


def test_a_released_buffer_is_dead() -> None:
    """After its release a buffer can be neither used nor released again by its former user."""
    buffer = BufferPool(huge=False).take(512)
    view = buffer.view
    buffer.release()
    with pytest.raises(ValueError, match="released memoryview"):
        view[0] = 1
    with pytest.raises(RuntimeError, match="twice"):
        buffer.release()


@pytest.mark.parametrize("nbytes", [0, -1])
def test_empty_buffers_are_refused(nbytes: int) -> None:
    """A buffer of nothing is an error of the caller."""
    with pytest.raises(ValueError, match="bytes"):
        BufferPool(huge=False).take(nbytes)


@pytest.mark.parametrize(
    ("setting", "pages"),
    [
        ("always [madvise] never", "transparent huge pages"),
        ("always madvise [never]", "(4 KiB pages|reserved huge pages|transparent huge pages)"),
        (None, "(4 KiB pages|reserved huge pages|transparent huge pages)"),
    ],
)
def test_pages_where_huge_ones_are_off(
    setting: str | None, pages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system says of huge pages, aligned buffers come out of the pool."""
    path = tmp_path / "enabled"
    if setting:
        path.write_text(setting)
    monkeypatch.setattr(direct, "_TRANSPARENT", path)
    pool = BufferPool()
    assert pool.take(MIB).address % MIB == 0
    assert re.fullmatch(pages, pool.stats().pages)


def test_a_child_after_fork_has_a_pool_of_its_own(disk: DirectFile) -> None:
    """A forked child can do I/O: it does not get memory of the parent's pool, which it lacks."""
    shared_pool().take(4096).release()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            aio = Aio(depth=1)
            buffer = shared_pool().take(4096)
            buffer.view[:] = b"C" * 4096
            aio.submit([Request(1, disk, True, 0, buffer, 4096)])
            status = 0 if finish(aio, 1)[0].result == 4096 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert Path(disk.path).read_bytes()[:4096] == b"C" * 4096


def test_no_room_for_a_context() -> None:
    """When the system's limit of requests is reached, the error names the setting to raise."""
    with pytest.raises(DiskError, match=r"fs\.aio-max-nr"):
        Aio(depth=1 << 22)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_sector_size_of_devices(make_loop: MakeLoop, sector_size: int) -> None:
    """A device tells its logical sector size, takes single sectors and refuses less."""
    with open_direct(make_loop(sector_size, 4 * MIB)) as device:
        assert (device.sector_size, device.is_block, device.size_bytes) == (
            sector_size,
            True,
            4 * MIB,
        )
        aio = Aio(depth=2)
        buffer = shared_pool().take(sector_size)
        buffer.view[:] = b"x" * sector_size
        aio.submit([Request(1, device, True, 3 * sector_size, buffer, sector_size)])
        assert [c.result for c in finish(aio, 1)] == [sector_size]
        half = Request(2, device, False, 0, buffer, sector_size // 2)
        done = aio.submit([half]) or finish(aio, 1)
        assert [c.result for c in done] == [-errno.EINVAL]
        aio.close()
        buffer.release()


def test_sector_size_of_devices_of_another_kind(make_loop: MakeLoop) -> None:
    """A device whose sectors are neither 512 nor 4096 bytes is refused."""
    device = make_loop(1024, MIB)
    with pytest.raises(UnsuitableDevice, match="1024 bytes"):
        open_direct(device)


@pytest.mark.parametrize(
    ("content", "answers"), [(b"", True), (bytes(MIB), True), (bytes(MIB), False)]
)
def test_sector_size_of_files(
    mounted: Path, content: bytes, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a 4096-byte device has 4096-byte sectors, also where the kernel must be tried."""
    path = mounted / "disk"
    path.write_bytes(content)
    os.sync()
    if not answers:
        silent = SimpleNamespace(pl_direct_alignment=lambda fd: 0)
        monkeypatch.setattr(direct, "lib", _Instead(direct.lib, silent))
    with open_direct(str(path)) as file:
        assert (file.sector_size, file.is_block) == (4096, False)


class _Instead:
    """The attributes of one object before those of another."""

    def __init__(self, base: object, before: object) -> None:
        self._objects = (before, base)

    def __getattr__(self, name: str) -> object:
        before, base = self._objects
        return getattr(before, name, None) or getattr(base, name)


@pytest.fixture
def read_only_device(make_loop: MakeLoop) -> Iterator[str]:
    """Give a device that was made read-only."""
    device = make_loop(512, MIB)
    run("blockdev", "--setro", device)
    try:
        yield device
    finally:
        run("blockdev", "--setrw", device)  # the next user of this number would inherit it


def test_read_only_device_and_file(read_only_device: str, mounted: Path) -> None:
    """What cannot be written is refused at once with a reason, and can still be read."""
    path = mounted / "disk"
    path.write_bytes(bytes(MIB))
    run("mount", "-o", "remount,ro", str(mounted))
    for name in (read_only_device, str(path)):
        with pytest.raises(DiskError, match=f"{name} .*[Rr]ead-only") as error:
            open_direct(name)
        assert error.value.errno == errno.EROFS
        with open_direct(name, writable=False) as file:
            assert file.size_bytes == MIB


def test_files_are_direct_durable_and_not_inherited(disk: DirectFile) -> None:
    """An acknowledged write is on the disk: files bypass the page cache and write through."""
    flags = fcntl.fcntl(disk.fd, fcntl.F_GETFL)
    assert flags & os.O_DIRECT
    assert flags & os.O_DSYNC
    assert fcntl.fcntl(disk.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("huge", [True, False])
def test_buffers_are_not_shared_with_a_child(huge: bool) -> None:
    """The kernel's target stays ours after fork: no pool memory is copied on write."""
    buffer = BufferPool(huge=huge).take(512)
    assert "dc" in _mapping_flags(buffer.address)
    buffer.release()


def _mapping_flags(address: int) -> list[str]:
    """Return the kernel's flags of the mapping at an address; dc: not copied on fork."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_o_direct_refused() -> None:
    """A file system without O_DIRECT is refused by name."""
    path = "/proc/self/status"
    with pytest.raises((UnsuitableDevice, DiskError), match="/proc/self/status"):
        open_direct(path, writable=False)


def test_a_directory_has_the_number_of_open(tmp_path: Path) -> None:
    """What clients of sanlock get for a directory is EISDIR, for another odd file EINVAL."""
    for path, code in ((tmp_path, -21), (Path("/dev/null"), -22)):
        with pytest.raises(UnsuitableDevice) as caught:
            open_direct(str(path))
        assert caught.value.code == code


def test_wait_returns_for_completions_wake_ups_and_times(disk: DirectFile, aio: Aio) -> None:
    """Waiting ends with a completion, when it is woken, or with its time, whichever comes first."""
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    assert aio.wait(wake, 0.001) == []
    assert aio.wait(wake, -1.0) == []
    os.eventfd_write(wake, 3)
    assert aio.wait(wake, None) == []
    with pytest.raises(BlockingIOError):
        os.eventfd_read(wake)
    buffer = shared_pool().take(512)
    aio.submit([Request(1, disk, False, 0, buffer, 512)])
    assert [c.result for c in aio.wait(wake, None)] == [512]
    assert aio.in_flight == 0
    buffer.release()
    os.close(wake)
    with pytest.raises(DiskError):
        aio.wait(wake, None)
