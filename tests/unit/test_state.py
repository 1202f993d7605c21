"""What a process writes down for its successor: there and back, and refused when not right."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, strategies as st

from paxoslease.disk.layout import SIZES_512, SIZES_4096
from paxoslease.disk.records import HostSector, delta_at_format, paxos_at_format
from paxoslease.engine.state import (
    LeaseState,
    MembershipState,
    boot_identity,
    dump_lease,
    dump_membership,
    load_lease,
    load_membership,
)
from paxoslease.errors import BadState
from paxoslease.protocol.requests import Advertiser, HostEvent
from paxoslease.timing import Timing

DELTA = delta_at_format(b"ls", SIZES_512, 10)._replace(
    owner_id=3, owner_generation=5, resource_name=b"me\xff".ljust(48, b"\0"), timestamp=1000
)
TOLD = Advertiser(
    b"ls", 3, 2000, Timing().bitmap_us, ((4, 0), (2000, 77)), HostEvent(1, 2, 2**64 - 1), (4,), 9
)
SPACE = MembershipState(
    "boot",
    "/dev/\udcff",
    1 << 40,
    SIZES_512,
    b"ls",
    3,
    b"me\xff",
    Timing(),
    DELTA.sealed(),
    999_999_999,
    True,
    False,
    TOLD,
)
WON = paxos_at_format(b"ls", b"r\xfe", SIZES_4096)._replace(
    lver=9, owner_id=3, owner_generation=5, timestamp=77, write_id=3, write_generation=5
)
LEASE = LeaseState(
    b"ls",
    b"r\xfe",
    (("/a", 0), ("/b", 8 << 20)),
    SIZES_4096,
    WON.sealed(),
    HostSector(4003, 4003, 3, 5, 77, 9),
    False,
)
SHARED = LEASE._replace(
    own=LEASE.own._replace(released=True, shared_generation=5),
    shared=True,
)


def wire(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("state", [SPACE, SPACE._replace(advertiser=None, certain=False)])
def test_a_membership_there_and_back(state: MembershipState) -> None:
    """Through JSON it comes back as it was."""
    assert load_membership(wire(dump_membership(state))) == state


@pytest.mark.parametrize("state", [LEASE, SHARED])
def test_a_lease_there_and_back(state: LeaseState) -> None:
    """Through JSON it comes back as it was, exclusive and shared."""
    assert load_lease(wire(dump_lease(state))) == state
    assert (state.lver, state.host_id, state.generation) == (9, 3, 5)


JUNK: tuple[Any, ...] = (
    *(None, True, -1, 2**70, 1.5, "", "zz", "00", "\0", "x" * 5000, [], [[]], [1, 2, 3], {}),
    *([["/a", -1]], [["", 0]], [["/a", 0]] * 5, [[1]], [True, True], {"a": 1}),
)
CASES: list[tuple[Any, Callable[[object], object]]] = [
    (dump_membership(SPACE), load_membership),
    (dump_lease(LEASE), load_lease),
]


@pytest.mark.parametrize(("good", "load"), CASES, ids=["membership", "lease"])
def test_whatever_stands_in_a_field(good: dict[str, Any], load: Any) -> None:
    """Junk in any field is refused by name, or is a legal value of it; nothing else is raised."""
    taken: list[tuple[str, object]] = []
    for field in good:
        for junk in JUNK:
            with suppress(BadState):
                load(good | {field: junk})
                taken.append((field, junk))
    assert len(taken) < 4 * len(good)
    assert not [found for found in taken if found[0] in ("leader", "own", "places", "sizes")]


@pytest.mark.parametrize(("good", "load"), CASES, ids=["membership", "lease"])
def test_fields_that_are_missing_or_too_many(good: dict[str, Any], load: Any) -> None:
    """No field more or less; a successor that knows less must not guess."""
    for field in good:
        with pytest.raises(BadState) as bad:
            load({name: value for name, value in good.items() if name != field})
        assert (bad.value.field, bad.value.found) == (field, "'missing'")
    with pytest.raises(BadState, match="more"):
        load(good | {"more": 1})
    for value in (None, 1, [], "x", {1: 2}):
        with pytest.raises(BadState):
            load(value)


@pytest.mark.parametrize(
    ("state", "field"),
    [
        (SPACE._replace(host_id=4), "leader"),
        (SPACE._replace(name=b"other"), "leader"),
        (SPACE._replace(leader=DELTA._replace(timestamp=0).sealed()), "leader"),
        (SPACE._replace(sizes=SIZES_4096), "leader"),
        (SPACE._replace(host_id=2001), "host_id"),
        (SPACE._replace(timing=Timing(0, 60)), "timing"),
        (SPACE._replace(timing=Timing(256, 60)), "timing"),
    ],
)
def test_a_membership_that_contradicts_itself(state: MembershipState, field: str) -> None:
    """The record is one of that lockspace, held by that host."""
    with pytest.raises(BadState) as bad:
        load_membership(wire(dump_membership(state)))
    assert bad.value.field == field


@pytest.mark.parametrize(
    ("state", "field"),
    [
        (LEASE._replace(name=b"other"), "leader"),
        (LEASE._replace(lockspace=b"other"), "leader"),
        (LEASE._replace(leader=WON._replace(timestamp=0).sealed()), "leader"),
        (LEASE._replace(leader=WON._replace(owner_id=0).sealed()), "leader"),
        (LEASE._replace(sizes=SIZES_512), "leader"),
        (LEASE._replace(places=()), "places"),
        (LEASE._replace(shared=True), "own"),
        (SHARED._replace(own=SHARED.own._replace(shared_generation=4)), "own"),
    ],
)
def test_a_lease_that_contradicts_itself(state: LeaseState, field: str) -> None:
    """The record is one of that resource, held; a shared one has a mode block."""
    with pytest.raises(BadState) as bad:
        load_lease(wire(dump_lease(state)))
    assert bad.value.field == field


@pytest.mark.parametrize("field", ["leader", "own"])
def test_a_flipped_bit(field: str) -> None:
    """Records carry their checksums."""
    good = dump_lease(LEASE)
    for position in range(0, 40, 7):
        digits = list(good[field])
        digits[position] = format(int(digits[position], 16) ^ 1, "x")
        with pytest.raises(BadState):
            load_lease(good | {field: "".join(digits)})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*dump_lease(LEASE), "x"]), inner, max_size=9)
        ),
        max_leaves=12,
    )
)
def test_anything_at_all(value: Any) -> None:
    """Whatever JSON can be is refused with the one error."""
    for load in (load_lease, load_membership):
        with pytest.raises(BadState):
            load(value)


def test_boot_identity() -> None:
    """It stays the same, and is more than nothing."""
    assert boot_identity() == boot_identity()
    assert len(boot_identity()) >= 36
