"""Handing memberships over to a successor: to another image of this process, or another process.

Before exec everything that does I/O comes to rest: leases' operations end, or are cancelled where
they wait, and renewals stop between two of them. Then nothing is in flight, so the states taken now
are exact, and the new image does not begin beside writes of the old. Guards go on: a membership
whose time runs out meanwhile fails as ever. After exec, or a crash, `resume_membership` goes on
with what was written down.

Why the leases may be kept is argued in protocol/adoption.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from paxoslease.disk.layout import Area
from paxoslease.engine.core import engine
from paxoslease.engine.host import Membership
from paxoslease.engine.runner import Rest, Runner
from paxoslease.engine.state import MembershipState, boot_identity
from paxoslease.engine.watchdog_base import Watchdog
from paxoslease.errors import BadState
from paxoslease.protocol.adoption import Legacy
from paxoslease.protocol.delta import Held, Lockspace
from paxoslease.protocol.membership import Member


class Quiet:
    """An attempt to bring all I/O of this process to rest; whoever makes one ends it, always.

    Thread-safe: `end` may come while `begin` still waits, or before it has begun. Then nothing
    stays at rest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held while anything is waited for
        self._rests: list[tuple[Runner, Rest]] = []
        self._is_over = False

    def begin(self, memberships: Sequence[Membership], timeout_s: float) -> tuple[str, ...]:
        """Bring everything to rest; return what keeps it from that.

        Nothing returned: everything stands still until `end`, and `Membership.snapshot` tells the
        whole state. Else everything goes on, but for acquisitions that waited: they were cancelled.

        Blocks for `timeout_s` s at most, which should be short beside io_timeout: no renewal begins
        meanwhile. One at a time; who calls it hands over no new work before.
        """
        owner = engine()
        until = time.monotonic() + timeout_s
        unrest: list[str] = []
        owner.requests.cancel_all()
        for what, runner, holds_timers in (
            ("operations", owner.requests, False),
            ("renewals", owner.renewals, True),
        ):
            if not self._stop(runner, until, holds_timers=holds_timers):
                unrest.append(f"{what} are still under way, or their disk does not answer")
                break
        unrest += (f"{_text(m.lockspace)}: {m.unrest}" for m in memberships if m.unrest)
        if not unrest and not owner.requests.is_idle:
            unrest.append("something was begun meanwhile")
        with self._lock:
            if self._is_over:
                unrest = ["it is not wanted any more"]
            owner.is_resting = not unrest
        if unrest:
            self.end()
        return tuple(unrest)

    def _stop(self, runner: Runner, until: float, *, holds_timers: bool) -> bool:
        """Have a runner stand still; False when it does not in time."""
        with self._lock:
            if self._is_over:
                return True
            rest = runner.rest(holds_timers=holds_timers)
            self._rests.append((runner, rest))
        return rest.await_reached(until - time.monotonic())

    def end(self) -> None:
        """Let everything go on: nothing is handed over after all."""
        with self._lock:
            self._is_over = True
            if self._rests:
                engine().is_resting = False
            while self._rests:
                runner, rest = self._rests.pop()
                runner.end_rest(rest)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def resume_membership(
    state: MembershipState,
    watchdog: Watchdog,
    on_event: Callable[[Any], None] | None = None,
) -> Membership:
    """Return a membership that goes on with what a predecessor left, once it is joined.

    Its leases are restored and its processes guarded before `start_join`: if the membership turns
    out not to be good any more it counts as failed, and they are stopped. Whoever calls this holds
    the lock that the predecessor held all its life. Never blocks: the file is opened by
    `start_join`, when the guard watches over the time that this takes.

    Raises BadState (another boot).
    """
    here = boot_identity()
    if state.boot != here:
        raise BadState("state of a membership", "boot", here, state.boot)
    owner = engine()
    file = owner.files.promise(state.path)
    space = Lockspace(state.name, Area(state.path, state.offset, state.sizes))
    member = Member(space, state.host_id, state.host_name, state.timing)
    legacy = Legacy(Held(state.leader, state.renewed_us, state.certain), state.is_final)
    return Membership(owner, member, file, watchdog, on_event, legacy)
