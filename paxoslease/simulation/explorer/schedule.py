"""One chosen order of steps in an explored world: a scenario in which each step is named.

Commands, one a line, hosts named A, B, C for ids 1, 2, 3:

    A until WHAT    go on until A is about to do WHAT, or its attempt ends, or it cannot go on
    A does          one step
    A lands         a write of A that timed out reaches the disk
    A times out | A crashes | A rejoins
    A chooses N     what a failed attempt of the original was for: 0 exclusive, 1 shared

WHAT is "read leader", "read area", "read sector", "look at owner", "write own", "write leader",
"idle" (between two attempts) or "owner". What cannot be done is left out and said so, so the same
schedule can be given to hosts that follow other rules.
"""

from __future__ import annotations

from paxoslease.simulation.explorer.lease_world import LeaseWorld
from paxoslease.simulation.explorer.processes import (
    BALLOT,
    BEYOND,
    CHOOSE,
    CRASHED,
    DELTA,
    LANDED,
    OBSERVE,
    READ,
    WRITE,
)
from paxoslease.simulation.explorer.values import Step

_STEPS_MAX = 200
_FAULTS = {
    "times out": "write times out",
    "crashes": "crash",
    "rejoins": "rejoin",
    "lands": "late write lands",
}
_PENDING = {
    BALLOT: "read area",
    OBSERVE: "look at owner",
    DELTA: "look at owner",
    LANDED: "wait for its write",
    CHOOSE: "choose",
    CRASHED: "rejoin",
    BEYOND: "leave the bounds",
}


class Schedule:
    """A world and what was done to get there; `log` has it in words, `bad` what was violated."""

    def __init__(self, model: LeaseWorld) -> None:
        self.model = model
        self.world = model.initial()
        self.log: list[str] = []
        self.bad: list[str] = []

    def run(self, command: str) -> None:
        """Do what one command says. Raises ValueError for one that is not understood."""
        self.log.append(f"{command}:")
        name, _, rest = command.partition(" ")
        host_id = "ABCDEFGHI".find(name) + 1
        if host_id not in self.model.hosts or len(name) != 1:
            raise ValueError(f"no such host: {command!r}")
        if rest == "does":
            self._does(host_id)
        elif rest.startswith("until "):
            self._until(host_id, rest.removeprefix("until "))
        elif rest in _FAULTS:
            self._take(host_id, _FAULTS[rest])
        elif rest.startswith("chooses "):
            self._take(host_id, f"choose {int(rest.removeprefix('chooses '))}")
        else:
            raise ValueError(f"not understood: {command!r}")

    def pending(self, host_id: int) -> str:
        """Return what a host is about to do."""
        p = self.model.local(self.world, host_id)
        op = self.model.ops[p]
        if p in self.model.idle and op.kind != CRASHED:
            return "idle"
        if op.owner:
            return "owner"
        if op.kind == WRITE:
            return "write own" if op.sector else "write leader"
        if op.kind == READ:
            return "read sector" if op.sector else "read leader"
        return _PENDING.get(op.kind, "end")

    def owners(self) -> str:
        """Return who owns the lease, in words."""
        owners = self.model.owners(self.world)
        return " and ".join(f"{chr(64 + h)} (version {v})" for h, v in owners) or "nobody"

    def _does(self, host_id: int) -> bool:
        steps = [s for s in self.model.calm_steps(self.world) if s.host_id == host_id]
        if len(steps) != 1:
            self.log.append(f"    cannot go on: about to {self.pending(host_id)}")
            return False
        self._apply(steps[0])
        return True

    def _until(self, host_id: int, what: str) -> None:
        for count in range(_STEPS_MAX):
            pending = self.pending(host_id)
            if pending == what or (count and pending in ("idle", "owner")):
                break
            if not self._does(host_id):
                break
        else:
            raise AssertionError(f"{chr(64 + host_id)} never comes to {what}")
        self.log.append(f"    now: {self.pending(host_id)}")

    def _take(self, host_id: int, action: str) -> None:
        steps = self.model.steps(self.world)
        found = [s for s in steps if s.host_id == host_id and s.action == action]
        if found:
            self._apply(found[0])
        else:
            self.log.append(f"    not possible: about to {self.pending(host_id)}")

    def _apply(self, step: Step) -> None:
        self.log.append(f"    {self.model.words_of_step(self.world, step)}")
        self.bad.extend(what for what in step.bad if what not in self.bad)
        self.world = step.world
