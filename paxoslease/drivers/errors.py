"""What lock drivers raise, beside the errors of `paxoslease.errors` that they pass on."""

from __future__ import annotations

from dataclasses import dataclass

from paxoslease.errors import PaxosleaseError


@dataclass(eq=False)
class DriverError(PaxosleaseError):
    """Something went wrong in a lock driver; never raised itself."""

    driver: str


@dataclass(eq=False)
class DriverUnknown(DriverError):
    """No driver of that name is installed, or it cannot be loaded."""

    reason: str
    template = "lock driver {driver}: {reason}"
    hint = "drivers are found through the entry point group 'paxoslease.drivers'"
    number = -22


@dataclass(eq=False)
class DaemonUnreachable(DriverError):
    """The daemon that holds a driver's locks does not answer at its socket."""

    socket: str
    reason: str
    template = "lock driver {driver}: no daemon at {socket}: {reason}"
    hint = "start the daemon, or name its socket"
    number = -111


@dataclass(eq=False)
class OwnerUnknown(DriverError):
    """The owner has no connection of its own to the daemon, so nothing would free its locks.

    libvirt's sanlock plugin reports success here and runs the guest without a lease; this is an
    error instead (spec/lock-drivers.md 16, T12).
    """

    pid: int
    template = "lock driver {driver}: process {pid} is not registered with the daemon"
    hint = "the process must register itself before it runs what its locks guard"
    number = -3


@dataclass(eq=False)
class ResourceBusy(DriverError):
    """Somebody holds the resource in a way that excludes ours.

    number_of_reason: what the daemon said, as a negative number.
    """

    resource: str
    reason: str
    number_of_reason: int = -16
    template = "{resource} is in use: {reason}"
    hint = "wait until the other one has ended, or stop it"

    @property
    def code(self) -> int:
        return self.number_of_reason


@dataclass(eq=False)
class ResourceUnusable(DriverError):
    """The resource cannot be locked at all: no such file, no lockspace, no lease there."""

    resource: str
    reason: str
    number_of_reason: int = -22
    template = "{resource} cannot be locked by driver {driver}: {reason}"
    hint = "look at the path, and at the lockspace that it needs"

    @property
    def code(self) -> int:
        return self.number_of_reason


@dataclass(eq=False)
class LeaseRequired(DriverError):
    """A guest writes to disks exclusively, has no lease, and leases are required."""

    disks: tuple[str, ...]
    template = "lock driver {driver}: {disks} would be written without a lease"
    hint = "add a lease to the guest, or allow automatic leases for disks"
    number = -22


@dataclass(eq=False)
class ActionUnsupported(DriverError):
    """The driver cannot promise what is wanted for the time after a lock is lost."""

    action: str
    reason: str
    template = "lock driver {driver} does not support the failure action {action}: {reason}"
    hint = "choose another failure action"
    number = -95


@dataclass(eq=False)
class StateInvalid(DriverError):
    """A state string is not one of this driver's, or does not fit to the resources."""

    reason: str
    template = "lock driver {driver}: the state cannot be used: {reason}"
    hint = "use what release or inquire of the same driver returned for the same guest"
    number = -22


@dataclass(eq=False)
class StateOutdated(DriverError):
    """Somebody has held a resource since the state was made: what the guest knows is old.

    A guest that was paused in between must not run on: another one may have written to its disks.
    """

    resource: str
    version: int
    template = "{resource} was held by somebody else since it was held in version {version}"
    hint = (
        "go on with the state that the other one's release returned, or start the guest afresh; "
        "without a state only when you know that no other guest ran"
    )
    number = -240


@dataclass(eq=False)
class StartFailed(DriverError):
    """The process that was to own the locks ended before it could."""

    reason: str
    template = "lock driver {driver}: the owner could not be started: {reason}"
    hint = "the reason stands above, or in the log of the daemon"
    number = -201
