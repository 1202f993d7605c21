"""A guest moves to another host: its locks are released here and acquired there.

Locks follow the CPUs: the source releases when the guest's CPUs have stopped, the destination
acquires before it starts them. In between nobody holds the locks, and the state that travels with
the guest makes sure that nobody has held them: the destination is refused when a third one came in
between, and so is the source when it wants to go on after a failed migration.

    source                                         destination
    Departure.offer()       guest runs
        ---- handover, by way of libvirt's cookie or any other ---->
    Departure.leave()       CPUs have stopped
        ---- handover ---->
                                                   Arrival.take(handover)
        <--- "taken"
    from here on the source must not go on by itself
        ---- "run" ---->
                                                   CPUs start

Whatever fails before "run" was sent: the destination gives back what it took (Arrival.give_back,
or the end of its process), and the source goes on with Departure.stay. When the destination is
silent, the source's stay fails as long as the destination holds the locks, or until its host is
known to be dead; so never do both run. After "run" was sent only the destination goes on; if it is
lost then, the guest is started afresh somewhere.

Source: spec/lock-drivers.md 3.3 and 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from paxoslease.drivers.base import Driver, FailureAction, Owner, Resource
from paxoslease.drivers.domain import parse_xml
from paxoslease.drivers.errors import StateInvalid


class Handover(NamedTuple):
    """What travels with a guest: the driver, by libvirt's name, and the state if it has one."""

    driver: str
    state: str | None

    def to_cookie(self) -> str:
        """Return the element of libvirt's migration cookie; empty when there is no state."""
        if self.state is None:
            return ""
        element = ElementTree.Element("lockstate", driver=self.driver)
        ElementTree.SubElement(element, "leases").text = self.state
        return ElementTree.tostring(element, encoding="unicode")

    @classmethod
    def from_cookie(cls, text: str) -> Handover:
        """Return the handover of a cookie's element. Raises ConfigError."""
        element = parse_xml("lockstate", text)
        return cls(element.get("driver", ""), element.findtext("leases") or None)


class Departure:
    """The source's side of one migration."""

    def __init__(
        self,
        driver: Driver,
        owner: Owner,
        resources: Sequence[Resource],
        action: FailureAction = FailureAction.DEFAULT,
    ) -> None:
        self._driver = driver
        self._owner = owner
        self._resources = tuple(resources)
        self._action = action
        self._state: str | None = None

    def offer(self) -> Handover:
        """Return what the destination is told while the guest runs here. Nothing changes."""
        return Handover(self._driver.libvirt_name, self._driver.inquire(self._owner))

    def leave(self) -> Handover:
        """Release the locks: the guest's CPUs have stopped. Raises what release raises.

        May be called again, also after an error: the state of the first release is kept.
        """
        state = self._driver.release(self._owner, self._resources)
        self._state = self._state or state
        return Handover(self._driver.libvirt_name, self._state)

    def stay(self, returned: Handover | None = None, *, trusting: bool = False) -> None:
        """Acquire the locks again, before the CPUs start here again: the migration has failed.

        returned: what the destination's give_back returned. trusting: the caller knows that nobody
        ran the guest since it stopped here, although the locks tell of another holder: a
        destination that took them and died before it was told to run.

        Raises ResourceBusy or StateOutdated while somebody else has the locks, StateOutdated when
        somebody had them.
        """
        state = (returned.state if returned else None) or self._state
        # What a failed leave or attach has left would be in our own way.
        kept = self._driver.release(self._owner, self._resources)
        self._state = self._state or kept
        demanded = None if trusting else (state or kept)
        self._driver.acquire(self._owner, self._resources, state=demanded, action=self._action)


class Arrival:
    """The destination's side of one migration."""

    def __init__(
        self,
        driver: Driver,
        owner: Owner,
        resources: Sequence[Resource],
        action: FailureAction = FailureAction.DEFAULT,
    ) -> None:
        self._driver = driver
        self._owner = owner
        self._resources = tuple(resources)
        self._action = action

    def take(self, handover: Handover) -> None:
        """Acquire the locks; the CPUs start only when the source has been told and agrees.

        Raises ResourceBusy while the source has the locks, ResourceBusy or StateOutdated while a
        third one has them, StateOutdated when it had, StateInvalid when the source locks otherwise.
        """
        if handover.driver != self._driver.libvirt_name:
            reason = f"the source uses driver {handover.driver!r}"
            raise StateInvalid(self._driver.name, reason)
        self._driver.acquire(
            self._owner, self._resources, state=handover.state, action=self._action
        )

    def give_back(self) -> Handover:
        """Release the locks: the guest will not run here. Returns what the source goes on with."""
        state = self._driver.release(self._owner, self._resources)
        return Handover(self._driver.libvirt_name, state)
