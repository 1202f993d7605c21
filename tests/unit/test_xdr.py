"""The XDR subset: known bytes, round trips, and lengths that lie."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.wire.xdr import (
    Unpacker,
    XdrError,
    pack_optional_string,
    pack_signed,
    pack_string,
    pack_word,
)


def test_known_bytes() -> None:
    """Numbers are big-endian, strings are counted and padded to words."""
    assert pack_word(0x0EA7BEEF) == bytes.fromhex("0ea7beef")
    assert pack_signed(-1) == bytes.fromhex("ffffffff")
    assert pack_string(b"demo!") == bytes.fromhex("00000005 64656d6f 21000000")
    assert pack_string(b"") == bytes(4)
    assert pack_optional_string(None) == bytes(4)
    assert pack_optional_string(b"x") == bytes.fromhex("00000001 00000001 78000000")


@given(st.binary(max_size=50), st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1))
def test_what_is_packed_is_read_back(text: bytes, word: int, number: int) -> None:
    """Values come back, strings up to their first zero byte."""
    data = pack_string(text) + pack_word(word) + pack_signed(number) + pack_optional_string(text)
    unpacker = Unpacker(data)
    cut = text.split(b"\0")[0]
    assert unpacker.string(50) == cut
    assert (unpacker.word(), unpacker.signed()) == (word, number)
    assert unpacker.optional_string(50) == cut
    assert unpacker.offset == len(data)


def test_padding_is_not_looked_at_but_must_be_there() -> None:
    """Padding may hold anything; a string without it is incomplete."""
    assert Unpacker(bytes.fromhex("00000001 78ffffff")).string(9) == b"x"
    with pytest.raises(XdrError, match="1 bytes are wanted, 3 are there"):
        Unpacker(bytes.fromhex("00000001 78ffff")).string(9)


@pytest.mark.parametrize("count", [4, 10, 2**31, 2**32 - 1])
def test_lengths_are_not_believed(count: int) -> None:
    """A string longer than its limit, or than the data, is an error."""
    data = pack_word(count) + b"abc"
    with pytest.raises(XdrError):
        Unpacker(data).string(2**32)
    with pytest.raises(XdrError, match=f"a string of {count} bytes exceeds 3"):
        Unpacker(data).string(3)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Hostile bytes give values or XdrError, and reading never passes their end."""
    unpacker = Unpacker(data)

    def read_to_the_end() -> None:
        while True:
            unpacker.string(32)
            unpacker.optional_string(32)
            unpacker.opaque(3)
            unpacker.signed()

    with pytest.raises(XdrError, match="do not decode"):
        read_to_the_end()
    assert unpacker.offset <= len(data)
