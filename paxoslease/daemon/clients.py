"""Registered clients: who they are, what they hold, and how they want to be stopped.

A client lives as long as its connection, which its children may have inherited: only when the last
descriptor of it is closed is it known that nobody uses its leases any more. The pid is used for
signals alone, and through a pidfd, so that they never reach another process.

Source: spec/wire-protocol.md 6 and 16; spec/timing-and-recovery.md 3.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable, Iterator, Sequence
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, Any

from paxoslease.engine.operation import now_us
from paxoslease.engine.processes import Process, Wishes, send_signal
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.connection import Connection
    from paxoslease.daemon.entries import Token
    from paxoslease.daemon.spaces import Space

_log = logging.getLogger(__name__)

_WORDS_MAX = 8
_BACKSLASH, _BLANK = ord("\\"), ord(" ")


class Client:
    """A registered client. Belongs to the loop's thread.

    tokens: what it holds, in the order in which it acquired. stopping: one handle per lockspace in
    which it holds leases. is_busy: one of its commands is under way. has_ended: its connection has.
    started: when its process did.
    """

    def __init__(
        self, number: int, pid: int, connection: Connection | None, started: int | None = None
    ) -> None:
        """`started`: as a predecessor noted it."""
        self.number = number
        self.pid = pid
        self.connection = connection
        self.name = b"%d" % pid
        self.restricted = wire.RestrictFlag(0)
        self.killpath = b""
        self.killpath_args = b""
        self.killpath_pid = False
        self.tokens: list[Token] = []
        self._places: list[Token] = []
        self.stopping: dict[Space, HeldProcess] = {}
        self.is_busy = False
        self.command_active = 0
        self.command_last = 0
        self.has_ended = False
        self.kills = 0
        self.ended = asyncio.Event()
        self.pidfd = _pidfd_of(pid) if connection is None else connection.peer_pidfd()
        self.started = start_time(pid) if started is None else started
        if self.pidfd >= 0 and start_time(pid) != self.started:
            # Its number is another's by now, who must not get its signals.
            os.close(self.pidfd)
            self.pidfd = -1
        if self.pidfd < 0:
            # It has ended: the end of its connection is on its way, or a child has that.
            _log.info("client_without_process pid=%d error=%s", pid, "its process has ended")

    @property
    def wishes(self) -> Wishes:
        """Return how the client wants to be stopped when a lockspace fails."""
        words = killpath_words(self.killpath, self.killpath_args)
        return Wishes(
            words,
            self.killpath_pid and len(words) < _WORDS_MAX,
            allows_sigterm=not self.restricted & wire.RestrictFlag.SIGTERM,
            allows_sigkill=not self.restricted & wire.RestrictFlag.SIGKILL,
        )

    def arrange(self, tokens: Sequence[Token]) -> None:
        """Put new tokens in the places of earlier ones that are free, in this order.

        Places are what INQUIRE tells leases by, as the original does.
        """
        for token in tokens:
            place = next((i for i, t in enumerate(self._places) if t not in self.tokens), None)
            if place is None:
                self._places.append(token)
            else:
                self._places[place] = token

    def take_places(self) -> None:
        """Have places for what is held, in its order: of a predecessor's."""
        self._places = list(self.tokens)

    def in_places(self) -> list[Token]:
        """Return the tokens in the order of their places."""
        placed = [token for token in self._places if token in self.tokens]
        return placed + [token for token in self.tokens if token not in placed]

    def spaces(self) -> set[Space]:
        """Return the lockspaces in which the client holds leases."""
        return {token.entry.space for token in self.tokens}

    def follow(self, space: Space) -> None:
        """Have the client stopped when the lockspace fails: it holds a lease of it now."""
        if space in self.stopping or space.membership is None:
            return
        wishes = self.wishes
        process = space.membership.processes.follow(
            lambda handle: HeldProcess(handle, self.pid, self.pidfd, wishes)
        )
        self.stopping[space] = process

    def unfollow(self, space: Space) -> None:
        """Leave the client alone when the lockspace fails: it holds no lease of it any more."""
        process = self.stopping.pop(space, None)
        if process is not None and space.membership is not None:
            process.let_go()
            space.membership.unguard(process)

    def settle(self, space: Space) -> None:
        """See whether the client still holds leases of a lockspace, after it gave one back."""
        if space not in self.spaces():
            self.unfollow(space)

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "number": self.number,
            "pid": self.pid,
            "started": self.started,
            "name": self.name.hex(),
            "restricted": int(self.restricted),
            "killpath": self.killpath.hex(),
            "killpath_args": self.killpath_args.hex(),
            "killpath_pid": self.killpath_pid,
            "is_muted": self.connection is not None and self.connection.is_muted,
        }

    def update_wishes(self) -> None:
        """Use what the client has said since about how it is to be stopped."""
        for process in self.stopping.values():
            process.wishes = self.wishes

    @property
    def is_running(self) -> bool:
        """Tell whether its process runs; its connection may outlive that."""
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def stop(self) -> None:
        """Stop its process at once, by the signal that it allows."""
        number = SIGKILL if self.wishes.allows_sigkill else SIGTERM
        for process in list(self.stopping.values())[:1]:
            process.signal(number)

    def end(self) -> None:
        """Note the end of its connection."""
        self.has_ended = True
        self.ended.set()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class HeldProcess(Process):
    """A client's process to the engine: it lasts until the client holds no lease any more.

    A process that has exited may have left its connection to a child, so its exit does not count;
    signals to it are lost then, and the watchdog is what remains. Its `pidfd` is an eventfd that
    becomes readable when the client has let go. tries, tried_us: how often somebody tried to stop
    it, and when last.
    """

    def __init__(self, handle: int, pid: int, pidfd: int, wishes: Wishes) -> None:
        self.handle = handle
        self.pid = pid
        self.wishes = wishes
        self.pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.has_run_killpath = False
        self.tries = 0
        self.tried_us = 0
        self._target = os.dup(pidfd) if pidfd >= 0 else -1

    def let_go(self) -> None:
        """Note that the client holds no lease of the lockspace any more."""
        os.eventfd_write(self.pidfd, 1)

    def signal(self, number: int) -> bool:
        if self.wait(0):
            return False
        self._note_try()
        try:
            if self._target < 0:
                raise ProcessLookupError
            send_signal(self.pid, self._target, number)
        except ProcessLookupError:
            _log.error("leases_outlive_process pid=%d: somebody has its connection", self.pid)
        except PermissionError as error:
            _log.error("signal_refused pid=%d signal=%d error=%s", self.pid, number, error)
        else:
            _log.warning("process_signalled pid=%d signal=%d", self.pid, number)
        return True

    def run_killpath(self, failed: Callable[[], None]) -> bool:
        if not super().run_killpath(failed):
            return False
        self.has_run_killpath = True
        self._note_try()
        return True

    def _note_try(self) -> None:
        self.tries += 1
        self.tried_us = now_us()

    def close(self) -> None:
        if self._target >= 0:
            os.close(self._target)
            self._target = -1
        super().close()


def _pidfd_of(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot; 0 when there is none.

    With the pid it names a process of this boot for ever.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def killpath_words(path: bytes, args: bytes) -> tuple[str, ...]:
    """Return the program and its arguments, at most eight words; the pid, if wanted, is one too.

    A backslash protects a blank or a backslash; anything else behind it, or a byte that is neither
    printable nor white space, ends the words (spec/wire-protocol.md 16.4).
    """
    if not path:
        return ()
    words: list[bytes] = []
    word = bytearray()
    is_open = False
    at = 0
    while at < len(args):
        byte = args[at]
        if byte == _BACKSLASH:
            at += 1
            if at == len(args) or args[at] not in (_BACKSLASH, _BLANK):
                break
            word.append(args[at])
            is_open = True
        elif bytes([byte]).isspace():
            if is_open:
                words.append(bytes(word))
            word, is_open = bytearray(), False
        elif _BLANK < byte < 0x7F:
            word.append(byte)
            is_open = True
        else:
            break
        at += 1
    if is_open:
        words.append(bytes(word))
    return tuple(os.fsdecode(part) for part in (path, *words[: _WORDS_MAX - 1]))


class Clients:
    """The registered clients. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._all: dict[int, Client] = {}

    def __iter__(self) -> Iterator[Client]:
        return iter(sorted(self._all.values(), key=lambda client: client.number))

    def __contains__(self, number: int) -> bool:
        return number in self._all

    def add(self, client: Client) -> None:
        """Add a client."""
        self._all[client.number] = client

    def remove(self, client: Client) -> None:
        """Forget a client, which has ended."""
        self._all.pop(client.number, None)

    def find(self, pid: int) -> Client | None:
        """Return the first client with a pid."""
        return next((client for client in self if client.pid == pid), None)
