"""A lockspace `LS` at the begin of a file and resources `R1`, `R2`, ... in the areas behind it."""

from __future__ import annotations

from pathlib import Path

from tests.daemon import wire
from tests.daemon.stage import MIB, Host, Stage
from tests.daemon.wire import Cmd, request

SPACE = "LS"


def format_space(host: Host, path: Path, name: str = SPACE, offset: int = 0) -> None:
    """Format a lockspace with io_timeout 1."""
    payload = wire.lockspace(name, 0, path, offset, wire.SIZES_512_1M)
    host.quietly(request(Cmd.WRITE_LOCKSPACE, payload, data2=1))


def format_resources(host: Host, path: Path, count: int) -> None:
    """Format R1 to R<count>."""
    for number in range(1, count + 1):
        payload = wire.lease(SPACE, f"R{number}", path, number * MIB, flags=wire.SIZES_512_1M)
        host.quietly(request(Cmd.WRITE_RESOURCE, payload))


def prepare(stage: Stage, host: Host, resources: int, *, is_ready: bool = False) -> Path:
    """Format a file, join its lockspace with host id 1; `is_ready`: wait for the host table."""
    path = formatted(stage, host, resources)
    host.join(SPACE, 1, path, is_ready=is_ready)
    return path


def formatted(stage: Stage, host: Host, resources: int) -> Path:
    """Make a file with the lockspace and resources, and room for four more areas."""
    path = stage.file("leases", resources + 4)
    format_space(host, path)
    format_resources(host, path, resources)
    return path


def lease(path: Path, number: int, *, flags: int = 0, lver: int = 0, data32: int = 0) -> bytes:
    """Build R<number> with its disk."""
    name = f"R{number}"
    return wire.lease(SPACE, name, path, number * MIB, flags=flags, lver=lver, data32=data32)


def name(number: int, *, flags: int = 0) -> bytes:
    """Build R<number> without a disk, as RELEASE and CONVERT want it."""
    return wire.resource(SPACE, f"R{number}", flags=flags)


def read(path: Path, number: int) -> bytes:
    """Build the request that reads R<number> from its disk."""
    return request(Cmd.READ_RESOURCE, lease(path, number))


def owners(path: Path, number: int) -> bytes:
    """Build the request that reads who owns R<number>."""
    return request(Cmd.READ_RESOURCE_OWNERS, lease(path, number))


def status() -> bytes:
    """Build a full STATUS."""
    return request(Cmd.STATUS)
