"""What a random call is, and how it is told so that it can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.daemon import wire
from tests.daemon.calls.sides import Side


@dataclass(frozen=True, slots=True)
class Raw:
    """A request, byte by byte, on the connection of a client, or on one of its own."""

    data: bytes
    client: str = ""
    pid_of: str = ""
    probes: bool = True

    def do(self, side: Side) -> list[str]:
        """Make it."""
        return side.raw(self.data, self.client, self.pid_of, self.probes)

    def __str__(self) -> str:
        header = wire.parse_header(self.data)
        try:
            name = wire.Cmd(header.cmd).name
        except ValueError:
            name = str(header.cmd)
        words = f"flags={header.flags:#x} data={header.data} data2={header.data2}"
        words += f" length={header.length} (of {len(self.data)}) version={header.version:#x}"
        who = f" by {self.client}" if self.client else ""
        who += f" for {self.pid_of}" if self.pid_of else ""
        return f"{name}{who} {words} {_squeezed(self.data[32:])}"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the `sanlock` module."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def do(self, side: Side) -> list[str]:
        """Make it."""
        return side.function(self.name, self.kwargs)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.kwargs.items())})"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line."""

    words: Sequence[bytes]

    def do(self, side: Side) -> list[str]:
        """Make it."""
        return side.command(self.words)

    def __str__(self) -> str:
        return f"sanlock {b' '.join(self.words)!r}"


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a file that become others, without a daemon."""

    name: str
    at: int
    data: bytes
    renews_sum: bool

    def do(self, side: Side) -> list[str]:
        """Make it."""
        return side.damage(self.name, self.at, self.data, renews_sum=self.renews_sum)

    def __str__(self) -> str:
        summed = " with a new sum" if self.renews_sum else ""
        return f"{self.name} at {self.at:#x}: {self.data.hex()}{summed}"


@dataclass(frozen=True, slots=True)
class Reconnect:
    """The end of a client's connection, and a new one."""

    client: str

    def do(self, side: Side) -> list[str]:
        """Make it."""
        return side.reconnect(self.client)

    def __str__(self) -> str:
        return f"reconnect {self.client}"


Call = Raw | Function | Command | Damage | Reconnect


def _squeezed(data: bytes) -> str:
    """Show bytes without long runs of NUL."""
    pieces = [piece for piece in data.split(b"\0" * 8) if piece.strip(b"\0")]
    return " .. ".join(repr(piece.strip(b"\0")) for piece in pieces)
