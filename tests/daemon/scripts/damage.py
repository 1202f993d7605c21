"""Disks on which something is wrong: what each record's damage is called."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from tests.daemon import areas, wire
from tests.daemon.scripts.common import SPACE, format_space, lease, name, owners, prepare, read
from tests.daemon.stage import MIB, Differs, Host, Stage
from tests.daemon.wire import Cmd, acquire, convert, release, request


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


# By what is wrong: the record, where in it, the bytes, and whether its checksum is renewed.
REFUSED: Final[dict[str, tuple[int, int, bytes, bool]]] = {
    "version": (0, 4, _u32(0x00090001), True),
    "sector size 1024": (0, 12, _u32(1024), True),
    "align of 2M with 512": (0, 8, _u32(0x20), True),
    "magic of the first record": (0, 0, _u32(0), True),
    "our checksum": (512, 168, _u32(1), False),
    "our name": (512, 56, b"XX\0", True),
    "our version": (512, 4, _u32(0x00090001), True),
}
HARMLESS: Final[dict[str, tuple[int, int, bytes, bool]]] = {
    "checksum of the first": (0, 168, _u32(1), False),
    "minor version": (0, 4, _u32(0x00030009), True),
}


def lockspaces(stage: Stage) -> None:
    """A lockspace that cannot be joined, for every reason that its first records can give."""
    _join_damaged(stage, REFUSED)


def lockspaces_joined(stage: Stage) -> None:
    """Damage that does not concern who joins."""
    _join_damaged(stage, HARMLESS)


def _join_damaged(stage: Stage, reasons: dict[str, tuple[int, int, bytes, bool]]) -> None:
    host = stage.host("one")
    path = stage.file("leases", 12)
    for number, (step, (record, at, data, is_valid)) in enumerate(reasons.items()):
        offset = number * MIB
        format_space(host, path, SPACE, offset)
        areas.alter_leader(path, offset + record, at, data, is_valid=is_valid)
        place = wire.lockspace(SPACE, 2, path, offset)
        host.ask(f"read, {step}", request(Cmd.READ_LOCKSPACE, place))
        joined = host.ask(f"add, {step}", request(Cmd.ADD_LOCKSPACE, place, data=1))
        if joined and wire.result(joined) == 0:
            host.ask(f"rem, {step}", request(Cmd.REM_LOCKSPACE, place))


def resources(stage: Stage) -> None:
    """Leases that cannot be taken, and what is asked about them."""
    host = stage.host("one")
    path = prepare(stage, host, 12)
    holder = host.client("holder")
    for number, (step, at, data, is_valid) in enumerate(
        (
            ("version", 4, _u32(0x00090001), True),
            ("checksum", 168, _u32(1), False),
            ("lockspace", 56, b"XX\0", True),
            ("resource", 104, b"XX\0", True),
            ("magic", 0, _u32(0x12345678), True),
            ("num_hosts 0", 16, _u64(0), True),
        ),
        1,
    ):
        areas.alter_leader(path, number * MIB, at, data, is_valid=is_valid)
        host.ask(f"read, {step}", read(path, number))
        host.ask(f"owners, {step}", owners(path, number))
        holder.ask(f"acquire, {step}", acquire(lease(path, number)))
        holder.ask(f"acquire shared, {step}", acquire(lease(path, number, flags=wire.SHARED)))
    _request_damage(host, path)
    block = struct.pack("<6Q", 4001, 4001, 2, 1, 5, 1)
    areas.write(path, 8 * MIB + 3 * 512, block + _u32(77))
    holder.ask("another host's block", acquire(lease(path, 8)))


def _request_damage(host: Host, path: Path) -> None:
    holder = host.client("requested")
    holder.quietly(acquire(lease(path, 7)))
    record = 7 * MIB + 512
    wanted = request(Cmd.REQUEST, lease(path, 7, lver=5), data=1)
    for step, at, data in (("version", 4, _u32(0x00090001)), ("magic", 0, _u32(1))):
        kept = areas.read(path, record, 512)
        areas.write(path, record + at, data)
        host.ask(f"request, {step}", wanted)
        areas.write(path, record, kept)
    host.ask("request, undamaged", wanted)


# What is wrong: where, the bytes, a valid checksum or not, and what RELEASE says: real, ours.
HELD: Final[dict[str, tuple[int, bytes, bool, int, int]]] = {
    "lver": (48, _u64(9), True, -250, -250),
    "owner": (32, _u64(2), True, -251, -251),
    "generation": (40, _u64(9), True, -251, -251),
    "free": (152, _u64(0), True, -251, 0),
    "checksum": (168, _u32(1), False, -229, -229),
    "name": (104, b"XX\0", True, -227, -250),
    "magic": (0, _u32(1), True, -223, -250),
}
UNREADABLE: Final = {"checksum", "name", "magic"}


def held(stage: Stage) -> None:
    """A lease that is damaged while it is held: release and convert tell, and let it go."""
    host = stage.host("one")
    path = prepare(stage, host, 10)
    holder = host.client("holder")
    for number, (step, (at, data, is_valid, *results)) in enumerate(HELD.items(), 1):
        holder.quietly(acquire(lease(path, number)))
        areas.alter_leader(path, number * MIB, at, data, is_valid=is_valid)
        meant = [(f"result {result}, data2 0, length 32", "then open") for result in results]
        differs = Differs(
            "a release that may be a repetition is done when the lease is free; a lease of another"
            " name is another version",
            real=meant[0],
            ours=meant[1],
        )
        is_other = results[0] != results[1]
        holder.ask(f"release, {step}", release(name(number)), differs=differs if is_other else None)
        holder.holds(f"held after {step}")
        block = areas.read(path, number * MIB + 2 * 512, 512)
        is_released = block[52] & 1
        differs = Differs(
            "what cannot be read is not written beside",
            real=["released 1"],
            ours=["released 0"],
        )
        stage.see(
            f"block after {step}",
            [f"released {is_released}"],
            differs=differs if step in UNREADABLE else None,
        )
        if step != "magic":
            stage.see(f"leader after {step}", areas.tell(path, number * MIB, 512)[:1])
    holder.quietly(acquire(lease(path, 8)))
    areas.alter_leader(path, 8 * MIB, 168, _u32(1), is_valid=False)
    holder.ask("convert", convert(name(8, flags=wire.SHARED)))
    holder.holds("held after convert")
    holder.quietly(release(flags=1))


SCRIPTS = (lockspaces, lockspaces_joined, resources, held)
