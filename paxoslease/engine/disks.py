"""The I/O of a runner: requests in flight, their time-outs, and what a time-out leaves behind.

A request that timed out keeps its buffer until the kernel gives it back. A write that timed out may
land at any later moment: it is remembered as "stuck", and nothing is submitted over it until then
(rule M7).

A device that hangs must not stop the others: per file only so many requests are in flight, and
fewer when some of them have timed out. What finds no room waits, for no longer than its time-out.
All of this belongs to the runner's thread.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from functools import lru_cache
from typing import Any, Final, NamedTuple

from paxoslease.disk.areas import delta_columns, nonzero_host_sectors
from paxoslease.disk.direct import (
    OFFSET_MAX,
    Aio,
    Buffer,
    BufferPool,
    Completion,
    DirectFile,
    Request,
)
from paxoslease.disk.layout import ballot_bytes, check_sizes, default_sizes
from paxoslease.disk.records import LEADER_BYTES
from paxoslease.engine.operation import Operation, now_us
from paxoslease.errors import DecisionStale, DiskError, DiskTimeout, PaxosleaseError
from paxoslease.protocol.effects import (
    BallotImage,
    Gather,
    Landed,
    LockspaceImage,
    Read,
    ReadBallot,
    ReadLockspace,
    Write,
)

_log = logging.getLogger(__name__)

BLOCKED: Final = object()
BYTES_IN_FLIGHT: Final = 16 << 20
ABANDONED_PER_FILE: Final = 8
LINES_MAX: Final = 1024
_EMSGSIZE: Final = 90


class Ready(NamedTuple):
    """A protocol that can go on: with an answer, or an error that is thrown into it."""

    operation: Operation[Any]
    answer: Any
    error: BaseException | None


class _Line:
    """One file's requests: those that wait, and how many the kernel has."""

    __slots__ = ("abandoned", "in_flight", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Pending] = deque()
        self.in_flight = 0
        self.abandoned = 0


class _Pending:
    """One I/O that an operation waits for, or has given up waiting for."""

    __slots__ = (
        "deadline_us",
        "effect",
        "file",
        "is_abandoned",
        "is_submitted",
        "is_waited_for",
        "is_write",
        "line",
        "nbytes",
        "operation",
        "slot",
        "token",
    )

    def __init__(
        self,
        operation: Operation[Any],
        effect: Any,
        file: DirectFile,
        line: _Line,
        nbytes: int,
        slot: int,
        token: int,
        deadline_us: int,
        is_write: bool,
    ) -> None:
        self.operation = operation
        self.effect = effect
        self.file = file
        self.line = line
        self.nbytes = nbytes
        self.slot = slot  # place in a Gather, -1 outside of one
        self.token = token
        self.deadline_us = deadline_us
        self.is_write = is_write
        self.is_submitted = False
        self.is_abandoned = False  # timed out: nobody waits for its answer any more
        self.is_waited_for = False  # by a Landed

    @property
    def verb(self) -> str:
        return "write" if self.is_write else "read"

    def overlaps(self, path: str, offset: int, nbytes: int) -> bool:
        """Tell whether it writes to any byte of that place."""
        begin: int = self.effect.offset
        return (
            self.is_write
            and self.effect.path == path
            and offset < begin + self.nbytes
            and begin < offset + nbytes
        )

    def timeout(self) -> DiskTimeout:
        """Return the error for no end in time; its ticket says that the write may land yet."""
        effect = self.effect
        ticket = self.token if self.is_write and self.is_submitted else 0
        return DiskTimeout(effect.path, effect.offset, self.verb, effect.timeout_us, ticket)

    def failure(self, result: int) -> DiskError:
        """Return the error for an end with -errno, or with fewer bytes than asked for."""
        path, offset = self.effect.path, self.effect.offset
        if result < 0:
            return DiskError(path, offset, self.verb, -result, os.strerror(-result))
        reason = f"only {result} bytes lie there: the area goes beyond the end"
        return DiskError(path, offset, self.verb, _EMSGSIZE, reason)


class Disks:
    """Performs Read, ReadBallot, ReadLockspace, Write, Gather and Landed.

    Protocols that can go on are put into `ready`. The kernel's context is made with the first I/O.
    """

    def __init__(self, ready: deque[Ready], depth: int, per_file: int, pool: BufferPool) -> None:
        self._ready = ready
        self._depth = depth
        self._per_file = per_file
        self._pool = pool
        self._aio: Aio | None = None
        self._bytes = 0
        self._tokens = 0
        self._pending: dict[int, _Pending] = {}
        self._stuck: dict[int, _Pending] = {}
        self._lines: dict[str, _Line] = {}
        self._waiting: deque[_Line] = deque()  # lines with requests, the next to be served first
        # For every length of a time-out its requests in order: the first ends first.
        self._deadlines: dict[int, deque[_Pending]] = {}

    @property
    def has_requests(self) -> bool:
        """Tell whether anything waits or is in flight, abandoned requests included."""
        return bool(self._pending)

    @property
    def is_open(self) -> bool:
        """Tell whether there was any I/O yet."""
        return self._aio is not None

    def wait(self, wake_fd: int, timeout_s: float | None) -> None:
        """Sleep until an I/O completes, `wake_fd` is written to or the time has passed."""
        assert self._aio is not None
        completions = self._aio.wait(wake_fd, timeout_s)
        if completions:
            self._complete(completions)

    # -- asking ----------------------------------------------------------------------------------

    def ask(self, operation: Operation[Any], effect: Any) -> Any:
        """Queue one request. Raises as `_prepare`."""
        self._prepare(operation, effect, -1)
        return BLOCKED

    def gather(self, operation: Operation[Any], effect: Gather) -> Any:
        """Queue several requests; the answers come together."""
        operation.gathered = results = [None] * len(effect.effects)
        operation.missing = len(results)
        for slot, one in enumerate(effect.effects):
            try:
                self._prepare(operation, one, slot)
            except PaxosleaseError as error:
                results[slot] = error  # type: ignore[call-overload]
                operation.missing -= 1
        if operation.missing:
            return BLOCKED
        operation.gathered = None
        return tuple(results)

    def landed(self, operation: Operation[Any], effect: Landed) -> Any:
        """Wait for a write that timed out. Raises DiskError when it has come back with one."""
        pending = self._stuck.get(effect.ticket)
        if pending is not None:
            pending.is_waited_for = True
            if operation.is_impatient:
                operation.tell(None, pending.timeout())
            return BLOCKED
        error = None if operation.landed is None else operation.landed.pop(effect.ticket, None)
        if error is not None:
            raise error
        return None

    def _prepare(self, operation: Operation[Any], effect: Any, slot: int) -> None:
        """Queue one request. Raises DecisionStale, DiskTimeout (over a stuck write), DiskError."""
        path: str = effect.path
        file = operation.files.get(path)
        if file is None:
            raise DiskError(path, effect.offset, "open", errno.ENOENT, "it was not opened before")
        if file.fd < 0:
            raise DiskError(path, effect.offset, "open", errno.ENXIO, "it is not open yet")
        is_write = type(effect) is Write
        nbytes = _length(effect)
        if not 0 <= effect.offset <= OFFSET_MAX - nbytes:
            reason = "there can be nothing at such an offset"
            raise DiskError(path, effect.offset, "read or write", errno.EINVAL, reason)
        now = now_us()
        if is_write:
            if effect.not_after_us is not None and now > effect.not_after_us:
                raise DecisionStale(operation.context.lockspace, now - effect.not_after_us)
            if self._stuck and self._is_over_stuck(path, effect.offset, nbytes):
                raise DiskTimeout(path, effect.offset, "write", effect.timeout_us)
        line = self._lines.get(path)
        if line is None:
            line = self._new_line(path)
        self._tokens = token = self._tokens + 1
        timeout_us: int = effect.timeout_us
        pending = _Pending(
            operation, effect, file, line, nbytes, slot, token, now + timeout_us, is_write
        )
        self._pending[token] = pending
        if not line.waiting:
            self._waiting.append(line)
        line.waiting.append(pending)
        ends = self._deadlines.get(timeout_us)
        if ends is None:
            ends = self._deadlines[timeout_us] = deque()
        ends.append(pending)

    def _new_line(self, path: str) -> _Line:
        if len(self._lines) >= LINES_MAX:
            # Forget files that nothing happens to, so that years of files do not pile up.
            busy = {p: line for p, line in self._lines.items() if line.waiting or line.in_flight}
            self._lines = busy
        line = self._lines[path] = _Line()
        return line

    def _is_over_stuck(self, path: str, offset: int, nbytes: int) -> bool:
        return any(one.overlaps(path, offset, nbytes) for one in self._stuck.values())

    # -- submitting ------------------------------------------------------------------------------

    def submit(self) -> None:
        """Give the kernel what waits, as far as there is room, file by file in turn.

        The time-out runs since the request was asked for, so a queue behind a disk that hangs ends
        by itself; what a time-out left with the kernel counts against its own file only.
        """
        if not self._waiting:
            return
        if self._aio is None:
            self._aio = Aio(self._depth)
        batch: list[Request] = []
        room = self._depth - self._aio.in_flight
        for _ in range(len(self._waiting)):
            line = self._waiting.popleft()
            while line.waiting:
                pending = line.waiting[0]
                if pending.token in self._pending:
                    if len(batch) >= room or not self._has_room(line, pending.nbytes):
                        break
                    request = self._make_request(pending)
                    if request is not None:
                        batch.append(request)
                # else it timed out while it waited
                line.waiting.popleft()
            if line.waiting:
                self._waiting.append(line)
        if batch:
            self._complete(self._aio.submit(batch))

    def _has_room(self, line: _Line, nbytes: int) -> bool:
        return (
            line.in_flight < self._per_file
            and line.abandoned < ABANDONED_PER_FILE
            and (not self._bytes or self._bytes + nbytes <= BYTES_IN_FLIGHT)
        )

    def _make_request(self, pending: _Pending) -> Request | None:
        """Make a request of what waited, None when it came to nothing."""
        effect = pending.effect
        if pending.is_write and effect.not_after_us is not None:
            late_us = now_us() - effect.not_after_us
            if late_us > 0:
                stale = DecisionStale(pending.operation.context.lockspace, late_us)
                self._end(pending, None, stale)
                return None
        try:
            buffer = self._pool.take(pending.nbytes)
        except MemoryError as error:
            refused = DiskError(effect.path, effect.offset, pending.verb, errno.ENOMEM, str(error))
            self._end(pending, None, refused)
            return None
        if pending.is_write:
            buffer.view[:] = effect.data
        pending.is_submitted = True
        self._bytes += pending.nbytes
        pending.line.in_flight += 1
        return Request(
            pending.token, pending.file, pending.is_write, effect.offset, buffer, pending.nbytes
        )

    # -- ends ------------------------------------------------------------------------------------

    def take(self) -> None:
        """Take what has completed."""
        if self._aio is not None:
            self._complete(self._aio.reap())

    def _complete(self, completions: list[Completion]) -> None:
        for request, result in completions:
            pending = self._pending[request.token]
            pending.line.in_flight -= 1
            error = None if result == request.nbytes else pending.failure(result)
            if pending.is_abandoned:
                self._land(pending, error)
            else:
                self._bytes -= request.nbytes
                answer = None
                if error is None and not request.is_write:
                    answer = _read_answer(pending.effect, request.buffer)
                self._end(pending, answer, error)
            request.buffer.release()

    def _land(self, pending: _Pending, error: PaxosleaseError | None) -> None:
        """Note that a request that had timed out has come back."""
        del self._pending[pending.token]
        pending.line.abandoned -= 1
        _log.warning(
            "io_came_back operation=%s path=%s offset=%d error=%s",
            pending.verb,
            pending.effect.path,
            pending.effect.offset,
            error,
        )
        if not pending.is_write:
            return
        del self._stuck[pending.token]
        operation = pending.operation
        if pending.is_waited_for:
            self._ready.append(Ready(operation, None, error))
        else:
            operation.landed = operation.landed or {}
            operation.landed[pending.token] = error

    def _end(self, pending: _Pending, answer: Any, error: PaxosleaseError | None) -> None:
        """Answer a request that its operation waits for."""
        del self._pending[pending.token]
        self._answer(pending, answer, error)

    def _answer(self, pending: _Pending, answer: Any, error: PaxosleaseError | None) -> None:
        operation = pending.operation
        if pending.slot < 0:
            self._ready.append(Ready(operation, answer, error))
            return
        gathered = operation.gathered
        assert gathered is not None
        gathered[pending.slot] = answer if error is None else error
        operation.missing -= 1
        if operation.missing == 0:
            operation.gathered = None
            self._ready.append(Ready(operation, tuple(gathered), None))

    # -- time-outs -------------------------------------------------------------------------------

    def next_deadline_us(self) -> int:
        """Return when the next request times out; 0 when none can."""
        earliest = 0
        for ends in self._deadlines.values():
            while ends and self._is_over(ends[0]):
                ends.popleft()
            if ends and (not earliest or ends[0].deadline_us < earliest):
                earliest = ends[0].deadline_us
        return earliest

    def _is_over(self, pending: _Pending) -> bool:
        return pending.is_abandoned or pending.token not in self._pending

    def expire(self, now: int) -> None:
        """Tell operations whose I/O did not end in time; what was submitted goes on."""
        for ends in self._deadlines.values():
            while ends and (self._is_over(ends[0]) or ends[0].deadline_us <= now):
                pending = ends.popleft()
                if not self._is_over(pending):
                    self._time_out(pending)

    def _time_out(self, pending: _Pending) -> None:
        effect = pending.effect
        error = pending.timeout()
        _log.warning(
            "io_timeout operation=%s path=%s offset=%d", pending.verb, effect.path, effect.offset
        )
        if not pending.is_submitted:
            self._end(pending, None, error)
            return
        pending.is_abandoned = True
        self._bytes -= pending.nbytes
        pending.line.abandoned += 1
        if pending.is_write:
            self._stuck[pending.token] = pending
        assert self._aio is not None
        self._aio.abandon(pending.token)
        self._answer(pending, None, error)

    def close(self) -> None:
        """Destroy the kernel's context; waits for what is in flight."""
        if self._aio is not None:
            self._aio.close()
            self._aio = None


@lru_cache(maxsize=64)
def _ballot_length(sector_size: int, num_hosts: int) -> int:
    return ballot_bytes(default_sizes(sector_size), num_hosts)


def _length(effect: Any) -> int:
    kind = type(effect)
    if kind is Write:
        return len(effect.data)
    if kind is Read:
        return int(effect.length)
    if kind is ReadBallot:
        return _ballot_length(effect.sector_size, effect.num_hosts)
    assert kind is ReadLockspace
    return int(effect.align_size)


def _read_answer(effect: Any, buffer: Buffer) -> Any:
    """Return what an effect is sent; nothing of it refers to the buffer."""
    kind = type(effect)
    view = buffer.view
    if kind is Read:
        return bytes(view)
    if kind is ReadBallot:
        hosts = nonzero_host_sectors(view, effect.sector_size, effect.num_hosts)
        return BallotImage(bytes(view[:LEADER_BYTES]), hosts)
    own = (effect.host_id - 1) * effect.sector_size
    sizes = check_sizes(effect.sector_size, effect.align_size)
    columns = delta_columns(view, sizes, effect.space_name, effect.host_id)
    return LockspaceImage(bytes(view[own : own + effect.sector_size]), columns)
