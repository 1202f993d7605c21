"""Resource indexes: the same bytes from both daemons, on the disk too, and both on one index.

The private lease of an index is left out of what is compared: ours says on disk that it has let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compat.peer import wait_until
from tests.conftest import frozen, loop_device
from tests.daemon import areas, wire
from tests.daemon.daemons import Kind
from tests.daemon.line import Line
from tests.daemon.twins import KINDS, Twins, restore
from tests.daemon.wire import Cmd, rentry, request, rindex

pytestmark = pytest.mark.peer

MIB = 1 << 20
NO_LOCKSPACE, ADD, REMOVE = 0x1, 0x10000, 0x20000
FREE_PLACE = 5
PLACES = 6


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Both daemons in one lockspace, the real one as host 1, ours as host 2."""
    with Twins(tmp_path_factory.mktemp("twins")) as made:
        path = made.directory / "space"
        with path.open("wb") as file:
            file.truncate(MIB)
        for kind, host_id in zip(KINDS, (1, 2), strict=True):
            place = wire.lockspace("LS", host_id, path, 0, wire.SIZES_512_1M)
            if host_id == 1:
                write = request(Cmd.WRITE_LOCKSPACE, place, data2=1)
                assert wire.result(made.ask(kind, write)[0]) == 0
            add = request(Cmd.ADD_LOCKSPACE, place, data=1)
            assert wire.result(made.ask(kind, add, 30.0)[0]) == 0
        yield made


class Index(NamedTuple):
    """An index at the begin of a file."""

    twins: Twins
    path: Path

    def place(self, number: int) -> int:
        """Return the offset of a place."""
        return (2 + number) * MIB

    def request(
        self,
        cmd: Cmd,
        name: str = "",
        offset: int = 0,
        *,
        flags: int = 0,
        at: int = 0,
        space: str = "LS",
        data2: int = 0,
    ) -> bytes:
        """Build a command for it; `at`: another offset of the index, `space`: another lockspace."""
        payload = rindex(space, self.path, at)
        if cmd not in (Cmd.FORMAT_RINDEX, Cmd.REBUILD_RINDEX):
            payload += rentry(name, offset)
        return request(cmd, payload, flags=flags, data2=data2)

    def same(self, cmd: Cmd, name: str = "", offset: int = 0, **more: int) -> int:
        """Ask both the same; replies and disks must be alike. Returns the result."""
        sent = self.request(cmd, name, offset, **more)
        return wire.result(self.twins.same(sent, self.path, without_lease))

    def ask(self, kind: Kind, cmd: Cmd, name: str = "", offset: int = 0, **more: int) -> int:
        """Ask one of them. Returns the result."""
        return wire.result(self.twins.ask(kind, self.request(cmd, name, offset, **more))[0])

    def found(self, kind: Kind, name: str) -> int:
        """Return where one of them finds a name, or the number of its refusal."""
        reply, _ = self.twins.ask(kind, self.request(Cmd.LOOKUP_RINDEX, name))
        offset = int.from_bytes(reply[80:88], "little")
        return offset if wire.result(reply) == 0 else wire.result(reply)


def without_lease(disk: bytes) -> bytes:
    """Take out the private lease of an index at the begin."""
    return disk[:MIB] + disk[2 * MIB :]


@pytest.fixture(scope="module")
def image(twins: Twins) -> bytes:
    """An index with six places, of which the last is free."""
    made = Index(twins, sparse(twins.directory))
    formatted = request(Cmd.FORMAT_RINDEX, rindex("LS", made.path, 0, max_resources=PLACES))
    assert wire.result(twins.ask("real", formatted)[0]) == 0
    for number in range(FREE_PLACE):
        assert made.ask("real", Cmd.CREATE_RESOURCE, f"n{number + 1}") == 0
    return made.path.read_bytes()


def sparse(directory: Path) -> Path:
    path = directory / "index"
    with path.open("wb") as file:
        file.truncate((2 + PLACES) * MIB)
    return path


@pytest.fixture
def index(twins: Twins, image: bytes, tmp_path: Path) -> Index:
    """An index of that content."""
    path = sparse(tmp_path)
    restore(path, image, path.read_bytes())
    return Index(twins, path)


# -- formatting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "offset", "flags", "max_resources"),
    [
        ("LS", 0, 0x110, 0),
        ("LS", 0, 0, 0),
        ("LS", 0, 0x1, 7),
        ("", 0, 0x110, 1),
        ("n" * 48, MIB, 0x110, 16000),
        ("LS", 0, 0x110, 16001),
        ("LS", 0, 0x110, 0xFFFFFFFF),
        ("LS", 0, 0x220, 32000),
        ("LS", 0, 0x280, 0),
        ("LS", 0, 0x3F0, 0),
        ("LS", 0, 0x10, 0),
        ("LS", 0, 0x100, 0),
        ("LS", 0, 0x120, 0),
        ("LS", 100, 0x110, 0),
        ("LS", 512, 0x110, 0),
        ("LS", 7 * MIB, 0x110, 0),
        ("LS", 20 * MIB, 0x110, 0),
        ("LS", 1 << 63, 0x110, 0),
    ],
)
def test_format(
    twins: Twins, tmp_path: Path, space: str, offset: int, flags: int, max_resources: int
) -> None:
    """An index and its private lease are written as asked, and nothing beside them."""
    path = tmp_path / "index"
    path.write_bytes(b"x" * (8 * MIB))
    payload = rindex(space, path, offset, flags=flags, max_resources=max_resources)
    for header_flags in (0, NO_LOCKSPACE):
        twins.same(request(Cmd.FORMAT_RINDEX, payload, flags=header_flags), path)


@pytest.mark.parametrize("name", ["nowhere", "", ".", "index/below", "/dev/null"])
@pytest.mark.parametrize("space", ["LS", "XX"])
def test_paths_that_cannot_be_opened(index: Index, name: str, space: str) -> None:
    """That is told first, with the number of open(2)."""
    path = str(index.path.parent / name) if name and not name.startswith("/") else name
    for cmd in range(Cmd.FORMAT_RINDEX, Cmd.REBUILD_RINDEX + 1):
        with_entry = cmd not in (Cmd.FORMAT_RINDEX, Cmd.REBUILD_RINDEX)
        for flags in (0, NO_LOCKSPACE):
            payload = rindex(space, path, 0, flags=0x10) + (rentry("n1") if with_entry else b"")
            index.twins.same(request(cmd, payload, flags=flags), index.path)


# -- looking up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, NO_LOCKSPACE])
def test_look_up(index: Index, flags: int) -> None:
    """By name, by place, by both, and for a free place; also what is not there."""
    place = index.place
    for name, offset, result in (
        ("n1", 0, 0),
        ("n5", 0, 0),
        ("nx", 0, -2),
        ("", place(0), 0),
        ("", place(FREE_PLACE), 0),
        ("n1", place(0), 0),
        ("n1", place(1), -278),
        ("nx", place(1), -278),
        ("n1", place(FREE_PLACE), -278),
        ("", 0, 0),
        ("", place(0) + 512, -277),
        ("n1", 100, -277),
    ):
        assert index.same(Cmd.LOOKUP_RINDEX, name, offset, flags=flags) == result


def test_places_outside_of_the_index(index: Index) -> None:
    """They are refused, where the real one reads beyond its buffer."""
    outside = (MIB, index.place(PLACES), index.place(20_000), 1 << 41, (1 << 64) - MIB)
    before = index.path.read_bytes()
    for offset in outside:
        for cmd, flags in (
            (Cmd.LOOKUP_RINDEX, 0),
            (Cmd.UPDATE_RINDEX, ADD),
            (Cmd.UPDATE_RINDEX, REMOVE),
            (Cmd.UPDATE_RINDEX, REMOVE | NO_LOCKSPACE),
        ):
            assert index.ask("ours", cmd, "nx", offset, flags=flags) == -277
    assert without_lease(index.path.read_bytes()) == without_lease(before)


@pytest.mark.parametrize("cmd", [Cmd.LOOKUP_RINDEX, Cmd.UPDATE_RINDEX, Cmd.REBUILD_RINDEX])
def test_what_is_no_index(index: Index, cmd: Cmd) -> None:
    """Each way of not being the index that is meant has its number."""

    def all_same() -> None:
        for flags in (ADD, ADD | NO_LOCKSPACE):
            index.same(cmd, "nx", index.place(FREE_PLACE), flags=flags)

    for at in (100, 512, MIB, 2 * MIB, 50 * MIB, 1 << 63):
        for flags in (0, NO_LOCKSPACE):
            index.same(cmd, "n1", flags=flags, at=at)
    kept = areas.read(index.path, 0, 512)
    for at, data in ((0, b"x"), (4, b"\2\0\7\0"), (32, b"XX\0"), (24, b"\0\2"), (24, b"\1")):
        areas.write(index.path, at, data)
        all_same()
        areas.write(index.path, 0, kept)
    with index.path.open("r+b") as file:
        file.truncate(MIB - 512)
    all_same()


@pytest.mark.parametrize("flags", [0, NO_LOCKSPACE])
def test_lockspaces_that_are_not_joined(index: Index, flags: int) -> None:
    """Without the flag every command wants the lockspace; with it, some do not."""
    areas.write(index.path, 32, b"XX\0")
    for cmd, more in (
        (Cmd.LOOKUP_RINDEX, 0),
        (Cmd.UPDATE_RINDEX, 0),
        (Cmd.UPDATE_RINDEX, ADD),
        (Cmd.UPDATE_RINDEX, REMOVE),
        (Cmd.CREATE_RESOURCE, 0),
        (Cmd.DELETE_RESOURCE, 0),
        (Cmd.REBUILD_RINDEX, 0),
    ):
        sent = index.request(cmd, "ny", index.place(1), flags=flags | more, space="XX")
        result = wire.result(index.twins.same(sent, index.path))
        assert result == -2 or flags


# -- changing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, NO_LOCKSPACE])
def test_update(index: Index, flags: int) -> None:
    """Entries are written over whatever is entered, and taken away, whatever the name."""
    place = index.place
    for name, offset, what, result in (
        ("nx", place(FREE_PLACE), 0, -22),
        ("", place(FREE_PLACE), ADD, -22),
        ("nx", 0, ADD, -22),
        ("n1", 0, REMOVE, -22),
        ("nx", place(FREE_PLACE) + 512, ADD, -277),
        ("nx", 100, REMOVE, -277),
        ("nx", place(FREE_PLACE), ADD, 0),
        ("nx", place(FREE_PLACE), ADD, 0),
        ("ny", place(0), ADD, 0),
        ("", place(1), REMOVE, 0),
        ("n1", place(2), REMOVE, 0),
        ("", place(1), REMOVE, 0),
        ("n4", place(3), ADD | REMOVE, 0),
        ("x" * 48, place(1), ADD, 0),
    ):
        assert index.same(Cmd.UPDATE_RINDEX, name, offset, flags=flags | what) == result


@pytest.mark.parametrize("num_hosts", [0, 1, 2000, 2001])
@pytest.mark.parametrize("flags", [0, NO_LOCKSPACE])
def test_create(index: Index, num_hosts: int, flags: int) -> None:
    """The first free place is taken; the reply has its offset alone. Then there is none."""
    index.same(Cmd.UPDATE_RINDEX, "", index.place(2), flags=REMOVE)
    create = Cmd.CREATE_RESOURCE
    assert index.same(create, "nx", 100, data2=num_hosts, flags=flags) == 0
    assert index.same(create, "y" * 48, data2=num_hosts, flags=flags) == 0
    assert index.same(create, "nz", flags=flags) == -2


@pytest.mark.parametrize("flags", [0, NO_LOCKSPACE])
def test_delete(index: Index, flags: int) -> None:
    """The name counts; of the offset only that it could be one."""
    delete = Cmd.DELETE_RESOURCE
    for name, offset, result in (
        ("nx", 0, -2),
        ("", index.place(0), -2),
        ("n1", 100, -277),
        ("n1", 512, -277),
        ("n1", index.place(3), 0),
        ("n1", 0, -2),
        ("n3", 0, 0),
    ):
        assert index.same(delete, name, offset, flags=flags) == result


@pytest.mark.parametrize("flags", [0, NO_LOCKSPACE])
def test_rebuild(index: Index, flags: int) -> None:
    """What lies in the places is entered, up to the end of the file, wherever that is."""
    assert index.same(Cmd.DELETE_RESOURCE, "n2") == 0
    areas.write(index.path, 512, bytes(512))
    areas.write(index.path, 512 + 64 * FREE_PLACE, b"no such resource")
    assert index.same(Cmd.REBUILD_RINDEX, flags=flags) == 0
    with index.path.open("r+b") as file:
        file.truncate(index.place(3))
    assert index.same(Cmd.REBUILD_RINDEX, flags=flags) == 0
    if not flags:
        # With the flag the real one does without the private lease, which is not there any more.
        with index.path.open("r+b") as file:
            file.truncate(MIB)
        index.same(Cmd.REBUILD_RINDEX)


def test_where_ours_is_careful(index: Index) -> None:
    """No name twice, no resource without one, nothing deleted that somebody holds (M16)."""
    ask = index.ask
    before = without_lease(index.path.read_bytes())
    assert ask("ours", Cmd.CREATE_RESOURCE, "n1") == -17
    assert ask("ours", Cmd.UPDATE_RINDEX, "n1", index.place(FREE_PLACE), flags=ADD) == -17
    assert ask("ours", Cmd.CREATE_RESOURCE, "") == -22
    line = Line(str(index.twins.daemons["real"].socket_path))
    try:
        line.send(request(Cmd.REGISTER))
        lease = wire.lease("LS", "n1", index.path, index.place(0))
        assert wire.result(line.ask(wire.acquire(lease)).reply) == 0
        assert ask("ours", Cmd.DELETE_RESOURCE, "n1") in (-243, -247)
        assert index.found("real", "n1") == index.place(0)
    finally:
        line.close()
    # The real one counts as holder until it has noticed that its client is gone.
    wait_until(lambda: ask("ours", Cmd.DELETE_RESOURCE, "n1") == 0, 15.0, "n1 is let go")
    assert len(before) == len(without_lease(index.path.read_bytes()))


def test_both_use_one_index(index: Index) -> None:
    """What one of them changes the other sees, and the private lease goes to and fro."""
    for number in range(4):
        first, second = ("real", "ours") if number % 2 else ("ours", "real")
        assert index.ask(first, Cmd.CREATE_RESOURCE, "nx") == 0
        assert index.found(second, "nx") == index.place(FREE_PLACE)
        assert index.ask(second, Cmd.UPDATE_RINDEX, "ny", index.place(0), flags=ADD) == 0
        assert index.found(first, "ny") == index.place(0)
        assert index.ask(first, Cmd.REBUILD_RINDEX) == 0
        assert index.found(second, "n1") == index.place(0)
        assert index.ask(second, Cmd.DELETE_RESOURCE, "nx") == 0
        assert index.found(first, "nx") == -2


def test_one_change_at_a_time(index: Index) -> None:
    """While a change waits for the private lease another is refused, and look-ups go on."""
    lease = wire.lease("LS", "rindex_lease", index.path, MIB)
    holder = Line(str(index.twins.daemons["real"].socket_path))
    changing = [Line(str(index.twins.daemons["ours"].socket_path)) for _ in range(2)]
    try:
        holder.send(request(Cmd.REGISTER))
        assert wire.result(holder.ask(wire.acquire(lease)).reply) == 0
        for line in changing:
            line.send(index.request(Cmd.CREATE_RESOURCE, "nx"))
        replies = {line: line.receive(96, limit_s=1.0) for line in changing}
        refused = [line for line, (_, how) in replies.items() if how == "whole"]
        assert [wire.result(replies[line][0]) for line in refused] == [-16]
        for name in ("n1", "n2", "n5"):
            assert index.found("ours", name) > 0
        assert index.ask("ours", Cmd.DELETE_RESOURCE, "n1") in (-16, -243, -247)
        (slow,) = (line for line in changing if line not in refused)
        reply, how = slow.receive(96)
        assert (how, wire.result(reply) in (-243, -247)) == ("whole", True)
    finally:
        for line in (holder, *changing):
            line.close()
    wait_until(lambda: index.ask("ours", Cmd.CREATE_RESOURCE, "nx") == 0, 15.0, "it is let go")


def test_a_change_on_a_disk_that_hangs(index: Index, mounted: Path) -> None:
    """Its client is told soon; until it has come to its end there is no other in the lockspace."""
    backing = mounted / "backing"
    with backing.open("wb") as file:
        file.write(bytes(8 * MIB))
    with loop_device(backing, 512) as device:
        hanging = Index(index.twins, Path(device))
        assert hanging.ask("ours", Cmd.FORMAT_RINDEX) == 0
        assert hanging.ask("ours", Cmd.CREATE_RESOURCE, "n1") == 0
        with frozen(mounted):
            assert hanging.ask("ours", Cmd.CREATE_RESOURCE, "n2") == -202
            for one in (hanging, index):
                assert one.ask("ours", Cmd.UPDATE_RINDEX, "", one.place(0), flags=REMOVE) == -16
            assert index.found("ours", "n1") == index.place(0)
        wait_until(
            lambda: hanging.ask("ours", Cmd.CREATE_RESOURCE, "n3") == 0, 20.0, "the index is free"
        )
        assert hanging.found("ours", "n1") == hanging.place(0)
