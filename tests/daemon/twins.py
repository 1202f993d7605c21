"""Both daemons, the real one and ours, asked the same on the same disk: byte for byte.

A request is put to the real daemon, the disk is set back to what it was, and the same bytes go to
ours. What the replies and the disk must have in common is then everything but what `blanked` takes
out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.daemon.daemons import Daemon, Kind
from tests.daemon.line import REPLY_S, Line

MIB: Final = 1 << 20
KINDS: Final[tuple[Kind, Kind]] = ("real", "ours")

_CLEARED: Final = (0x11282016).to_bytes(4, "little")
_REQUEST: Final = (0x08292011).to_bytes(4, "little")  # spec/disk-format.md 5.5


class Seen(NamedTuple):
    """What a request came to: the reply, what became of the connection, and the disk after it."""

    reply: bytes
    end: str
    disk: bytes


class Twins:
    """One daemon of each kind; a context manager that ends them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemons: dict[Kind, Daemon] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for kind in KINDS:
                daemon = Daemon(kind, self.directory / kind, f"host-{kind}", ("-o", "1"))
                self.daemons[kind] = stack.enter_context(daemon)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, kind: Kind, data: bytes, limit_s: float = REPLY_S) -> tuple[bytes, str]:
        """Ask one of them on a connection of its own."""
        line = Line(str(self.daemons[kind].socket_path))
        try:
            return line.ask(data, limit_s)
        finally:
            line.close()

    def seen(self, data: bytes, path: Path) -> dict[Kind, Seen]:
        """Ask both, each on the disk as it is now; it is left as ours has made it."""
        before = now = path.read_bytes()
        found: dict[Kind, Seen] = {}
        for kind in KINDS:
            if now != before:
                restore(path, before, now)
            reply, end = self.ask(kind, data)
            now = path.read_bytes()
            found[kind] = Seen(reply, end, now)
        return found

    def same(
        self, data: bytes, path: Path, blanked: Callable[[bytes], bytes] = lambda disk: disk
    ) -> bytes:
        """Ask both, compare everything, and return the reply."""
        found = self.seen(data, path)
        real, ours = found["real"], found["ours"]
        assert ours.reply.hex(" ", 4) == real.reply.hex(" ", 4)
        assert ours.end == real.end
        assert len(ours.disk) == len(real.disk)
        if ours.disk != real.disk:
            different = _different(blanked(_defined(real.disk)), blanked(_defined(ours.disk)))
            assert not different, f"the disks differ in the sectors {different}"
        return ours.reply


def restore(path: Path, content: bytes, now: bytes) -> None:
    """Make a file what it was, writing only where it differs: it is mostly holes."""
    with path.open("r+b") as file:
        file.truncate(len(content))
        for at in range(0, len(content), MIB):
            if now[at : at + MIB] != content[at : at + MIB]:
                os.pwrite(file.fileno(), content[at : at + MIB], at)


def _defined(disk: bytes) -> bytes:
    """Take out when resources were cleared, and the padding that the real one leaves undefined."""
    defined = bytearray(disk)
    for magic, start, end in ((_CLEARED, 192, 200), (_REQUEST, 20, 24)):
        at = disk.find(magic)
        while at >= 0:
            if at % 512 == 0:
                defined[at + start : at + end] = bytes(end - start)
            at = disk.find(magic, at + 4)
    return bytes(defined)


def _different(one: bytes, two: bytes) -> list[int]:
    if one == two:
        return []
    sectors = range(0, len(one), 512)
    return [at // 512 for at in sectors if one[at : at + 512] != two[at : at + 512]][:8]
