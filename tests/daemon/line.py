"""One connection to a daemon, byte by byte."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from tests.daemon import wire

REPLY_S: Final = 15.0


class Outcome(NamedTuple):
    """What came back, and what the daemon did with the connection: open, closed, silent, event."""

    reply: bytes
    end: str


class Line:
    """A connection; every wait has a limit, after which what has come so far is the answer."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        # Without a limit: with one, a full backlog (of 5) is an error instead of a wait.
        self._socket.connect(path)
        self._socket.settimeout(REPLY_S)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def end_sending(self) -> None:
        """Close our direction; replies can still come."""
        self._socket.shutdown(socket.SHUT_WR)

    def receive(self, size: int | None, limit_s: float = REPLY_S) -> tuple[bytes, str]:
        """Read `size` bytes, or to the end; return them and: whole, ended or late."""
        self._socket.settimeout(limit_s)
        got = bytearray()
        while size is None or len(got) < size:
            try:
                data = self._socket.recv(65536 if size is None else size - len(got))
            except ConnectionResetError:
                data = b""
            except TimeoutError:
                return bytes(got), "late"
            if not data:
                return bytes(got), "whole" if size is None else "ended"
            got += data
        return bytes(got), "whole"

    def ask(self, data: bytes, limit_s: float = REPLY_S, *, probes: bool = True) -> Outcome:
        """Send one request, read its reply and see whether the connection is still served.

        Without `probes` the last is left out: bytes of the request may have been left unread.
        """
        try:
            self.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return Outcome(b"", "closed while sending")
        cmd = wire.parse_header(data).cmd
        return self.answer(cmd, limit_s, probes=probes)

    def answer(self, cmd: int, limit_s: float = REPLY_S, *, probes: bool = True) -> Outcome:
        """Read the reply to a command that was sent."""
        if cmd in wire.NO_REPLY:
            return Outcome(b"", self.probe())
        reply, how = self.receive(wire.HEADER_SIZE, limit_s)
        if how != "whole":
            return Outcome(reply, "closed" if how == "ended" else "silent")
        size = wire.rest_size(cmd, wire.parse_header(reply))
        rest, how = self.receive(size, limit_s)
        if how == "late":
            return Outcome(reply + rest, "silent")
        if size is None or how == "ended":
            return Outcome(reply + rest, "closed")
        if cmd == wire.Cmd.REG_EVENT and wire.result(reply) == 0:
            return Outcome(reply + rest, "event")
        if not probes:
            return Outcome(reply + rest, "not looked at")
        return Outcome(reply + rest, self.probe())

    def probe(self, limit_s: float = REPLY_S) -> str:
        """Ask for the version: `open` if that is answered next, and with nothing before it."""
        question = wire.request(wire.Cmd.VERSION)
        try:
            self.send(question)
        except (BrokenPipeError, ConnectionResetError):
            return "closed"
        reply, how = self.receive(wire.HEADER_SIZE, limit_s)
        if how != "whole":
            return "closed" if how == "ended" else "silent"
        header = wire.parse_header(reply)
        return "open" if header.cmd == wire.Cmd.VERSION else f"said {reply.hex()}"
