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
    )
    from paxoslease.api import (
        WantedLease as WantedLease,
    )
    from paxoslease.api import (
        WantedLockspace as WantedLockspace,
    )
    from paxoslease.api import (
        join as join,
    )
    from paxoslease.api import (
        join_many as join_many,
    )
    from paxoslease.channel import (
        AcquireFailed as AcquireFailed,
    )
    from paxoslease.channel import (
        DaemonError as DaemonError,
    )
    from paxoslease.channel import (
        DaemonUnreachable as DaemonUnreachable,
    )
    from paxoslease.client import (
        Connection as Connection,
    )
    from paxoslease.client import (
        connect as connect,
    )
    from paxoslease.engine.format import (
        format_index as format_index,
    )
    from paxoslease.engine.format import (
        format_lockspace as format_lockspace,
    )
    from paxoslease.engine.format import (
        format_resource as format_resource,
    )
    from paxoslease.engine.format import (
        format_resources as format_resources,
    )
    from paxoslease.engine.index import (
        IndexEntry as IndexEntry,
    )
    from paxoslease.engine.index import (
        lookup as lookup,
    )
    from paxoslease.engine.leases import (
        Lost as Lost,
    )
    from paxoslease.errors import (
        AdoptionRefused as AdoptionRefused,
    )
    from paxoslease.errors import (
        BadRecord as BadRecord,
    )
    from paxoslease.errors import (
        BadState as BadState,
    )
    from paxoslease.errors import (
        Cancelled as Cancelled,
    )
    from paxoslease.errors import (
        ConfigError as ConfigError,
    )
    from paxoslease.errors import (
        DecisionStale as DecisionStale,
    )
    from paxoslease.errors import (
        DeviceInUse as DeviceInUse,
    )
    from paxoslease.errors import (
        DiskError as DiskError,
    )
    from paxoslease.errors import (
        DiskTimeout as DiskTimeout,
    )
    from paxoslease.errors import (
        EventBusy as EventBusy,
    )
    from paxoslease.errors import (
        HostIdBusy as HostIdBusy,
    )
    from paxoslease.errors import (
        HostIdInvalid as HostIdInvalid,
    )
    from paxoslease.errors import (
        LeaseBusy as LeaseBusy,
    )
    from paxoslease.errors import (
        LeaseError as LeaseError,
    )
    from paxoslease.errors import (
        LeaseHeld as LeaseHeld,
    )
    from paxoslease.errors import (
        LeaseLost as LeaseLost,
    )
    from paxoslease.errors import (
        LeaseShared as LeaseShared,
    )
    from paxoslease.errors import (
        LeaseUnsupported as LeaseUnsupported,
    )
    from paxoslease.errors import (
        LockspaceError as LockspaceError,
    )
    from paxoslease.errors import (
        LockspaceFailed as LockspaceFailed,
    )
    from paxoslease.errors import (
        LockspacePresent as LockspacePresent,
    )
    from paxoslease.errors import (
        LostRace as LostRace,
    )
    from paxoslease.errors import (
        PaxosleaseError as PaxosleaseError,
    )
    from paxoslease.errors import (
        ReleaseRefused as ReleaseRefused,
    )
    from paxoslease.errors import (
        RenewalRefused as RenewalRefused,
    )
    from paxoslease.errors import (
        RequestRefused as RequestRefused,
    )
    from paxoslease.errors import (
        RindexError as RindexError,
    )
    from paxoslease.errors import (
        StorageError as StorageError,
    )
    from paxoslease.errors import (
        UnsuitableDevice as UnsuitableDevice,
    )
    from paxoslease.errors import (
        WaitTimeout as WaitTimeout,
    )
    from paxoslease.errors import (
        WatchdogError as WatchdogError,
    )
    from paxoslease.errors import (
        WrongVersion as WrongVersion,
    )
    from paxoslease.handles import (
        Guarded as Guarded,
    )
    from paxoslease.handles import (
        Lease as Lease,
    )
    from paxoslease.measure import (
        measure_acquires as measure_acquires,
    )
    from paxoslease.measure import (
        measure_renewals as measure_renewals,
    )
    from paxoslease.protocol.hosts import (
        HostRow as HostRow,
    )
    from paxoslease.protocol.hosts import (
        HostState as HostState,
    )
    from paxoslease.protocol.leases import (
        Owners as Owners,
    )
    from paxoslease.protocol.membership import (
        Failed as Failed,
    )
    from paxoslease.protocol.membership import (
        Joined as Joined,
    )
    from paxoslease.protocol.membership import (
        Marked as Marked,
    )
    from paxoslease.protocol.membership import (
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
