"""What goes into the key of a suspended generator, and what does not."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import pytest

from paxoslease.errors import DiskTimeout
from paxoslease.simulation.explorer.keys import NotAValueError, freeze, generator_key, live_names

Steps = Generator[Any, Any, Any]


class Pair(NamedTuple):
    a: object
    b: object


class Other(NamedTuple):
    a: object
    b: object


def suspended(process: Steps, *answers: Any) -> Steps:
    """Run a generator up to a yield."""
    next(process)
    for answer in answers:
        process.send(answer)
    return process


def inner(x: int) -> Steps:
    got = yield x
    return got


def outer(x: int) -> Steps:
    spare = yield "spare"
    used = yield from inner(x)
    spare = used + 1
    yield spare
    return spare


def test_dead_locals_do_not_count() -> None:
    """A variable that is assigned before it is read again is no part of the key."""
    one, two = suspended(outer(7), 1), suspended(outer(7), 2)
    assert generator_key(one) == generator_key(two)


def test_live_locals_count_down_the_chain() -> None:
    """What inner generators know counts, and where each stands."""
    assert generator_key(suspended(outer(7), 1)) == generator_key(suspended(outer(8), 1))
    assert generator_key(suspended(outer(7), 1, 5)) != generator_key(suspended(outer(7), 1, 6))
    assert generator_key(suspended(outer(7))) != generator_key(suspended(outer(7), 1))
    assert len(generator_key(suspended(outer(7), 1))) == 2


def guarded(x: int) -> Steps:
    y = 1
    try:
        y = yield "try"
        yield "tried"
    except ValueError:
        return x, y
    return 0


def test_what_an_exception_handler_reads_is_live() -> None:
    """A yield that may raise keeps alive what the handler needs."""
    live = live_names(guarded.__code__)
    ys = [names for names in live.values() if "y" in names]
    assert ys
    assert generator_key(suspended(guarded(1))) != generator_key(suspended(guarded(2)))
    assert generator_key(suspended(guarded(1), 3)) != generator_key(suspended(guarded(1), 4))


def shares(x: int) -> Steps:
    values = yield x
    total = sum(x * v for v in values)
    yield total


def test_variables_shared_with_inner_functions_are_live() -> None:
    """What a comprehension may read is kept."""
    assert generator_key(suspended(shares(1))) != generator_key(suspended(shares(2)))


def keeps(value: object) -> Steps:
    yield "ask"
    yield value


def test_types_count() -> None:
    """True is not 1, and two kinds of record with equal fields differ."""
    assert freeze("x", True) != freeze("x", 1)
    assert freeze("x", Pair(1, 2)) != freeze("x", Other(1, 2))
    assert freeze("x", Pair(1, 2)) == freeze("x", Pair(1, 2))
    assert freeze("x", (True, 1)) != freeze("x", (1, 1))
    assert generator_key(suspended(keeps(True))) != generator_key(suspended(keeps(1)))


def test_exceptions_count_by_type_and_fields() -> None:
    """Two equal errors are one value, other fields make another."""
    late = DiskTimeout("p", 0, "write", 10, 1)
    again = DiskTimeout("p", 0, "write", 10, 1)
    other = DiskTimeout("p", 0, "write", 10, 2)
    assert freeze("e", Pair(late, 1)) == freeze("e", Pair(again, 1))
    assert freeze("e", late) != freeze("e", other)


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), (1, [2])])
def test_mutable_locals_are_refused(value: object) -> None:
    """A list across a yield is an error of the protocol's author, with the variable's name."""
    with pytest.raises(NotAValueError, match="value"):
        generator_key(suspended(keeps(value)))
