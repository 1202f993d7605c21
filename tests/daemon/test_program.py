"""A C program linked with Debian's libsanlock: with the real daemon, with ours, and over a restart.

The restart happens while the program holds its lease and an open descriptor, of which it knows
nothing: every later call has to go on as if nothing had been.
"""

from __future__ import annotations

import select
import shutil
import subprocess
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.daemon.daemons import Daemon, Kind, require
from tests.daemon.scripts.common import SPACE, format_resources, format_space
from tests.daemon.stage import MIB, Stage, restart

SOURCE: Final = Path(__file__).with_name("program.c")
HEADER: Final = Path("/usr/include/sanlock_resource.h")

BEFORE: Final = "join register restrict killpath acquire write read inquire share inquire exclude"
AFTER: Final = (
    "inquire hosts read write share exclude inquire release inquire acquire release leave"
)


class CompilerMissing(unittest.SkipTest):
    """gcc or the headers of libsanlock are not installed."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program."""
    if shutil.which("gcc") is None or not HEADER.exists():
        raise CompilerMissing("gcc or libsanlock-dev is not installed")
    made = tmp_path_factory.mktemp("program") / "program"
    command = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run([*command, str(SOURCE), "-o", str(made), "-lsanlock"], check=True)
    return made


class Running:
    """The program as a process: one word in, one line out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, word: str) -> str:
        """Take a step and return what the program says about it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        assert ready, f"{word}: no answer"
        line = self._process.stdout.readline()
        assert line, f"{word}: the program ended with {self._process.wait()}"
        return line.rstrip("\n")


@contextmanager
def running(program: Path, daemon: Daemon, path: Path) -> Iterator[Running]:
    """Run the program with a lockspace at the begin of `path` and R1 behind it."""
    process = subprocess.Popen(
        [str(program), SPACE, str(path), "R1", str(MIB)],
        env=daemon.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _play(kind: Kind, program: Path, directory: Path, *, restarts: bool = False) -> list[str]:
    """Run every step; return what the program said, without the path."""
    require(kind)
    with Stage(kind, directory) as stage:
        host = stage.host("one")
        path = stage.file("leases", 4)
        format_space(host, path)
        format_resources(host, path, 1)
        with running(program, host.daemon, path) as process:
            said = [process.do(word) for word in BEFORE.split()]
            host.await_hosts(SPACE)
            if restarts:
                restart(host.daemon)
            said += [process.do(word) for word in AFTER.split()]
        return [stage.masks.text(line) for line in said]


EXPECTED: Final = """\
join 0
register 0
restrict 0
killpath 0
acquire 0
write 0
read 0 a value
inquire 0 1 LS:R1:$DIR/leases:1048576:1
share 0
inquire 0 1 LS:R1:$DIR/leases:1048576:SH
exclude 0
inquire 0 1 LS:R1:$DIR/leases:1048576:2
hosts 0 1
read 0 a value
write 0
share 0
exclude 0
inquire 0 1 LS:R1:$DIR/leases:1048576:3
release 0
inquire 0 0 -
acquire 0
release 0
leave 0""".splitlines()


@pytest.mark.peer
def test_program_with_the_real_daemon(program: Path, tmp_path: Path) -> None:
    """What the program says is what it says with the real daemon."""
    assert _play("real", program, tmp_path / "s") == EXPECTED


def test_program_with_ours(program: Path, tmp_path: Path) -> None:
    """The same with ours."""
    assert _play("ours", program, tmp_path / "s") == EXPECTED


def test_program_survives_a_restart_of_ours(program: Path, tmp_path: Path) -> None:
    """The same when our daemon is restarted under it."""
    assert _play("ours", program, tmp_path / "s", restarts=True) == EXPECTED
