"""The leases of the daemon's clients: who holds which, shared by whom, left behind by whom.

The engine knows one holding per resource and host (engine/leases.py). On top of it the daemon has
an `Entry` per resource, with a `Token` for each client that holds it: several for a shared lease,
none for an orphan. What is done with an entry is done by one command at a time, which its `phase`
says to all others.

Source: spec/wire-protocol.md 6.3, 6.4 and 9.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from paxoslease.daemon.bridge import finished
from paxoslease.daemon.clients import Client
from paxoslease.daemon.entries import Entry, Key, Phase, Token
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.winning import leases_of, read_lvb, win, write_lvb
from paxoslease.engine.leases import Holding, Phase as HoldingPhase
from paxoslease.engine.operation import now_us
from paxoslease.errors import (
    Cancelled,
    LeaseBusy,
    LeaseLost,
    LockspaceFailed,
    PaxosleaseError,
    StorageError,
)
from paxoslease.protocol import leases as protocol
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.journal import Journal
    from paxoslease.daemon.spaces import Space, Spaces

_log = logging.getLogger(__name__)

_GOES_ON: Final = -202
_GONE_POLL_S: Final = 0.2
EARLIER_MAX: Final = 4096


class AcquireFailed(Exception):
    """Nothing was acquired: the resource number `index` was not to be had, for this `reason`."""

    def __init__(self, index: int, reason: BaseException) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason


class Registry:
    """All entries. Belongs to the loop's thread. shared_retries: see `win`."""

    def __init__(self, spaces: Spaces, journal: Journal, shared_retries: int) -> None:
        self._spaces = spaces
        self._journal = journal
        self._shared_retries = shared_retries
        self._entries: dict[Key, Entry] = {}
        self._earlier: dict[Key, tuple[int, int]] = {}  # numbers and uses of what is gone
        self._numbers = 0
        self._background: set[asyncio.Task[Any]] = set()
        self.opening: dict[str, asyncio.Task[None]] = {}  # by path: of disks that a restart opens

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def find(self, lockspace: bytes, name: bytes) -> Entry | None:
        """Return the entry of these names."""
        return self._entries.get((lockspace, name))

    def of_space(self, space: Space) -> list[Entry]:
        """Return the entries of a lockspace."""
        return [entry for entry in self._entries.values() if entry.space is space]

    def put_back(self, entry: Entry) -> None:
        """Take in an entry of a predecessor."""
        self._numbers = max(self._numbers, entry.number)
        self._entries[entry.key] = entry

    def give_back(
        self, entry: Entry, client: Client, number: int, is_persistent: bool, origin: int
    ) -> None:
        """Take in a client's hold on such an entry."""
        self._numbers = max(self._numbers, number)
        token = Token(number, client, entry, is_persistent, origin)
        entry.tokens.append(token)
        client.tokens.append(token)
        client.tokens.sort(key=lambda held: held.number)
        client.take_places()
        client.follow(entry.space)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # -- acquiring -------------------------------------------------------------------------------

    async def acquire_all(
        self,
        client: Client,
        resources: Sequence[wire.Resource],
        flags: wire.AcquireFlag,
        origin: int = 0,
        *,
        is_again: bool = False,
    ) -> None:
        """Acquire all of these, or none. Raises AcquireFailed for the first that failed.

        Their I/O is in flight together. None is begun behind one that is refused at once.
        origin: of the request. is_again: it was begun before a restart, and what was acquired for
        it then counts.
        """
        before = list(client.tokens)
        earlier_tokens = [t for t in before if is_again and origin and t.origin == origin]
        begun: list[asyncio.Task[Token]] = []
        refused: Refusal | None = None
        for resource in resources:
            earlier = self.find(resource.lockspace, resource.name)
            if earlier is not None and earlier.phase is Phase.ACQUIRING and begun:
                # The same resource twice in one request: as if one came after the other.
                await asyncio.wait(begun)
            key = (resource.lockspace, resource.name)
            done = next((t for t in earlier_tokens if t.entry.key == key), None)
            if done is not None:
                earlier_tokens.remove(done)
                begun.append(asyncio.ensure_future(self._complete(done, flags)))
                continue
            try:
                attempt = self._acquire(client, resource, flags, origin)
            except Refusal as refusal:
                refused = refusal
                break
            begun.append(asyncio.ensure_future(attempt))
        try:
            await self._unless_ended(client, begun)
        except asyncio.CancelledError:
            # A restart: the request will be run again, so nothing of it may be left.
            await self._undo_all(client, begun, before)
            raise
        errors = [Cancelled() if t.cancelled() else t.exception() for t in begun]
        failures = [error for error in errors if error is not None]
        tokens = [task.result() for task, error in zip(begun, errors, strict=True) if error is None]
        if refused is not None:
            failures.append(refused)
        if client.has_ended and all(isinstance(error, Cancelled) for error in failures):
            failures = [Refusal(errno.ENOTTY)]
        if failures:
            # Some may have been got for resources behind the one that is refused now.
            for token in [*tokens, *earlier_tokens]:
                await self._undo(token)
            first = next((i for i, error in enumerate(errors) if error is not None), len(begun))
            raise AcquireFailed(first, failures[0])
        client.arrange(tokens)

    @staticmethod
    async def _unless_ended(client: Client, begun: Sequence[asyncio.Task[Token]]) -> None:
        """Wait for all of these; what still waits when the client ends is given up."""
        if not begun:
            return
        watching = asyncio.ensure_future(client.ended.wait())
        try:
            pending: set[asyncio.Task[Any]] = set(begun)
            while pending and not watching.done():
                _, rest = await asyncio.wait(
                    {*pending, watching}, return_when=asyncio.FIRST_COMPLETED
                )
                pending = {task for task in rest if task is not watching}
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        finally:
            watching.cancel()

    async def _undo_all(
        self, client: Client, begun: Sequence[asyncio.Task[Token]], before: Sequence[Token]
    ) -> None:
        """Give up what is under way for a request, and what the client has got by it."""
        for task in begun:
            task.cancel()
        if begun:
            await asyncio.wait(begun)
        for token in [token for token in client.tokens if token not in before]:
            await self._undo(token)

    def _acquire(
        self, client: Client, resource: wire.Resource, flags: wire.AcquireFlag, origin: int
    ) -> Any:
        """Check what can be checked at once; returns what is to be awaited for the token.

        Raises Refusal.
        """
        if not 1 <= resource.num_disks <= wire.DISKS_MAX:
            raise Refusal(errno.ERANGE)
        space = self._spaces.usable(resource.lockspace)
        orphan_flags = wire.AcquireFlag.ORPHAN | wire.AcquireFlag.ORPHAN_ONLY
        entry = self._entries.get((resource.lockspace, resource.name))
        if entry is None:
            if flags & wire.AcquireFlag.ORPHAN_ONLY:
                raise Refusal(errno.ENOENT)
            entry = self._new_entry(space, resource, client)
            return self._acquire_new(client, entry, flags, origin)
        if entry.phase is Phase.RELEASING:
            raise Refusal(errno.EAGAIN)
        if entry.phase in (Phase.ACQUIRING, Phase.CONVERTING):
            raise Refusal(errno.EBUSY)
        if entry.phase is Phase.ORPHAN:
            if not flags & orphan_flags or entry.shared != resource.is_shared:
                raise Refusal(errno.EUCLEAN)
            entry.phase = Phase.HELD
            entry.take_over(client)
        elif flags & wire.AcquireFlag.ORPHAN_ONLY:
            raise Refusal(errno.ENOENT)
        elif not (entry.shared and resource.is_shared):
            raise Refusal(errno.EEXIST)
        # Now, not when the result is awaited: the last holder may release it in between.
        return self._complete(self._hand_out(client, entry, resource, origin), flags)

    def _new_entry(self, space: Space, resource: wire.Resource, client: Client) -> Entry:
        """Make an entry, under the number that the resource had before, if that is known."""
        earlier = self._earlier.pop((resource.lockspace, resource.name), None)
        number, reused = earlier or (self._next_number(), 0)
        entry = Entry(number, space, resource, client)
        entry.reused = reused
        entry.coming_token = self._next_number()
        self._entries[entry.key] = entry
        return entry

    async def _complete(self, token: Token, flags: wire.AcquireFlag) -> Token:
        """Attach the value block, if that is wanted, to what has been acquired."""
        if flags & wire.AcquireFlag.LVB and token.entry.lvb is None:
            try:
                await self._until_open(token.entry)
                await read_lvb(token.entry)
                self._journal.entry_changed(token.entry)
            except BaseException:
                await self._undo(token)
                raise
        return token

    def _hand_out(
        self, client: Client, entry: Entry, resource: wire.Resource, origin: int
    ) -> Token:
        is_persistent = bool(resource.flags & wire.ResourceFlag.PERSISTENT)
        number = entry.coming_token or self._next_number()
        token = Token(number, client, entry, is_persistent, origin)
        entry.coming_token = 0
        entry.tokens.append(token)
        client.tokens.append(token)
        client.follow(entry.space)
        self._journal.entry_changed(entry)
        return token

    def _remove(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
            self._journal.entry_ended(entry)
            self._earlier[entry.key] = entry.number, entry.reused + 1
            if len(self._earlier) > EARLIER_MAX:
                del self._earlier[next(iter(self._earlier))]
        self._spaces.changed()

    async def _acquire_new(
        self, client: Client, entry: Entry, flags: wire.AcquireFlag, origin: int
    ) -> Token:
        try:
            with self._journal.doing(entry, "acquire"):
                no_wait = bool(flags & wire.AcquireFlag.OWNER_NOWAIT)
                await win(entry, no_wait, self._shared_retries)
        except BaseException:
            holding = entry.holding
            if holding is None or holding.phase is HoldingPhase.GONE:
                self._remove(entry)
            else:
                # It is given up while nobody waits for it, and stays noted until that is over.
                entry.phase = Phase.RELEASING
                self.in_background(self._await_gone(entry))
            raise
        if entry.space.is_dead:
            self.forget(entry)
            raise Refusal(errno.ENOSPC)
        entry.phase = Phase.HELD
        return await self._complete(self._hand_out(client, entry, entry.resource, origin), flags)

    async def _undo(self, token: Token) -> None:
        """Give back what was acquired for a request that failed as a whole."""
        try:
            await self.release(token)
        except (PaxosleaseError, Refusal) as error:
            _log.warning("undo_failed resource=%r error=%s", token.entry.resource.name, error)

    # -- releasing -------------------------------------------------------------------------------

    async def release(self, token: Token, new_name: bytes | None = None) -> None:
        """Give a client's token back, and the lease with the last one. Raises PaxosleaseError."""
        entry = token.entry
        self._drop(token)
        if entry.tokens or entry.phase is Phase.ORPHAN:
            self._journal.entry_changed(entry)
            return
        await self._release_entry(entry, new_name)

    async def release_all(
        self, tokens: Sequence[Token], new_name: bytes | None = None
    ) -> list[int]:
        """Give back several tokens, their I/O in flight together; returns the result of each."""

        async def release(token: Token) -> int:
            try:
                await self.release(token, new_name)
            except (PaxosleaseError, Refusal) as error:
                return number_of(error)
            return 0

        return await asyncio.gather(*(release(token) for token in tokens))

    def _drop(self, token: Token) -> None:
        if token in token.entry.tokens:
            token.entry.tokens.remove(token)
        if token in token.client.tokens:
            token.client.tokens.remove(token)
        token.client.settle(token.entry.space)

    async def _release_entry(self, entry: Entry, new_name: bytes | None = None) -> None:
        """Release a lease that nobody uses any more. Raises PaxosleaseError; it is gone all the
        same, or goes on being released.
        """
        holding = entry.holding
        if holding is None or entry.space.is_dead:
            self.forget(entry)
            return
        entry.phase = Phase.RELEASING
        with self._journal.doing(entry, "release"):
            await self._give_back(entry, holding, new_name)

    async def _give_back(self, entry: Entry, holding: Holding, new_name: bytes | None) -> None:
        await self._until_open(entry)
        leases = leases_of(entry)
        lvb = bytes(entry.lvb) if entry.lvb is not None and entry.is_lvb_dirty else None
        failure: PaxosleaseError | None = None
        if entry.shared:
            lvb = None
        try:
            try:
                refused = await finished(leases.start_release(holding, lvb, new_name))
            except StorageError as error:
                if holding.phase is not HoldingPhase.HELD:
                    raise
                # The value block could not be written: the lease is given back without it.
                failure = error
                refused = await finished(leases.start_release(holding, None, new_name))
        except LeaseLost:
            self.forget(entry)
            return
        except LeaseBusy as error:
            # A conversion of which its client was told that it failed goes on yet: what comes of
            # it is given back.
            leases.give_up(holding)
            self.in_background(self._await_gone(entry))
            raise Refusal(_GOES_ON) from error
        except StorageError:
            self.in_background(self._await_gone(entry))
            raise
        except PaxosleaseError:
            self.forget(entry)
            raise
        self._remove(entry)
        if failure is not None or refused is not None:
            raise failure or refused  # type: ignore[misc]

    async def _until_open(self, entry: Entry) -> None:
        """Wait for disks of a resource that are being opened, as long as for an I/O."""
        paths = {os.fsdecode(disk.path) for disk in entry.resource.disks}
        opening = [task for path, task in self.opening.items() if path in paths]
        if opening:
            await asyncio.wait(opening, timeout=entry.space.timing.io_timeout)

    async def _await_gone(self, entry: Entry) -> None:
        """Keep an entry until the lease is gone, which comes about by itself."""
        while entry.holding is not None and entry.holding.phase is not HoldingPhase.GONE:
            if entry.space.is_dead:
                break
            await asyncio.sleep(_GONE_POLL_S)
        self.forget(entry)

    def forget(self, entry: Entry) -> None:
        """Drop an entry without a word to the disk."""
        for token in list(entry.tokens):
            self._drop(token)
        if entry.holding is not None and entry.space.membership is not None:
            entry.space.membership.leases.forget(entry.holding)
        self._remove(entry)

    def client_ended(self, client: Client, space: Space | None = None) -> None:
        """Release, leave behind or forget what a client held whose connection has ended.

        space: only in this lockspace.
        """
        for token in list(client.tokens):
            entry = token.entry
            if space not in (None, entry.space):
                continue
            self._drop(token)
            if entry.tokens or entry.phase is not Phase.HELD:
                self._journal.entry_changed(entry)
                continue
            if entry.space.is_dead:
                self.forget(entry)
            elif token.is_persistent:
                entry.phase = Phase.ORPHAN
                self._journal.entry_changed(entry)
                self._spaces.changed()
            else:
                self.abandoned(entry)

    def abandoned(self, entry: Entry) -> asyncio.Task[None]:
        """Release in the background what nobody holds any more, and nobody can have from now on."""
        entry.phase = Phase.RELEASING
        return self.in_background(self._release_entry(entry))

    def space_died(self, space: Space) -> None:
        """Forget the orphans of a lockspace that has failed or is being removed, unless they count.

        An orphan that counts (USED_BY_ORPHANS) keeps the lockspace from being cleared.
        """
        for entry in self.of_space(space):
            if entry.phase is Phase.ORPHAN and not space.used_by_orphans:
                self.forget(entry)

    def release_orphans(self, lockspace: bytes, name: bytes) -> int:
        """Begin to release the orphan of a name, or all of a lockspace; returns how many."""
        found = [
            entry
            for entry in self
            if entry.phase is Phase.ORPHAN
            and entry.resource.lockspace == lockspace
            and name in (b"", entry.resource.name)
        ]
        for entry in found:
            self.abandoned(entry)
        return len(found)

    def in_background(self, work: Any) -> asyncio.Task[None]:
        """Run something whose end nobody has to wait for; what fails is logged."""

        async def run() -> None:
            try:
                await work
            except (PaxosleaseError, Refusal) as error:
                _log.warning("background_failed result=%d error=%s", number_of(error), error)

        task = asyncio.ensure_future(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- converting ------------------------------------------------------------------------------

    async def convert(self, token: Token, *, shared: bool) -> None:
        """Turn a client's lease into the other mode. Raises Refusal, PaxosleaseError."""
        entry = token.entry
        if entry.shared == shared:
            raise Refusal(errno.EALREADY)
        if entry.space.is_dead:
            raise Refusal(errno.ENOSPC)
        if len(entry.tokens) > 1:
            raise Refusal(errno.EAGAIN)
        if entry.phase is not Phase.HELD:
            raise Refusal(errno.EBUSY)
        holding = entry.holding
        assert holding is not None
        leases = leases_of(entry)
        entry.phase = Phase.CONVERTING
        make = protocol.convert_to_shared if shared else protocol.convert_to_exclusive
        noting = self._journal.doing(entry, "convert")
        try:
            await self._until_open(entry)
            if shared:
                await write_lvb(entry)
            with noting:
                await finished(leases.start_convert(holding, make, gives_up=shared))
        finally:
            if holding.phase is HoldingPhase.CONVERTING:
                # Its client is told that it failed, or a restart cuts it short. It goes on, and
                # stays noted as what is under way.
                entry.doing = "convert"
                self.in_background(self._await_converted(entry, holding))
            else:
                self._converted(entry, holding)

    async def _await_converted(self, entry: Entry, holding: Holding) -> None:
        """Wait for the end of a conversion that nobody waits for, and let it count."""
        while holding.phase is HoldingPhase.CONVERTING and not entry.space.is_dead:
            await asyncio.sleep(_GONE_POLL_S)
        if entry.phase is not Phase.CONVERTING:
            return  # it is being given back already
        entry.doing = ""
        _log.warning("r%d its conversion has ended after all", entry.number)
        self._converted(entry, holding)
        self._spaces.changed()
        if not entry.tokens:
            self.abandoned(entry)

    async def until_converted(self, entry: Entry) -> None:
        """Wait for the end of a conversion that is under way."""
        while entry.phase is Phase.CONVERTING:
            await self._spaces.next_change()

    def _converted(self, entry: Entry, holding: Holding) -> None:
        """Note how a resource is held after a conversion, whether or not that has worked."""
        entry.phase = Phase.HELD
        if holding.lost.is_set() and _is_good(entry.space):
            # Another host took the lease although we live: its users must not go on.
            for token in entry.tokens:
                _log.critical("r%d was taken by others: pid %d", entry.number, token.client.pid)
                token.client.stop()
        lease = holding.lease
        if lease is not None:
            entry.shared, entry.lver = lease.shared, lease.lver
        if not entry.shared and entry.tokens:
            entry.take_over(entry.tokens[0].client)
        self._journal.entry_changed(entry)


def _is_good(space: Space) -> bool:
    """Tell whether a lockspace is joined and has not failed."""
    assert space.membership is not None
    try:
        space.membership.member.standing(now_us())
    except LockspaceFailed:
        return False
    return True
