"""Reading what is on a device, for people: past the page cache, and with time-outs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from paxoslease.disk.decode import AreaFound, decode_device
from paxoslease.engine.host import engine
from paxoslease.errors import DiskTimeout, TooSmall
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S, SECOND_US


def inspect_device(
    path: str,
    *,
    offset: int = 0,
    io_timeout: int = IO_TIMEOUT_DEFAULT_S,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[AreaFound]:
    """Yield every lease area found on a device or file from `offset` on.

    Reads with O_DIRECT, so that what another host wrote is seen. progress(offset, size) is called
    on the way. Raises DiskError, UnsuitableDevice for a path that cannot be opened, DiskTimeout for
    a device that hangs (each further read would take as long), TooSmall for an offset beyond the
    end; places that cannot be read are findings.
    """
    owner = engine()
    hung: list[DiskTimeout] = []
    file = owner.files.hold(path)
    try:
        size = file.size_bytes - file.size_bytes % file.sector_size
        if offset and offset >= size:
            raise TooSmall(path, offset, f"it ends at {size}")

        def read(at: int, length: int) -> bytes:
            # Whole sectors are read, and what was asked for is cut out of them.
            first = at - at % file.sector_size
            end = min(size, -(-(at + length) // file.sector_size) * file.sector_size)
            if end <= first:
                return b""
            try:
                data = owner.run_once(_read(path, first, end - first, io_timeout), path)
            except DiskTimeout as error:
                hung.append(error)
                raise
            return data[at - first : at - first + length]

        def tell(at: int) -> None:
            if progress is not None:
                progress(at, size)

        for area in decode_device(read, path, size, start=offset, progress=tell):
            if hung:
                raise hung[0].with_traceback(None)
            yield area
    finally:
        owner.files.drop(path)


def _read(path: str, offset: int, length: int, io_timeout: int) -> Protocol[bytes]:
    data: bytes = yield Read(path, offset, length, io_timeout * SECOND_US)
    return data
