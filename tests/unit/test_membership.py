"""One renewal of a membership, with scripted clocks and failures."""

from __future__ import annotations

from typing import Any

from paxoslease.disk.layout import MIB, SIZES_512, Area
from paxoslease.disk.records import delta_at_format, pack_leader, unpack_leader
from paxoslease.errors import DiskError, PaxosleaseError
from paxoslease.protocol.delta import Held, Lockspace
from paxoslease.protocol.effects import Now, Write
from paxoslease.protocol.membership import Member, _renew_once
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk

SPACE = Lockspace(b"ls", Area("/ls", 0, SIZES_512))


def test_a_failed_write_never_shares_its_timestamp_with_the_next() -> None:
    """A renewal whose write failed may land yet: the next one has another timestamp, also when the
    second ticked between the read and the write (M17), or others would see no life in it."""
    desk = Desk(now_us=1_000 * SECOND_US + 300_000)
    record = delta_at_format(b"ls", SIZES_512, 10)
    record = record._replace(owner_id=1, owner_generation=1, timestamp=990).sealed()
    desk.disk("/ls", MIB)[:512] = pack_leader(record, 512)
    member = Member(SPACE, 1, b"one", Timing())
    member.held = Held(record, 990 * SECOND_US, True)

    def tick(effect: Any) -> None:
        if isinstance(effect, Now):
            desk.now_us += 900_000

    def fail(effect: Any) -> PaxosleaseError | None:
        return DiskError("/ls", 0, "write", 5, "gone") if isinstance(effect, Write) else None

    desk.after, desk.fail = tick, fail
    assert desk.run(_renew_once(member, desk.now_us)).error is not None
    assert member.held is not None
    assert not member.held.certain
    desk.after, desk.fail = lambda effect: None, lambda effect: None
    (failed,) = [unpack_leader(e.data) for e in desk.log if isinstance(e, Write)]
    desk.now_us = failed.timestamp * SECOND_US  # the very second that was tried
    assert desk.run(_renew_once(member, desk.now_us)).error is None
    written = unpack_leader(bytes(desk.disks["/ls"][:512]))
    assert written.timestamp != failed.timestamp
