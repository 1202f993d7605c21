"""Runs the command as a process, and says what is wrong with what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import paxoslease

COMMAND = (sys.executable, "-m", "paxoslease.cli.main")
FAST = ("--io-timeout", "1", "--watchdog-fire-timeout", "2")
LIMIT_S = 60
MIB = 1 << 20


class Done(NamedTuple):
    """How a command ended; `errors` is standard error without the warnings."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if not line.startswith(WARNING)]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


WARNING = "paxoslease: warning: "


def call(*arguments: object, cwd: Path | None = None, prefix: Sequence[str] = ()) -> Done:
    """Run the command to its end."""
    done = subprocess.run(
        [*prefix, *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=LIMIT_S,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start the command, with pipes to what it prints; it has ended when the block has."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def end_of(process: subprocess.Popen[str]) -> Done:
    """Wait for the end of a command that was started."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Done(process.returncode, out, err)


def await_that(condition: Callable[[], Any], what: str, limit_s: float = 20.0) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


def refused(done: Done, code: int, *words: str) -> None:
    """Check that a command was refused: its exit code, and one line with these words and a hint."""
    assert done.code == code, done
    assert "Traceback" not in done.err
    message, *hint = done.errors
    assert message.startswith("paxoslease"), done.err
    for word in words:
        assert word in done.err, (word, done.err)
    assert len(hint) <= 1, done.err
    assert all(line.startswith("  hint: ") for line in hint), done.err


def make_space(path: Path, **sizes: int) -> None:
    """Make lockspace `vms` at 0 and resource `guest` behind it, for time-outs of a second."""
    paxoslease.format_lockspace(str(path), "vms", io_timeout=1, **sizes)
    behind = sizes.get("align_size", MIB)
    paxoslease.format_resource(str(path), "vms", "guest", offset=behind, **sizes)


def run_arguments(path: object, host_id: int = 1, *more: object) -> tuple[object, ...]:
    """Return the arguments of `run` on what make_space made, up to the command."""
    where = ("--lockspace", f"vms:{path}", "--resource", f"guest:{path}:1M")
    return ("run", *where, "--host-id", host_id, *FAST, *more, "--")


def records_of(path: object) -> dict[str, Any]:
    """Return the records that `inspect` finds by kind and number, as in 'delta lease 1'."""
    found: dict[str, Any] = {}
    for area in call("inspect", "--json", path).json:
        for record in area["records"]:
            number = record["number"]
            name = f"{record['record']} {number}" if number else record["record"]
            found[name] = record["fields"]
    return found
