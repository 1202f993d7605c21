"""What an algorithm can ask of the world, and what it is sent for it.

A protocol is a generator that yields these values and is sent their results; a failed effect is
thrown into it. Three drivers perform them: the engine on real disks and clocks, the simulation on
virtual ones, the explorer in every possible order. An effect that only one of them understands
does not exist.

Time is integer microseconds of a clock that also runs while the host is suspended
(CLOCK_BOOTTIME, rule M18); what is written to disk is whole seconds of it, rounded down.

Duties of every driver:

1. A `Write` that was given to the disk may land at any moment until it is reported done, whatever
   was thrown in the meantime. After `DiskTimeout` it is still in flight; `Landed(ticket)` waits
   for it without limit.
2. A `Write` is not submitted after its `not_after_us`: `DecisionStale` is thrown instead.
3. A `Write` that overlaps one that timed out and has not landed yet is not submitted:
   `DiskTimeout` with ticket 0 is thrown (rule M7).
4. The answers are immutable and hashable, so that a generator's locals are a key.
5. `Cancelled` is thrown only at a `Sleep` that is `cancellable`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Protocol: TypeAlias = Generator[Any, Any, T]


class Now(NamedTuple):
    """Ask for the time. Answer: int, microseconds of the host's own boot-time clock."""


class Random(NamedTuple):
    """Ask for a uniformly random int from 0 to `below` - 1 (0 when `below` is 1 or less)."""

    below: int


class Sleep(NamedTuple):
    """Wait for `duration_us`. Answer: None. Throws Cancelled if `cancellable`."""

    duration_us: int
    cancellable: bool = False


class Read(NamedTuple):
    """Read `length` bytes. Answer: bytes. Throws DiskTimeout (changes nothing), DiskError."""

    path: str
    offset: int
    length: int
    timeout_us: int


class ReadBallot(NamedTuple):
    """Read a resource area as far as ballots look at it. Answer: BallotImage.

    Throws DiskTimeout, DiskError. The read is not atomic: each sector may be of another moment.
    """

    path: str
    offset: int
    sector_size: int
    num_hosts: int
    timeout_us: int


class BallotImage(NamedTuple):
    """The answer to ReadBallot: the leader's sector and every host sector that is not all zero.

    leader: the first 200 bytes of the area.
    hosts: (host id, first 144 bytes of its sector), ascending, ids 1 to num_hosts.
    """

    leader: bytes
    hosts: tuple[tuple[int, bytes], ...]


class ReadLockspace(NamedTuple):
    """Read a whole lockspace area for a renewal. Answer: LockspaceImage.

    Throws DiskTimeout, DiskError.
    """

    path: str
    offset: int
    sector_size: int
    align_size: int
    space_name: bytes
    host_id: int
    timeout_us: int


class LockspaceImage(NamedTuple):
    """The answer to ReadLockspace.

    own: the sector of `host_id`.
    columns: what the host table needs of all sectors (`DeltaColumns`), owned by the receiver. The
        protocol hands it on and never looks inside; compared by identity.
    """

    own: bytes
    columns: Any


class Write(NamedTuple):
    """Write whole sectors, durably. Answer: None.

    Throws DiskTimeout (in flight, may land), DiskError (may have landed or not), DecisionStale
    (not submitted). `not_after_us` None: the content does not depend on anything read.
    """

    path: str
    offset: int
    data: bytes
    timeout_us: int
    not_after_us: int | None


class Landed(NamedTuple):
    """Wait until a timed-out write has been given back by the kernel. Answer: None.

    Throws DiskError when it came back with an error. Has no time-out: the host is reset, or the
    write comes back.
    """

    ticket: int


class Gather(NamedTuple):
    """Perform several reads or writes at once.

    Answer: a tuple with one answer or one StorageError or DecisionStale (not thrown) per effect.
    """

    effects: tuple[Read | ReadBallot | Write, ...]


class Membership(NamedTuple):
    """Ask how the own host stands in the operation's lockspace. Answer: Standing.

    Throws LockspaceFailed when it is not joined, fails, or is being left.
    """


class Standing(NamedTuple):
    """What an operation may rely on: its host id, generation and until when they count.

    expires_us: the moment at which this host must have stopped using its leases unless it renews
        before; a lease write is never submitted after it (rule M2).
    """

    host_id: int
    generation: int
    expires_us: int


class Observe(NamedTuple):
    """Ask what the host table knows of a host of the operation's lockspace. Answer: HostSeen."""

    host_id: int


class HostSeen(NamedTuple):
    """One row of the host table (spec/algorithms.md 3).

    All times are local, 0 for never: first_check_us and last_check_us of successful renewal
    reads, last_live_us of the last read that showed a change. io_max is the largest io_timeout
    ever seen for that host id (rule M9), 0 when none was seen.
    """

    owner_id: int
    generation: int
    timestamp: int
    name: bytes
    io_timeout: int
    io_max: int
    first_check_us: int
    last_check_us: int
    last_live_us: int


UNSEEN = HostSeen(0, 0, 0, b"", 0, 0, 0, 0, 0)


class PetWatchdog(NamedTuple):
    """Tell the watchdog that the membership is good. Answer: None. Throws WatchdogError.

    renewed_us: the timestamp in the last acknowledged renewal; expire_us: when the host must be
    on its way to a reset unless it is petted again. 0, 0 disarms.
    """

    lockspace: bytes
    renewed_us: int
    expire_us: int


class Signal(NamedTuple):
    """Send a signal to a tracked process. Answer: bool, False when it is gone already."""

    process: int
    signal: int


class RunKillpath(NamedTuple):
    """Start a process's killpath program. Answer: bool, False when it cannot be started."""

    process: int


class Notify(NamedTuple):
    """Tell the owner of the operation something that is no answer. Answer: None.

    `event` is one of the NamedTuples of the protocol that yields it.
    """

    event: Any


Effect: TypeAlias = (
    Now
    | Random
    | Sleep
    | Read
    | ReadBallot
    | ReadLockspace
    | Write
    | Landed
    | Gather
    | Membership
    | Observe
    | PetWatchdog
    | Signal
    | RunKillpath
    | Notify
)
