"""O_DIRECT files, aligned buffers, and many reads and writes in flight at once.

The rule that shapes this module: a buffer that was given to the kernel belongs to the kernel until
the completion has been reaped, time-out or not. `Aio` therefore keeps every buffer that is in
flight, and `Buffer.release` refuses to hand such memory to somebody else.

Linux AIO does the work (docs/decisions/0001-linux-aio.md). One thread owns an `Aio` and all
its calls; the buffer pool is shared by all threads.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Sequence
from fcntl import ioctl
from struct import unpack
from typing import Final, NamedTuple

from paxoslease._aio import ffi, lib
from paxoslease.errors import DiskError, UnsuitableDevice

HUGE_PAGE_BYTES: Final = 2 << 20
BATCH: Final = 64
_BLKSSZGET: Final = 0x1268
_SECTOR_SIZES: Final = (512, 4096)


# -- files -------------------------------------------------------------------------------------


class DirectFile:
    """A block device or regular file, open for unbuffered and durable I/O.

    sector_size: the device's logical sector size; for a file, what O_DIRECT asks for there.
    size_bytes: its size when it was opened.
    """

    def __init__(self, path: str, fd: int, sector_size: int, size_bytes: int, is_block: bool):
        self.path = path
        self.fd = fd
        self.sector_size = sector_size
        self.size_bytes = size_bytes
        self.is_block = is_block

    def close(self) -> None:
        """Close the file. Nothing of it may be in flight."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_direct(path: str, *, writable: bool = True) -> DirectFile:
    """Open a device or file with O_DIRECT and O_DSYNC.

    Raises DiskError (errno: not there, no permission, read-only, ...) and UnsuitableDevice (a
    directory, O_DIRECT refused, another sector size than 512 or 4096).
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UnsuitableDevice(path, 0, f"it is {_kind(mode)}, not a block device or a file")
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            reason = "its file system refuses O_DIRECT"
            raise UnsuitableDevice(path, 0, reason) from error
        raise DiskError(path, 0, "open", error.errno or 0, _reason(error)) from error
    try:
        is_block = stat.S_ISBLK(mode)
        sector_size = _device_sector_size(fd) if is_block else _file_alignment(fd, path)
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        if sector_size not in _SECTOR_SIZES:
            reason = f"its logical sectors have {sector_size} bytes, not 512 or 4096"
            raise UnsuitableDevice(path, 0, reason)
    except BaseException:
        os.close(fd)
        raise
    return DirectFile(path, fd, sector_size, size_bytes, is_block)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a character device" if stat.S_ISCHR(mode) else "neither"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _device_sector_size(fd: int) -> int:
    answer = ioctl(fd, _BLKSSZGET, bytes(4))
    return int(unpack("i", answer)[0])


def _file_alignment(fd: int, path: str) -> int:
    """Return the smallest unit of O_DIRECT in a file, found by reading.

    A file's alignment is that of the device below its file system, which cannot be asked for
    portably (statx has it only since Linux 6.1, and not on network file systems).
    """
    with _PROBE_LOCK:
        if not _PROBE:
            _PROBE.append(BufferPool(HUGE_PAGE_BYTES, huge=False).take(4096))
        view = _PROBE[0].view
        for sector_size in _SECTOR_SIZES:
            try:
                os.preadv(fd, [view[:sector_size]], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise DiskError(path, 0, "read", error.errno or 0, _reason(error)) from error
                continue
            return sector_size
    raise UnsuitableDevice(path, 0, "its file system refuses O_DIRECT reads of 512 and 4096 bytes")


_PROBE: list[Buffer] = []
_PROBE_LOCK = threading.Lock()


# -- buffers -----------------------------------------------------------------------------------


class Buffer:
    """Aligned memory from a pool. `view` is exactly as long as was asked for."""

    __slots__ = ("_pool", "_slot", "address", "capacity", "in_flight", "view")

    def __init__(self, pool: BufferPool, slot: int, address: int, view: memoryview) -> None:
        self._pool = pool
        self._slot = slot
        self.address = address
        self.view = view
        self.capacity = slot
        self.in_flight = False

    def release(self) -> None:
        """Give the memory back to its pool.

        Raises RuntimeError while the kernel has it: that is an error of ours, never the world's.
        """
        if self.in_flight:
            raise RuntimeError("a buffer is released while the kernel has it")
        self._pool.put(self)


class PoolStats(NamedTuple):
    """What a pool holds, in bytes: mapped from the system, handed out now."""

    mapped: int
    taken: int
    pages: str


class BufferPool:
    """Reused buffers, carved out of huge pages where the system has them.

    A 1 MiB O_DIRECT read into a reused huge page takes a third of the time of one into fresh or
    small pages (docs/decisions/0001-linux-aio.md). Buffers come in powers of two from 4 KiB; the
    pool never holds more than `limit_bytes` and refuses beyond that. Thread-safe.
    """

    _PAGES = ("4 KiB pages", "transparent huge pages", "huge pages")

    def __init__(self, limit_bytes: int = 512 << 20, *, huge: bool = True) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[tuple[int, memoryview]]] = {}
        self._regions: list[tuple[object, int]] = []
        self._huge = huge
        self._limit = limit_bytes
        self._mapped = 0
        self._taken = 0
        self._kind = 0

    def take(self, nbytes: int) -> Buffer:
        """Return a buffer of `nbytes` with undefined content. Raises MemoryError at the limit."""
        slot = max(4096, 1 << (nbytes - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(slot, [])
            if not free:
                self._grow(slot)
            address, view = free.pop()
            self._taken += slot
        return Buffer(self, slot, address, view[:nbytes])

    def put(self, buffer: Buffer) -> None:
        """Take a buffer back; called by Buffer.release."""
        with self._lock:
            whole = self._whole(buffer.address, buffer.capacity)
            self._free[buffer.capacity].append((buffer.address, whole))
            self._taken -= buffer.capacity

    def stats(self) -> PoolStats:
        """Return what the pool holds."""
        with self._lock:
            return PoolStats(self._mapped, self._taken, self._PAGES[self._kind])

    def _grow(self, slot: int) -> None:
        region = max(slot, HUGE_PAGE_BYTES)
        if self._mapped + region > self._limit:
            raise MemoryError(f"the buffer pool is at its limit of {self._limit} bytes")
        address = ffi.new("void **")
        kind = lib.pl_buffer_map(region, int(self._huge), address)
        if kind < 0:
            raise MemoryError(f"no memory for buffers: {os.strerror(-kind)}")
        start = int(ffi.cast("uintptr_t", address[0]))
        self._kind = kind
        self._mapped += region
        self._regions.append((address[0], region))
        free = self._free[slot]
        for at in range(start, start + region, slot):
            free.append((at, self._whole(at, slot)))

    @staticmethod
    def _whole(address: int, slot: int) -> memoryview:
        return memoryview(ffi.buffer(ffi.cast("char *", address), slot)).cast("B")


_shared: list[BufferPool] = []
_shared_lock = threading.Lock()


def shared_pool() -> BufferPool:
    """Return the one pool that all lockspaces of this process share."""
    with _shared_lock:
        if not _shared:
            _shared.append(BufferPool())
        return _shared[0]


# -- asynchronous I/O ----------------------------------------------------------------------------


class Request(NamedTuple):
    """A read or write of `nbytes` at `offset` of a file, from or into a buffer."""

    token: int
    file: DirectFile
    is_write: bool
    offset: int
    buffer: Buffer
    nbytes: int


class Completion(NamedTuple):
    """The end of a request: `result` is the number of bytes moved, or -errno."""

    request: Request
    result: int


class Aio:
    """Requests in flight in one kernel context. Owned by one thread.

    Requests beyond `depth` wait in a queue of their own until others complete, so `submit` never
    blocks. `fileno()` becomes readable when something has completed.
    """

    def __init__(self, depth: int = 256) -> None:
        context = ffi.new("uint64_t *")
        result = lib.pl_aio_open(depth, context)
        if result < 0:
            raise DiskError("", 0, "io_setup", -result, os.strerror(-result))
        self._context = context[0]
        self._depth = depth
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._requests = ffi.new("struct pl_request[]", BATCH)
        self._completions = ffi.new("struct pl_completion[]", BATCH)
        self._pending: dict[int, Request] = {}
        self._queue: deque[Request] = deque()
        self.abandoned: set[int] = set()

    def fileno(self) -> int:
        """Return the eventfd that is readable after completions; `reap` reads it empty."""
        return self._eventfd

    @property
    def in_flight(self) -> int:
        """Return how many requests the kernel has."""
        return len(self._pending)

    def submit(self, requests: Sequence[Request]) -> list[Completion]:
        """Hand requests to the kernel. Returns those that it refused at once, with -errno."""
        for request in requests:
            request.buffer.in_flight = True
        self._queue.extend(requests)
        return self._push()

    def _push(self) -> list[Completion]:
        refused: list[Completion] = []
        queue = self._queue
        blocks = self._requests
        while queue and len(self._pending) < self._depth:
            count = min(BATCH, len(queue), self._depth - len(self._pending))
            for index in range(count):
                token, file, is_write, offset, buffer, nbytes = queue[index]
                block = blocks[index]
                block.token = token
                block.offset = offset
                block.buffer = ffi.cast("void *", buffer.address)
                block.bytes = nbytes
                block.fd = file.fd
                block.is_write = is_write
            taken = lib.pl_aio_submit(self._context, self._eventfd, blocks, count)
            if taken == -errno.EAGAIN and self._pending:
                break
            if taken <= 0:
                request = queue.popleft()
                request.buffer.in_flight = False
                refused.append(Completion(request, taken or -errno.EIO))
                continue
            for _ in range(taken):
                request = queue.popleft()
                self._pending[request.token] = request
        return refused

    def abandon(self, token: int) -> None:
        """Note that nobody waits for a request any more: its buffer stays with the kernel."""
        if token in self._pending:
            self.abandoned.add(token)

    def reap(self, timeout_s: float | None = 0.0) -> list[Completion]:
        """Return what has completed, waiting up to `timeout_s` for the first (None: no limit).

        The GIL is released while waiting. Refused queued requests are returned with it.
        """
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            if timeout_s == 0.0:
                return []
        done: list[Completion] = []
        minimum = 0 if timeout_s == 0.0 else 1
        timeout_ns = -1 if timeout_s is None else int(timeout_s * 1e9)
        while self._pending:
            found = lib.pl_aio_reap(self._context, minimum, BATCH, timeout_ns, self._completions)
            if found == -errno.EINTR:
                continue
            if found < 0:
                raise DiskError("", 0, "io_getevents", -found, os.strerror(-found))
            for index in range(found):
                completion = self._completions[index]
                request = self._pending.pop(completion.token)
                request.buffer.in_flight = False
                self.abandoned.discard(request.token)
                done.append(Completion(request, completion.result))
            if found < BATCH:
                break
            minimum = 0
        if self._queue:
            done.extend(self._push())
        return done

    def close(self) -> None:
        """Destroy the context: waits in the kernel for everything in flight."""
        if self._eventfd < 0:
            return
        lib.pl_aio_close(self._context)
        for request in (*self._pending.values(), *self._queue):
            request.buffer.in_flight = False
        self._pending.clear()
        self._queue.clear()
        os.close(self._eventfd)
        self._eventfd = -1
