"""Inputs made from good ones by small changes, for the tests and for tools/fuzz.py."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import strategies as st

INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"-1", b"null")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 1 << 31, 1 << 63, 1 << 64, -(1 << 70), 0.5, 1e400),
    *("", "0", "4c53", "zz", "\0", "\udc80", "a" * 5000, [], [0], [[]], {}, {"key": 1}),
)


def mutated(draw: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """Return one of the seeds, changed in a few places; now and then two of them, or noise."""
    if draw.random() < 0.02:
        return draw.randbytes(draw.randrange(2000))
    data = bytearray(draw.choice(seeds))
    if data[:1] == b"{" and draw.random() < 0.8:
        return json.dumps(odd(draw, json.loads(data))).encode()
    if draw.random() < 0.1:
        data += draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(4):
            case 0:
                del data[at : at + draw.choice((1, 4, 32, 1000))]
            case 1:
                data[at:at] = draw.randbytes(draw.choice((1, 4, 64)))
            case 2:
                piece = draw.choice(INTERESTING)
                data[at : at + len(piece)] = piece
            case 3 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
    return bytes(data)


def odd(draw: random.Random, value: Any) -> Any:
    """Return JSON in which one value somewhere is another, or missing."""
    inner = isinstance(value, dict | list) and len(value) > 0
    if not inner or draw.random() < 0.05:
        return draw.choice(ODD_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.choice(keys)
    copy = value.copy()
    if draw.random() < 0.1:
        del copy[key]
    elif isinstance(copy[key], str) and copy[key] and draw.random() < 0.5:
        copy[key] = copy[key][: draw.randrange(len(copy[key]))]
    else:
        copy[key] = odd(draw, copy[key])
    return copy


def inputs(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Return a strategy of such inputs, and of noise."""
    numbers = st.integers(0, (1 << 32) - 1)
    changed = numbers.map(lambda number: mutated(random.Random(number), seeds))
    return st.one_of(changed, changed, st.binary(max_size=600))
