"""What a daemon remembers outside of itself, so that a successor can go on with it.

A file in the run directory, which lies in memory (tmpfs): one JSON object per line, of which the
last one with the same key counts. A line is there once write() has returned, whatever then happens
to the process; after a crash of the whole host nothing of it is wanted. When the file has grown to
several times of what counts, it is written anew and put in the old one's place. A file that cannot
be written is no file: it is given up, and begun anew as soon as that works.

What is begun with a lease is noted before it is begun and its end before the client is told, so a
successor knows of everything that may be on the disk. Belongs to the loop's thread.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from paxoslease.engine.state import boot_identity, dump_lease, dump_membership
from paxoslease.errors import BadState, PaxosleaseError

if TYPE_CHECKING:
    from paxoslease.daemon.clients import Client
    from paxoslease.daemon.entries import Entry
    from paxoslease.daemon.spaces import Space

_log = logging.getLogger(__name__)

_SMALL: Final = 1 << 20
_GROWTH: Final = 4
_AGAIN_S: Final = 1.0
_LINES_READ_MAX: Final = 1 << 28


class Journal:
    """The journal of one daemon."""

    def __init__(self, path: str, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`known`: what a predecessor noted, to be kept until it is noted anew or dropped."""
        self._path = path
        # This daemon renews before it can note that it did, so here no membership is final.
        self._lines = {key: _line(key, _as_final(v, False)) for key, v in (known or {}).items()}
        self._written = 0
        self._limit = _SMALL
        self._fd = -1
        self._has_failed = False
        self._tried = 0.0

    def begin(self) -> None:
        """Begin a new file with what is known, in place of any old one. Raises OSError."""
        self._put("boot", {"boot": boot_identity()})
        self._rewrite()

    def begin_anyhow(self) -> None:
        """Begin as `begin`, now or as soon as that is possible: there are leases to be seen to."""
        try:
            self.begin()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """End it: an orderly end leaves nothing behind for a successor."""
        self._has_failed = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            os.unlink(self._path)

    # -- what is noted ---------------------------------------------------------------------------

    def client_changed(self, client: Client) -> None:
        """Note a registered client as it is now."""
        if not client.has_ended:
            self._put(f"c{client.number}", client.dump())

    def client_ended(self, client: Client) -> None:
        """Forget a client."""
        self.drop(f"c{client.number}")

    def space_changed(self, space: Space) -> None:
        """Note a joined lockspace as it is now, or that it is over and has to be cleared."""
        key = f"s{space.name.hex()}"
        if space.membership is None:
            return
        if not space.is_dead:
            try:
                state = space.membership.snapshot(space.outbox.state if space.outbox else None)
            except PaxosleaseError as error:
                # Its failure is on its way to the loop.
                _log.info("s%d is not to be continued: %s", space.number, error)
            else:
                self._put(key, _as_final(space.dump(dump_membership(state)), False))
                return
        if key in self._lines:
            # A successor has to see to it that its users end, as we do.
            noted = json.loads(_text_of(self._lines[key].rstrip(b"\n")))
            self._put(key, {**noted, "is_over": True})

    def space_ended(self, space: Space) -> None:
        """Forget a lockspace."""
        self.drop(f"s{space.name.hex()}")

    def entry_changed(self, entry: Entry) -> None:
        """Note a resource that is held, with those who hold it."""
        lease = entry.lease_before if entry.doing else self._lease_of(entry)
        self._put(_key(entry), entry.dump(lease, entry.doing))

    def entry_ended(self, entry: Entry) -> None:
        """Forget a resource that is not held any more."""
        self.drop(_key(entry))

    @contextmanager
    def doing(self, entry: Entry, what: str) -> Iterator[None]:
        """Note that something is done with a resource; how it ended is noted by the others.

        `what`: acquire, convert or release.
        """
        entry.lease_before, entry.doing = self._lease_of(entry), what
        self._put(_key(entry), entry.dump(entry.lease_before, what))
        try:
            yield
        finally:
            entry.doing = ""

    @staticmethod
    def _lease_of(entry: Entry) -> dict[str, Any] | None:
        membership, holding = entry.space.membership, entry.holding
        if membership is None or holding is None:
            return None
        try:
            return dump_lease(membership.leases.snapshot(holding))
        except PaxosleaseError as error:
            _log.info("r%d is not to be continued: %s", entry.number, error)
            return None

    # -- the file --------------------------------------------------------------------------------

    def _put(self, key: str, value: dict[str, Any]) -> None:
        line = _line(key, value)
        old = self._lines.get(key, b"")
        if old == line:
            return
        self._lines[key] = line
        self._append(line)

    def drop(self, key: str) -> None:
        """Forget what is noted under a key."""
        old = self._lines.pop(key, None)
        if old is not None:
            self._append(_line(key, {"gone": True}))

    def _append(self, line: bytes) -> None:
        if self._has_failed:
            self._try_again()
        if self._fd < 0:
            return
        try:
            _write(self._fd, line)
        except OSError as error:
            self._fail(error)
            return
        self._written += len(line)
        if self._written > self._limit:
            self._shorten()

    def _shorten(self) -> None:
        """Write the file anew. If there is no room for that the old one goes on to be right."""
        try:
            self._rewrite()
        except OSError as error:
            _log.error("journal_not_shortened path=%s error=%s", self._path, error)
            self._limit = 2 * self._written

    def _fail(self, error: OSError) -> None:
        """Do without the file, and try to write a new one at once and then again and again.

        What is there is out of date, which is worse than nothing. Without a journal a crash costs
        what it costs elsewhere, too: the clients, or the watchdog's reset.
        """
        _log.critical(
            "journal_failed path=%s error=%s: a crash will lose leases", self._path, error
        )
        self._has_failed = True
        self._tried = 0.0
        if self._fd >= 0:
            # A successor takes an empty one for none: this works where nothing can be removed.
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
        with suppress(OSError):
            os.unlink(self._path)
        self._try_again()

    def _try_again(self) -> None:
        now = time.monotonic()
        if self._tried and now < self._tried + _AGAIN_S:
            return
        self._tried = now
        try:
            self._rewrite()
        except OSError as error:
            _log.debug("journal_not_begun path=%s error=%s", self._path, error)
            return
        self._has_failed = False
        _log.critical("journal_written_again path=%s", self._path)

    def _rewrite(self) -> None:
        """Put a new file with what counts in the place of the old one. Raises OSError: nothing was
        changed then.
        """
        temporary = f"{self._path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        data = b"".join(self._lines.values())
        fd = os.open(temporary, flags, 0o600)
        try:
            _write(fd, data)
            os.rename(temporary, self._path)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(temporary)
            raise
        old, self._fd = self._fd, fd
        if old >= 0:
            os.close(old)
        self._written = len(data)
        self._limit = max(_SMALL, _GROWTH * len(data))

    def dump(self, *, is_final: bool = False) -> dict[str, dict[str, Any]]:
        """Return all that is noted, by key; is_final: nothing is renewed any more after this."""
        noted = {k: json.loads(_text_of(line.rstrip(b"\n"))) for k, line in self._lines.items()}
        return {key: _as_final(value, is_final) for key, value in noted.items()}


def _as_final(value: Mapping[str, Any], is_final: bool) -> dict[str, Any]:
    """Return a note with the word whether its membership, if it is of one, was renewed later."""
    if "membership" not in value or "is_over" in value:
        return dict(value)
    return {**value, "membership": {**value["membership"], "is_final": is_final}}


def read_journal(path: str) -> dict[str, dict[str, Any]] | None:
    """Read what a predecessor has left: the objects that count, by key.

    None when there is no journal, or it is of another boot. A last line without an end, which its
    writer did not live to finish, does not count. Raises BadState when a line is damaged: what it
    said could be anything, so nothing of the journal may be believed. Raises OSError.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LINES_READ_MAX + 1)
    except FileNotFoundError:
        return None
    if len(data) > _LINES_READ_MAX:
        raise BadState("journal", "size", f"at most {_LINES_READ_MAX} bytes", "more")
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            value = json.loads(_text_of(line))
            key = value["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadState("journal", f"line {number}", "what was written", str(error)) from None
        if value.get("gone"):
            found.pop(key, None)
        else:
            found[key] = value
    boot = found.pop("boot", {}).get("boot")
    return found if boot == boot_identity() else None


def salvage(path: str) -> list[dict[str, Any]]:
    """Return what can be read of a journal, right or wrong.

    With an empty note beside it for each line that is not what was written.
    """
    found: list[dict[str, Any]] = []
    with suppress(OSError), open(path, "rb") as file:
        for line in file.read(_LINES_READ_MAX).split(b"\n")[:-1]:
            try:
                _text_of(line)
            except ValueError:
                found.append({})
            with suppress(ValueError):
                value = json.loads(line[9:])
                if isinstance(value, dict):
                    found.append(value)
    return found


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    text = json.dumps({**value, "key": key}, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _text_of(line: bytes) -> bytes:
    """Return what a line says. Raises ValueError when it is not what was written."""
    text = line[9:]
    if len(line) < 9 or line[8:9] != b" " or int(line[:8], 16) != zlib.crc32(text):
        raise ValueError("the checksum is wrong")
    return text


def _key(entry: Entry) -> str:
    return f"e{entry.resource.lockspace.hex()}:{entry.resource.name.hex()}"
