"""Values for random calls: mostly such as clients use, some at the limits, some beyond them.

Everything is drawn from one seed. Paths begin with a directory `here` that does not exist: it
stands for the directory of whichever side a call is made on, and is as long as that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

MIB: Final = 1 << 20
HERE: Final = b"@HERE@"  # in the tables of this file

SPACES: Final = (b"LS", b"K")
RESOURCES: Final = (b"R1", b"R2", b"R3")
ODD_NAMES: Final = (
    b"",
    b"a",
    b"x" * 47,
    b"x" * 48,
    b"y" * 60,
    b"a:b",
    b"a\\b",
    b"a\\:b",
    b"a b",
    b" ",
    b"-1",
    "n\u00e4m".encode(),
    b"\xff\xfe",
    b"a\nb",
    b"rindex_lease",
    b"LS\0junk",
    b"R1\0junk",
    b"%s%n",
)
# What lies in a side's directory, by name (sides.py makes them).
FILES: Final = (b"one", b"two", b"wide")
ODD_PATHS: Final = (
    b"",
    HERE + b"/missing",
    HERE + b"/directory",
    HERE + b"/directory/",
    HERE + b"/one/",
    HERE + b"/one/below",
    HERE + b"/link",
    HERE + b"/loop",
    HERE + b"/dangling",
    HERE + b"/empty",
    HERE + b"/tiny",
    HERE + b"/short",
    HERE + b"/with:colon",
    HERE + b"/with space",
    HERE + b"/back\\slash",
    HERE + "/n\u00e4m".encode(),
    HERE + b"/\xff\xfe",
    HERE + b"/." * 200 + b"/one",
    HERE + b"/" + b"n" * 255,
    HERE + b"/" + b"n" * 256,
    HERE + b"/." * 490 + b"/one",
    b"one",
    b"./one",
    b"directory/../two",
    b"missing",
    b".",
    b"/",
    b"/dev/null",
    b"/dev/zero",
    b"/proc/version",
    b"/nowhere/at/all",
)
GOOD_SIZES: Final = (0x110, 0x110, 0x110, 0, 0x280, 0x210, 0x220, 0x240)
ODD_SIZES: Final = (0x120, 0x140, 0x180, 0x100, 0x200, 0x10, 0x20, 0x80, 0x300, 0x30, 0x3F0, 0x310)
NUMBERS: Final = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 16, 32, 60, 100, 127, 128, 249, 250, 251, 255, 256, 300, 500),
    *(999, 1000, 1001, 1999, 2000, 2001, 2002, 4095, 4096, 4097, 16000, 65535, 65536, 1 << 20),
)
LARGE: Final = ((1 << 31) - 1, 1 << 31, (1 << 32) - 1)
HUGE: Final = (1 << 32, (1 << 32) + 1, 1 << 41, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
OFFSETS: Final = (
    *(1, 100, 511, 512, 4096, 1024000, MIB - 512, MIB - 4096, MIB + 512, MIB + 4096, 3 * MIB // 2),
    *(15 * MIB, 16 * MIB, 17 * MIB, 24 * MIB, 30 * MIB, 16 * MIB - 512, 1 << 30, 1 << 41, 1 << 62),
    *((1 << 63) - MIB, (1 << 63) - 512, 1 << 63, (1 << 64) - MIB, (1 << 64) - 512, (1 << 64) - 1),
)


class Draw:
    """Values from a seed."""

    def __init__(self, seed: int, here: bytes) -> None:
        self.random = random.Random(seed)
        self.here = here
        self.usual_sizes = 0x110

    def begin_world(self) -> None:
        """Draw what most leases of the files have in common from now on."""
        self.usual_sizes = self.one(GOOD_SIZES)

    def chance(self, probability: float) -> bool:
        """Return whether something of a probability is to be."""
        return self.random.random() < probability

    def one(self, values: Sequence[T]) -> T:
        """Return one of some values."""
        return self.random.choice(values)

    def weighted(self, values: dict[T, int]) -> T:
        """Return one of some values, by their weights."""
        return self.random.choices(list(values), list(values.values()))[0]

    def space(self, odd: float = 0.1) -> bytes:
        """Return the name of a lockspace."""
        return self.one(ODD_NAMES) if self.chance(odd) else self.one(SPACES[: self.one((1, 1, 2))])

    def resource(self, odd: float = 0.1) -> bytes:
        """Return the name of a resource."""
        return self.one(ODD_NAMES) if self.chance(odd) else self.one(RESOURCES)

    def path(self, odd: float = 0.15) -> bytes:
        """Return a path."""
        path = self.one(ODD_PATHS) if self.chance(odd) else HERE + b"/" + self.one(FILES)
        return path.replace(HERE, self.here)

    def offset(self, odd: float = 0.15) -> int:
        """Return an offset: a small number of MiB, as a rule."""
        if self.chance(odd):
            return self.one(OFFSETS)
        return self.one((0, 0, 0, 1, 1, 2, 3, 4, 8, 8)) * MIB

    def sizes(self, odd: float = 0.1) -> int:
        """Return the flags of a sector and an align size."""
        if self.chance(odd):
            return self.one(ODD_SIZES)
        return self.usual_sizes if self.chance(0.8) else self.one(GOOD_SIZES)

    def host_id(self) -> int:
        """Return a host id."""
        if self.chance(0.8):
            return self.one((0, 1, 1, 1, 2, 3))
        return self.one((*NUMBERS, *LARGE, *HUGE))

    def small(self, odd: float = 0.2) -> int:
        """Return a number of 32 bits, mostly none of note."""
        if self.chance(odd):
            return self.one((*NUMBERS, *LARGE))
        return self.one((0, 0, 0, 1, 1, 2))

    def large(self) -> int:
        """Return a number of 64 bits."""
        if self.chance(0.8):
            return self.one((0, 0, 0, 1, 1, 2, 3, 4))
        return self.one((*NUMBERS, *LARGE, *HUGE))

    def bits(self, known: Sequence[int], odd: float = 0.1) -> int:
        """Return flags: none or one of those that are known, as a rule."""
        if self.chance(odd):
            return self.random.getrandbits(32) if self.chance(0.3) else self.random.getrandbits(6)
        found = 0
        while self.chance(0.4):
            found |= self.one(known)
        return found
