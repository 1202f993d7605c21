"""The lock driver that does nothing, for hosts where exclusion is solved elsewhere.

Source: spec/lock-drivers.md 4.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from paxoslease.drivers.base import Driver, FailureAction, Owner, Registration, Resource

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NopOptions:
    """Nothing can be configured."""


class _Nothing(Registration):
    """No connection."""

    def fileno(self) -> int:
        """Return -1: there is none."""
        return -1

    def close(self) -> None:
        """Do nothing."""


class NopDriver(Driver):
    """Takes no locks at all, and says so in the log, once per process."""

    name = "nop"
    libvirt_name = "nop"
    description = "no locks at all: nothing keeps a guest from running twice"
    excludes = False
    Options = NopOptions
    _has_warned = False

    def prepare(self) -> None:
        """Say that nothing is done."""
        self._warn()

    def _warn(self) -> None:
        if not NopDriver._has_warned:
            NopDriver._has_warned = True
            _log.warning("no_locks driver=%s", self.name)

    def _register(self, owner: Owner, action: FailureAction) -> Registration:
        self._warn()
        return _Nothing()

    def _acquire(
        self,
        owner: Owner,
        resources: Sequence[Resource],
        state: str | None,
        registration: Registration | None,
    ) -> None:
        self._warn()

    def _restrict(self, registration: Registration) -> None:
        del registration

    def _release(self, owner: Owner, resources: Sequence[Resource], want_state: bool) -> str | None:
        return None

    def _inquire(self, owner: Owner) -> str | None:
        return None
