"""The recorded conversation with virtlockd 9.0.0, and what has to happen around it.

`exchanges.jsonl` holds one message and its answer per line; spec/lock-drivers.md 18 describes it.
The conversation takes place in a directory whose name is as long as that of the recording.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.lockd.outside import locked

_RECORDED_IN = b"/run/locktest"


class Exchange(NamedTuple):
    """One message to the daemon and its answer, empty if there was none."""

    name: str
    connection: str
    request: bytes
    reply: bytes
    is_hangup: bool
    is_split: bool


def recorded() -> list[Exchange]:
    """Return all exchanges as they were recorded."""
    lines = Path(__file__).with_name("exchanges.jsonl").read_text().splitlines()
    return [_exchange(json.loads(line)) for line in lines]


def _exchange(line: dict[str, str]) -> Exchange:
    request, reply = bytes.fromhex(line["request_hex"]), bytes.fromhex(line["reply_hex"])
    return Exchange(
        line["name"], line["conn"], request, reply, bool(line.get("closed")), "sent" in line
    )


def scripted(directory: Path) -> list[Exchange]:
    """Return the conversation that can be repeated, as it goes in a directory."""
    new = bytes(directory)
    assert len(new) == len(_RECORDED_IN)
    return [
        e._replace(
            request=e.request.replace(_RECORDED_IN, new), reply=e.reply.replace(_RECORDED_IN, new)
        )
        for e in recorded()
        if not e.name.startswith("live-")
    ]


@contextmanager
def place() -> Iterator[Path]:
    """Give a directory with a name of the right length, and the two files in it."""
    directory = Path(f"/tmp/lt{secrets.token_hex(3)}")
    directory.mkdir()
    try:
        (directory / "one.img").touch()
        (directory / "two.img").touch()
        yield directory
    finally:
        shutil.rmtree(directory)


class Surroundings:
    """Does what others did while the conversation was recorded. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> Surroundings:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def before(self, name: str) -> None:
        """Do what comes before an exchange."""
        one, auto = self._directory / "one.img", self._directory / "auto"
        match name:
            case "acquire-foreign-exclusive":
                self._stack.enter_context(locked(one))
            case "acquire-foreign-shared":
                self._stack.enter_context(locked(one, "shared"))
            case "release-autocreate-shared-2":
                self._stack.enter_context(locked(auto, "shared"))
            case "delete-resource-directory":
                (self._directory / "sp" / "subdir").mkdir()

    def after(self, name: str) -> None:
        """Do what comes after an exchange."""
        match name:
            case "acquire-autocreate-foreign-exclusive" | "release-shared-foreign-shared":
                self._stack.close()
            case "release-autocreate":
                assert not (self._directory / "auto").exists()
            case "release-autocreate-shared-2":
                self._stack.close()
                (self._directory / "auto").unlink()
