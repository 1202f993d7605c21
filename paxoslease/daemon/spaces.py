"""The daemon's lockspaces: being joined, joined, failed, being removed.

A lockspace that fails or is to be removed is *dead* from then on: no lease of it is granted, the
clients that hold leases of it are stopped by the engine's recovery, and when nobody uses it any
more it is left and forgotten. `USED` and, on request, orphans keep it until they are gone.

Source: spec/wire-protocol.md 8 and 16; spec/timing-and-recovery.md 3.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from paxoslease.daemon.bridge import in_thread, surely_in_thread
from paxoslease.daemon.keeper import DEVICE, WDMD, Keeper
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.renewals import Renewals
from paxoslease.engine.adoption import resume_membership
from paxoslease.engine.core import engine
from paxoslease.engine.host import Membership, open_membership
from paxoslease.engine.messages import Outbox
from paxoslease.engine.operation import now_us
from paxoslease.engine.state import MembershipState
from paxoslease.engine.watchdog import open_watchdog
from paxoslease.engine.watchdog_base import Watchdog, WatchdogState
from paxoslease.errors import LockspacePresent, PaxosleaseError, StorageError
from paxoslease.protocol.membership import Failed, Joined, Marked, Renewed
from paxoslease.timing import SECOND_US, Timing, check_timing
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.events import Listeners
    from paxoslease.daemon.journal import Journal
    from paxoslease.daemon.registry import Registry

_log = logging.getLogger(__name__)


class Stage(Enum):
    """Where a lockspace is, in the words of a status."""

    ADDING = "add"
    JOINED = "spaces"
    REMOVING = "rem"


class Space:
    """A lockspace of this host. Belongs to the loop's thread.

    wanted: as the client named it. is_dead: no lease is to be had any more. ended: set when it is
    gone. used, used_by_orphans: what keeps it from being cleared besides leases.
    """

    def __init__(
        self, number: int, wanted: wire.Lockspace, timing: Timing, renewals: Renewals
    ) -> None:
        self.number = number
        self.wanted = wanted
        self.timing = timing
        self.stage = Stage.ADDING
        self.is_dead = False
        self.is_removed = False
        self.failure = ""
        self.failure_number = 0
        self.used = False
        self.used_by_orphans = False
        self.membership: Membership | None = None
        self.outbox: Outbox | None = None
        self.watchdog: Watchdog | None = None
        self.listeners: Listeners | None = None
        self.index_users = 0
        self.index_is_changing = False
        self.ended = asyncio.Event()
        self.settled = asyncio.Event()  # joined, or not
        self.join_number = -201  # until it has been joined
        self.join_task: asyncio.Task[None] | None = None
        self.aborted = asyncio.Event()
        self.renewals = renewals
        self.requested_us: dict[int, int] = {}  # when a host last wanted us to look, by its id

    @property
    def name(self) -> bytes:
        """Return its name."""
        return self.wanted.name

    @property
    def place(self) -> tuple[bytes, int]:
        """Return its path and offset."""
        return self.wanted.disk.path, self.wanted.disk.offset

    def dump(self, membership: dict[str, Any]) -> dict[str, Any]:
        """Return it as plain data: `membership` as the engine dumps it."""
        return {
            "wanted": wire.pack_lockspace(self.wanted).hex(),
            "number": self.number,
            "used": self.used,
            "used_by_orphans": self.used_by_orphans,
            "membership": membership,
        }

    def is_same(self, other: wire.Lockspace) -> bool:
        """Tell whether a client means this one; a host id of 0 matches any."""
        disk = other.disk
        return (self.name, *self.place) == (other.name, disk.path, disk.offset) and (
            other.host_id in (0, self.wanted.host_id)
        )


class Spaces:
    """All lockspaces. Belongs to the loop's thread."""

    def __init__(self, options: DaemonOptions, host_name: bytes, journal: Journal) -> None:
        self._journal = journal
        self._options = options
        self._host_name = host_name
        self._all: list[Space] = []  # the oldest first
        self._numbers = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._abandoned: dict[tuple[bytes, int, int], asyncio.Task[Any]] = {}
        self._waiting: set[asyncio.Event] = set()
        self.keeper = Keeper(None)
        self.registry: Registry
        self.on_marked: Callable[[Space, tuple[int, ...]], None]
        self.make_listeners: Callable[[Space], Listeners]

    def __iter__(self) -> Iterator[Space]:
        return iter(list(self._all))

    def __bool__(self) -> bool:
        return bool(self._all)

    def of_stage(self, stage: Stage) -> list[Space]:
        """Return those of a stage, the newest first."""
        return [space for space in reversed(self._all) if space.stage is stage]

    def find(self, name: bytes, *stages: Stage) -> Space | None:
        """Return the lockspace of a name, in one of these stages or in any."""
        return next(
            (s for s in self._all if s.name == name and (not stages or s.stage in stages)), None
        )

    def joined(self, name: bytes) -> Space:
        """Return a lockspace that is joined, if failing. Raises Refusal (-ENOENT)."""
        space = self.find(name, Stage.JOINED)
        if space is None:
            raise Refusal(errno.ENOENT)
        return space

    def usable(self, name: bytes) -> Space:
        """Return a lockspace in which leases are to be had. Raises Refusal (-ENOSPC)."""
        space = self.find(name, Stage.JOINED)
        if space is None or space.is_dead:
            raise Refusal(errno.ENOSPC)
        return space

    # -- joining ---------------------------------------------------------------------------------

    def add(self, wanted: wire.Lockspace, io_timeout: int) -> Space:
        """Begin to join a lockspace. Raises Refusal (spec/wire-protocol.md 8.1)."""
        if not wanted.name or not wanted.disk.path or not wanted.host_id:
            raise Refusal(errno.EINVAL)
        for space in self._all:
            if space.is_same(wanted) and space.wanted.host_id == wanted.host_id:
                code = {
                    Stage.ADDING: errno.EINPROGRESS,
                    Stage.JOINED: errno.EEXIST,
                    Stage.REMOVING: errno.EAGAIN,
                }[space.stage]
                raise Refusal(code)
            if space.name == wanted.name or space.place == (wanted.disk.path, wanted.disk.offset):
                raise Refusal(errno.EINVAL)
        io_timeout = io_timeout or self._options.io_timeout
        try:
            timing = check_timing(Timing(io_timeout, self._options.watchdog_fire_timeout))
        except PaxosleaseError as error:
            raise Refusal(errno.EINVAL) from error
        space = Space(self._next_number(), wanted, timing, self._renewals())
        self._all.append(space)
        _log.info("s%d lockspace %s", space.number, _as_text(wanted))
        space.join_task = self.start(self._join(space))
        return space

    def _renewals(self) -> Renewals:
        return Renewals(self._options.renewal_history_size)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _join(self, space: Space) -> None:
        try:
            await self._acquire(space)
        except (PaxosleaseError, Refusal) as error:
            space.join_number = number_of(error)
            if space.aborted.is_set() and isinstance(error, PaxosleaseError):
                space.join_number = -201
            reason = error.__cause__ or error if isinstance(error, Refusal) else error
            _log.error("s%d join failed %d: %s", space.number, space.join_number, reason)
            self._end(space)
        else:
            space.join_number = 0
            space.stage = Stage.JOINED
            self._journal.space_changed(space)
            self.keep(space)
            _log.info("s%d joined host_id %d", space.number, space.wanted.host_id)
        finally:
            space.settled.set()
            self.changed()

    async def _acquire(self, space: Space) -> None:
        path = os.fsdecode(space.wanted.disk.path)
        files = engine().files
        try:
            await in_thread(files.hold, path)
        except StorageError as error:
            raise Refusal(errno.ENODEV) from error
        try:
            membership = await in_thread(self._open, space, asyncio.get_running_loop())
        finally:
            files.drop(path)
        self._attach(space, membership)
        earlier = self._abandoned.get(wanted_key(space))
        if earlier is not None:
            # A join that was given up may still own the host id for as long as it settles.
            await asyncio.wait([earlier])
        try:
            await surely_in_thread(membership.start_join)
        except BaseException as error:
            membership.abandon_join()
            if isinstance(error, LockspacePresent):
                # It has failed and was left, and a write of it still waits for the disk.
                raise Refusal(errno.EAGAIN) from error
            raise
        self.keep(space)
        joining = asyncio.ensure_future(surely_in_thread(membership.await_join, None))
        aborting = asyncio.ensure_future(space.aborted.wait())
        await asyncio.wait({joining, aborting}, return_when=asyncio.FIRST_COMPLETED)
        aborting.cancel()
        if space.aborted.is_set():
            key = wanted_key(space)
            abandoning = self._abandoned[key] = self.start(self._abandon(membership, joining))
            abandoning.add_done_callback(lambda _: self._abandoned.pop(key, None))
            raise Refusal(-201)
        await joining

    @staticmethod
    async def _abandon(membership: Membership, joining: asyncio.Task[None]) -> None:
        """Give a join up; ends when nothing of it runs any more."""
        await asyncio.wait([joining])
        if joining.exception() is None:
            # It was joined in the moment in which it was not wanted any more.
            await surely_in_thread(membership.leave, None)
        else:
            await surely_in_thread(membership.await_abandoned)

    def _open(self, space: Space, loop: asyncio.AbstractEventLoop) -> Membership:
        wanted = space.wanted
        return open_membership(
            os.fsdecode(wanted.disk.path),
            wanted.disk.offset,
            wanted.name,
            wanted.host_id,
            self._host_name,
            space.timing,
            self._watchdog(space),
            self._listener(space, loop),
        )

    def _watchdog(self, space: Space) -> Watchdog:
        kind = self._options.watchdog if self._options.use_watchdog else "none"
        wanted, fire_timeout = space.wanted, space.timing.watchdog_fire_timeout
        space.watchdog = open_watchdog(kind, wanted.name, wanted.host_id, fire_timeout)
        return space.watchdog

    def _listener(self, space: Space, loop: asyncio.AbstractEventLoop) -> Callable[[Any], None]:
        def on_event(event: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._on_event, space, event)

        return on_event

    def keep(self, space: Space) -> None:
        """Have a copy of the claim on the watchdog kept, in case the daemon dies."""
        watchdog = space.watchdog
        if watchdog is not None:
            self._keep_claim(self._key(space), watchdog)
        if space.membership is not None and space.membership.member.held is not None:
            until_us = space.membership.member.held.renewed_us + space.timing.fail_us
            self.keeper.expire(space.name, until_us)

    def _keep_claim(self, key: bytes, watchdog: Watchdog) -> None:
        descriptor, margin_us = watchdog.descriptor, watchdog.margin_us
        if descriptor >= 0:
            self.keeper.keep(key, descriptor, margin_us=margin_us)
        if margin_us and (descriptor < 0 or watchdog.descriptor != descriptor):
            # The device was closed to fire, perhaps in this moment.
            self.keeper.drop(key)

    def _key(self, space: Space) -> bytes:
        return (WDMD if self._options.watchdog == "wdmd" else DEVICE) + space.name

    def _attach(self, space: Space, membership: Membership) -> Outbox:
        bitmap_us = self._options.bitmap_s * SECOND_US
        member = membership.member
        outbox = Outbox(member.space, member.host_id, space.timing, bitmap_us)
        member.advertise = outbox.advertise
        space.membership = membership
        space.outbox = outbox
        space.listeners = self.make_listeners(space)
        return outbox

    def resume(
        self, wanted: wire.Lockspace, state: MembershipState, claim: WatchdogState | None
    ) -> Space:
        """Take in a lockspace of a predecessor, before it is known whether it may be continued.

        Raises BadState, WatchdogError.
        """
        space = Space(self._next_number(), wanted, state.timing, self._renewals())
        watchdog = self._watchdog(space)
        if claim is not None:
            watchdog.attach(claim)
        on_event = self._listener(space, asyncio.get_running_loop())
        membership = resume_membership(state, watchdog, on_event)
        outbox = self._attach(space, membership)
        if state.advertiser is not None:
            outbox.restore(state.advertiser)
        self._all.append(space)
        space.renewals.acquired(state.renewed_us)
        return space

    def failed(self, space: Space, reason: str, number: int) -> None:
        """Note that a lockspace is not ours any more; its users are being stopped."""
        space.stage = Stage.JOINED
        space.settled.set()
        if not space.is_dead:
            space.failure, space.failure_number = reason, number
            _log.error("s%d failed: %s", space.number, reason)
            self._die(space)

    def _on_event(self, space: Space, event: Any) -> None:
        """Take in what the engine tells of a membership, on the loop's thread."""
        if isinstance(event, Joined):
            space.renewals.acquired(event.held.renewed_us)
        elif isinstance(event, Renewed):
            space.renewals.renewed(event, now_us())
            if space.stage is Stage.JOINED:
                self._journal.space_changed(space)
                self.keep(space)
            self.changed()
        elif isinstance(event, Marked):
            space.requested_us.update(dict.fromkeys(event.host_ids, now_us()))
            self.on_marked(space, event.host_ids)
        elif isinstance(event, Failed) and not space.is_removed:
            number = event.error.code if event.error is not None else 0
            self.failed(space, event.reason, number)

    # -- leaving ---------------------------------------------------------------------------------

    def remove(self, wanted: wire.Lockspace, *, unused_only: bool) -> Space:
        """Begin to leave a lockspace. Raises Refusal (spec/wire-protocol.md 8.3)."""
        space = next((s for s in self._all if s.is_same(wanted)), None)
        if space is None:
            raise Refusal(errno.ENOENT)
        if space.stage is Stage.REMOVING:
            raise Refusal(errno.EINPROGRESS)
        if unused_only and (self.registry.of_space(space) or space.index_users):
            raise Refusal(errno.EBUSY)
        self.leave(space)
        return space

    def leave(self, space: Space) -> None:
        """Leave a lockspace: stop who uses it, then free the host id."""
        if space.stage is Stage.ADDING:
            space.aborted.set()
            if space.membership is not None and not space.settled.is_set():
                space.membership.abandon_join()
            return
        if space.is_removed:
            return
        space.is_removed = True
        if not space.is_dead:
            assert space.membership is not None
            space.membership.kill_processes()
            self._die(space)

    def _die(self, space: Space) -> None:
        if space.is_dead:
            return
        space.is_dead = True
        self._journal.space_changed(space)
        self.registry.space_died(space)
        self.changed()
        self.start(self._clear(space))

    async def _clear(self, space: Space) -> None:
        """Wait until nobody uses a dead lockspace, then leave it."""
        membership = space.membership
        assert membership is not None
        while self._is_used(space):
            await self.next_change()
        space.stage = Stage.REMOVING
        self.registry.space_died(space)
        membership.set_used(False)
        try:
            await surely_in_thread(membership.leave, None)
        except PaxosleaseError as error:
            _log.error("s%d leave failed: %s", space.number, error)
        self._end(space)

    def _is_used(self, space: Space) -> bool:
        # What is under way with a lease ends by itself when the membership is left.
        entries = self.registry.of_space(space)
        is_held = any(entry.tokens for entry in entries)
        is_needed = space.used or space.index_is_changing
        return is_held or is_needed or (space.used_by_orphans and bool(entries))

    def set_config(self, space: Space, config: int) -> None:
        """Note whether a lockspace is used by others than its leases' holders. Raises Refusal."""
        wants_use = config in (wire.Config.USED, wire.Config.USED_BY_ORPHANS)
        if wants_use and space.is_dead:
            raise Refusal(errno.ENOSPC)
        if config in (wire.Config.USED, wire.Config.UNUSED):
            space.used = wants_use
        elif config in (wire.Config.USED_BY_ORPHANS, wire.Config.UNUSED_BY_ORPHANS):
            space.used_by_orphans = wants_use
            if space.is_dead:
                self.registry.space_died(space)
        else:
            raise Refusal(errno.EINVAL)
        if space.membership is not None:
            space.membership.set_used(space.used or space.index_is_changing)
        self.changed()

    def _end(self, space: Space) -> None:
        if space in self._all:
            self._all.remove(space)
        self._journal.space_ended(space)
        self.keeper.expire(space.name, 0)
        self.keeper.drop(self._key(space))
        if space.listeners is not None:
            space.listeners.close()
        space.ended.set()
        self.changed()
        _log.info("s%d lockspace gone", space.number)

    # -- waiting ---------------------------------------------------------------------------------

    def start(self, work: Any) -> asyncio.Task[Any]:
        """Run something that belongs to a lockspace's life."""
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.critical("internal error in a lockspace's life", exc_info=task.exception())

    def changed(self) -> None:
        """Wake who waits for any change of lockspaces or leases."""
        waiting, self._waiting = self._waiting, set()
        for event in waiting:
            event.set()

    async def next_change(self) -> None:
        """Wait until something has changed."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await event.wait()
        finally:
            self._waiting.discard(event)


def wanted_key(space: Space) -> tuple[bytes, int, int]:
    """Return what a membership is of: where the lockspace is, and the host id."""
    return (*space.place, space.wanted.host_id)


def _as_text(space: wire.Lockspace) -> str:
    name = space.name.decode("utf-8", "backslashreplace")
    path = space.disk.path.decode("utf-8", "backslashreplace")
    return f"{name}:{space.host_id}:{path}:{space.disk.offset}"
