"""What a runner does with the ends of I/Os: in time, late, wrong, or never."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from paxoslease.engine import disks
from paxoslease.engine.operation import now_us
from paxoslease.errors import DecisionStale, DiskError, DiskTimeout
from paxoslease.protocol.effects import Gather, Landed, Read, Write
from tests.system.fake_aio import Bench

SECOND = 1_000_000
FILES: dict[str, Any] = {"a": SimpleNamespace(path="a", fd=3), "b": SimpleNamespace(path="b", fd=4)}
SECTOR = b"x" * 512


def write(offset: int = 0, path: str = "a", not_after_us: int | None = None) -> Write:
    return Write(path, offset, SECTOR, SECOND, not_after_us)


def read(offset: int = 0, path: str = "a", nbytes: int = 512) -> Read:
    return Read(path, offset, nbytes, SECOND)


def later() -> int:
    return now_us() + 2 * SECOND


def test_answers_a_read_with_its_bytes() -> None:
    """A read that ends in time is answered with what lies in its buffer."""
    bench = Bench()
    token = bench.ask(bench.operation(FILES), read())
    bench.aio.requests[token].buffer.view[:] = b"y" * 512
    bench.aio.finish(token)
    assert bench.answers() == [b"y" * 512]
    assert not bench.disks.has_requests


def test_short_read_is_an_error() -> None:
    """A read beyond the end of a file is an error that says so, not short bytes."""
    bench = Bench()
    bench.aio.finish(bench.ask(bench.operation(FILES), read()), 100)
    (error,) = bench.answers()
    assert isinstance(error, DiskError)
    assert "100 bytes" in str(error)


def test_late_write_is_stuck_until_it_lands() -> None:
    """Nothing is submitted over a write that timed out, until the kernel gives it back (M7)."""
    bench = Bench()
    operation = bench.operation(FILES)
    token = bench.ask(operation, write(512))
    bench.disks.expire(later())
    (error,) = bench.answers()
    assert isinstance(error, DiskTimeout)
    assert error.ticket == token
    assert bench.aio.abandoned == [token]
    with pytest.raises(DiskTimeout) as refused:
        bench.disks.ask(operation, Write("a", 0, SECTOR * 2, SECOND, None))
    assert refused.value.ticket == 0
    assert bench.ask(operation, write(1024))
    assert bench.ask(operation, write(512, "b"))
    assert bench.ask(operation, read(512))
    assert bench.disks.landed(operation, Landed(token)) is disks.BLOCKED
    bench.aio.finish(token)
    assert bench.answers() == [None]
    assert bench.ask(operation, write(512))


def test_late_read_does_not_block_the_place() -> None:
    """A read that timed out changes nothing: the same place can be written at once."""
    bench = Bench()
    operation = bench.operation(FILES)
    bench.ask(operation, read())
    bench.disks.expire(later())
    (error,) = bench.answers()
    assert error.ticket == 0
    assert bench.ask(operation, write())


def test_buffer_stays_with_the_kernel() -> None:
    """The buffer of a request that timed out is given back only when the kernel is done with it."""
    bench = Bench()
    token = bench.ask(bench.operation(FILES), write())
    buffer = bench.aio.requests[token].buffer
    bench.disks.expire(later())
    bench.answers()
    assert buffer.nbytes == 512
    bench.aio.finish(token)
    assert bench.answers() == []
    assert buffer.nbytes == 0


def test_error_of_a_late_write_is_not_forgotten() -> None:
    """A write that came back with an error before anybody waited for it has not succeeded."""
    bench = Bench()
    operation = bench.operation(FILES)
    token = bench.ask(operation, write())
    bench.disks.expire(later())
    bench.aio.finish(token, -5)
    bench.answers()
    with pytest.raises(DiskError):
        bench.disks.landed(operation, Landed(token))


def test_late_error_is_thrown_into_the_waiting() -> None:
    """A wait for a late write ends with the write's error."""
    bench = Bench()
    operation = bench.operation(FILES)
    token = bench.ask(operation, write())
    bench.disks.expire(later())
    bench.answers()
    bench.disks.landed(operation, Landed(token))
    bench.aio.finish(token, -5)
    (error,) = bench.answers()
    assert isinstance(error, DiskError)


def test_impatient_caller_is_told() -> None:
    """A caller learns of a write that does not land, while the operation waits for it."""
    bench = Bench()
    operation = bench.operation(FILES)
    operation.is_impatient = True
    token = bench.ask(operation, write())
    bench.disks.expire(later())
    bench.answers()
    bench.disks.landed(operation, Landed(token))
    with pytest.raises(DiskTimeout):
        operation.result(0)


def test_stale_decision_is_not_written() -> None:
    """A write is not submitted after its not_after, neither when asked nor after a queue."""
    bench = Bench(per_file=1)
    operation = bench.operation(FILES)
    with pytest.raises(DecisionStale):
        bench.disks.ask(operation, write(not_after_us=now_us() - 1))
    first = bench.ask(operation, read())
    bench.disks.ask(operation, write(not_after_us=now_us() + 2000))
    while now_us() < bench.disks._lines["a"].waiting[0].effect.not_after_us:
        continue
    bench.aio.finish(first)
    bench.answers()
    bench.disks.submit()
    (error,) = bench.answers()
    assert isinstance(error, DecisionStale)
    assert bench.aio.in_flight == 0


def test_queued_request_times_out_without_landing() -> None:
    """A write that never reached the kernel leaves nothing behind: no ticket, no stuck place."""
    bench = Bench(per_file=1)
    operation = bench.operation(FILES)
    bench.ask(operation, read(4096))
    bench.disks.ask(operation, write())
    bench.disks.submit()
    bench.disks.expire(later())
    tickets = [error.ticket for error in bench.answers()]
    assert tickets == [0, 0]
    assert not bench.disks._stuck


def test_hung_file_leaves_room_for_others() -> None:
    """A file whose requests hang gets no more of them, and another file's go on."""
    bench = Bench()
    operation = bench.operation(FILES)
    for index in range(disks.ABANDONED_PER_FILE):
        assert bench.ask(operation, read(index * 512))
    bench.disks.expire(later())
    bench.answers()
    assert bench.ask(operation, read(1 << 20)) == 0
    token = bench.ask(operation, read(0, "b"))
    bench.aio.finish(token)
    assert len(bench.answers()) == 1
    for stuck in list(bench.aio.requests):
        bench.aio.finish(stuck)
    bench.answers()
    bench.disks.submit()
    assert bench.aio.in_flight == 1


def test_large_reads_share_a_limited_memory() -> None:
    """No more than 16 MiB are in flight for those that wait for them."""
    bench = Bench()
    operation = bench.operation(FILES)
    for index in range(6):
        bench.disks.ask(operation, read(index << 22, nbytes=4 << 20))
    bench.disks.submit()
    assert bench.aio.in_flight == 4


def test_gather_answers_in_order_with_errors() -> None:
    """Gather gives one answer or one error per effect, in the order of the effects."""
    bench = Bench()
    operation = bench.operation(FILES)
    stale = write(512, not_after_us=1)
    effect = Gather((read(), stale, write(0, "b"), read(0, "nowhere")))
    assert bench.disks.gather(operation, effect) is disks.BLOCKED
    bench.disks.submit()
    first, second = sorted(bench.aio.requests)
    bench.aio.finish(second)
    assert bench.answers() == []
    bench.aio.requests[first].buffer.view[:] = SECTOR
    bench.aio.finish(first)
    ((a, b, c, d),) = bench.answers()
    assert a == SECTOR
    assert isinstance(b, DecisionStale)
    assert c is None
    assert isinstance(d, DiskError)


def test_next_deadline_is_the_earliest() -> None:
    """The thread wakes for the request that times out first, whatever its length of time-out."""
    bench = Bench()
    operation = bench.operation(FILES)
    bench.ask(operation, Read("a", 0, 512, 60 * SECOND))
    short = bench.ask(operation, Read("a", 512, 512, SECOND))
    soon = bench.disks.next_deadline_us()
    assert soon <= now_us() + SECOND
    bench.aio.finish(short)
    bench.answers()
    assert bench.disks.next_deadline_us() > now_us() + 30 * SECOND
