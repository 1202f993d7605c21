"""What a suspended generator will do next depends on: its position and the values it still needs.

Theory. A generator of `paxoslease.protocol` is suspended at a `yield`, possibly at the end of a
chain of `yield from`. Every frame of that chain has a position in its code and local variables.
All non-determinism comes in through the answers to effects, locals are immutable values, and no
`yield` stands where the interpreter's stack holds something (tests/model/test_checkable.py), so
two generators with equal positions and equal locals do the same for equal answers. Of the locals
only those count that may still be read: a variable whose next use is an assignment is *dead*, and
an attempt that begins anew would otherwise drag the remains of the one before along. Which are
live at a position is computed from the bytecode, in the usual backward way, and errs on the side
of live.

That two equal keys mean equal behaviour is not believed but tested: tests/model/test_self_check.py
explores small worlds with whole histories in place of keys and reaches the same worlds.
"""

from __future__ import annotations

import dis
from collections.abc import Generator
from enum import Enum
from functools import cache
from types import CodeType, FrameType, FunctionType
from typing import Any, TypeAlias

Key: TypeAlias = tuple[Any, ...]

_ENDS = frozenset({"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"})
_JUMPS_ALWAYS = frozenset({"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
_LOCAL_OPS = frozenset(dis.haslocal)
_JUMP_OPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)

_PLAIN = frozenset((int, str, bytes, FunctionType))
_FROZEN_MAX = 100_000
_frozen: dict[int, tuple[tuple[Any, ...], Key]] = {}  # by id; holds the tuple, so the id stays its


class NotAValueError(TypeError):
    """A local variable that outlives a yield is not an immutable value."""


def generator_key(generator: Generator[Any, Any, Any]) -> Key:
    """Return position and live locals of every frame down the `yield from` chain.

    Raises NotAValueError when a live local is not an immutable value.
    """
    frames = []
    inner: Any = generator
    while inner is not None:
        frame = inner.gi_frame
        assert frame is not None, "an exhausted generator has no key"
        frames.append(_frame_key(frame))
        inner = inner.gi_yieldfrom
    return tuple(frames)


def _frame_key(frame: FrameType) -> Key:
    names = live_names(frame.f_code).get(frame.f_lasti, ())
    local = frame.f_locals
    values = tuple(freeze(name, local[name]) for name in names if name in local)
    bound = tuple(name for name in names if name in local)
    return (frame.f_code, frame.f_lasti, bound, values)


def freeze(name: str, value: object) -> object:
    """Return a hashable that is equal for equal values only; types count, as True is not 1.

    Exceptions are compared by type and fields. Tuples are immutable, so what was made of one is
    remembered by its identity.
    """
    kind = type(value)
    if value is None or kind in _PLAIN:
        return value
    if isinstance(value, tuple):
        known = _frozen.get(id(value))
        if known is None:
            if len(_frozen) >= _FROZEN_MAX:
                _frozen.clear()
            known = value, (kind, *[freeze(name, item) for item in value])
            _frozen[id(value)] = known
        return known[1]
    if isinstance(value, bool | Enum | frozenset):
        return (kind, value)
    if isinstance(value, BaseException):
        fields = sorted(vars(value).items())
        return (kind, *[freeze(f"{name}.{field}", item) for field, item in fields])
    raise NotAValueError(f"local {name!r} is a {kind.__name__} across a yield: {value!r}")


@cache
def live_names(code: CodeType) -> dict[int, tuple[str, ...]]:
    """Return, by bytecode offset, the locals that may be read after the instruction there ended.

    Variables shared with inner functions always count as live.
    """
    instructions = list(dis.get_instructions(code))
    place = {instruction.offset: i for i, instruction in enumerate(instructions)}
    handlers = _handlers(code, instructions, place)
    follow = [_successors(instructions, i, place) for i in range(len(instructions))]
    before: list[frozenset[str]] = [frozenset()] * len(instructions)
    after: list[frozenset[str]] = [frozenset()] * len(instructions)
    changed = True
    while changed:
        changed = False
        for i in reversed(range(len(instructions))):
            caught = _union(before[j] for j in handlers[i])
            leaving = _union(before[j] for j in follow[i]) | caught
            reads, kills = _effect_on_locals(instructions[i])
            # An exception may come before an assignment: what handlers need stays live.
            entering = reads | (leaving - kills) | caught
            if entering != before[i] or leaving != after[i]:
                before[i], after[i], changed = entering, leaving, True
    shared = frozenset(code.co_cellvars) | frozenset(code.co_freevars)
    return {
        instruction.offset: tuple(sorted(after[i] | shared))
        for i, instruction in enumerate(instructions)
    }


def _union(sets: Any) -> frozenset[str]:
    return frozenset().union(*sets)


def _effect_on_locals(instruction: dis.Instruction) -> tuple[frozenset[str], frozenset[str]]:
    if instruction.opcode not in _LOCAL_OPS:
        return frozenset(), frozenset()
    if instruction.opname == "STORE_FAST":
        return frozenset(), frozenset((instruction.argval,))
    names = instruction.argval
    return frozenset(names if isinstance(names, tuple) else (names,)), frozenset()


def _successors(instructions: list[dis.Instruction], i: int, place: dict[int, int]) -> list[int]:
    instruction = instructions[i]
    follow = []
    if instruction.opcode in _JUMP_OPS:
        follow.append(place[instruction.argval])
    ends = instruction.opname in _ENDS or instruction.opname in _JUMPS_ALWAYS
    if not ends and i + 1 < len(instructions):
        follow.append(i + 1)
    return follow


def _handlers(
    code: CodeType, instructions: list[dis.Instruction], place: dict[int, int]
) -> list[list[int]]:
    """Return the exception handlers that cover each instruction."""
    entries: Any = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    return [
        [place[e.target] for e in entries if e.start <= instruction.offset < e.end]
        for instruction in instructions
    ]
