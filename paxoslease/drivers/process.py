"""Start a process that owns its locks: registered by itself, and only then its program.

The daemons know an owner as the process that connected, so the connection must be made by the
future guest, between fork and exec. Nothing of Python may run there in a process with threads, so
the child is `launcher.py`: it opens the driver, registers, reports, waits until its supervisor has
acquired the locks in its name, and becomes the program with the connection left open. If the
supervisor goes away before that, so does the child, and with it what was acquired.

Source: spec/lock-drivers.md 1 and 3.2.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any, Final, NamedTuple
from uuid import UUID

from paxoslease.drivers import launcher
from paxoslease.drivers.base import FailureAction, Owner
from paxoslease.drivers.errors import StartFailed
from paxoslease.errors import PaxosleaseError

REGISTER_LIMIT_S: Final = 30.0


class Guest(NamedTuple):
    """What an owner is but for its pid, which is known when it runs."""

    uuid: UUID
    name: str
    id: int = 1
    uri: str = ""
    notify: str = ""

    def owner(self, pid: int) -> Owner:
        """Return the owner with this pid."""
        return Owner(self.uuid, self.name, self.id, pid, self.uri, self.notify)


class Order(NamedTuple):
    """What a supervisor tells the child: how to register and what to become.

    foreground_of: the process whose terminal it takes over; 0 for none.
    """

    driver: str
    options: Mapping[str, Any]
    guest: Guest
    action: FailureAction
    program: str
    arguments: Sequence[str]
    foreground_of: int = 0


class OwnerProcess:
    """A child that has registered as owner and waits for `go`. Raises what registering raised.

    popen: the child; whoever starts it also waits for its end. owner: by which locks are acquired.
    """

    def __init__(self, order: Order, *, environment: Mapping[str, str] | None = None) -> None:
        self._driver = order.driver
        self._channel, theirs = connection.Pipe()
        try:
            command = [sys.executable, "-I", launcher.__file__, str(theirs.fileno())]
            # A process group of its own: a signal of the terminal reaches the guest once.
            self.popen = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, process_group=0
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self.owner = order.guest.owner(self.popen.pid)
        try:
            self._tell(sys.path)
            self._tell(order)
            self._await_registered()
        except BaseException:
            self.abandon()
            raise

    def _tell(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError:
            raise StartFailed(self._driver, "it ended at once") from None

    def _await_registered(self) -> None:
        if not self._channel.poll(REGISTER_LIMIT_S):
            raise StartFailed(self._driver, f"not registered within {REGISTER_LIMIT_S:.0f} s")
        try:
            answer = self._channel.recv()
        except (EOFError, OSError):
            raise StartFailed(self._driver, "it ended before it was registered") from None
        if isinstance(answer, PaxosleaseError):
            raise answer

    def go(self) -> None:
        """Let the child become its program; its locks have been acquired. Raises StartFailed."""
        self._tell(True)
        self._channel.close()

    def abandon(self) -> None:
        """End the child before it has become anything; what was acquired for it goes with it."""
        self._channel.close()
        self.popen.kill()
        self.popen.wait()
