"""A daemon that only listens: it writes down what a client sends, and answers with one number.

So two clients can be compared by what they ask for, without a daemon that does it.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

HEADER: Final = struct.Struct("<8I")
LENGTH_FIELD: Final = slice(16, 20)

REGISTER: Final = 1
VERSION: Final = 28
LOG_DUMP: Final = 6
STREAMS: Final = frozenset((5, 6, 15, 34))
READ_RESOURCE: Final = 21
READ_RESOURCE_BYTES: Final = 128
RELEASE: Final = 0x03080500


class Said(NamedTuple):
    """What a program printed, its exit code, and what it asked of the daemon.

    The length in the headers is blanked: the original states wrong ones (spec/wire-protocol.md 4).
    """

    code: int
    out: bytes
    asked: tuple[bytes, ...]


class Recorder:
    """A daemon in a run directory that answers everything with `result`; a context manager.

    streams: what it answers instead to STATUS, HOST_STATUS, RENEWAL, LOG_DUMP, by their number.
    """

    def __init__(self, directory: Path, result: int) -> None:
        self.streams: dict[int, bytes] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self.result = result
        self.env = {**os.environ, "SANLOCK_RUN_DIR": str(directory)}
        self._asked: list[bytes] = []  # one for each connection, in the order of their coming
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "sanlock.sock"))
        self._listener.listen(16)
        self._answering: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def run(self, program: str, words: Sequence[str], limit_s: float = 20.0) -> Said:
        """Run a program against this daemon."""
        self._asked.clear()
        done = subprocess.run(
            [program, *words], env=self.env, stdout=subprocess.PIPE, timeout=limit_s
        )
        for thread in self._answering:
            thread.join(limit_s)
        self._answering.clear()
        return Said(done.returncode, done.stdout, tuple(asked for asked in self._asked if asked))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            number = len(self._asked)
            self._asked.append(b"")
            thread = threading.Thread(target=self._answer, args=(client, number), daemon=True)
            self._answering.append(thread)
            thread.start()

    def _answer(self, client: socket.socket, number: int) -> None:
        with client:
            client.settimeout(10.0)
            asked = b""
            try:
                while len(header := client.recv(HEADER.size, socket.MSG_WAITALL)) == HEADER.size:
                    asked += header
                    if HEADER.unpack(header)[2] != REGISTER:
                        asked += self._converse(client, header)
                        break
            except ConnectionError:
                asked += b"(reset)"
        if HEADER.unpack_from(asked.ljust(HEADER.size))[2] != VERSION:
            self._asked[number] = _without_lengths(asked)

    def _converse(self, client: socket.socket, header: bytes) -> bytes:
        """Answer a request at once, then take in the rest of it, to the end of the connection."""
        fields = list(HEADER.unpack(header))
        command = fields[2]
        fields[6] = self.result & 0xFFFFFFFF
        if command == VERSION:
            fields[6:] = [0, RELEASE]
        # The one answer of which clients read a body whatever the header says.
        body = bytes(READ_RESOURCE_BYTES) if command == READ_RESOURCE else b""
        if command in self.streams:
            body = self.streams[command]
            fields[6:] = [len(body) if command == LOG_DUMP else 0, 0]
        client.sendall(HEADER.pack(*fields) + body)
        if command in STREAMS:
            client.shutdown(socket.SHUT_WR)
        rest = b""
        while part := client.recv(1 << 16):
            rest += part
        return rest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10.0)


def _without_lengths(asked: bytes) -> bytes:
    changed = bytearray(asked)
    changed[LENGTH_FIELD] = bytes(4)
    return bytes(changed)
