"""Local states of processes: small integers, and what each answer makes of them.

A process is a generator. Its local state is where it stands and what it still knows
(`keys.py`); the explorer names local states by number and never holds a generator per world.
A generator cannot be copied: to try another answer the first history that led to a local state is
replayed from the beginning. Callers remember the transitions, so generator code runs once for
every local state and answer, however many worlds contain them.

Effects whose answer depends on nothing but the process (the clock that stands still, random
numbers, the own membership) are answered on the spot and never seen by the search.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any, Final, NamedTuple, TypeAlias

from paxoslease.simulation.explorer.keys import generator_key

Process: TypeAlias = Generator[Any, Any, None]

DONE: Final = "done"
_GENERATORS_KEPT_MAX: Final = 20_000


class Throw(NamedTuple):
    """An answer that is an exception: `kind(*fields)` is thrown into the process."""

    kind: type[Exception]
    fields: tuple[Any, ...]


class Mark(NamedTuple):
    """What a local state and those after it carry, or only that one if not `stays`."""

    value: int
    stays: bool


class Given(NamedTuple):
    """How an effect is answered on the spot.

    mark: the mark from here on, None for the same. ends: it ends with the next open answer.
    """

    answer: Any = None
    mark: Mark | None = None
    ends: bool = False


NO_MARK: Final = Mark(0, False)


class LocalKey(NamedTuple):
    """What makes a local state: where it began, position and live locals or DONE, its mark."""

    number: int
    state: Hashable
    mark: Mark


class Origin(NamedTuple):
    """How a local state was first reached: from which, by which answer; -1 at a beginning."""

    parent: int
    answer: Any


Resolve: TypeAlias = Callable[[int, Any], "Given | None"]
"""Called with the number of the process's beginning and an effect; None: the search answers it."""


class LocalStates:
    """All local states seen so far, of all processes of a search, by number p.

    effect[p]: what it waits for, DONE at the end. mark[p]: see Mark. begun[p]: the number of the
    beginning that it descends from, in the order of the calls of `begin`. keys[key_of[p]]: its
    key. runs: how often generator code ran.

    With `histories` two local states are equal only if all answers that led to them are (the
    self-check of the key); keys then still are the ordinary keys.
    """

    def __init__(self, resolve: Resolve, *, histories: bool = False) -> None:
        self.effect: list[Any] = []
        self.mark: list[Mark] = []
        self.begun: list[int] = []
        self.key_of: list[int] = []
        self.keys: list[LocalKey] = []
        self.runs = 0
        self._resolve = resolve
        self._histories = histories
        self._numbers: dict[LocalKey, int] = {}
        self._ids: dict[Hashable, int] = {}
        self._origins: list[Origin] = []
        self._starters: list[Callable[[], Process]] = []
        self._waiting: dict[int, Process] = {}

    def begin(self, start: Callable[[], Process]) -> int:
        """Return the local state in which a new process waits for its first open effect."""
        number = len(self._starters)
        self._starters.append(start)
        return self._go_on(start(), number, Origin(-1, None))

    def advance(self, p: int, answer: Any) -> int:
        """Return the local state that follows when the effect of `p` is answered."""
        process = self._waiting.pop(p, None) or self._replay(p)
        return self._go_on(process, self.begun[p], Origin(p, answer))

    def _go_on(self, process: Process, number: int, origin: Origin) -> int:
        before = NO_MARK if origin.parent < 0 else self.mark[origin.parent]
        mark = before if before.stays else NO_MARK
        effect, mark = self._run(process, number, origin.answer, mark)
        position: Hashable = DONE if effect is DONE else generator_key(process)
        content = LocalKey(number, position, mark)
        key = self._numbers.setdefault(content, len(self.keys))
        if key == len(self.keys):
            self.keys.append(content)
        name: Hashable = (origin.parent, origin.answer, number) if self._histories else key
        p = self._ids.setdefault(name, len(self.effect))
        if p == len(self.effect):
            self.effect.append(effect)
            self.mark.append(mark)
            self.begun.append(number)
            self.key_of.append(key)
            self._origins.append(origin)
        if effect is not DONE:
            self._waiting[p] = process
            if len(self._waiting) > _GENERATORS_KEPT_MAX:
                del self._waiting[next(iter(self._waiting))]
        return p

    def _run(
        self, process: Process, number: int, answer: Any, mark: Mark = NO_MARK
    ) -> tuple[Any, Mark]:
        """Answer the open effect and those behind it, up to the next open one."""
        self.runs += 1
        try:
            effect = _answer(process, answer)
            while True:
                given = self._resolve(number, effect)
                if given is None:
                    return effect, mark
                mark = given.mark or mark
                if given.ends:
                    mark = mark._replace(stays=False)
                effect = _answer(process, given.answer)
        except StopIteration:
            return DONE, mark

    def _replay(self, p: int) -> Process:
        number = self.begun[p]
        answers = []
        while p >= 0:
            answers.append(self._origins[p].answer)
            p = self._origins[p].parent
        process = self._starters[number]()
        for answer in reversed(answers):
            self._run(process, number, answer)
        return process


def _answer(process: Process, answer: Any) -> Any:
    if isinstance(answer, Throw):
        return process.throw(answer.kind(*answer.fields))
    return process.send(answer)
