"""A command line's session with a daemon, so that two programs can be compared by what they say.

A side is a program, a daemon of its own and lease files of its own. Both sides run the same steps;
what has to be equal is what was printed and the exit codes, with paths, pids and whatever else
cannot be the same taken out.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.compat.peer import wait_until
from tests.daemon.daemons import PROGRAMS, Daemon, Kind

LIMIT_S: Final = 60.0
FILE_BYTES: Final = 32 << 20


class Answer(NamedTuple):
    """What a step came to."""

    step: str
    code: int
    out: str


class Side:
    """A program and a daemon for it; a context manager that ends both.

    cli: whose program is asked; daemon: whose daemon answers.
    """

    def __init__(self, directory: Path, cli: Kind, daemon: Kind) -> None:
        self.program = PROGRAMS[cli]
        self.file = directory / "leases"
        directory.mkdir()
        with self.file.open("wb") as file:
            file.truncate(FILE_BYTES)
        self.daemon = Daemon(daemon, directory / "run", "host1")
        self.holders: list[subprocess.Popen[bytes]] = []
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        self.daemon.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait()
        self.daemon.__exit__(kind, error, trace)

    def words(self, step: str) -> list[str]:
        """Return the words of a step: @ stands for the file, P1, P2 for the holders."""
        found: list[str] = []
        for word in step.split():
            if re.fullmatch(r"P\d", word):
                word = str(self.holders[int(word[1:]) - 1].pid)
            found.append(word.replace("@", str(self.file)))
        return found

    def run(self, *words: str) -> tuple[int, str]:
        """Run the program; returns exit code and output, with what is this side's own taken out."""
        done = subprocess.run(
            [self.program, *words], env=self.daemon.env, stdout=subprocess.PIPE, timeout=LIMIT_S
        )
        return done.returncode, self._neutral(done.stdout.decode(errors="replace"))

    def step(self, step: str) -> Answer:
        """Run a step and keep its answer."""
        answer = Answer(step, *self.run(*self.words(step)))
        self.answers.append(answer)
        return answer

    def hold(self, *words: str) -> None:
        """Start a program that holds leases until the end; waits until it does."""
        command = [self.program, "client", "command", *words, "-c", "/bin/sleep", "600"]
        holder = subprocess.Popen(
            [word.replace("@", str(self.file)) for word in command],
            env=self.daemon.env,
            stdout=subprocess.DEVNULL,
        )
        self.holders.append(holder)
        exe = Path(f"/proc/{holder.pid}/comm")
        wait_until(lambda: exe.read_text() == "sleep\n", LIMIT_S, "the holder has its leases")

    def until(self, step: str, sign: str) -> None:
        """Repeat a step, without keeping it, until it prints something."""
        words = self.words(step)
        wait_until(lambda: sign in self.run(*words)[1], LIMIT_S, f"{step} says {sign}")

    def _neutral(self, text: str) -> str:
        text = text.replace(str(self.file), "FILE")
        for number, holder in enumerate(self.holders, 1):
            text = re.sub(rf"\b{holder.pid}\b", f"P{number}", text)
        text = re.sub(r"timestamp \d+", "timestamp N", text)
        return re.sub(r"=\d+", "=N", text) if "_ms=" in text or "    " in text else text


def run_steps(side: Side, steps: Sequence[str]) -> None:
    """Run steps: `hold WORDS`, `until SIGN: WORDS`, or the words of a command line."""
    for step in steps:
        kind, _, rest = step.partition(" ")
        if kind == "hold":
            side.hold(*rest.split())
        elif kind == "until":
            sign, _, words = rest.partition(": ")
            side.until(words, sign)
        elif kind == "kill":
            holder = side.holders[int(rest) - 1]
            holder.kill()
            holder.wait()
        else:
            side.step(step)
