"""The part of XDR (RFC 4506) that libvirt's lock protocol uses: spec/lock-drivers.md 8.2.

Everything is big-endian and a multiple of four bytes long. Read leniently, as libvirt does: padding
is not looked at, a string ends at its first zero byte, and its bytes need not be UTF-8. Lengths are
never believed: what exceeds its limit or the data at hand is an XdrError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from paxoslease.errors import PaxosleaseError

WORD_SIZE = 4
_WORD = struct.Struct(">I")
_SIGNED = struct.Struct(">i")


@dataclass(eq=False)
class XdrError(PaxosleaseError):
    """Bytes that were received do not decode."""

    offset: int
    reason: str
    template = "the bytes at {offset} do not decode: {reason}"
    number = -71  # EPROTO


class Unpacker:
    """Reads values from bytes, one after the other. Every method raises XdrError."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self._data = data
        self.offset = offset

    def word(self) -> int:
        """Return an unsigned number of 32 bits."""
        return int.from_bytes(self.opaque(WORD_SIZE), "big")

    def signed(self) -> int:
        """Return a number of 32 bits in two's complement."""
        return int.from_bytes(self.opaque(WORD_SIZE), "big", signed=True)

    def opaque(self, count: int) -> bytes:
        """Return that many bytes as they are, and skip their padding."""
        begin, end = self.offset, self.offset + _padded(count)
        if end > len(self._data):
            raise XdrError(begin, f"{count} bytes are wanted, {len(self._data) - begin} are there")
        self.offset = end
        return self._data[begin : begin + count]

    def string(self, count_max: int) -> bytes:
        """Return a string up to its first zero byte; `count_max` limits what is on the wire."""
        begin = self.offset
        count = self.word()
        if count > count_max:
            raise XdrError(begin, f"a string of {count} bytes exceeds {count_max}")
        return self.opaque(count).split(b"\0", 1)[0]

    def optional_string(self, count_max: int) -> bytes | None:
        """Return a string that may be absent."""
        return self.string(count_max) if self.word() else None


def pack_word(value: int) -> bytes:
    """Pack an unsigned number of 32 bits."""
    return _WORD.pack(value)


def pack_signed(value: int) -> bytes:
    """Pack a number of 32 bits in two's complement."""
    return _SIGNED.pack(value)


def pack_string(value: bytes) -> bytes:
    """Pack a string, padded with zeroes."""
    return _WORD.pack(len(value)) + value + bytes(_padded(len(value)) - len(value))


def pack_optional_string(value: bytes | None) -> bytes:
    """Pack a string that may be absent."""
    return _WORD.pack(0) if value is None else _WORD.pack(1) + pack_string(value)


def _padded(count: int) -> int:
    return count + -count % WORD_SIZE
