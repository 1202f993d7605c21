"""Our daemon in the place of the real one: the same harness, clients and command line.

The clients are Debian's: libsanlock and the `sanlock` module, which know nothing of whose daemon
answers them.
"""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import ClassVar

from tests.compat.peer import SanlockHost


class OurHost(SanlockHost):
    """One host: a paxoslease daemon in a run directory of its own, and a client of it."""

    program: ClassVar[str] = str(Path(sys.executable).with_name("paxoslease-sanlock"))

    def helper_pids(self) -> list[int]:
        """Return the processes that any thread of the daemon has started."""
        try:
            tasks = list(Path(f"/proc/{self.daemon.pid}/task").iterdir())
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except FileNotFoundError:
            return []  # it is gone


def require_ours() -> None:
    """Raise SkipTest when the daemon's program is not installed beside the running Python."""
    if not Path(OurHost.program).exists():
        raise unittest.SkipTest(f"{OurHost.program} is not installed")
