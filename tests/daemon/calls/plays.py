"""Plays of random calls: which are drawn, what is done between them, and what differs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from tests.daemon import areas
from tests.daemon.calls.calls import Call, Damage, Raw
from tests.daemon.calls.drawing import MIB, Draw
from tests.daemon.calls.functions import Functions
from tests.daemon.calls.known import known
from tests.daemon.calls.lines import Lines
from tests.daemon.calls.members import CLIENTS, IGNORED, SPACE, Members
from tests.daemon.calls.requests import Requests
from tests.daemon.calls.sides import Ended, Sides
from tests.daemon.wire import Cmd

_WORLD_CALLS: Final = 150  # how many are made on the same files
_FIELDS: Final = (0, 4, 8, 12, 16, 24, 32, 40, 48, 56, 104, 128, 136, 152, 160, 168, 172, 174, 176)
# After these both daemons still have the same state.
_STATELESS: Final = frozenset(
    {"restrictions", "order", "several leases", "late value block", "far host id"}
)


class Finding(NamedTuple):
    """A call on which the two differ: why, if that is known, and how."""

    number: int
    call: Call
    why: str
    lines: Sequence[str]

    def __str__(self) -> str:
        return "\n".join([f"call {self.number}: {self.call}", *("    " + x for x in self.lines)])


class Play:
    """Calls that nobody has to have joined a lockspace for, on files that are damaged at times."""

    clients: ClassVar[Sequence[str]] = ()

    def __init__(self, draw: Draw, sides: Sides) -> None:
        self.draw = draw
        self.sides = sides
        self.requests = Requests(draw)
        self._number = 0

    def prepare(self) -> None:
        """Make both sides ready, after each start."""

    def draw_call(self) -> Call:
        """Draw a call of this play's kind."""
        return self.requests.lonely()

    def next(self) -> Call:
        """Return the next call."""
        self._number += 1
        if self._number % _WORLD_CALLS == 0:
            self.sides.fresh_files()
            self.requests.forget()
            self.draw.begin_world()
        return (self._damage() if self.draw.chance(0.04) else None) or self.draw_call()

    def after(self, call: Call) -> None:
        """Wait until a call has done everything."""

    def differed(self, why: str, disk: Sequence[str]) -> None:
        """Make both sides alike after a difference."""
        if disk:
            self.sides.equalise()

    def _damage(self) -> Damage | None:
        """Draw a damage of a sector that is the same on both sides."""
        draw = self.draw
        name = draw.one(("one", "two", "wide"))
        sector = draw.one((0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 2002)) * draw.one((512, 512, 4096))
        at = draw.one((0, 1, 2, 3, 4, 8)) * MIB + sector
        size = draw.one((1, 2, 4, 8))
        values = (bytes(size), draw.random.randbytes(size), b"\xff" * size, b"\1" + bytes(size - 1))
        damage = Damage(name, at + draw.one(_FIELDS), draw.one(values), draw.chance(0.7))
        one, other = (
            areas.read(side.directory / name, at, 512) for side in self.sides.sides.values()
        )
        return damage if one == other else None


class ModulePlay(Play):
    """The same by way of Debian's `sanlock` module."""

    def __init__(self, draw: Draw, sides: Sides) -> None:
        super().__init__(draw, sides)
        self._functions = Functions(draw)

    def draw_call(self) -> Call:
        """Draw a function."""
        return self._functions.lonely()


class ClientPlay(Play):
    """The same by way of `sanlock client`, each program with its own daemon."""

    def __init__(self, draw: Draw, sides: Sides) -> None:
        super().__init__(draw, sides)
        self.lines = Lines(draw)

    def draw_call(self) -> Call:
        """Draw a command line."""
        return self.lines.client()


class DirectPlay(ClientPlay):
    """`sanlock direct`, without a daemon."""

    def draw_call(self) -> Call:
        """Draw a command line."""
        return self.lines.direct()


class JoinedPlay(Play):
    """Three clients of a daemon that has joined a lockspace, and their leases."""

    clients: ClassVar[Sequence[str]] = CLIENTS

    def __init__(self, draw: Draw, sides: Sides) -> None:
        super().__init__(draw, sides)
        self._members = Members(draw)
        sides.ignored = IGNORED

    def prepare(self) -> None:
        """Join."""
        formats = self._members.formats()
        self.sides.both(lambda side: side.join(SPACE, formats))
        self.sides.changed()

    def next(self) -> Call:
        """Return the next call, knowing who holds what."""
        ours = self.sides.sides["ours"]
        self._members.held = {name: ours.holds(name) for name in CLIENTS}
        return self._members.next()

    def after(self, call: Call) -> None:
        """Orphans are released after the reply."""
        if isinstance(call, Raw) and call.data[8] == Cmd.RELEASE:
            self.sides.both(lambda side: side.settle())

    def differed(self, why: str, disk: Sequence[str]) -> None:
        """Begin anew, unless what is held is the same."""
        if disk or why not in _STATELESS:
            self.sides.start()
            self.prepare()


PLAYS: Final[dict[str, type[Play]]] = {
    "lonely": Play,
    "module": ModulePlay,
    "client": ClientPlay,
    "direct": DirectPlay,
    "joined": JoinedPlay,
}


def play(kind: str, seed: int, calls: int, base: Path) -> list[Finding]:
    """Make calls of a kind on both sides; return where the two differ."""
    found: list[Finding] = []
    with Sides(base, PLAYS[kind].clients) as sides:
        playing = PLAYS[kind](Draw(seed, sides.here), sides)
        playing.prepare()
        for number in range(calls):
            call = playing.next()
            try:
                finding = _made(playing, number, call)
            except Ended as error:
                # The real one reads and writes beyond its buffers at times.
                why = "the real daemon ended" if error.kind == "real" else ""
                finding = Finding(number, call, why, [str(error)])
                sides.start()
                playing.prepare()
            if finding is not None:
                found.append(finding)
    return found


def _made(playing: Play, number: int, call: Call) -> Finding | None:
    """Make a call on both sides and compare; after a difference both are made alike again."""
    sides = playing.sides
    real, ours = sides.both(call.do)
    playing.after(call)
    disk = sides.disk_differences([name for name in sides.changed() if name != "space"])
    if real == ours and not disk:
        return None
    why = known(call, real, ours, disk)
    shown = [line for line in difflib.ndiff(real, ours) if not line.startswith("?")]
    finding = Finding(number, call, why, [*shown, *(f"disk {line}" for line in disk)])
    playing.differed(why, disk)
    return finding
