"""Numbers as the C library reads them; it is asked itself where that is possible."""

from __future__ import annotations

import ctypes

from hypothesis import given, strategies as st

from paxoslease.lenient import to_int, to_long, to_unsigned

_LIBC = ctypes.CDLL(None)
_LIBC.atoll.restype = ctypes.c_longlong
_LIBC.strtoull.restype = ctypes.c_ulonglong

TEXTS = st.text("0123456789abcdefxXM+- \t", max_size=24).map(str.encode)


@given(TEXTS)
def test_as_the_c_library(text: bytes) -> None:
    """All three read what atoi, atoll and strtoull read."""
    assert to_int(text) == _LIBC.atoi(text)
    assert to_long(text) == _LIBC.atoll(text)
    assert to_unsigned(text) == _LIBC.strtoull(text, None, 0)


def test_examples() -> None:
    """Rubbish is 0, what is too large the largest, and bases are told by their prefix."""
    assert to_int(b"zz") == 0
    assert to_int(b" 7x") == 7
    assert to_int(b"4294967297") == 1
    assert to_long(b"0x10") == 0
    assert to_unsigned(b"0x10") == 16
    assert to_unsigned(b"010") == 8
    assert to_unsigned(b"-1") == (1 << 64) - 1
    assert to_unsigned(b"9" * 30) == (1 << 64) - 1
