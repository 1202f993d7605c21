"""O_DIRECT files, aligned buffers, and many reads and writes in flight at once.

The rule that shapes this module: a buffer that was given to the kernel belongs to the kernel until
the completion has been reaped, time-out or not. `Aio` therefore keeps every buffer that is in
flight, `Buffer.release` refuses to hand such memory to somebody else, and no memory of a pool is
ever unmapped.

Linux AIO does the work (docs/decisions/0001-linux-aio.md). One thread owns an `Aio` and all
its calls; the buffer pool is shared by all threads. After fork the child begins with an empty
shared pool: it has neither the parent's buffers nor the parent's I/O.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from struct import Struct, unpack
from typing import Final, NamedTuple

from paxoslease._aio import ffi, lib
from paxoslease.errors import DiskError, IsDirectory, UnsuitableDevice

HUGE_PAGE_BYTES: Final = 2 << 20
BATCH: Final = 64
_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_SECTOR_SIZES: Final = (512, 4096)
_SMALLEST: Final = 4096
OFFSET_MAX: Final = (1 << 63) - 1
_COMPLETION: Final = Struct("=Qq")  # struct pl_completion
_REQUEST: Final = Struct("=QQQQii")  # struct pl_request
assert ffi.sizeof("struct pl_completion") == _COMPLETION.size
assert ffi.sizeof("struct pl_request") == _REQUEST.size
_NO_DIRECT: Final = "its file system refuses O_DIRECT"
_TRANSPARENT: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


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

    def become(self, other: DirectFile) -> None:
        """Take over what another object has of the same path; this one was not open."""
        self.sector_size, self.size_bytes = other.sector_size, other.size_bytes
        self.is_block = other.is_block
        self.fd, other.fd = other.fd, -1

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
        # Looked at before it is opened: opening a watchdog, a tape or a pipe has consequences.
        _check_kind(path, os.stat(path).st_mode)
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnsuitableDevice(path, 0, _NO_DIRECT) from error
        raise DiskError(path, 0, "open", error.errno or 0, _reason(error)) from error
    try:
        mode = os.fstat(fd).st_mode
        _check_kind(path, mode)
        is_block = stat.S_ISBLK(mode)
        if is_block and writable and _device_number(fd, _BLKROGET):
            raise DiskError(path, 0, "open", errno.EROFS, os.strerror(errno.EROFS))
        sector_size = _device_number(fd, _BLKSSZGET) if is_block else _file_sector_size(fd, path)
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        if sector_size not in _SECTOR_SIZES:
            reason = f"its logical sectors have {sector_size} bytes, not 512 or 4096"
            raise UnsuitableDevice(path, 0, reason)
    except OSError as error:
        os.close(fd)
        raise DiskError(path, 0, "open", error.errno or 0, _reason(error)) from error
    except BaseException:
        os.close(fd)
        raise
    return DirectFile(path, fd, sector_size, size_bytes, is_block)


def _check_kind(path: str, mode: int) -> None:
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsDirectory(path, 0, "it is a directory, not a block device or a file")
    kind = "a character device" if stat.S_ISCHR(mode) else "neither"
    raise UnsuitableDevice(path, 0, f"it is {kind}, not a block device or a file")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _device_number(fd: int, request: int) -> int:
    answer = ioctl(fd, request, bytes(4))
    return int(unpack("i", answer)[0])


def _file_sector_size(fd: int, path: str) -> int:
    """Return the smallest sector that O_DIRECT allows in a file: asked for, else tried.

    The trial reads the file's beginning. It finds 512 where there is no block yet, whatever the
    device below: only a kernel that answers (Linux 6.1, local file systems) knows better.
    """
    alignment = int(lib.pl_direct_alignment(fd))
    if alignment > 0:
        return max(alignment, _SECTOR_SIZES[0])
    if alignment == -errno.EOPNOTSUPP:
        raise UnsuitableDevice(path, 0, _NO_DIRECT)
    if alignment < 0:
        raise DiskError(path, 0, "statx", -alignment, os.strerror(-alignment))
    buffer = shared_pool().take(_SECTOR_SIZES[-1])
    try:
        return _tried_sector_size(fd, path, buffer.view)
    finally:
        buffer.release()


def _tried_sector_size(fd: int, path: str, view: memoryview) -> int:
    for sector_size in _SECTOR_SIZES:
        try:
            os.preadv(fd, [view[:sector_size]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise DiskError(path, 0, "read", error.errno or 0, _reason(error)) from error
        else:
            return sector_size
    raise UnsuitableDevice(path, 0, _NO_DIRECT)


# -- buffers -----------------------------------------------------------------------------------


class Buffer:
    """Aligned memory from a pool. `view` is exactly as long as was asked for, and writable.

    After `release` the view is dead: whoever still uses it gets ValueError and not the bytes of
    the next user. (Slices and arrays made of it live on: copy before releasing.)
    """

    __slots__ = ("_pool", "_whole", "address", "in_flight", "nbytes", "view")

    def __init__(self, pool: BufferPool, address: int, whole: memoryview, nbytes: int) -> None:
        self._pool = pool
        self._whole = whole
        self.address = address
        self.nbytes = nbytes  # 0 after release
        self.view = whole[:nbytes]
        self.in_flight = False

    def release(self) -> None:
        """Give the memory back to its pool.

        Raises RuntimeError while the kernel has it and on a second release: those are errors of
        ours, never the world's.
        """
        if self.in_flight:
            raise RuntimeError("a buffer is released while the kernel has it")
        if not self.nbytes:
            raise RuntimeError("a buffer is released twice")
        self.view.release()
        self.nbytes = 0
        self._pool.put(self.address, self._whole)


class PoolStats(NamedTuple):
    """What a pool holds, in bytes: mapped from the system, handed out now.

    pages: the worst kind of page in it; transparent huge pages are asked for, not always had.
    """

    mapped: int
    taken: int
    pages: str


class BufferPool:
    """Reused buffers, carved out of huge pages where the system has them.

    A 1 MiB O_DIRECT read into a reused huge page takes a third of the time of one into fresh or
    small pages (docs/decisions/0001-linux-aio.md). Buffers come in powers of two from 4 KiB; the
    pool never holds more than `limit_bytes` and refuses beyond that. Thread-safe.
    """

    _PAGES = ("4 KiB pages", "transparent huge pages", "reserved huge pages")

    def __init__(self, limit_bytes: int = 512 << 20, *, huge: bool = True) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[tuple[int, memoryview]]] = {}
        self._kind = _best_pages() if huge else int(lib.PL_PAGES_SMALL)
        self._limit = limit_bytes
        self._mapped = 0
        self._taken = 0

    def take(self, nbytes: int) -> Buffer:
        """Return a buffer of `nbytes` with undefined content. Raises MemoryError at the limit."""
        if nbytes <= 0:
            raise ValueError(f"a buffer of {nbytes} bytes")
        slot = max(_SMALLEST, 1 << (nbytes - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(slot, [])
            if not free:
                self._grow(slot, free)
            address, whole = free.pop()
            self._taken += slot
        return Buffer(self, address, whole, nbytes)

    def put(self, address: int, whole: memoryview) -> None:
        """Take memory back; called by Buffer.release."""
        with self._lock:
            self._free[len(whole)].append((address, whole))
            self._taken -= len(whole)

    def stats(self) -> PoolStats:
        """Return what the pool holds."""
        with self._lock:
            return PoolStats(self._mapped, self._taken, self._PAGES[self._kind])

    def _grow(self, slot: int, free: list[tuple[int, memoryview]]) -> None:
        region = max(slot, HUGE_PAGE_BYTES)
        if self._mapped + region > self._limit:
            raise MemoryError(f"the buffer pool is at its limit of {self._limit} bytes")
        address = ffi.new("void **")
        kind = int(lib.pl_buffer_map(region, self._kind, address))
        if kind < 0:
            raise MemoryError(f"no memory for buffers: {os.strerror(-kind)}")
        self._kind = kind  # what could not be had once is not tried again
        self._mapped += region
        start = int(ffi.cast("uintptr_t", address[0]))
        memory = memoryview(ffi.buffer(address[0], region)).cast("B")
        free.extend((start + at, memory[at : at + slot]) for at in range(0, region, slot))


def _best_pages() -> int:
    """Return the kind of page to ask for.

    Reserved huge pages are usually set aside for guests, one of which could not start without
    those that we took. So they are used only where transparent ones are switched off.
    """
    try:
        are_off = "[never]" in _TRANSPARENT.read_text()
    except OSError:  # a kernel without them
        are_off = True
    return int(lib.PL_PAGES_RESERVED if are_off else lib.PL_PAGES_TRANSPARENT)


_shared: list[BufferPool] = []
_shared_lock = threading.Lock()


def shared_pool() -> BufferPool:
    """Return the one pool that all lockspaces of this process share."""
    with _shared_lock:
        if not _shared:
            _shared.append(BufferPool())
        return _shared[0]


def _forget_shared_pool() -> None:
    """Start anew in a child after fork: the parent's pool is not mapped here (MADV_DONTFORK)."""
    global _shared_lock
    _shared_lock = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_forget_shared_pool)


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

    depth: how many requests, abandoned ones included, the kernel may have at once.
    `fileno()` becomes readable when something has completed.
    """

    def __init__(self, depth: int = 256) -> None:
        context = ffi.new("uint64_t *")
        result = lib.pl_aio_open(depth, context)
        if result == -errno.EAGAIN:
            reason = f"no room for {depth} requests below the sysctl fs.aio-max-nr"
            raise DiskError("the AIO context", 0, "io_setup", errno.EAGAIN, reason)
        if result < 0:
            raise DiskError("the AIO context", 0, "io_setup", -result, os.strerror(-result))
        self._context = context[0]
        self.depth = depth
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._requests = ffi.new("struct pl_request[]", BATCH)
        self._requests_memory = memoryview(ffi.buffer(self._requests)).cast("B")
        self._completions = ffi.new("struct pl_completion[]", BATCH)
        self._completions_memory = memoryview(ffi.buffer(self._completions)).cast("B")
        self._pending: dict[int, Request] = {}
        self._abandoned: set[int] = set()

    def fileno(self) -> int:
        """Return the eventfd that is readable after completions; `reap` reads it empty."""
        return self._eventfd

    @property
    def in_flight(self) -> int:
        """Return how many requests the kernel has."""
        return len(self._pending)

    @property
    def abandoned(self) -> frozenset[int]:
        """Return the tokens of requests that nobody waits for, but the kernel still has."""
        return frozenset(self._abandoned)

    def submit(self, requests: Sequence[Request]) -> list[Completion]:
        """Hand requests to the kernel, up to 64 with one system call.

        Returns those that were refused at once, with -errno; -EAGAIN stands for no room. Nothing
        is kept to be tried later: a write that waits here could outlive the decision behind it.

        Raises ValueError, before anything is submitted, when a request does not fit its buffer, or
        its buffer (one request each) or its token is in flight.
        """
        room = self.depth - len(self._pending)
        refused = [Completion(request, -errno.EAGAIN) for request in requests[room:]]
        accepted = requests[:room]
        self._claim(accepted)
        start = 0
        while start < len(accepted):
            batch = accepted[start : start + BATCH]
            for index, (token, file, is_write, offset, buffer, nbytes) in enumerate(batch):
                at = index * _REQUEST.size
                memory, address = self._requests_memory, buffer.address
                _REQUEST.pack_into(memory, at, token, offset, address, nbytes, file.fd, is_write)
            taken = lib.pl_aio_submit(self._context, self._eventfd, self._requests, len(batch))
            start += max(taken, 0)
            if taken <= 0:
                # The kernel stops at a bad one and tells of it only when it is the first.
                self._unclaim(batch[:1])
                refused.append(Completion(batch[0], taken or -errno.EIO))
                start += 1
        return refused

    def _claim(self, requests: Sequence[Request]) -> None:
        """Mark buffers and tokens as in flight: before the kernel has them, never after."""
        pending = self._pending
        for index, request in enumerate(requests):
            token, _, _, offset, buffer, nbytes = request
            wrong = ""
            if buffer.in_flight:
                wrong = "its buffer is in flight"
            elif not 0 < nbytes <= buffer.nbytes or not 0 <= offset <= OFFSET_MAX:
                wrong = f"{nbytes} bytes at {offset}, in a buffer of {buffer.nbytes}"
            elif token in pending or token < 0:
                wrong = "its token is in flight, or negative"
            if wrong:
                self._unclaim(requests[:index])
                raise ValueError(f"request {token}: {wrong}")
            buffer.in_flight = True
            pending[token] = request

    def _unclaim(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.buffer.in_flight = False
            del self._pending[request.token]

    def abandon(self, token: int) -> None:
        """Note that nobody waits for a request any more: its buffer stays with the kernel."""
        if token in self._pending:
            self._abandoned.add(token)

    def reap(self, timeout_s: float | None = 0.0) -> list[Completion]:
        """Return what has completed, waiting up to `timeout_s` for the first (None: no limit).

        Returns at once when nothing is in flight. The GIL is released while waiting.
        """
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            if timeout_s is not None and timeout_s <= 0:
                return []
        done: list[Completion] = []
        deadline_ns = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        while self._pending:
            wait_ns = 0
            if not done:
                wait_ns = -1 if deadline_ns is None else max(0, deadline_ns - time.monotonic_ns())
            found = lib.pl_aio_reap(
                self._context, int(wait_ns != 0), BATCH, wait_ns, self._completions
            )
            if found == -errno.EINTR:
                continue
            if found < 0:
                raise DiskError("the AIO context", 0, "io_getevents", -found, os.strerror(-found))
            done += self._completed(found)
            if found < BATCH:
                break
        return done

    def wait(self, wake_fd: int, timeout_s: float | None) -> list[Completion]:
        """Sleep until something has completed, `wake_fd` was written to, or the time has passed.

        Reads `wake_fd`, an eventfd, empty. Returns what has completed, at most 64. One call of C
        for what an event loop does between two steps; the GIL is released meanwhile.
        """
        timeout_ns = -1 if timeout_s is None else max(0, int(timeout_s * 1e9))
        found = lib.pl_aio_wait(
            self._context, self._eventfd, wake_fd, BATCH, timeout_ns, self._completions
        )
        if found < 0:
            raise DiskError("the AIO context", 0, "io_getevents", -found, os.strerror(-found))
        if found == BATCH:
            os.eventfd_write(self._eventfd, 1)  # there may be more: look again at once
        return self._completed(found)

    def _completed(self, found: int) -> list[Completion]:
        """Take the first `found` completions that the kernel has written."""
        done: list[Completion] = []
        filled = self._completions_memory[: found * _COMPLETION.size]
        for token, result in _COMPLETION.iter_unpack(filled):
            request = self._pending.pop(token)
            request.buffer.in_flight = False
            self._abandoned.discard(token)
            done.append(Completion(request, result))
        return done

    def close(self) -> None:
        """Destroy the context: waits in the kernel for everything in flight, without a limit."""
        if self._eventfd < 0:
            return
        result = lib.pl_aio_close(self._context)
        if result < 0:
            raise DiskError("the AIO context", 0, "io_destroy", -result, os.strerror(-result))
        for request in self._pending.values():
            request.buffer.in_flight = False
        self._pending.clear()
        self._abandoned.clear()
        os.close(self._eventfd)
        self._eventfd = -1
