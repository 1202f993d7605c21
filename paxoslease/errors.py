"""Every error of paxoslease: one tree, named fields, a message that says who, where and what now.

A class stands for one thing that a caller would handle differently. `code` is the number that
sanlock's clients know for it (spec/errors.md); `hint` says what to do next. Messages come from the
class's `template`, filled with the fields, so that no caller ever needs to parse a string.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import ClassVar


class PaxosleaseError(Exception):
    """Base of all errors; never raised itself."""

    template: ClassVar[str] = "error"
    hint: ClassVar[str] = ""
    number: ClassVar[int] = -201

    @property
    def code(self) -> int:
        """Return the number of this error on sanlock's wire: negated errno, or -201 and below."""
        return self.number

    def __str__(self) -> str:
        values = {name: _readable(name, value) for name, value in vars(self).items()}
        return self.template.format(**values)

    def __reduce__(self) -> tuple[type[PaxosleaseError], tuple[object, ...]]:
        """Pickle by the fields, however they were given: errors cross process borders."""
        names: list[str] = [field.name for field in fields(self)] if is_dataclass(self) else []
        return type(self), tuple(getattr(self, name) for name in names)


def _readable(name: str, value: object) -> object:
    """Return names from the disk as text and durations in seconds; everything else unchanged."""
    if name.endswith("_us") and isinstance(value, int):
        return _seconds(value)
    if isinstance(value, bytes):
        return value.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return value


def _seconds(duration_us: int) -> str:
    duration_s = duration_us / 1_000_000
    return f"{duration_s:.1f} s" if duration_s >= 1 or not duration_us else f"{duration_s:.3g} s"


# -- storage ---------------------------------------------------------------------------------


@dataclass(eq=False)
class StorageError(PaxosleaseError):
    """Something is wrong with a disk or with what is on it."""

    path: str
    offset: int


@dataclass(eq=False)
class DiskTimeout(StorageError):
    """An I/O did not end within its time-out. It is still in flight and may land later.

    `ticket` names the I/O for the effect `Landed`; 0 when it never was submitted because an
    earlier timed-out write to the same sector is still in flight.
    """

    operation: str
    timeout_us: int
    ticket: int = 0
    template = "{operation} at {path}:{offset} did not end within {timeout_us}; it may land yet"
    hint = "look at the storage path; the I/O is still in flight and nothing is assumed about it"
    number = -202


@dataclass(eq=False)
class DiskError(StorageError):
    """The kernel reported an error for an I/O, or for opening the path."""

    operation: str
    errno: int
    reason: str
    template = "{operation} of {path} at offset {offset} failed: {reason}"
    hint = "look at the kernel log and at the storage path"

    @property
    def code(self) -> int:
        return -self.errno if self.errno else -5


@dataclass(eq=False)
class UnsuitableDevice(StorageError):
    """A path cannot hold leases: a directory, too small, no O_DIRECT, another sector size."""

    reason: str
    template = "{path} cannot be used at offset {offset}: {reason}"
    hint = "leases need a block device or a regular file that supports O_DIRECT"
    number = -22


@dataclass(eq=False)
class IsDirectory(UnsuitableDevice):
    """A path leads to a directory."""

    number = -21


@dataclass(eq=False)
class TooSmall(UnsuitableDevice):
    """A place is beyond the end of a device or file, or what is to lie there would be."""

    hint = "choose another offset, or make it larger"


@dataclass(eq=False)
class DeviceInUse(StorageError):
    """Format refused: the device holds something else."""

    found: str
    template = "{path} at offset {offset} already holds {found}"
    hint = "choose another place, or repeat with --force when its content may be destroyed"
    number = -16


@dataclass(eq=False)
class BadRecord(StorageError):
    """A record on disk is not what it should be; it is never repaired on the way.

    `field` names the first field that failed, in the order in which sanlock checks them.
    """

    record: str
    field: str
    expected: object
    found: object
    number_of_field: int = -223
    template = "{record} at {path}:{offset}: {field} is {found}, expected {expected}"
    hint = "`paxoslease inspect PATH` shows what is there"

    @property
    def code(self) -> int:
        return self.number_of_field


# -- leases ----------------------------------------------------------------------------------


@dataclass(eq=False)
class LeaseError(PaxosleaseError):
    """Something about one resource lease."""

    lockspace: bytes
    resource: bytes


@dataclass(eq=False)
class LeaseHeld(LeaseError):
    """Another host holds the lease.

    `host_name` is empty while it is not known. `alive` says whether the owner was seen to renew;
    if not, `dying_for_us` is how long its record has stood still and `takeover_in_us` how long it
    must go on to do so before anybody may take over. `since_s` is the owner's own monotonic clock
    at the time it won the lease.
    """

    host_id: int
    host_name: bytes
    generation: int
    lver: int
    since_s: int
    alive: bool
    dying_for_us: int = 0
    takeover_in_us: int = 0
    short_hold: bool = False
    template = "lease {resource} of lockspace {lockspace} is held by host {host_id} ({host_name})"
    hint = "wait for it, ask the holder to release it, or stop the holder"

    def __str__(self) -> str:
        state = (
            "which is alive"
            if self.alive
            else f"not renewed for {_seconds(self.dying_for_us)}, "
            f"can be taken over in {_seconds(self.takeover_in_us)}"
        )
        return f"{super().__str__()}, version {self.lver}, {state}"

    @property
    def code(self) -> int:
        return -243 if self.alive else -247


@dataclass(eq=False)
class LeaseShared(LeaseError):
    """An exclusive lease is not to be had: live hosts hold it shared."""

    host_ids: tuple[int, ...]
    template = "lease {resource} of lockspace {lockspace} is held shared by hosts {host_ids}"
    hint = "wait until they release it"
    number = -11


@dataclass(eq=False)
class LostRace(LeaseError):
    """Another host became owner while we tried; try again, or treat it as held.

    `committed_by_us` tells -245 (we carried the ballot through for it) from -244.
    """

    host_id: int
    generation: int
    lver: int
    committed_by_us: bool
    template = "lease {resource} of lockspace {lockspace} went to host {host_id} in version {lver}"
    hint = "try again"

    @property
    def code(self) -> int:
        return -245 if self.committed_by_us else -244


@dataclass(eq=False)
class WrongVersion(LeaseError):
    """The caller asked for a certain lver and the lease has another."""

    expected: int
    found: int
    template = "lease {resource} of lockspace {lockspace} has version {found}, not {expected}"
    hint = "somebody else has held the lease since"
    number = -240


@dataclass(eq=False)
class ReleaseRefused(LeaseError):
    """A release found that the lease on disk is not ours any more: only RELEASED was written."""

    lver: int
    found_lver: int
    found_owner: int
    template = (
        "lease {resource} of lockspace {lockspace}: version {lver} was to be released, "
        "the disk has version {found_lver} of host {found_owner}"
    )
    hint = "the lease was taken over; find out why this host was thought dead"

    @property
    def code(self) -> int:
        return -250 if self.found_lver != self.lver else -251


@dataclass(eq=False)
class LeaseLost(LeaseError):
    """A lease is gone because its lockspace failed, or was left, while it was held."""

    reason: str
    template = "lease {resource} of lockspace {lockspace} is lost: {reason}"
    hint = "stop using what it guards at once"
    number = -28


@dataclass(eq=False)
class LeaseBusy(LeaseError):
    """This host already holds the lease, or works on it."""

    state: str
    template = "lease {resource} of lockspace {lockspace} is {state} on this host"
    hint = "a lease has one user per host at a time"
    number = -17


@dataclass(eq=False)
class LeaseUnsupported(LeaseError):
    """A request that this lease's format or settings cannot serve (LVB place, num_hosts)."""

    reason: str
    template = "lease {resource} of lockspace {lockspace}: {reason}"
    hint = "choose sizes and values that the format allows"
    number = -22


@dataclass(eq=False)
class RequestRefused(LeaseError):
    """A request record cannot be written: an older or equal one stands (-272, -273)."""

    reason: str
    number_of_reason: int = -272
    template = "request for lease {resource} of lockspace {lockspace}: {reason}"
    hint = "read the lease again and ask for a larger version"

    @property
    def code(self) -> int:
        return self.number_of_reason


# -- lockspaces ------------------------------------------------------------------------------


@dataclass(eq=False)
class LockspaceError(PaxosleaseError):
    """Something about the membership in one lockspace."""

    lockspace: bytes


@dataclass(eq=False)
class HostIdInvalid(LockspaceError):
    """A host id is not between 1 and max_hosts of the lockspace."""

    host_id: int
    max_hosts: int
    template = "host id {host_id} of lockspace {lockspace} is not between 1 and {max_hosts}"
    hint = "every host needs an id of its own in that range"
    number = -231


@dataclass(eq=False)
class HostIdBusy(LockspaceError):
    """Another live host uses the host id, or somebody raced us for it."""

    host_id: int
    host_name: bytes
    generation: int
    template = "host id {host_id} of lockspace {lockspace} is in use by {host_name}"
    hint = "give every host an id of its own"
    number = -262


@dataclass(eq=False)
class RenewalRefused(LockspaceError):
    """Our own delta lease on disk is not what we wrote: fatal for the membership.

    `other_owner` tells -260 (owner, generation or name differ) from -261 (other bytes).
    """

    host_id: int
    other_owner: bool
    template = "the delta lease of host id {host_id} in lockspace {lockspace} was changed by others"
    hint = "two hosts use one host id; this host stops"

    @property
    def code(self) -> int:
        return -260 if self.other_owner else -261


@dataclass(eq=False)
class DecisionStale(LockspaceError):
    """We were paused between reading and writing for longer than a reading may be trusted."""

    late_us: int
    template = "lockspace {lockspace}: a decision was {late_us} too old to be written"
    hint = "the host was suspended or starved; the operation starts again from what the disk says"


@dataclass(eq=False)
class LockspaceFailed(LockspaceError):
    """The lockspace fails, is being left, or is not joined: no lease can be had or kept in it."""

    reason: str
    template = "lockspace {lockspace}: {reason}"
    hint = "join it again when the storage is back"
    number = -28


@dataclass(eq=False)
class AdoptionRefused(LockspaceError):
    """A membership that a predecessor left cannot be gone on with: its leases are lost."""

    host_id: int
    reason: str
    template = "host id {host_id} of lockspace {lockspace} cannot be taken on again: {reason}"
    hint = "what used its leases is stopped; join again afterwards"
    number = -28


@dataclass(eq=False)
class LockspacePresent(LockspaceError):
    """The lockspace is joined already, or being joined, or left."""

    state: str
    number_of_state: int = -17
    template = "lockspace {lockspace} is {state}"
    hint = "one membership per lockspace and host"

    @property
    def code(self) -> int:
        return self.number_of_state


@dataclass(eq=False)
class WatchdogError(LockspaceError):
    """The watchdog cannot be reached or has another time-out than the cluster's."""

    reason: str
    template = "lockspace {lockspace}: no watchdog: {reason}"
    hint = "start wdmd, name a watchdog device, or say explicitly that there is none"
    number = -203


@dataclass(eq=False)
class EventBusy(LockspaceError):
    """Another host event is still being advertised."""

    event: int
    template = "lockspace {lockspace}: event {event} is still being advertised"
    hint = "wait for it to end, or replace it"
    number = -16


@dataclass(eq=False)
class RindexError(LockspaceError):
    """An index operation cannot be done: no such name, no free slot, a duplicate name."""

    name: bytes
    reason: str
    number_of_reason: int = -2
    template = "index of lockspace {lockspace}: {name}: {reason}"
    hint = "`paxoslease lookup` lists what the index holds"

    @property
    def code(self) -> int:
        return self.number_of_reason


# -- callers ---------------------------------------------------------------------------------


@dataclass(eq=False)
class ConfigError(PaxosleaseError):
    """A value given by the caller is out of range or malformed."""

    what: str
    reason: str
    template = "{what}: {reason}"
    hint = "see the documentation of the option"
    number = -22


@dataclass(eq=False)
class BadState(PaxosleaseError):
    """What a process wrote down for its successor is not what it should be."""

    what: str
    field: str
    expected: str
    found: object
    template = "{what}: {field} is {found}, expected {expected}"
    hint = "it is not used; leases of processes that still run are stopped by the watchdog"
    number = -22


@dataclass(eq=False)
class Cancelled(PaxosleaseError):
    """The caller does not want the operation any more (removal, shutdown, interrupt)."""

    template = "cancelled"
    hint = ""
    number = -201


@dataclass(eq=False)
class WaitTimeout(LeaseError):
    """The lease was not to be had within the time the caller wanted to wait.

    `last` is what stood in the way at the last attempt.
    """

    waited_us: int
    last: PaxosleaseError
    template = "lease {resource} of lockspace {lockspace} not granted in {waited_us}: {last}"
    hint = "wait longer, or ask the holder to release it"

    @property
    def code(self) -> int:
        return self.last.code
