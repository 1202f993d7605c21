"""A lockspace that fails: its users are asked to stop, then killed, before others may go on.

The ladder, for each process that holds a lease of the failed lockspace:

  renewed_us + fail                  killpath if it has one, else SIGTERM once a second
  renewed_us + fail + grace          SIGKILL once a second
  renewed_us + fail + fire time-out  the watchdog resets the host

All moments are counted from the last renewal, not from the start of the recovery: a delayed host
skips what there is no time for. A removal or forced shutdown starts at SIGKILL. When no process is
left the watchdog is disarmed, nothing else ends the recovery; a process that cannot be killed is
left to the watchdog.

`step(ladder, event)` is the whole decision; `recover` is the loop around it.

Source: spec/timing-and-recovery.md 3; rules M2, M15.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeAlias

from paxoslease.errors import ConfigError
from paxoslease.protocol.effects import (
    Notify,
    Now,
    PetWatchdog,
    Protocol,
    RunKillpath,
    Signal,
    Sleep,
)
from paxoslease.timing import KILL_GRACE_DEFAULT_S, SECOND_US, Timing

SIGKILL = 9
SIGTERM = 15
ACTIONS_MAX = 100
ACTION_PAUSE_US = SECOND_US
PASS_US = 200_000  # how often the ladder is looked at


class Killpath(Enum):
    """How far a process is with its killpath."""

    NONE = 0
    READY = 1
    STARTED = 2


class Process(NamedTuple):
    """A process that holds leases, as it was registered.

    process: the number by which the driver tracks it, above 0 (M15).
    may_term, may_kill: False where its user said that it must not get SIGTERM, SIGKILL; the other
    signal is sent instead, none if it must not get either.
    """

    process: int
    killpath: Killpath = Killpath.NONE
    may_term: bool = True
    may_kill: bool = True
    actions: int = 0
    acted_us: int = 0


class Ladder(NamedTuple):
    """The state of one lockspace's recovery. All times are on the own clock.

    renewed_us: the timestamp of the last acknowledged renewal. is_forced: removed or shut down.
    is_used: somebody without leases uses the lockspace, it must not be cleared yet.
    """

    lockspace: bytes
    renewed_us: int
    fail_us: int
    grace_us: int
    processes: tuple[Process, ...] = ()
    is_forced: bool = False
    is_used: bool = False

    @property
    def kill_at_us(self) -> int:
        """Return the moment from which on processes get SIGKILL."""
        return self.renewed_us + self.fail_us + self.grace_us

    @property
    def is_clear(self) -> bool:
        """Tell whether nobody is left that a reset of the host would have to stop."""
        return not self.processes and not self.is_used


class Tick(NamedTuple):
    """Time has passed."""

    now_us: int


class Gone(NamedTuple):
    """A process ended, or gave back all leases of the lockspace: it is left alone from now on."""

    process: int


class NoKillpath(NamedTuple):
    """A killpath program could not be started."""

    process: int


class LateRenewal(NamedTuple):
    """A renewal that was under way was acknowledged after all."""

    renewed_us: int


class Forced(NamedTuple):
    """The lockspace is removed, or the daemon shuts down, whoever holds leases."""


class Used(NamedTuple):
    """A user without leases begins or ends to need the lockspace."""

    is_used: bool


Event: TypeAlias = Tick | Gone | NoKillpath | LateRenewal | Forced | Used
Action: TypeAlias = Signal | RunKillpath


class GivenUp(NamedTuple):
    """Notified once for a process that gets no more signals: the watchdog must deal with it."""

    process: int


class Cleared(NamedTuple):
    """Notified when nobody is left and the watchdog is disarmed."""


def begin(
    lockspace: bytes,
    renewed_us: int,
    timing: Timing,
    processes: tuple[Process, ...],
    *,
    is_forced: bool = False,
    grace_s: int = KILL_GRACE_DEFAULT_S,
) -> Ladder:
    """Return the ladder at the start of a recovery. Raises ConfigError for a process number <= 0.

    Signals to number 0 or below would go to whole process groups, the daemon's own among them.
    """
    for process in processes:
        if process.process <= 0:
            raise ConfigError("process", f"{process.process} is no number of a process")
    grace_us = timing.kill_grace_us(grace_s)
    return Ladder(lockspace, renewed_us, timing.fail_us, grace_us, processes, is_forced)


def step(ladder: Ladder, event: Event) -> tuple[Ladder, tuple[Action, ...]]:
    """Return the ladder after an event, and what is to be done now."""
    match event:
        case Tick(now_us):
            return _tick(ladder, now_us)
        case Gone(process):
            left = tuple(p for p in ladder.processes if p.process != process)
            return ladder._replace(processes=left), ()
        case NoKillpath(process):
            return ladder._replace(processes=_without_killpath(ladder, process)), ()
        case LateRenewal(renewed_us):
            return ladder._replace(renewed_us=max(ladder.renewed_us, renewed_us)), ()
        case Forced():
            return ladder._replace(is_forced=True), ()
        case Used(is_used):
            return ladder._replace(is_used=is_used), ()


def _without_killpath(ladder: Ladder, process: int) -> tuple[Process, ...]:
    """Return the processes, with SIGTERM at once for the one whose killpath did not start."""
    return tuple(
        p._replace(killpath=Killpath.NONE, actions=p.actions - 1, acted_us=0)
        if p.process == process and p.killpath is Killpath.STARTED
        else p
        for p in ladder.processes
    )


def _tick(ladder: Ladder, now_us: int) -> tuple[Ladder, tuple[Action, ...]]:
    processes: tuple[Process, ...] = ()
    actions: tuple[Action, ...] = ()
    for process in ladder.processes:
        action = _action(ladder, process, now_us)
        if action is not None:
            actions = (*actions, action)
            process = process._replace(actions=process.actions + 1, acted_us=now_us)
            if isinstance(action, RunKillpath):
                process = process._replace(killpath=Killpath.STARTED)
        processes = (*processes, process)
    return ladder._replace(processes=processes), actions


def _action(ladder: Ladder, process: Process, now_us: int) -> Action | None:
    """Return what to do to a process now: at most one thing per second and ACTIONS_MAX in all.

    The first SIGKILL waits for no pause: with a short fire time-out there is less than a second.
    """
    if process.actions >= ACTIONS_MAX:
        return None
    is_first_kill = process.acted_us < ladder.kill_at_us <= now_us
    if process.actions and now_us - process.acted_us < ACTION_PAUSE_US and not is_first_kill:
        return None
    if ladder.is_forced or now_us >= ladder.kill_at_us:
        wanted, instead, may, may_instead = SIGKILL, SIGTERM, process.may_kill, process.may_term
    elif process.killpath is Killpath.READY:
        return RunKillpath(process.process)
    elif process.killpath is Killpath.STARTED:
        return None  # it has been told; the time until SIGKILL is its own
    else:
        wanted, instead, may, may_instead = SIGTERM, SIGKILL, process.may_term, process.may_kill
    if may:
        return Signal(process.process, wanted)
    return Signal(process.process, instead) if may_instead else None


class Recovery:
    """A recovery that is under way; changed only by the thread that runs it.

    Others report what they see with `tell`, through that thread.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder

    def tell(self, event: Event) -> tuple[Action, ...]:
        """Take in an event; returns what is to be done."""
        self.ladder, actions = step(self.ladder, event)
        return actions


def recover(recovery: Recovery) -> Protocol[None]:
    """Climb the ladder until nobody is left, then disarm the watchdog. Notifies GivenUp, Cleared.

    It never ends while a process is left: then the watchdog, which is not petted any more, ends
    everything. Raises WatchdogError when disarming fails: the host will be reset.
    """
    given_up: tuple[int, ...] = ()
    while not recovery.ladder.is_clear:
        now_us: int = yield Now()
        actions = recovery.tell(Tick(now_us))
        index = 0
        while index < len(actions):
            action = actions[index]
            index += 1
            worked: bool = yield action
            if not worked:
                number = action.process
                failed = NoKillpath(number) if isinstance(action, RunKillpath) else Gone(number)
                recovery.tell(failed)
        lost = tuple(
            p.process
            for p in recovery.ladder.processes
            if p.actions >= ACTIONS_MAX and p.process not in given_up
        )
        index = 0
        while index < len(lost):
            yield Notify(GivenUp(lost[index]))
            index += 1
        given_up = (*given_up, *lost)
        if not recovery.ladder.is_clear:
            yield Sleep(PASS_US)
    yield PetWatchdog(recovery.ladder.lockspace, 0, 0)
    yield Notify(Cleared())
