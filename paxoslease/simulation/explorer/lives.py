"""What the processes of an explored world do all their life: acquire a lease, release it, again.

A `Program` is what one kind of host runs; `ours` are the production generators, `original`
the model of the original. The loops around them tell the search by Notify when they own the lease.
A process counts as owner from the return of its acquire until the first effect of its release is
answered: nobody can tell a release that was called late from one that was called early and is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any, NamedTuple

from paxoslease.errors import PaxosleaseError, ReleaseRefused
from paxoslease.protocol import leases, outcome
from paxoslease.protocol.disks import Claim
from paxoslease.protocol.effects import Notify, Protocol
from paxoslease.simulation.original import leases as model


class Granted(NamedTuple):
    """The process holds version `lver` from here on, shared or exclusively."""

    lver: int
    shared: bool = False


class Releasing(NamedTuple):
    """The process does not hold the lease any more once its next effect is answered."""


class Ended(NamedTuple):
    """An attempt or a release ended without success, with the error of that name."""

    error: str


class Choose(NamedTuple):
    """Ask for any int from 0 to `below` - 1: the search tries all."""

    below: int


class Modes(NamedTuple):
    """How a program takes a lease shared and converts it; as in protocol.leases."""

    acquire_shared: Callable[[Claim], Protocol[Any]]
    to_exclusive: Callable[[Any], Protocol[Any]]
    to_shared: Callable[[Any], Protocol[Any]]


class Program(NamedTuple):
    """What one kind of host runs.

    acquire: returns a value with an attribute `lver`, or raises PaxosleaseError.
    release: takes that value; returns None or an error.
    fail_shared: what a shared attempt leaves behind when it fails; None: is not explored.
    modes: None: the lease is only wanted exclusively.
    settle: what a successor does with an attempt or a release that was cut short; None: has none.
    """

    name: str
    acquire: Callable[[Claim], Protocol[Any]]
    release: Callable[[Any], Protocol[PaxosleaseError | None]]
    fail_shared: Callable[[Claim], Protocol[None]] | None = None
    modes: Modes | None = None
    settle: Callable[[Claim], Protocol[Any]] | None = None


def ours(module: ModuleType = leases, *, modes: bool = False) -> Program:
    """Return the program of our hosts, with `module` in place of protocol.leases."""
    program = Program("ours", module.acquire_exclusive, module.release, settle=_settle)
    if not modes:
        return program
    them = Modes(module.acquire_shared, module.convert_to_exclusive, module.convert_to_shared)
    return program._replace(modes=them)


def original(*, shared_too: bool = False) -> Program:
    """Return the program of the original's hosts; `shared_too`: failed attempts may be shared."""
    fail_shared = model.fail_shared if shared_too else None
    return Program("original", model.acquire, model.release, fail_shared)


def _settle(claim: Claim) -> Protocol[Any]:
    return (yield from outcome.settle_unknown(claim, None, keep=False))


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
            yield Notify(Releasing())
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


def life_in_modes(program: Program, claim: Claim, attempts: int) -> Generator[Any, Any, None]:
    """Acquire in either mode, convert any number of times, release; as often as `life`.

    For the time of a conversion the lease counts as held shared.
    """
    assert program.modes is not None
    left = attempts or -1
    while left:
        left = max(-1, left - 1)
        lease: Any = None
        failed = ""
        shared = yield Choose(2)
        try:
            if shared:
                lease = yield from program.modes.acquire_shared(claim)
            else:
                lease = yield from program.acquire(claim)
        except PaxosleaseError as error:
            failed = type(error).__name__
        if failed:
            yield Notify(Ended(failed))
            continue
        yield from _use(program.modes, lease, program.release)


def _use(
    modes: Modes, lease: Any, release: Callable[[Any], Protocol[PaxosleaseError | None]]
) -> Protocol[None]:
    """Hold a lease, convert it or not, and release it."""
    while True:
        yield Notify(Granted(lease.lver, lease.shared))
        convert = yield Choose(2)
        if not convert:
            break
        yield Notify(Granted(lease.lver, True))
        failed = ""
        try:
            if lease.shared:
                lease = yield from modes.to_exclusive(lease)
            else:
                lease = yield from modes.to_shared(lease)
        except PaxosleaseError as error:
            failed = type(error).__name__
        if failed:
            yield Notify(Ended(failed))
            if failed == ReleaseRefused.__name__:
                yield Notify(Releasing())
                return  # somebody took it in spite of us: it is given up
    yield Notify(Releasing())
    refusal = yield from release(lease)
    failed = type(refusal).__name__ if refusal is not None else ""
    if failed:
        yield Notify(Ended(failed))
