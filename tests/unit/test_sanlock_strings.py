"""The strings of sanlock's command line, each row of the tables in spec/cli.md 3."""

from __future__ import annotations

import pytest

from paxoslease.cli.sanlock.state_text import parse_state_text
from paxoslease.cli.sanlock.strings import (
    ResourceUnreadable,
    lockspace_text,
    parse_lockspace,
    parse_rentry,
    parse_resource,
    parse_rindex,
    resource_text,
)
from paxoslease.wire.sanlock import Disk, Lockspace, Rentry, Resource, ResourceFlag, Rindex

MIB = 1 << 20
LVER = ResourceFlag.LVER
SHARED = ResourceFlag.SHARED


@pytest.mark.parametrize(
    ("text", "name", "host_id", "path", "offset"),
    [
        (b"L:1:/p:0", b"L", 1, b"/p", 0),
        (b"L", b"L", 0, b"", 0),
        (b"", b"", 0, b"", 0),
        (b"L:1", b"L", 1, b"", 0),
        (b"L:2:/p", b"L", 2, b"/p", 0),
        (b"L:0x5:/p:0x10", b"L", 0, b"/p", 0),
        (rb"L:1:/p\:q\ r:5", b"L", 1, b"/p:q r", 5),
        (rb"L:1:/a\\b:5", b"L", 1, b"/ab", 5),
        (rb"a\:b:1:/p:0", rb"a\:b", 1, b"/p", 0),
        (b"L:-1:/p:1", b"L", (1 << 64) - 1, b"/p", 1),
        (b"L: 7x:/p: 9x", b"L", 7, b"/p", 9),
        (b"L:99999999999999999999:/p:1", b"L", (1 << 63) - 1, b"/p", 1),
        (b"L:1:/p:3:more", b"L", 1, b"/p", 3),
        (b"L:1:/p:3M", b"L", 1, b"/p", 3 * MIB),
        (b"L:1:/pM:3", b"L", 1, b"/pM", 3),
        (b"L:1M:/p:3", b"L", 1, b"/p", 3),
        (b"x" * 50 + b":1:/p:0", b"x" * 48, 1, b"/p", 0),
        (b"L:1:" + b"p" * 1100 + b":5", b"L", 1, b"p" * 1023, 5),
        # What the original cannot do: docs/compatibility.md.
        (b"L:1:/p:M", b"L", 1, b"/p", 0),
        (b"L:1:/p:30M", b"L", 1, b"/p", 30 * MIB),
        (rb"L:1:/p\:x:3M", b"L", 1, b"/p:x", 3 * MIB),
    ],
)
def test_lockspace(text: bytes, name: bytes, host_id: int, path: bytes, offset: int) -> None:
    """A lockspace is read with whatever is missing empty, and its path without backslashes."""
    assert parse_lockspace(text) == Lockspace(name, host_id, 0, Disk(path, offset))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"L:R", Resource(b"L", b"R")),
        (b"LL:", Resource(b"LL", b"")),
        (b"L:R:/p: -5", Resource(b"L", b"R", (Disk(b"/p", (1 << 64) - 5),))),
        (b"L:R:/p:0", Resource(b"L", b"R", (Disk(b"/p"),))),
        (b"L:R:/p:0:5", Resource(b"L", b"R", (Disk(b"/p"),), 5, flags=LVER)),
        (b"L:R:/p:0:0x10", Resource(b"L", b"R", (Disk(b"/p"),), 16, flags=LVER)),
        (b"L:R:/p:0:010", Resource(b"L", b"R", (Disk(b"/p"),), 8, flags=LVER)),
        (b"L:R:/p:0:x", Resource(b"L", b"R", (Disk(b"/p"),), 0, flags=LVER)),
        (b"L:R:/p:0:SH", Resource(b"L", b"R", (Disk(b"/p"),), flags=SHARED)),
        (b"L:R:/p:0:SHARED", Resource(b"L", b"R", (Disk(b"/p"),), flags=SHARED)),
        (b"L:R:/p:0:/q:7", Resource(b"L", b"R", (Disk(b"/p"), Disk(b"/q", 7)))),
        (b"L:R:/p:5x", Resource(b"L", b"R", (Disk(b"/p", 5),))),
        (b"L:R:/p:2M", Resource(b"L", b"R", (Disk(b"/p", 2 * MIB),))),
        (b"L:R:/p:2M:/q:2M", Resource(b"L", b"R", (Disk(b"/p", 2 * MIB), Disk(b"/q", 2)))),
        (rb"L\:x:R\\:/p\:q\ r:1", Resource(b"L:x", b"R\\", (Disk(b"/p:q r", 1),))),
        (b"::/p:0", Resource(b"", b"", (Disk(b"/p"),))),
    ],
)
def test_resource(text: bytes, expected: Resource) -> None:
    """A resource is read with its disks, and how it is wanted at the end."""
    expected = expected._replace(num_disks=len(expected.disks))
    assert parse_resource(text) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"L:", -6),
        (b"", -6),
        (b"noC", -1),
        (b"L:R:/p", -1),
        (b"L:R::0", -1),
        (b"L:R:/p:", -1),
        (b"L:R:/p:0:", -1),
        (b"L:R:/p:x", -1),
        (b"x" * 49 + b":R:/p:0", -1),
        (b"L:" + b"x" * 49 + b":/p:0", -1),
        (b"L:R:" + b"p" * 1024 + b":0", -1),
        (b"L:R:/p:0\\", -1),
        (b"L:R" + b":/p:0" * 5, -2),
    ],
)
def test_resource_refused(text: bytes, number: int) -> None:
    """What is no resource is refused with the number that the original shows."""
    with pytest.raises(ResourceUnreadable) as refused:
        parse_resource(text)
    assert refused.value.number == number


def test_longest_resource() -> None:
    """Names of 48 bytes, paths of 1023 and four disks are allowed."""
    name, path = b"n" * 48, b"p" * 1023
    found = parse_resource(b"%b:%b" % (name, name) + b":%b:7" % path * 4)
    assert found == Resource(name, name, (Disk(path, 7),) * 4, num_disks=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"L:/p:0", Rindex(b"L", Disk(b"/p"))),
        (rb"L:/p\:q:5", Rindex(b"L", Disk(b"/p:q", 5))),
        (b"L:/p:1M", Rindex(b"L", Disk(b"/p", MIB))),
        (b"L", Rindex(b"L", Disk(b""))),
    ],
)
def test_rindex(text: bytes, expected: Rindex) -> None:
    """An index is read as a lockspace without host id."""
    assert parse_rindex(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"n", Rentry(b"n")),
        (b"n:5", Rentry(b"n", 5)),
        (b":22M", Rentry(b"", 22 * MIB)),
        (rb"a\:5", Rentry(b"a\\", 5)),
        (b"", Rentry()),
    ],
)
def test_rentry(text: bytes, expected: Rentry) -> None:
    """An entry is split at its first colon, without escapes."""
    assert parse_rentry(text) == expected


def test_printing() -> None:
    """Paths are escaped where the original escapes them, names never."""
    disk = Disk(b"/p:q r", 5)
    resource = Resource(b"L:x", b"R y", (disk, Disk(b"/q")))
    assert lockspace_text(Lockspace(b"L:x", 1, 0, disk)) == rb"L:x:1:/p\:q\ r:5"
    assert lockspace_text(Lockspace(b"L", 1, 0, disk), is_raw=True) == b"L:1:/p:q r:5"
    assert resource_text(resource, 7) == rb"L:x:R y:/p\:q\ r:5:/q:0:7"
    assert resource_text(resource._replace(flags=SHARED), 7).endswith(b":SH")


def test_state_text() -> None:
    """Resources of INQUIRE are told apart by blanks, those of names and hidden ones excepted."""
    found = parse_state_text(rb"L:R 1:/p\ q:0:5 L:S:/p:1:SH")
    assert [one.name for one in found] == [b"R 1", b"S"]
    assert found[0].disks == (Disk(b"/p q"),)
    assert found[0].lver == 5
    assert found[1].is_shared
    assert parse_state_text(b"") == []
