"""Two sides, the real sanlock and ours, on which the same calls are made at the same time.

Each has a daemon, files of its own in a directory of its own, and clients. The directories have
names of the same length, so that what is cut or announced by length is the same on both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from tests.compat.peer import PeerBroken, SanlockClient, SanlockError
from tests.daemon import areas, wire
from tests.daemon.calls import disks
from tests.daemon.daemons import REPOSITORY, SANLOCK, Daemon, Kind
from tests.daemon.line import Line
from tests.daemon.stage import MIB, Client, Host, Stage

KINDS: Final[tuple[Kind, Kind]] = ("real", "ours")
LIMIT_S: Final = 5.0
SIZES: Final = {
    "one": 16 * MIB,
    "two": 16 * MIB,
    "wide": 24 * MIB,
    "space": MIB,
    "empty": 0,
    "tiny": 100,
    "short": MIB - 512,
    "with:colon": 2 * MIB,
    "with space": 2 * MIB,
    "back\\slash": 2 * MIB,
    "n\u00e4m": 2 * MIB,
    "\udcff\udcfe": 2 * MIB,
}
# Clients whose connections have ended may still be told of.
_PASSING: Final = re.compile(r"p -1 (?!helper|listener|status)")

# With -D the original logs its arguments.
_LOGGED: Final = re.compile(r"\d{4}-\d\d-\d\d ")


class Ended(Exception):
    """A daemon is gone, or does not answer any more; `kind` says whose."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind = kind


class Program:
    """Runs the command line of one kind."""

    def __init__(self, kind: Kind) -> None:
        self._program = SANLOCK if kind == "real" else ""
        self._runner = subprocess.Popen(
            [sys.executable, "-m", "tests.daemon.calls.runner"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: Sequence[bytes], env: dict[str, str], cwd: Path) -> tuple[int, str, str]:
        """Run it; returns exit code, output, errors."""
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        asked = {
            "program": self._program,
            "words": [word.hex() for word in words],
            "env": {key: value for key, value in env.items() if key.startswith("SANLOCK")},
            "cwd": str(cwd),
        }
        self._runner.stdin.write(json.dumps(asked) + "\n")
        self._runner.stdin.flush()
        code, out, err = json.loads(self._runner.stdout.readline())
        return code, _text(bytes.fromhex(out)), _text(bytes.fromhex(err))

    def close(self) -> None:
        """End what runs it."""
        self._runner.kill()
        self._runner.communicate()


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


class Side:
    """One kind of daemon with its files and clients."""

    def __init__(self, kind: Kind, base: Path, clients: Sequence[str], here: bytes) -> None:
        self.kind = kind
        self.directory = base / kind
        self.here = here
        self._stack = ExitStack()
        with ExitStack() as stack:
            self.stage = stack.enter_context(Stage(kind, self.directory))
            make_files(self.directory)
            daemon = Daemon(
                kind,
                self.directory / "run",
                "host",
                prefix=("env", "-C", str(self.directory)),
            )
            stack.callback(daemon.kill)
            self.stage.masks.add_pid(daemon.pid, "<daemon>")
            # How often a lease was acquired before: not counted alike when that had failed.
            self.stage.masks.hide("reused")
            self.host = Host(self.stage, daemon)
            self.program = Program(kind)
            stack.callback(self.program.close)
            self.clients: dict[str, Client] = {}
            self.lines = dict.fromkeys(clients, 0)  # which connection of each is the one in use
            for name in clients:
                self.clients[name] = self.host.client(name)
            self.user = SanlockClient(daemon.env)
            stack.callback(self.user.close)
            self.stage.masks.add_pid(self.user.pid, "<user>")
            self.user.register()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    # -- calls -----------------------------------------------------------------------------------

    def local(self, data: bytes) -> bytes:
        """Return what was drawn with this side's directory in it."""
        return data.replace(self.here, os.fsencode(self.directory))

    def raw(self, data: bytes, client: str, pid_of: str, probes: bool) -> list[str]:
        """Send a request on a client's connection, or on a new one; return what came back.

        pid_of: whose pid stands in `data2`, if anybody's.
        """
        data = self.local(data)
        if pid_of:
            pid = self.clients[pid_of].pid.to_bytes(4, "little")
            data = data[:28] + pid + data[32:]
        if client:
            outcome = self.clients[client].outcome(
                data, at=self.lines[client], limit_s=LIMIT_S, probes=probes
            )
        else:
            line = Line(str(self.host.daemon.socket_path))
            try:
                outcome = line.ask(data, LIMIT_S, probes=probes)
            finally:
                line.close()
        told = wire.tell(wire.parse_header(data).cmd, outcome.reply, self.stage.masks)
        return [*told, f"then {outcome.end}"]

    def function(self, name: str, kwargs: dict[str, Any]) -> list[str]:
        """Call a function of the module; return what it returned or raised."""
        kwargs = {key: self._local_value(value) for key, value in kwargs.items()}
        with_fd = kwargs.pop("with_fd", None)
        extra = {} if with_fd is None else {"with_fd": with_fd}
        try:
            value = self.user.call("module", LIMIT_S, function=name, kwargs=kwargs, **extra)
        except SanlockError as error:
            return [f"raised {error}"]
        except PeerBroken as error:
            if not str(error).startswith("module: "):
                raise
            return [self.stage.masks.text(str(error))]
        return [self._shown(value)]

    def command(self, words: Sequence[bytes]) -> list[str]:
        """Run a command line; return its exit code and what it printed."""
        words = [self._local_word(word) for word in words]
        code, out, err = self.program.run(words, self.host.daemon.env, self.directory)
        lines = [self.printed(line) for line in out.split("\n")]
        lines += [f"stderr: {line}" for line in err.splitlines() if not _LOGGED.match(line)]
        return [f"exit {code}", *(line for line in lines if not _PASSING.match(line))]

    def damage(self, name: str, at: int, data: bytes, *, renews_sum: bool) -> list[str]:
        """Overwrite bytes of a file, and renew the checksum of the leader record there."""
        path = self.directory / name
        sector = at - at % 512
        areas.write(path, at, data)
        if renews_sum:
            areas.alter_leader(path, sector, at % 512, data)
        return []

    def printed(self, line: str) -> str:
        """Mask what varies in a line of the command: pids, times, items of `-D`."""
        line = self.host.printed(line)
        line = re.sub(r"\b\d+\b", lambda found: self.stage.masks.pid(int(found[0])), line)
        return self.stage.masks.text(line)

    def _local_word(self, word: bytes) -> bytes:
        found = re.fullmatch(rb"@pid:(\w+)@", word)
        if found:
            return b"%d" % self.clients[found[1].decode()].pid
        return self.local(word)

    def _local_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return os.fsdecode(self.local(os.fsencode(value)))
        if isinstance(value, bytes):
            return self.local(value)
        if isinstance(value, list):
            return [self._local_value(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self._local_value(item) for item in value)
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
        return self.stage.masks.text(str(value))

    def reconnect(self, name: str) -> list[str]:
        """End a client's connection and open another, when what it held has been given back."""
        client = self.clients[name]
        client.close(self.lines[name])
        client.await_unknown()
        self.settle()
        self.lines[name] = client.open()
        client.register(self.lines[name])
        return []

    def settle(self) -> None:
        """Wait until nothing is being released."""
        question = wire.request(wire.Cmd.STATUS)
        self.stage.until(lambda: b"list=rem" not in self.host.quietly(question), "all is settled")

    def join(self, space: bytes, formats: Sequence[bytes]) -> None:
        """Format leases, and join a lockspace in the file `space` as host 1."""
        path = self.directory / "space"
        place = wire.lockspace(space, 0, path, 0, wire.SIZES_512_1M)
        self.host.quietly(wire.request(wire.Cmd.WRITE_LOCKSPACE, place, data2=1))
        for data in formats:
            self.host.quietly(self.local(data))
        self.host.join(space.decode(), 1, path)

    def holds(self, name: str) -> list[tuple[bytes, bytes]]:
        """Return what a client holds: the name of each lease, and SH or its version."""
        reply = self.host.quietly(wire.inquire(self.clients[name].pid))
        text = reply[wire.HEADER_SIZE :].rstrip(b"\0").replace(b"\\:", b"!")
        items = [item.split(b":") for item in text.split() if item.count(b":") > 2]
        return [(item[1], item[-1]) for item in items]

    # -- states ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Ended when the daemon is gone."""
        status = self.host.daemon.process.poll()
        if status is not None:
            raise Ended(self.kind, f"the daemon ended with {status}")


def make_files(directory: Path) -> None:
    """Make what lies in a side's directory (drawing.py names it)."""
    for name, size in SIZES.items():
        with (directory / name).open("wb") as file:
            file.truncate(size)
    (directory / "directory").mkdir(exist_ok=True)
    for name, target in {"link": "one", "loop": "loop", "dangling": "nowhere"}.items():
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)


class Sides:
    """Both sides; a context manager that ends them."""

    def __init__(self, base: Path, clients: Sequence[str] = ()) -> None:
        self.base = base
        self.here = os.fsencode(base / "@@@@")
        self._clients = clients
        self._pool = ThreadPoolExecutor(2)
        self._stamps: dict[str, tuple[tuple[int, int], ...]] = {}
        self.sides: dict[Kind, Side] = {}
        self.ignored: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._pool.shutdown()

    def start(self) -> None:
        """Start both sides anew, with empty files."""
        self.end()
        self._stamps = {}
        for kind in KINDS:
            # Ours would go on where it was killed.
            shutil.rmtree(self.base / kind, ignore_errors=True)
            self.sides[kind] = Side(kind, self.base, self._clients, self.here)

    def end(self) -> None:
        """End both sides."""
        for side in self.sides.values():
            side.close()
        self.sides = {}

    def both(self, do: Callable[[Side], Any]) -> tuple[Any, Any]:
        """Do something on both sides at the same time. Raises Ended, PeerBroken."""
        tasks = {kind: self._pool.submit(do, side) for kind, side in self.sides.items()}
        errors = {kind: task.exception() for kind, task in tasks.items()}
        for kind, error in errors.items():
            if isinstance(error, PeerBroken | OSError):
                self.sides[kind].check()
                raise Ended(kind, str(error)) from error
        values = [task.result() for task in tasks.values()]
        for side in self.sides.values():
            side.check()
        return values[0], values[1]

    def changed(self) -> list[str]:
        """Return the files that have been written since the last time."""
        found: list[str] = []
        for name in SIZES:
            paths = [side.directory / name for side in self.sides.values()]
            stamps = tuple(disks.stamp(path) for path in paths)
            if self._stamps.get(name) != stamps:
                self._stamps[name] = stamps
                found.append(name)
        return found

    def disk_differences(self, names: Sequence[str]) -> list[str]:
        """Compare files by name."""
        real, ours = (self.sides[kind].directory for kind in KINDS)
        found: list[str] = []
        for name in names:
            ignored = self.ignored.get(name, (0, 0))
            found += disks.differences(real / name, ours / name, ignored)
        return found

    def equalise(self) -> None:
        """Give our side the files of the real one."""
        real, ours = (self.sides[kind].directory for kind in KINDS)
        for name in SIZES:
            disks.copy(real / name, ours / name)
        self.changed()

    def fresh_files(self) -> None:
        """Empty the files of both sides."""
        for side in self.sides.values():
            make_files(side.directory)
        self.changed()
