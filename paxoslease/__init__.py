"""Locks for virtual machines on shared storage: Disk Paxos leases, compatible with sanlock.

    with paxoslease.join("/dev/vg/leases", "vms", host_id=1) as lockspace:
        with lockspace.lease("guest-1", "/dev/vg/leases", offset=1 << 20, wait=30) as lease:
            work(stop=lease.lost)

Everything that a program needs can be had from here. Names are loaded when they are first used, so
that the algorithms can be imported (and simulated) without the engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paxoslease.api import (
        Lockspace as Lockspace,
        WantedLease as WantedLease,
        WantedLockspace as WantedLockspace,
        join as join,
        join_many as join_many,
    )
    from paxoslease.channel import (
        AcquireFailed as AcquireFailed,
        DaemonError as DaemonError,
        DaemonUnreachable as DaemonUnreachable,
    )
    from paxoslease.client import (
        Connection as Connection,
        connect as connect,
    )
    from paxoslease.engine.format import (
        format_index as format_index,
        format_lockspace as format_lockspace,
        format_resource as format_resource,
        format_resources as format_resources,
    )
    from paxoslease.engine.index import (
        IndexEntry as IndexEntry,
        lookup as lookup,
    )
    from paxoslease.engine.leases import (
        Lost as Lost,
    )
    from paxoslease.errors import (
        AdoptionRefused as AdoptionRefused,
        BadRecord as BadRecord,
        BadState as BadState,
        Cancelled as Cancelled,
        ConfigError as ConfigError,
        DecisionStale as DecisionStale,
        DeviceInUse as DeviceInUse,
        DiskError as DiskError,
        DiskTimeout as DiskTimeout,
        EventBusy as EventBusy,
        HostIdBusy as HostIdBusy,
        HostIdInvalid as HostIdInvalid,
        LeaseBusy as LeaseBusy,
        LeaseError as LeaseError,
        LeaseHeld as LeaseHeld,
        LeaseLost as LeaseLost,
        LeaseShared as LeaseShared,
        LeaseUnsupported as LeaseUnsupported,
        LockspaceError as LockspaceError,
        LockspaceFailed as LockspaceFailed,
        LockspacePresent as LockspacePresent,
        LostRace as LostRace,
        PaxosleaseError as PaxosleaseError,
        ReleaseRefused as ReleaseRefused,
        RenewalRefused as RenewalRefused,
        RequestRefused as RequestRefused,
        RindexError as RindexError,
        StorageError as StorageError,
        UnsuitableDevice as UnsuitableDevice,
        WaitTimeout as WaitTimeout,
        WatchdogError as WatchdogError,
        WrongVersion as WrongVersion,
    )
    from paxoslease.handles import (
        Guarded as Guarded,
        Lease as Lease,
    )
    from paxoslease.measure import (
        measure_acquires as measure_acquires,
        measure_renewals as measure_renewals,
    )
    from paxoslease.protocol.hosts import (
        HostRow as HostRow,
        HostState as HostState,
    )
    from paxoslease.protocol.leases import (
        Owners as Owners,
    )
    from paxoslease.protocol.membership import (
        Failed as Failed,
        Joined as Joined,
        Marked as Marked,
        Renewed as Renewed,
    )
    from paxoslease.timing import (
        Timing as Timing,
    )

__version__ = "0.1.0"

_HOMES = {
    "paxoslease.handles": (
        "Guarded",
        "Lease",
    ),
    "paxoslease.engine.leases": ("Lost",),
    "paxoslease.api": (
        "Lockspace",
        "WantedLease",
        "WantedLockspace",
        "join",
        "join_many",
    ),
    "paxoslease.engine.format": (
        "format_index",
        "format_lockspace",
        "format_resource",
        "format_resources",
    ),
    "paxoslease.engine.index": (
        "IndexEntry",
        "lookup",
    ),
    "paxoslease.channel": (
        "AcquireFailed",
        "DaemonError",
        "DaemonUnreachable",
    ),
    "paxoslease.client": (
        "Connection",
        "connect",
    ),
    "paxoslease.errors": (
        "AdoptionRefused",
        "BadRecord",
        "BadState",
        "Cancelled",
        "ConfigError",
        "DecisionStale",
        "DeviceInUse",
        "DiskError",
        "DiskTimeout",
        "EventBusy",
        "HostIdBusy",
        "HostIdInvalid",
        "LeaseBusy",
        "LeaseError",
        "LeaseHeld",
        "LeaseLost",
        "LeaseShared",
        "LeaseUnsupported",
        "LockspaceError",
        "LockspaceFailed",
        "LockspacePresent",
        "LostRace",
        "PaxosleaseError",
        "ReleaseRefused",
        "RenewalRefused",
        "RequestRefused",
        "RindexError",
        "StorageError",
        "UnsuitableDevice",
        "WaitTimeout",
        "WatchdogError",
        "WrongVersion",
    ),
    "paxoslease.measure": (
        "measure_acquires",
        "measure_renewals",
    ),
    "paxoslease.protocol.hosts": (
        "HostRow",
        "HostState",
    ),
    "paxoslease.protocol.leases": ("Owners",),
    "paxoslease.protocol.membership": (
        "Failed",
        "Joined",
        "Marked",
        "Renewed",
    ),
    "paxoslease.timing": ("Timing",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'paxoslease' has no attribute '{name}'")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
