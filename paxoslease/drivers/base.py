"""The interface of lock drivers: libvirt's object model of locks, in Python's terms.

An *owner* is the process that runs a guest. Its locks belong to it, not to whoever asked for them:
it keeps one connection to the daemon of the driver open, made by itself before it becomes the
guest, and when that connection ends the locks are gone. Everybody else speaks for an owner by its
pid over short connections. So a control plane can come and go while guests run.

A driver keeps nothing per guest. What lasts is in the daemon, under the owner's pid, or in the
*state*: a text that tells which locks were held in which version, for a guest that is paused or
moves to another host.

The life of a guest, as calls of one driver:

    in the process that will be the guest   acquire(owner, register_only=True, restrict=True)
    before its CPUs run                     acquire(owner, disks, state=state)
    when its CPUs stop                      state = release(owner, disks)
    at its end                              nothing: the connection ends

Source: spec/lock-drivers.md 2, 3 and 15.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from types import TracebackType
from typing import ClassVar, Final, Generic, NamedTuple, Protocol, Self, TypeVar
from uuid import UUID

from paxoslease.drivers.errors import ActionUnsupported, LeaseRequired, StateInvalid
from paxoslease.errors import ConfigError

STATE_BYTES_MAX: Final = 1 << 16
# libvirt puts the state into XML without escaping it: spec/lock-drivers.md 2.5.
_NOT_IN_A_STATE: Final = frozenset("<>&")


class Mode(Enum):
    """How a guest uses a resource. READONLY needs no lock and never reaches a daemon."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    READONLY = "readonly"


class FailureAction(Enum):
    """What happens to a guest whose locks are lost while it runs; libvirt's <on_lockfailure>.

    DEFAULT leaves it to the driver, which stops the guest by signals if locks can be lost at all.
    """

    DEFAULT = "default"
    POWEROFF = "poweroff"
    RESTART = "restart"
    PAUSE = "pause"
    IGNORE = "ignore"


class Disk(NamedTuple):
    """A disk image or device of a guest.

    path: as the guest's definition has it, not canonicalised; other hosts must write it the same.
    """

    path: str
    mode: Mode = Mode.EXCLUSIVE

    def __str__(self) -> str:
        return self.path


class ExplicitLease(NamedTuple):
    """A lease that a guest's definition names: libvirt's <lease> element.

    path, offset: where it lies, in bytes; what that means is the driver's business.
    """

    lockspace: str
    key: str
    path: str
    offset: int = 0
    mode: Mode = Mode.EXCLUSIVE

    def __str__(self) -> str:
        return f"lease {self.key} of lockspace {self.lockspace}"


Resource = Disk | ExplicitLease


class Owner(NamedTuple):
    """The process that holds locks, and the guest that it runs.

    id: the guest's running number, 1 or more. uri: how a management program reaches the guest.
    notify: where a supervisor wants to be told of lost locks, from `Watch.address`.
    """

    uuid: UUID
    name: str
    id: int
    pid: int
    uri: str = ""
    notify: str = ""

    @property
    def is_this_process(self) -> bool:
        """Tell whether the caller is the owner."""
        return self.pid == os.getpid()


class Registration(ABC):
    """An owner's own connection to the daemon; its end frees all the owner's locks."""

    @abstractmethod
    def fileno(self) -> int:
        """Return its descriptor, for whoever labels it; -1 when there is none."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection up, and all locks of this process with it."""

    def keep_across_exec(self) -> None:
        """Leave the connection open in the program that this process becomes, for its life."""
        if self.fileno() >= 0:
            os.set_inheritable(self.fileno(), True)


class Connection(Protocol):
    """A connection to a daemon, which ends when it is closed."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...

    def close(self) -> None:
        """Hang up."""


C = TypeVar("C", bound=Connection)


class Connected(Registration, Generic[C]):
    """A registration that is nothing but a connection to the daemon."""

    def __init__(self, connection: C) -> None:
        self.connection = connection

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self.connection.fileno()

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


class Watch(ABC):
    """A supervisor's view of whether an owner's locks can still be trusted.

    address: what the owner's `notify` must be.
    """

    address: str = ""

    @property
    def ask_again_s(self) -> float | None:
        """Return after how many seconds to ask again although nothing is readable."""
        return None

    def forget(self) -> None:  # noqa: B027 - a watch may remember nothing
        """Forget a loss that was told, because the locks are about to be acquired again.

        May raise what the driver's acquire raises.
        """

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable when `loss` may have something to say."""

    @abstractmethod
    def loss(self, owner: Owner) -> str:
        """Return why the owner's locks are lost; empty while they are held. Does not block long."""

    @abstractmethod
    def close(self) -> None:
        """Stop watching."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Driver(ABC):
    """One way to lock. Drivers are made by `registry.open_driver`, from options by keyword.

    Subclasses set the constants and fill in the methods with an underscore; the checks that all
    drivers share are made here, before those are called.

    name: by which it is opened. libvirt_name: what libvirt calls it (lock_manager in qemu.conf).
    description: one sentence for people. uses_state: release and inquire return a state, which must
    be handed over. excludes: False only for a driver that keeps nobody out. unsupported: failure
    actions that it cannot promise, each with the reason. Options: a frozen dataclass of what can be
    configured: texts, numbers and truth values.
    """

    name: ClassVar[str]
    libvirt_name: ClassVar[str]
    description: ClassVar[str]
    uses_state: ClassVar[bool] = False
    excludes: ClassVar[bool] = True
    unsupported: ClassVar[dict[FailureAction, str]] = {}
    Options: ClassVar[type]

    def __init__(self, options: object) -> None:  # noqa: B027 - a driver may have no options
        """Take the options, an instance of `Options`; nothing is sent anywhere yet."""

    def prepare(self) -> None:  # noqa: B027 - a driver may need nothing
        """Make what must exist before the first guest, such as lockspaces; once per host.

        May be called again. May take as long as joining a lockspace does.
        """

    def acquire(
        self,
        owner: Owner,
        resources: Sequence[Resource] = (),
        *,
        register_only: bool = False,
        restrict: bool = False,
        state: str | None = None,
        action: FailureAction = FailureAction.DEFAULT,
    ) -> Registration | None:
        """Take every resource, or none.

        Called in the owner itself it registers first and returns the connection, which must stay
        open as long as the owner runs: when it is closed, or forgotten, the locks are freed, and a
        daemon may stop the process. register_only: take nothing. restrict: that connection can
        do nothing more but end; without effect for others. state: what release or inquire returned
        for these resources; they must not have been held by anybody else since. action: what is
        arranged, at the registration, for the loss of a lock.

        Never waits for another holder. Raises ResourceBusy, ResourceUnusable, OwnerUnknown,
        LeaseRequired, ActionUnsupported, StateInvalid, StateOutdated, DaemonUnreachable,
        ConfigError.
        """
        self._check_owner(owner)
        self._check_action(action)
        wanted = self._lockable(resources)
        if state is not None:
            self._check_state(state)
        registration = self._register(owner, action) if owner.is_this_process else None
        try:
            if not register_only and wanted:
                self._acquire(owner, wanted, state, registration)
            if restrict and registration is not None:
                self._restrict(registration)
        except BaseException:
            if registration is not None:
                registration.close()
            raise
        return registration

    def release(
        self, owner: Owner, resources: Sequence[Resource], *, want_state: bool = True
    ) -> str | None:
        """Give up the resources; return the state they had, None if there is none.

        What the owner does not hold is passed over: a second release is harmless and returns None.
        What the resources guard has stopped before. Raises DaemonUnreachable, DriverError.
        """
        self._check_owner(owner)
        state = self._release(owner, self._lockable(resources), want_state)
        return self._checked_state(state) if want_state else None

    def inquire(self, owner: Owner) -> str | None:
        """Return the state of what the owner holds; None if it holds nothing, or has no state."""
        self._check_owner(owner)
        return self._checked_state(self._inquire(owner))

    def watch(self) -> Watch | None:
        """Return what a supervisor listens to for lost locks; None when none can be lost."""
        return None

    # -- what a driver fills in ----------------------------------------------------------------

    @abstractmethod
    def _register(self, owner: Owner, action: FailureAction) -> Registration:
        """Make the owner, which is this process, known to the daemon."""

    @abstractmethod
    def _acquire(
        self,
        owner: Owner,
        resources: Sequence[Resource],
        state: str | None,
        registration: Registration | None,
    ) -> None:
        """Take all or nothing. `registration` is the owner's connection when this process is it."""

    @abstractmethod
    def _restrict(self, registration: Registration) -> None:
        """Let the owner's connection do nothing more."""

    @abstractmethod
    def _release(self, owner: Owner, resources: Sequence[Resource], want_state: bool) -> str | None:
        """Give up what the owner holds of these; pass over the rest."""

    @abstractmethod
    def _inquire(self, owner: Owner) -> str | None:
        """Return the state."""

    # -- checks --------------------------------------------------------------------------------

    def _check_owner(self, owner: Owner) -> None:
        if owner.pid <= 0:
            raise ConfigError("pid", f"{owner.pid} is not one process")
        if owner.id <= 0:
            raise ConfigError("id", f"the running id of a guest is 1 or more, not {owner.id}")
        if not owner.name or "\0" in owner.name:
            raise ConfigError("name", "a guest needs a name without zero bytes")

    def _check_action(self, action: FailureAction) -> None:
        reason = self.unsupported.get(action)
        if reason is not None:
            raise ActionUnsupported(self.name, action.value, reason)

    def _lockable(self, resources: Sequence[Resource]) -> list[Resource]:
        """Return what needs a lock: explicit leases first, then disks, both in their order."""
        seen: set[tuple[str, ...]] = set()
        for resource in resources:
            check_resource(resource)
            key = _identity(resource)
            if resource.mode is not Mode.READONLY and key in seen:
                raise ConfigError("resources", f"{resource} is given twice")
            seen.add(key)
        used = [resource for resource in resources if resource.mode is not Mode.READONLY]
        leases: list[Resource] = [one for one in used if isinstance(one, ExplicitLease)]
        return leases + [one for one in used if isinstance(one, Disk)]

    def _check_state(self, state: str) -> None:
        if len(state.encode()) > STATE_BYTES_MAX:
            raise StateInvalid(self.name, f"it is longer than {STATE_BYTES_MAX} bytes")
        bad = _NOT_IN_A_STATE.intersection(state)
        if bad or not state.isprintable():
            raise StateInvalid(self.name, "it has characters that a state cannot have")

    def _checked_state(self, state: str | None) -> str | None:
        if not state:
            return None
        self._check_state(state)
        return state


def _identity(resource: Resource) -> tuple[str, ...]:
    if isinstance(resource, Disk):
        return ("disk", resource.path)
    return ("lease", resource.lockspace, resource.key, resource.path)


def check_resource(resource: Resource) -> None:
    """Check the fields of a resource. Raises ConfigError."""
    texts = [resource.path]
    if isinstance(resource, ExplicitLease):
        texts += [resource.lockspace, resource.key]
        if resource.offset < 0:
            raise ConfigError("offset", f"{resource.offset} is negative")
    for text in texts:
        if not text or "\0" in text:
            raise ConfigError("resource", f"{text!r} is no path or name")


def check_leases(
    driver: str, resources: Sequence[Resource], automatic: bool, required: bool | None
) -> None:
    """Refuse a guest that writes to disks of its own and has no lease, when leases are required.

    automatic: disks have leases without being told. required: None for the opposite of that.
    Raises LeaseRequired. Source: spec/lock-drivers.md 5.1 and 5.4.
    """
    if automatic or required is False:
        return
    if any(isinstance(one, ExplicitLease) for one in resources):
        return
    bare = tuple(one.path for one in resources if one.mode is Mode.EXCLUSIVE)
    if bare:
        raise LeaseRequired(driver, bare)
