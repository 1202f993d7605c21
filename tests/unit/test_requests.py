"""Requests, marks and events: what is written, when it is seen, and who must not act on it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import (
    DELTA_MAGIC,
    FORCE,
    GRACEFUL,
    NO_REQUEST,
    Request,
    hosts_of_bitmap,
    pack_leader,
    pack_request,
    unpack_leader,
)
from paxoslease.errors import (
    BadRecord,
    ConfigError,
    EventBusy,
    HostIdInvalid,
    LockspaceFailed,
    RequestRefused,
)
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Read, Standing, Write
from paxoslease.protocol.formatting import format_lockspace, format_resource
from paxoslease.protocol.leases import acquire_exclusive, acquire_shared
from paxoslease.protocol.requests import (
    NO_EVENT,
    NOTHING_ASKED,
    Advertiser,
    Asked,
    Attention,
    Demand,
    Heard,
    HostEvent,
    advertise,
    attend,
    clear_request,
    examine,
    mark,
    new_advertiser,
    read_event,
    read_request,
    set_event,
    write_request,
)
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk

MIB = 1 << 20
SPACE = Lockspace(b"ls", Area("/d", 0, SIZES_512))
AREA = Area("/d", MIB, SIZES_512)
CLAIM = Claim(SPACE, Resource(b"res", (AREA,)), Timing(), 1)
OTHER = CLAIM._replace(host_id=2)


def a_desk() -> Desk:
    desk = Desk()
    desk.disk("/d", 2 * MIB)
    desk.run(format_lockspace(SPACE, 10))
    desk.run(format_resource(b"ls", b"res", AREA))
    desk.log.clear()
    return desk


def sector(desk: Desk, number: int) -> bytes:
    return bytes(desk.disks["/d"][MIB + number * 512 : MIB + (number + 1) * 512])


# -- requests ----------------------------------------------------------------------------------


def test_a_free_lease_is_not_asked_for() -> None:
    """Nobody can give up a free lease: nothing is written."""
    desk = a_desk()
    assert desk.run(write_request(OTHER, Demand.FORCE)) is None
    assert not [e for e in desk.log if isinstance(e, Write)]


def test_a_request_reaches_the_holder_once() -> None:
    """The next version is asked for, the holder finds it, and clears it after acting (M15)."""
    desk = a_desk()
    lease = desk.run(acquire_exclusive(CLAIM))
    assert desk.run(examine(lease)) == NOTHING_ASKED
    assert desk.run(write_request(OTHER, Demand.GRACEFUL)) == Asked(1, 2)
    assert sector(desk, 1) == pack_request(NO_REQUEST._replace(lver=2, force_mode=GRACEFUL), 512)
    found = desk.run(examine(lease))
    assert found.demand is Demand.GRACEFUL
    assert desk.run(clear_request(CLAIM, found.request)) is True
    assert sector(desk, 1) == pack_request(NO_REQUEST, 512)
    assert desk.run(examine(lease)) == NOTHING_ASKED
    assert desk.run(clear_request(CLAIM)) is False


def test_the_io_of_a_request() -> None:
    """Reads the leader and the request, writes the request: three I/Os, none of another place."""
    desk = a_desk()
    desk.run(acquire_exclusive(CLAIM))
    desk.log.clear()
    desk.run(write_request(OTHER, Demand.FORCE))
    io = [(type(e).__name__, e.offset - MIB) for e in desk.log if isinstance(e, Read | Write)]
    assert io == [("Read", 0), ("Read", 512), ("Write", 512)]
    write = next(e for e in desk.log if isinstance(e, Write))
    assert write.not_after_us == desk.now_us + Timing().io_us


def test_only_larger_versions_are_asked_for() -> None:
    """A version that is held, or smaller than one asked for already, is refused with its number."""
    desk = a_desk()
    desk.run(acquire_exclusive(CLAIM))
    with pytest.raises(RequestRefused) as caught:
        desk.run(write_request(OTHER, Demand.FORCE, 1))
    assert caught.value.code == -272
    desk.run(write_request(OTHER, Demand.FORCE, 5))
    with pytest.raises(RequestRefused) as caught:
        desk.run(write_request(OTHER, Demand.FORCE, 4))
    assert caught.value.code == -273
    assert desk.run(write_request(OTHER, Demand.GRACEFUL, 5)) == Asked(1, 5)


@pytest.mark.parametrize(
    ("request_record", "demand"),
    [
        (Request(NO_REQUEST.magic, NO_REQUEST.version, 2, FORCE), Demand.FORCE),
        (Request(NO_REQUEST.magic, NO_REQUEST.version, 2**64 - 1, GRACEFUL), Demand.GRACEFUL),
        (Request(NO_REQUEST.magic, NO_REQUEST.version, 1, FORCE), Demand.NONE),
        (Request(NO_REQUEST.magic, NO_REQUEST.version, 0, FORCE), Demand.NONE),
        (Request(NO_REQUEST.magic, NO_REQUEST.version, 9, 0), Demand.NONE),
        (Request(NO_REQUEST.magic, NO_REQUEST.version, 9, 77), Demand.NONE),
    ],
)
def test_what_a_holder_does_with_a_record(request_record: Request, demand: Demand) -> None:
    """Only known modes and versions above the one held have an effect."""
    desk = a_desk()
    lease = desk.run(acquire_exclusive(CLAIM))
    desk.disks["/d"][MIB + 512 : MIB + 1024] = pack_request(request_record, 512)
    assert desk.run(examine(lease)).demand is demand


def test_requests_on_shared_leases_are_ignored() -> None:
    """A shared lease has no one process to stop, whatever is asked (M15, algorithms 15.6)."""
    desk = a_desk()
    lease = desk.run(acquire_shared(CLAIM))
    record = NO_REQUEST._replace(lver=99, force_mode=FORCE)
    desk.disks["/d"][MIB + 512 : MIB + 1024] = pack_request(record, 512)
    desk.log.clear()
    assert desk.run(examine(lease)) == NOTHING_ASKED
    assert desk.log == []


def test_a_newer_request_is_not_cleared() -> None:
    """A holder that acted on one request leaves a later one standing."""
    desk = a_desk()
    lease = desk.run(acquire_exclusive(CLAIM))
    desk.run(write_request(OTHER, Demand.FORCE, 2))
    found = desk.run(examine(lease))
    desk.run(write_request(OTHER, Demand.FORCE, 7))
    assert desk.run(clear_request(CLAIM, found.request)) is False
    assert desk.run(read_request(CLAIM)).lver == 7


def test_a_damaged_request_is_reported() -> None:
    """A request record that is none is an error with its number, not a demand."""
    desk = a_desk()
    lease = desk.run(acquire_exclusive(CLAIM))
    desk.disks["/d"][MIB + 512] ^= 1
    with pytest.raises(BadRecord) as caught:
        desk.run(examine(lease))
    assert caught.value.code == -270
    assert caught.value.offset == MIB + 512


def test_only_members_ask() -> None:
    """Without a good membership no request is written."""
    desk = a_desk()
    desk.run(acquire_exclusive(CLAIM))
    desk.standing = LockspaceFailed(b"ls", "left")
    with pytest.raises(LockspaceFailed):
        desk.run(write_request(OTHER, Demand.FORCE))
    desk.standing = Standing(2, 1, desk.now_us - 1)
    with pytest.raises(Exception, match="too old"):
        desk.run(write_request(OTHER, Demand.FORCE))


# -- marks and events --------------------------------------------------------------------------

QUIET = new_advertiser(SPACE, 3, Timing())
MINUTE = 60 * SECOND_US
EVENT = HostEvent(4, 1, 99)


def told(state: Advertiser, now_us: int) -> tuple[Advertiser, tuple[int, ...], HostEvent]:
    state, message = advertise(state, now_us)
    return state, hosts_of_bitmap(message.bitmap), HostEvent(*message[1:])


def test_nothing_to_tell() -> None:
    """A quiet host writes no bits and no event."""
    assert told(QUIET, 5) == (QUIET, (), NO_EVENT)


def test_a_mark_lasts_for_its_time() -> None:
    """A mark is set from the first renewal on for six io_timeouts, then it is gone."""
    state = mark(QUIET, 7)
    state, hosts, _ = told(state, 100)
    assert hosts == (7,)
    state, hosts, _ = told(state, 100 + MINUTE)
    assert hosts == (7,)
    state, hosts, _ = told(state, 101 + MINUTE)
    assert (hosts, state.marks) == ((), ())
    state, hosts, _ = told(mark(state, 7), 200 + MINUTE)
    assert hosts == (7,)


def test_nobody_marks_itself_or_nonsense() -> None:
    """The own id is never marked; an id outside of the lockspace is an error."""
    assert mark(QUIET, 3) == QUIET
    for host_id in (0, -1, 2001):
        with pytest.raises(HostIdInvalid):
            mark(QUIET, host_id)
    with pytest.raises(HostIdInvalid):
        set_event(QUIET, 2001, EVENT)
    with pytest.raises(ConfigError):
        set_event(QUIET, 1, HostEvent(1, 1 << 64, 0))


def test_an_event_and_its_end() -> None:
    """An event is carried with its target's mark, and taken off the disk when its time is over."""
    state = set_event(QUIET, 5, EVENT)
    state, hosts, event = told(state, 100)
    assert (hosts, event) == ((5,), EVENT)
    state, hosts, event = told(state, 100 + MINUTE)
    assert (hosts, event) == ((5,), EVENT)
    state, hosts, event = told(state, 101 + MINUTE)
    assert (hosts, event) == ((), NO_EVENT)
    assert state == QUIET


def test_a_second_event_waits_or_replaces() -> None:
    """A different event is refused with -16 while one is advertised, unless it replaces it."""
    state, _ = advertise(set_event(QUIET, 5, EVENT), 100)
    other = HostEvent(1, 2, 0)
    with pytest.raises(EventBusy) as caught:
        set_event(state, 6, other)
    assert caught.value.code == -16
    assert told(set_event(state, 6, other, replace=True), 200)[1:] == ((6,), other)
    assert told(set_event(state, 6, EVENT), 200)[1:] == ((5, 6), EVENT)
    assert told(set_event(state, 5, NO_EVENT), 200)[1:] == ((), NO_EVENT)
    over, _ = advertise(state, 200 + MINUTE)
    assert told(set_event(over, 6, other), 300 + MINUTE)[1:] == ((6,), other)


def test_an_event_for_all() -> None:
    """Host id 0 means everybody but ourselves."""
    _, hosts, _ = told(set_event(QUIET, 0, EVENT), 1)
    assert hosts == tuple(h for h in range(1, 2001) if h != 3)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("mark"), st.integers(1, 9)),
            st.tuples(st.just("event"), st.integers(1, 9)),
            st.tuples(st.just("renew"), st.integers(1, 40)),
        )
    )
)
def test_no_event_reaches_another_host(steps: list[tuple[str, int]]) -> None:
    """Whatever is asked in whatever order: bits beside an event are its targets' only, and every
    mark is carried in the end."""
    state = QUIET
    now_us = 1
    aims: dict[int, int] = {}
    owed: set[int] = set()
    for what, number in steps:
        if what == "mark":
            state = mark(state, number)
            owed |= {number} - {3}
        elif what == "event":
            event = HostEvent(1, number, 0)
            state = set_event(state, number, event, replace=True)
            aims[number] = number
        else:
            now_us += number * SECOND_US
            state, hosts, event = told(state, now_us)
            if event.event:
                assert set(hosts) <= {aims[event.event]}
            owed -= set(hosts)
    for _ in range(3):
        state, hosts, _ = told(state, now_us)
        owed -= set(hosts)
        now_us += MINUTE + SECOND_US
    assert not owed
    assert told(state, now_us + MINUTE)[1:] == ((), NO_EVENT)


def test_leases_are_examined_once_per_sender_and_time() -> None:
    """The renewals of one mark make us examine once; another sender does so again."""
    timing = Timing()
    state, now = attend(Attention(), (5,), 1_000, timing)
    assert now is True
    state, now = attend(state, (5,), 1_000 + timing.bitmap_us - 1, timing)
    assert now is False
    state, now = attend(state, (5, 6), 2_000, timing)
    assert now is True
    state, now = attend(state, (), 2_000, timing)
    assert now is False
    state, now = attend(state, (5,), 1_000 + timing.bitmap_us, timing)
    assert now is True


def test_reading_an_event() -> None:
    """An event is read only with our bit beside it; nothing is heard from a silent sender."""
    desk = a_desk()
    assert desk.run(read_event(SPACE, 2, 1, Timing())) is None
    _, message = advertise(set_event(QUIET._replace(own_id=2), 1, EVENT), 1)
    record = unpack_leader(desk.disks["/d"][512:])._replace(
        owner_id=2,
        owner_generation=6,
        write_id=message.generation,
        write_generation=message.event,
        write_timestamp=message.data,
    )
    assert record.magic == DELTA_MAGIC
    desk.disks["/d"][512:1024] = pack_leader(record.sealed(), 512, message.bitmap)
    assert desk.run(read_event(SPACE, 2, 1, Timing())) == Heard(2, 6, EVENT)
    assert desk.run(read_event(SPACE, 2, 9, Timing())) is None
