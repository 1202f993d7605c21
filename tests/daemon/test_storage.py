"""Formatting, reading and requests: the same bytes from both daemons, and the same on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compat.peer import wait_until
from tests.conftest import MakeLoop
from tests.daemon import areas, wire
from tests.daemon.line import Line
from tests.daemon.twins import KINDS, Twins, restore
from tests.daemon.wire import Cmd, request

pytestmark = pytest.mark.peer

MIB = 1 << 20
SIZES = wire.SIZES_512_1M
WIDE = wire.SIZES_4K_8M
Build = Callable[[Path], bytes]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with Twins(tmp_path_factory.mktemp("twins")) as made:
        yield made


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file of 8 MiB with something in it that must not be touched by chance."""
    return made_disk(tmp_path)


def made_disk(directory: Path) -> Path:
    path = directory / "disk"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for area in range(8):
            file.seek(area * MIB + MIB - 512)
            file.write(b"x" * 512)
    return path


def space(name: str = "LS", offset: int = 0, flags: int = SIZES, host_id: int = 0) -> Build:
    return lambda path: wire.lockspace(name, host_id, path, offset, flags)


def lease(
    offset: int = MIB, name: str = "R", flags: int = SIZES, lver: int = 0, of: str = "LS"
) -> Build:
    return lambda path: wire.lease(of, name, path, offset, flags=flags, lver=lver)


def leases(*offsets: int, flags: int = SIZES) -> Build:
    def build(path: Path) -> bytes:
        disks = b"".join(wire.disk(path, offset) for offset in offsets)
        return wire.resource("LS", "R", len(offsets), flags=flags) + disks

    return build


# -- formatting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "io_timeout"),
    [
        (space(), 1),
        (space(), 0),
        (space(), 300),
        (space(), 65536),
        (space(), 70000),
        (space(), -1),
        (space(flags=0), 0),
        (space(flags=0x1000), 0),
        (space("", MIB), 0),
        (space("n" * 48, MIB), 0),
        (space(host_id=7), 0),
        (space(flags=0x310), 0),
        (space(flags=0x3F0), 0),
        (space(flags=0x230), 0),
        (space(flags=0x260), 0),
        (space(flags=WIDE), 0),
        (space(flags=0x100), 0),
        (space(flags=0x10), 0),
        (space(flags=0x120), 0),
        (space(flags=0x320), 0),
        (space(offset=100), 0),
        (space(offset=512), 0),
        (space(offset=7 * MIB), 0),
        (space(offset=7 * MIB + 4096), 0),
        (space(offset=8 * MIB), 0),
        (space(offset=20 * MIB), 0),
        (space(offset=1 << 63), 0),
        (space(offset=(1 << 63) - MIB), 0),
        (space(offset=100, flags=0x10), 0),
    ],
)
def test_write_lockspace(twins: Twins, disk: Path, payload: Build, io_timeout: int) -> None:
    """A lockspace is written as asked, over anything, and nothing beside it."""
    twins.same(request(Cmd.WRITE_LOCKSPACE, payload(disk), data=9, data2=io_timeout), disk)


@pytest.mark.parametrize(
    ("payload", "data", "flags"),
    [
        (lease(), 0, 0),
        (lease(), 1, 0),
        (lease(), 2000, 0),
        (lease(), 2001, 0),
        (lease(flags=0), 0, 0),
        (lease(flags=SIZES | 0xF, lver=5), 0, 0),
        (lease(), 0, 1),
        (lease(), 9, 3),
        (lease(), 0, 2),
        (lease(name="", of=""), 0, 0),
        (lease(name="r" * 48, of="l" * 48), 0, 0),
        (lease(0, flags=WIDE), 5, 0),
        (lease(0, flags=0x220), 501, 0),
        (lease(flags=0x10), 0, 0),
        (lease(flags=0x120), 0, 0),
        (lease(100), 0, 0),
        (lease(MIB + 512), 0, 0),
        (lease(8 * MIB), 0, 0),
        (lease(20 * MIB), 0, 0),
        (lease(1 << 63), 0, 0),
        (leases(), 0, 0),
        (leases(0, 2 * MIB, 3 * MIB, 4 * MIB), 7, 0),
        (leases(0, MIB + 100, 3 * MIB), 0, 0),
    ],
)
def test_write_resource(twins: Twins, disk: Path, payload: Build, data: int, flags: int) -> None:
    """A resource is written as asked, over anything, and nothing beside it."""
    sent = request(Cmd.WRITE_RESOURCE, payload(disk), data=data, data2=3, flags=flags)
    twins.same(sent, disk)


@pytest.mark.parametrize("cmd", [Cmd.WRITE_RESOURCE, Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS])
def test_too_many_disks(twins: Twins, disk: Path, cmd: Cmd) -> None:
    """Five disks are refused; the real one then takes them for headers and answers nothing."""
    size = 32 if cmd == Cmd.WRITE_RESOURCE else 160
    replies: list[tuple[bytes, str]] = []
    for kind in KINDS:
        line = Line(str(twins.daemons[kind].socket_path))
        line.send(request(cmd, wire.resource("LS", "R", 5) + wire.disk(disk) * 5))
        replies.append(line.receive(size))
        line.close()
    assert replies[0] == replies[1]
    assert wire.result(replies[0][0]) == -34


@pytest.mark.parametrize(
    "name", ["nowhere", "", ".", "disk/below", "/dev/null"], ids=lambda name: name or "empty"
)
def test_paths_that_cannot_be_opened(twins: Twins, disk: Path, name: str) -> None:
    """Lockspace commands say -ENODEV, resource commands what open(2) says."""
    path = str(disk.parent / name) if name and not name.startswith("/") else name
    place = wire.lockspace("LS", 1, path, 0, SIZES)
    for cmd in (Cmd.WRITE_LOCKSPACE, Cmd.READ_LOCKSPACE):
        assert wire.result(twins.same(request(cmd, place), disk)) == -19
    assert wire.result(twins.same(request(Cmd.ALIGN, wire.disk(path)), disk)) == -19
    second = wire.resource("LS", "R", 2, flags=SIZES) + wire.disk(disk, MIB) + wire.disk(path)
    for cmd in (Cmd.WRITE_RESOURCE, Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS):
        twins.same(request(cmd, wire.lease("LS", "R", path, 0, flags=SIZES)), disk)
        twins.same(request(cmd, wire.lease("LS", "R", path, 0, flags=0x10)), disk)
        twins.same(request(cmd, second), disk)


def test_align_of_a_file(twins: Twins, disk: Path) -> None:
    """The result is the size."""
    assert wire.result(twins.same(request(Cmd.ALIGN, wire.disk(disk)), disk)) == MIB


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_devices(twins: Twins, make_loop: MakeLoop, sector_size: int) -> None:
    """A device has the sizes that follow from its sectors, and an end."""
    end = 24 * MIB
    device = Path(make_loop(sector_size, end))
    wide = 8 * MIB if sector_size == 4096 else MIB
    for offset in (0, 512, 4096, end - wide // 2, end, 64 * MIB):
        for cmd, payload in (
            (Cmd.WRITE_LOCKSPACE, wire.lockspace("LS", 1, device, offset)),
            (Cmd.READ_LOCKSPACE, wire.lockspace("", 1, device, offset)),
            (Cmd.READ_LOCKSPACE, wire.lockspace("", 2, device, offset, 0x100)),
            (Cmd.WRITE_LOCKSPACE, wire.lockspace("LS", 1, device, offset, SIZES)),
            (Cmd.WRITE_RESOURCE, wire.lease("LS", "R", device, offset)),
            (Cmd.READ_RESOURCE, wire.lease("LS", "R", device, offset)),
            (Cmd.READ_RESOURCE_OWNERS, wire.lease("LS", "R", device, offset)),
            (Cmd.READ_RESOURCE_OWNERS, wire.lease("LS", "R", device, offset, flags=SIZES)),
            (Cmd.FORMAT_RINDEX, wire.rindex("LS", device, offset, flags=0)),
        ):
            replies = [twins.ask(kind, request(cmd, payload)) for kind in KINDS]
            assert replies[0] == replies[1], (cmd, offset)
    assert wire.result(twins.ask("ours", request(Cmd.ALIGN, wire.disk(device)))[0]) == wide


# -- reading -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(twins: Twins) -> bytes:
    """A lockspace at 0, the resource R at 1 MiB, and W of 4096/1M at 3 MiB."""
    disk = made_disk(twins.directory)
    for cmd, payload in (
        (Cmd.WRITE_LOCKSPACE, wire.lockspace("LS", 0, disk, 0, SIZES)),
        (Cmd.WRITE_RESOURCE, wire.lease("LS", "R", disk, MIB, flags=SIZES)),
        (Cmd.WRITE_RESOURCE, wire.lease("LS", "W", disk, 3 * MIB, flags=0x210)),
    ):
        assert wire.result(twins.ask("real", request(cmd, payload, data2=3))[0]) == 0
    return disk.read_bytes()


@pytest.fixture
def formatted(disk: Path, image: bytes) -> Path:
    """A disk of that content."""
    restore(disk, image, disk.read_bytes())
    return disk


@pytest.mark.parametrize("flags", [0, SIZES, WIDE, 0x200, 0x10, 0x1331])
@pytest.mark.parametrize(
    ("name", "host_id", "offset"),
    [
        ("LS", 0, 0),
        ("", 1, 0),
        ("LS", 2000, 0),
        ("LS", 2500, 0),
        ("LS", 1 << 60, 0),
        ("LS", (1 << 64) - 1, 0),
        ("XX", 1, 0),
        ("LS", 1, 100),
        ("LS", 1, 512),
        ("LS", 1, MIB),
        ("LS", 3, 2 * MIB),
        ("LS", 1, 8 * MIB - 512),
        ("LS", 1, 8 * MIB),
        ("LS", 1, 1 << 63),
    ],
)
def test_read_lockspace(
    twins: Twins, formatted: Path, name: str, host_id: int, offset: int, flags: int
) -> None:
    """A lockspace is told as it is on disk; after an error the request comes back."""
    payload = wire.lockspace(name, host_id, formatted, offset, flags)
    twins.same(request(Cmd.READ_LOCKSPACE, payload), formatted)


@pytest.mark.parametrize("flags", [0, SIZES, 0x210, WIDE, 0x240, 0x200, 0x10, 0x333])
@pytest.mark.parametrize("cmd", [Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS])
@pytest.mark.parametrize(
    ("of", "name", "offset"),
    [
        ("LS", "R", MIB),
        ("", "", MIB),
        ("", "R", MIB),
        ("LS", "", MIB),
        ("XX", "R", MIB),
        ("LS", "XX", MIB),
        ("LS", "W", 3 * MIB),
        ("LS", "R", 0),
        ("LS", "R", 2 * MIB),
        ("LS", "R", MIB + 100),
        ("LS", "R", 8 * MIB - 512),
        ("LS", "R", 8 * MIB),
        ("LS", "R", 1 << 63),
    ],
)
def test_read_resource(
    twins: Twins, formatted: Path, cmd: Cmd, of: str, name: str, offset: int, flags: int
) -> None:
    """A resource and its owners are told as they are on disk; after an error nothing is changed."""
    payload = wire.lease(of, name, formatted, offset, flags=flags, lver=8, data32=5)
    twins.same(request(cmd, payload), formatted)


@pytest.mark.parametrize("size", [0, 512, 4096, 8192, MIB - 512, MIB - 100])
def test_reading_what_was_cut_short(twins: Twins, formatted: Path, size: int) -> None:
    """What a file does not hold is -EMSGSIZE, as far as it is looked at."""
    whole = formatted.read_bytes()
    for start in (0, MIB):
        formatted.write_bytes(whole[start : start + size])
        for flags in (0, SIZES, 0x210):
            for host_id in (1, 2, 9):
                place = wire.lockspace("LS", host_id, formatted, 0, flags)
                twins.same(request(Cmd.READ_LOCKSPACE, place), formatted)
            one = wire.lease("LS", "R", formatted, 0, flags=flags)
            twins.same(request(Cmd.READ_RESOURCE, one), formatted)
            twins.same(request(Cmd.READ_RESOURCE_OWNERS, one), formatted)


DAMAGES = {
    "magic": (0, b"x", True),
    "version": (4, b"\x04\x00\x09\x00", True),
    "minor version": (4, b"\x09", True),
    "checksum": (100, b"x", False),
    "no align flag": (8, b"\0", True),
    "owned": (32, (3).to_bytes(8, "little") + (9).to_bytes(8, "little") + b"\4", True),
    "num_hosts 0": (16, bytes(8), True),
    "num_hosts 1": (16, b"\1\0", True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_reading_what_is_damaged(twins: Twins, formatted: Path, damage: str) -> None:
    """Each damage has its number, and the order of the checks is the same."""
    at, data, is_valid = DAMAGES[damage]
    for offset in (0, MIB):
        areas.alter_leader(formatted, offset, at, data, is_valid=is_valid)
    for flags in (0, SIZES):
        for name in ("LS", "XX"):
            for host_id in (1, 2):
                place = wire.lockspace(name, host_id, formatted, 0, flags)
                twins.same(request(Cmd.READ_LOCKSPACE, place), formatted)
            for cmd in (Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS):
                one = wire.lease(name, "R", formatted, MIB, flags=flags)
                twins.same(request(cmd, one), formatted)


def test_owners(twins: Twins, formatted: Path) -> None:
    """An exclusive owner comes with its time, shared ones without."""
    areas.alter_leader(formatted, MIB, 32, (3).to_bytes(8, "little") + (9).to_bytes(8, "little"))
    areas.alter_leader(formatted, MIB, 152, (77).to_bytes(8, "little"))
    asked = request(Cmd.READ_RESOURCE_OWNERS, wire.lease("LS", "R", formatted, MIB))
    assert wire.parse_header(twins.same(asked, formatted)).data2 == 1
    for host_id in (3, 2000):
        mode_block = MIB + (host_id + 1) * 512 + 128
        areas.write(formatted, mode_block, b"\1" + bytes(7) + (5).to_bytes(8, "little"))
    assert wire.parse_header(twins.same(asked, formatted)).data2 == 2  # host 3 is told of once
    areas.alter_leader(formatted, MIB, 152, bytes(8))
    assert wire.parse_header(twins.same(asked, formatted)).data2 == 2
    twins.same(request(Cmd.READ_RESOURCE, wire.lease("LS", "R", formatted, MIB)), formatted)


def test_where_ours_is_careful(twins: Twins, formatted: Path) -> None:
    """Numbers of hosts and sizes that no format has are refused: the real one may crash on them."""
    write = request(Cmd.WRITE_RESOURCE, wire.lease("LS", "R", formatted, MIB), data=-1)
    assert wire.result(twins.ask("ours", write)[0]) == 0
    assert areas.read(formatted, MIB + 16, 8) == (2000).to_bytes(8, "little")
    read = request(Cmd.READ_RESOURCE, wire.lease("LS", "R", formatted, MIB))
    owners = request(Cmd.READ_RESOURCE_OWNERS, wire.lease("LS", "R", formatted, MIB))
    areas.alter_leader(formatted, MIB, 16, (1 << 40).to_bytes(8, "little"))
    for asked in (read, owners):
        assert wire.result(twins.ask("ours", asked)[0]) == -228
    areas.alter_leader(formatted, MIB, 8, b"\x20" + bytes(3))
    for asked in (read, owners):
        assert wire.result(twins.ask("ours", asked)[0]) == -230


# -- requests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joined(twins: Twins) -> Twins:
    """Both have joined lockspaces of one name, each its own."""
    for kind in KINDS:
        path = twins.directory / f"space-{kind}"
        with path.open("wb") as file:
            file.truncate(MIB)
        place = wire.lockspace("LS", 1, path, 0, SIZES)
        assert wire.result(twins.ask(kind, request(Cmd.WRITE_LOCKSPACE, place, data2=1))[0]) == 0
        add = request(Cmd.ADD_LOCKSPACE, place, data=1)
        assert wire.result(twins.ask(kind, add, 30.0)[0]) == 0
    return twins


@pytest.fixture
def owned(joined: Twins, formatted: Path) -> Path:
    """Host 2 owns R in version 4."""
    owner = (2).to_bytes(8, "little") + (1).to_bytes(8, "little") + (4).to_bytes(8, "little")
    areas.alter_leader(formatted, MIB, 32, owner)
    areas.alter_leader(formatted, MIB, 152, (77).to_bytes(8, "little"))
    return formatted


@pytest.mark.parametrize(
    ("lver", "mode", "flags"),
    [
        (0, 0, 0),
        (0, 0, 1),
        (0, 2, 0),
        (0, 1, 1),
        (4, 1, 0),
        (5, 0, 0),
        (5, 1, 0),
        (6, 9, 1),
        (1 << 63, 0xFFFFFFFF, 0),
    ],
)
def test_request(joined: Twins, owned: Path, lver: int, mode: int, flags: int) -> None:
    """A request is written, refused or cleared; also where one of a larger version stands."""
    asked = request(Cmd.REQUEST, lease(lver=lver, flags=0)(owned), data=mode, flags=flags)
    joined.same(asked, owned)
    joined.same(asked, owned)
    areas.write(owned, MIB + 512 + 8, (5).to_bytes(8, "little") + b"\2")
    joined.same(asked, owned)


def test_requests_that_are_refused(joined: Twins, owned: Path, tmp_path: Path) -> None:
    """What is wrong has the same number, in the same order."""
    for payload in (
        lease(lver=5, of="XX")(owned),
        lease(lver=5, of="XX")(tmp_path / "nowhere"),
        lease(lver=5)(tmp_path / "nowhere"),
        lease(lver=5)(tmp_path),
        lease(lver=5, name="XX")(owned),
        lease(lver=0, name="XX")(owned),
        lease(lver=5, offset=2 * MIB)(owned),
        lease(lver=0, offset=2 * MIB)(owned),
        lease(lver=5, offset=MIB + 100)(owned),
        lease(lver=5, offset=20 * MIB)(owned),
        wire.resource("LS", "R", 0, lver=5),
        wire.resource("XX", "R", 0, lver=5),
    ):
        for mode in (0, 1):
            joined.same(request(Cmd.REQUEST, payload, data=mode), owned)
    asked = request(Cmd.REQUEST, lease(lver=5)(owned), data=1)
    clear = request(Cmd.REQUEST, lease(lver=0)(owned))
    for at, code in ((0, -270), (6, -271)):
        areas.write(owned, MIB + 512 + at, b"\7")
        assert wire.result(joined.same(asked, owned)) == code
        assert wire.result(joined.same(clear, owned)) == code
        joined.ask("real", request(Cmd.WRITE_RESOURCE, lease()(owned)))
        owner = (2).to_bytes(8, "little") + (1).to_bytes(8, "little") + (4).to_bytes(8, "little")
        areas.alter_leader(owned, MIB, 32, owner)
        areas.alter_leader(owned, MIB, 152, (77).to_bytes(8, "little"))
    areas.alter_leader(owned, MIB, 152, bytes(8))
    assert wire.result(joined.same(asked, owned)) == 0  # nobody has it


def test_the_owner_is_marked(joined: Twins, owned: Path) -> None:
    """After a request the owner's bit is set in the next renewals of the asking host."""
    joined.same(request(Cmd.REQUEST, lease(lver=9)(owned), data=1), owned)
    for kind in KINDS:
        path = joined.directory / f"space-{kind}"
        wait_until(lambda at=path: areas.read(at, 256, 1) == b"\2", 10.0, f"{kind} marks host 2")
    assert os.path.getsize(owned) == 8 * MIB
