"""Prove from outside that a lease excludes: an external witness of who uses it, and when.

Processes report `enter` after they acquired a lease and `leave` before they release it, over a
unix socket, and wait for the answer each time. One process serves the socket, one message after
another, so the reports have one order and nobody can be inside without its having been recorded:
if two processes are inside at once as the witness sees it, they held the lease at once in truth.
(The converse needs no proof: a process reports a shorter time than it held the lease.)

Proved for each lease: never two exclusive users, never an exclusive user beside a shared one, and,
if asked for, that fencing tokens strictly grow: an exclusive user's token is larger than every
token seen before, a shared user's at least that of the last exclusive user.

A process that dies inside has left: the kernel closes its socket, and the server looks at closed
sockets before it looks at new reports. A broken exclusion is an error to the process that broke
it and to `Witness.check`, which also runs when the context manager is left.

Command line, for tests that need a process to be run or killed under a lease:

    python witness.py hold SOCKET LEASE MODE TOKEN   enter, say "inside", leave when stdin ends
    python witness.py serve SOCKET [--tokens]        what `Witness` runs
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

EXCLUSIVE = "exclusive"
SHARED = "shared"
MESSAGE_BYTES_MAX = 4096
HUNG_UP = select.POLLHUP | select.POLLRDHUP | select.POLLERR


class ExclusionBroken(AssertionError):
    """Two users were inside a lease that excludes them, or a fencing token did not grow."""


class Verdict(NamedTuple):
    """What a witness saw: counts of reports, and what was wrong."""

    entries: int
    users: int
    shared_at_once: int
    inside: int
    violations: tuple[str, ...]


class _Use:
    """One lease, as its users reported it."""

    def __init__(self) -> None:
        self.inside: dict[int, tuple[str, str, int]] = {}  # by connection: user, mode, token
        self.token_seen = -1
        self.token_exclusive = -1


class Ledger:
    """The rules of the witness, without any socket: who is inside which lease."""

    def __init__(self, tokens_grow: bool) -> None:
        self._tokens_grow = tokens_grow
        self._uses: dict[str, _Use] = {}
        self._users: set[str] = set()
        self._entries = 0
        self._shared_at_once = 0
        self._violations: list[str] = []

    def enter(self, who: int, user: str, lease: str, mode: str, token: int) -> list[str]:
        """Record that a connection began to use a lease; return what is wrong with it."""
        use = self._uses.setdefault(lease, _Use())
        self._entries += 1
        self._users.add(user)
        wrong = []
        if who in use.inside:
            wrong.append(f"{lease}: {user} entered twice")
        wrong += self._conflicts(use, who, user, lease, mode)
        wrong += self._judge_token(use, user, lease, mode, token)
        use.inside[who] = (user, mode, token)
        self._count_shared(use)
        self._violations += wrong
        return wrong

    def change(self, who: int, lease: str, mode: str, token: int) -> list[str]:
        """Record that a user converted its lease to another mode."""
        use = self._uses.setdefault(lease, _Use())
        if who not in use.inside:
            wrong = [f"{lease}: a user changed its mode without being inside"]
        else:
            user, mode_before, token_before = use.inside[who]
            wrong = self._conflicts(use, who, user, lease, mode)
            if (mode_before, mode, token_before) != (EXCLUSIVE, SHARED, token):
                wrong += self._judge_token(use, user, lease, mode, token)
            use.inside[who] = (user, mode, token)
            self._count_shared(use)
        self._violations += wrong
        return wrong

    def leave(self, who: int, lease: str) -> list[str]:
        """Record that a user stopped using a lease."""
        use = self._uses.setdefault(lease, _Use())
        wrong = [] if who in use.inside else [f"{lease}: a user left without being inside"]
        use.inside.pop(who, None)
        self._violations += wrong
        return wrong

    def lost(self, who: int) -> None:
        """Record that a connection has ended: its process is dead or done."""
        for use in self._uses.values():
            use.inside.pop(who, None)

    def verdict(self) -> Verdict:
        """Return all that was seen so far."""
        inside = sum(len(use.inside) for use in self._uses.values())
        counts = (self._entries, len(self._users), self._shared_at_once, inside)
        return Verdict(*counts, tuple(self._violations))

    def _conflicts(self, use: _Use, who: int, user: str, lease: str, mode: str) -> list[str]:
        return [
            f"{lease}: {user} ({mode}) is inside together with {other} ({other_mode})"
            for whose, (other, other_mode, _) in use.inside.items()
            if whose != who and EXCLUSIVE in (mode, other_mode)
        ]

    def _judge_token(self, use: _Use, user: str, lease: str, mode: str, token: int) -> list[str]:
        floor = use.token_seen + 1 if mode == EXCLUSIVE else use.token_exclusive
        use.token_seen = max(use.token_seen, token)
        if mode == EXCLUSIVE:
            use.token_exclusive = max(use.token_exclusive, token)
        if self._tokens_grow and token < floor:
            return [f"{lease}: token {token} of {user} ({mode}) is below {floor}"]
        return []

    def _count_shared(self, use: _Use) -> None:
        shared = sum(mode == SHARED for _, mode, _ in use.inside.values())
        self._shared_at_once = max(self._shared_at_once, shared)


class _Server:
    """Serve the socket: one ledger, one thread, one message after another."""

    def __init__(self, path: str, tokens_grow: bool) -> None:
        self._ledger = Ledger(tokens_grow)
        self._poll = select.poll()
        self._peers: dict[int, tuple[socket.socket, bytearray]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(128)
        self._poll.register(self._listener, select.POLLIN)
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop` is asked for or stdin, the end of our parent, is closed."""
        self._poll.register(0, select.POLLIN)
        while not self._stopping:
            ready = self._poll.poll()
            # Who is gone must be out before anybody else is judged: a takeover may follow a death
            # by a microsecond.
            ready.sort(key=lambda item: not item[1] & HUNG_UP)
            for fd, event in ready:
                self._serve(fd, bool(event & HUNG_UP))

    def _serve(self, fd: int, is_hung_up: bool) -> None:
        if fd == 0:
            self._stopping = True
        elif fd == self._listener.fileno():
            peer, _ = self._listener.accept()
            self._peers[peer.fileno()] = (peer, bytearray())
            self._poll.register(peer, select.POLLIN | select.POLLRDHUP)
        elif fd in self._peers:
            # What it said before it died comes first, then its death, both now.
            while self._read(fd) and is_hung_up:
                continue

    def _read(self, fd: int) -> bool:
        """Serve what one connection has said; return False when it has ended."""
        peer, pending = self._peers[fd]
        try:
            data = peer.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            data = b""
        pending += data
        while b"\n" in pending:
            line, _, rest = bytes(pending).partition(b"\n")
            pending[:] = rest
            reply = self._judge(fd, json.loads(line))
            try:
                peer.sendall(json.dumps(reply).encode() + b"\n")
            except (BrokenPipeError, ConnectionResetError):
                data = b""  # it died before it read our answer: the same as having closed
        if not data:
            self._poll.unregister(fd)
            self._ledger.lost(fd)
            del self._peers[fd]
            peer.close()
        return bool(data)

    def _judge(self, fd: int, message: dict[str, Any]) -> dict[str, Any]:
        lease = message.get("lease", "")
        match message["what"]:
            case "enter":
                rest = (message["mode"], message["token"])
                wrong = self._ledger.enter(fd, message["user"], lease, *rest)
            case "change":
                wrong = self._ledger.change(fd, lease, message["mode"], message["token"])
            case "leave":
                wrong = self._ledger.leave(fd, lease)
            case "verdict":
                return {"verdict": self._ledger.verdict()}
            case other:
                wrong = [f"unknown report {other!r}"]
        return {"wrong": wrong}


class WitnessClient:
    """One user's line to the witness. Reports of one user come from one thread at a time."""

    def __init__(self, path: Path, user: str) -> None:
        self.user = user
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30.0)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._replies = self._socket.makefile("rb")

    def enter(self, lease: str, mode: str, token: int) -> None:
        """Report that we use `lease`, after acquiring it. Raises ExclusionBroken."""
        self._report("enter", lease=lease, mode=mode, token=token)

    def change(self, lease: str, mode: str, token: int) -> None:
        """Report another mode: after a conversion to exclusive, before one to shared."""
        self._report("change", lease=lease, mode=mode, token=token)

    def leave(self, lease: str) -> None:
        """Report that we do not use `lease` any more, before releasing it."""
        self._report("leave", lease=lease)

    @contextmanager
    def use(self, lease: str, mode: str, token: int) -> Iterator[None]:
        """Be inside for the body; what the body raises is not followed by a leave.

        After an error nobody knows whether the lease is still in use; `close` ends it.
        """
        self.enter(lease, mode, token)
        yield
        self.leave(lease)

    def verdict(self) -> Verdict:
        """Ask what was seen so far."""
        entries, users, shared_at_once, inside, violations = self._ask({"what": "verdict"})[
            "verdict"
        ]
        return Verdict(entries, users, shared_at_once, inside, tuple(violations))

    def close(self) -> None:
        """Hang up: we are outside of everything."""
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _report(self, what: str, **fields: str | int) -> None:
        wrong = self._ask({"what": what, "user": self.user, **fields})["wrong"]
        if wrong:
            raise ExclusionBroken("; ".join(wrong))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        line = self._replies.readline()
        if not line:
            raise ConnectionError("the witness is gone")
        reply: dict[str, Any] = json.loads(line)
        return reply


class Witness:
    """A witness process, and the proof it gives; a context manager.

    `socket_path` goes to the processes that report. Leaving the context without an error checks.
    """

    def __init__(self, directory: Path, *, tokens_grow: bool = False) -> None:
        self.socket_path = directory / "witness.sock"
        flags = ["--tokens"] if tokens_grow else []
        command = [sys.executable, __file__, "serve", str(self.socket_path), *flags]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        self._own = self._connect(limit_s=10.0)

    def _connect(self, limit_s: float) -> WitnessClient:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return WitnessClient(self.socket_path, "the test")
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._stop()
                    raise
            time.sleep(0.005)

    def client(self, user: str) -> WitnessClient:
        """Return a line to the witness for a user in this process."""
        return WitnessClient(self.socket_path, user)

    def check(self) -> Verdict:
        """Return what was seen; raises ExclusionBroken when anything was wrong."""
        verdict = self._own.verdict()
        if verdict.violations:
            raise ExclusionBroken("; ".join(verdict.violations))
        return verdict

    def close(self) -> None:
        """End the witness process, without a judgement."""
        self._own.close()
        self._stop()

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.check()
        finally:
            self.close()


def main() -> int:
    """Serve the witness, or be a user of a lease."""
    parser = argparse.ArgumentParser(description="an external witness of exclusion")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve a witness until stdin is closed")
    serve.add_argument("socket")
    serve.add_argument("--tokens", action="store_true", help="fencing tokens must grow")
    hold = commands.add_parser("hold", help="be inside until stdin is closed")
    hold.add_argument("socket")
    hold.add_argument("lease")
    hold.add_argument("mode", choices=(EXCLUSIVE, SHARED))
    hold.add_argument("token", type=int)
    options = parser.parse_args()
    if options.command == "serve":
        _Server(options.socket, options.tokens).run()
        return 0
    with WitnessClient(Path(options.socket), f"pid {os.getpid()}") as client:
        try:
            client.enter(options.lease, options.mode, options.token)
        except ExclusionBroken as broken:
            print(broken, flush=True)
            return 1
        print("inside", flush=True)
        sys.stdin.read()
        client.leave(options.lease)
    return 0


if __name__ == "__main__":
    sys.exit(main())
