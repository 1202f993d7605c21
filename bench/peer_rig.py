"""Set up real sanlock hosts on a file or a loop device, to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.compat.peer import Lockspace, Resource, SanlockHost, loop_device, wait_until

IO_TIMEOUT_S: Final = 1
MIB: Final = 1 << 20
SPACE_NAME: Final = "BENCH"
KINDS: Final = ("file", "loop4k", "loop4k-direct")


class Storage(NamedTuple):
    """Where the leases of a measurement lie: a lockspace area, then resources."""

    path: str
    sector_size: int
    align_size: int

    def space(self) -> Lockspace:
        """Return the lockspace at the start."""
        return Lockspace(SPACE_NAME, self.path, 0, self.sector_size, self.align_size)

    def resource(self, index: int) -> Resource:
        """Return resource `index`, counted from 0."""
        offset = (1 + index) * self.align_size
        sizes = (self.sector_size, self.align_size)
        return Resource(SPACE_NAME, f"R{index}", self.path, offset, *sizes)


@contextmanager
def storage(directory: Path, kind: str, areas: int) -> Iterator[Storage]:
    """Yield storage for `areas` areas: one of KINDS.

    `file` is 512/1M on a file; `loop4k` is 4096/8M on a loop device whose reads come from the page
    cache; `loop4k-direct` the same past the page cache. The size is that of the areas; nothing is
    written yet.
    """
    if kind == "file":
        path = directory / "bench.leases"
        with path.open("wb") as file:
            file.truncate(areas * MIB)
        try:
            yield Storage(str(path), 512, MIB)
        finally:
            path.unlink()
        return
    backing = directory / "bench.disk"
    try:
        is_direct = kind == "loop4k-direct"
        with loop_device(backing, areas * 8 * MIB, 4096, direct_io=is_direct) as device:
            yield Storage(device, 4096, 8 * MIB)
    finally:
        backing.unlink(missing_ok=True)


class Rig:
    """Some real hosts, joined as host ids 1, 2, ... to one lockspace, and formatted resources."""

    def __init__(self, where: Storage, hosts: list[SanlockHost], resources: int) -> None:
        self.where = where
        self.hosts = hosts
        self.space = where.space()
        hosts[0].init_lockspace(self.space)
        for index in range(resources):
            hosts[0].init_resource(where.resource(index))
        for host_id, host in enumerate(hosts, 1):
            host.add_lockspace(self.space, host_id, wait=False)
        for host_id, host in enumerate(hosts, 1):
            self._wait_joined(host, host_id)

    def _wait_joined(self, host: SanlockHost, host_id: int) -> None:
        def has_joined() -> bool:
            return host.has_joined(self.space, host_id) is True

        wait_until(has_joined, 60.0, f"{host.name} joined")


@contextmanager
def rig(directory: Path, where: Storage, *, hosts: int = 1, resources: int = 1) -> Iterator[Rig]:
    """Yield a rig of real hosts; everything of it is ended afterwards, by force."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(SanlockHost(directory, f"h{n}", io_timeout_s=IO_TIMEOUT_S))
            for n in range(1, hosts + 1)
        ]
        yield Rig(where, started, resources)
