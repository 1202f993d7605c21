"""Where a script plays: daemons of one kind, their clients and disks, and the notes taken.

A script is a function that takes a `Stage` and plays steps. Each step has a name and leaves an
`Observation`: lines of text in which nothing varies from run to run. Played once with each kind of
daemon, the two lists of observations are compared by `compare.differences`.
"""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

from tests.compat.peer import PeerBroken, SanlockClient, SanlockError, wait_until
from tests.daemon import areas, wire
from tests.daemon.daemons import REPOSITORY, SANLOCK, Daemon, Kind
from tests.daemon.line import REPLY_S, Line, Outcome

MIB: Final = 1 << 20
T = TypeVar("T")


class Differs(NamedTuple):
    """A difference that is meant: why, and what each kind is to show."""

    why: str
    real: Sequence[str]
    ours: Sequence[str]


class Observation(NamedTuple):
    """What one step showed, how long it took, and the difference that is expected, if any."""

    step: str
    lines: tuple[str, ...]
    took_s: float
    differs: Differs | None = None


def restart(daemon: Daemon, limit_s: float = 20.0) -> None:
    """Let a daemon of ours become its successor, in the same process; not one that is stopped.

    Raises PeerBroken when that has not happened after `limit_s`.
    """
    process = Path(f"/proc/{daemon.pid}")
    if daemon.process.poll() is not None or ") T " in (process / "stat").read_text():
        return
    # Where the kernel has put things in this image; another one has them elsewhere.
    image = (process / "auxv").read_bytes()
    daemon.process.send_signal(signal.SIGUSR2)

    def is_another() -> bool:
        return daemon.process.poll() is not None or (process / "auxv").read_bytes() != image

    wait_until(is_another, limit_s, f"the daemon {daemon.name} is another image")


class Stage:
    """One play of a script with one kind of daemon; a context manager that ends everything.

    restarts_every: 0, or before which steps our daemons are restarted, which nobody may notice.
    """

    def __init__(self, kind: Kind, directory: Path, restarts_every: int = 0) -> None:
        self.kind = kind
        self._restarts_every = restarts_every
        self._daemons: list[Daemon] = []
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.masks = wire.Masks()
        self.masks.add_text(str(directory), "$DIR")
        if restarts_every:
            self.masks.forget_last_commands()
        self.notes: list[Observation] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def see(
        self, step: str, lines: Sequence[str], took_s: float = 0.0, differs: Differs | None = None
    ) -> None:
        """Note what a step showed."""
        if any(step == note.step for note in self.notes):
            raise ValueError(f"two steps are called {step!r}")
        shown = tuple(self.masks.text(line) for line in lines)
        self.notes.append(Observation(step, shown, took_s, differs))

    def host(self, name: str, *options: str, env: dict[str, str] | None = None) -> Host:
        """Start a daemon; it ends with the stage."""
        daemon = Daemon(self.kind, self.directory / name, name, options, env)
        self._stack.callback(daemon.kill)
        self._daemons.append(daemon)
        self.masks.add_pid(daemon.pid, f"<{name}>")
        return Host(self, daemon)

    def before_step(self) -> None:
        """Restart our daemons if it is time to."""
        every = self._restarts_every
        if self.kind == "ours" and every and len(self.notes) % every == every - 1:
            for daemon in self._daemons:
                # It is put off while a lockspace is joined, left or lost.
                with suppress(PeerBroken):
                    restart(daemon, limit_s=3.0)

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that is left at the end of the stage."""
        return self._stack.enter_context(context)

    def keep(self, closing: Callable[[], None]) -> None:
        """Call `closing` at the end of the stage."""
        self._stack.callback(closing)

    def file(self, name: str, mib: int) -> Path:
        """Make a sparse file of zeroes."""
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(mib * MIB)
        return path

    def disk(self, step: str, path: Path, offset: int, *, sector_size: int = 512) -> None:
        """Note what one area of a disk holds."""
        self.see(step, areas.tell(path, offset, sector_size))

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = 15.0) -> None:
        """Wait for a condition, unseen."""
        wait_until(condition, limit_s, f"{self.kind}: {what}")


class Host:
    """One daemon on the stage, and the ways to talk to it."""

    def __init__(self, stage: Stage, daemon: Daemon) -> None:
        self.stage = stage
        self.daemon = daemon

    def line(self) -> Line:
        """Open a connection that is not registered and ends with the stage."""
        line = Line(str(self.daemon.socket_path))
        self.stage.keep(line.close)
        return line

    def quietly(self, data: bytes, limit_s: float = REPLY_S) -> bytes:
        """Ask on a connection of its own without taking a note; return the reply."""
        line = Line(str(self.daemon.socket_path))
        try:
            return line.ask(data, limit_s).reply
        finally:
            line.close()

    def ask(
        self,
        step: str,
        data: bytes,
        *,
        limit_s: float = REPLY_S,
        probes: bool = True,
        differs: Differs | None = None,
    ) -> bytes:
        """Ask on a connection of its own, note the outcome, return the reply."""
        line = Line(str(self.daemon.socket_path))
        try:
            return self.ask_on(line, step, data, limit_s=limit_s, probes=probes, differs=differs)
        finally:
            line.close()

    def ask_on(
        self,
        line: Line,
        step: str,
        data: bytes,
        *,
        limit_s: float = REPLY_S,
        probes: bool = True,
        differs: Differs | None = None,
    ) -> bytes:
        """Ask on a connection that stays."""
        self.stage.before_step()
        begin = time.monotonic()
        outcome = line.ask(data, limit_s, probes=probes)
        self._note(step, data, outcome, time.monotonic() - begin, differs)
        return outcome.reply

    def _note(
        self, step: str, data: bytes, outcome: Outcome, took_s: float, differs: Differs | None
    ) -> None:
        told = wire.tell(wire.parse_header(data).cmd, outcome.reply, self.stage.masks)
        self.stage.see(step, [*told, f"then {outcome.end}"], took_s, differs)

    def client(self, name: str, *, opens: bool = True) -> Client:
        """Start a process with one connection that is registered; without `opens`, with none."""
        return Client(self, name, opens)

    def join(
        self, space: str, host_id: int, path: Path, offset: int = 0, *, is_ready: bool = True
    ) -> None:
        """Join a lockspace with io_timeout 1; `is_ready`: wait until the host table is there."""
        place = wire.lockspace(space, host_id, path, offset)
        reply = self.quietly(wire.request(wire.Cmd.ADD_LOCKSPACE, place, data=1))
        if not reply or wire.result(reply) != 0:
            shown = wire.result(reply) if reply else "no answer"
            raise PeerBroken(f"{self.daemon.name} cannot join {space}: {shown}")
        if is_ready:
            self.await_hosts(space)

    def begin_join(self, space: str, host_id: int, path: Path) -> None:
        """Begin to join a lockspace with io_timeout 1; `await_hosts` sees it done."""
        place = wire.lockspace(space, host_id, path)
        self.quietly(wire.request(wire.Cmd.ADD_LOCKSPACE, place, data=1, flags=1))

    def await_hosts(self, space: str, count: int = 1, limit_s: float = 15.0) -> None:
        """Wait until the host table shows that many hosts as alive."""
        question = wire.request(wire.Cmd.GET_HOSTS, wire.lockspace(space))

        def are_there() -> bool:
            reply = self.quietly(question)
            states = [reply[at + 28] & 0xF for at in range(32, len(reply), 32)]
            return states.count(3) >= count

        self.stage.until(are_there, f"{count} hosts in {space}", limit_s)

    def _run(self, step: str, words: Sequence[str], differs: Differs | None) -> str:
        self.stage.before_step()
        begin = time.monotonic()
        done = subprocess.run(
            [SANLOCK, *words], env=self.daemon.env, capture_output=True, text=True, timeout=110
        )
        took_s = time.monotonic() - begin
        printed = [self.printed(line) for line in done.stdout.splitlines()]
        lines = [f"exit {done.returncode}", *printed]
        lines += [f"stderr: {line}" for line in done.stderr.splitlines()]
        self.stage.see(step, lines, took_s, differs)
        return done.stdout

    def printed(self, line: str) -> str:
        """Mask what varies in a line of the command: pids, times, items of `-D`."""
        masks = self.stage.masks
        if line.startswith("    ") and "=" in line:
            return "    " + masks.item(line.strip())
        line = re.sub(r"\btimestamp [1-9]\d*", "timestamp *", line)
        line = re.sub(r"\bchecksum 0x[0-9a-f]+", "checksum *", line)
        # The column of times in `direct dump`.
        line = re.sub(r" (?!0{10})\d{10} ", " ********** ", line)
        return re.sub(r"\b(p|pid) (\d+)", lambda found: self._named(found), line)

    def _named(self, found: re.Match[str]) -> str:
        return f"{found[1]} {self.stage.masks.pid(int(found[2]))}"

    def cli(self, step: str, *words: str, differs: Differs | None = None) -> str:
        """Run `sanlock client` and note what it printed."""
        return self._run(step, ["client", *words], differs)

    def direct(self, step: str, *words: str, differs: Differs | None = None) -> str:
        """Run `sanlock direct` and note what it printed."""
        return self._run(step, ["direct", *words], differs)

    def python(self, name: str) -> Python:
        """Start a process that uses the `sanlock` module and is registered."""
        return Python(self, name)


class Client:
    """A process with connections of its own, which the daemon may kill."""

    def __init__(self, host: Host, name: str, opens: bool) -> None:
        self.host = host
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.daemon.actor", str(host.daemon.socket_path)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        host.stage.keep(self.end)
        host.stage.masks.add_pid(self.pid, f"<{name}>")
        if opens:
            self.register(self.open())

    def register(self, at: int = 0) -> None:
        """Register a connection: no reply, but the next answer shows that it was read."""
        data = wire.request(wire.Cmd.REGISTER).hex()
        if self._call("ask", at=at, data=data, limit_s=10)[1] != "open":
            raise PeerBroken(f"{self.name} could not register")

    def open(self) -> int:
        """Open one more connection."""
        number: int = self._call("open")
        return number

    def close(self, at: int = 0) -> None:
        """Close a connection."""
        self._call("close", at=at)

    def ask(
        self,
        step: str,
        data: bytes,
        *,
        at: int = 0,
        limit_s: float = REPLY_S,
        probes: bool = True,
        differs: Differs | None = None,
    ) -> bytes:
        """Ask on a connection and note the outcome."""
        self.host.stage.before_step()
        begin = time.monotonic()
        outcome = self.outcome(data, at=at, limit_s=limit_s, probes=probes)
        self.host._note(step, data, outcome, time.monotonic() - begin, differs)
        return outcome.reply

    def quietly(
        self, data: bytes, *, at: int = 0, limit_s: float = REPLY_S, probes: bool = True
    ) -> bytes:
        """Ask on a connection without taking a note."""
        return self.outcome(data, at=at, limit_s=limit_s, probes=probes).reply

    def outcome(
        self, data: bytes, *, at: int = 0, limit_s: float = REPLY_S, probes: bool = True
    ) -> Outcome:
        """Ask on a connection without taking a note; return all of what came of it."""
        value = self._call("ask", at=at, data=data.hex(), limit_s=limit_s, probes=probes)
        return Outcome(*self._outcome(value))

    def send(self, data: bytes, *, at: int = 0) -> None:
        """Send bytes and do not wait."""
        self._call("send", at=at, data=data.hex())

    def answer(self, step: str, cmd: int, *, at: int = 0, limit_s: float = REPLY_S) -> bytes:
        """Read the 32-byte answer to what was sent."""
        data, how = self._outcome(self._call("receive", at=at, size=32, limit_s=limit_s))
        self.host.stage.see(step, [*wire.tell(cmd, data, self.host.stage.masks), how])
        return bytes(data)

    def holds(self, step: str, *, differs: Differs | None = None) -> None:
        """Note what this client holds, as the daemon tells anybody who asks for its pid."""
        self.host.ask(step, wire.inquire(self.pid), differs=differs)

    def fork(self) -> int:
        """Leave a child that has our descriptors; return its pid."""
        child: int = self._call("fork")
        return child

    def kill_only(self) -> None:
        """Kill the process; whoever else has its descriptors keeps the client alive."""
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """Kill the process and wait until the daemon has seen it."""
        self.kill_only()
        self.await_unknown()

    def await_unknown(self, limit_s: float = 15.0) -> None:
        """Wait until the daemon knows nothing of this pid."""

        def is_unknown() -> bool:
            reply = self.host.quietly(wire.inquire(self.pid))
            return bool(reply) and wire.result(reply) == -3

        self.host.stage.until(is_unknown, f"{self.name} is forgotten", limit_s)

    def fate(self, step: str, limit_s: float = 20.0) -> None:
        """Note how the process ended, waiting for it."""
        try:
            status = self._process.wait(timeout=limit_s)
            shown = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
        except subprocess.TimeoutExpired:
            shown = "lives"
        self.host.stage.see(step, [shown])

    def lives(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, whatever its state."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            self._process.stdout.close()
            return
        self._process.stdout.close()

    @staticmethod
    def _outcome(value: list[str]) -> tuple[bytes, str]:
        return bytes.fromhex(value[0]), value[1]

    def _call(self, op: str, **args: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **args}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerBroken(f"{self.name} is dead, asked for {op}") from None
        limit_s = float(args.get("limit_s", 0)) * 2 + 20
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise PeerBroken(f"{self.name} did not answer to {op}")
        return json.loads(line)


class Python:
    """A process that uses Debian's `sanlock` module, registered with the daemon."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.client = SanlockClient(host.daemon.env)
        host.stage.keep(self.client.close)
        host.stage.masks.add_pid(self.client.pid, f"<{name}>")
        self.client.register()

    def call(self, step: str, function: str, /, **kwargs: Any) -> Any:
        """Call a function of the module and note what it returned or raised."""
        self._host.stage.before_step()
        with_fd = kwargs.pop("with_fd", None)
        extra = {} if with_fd is None else {"with_fd": with_fd}
        begin = time.monotonic()
        value: Any = None
        try:
            value = self.client.call("module", function=function, kwargs=kwargs, **extra)
            lines = [self._shown(value)]
        except SanlockError as error:
            lines = [str(error)]
        self._host.stage.see(step, lines, time.monotonic() - begin)
        return value

    def _shown(self, value: Any) -> str:
        if isinstance(value, dict):
            items = (
                f"{key}={'*' if key == 'timestamp' and item else self._shown(item)}"
                for key, item in value.items()
            )
            return "{" + " ".join(items) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._shown(item) for item in value) + "]"
        return self._host.stage.masks.text(str(value))
