"""The engine of this process: what all of its memberships share.

Its threads start with the first use and live as long as the process. A child after fork begins
anew, since it has none of them.
"""

from __future__ import annotations

import os
import threading
from typing import TypeVar

from paxoslease.engine.files import Files
from paxoslease.engine.runner import Runner
from paxoslease.errors import LockspacePresent
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.membership import Member

T = TypeVar("T")


class Engine:
    """What all memberships of this process share: three runners and the open files."""

    def __init__(self) -> None:
        self.files = Files()
        self.renewals = Runner("paxoslease-renew", depth=1024, per_file=16)
        self.requests = Runner("paxoslease-request", depth=512, per_file=32)
        self.guards = Runner("paxoslease-guard")
        self.is_resting = False  # everything stands still, to be handed over (adoption.py)
        self._lock = threading.Lock()
        self._members: set[tuple[str, int, int]] = set()

    def run_once(self, protocol: Protocol[T], *paths: str, timeout_s: float | None = None) -> T:
        """Run a protocol without a membership on some paths, and wait for it."""
        held = [self.files.hold(path) for path in paths]
        try:
            operation = self.requests.start(protocol, {file.path: file for file in held})
            try:
                return operation.result(timeout_s)
            except BaseException:
                # Interrupted, or out of time: what is in flight needs its file until it ends.
                operation.cancel()
                operation.exception()
                raise
        finally:
            for path in paths:
                self.files.drop(path)

    def enter(self, member: Member) -> None:
        """Note a membership. Raises LockspacePresent when this process has it already."""
        with self._lock:
            if _key(member) in self._members:
                raise LockspacePresent(member.space.name, "joined already by this process")
            self._members.add(_key(member))

    def leave(self, member: Member) -> None:
        """Forget a membership."""
        with self._lock:
            self._members.discard(_key(member))


def _key(member: Member) -> tuple[str, int, int]:
    return (*member.space.area[:2], member.host_id)


_engine: list[Engine] = []
_engine_lock = threading.Lock()


def engine() -> Engine:
    """Return the engine of this process; its threads start with the first use."""
    with _engine_lock:
        if not _engine:
            _engine.append(Engine())
        return _engine[0]


def _forget_engine() -> None:
    """Begin anew in a child after fork, which has none of the threads."""
    global _engine_lock
    _engine_lock = threading.Lock()
    _engine.clear()


os.register_at_fork(after_in_child=_forget_engine)
