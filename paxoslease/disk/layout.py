"""Where each record of a lockspace, a resource or a resource index lies.

Source: spec/disk-format.md 1.1, 4.1, 5.1 and 6. All positions are byte offsets from the start of
the device or file, computed with Python's unbounded integers.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from paxoslease.errors import ConfigError

MIB: Final = 1 << 20
NAME_BYTES: Final = 48
PROBE_BYTES: Final = 4096  # enough to learn the sizes of any area
BITMAP_BYTES: Final = 256

_SIZES: Final = {
    (512, 1 * MIB): (2000, 0x10, 0x1),
    (4096, 1 * MIB): (250, 0x10, 0x1),
    (4096, 2 * MIB): (500, 0x20, 0x2),
    (4096, 4 * MIB): (1000, 0x40, 0x4),
    (4096, 8 * MIB): (2000, 0x80, 0x8),
}
LEGAL_SIZES: Final = tuple(_SIZES)
ALIGN_OF_FLAG: Final = {0x10: 1 * MIB, 0x20: 2 * MIB, 0x40: 4 * MIB, 0x80: 8 * MIB}
ALIGN_FLAGS: Final = 0xF0
ALIGN_OF_RINDEX_FLAG: Final = {0x1: 1 * MIB, 0x2: 2 * MIB, 0x4: 4 * MIB, 0x8: 8 * MIB}

LVB_SECTOR: Final = 2002
RINDEX_ENTRY_BYTES: Final = 64
RINDEX_LEASE_NAME: Final = b"rindex_lease"


class Sizes(NamedTuple):
    """A legal pair of sector size and align size, both in bytes."""

    sector_size: int
    align_size: int

    @property
    def max_hosts(self) -> int:
        """Return the largest host id, which is also the step of ballot numbers."""
        return _SIZES[self][0]

    @property
    def align_flag(self) -> int:
        """Return the flag that stands for the align size in a leader record."""
        return _SIZES[self][1]

    @property
    def rindex_flag(self) -> int:
        """Return the flag that stands for the align size in an index header."""
        return _SIZES[self][2]


SIZES_512: Final = Sizes(512, MIB)
SIZES_4096: Final = Sizes(4096, 8 * MIB)


def check_sizes(sector_size: int, align_size: int) -> Sizes:
    """Return the pair, or raise ConfigError when no format has it."""
    if (sector_size, align_size) not in _SIZES:
        legal = ", ".join(f"{s}/{a // MIB}M" for s, a in LEGAL_SIZES)
        raise ConfigError("sizes", f"{sector_size}/{align_size} is none of {legal}")
    return Sizes(sector_size, align_size)


def default_sizes(device_sector_size: int) -> Sizes:
    """Return what a formatter uses on a device with that logical sector size."""
    return SIZES_4096 if device_sector_size == 4096 else SIZES_512


class Area(NamedTuple):
    """The align_size bytes at `offset` of `path` that belong to one lockspace or resource."""

    path: str
    offset: int
    sizes: Sizes

    @property
    def sector_size(self) -> int:
        return self.sizes.sector_size

    def delta(self, host_id: int) -> int:
        """Return the offset of a host's delta lease (lockspace area)."""
        return self.offset + (host_id - 1) * self.sizes.sector_size

    @property
    def request(self) -> int:
        """Return the offset of the request record (resource area)."""
        return self.offset + self.sizes.sector_size

    def host_sector(self, host_id: int) -> int:
        """Return the offset of a host's dblock and mode block (resource area)."""
        return self.offset + (host_id + 1) * self.sizes.sector_size

    @property
    def lvb(self) -> int | None:
        """Return the offset of the LVB, None where it would lie outside of the area.

        With 4096-byte sectors and less than 8 MiB sanlock writes into a neighbour's host sector
        (spec/disk-format.md 5.8); we refuse.
        """
        start = LVB_SECTOR * self.sizes.sector_size
        return self.offset + start if start < self.sizes.align_size else None

    def index_entry(self, entry: int) -> int:
        """Return the offset of an index entry (first area of a resource index)."""
        return self.offset + self.sizes.sector_size + entry * RINDEX_ENTRY_BYTES

    def following(self, areas: int) -> Area:
        """Return the area that lies `areas` align sizes behind this one."""
        return self._replace(offset=self.offset + areas * self.sizes.align_size)


def ballot_bytes(sizes: Sizes, num_hosts: int) -> int:
    """Return how much a ballot reads: leader, request and host sectors, to a power of two."""
    sectors = 1 << (num_hosts + 1).bit_length()
    return min(sectors * sizes.sector_size, sizes.align_size)


def rindex_capacity(sizes: Sizes) -> int:
    """Return how many entries an index of these sizes can describe on disk."""
    return 16000 * (sizes.align_size // MIB)


def rindex_shared_capacity(sizes: Sizes) -> int:
    """Return how many entries may be used while sanlock hosts share the index.

    sanlock computes the place of entry i in 32-bit signed arithmetic and wraps at 2^31 bytes
    (spec/disk-format.md 6.4).
    """
    return (1 << 31) // sizes.align_size


def check_name(what: str, name: str | bytes) -> bytes:
    """Return a lockspace, resource or host name as bytes, or raise ConfigError.

    A name has 1 to 48 bytes and no zero byte (spec/disk-format.md 1).
    """
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    if not raw:
        raise ConfigError(what, "the name is empty")
    if len(raw) > NAME_BYTES:
        raise ConfigError(what, f"the name has {len(raw)} bytes, at most {NAME_BYTES} fit")
    if b"\0" in raw:
        raise ConfigError(what, "the name contains a zero byte")
    return raw
