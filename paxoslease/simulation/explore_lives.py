"""What the processes of an explored world do all their life: acquire a lease, release it, again.

A `Program` is what one kind of host runs; `ours` are the production generators, `original.py` has
the other. The loop around them tells the search by Notify when it owns the lease. A process counts
as owner from the return of its acquire until the first effect of its release is answered: nobody
can tell a release that was called late from one that was called early and is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any, NamedTuple

from paxoslease.errors import PaxosleaseError
from paxoslease.protocol import leases
from paxoslease.protocol.disks import Claim
from paxoslease.protocol.effects import Notify, Protocol


class Granted(NamedTuple):
    """The process owns version `lver` from here on."""

    lver: int


class Ended(NamedTuple):
    """An attempt or a release ended without success, with the error of that name."""

    error: str


class Choose(NamedTuple):
    """Ask for any int from 0 to `below` - 1: the search tries all."""

    below: int


class Program(NamedTuple):
    """What one kind of host runs.

    acquire: returns a value with an attribute `lver`, or raises PaxosleaseError.
    release: takes that value; returns None or an error.
    fail_shared: what a shared attempt leaves behind when it fails; None: is not explored.
    """

    name: str
    acquire: Callable[[Claim], Protocol[Any]]
    release: Callable[[Any], Protocol[PaxosleaseError | None]]
    fail_shared: Callable[[Claim], Protocol[None]] | None = None


def ours(module: ModuleType = leases) -> Program:
    """Return the program of our hosts, with `module` in place of protocol.leases."""
    return Program("ours", module.acquire_exclusive, module.release)


def life(program: Program, claim: Claim, attempts: int) -> Generator[Any, Any, None]:
    """Acquire and release for ever, or at most `attempts` times if that is not 0."""
    left = attempts or -1
    while left:
        left = max(-1, left - 1)
        lease: Any = None
        failed = ""
        try:
            lease = yield from program.acquire(claim)
        except PaxosleaseError as error:
            failed = type(error).__name__
        if not failed:
            yield Notify(Granted(lease.lver))
            refusal = yield from program.release(lease)
            failed = type(refusal).__name__ if refusal is not None else ""
            if failed:
                yield Notify(Ended(failed))
            continue
        yield Notify(Ended(failed))
        if program.fail_shared is not None:
            shared = yield Choose(2)
            if shared:
                yield from program.fail_shared(claim)
