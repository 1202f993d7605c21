"""The host table: what it remembers of renewals, and what it says of every host."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from paxoslease.disk.areas import DeltaColumns, delta_columns, lockspace_area
from paxoslease.disk.layout import Sizes
from paxoslease.disk.records import bitmap_of_hosts, pack_leader, unpack_leader
from paxoslease.protocol.effects import UNSEEN
from paxoslease.protocol.hosts import HostState, HostTable
from paxoslease.timing import SECOND_US, dead_us, fail_us

S = SECOND_US
SIZES = Sizes(4096, 1 << 20)
OWN = 3


class Area:
    """A lockspace area with records of hosts."""

    def __init__(self) -> None:
        body, first = lockspace_area(b"ls", SIZES, 10)
        self.data = bytearray(first + body[len(first) :])

    def set(self, host_id: int, *, marks: tuple[int, ...] = (), **changes: Any) -> None:
        start = (host_id - 1) * 4096
        record = unpack_leader(self.data[start:])._replace(
            **{"owner_id": host_id, "owner_generation": 1, "io_timeout": 2, **changes}
        )
        bitmap = bitmap_of_hosts(marks)
        self.data[start : start + 4096] = pack_leader(record.sealed(), 4096, bitmap)

    def columns(self) -> DeltaColumns:
        return delta_columns(self.data, SIZES, b"ls", OWN)


def name(text: bytes) -> bytes:
    return text.ljust(48, b"\0")


def state_of(table: HostTable, host_id: int, now_us: int) -> HostState:
    return HostState(int(table.states(now_us, 60)[host_id - 1]))


def test_before_the_first_renewal_nothing_is_known() -> None:
    """A table that was never fed, and an id out of range, know nothing."""
    table = HostTable(SIZES.max_hosts, OWN)
    assert table.seen(1) == UNSEEN
    table.update(Area().columns(), 5 * S)
    assert table.seen(0) == UNSEEN
    assert table.seen(251) == UNSEEN
    assert table.rows(5 * S, 60) == ()


def test_a_host_through_its_life() -> None:
    """UNKNOWN after one sample, LIVE after a second, FAIL, DEAD, FREE by the formulas of its own
    io_timeout; exactly at a limit it has not yet passed it."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(7, timestamp=100, resource_name=name(b"seven"))
    table.update(area.columns(), 10 * S)
    assert state_of(table, 7, 10 * S) is HostState.UNKNOWN
    area.set(7, timestamp=104, resource_name=name(b"seven"))
    table.update(area.columns(), 14 * S)
    table.update(area.columns(), 18 * S)
    seen = table.seen(7)
    assert (seen.first_check_us, seen.last_check_us, seen.last_live_us) == (10 * S, 18 * S, 14 * S)
    assert (seen.owner_id, seen.generation, seen.timestamp, seen.name) == (7, 1, 104, b"seven")
    assert state_of(table, 7, 14 * S + fail_us(2)) is HostState.LIVE
    assert state_of(table, 7, 15 * S + fail_us(2)) is HostState.FAIL
    assert state_of(table, 7, 14 * S + dead_us(2, 60)) is HostState.FAIL
    assert state_of(table, 7, 15 * S + dead_us(2, 60)) is HostState.DEAD
    area.set(7, timestamp=0)
    table.update(area.columns(), 400 * S)
    assert state_of(table, 7, 400 * S) is HostState.FREE


def test_we_are_live() -> None:
    """Our own host is LIVE whatever our record says, unless it is free."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(OWN, timestamp=5)
    table.update(area.columns(), 10 * S)
    assert state_of(table, OWN, 10_000 * S) is HostState.LIVE


def test_a_host_that_was_dead_before_we_came() -> None:
    """A record that never moves is counted from our first look at it."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(7, timestamp=100)
    for now_s in (10, 14, 90):
        table.update(area.columns(), now_s * S)
    assert table.seen(7).last_live_us == 10 * S
    assert state_of(table, 7, 11 * S + dead_us(2, 60)) is HostState.DEAD


@pytest.mark.parametrize(
    "changes", [{"timestamp": 101}, {"owner_generation": 2}, {"owner_id": 8}], ids=str
)
def test_what_counts_as_a_change(changes: dict[str, int]) -> None:
    """Owner, generation and timestamp, each alone; nothing else of the record."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(7, timestamp=100)
    table.update(area.columns(), 10 * S)
    area.set(7, timestamp=100, write_id=9, io_timeout=5)
    table.update(area.columns(), 14 * S)
    assert table.seen(7).last_live_us == 10 * S
    area.set(7, **{"timestamp": 100, **changes})
    table.update(area.columns(), 18 * S)
    assert table.seen(7).last_live_us == 18 * S


def test_the_largest_io_timeout_is_remembered() -> None:
    """A host that was ever slow is waited for by that (M9)."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    for timestamp, io_timeout in ((1, 2), (2, 30), (3, 5)):
        area.set(7, timestamp=timestamp, io_timeout=io_timeout)
        table.update(area.columns(), timestamp * S)
    assert (table.seen(7).io_timeout, table.seen(7).io_max) == (5, 30)


def test_a_bad_record_is_a_sign_of_life_only() -> None:
    """Of a record of another lockspace or without magic only the timestamp is taken (3)."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(7, timestamp=1, resource_name=name(b"seven"))
    table.update(area.columns(), 1 * S)
    for timestamp, changes in ((2, {"magic": 1}), (3, {"space_name": name(b"lt")})):
        area.set(7, timestamp=timestamp, owner_generation=9, resource_name=name(b"bad"), **changes)
        table.update(area.columns(), timestamp * S)
        seen = table.seen(7)
        assert (seen.timestamp, seen.last_live_us) == (timestamp, timestamp * S)
        assert (seen.generation, seen.name) == (1, b"seven")


def test_marks_are_reported_with_a_change_only() -> None:
    """Hosts that marked us are named once per renewal of theirs; we never mark ourselves."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(7, timestamp=1, marks=(OWN, 9))
    area.set(9, timestamp=1, marks=(7,))
    area.set(OWN, timestamp=1, marks=(OWN,))
    assert table.update(area.columns(), 1 * S) == (7,)
    assert table.update(area.columns(), 2 * S) == ()
    area.set(7, timestamp=2, marks=(OWN,))
    assert table.update(area.columns(), 3 * S) == (7,)


def test_rows_name_every_host_ever_used() -> None:
    """Rows are for people: ids in order, names cut, and how long ago a change was seen."""
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(250, timestamp=9, resource_name=b"last\0" + b"x" * 43)
    area.set(2, timestamp=0, owner_generation=4, resource_name=name(b"two"))
    table.update(area.columns(), 5 * S)
    first, second = table.rows(7 * S, 60)
    assert (first.host_id, first.name, first.generation) == (2, b"two", 4)
    assert first.state is HostState.FREE
    assert (second.host_id, second.name, second.seen_ago_us) == (250, b"last", 2 * S)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 30)), max_size=30))
def test_the_table_agrees_with_a_plain_one(renewals: list[tuple[int, int, int]]) -> None:
    """Whatever hosts do, each one's last change is when its record was first seen so."""
    area = Area()
    for host_id in range(1, 6):
        area.set(host_id)
    columns = area.columns()
    arrays = {f.name: getattr(columns, f.name).copy() for f in dataclasses.fields(columns)}
    table = HostTable(SIZES.max_hosts, OWN)
    table.update(columns, S)
    plain: dict[int, tuple[int, int]] = dict.fromkeys(range(1, 6), (0, S))
    now_us = S
    for host_id, timestamp, step_s in renewals:
        arrays["timestamp"] = arrays["timestamp"].copy()
        arrays["timestamp"][host_id - 1] = timestamp
        now_us += step_s * S
        table.update(DeltaColumns(**arrays), now_us)
        if plain.get(host_id, (0, 0))[0] != timestamp:
            plain[host_id] = (timestamp, now_us)
        for known, (stamp, at_us) in plain.items():
            assert (table.seen(known).timestamp, table.seen(known).last_live_us) == (stamp, at_us)


def _seen_twice() -> HostTable:
    area, table = Area(), HostTable(SIZES.max_hosts, OWN)
    area.set(1, timestamp=100, resource_name=name(b"one"))
    area.set(7, timestamp=70, owner_generation=4)
    table.update(area.columns(), 5 * S)
    area.set(1, timestamp=102, resource_name=name(b"one"))
    table.update(area.columns(), 9 * S)
    return table


def test_a_table_is_handed_over_whole() -> None:
    """What a successor loads says the same of every host, now and later."""
    table = _seen_twice()
    successor = HostTable(SIZES.max_hosts, OWN)
    successor.load(json.loads(json.dumps(table.dump())))
    for host_id in range(10):
        assert successor.seen(host_id) == table.seen(host_id)
    assert successor.rows(90 * S, 60) == table.rows(90 * S, 60)
    assert state_of(successor, 7, 9 * S) is HostState.UNKNOWN


def test_a_table_for_more_hosts_is_refused() -> None:
    """Host ids beyond the lockspace's are no table of it."""
    with pytest.raises(ValueError, match="7 is no host id"):
        HostTable(4, OWN).load(_seen_twice().dump())
