"""Numbers as the C library reads them: leading blanks, a sign, digits, and then whatever comes.

What is no number counts as 0, what is too large as the largest. sanlock's command line and
configuration file are read so (spec/cli.md 1).
"""

from __future__ import annotations

from typing import Final

_BLANKS: Final = b" \t\n\v\f\r"
_DIGITS: Final = b"0123456789abcdefghijklmnopqrstuvwxyz"
_SIGNED_MAX: Final = (1 << 63) - 1
_UNSIGNED_MAX: Final = (1 << 64) - 1


def to_int(text: bytes) -> int:
    """Return what atoi returns: decimal, the low 32 bits of it, signed."""
    low = to_long(text) & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low


def to_long(text: bytes) -> int:
    """Return what atoll returns: decimal, 64 bits, signed."""
    is_negative, number = _read(text, 10)
    return max(-_SIGNED_MAX - 1, -number) if is_negative else min(_SIGNED_MAX, number)


def to_unsigned(text: bytes) -> int:
    """Return what strtoull returns with base 0: decimal, 0x hexadecimal or 0 octal, 64 bits."""
    is_negative, number = _read(text, 0)
    if number > _UNSIGNED_MAX:
        return _UNSIGNED_MAX
    return -number & _UNSIGNED_MAX if is_negative else number


def _read(text: bytes, base: int) -> tuple[bool, int]:
    rest = text.lstrip(_BLANKS).lower()
    is_negative = rest[:1] == b"-"
    if rest[:1] in (b"-", b"+"):
        rest = rest[1:]
    if base == 0:
        base = 8 if rest[:1] == b"0" else 10
        if rest[:2] == b"0x" and rest[2:3] and rest[2] in _DIGITS[:16]:
            base, rest = 16, rest[2:]
    digits = _DIGITS[:base]
    number = 0
    for byte in rest:
        if byte not in digits:
            break
        number = number * base + digits.index(byte)
    return is_negative, number
