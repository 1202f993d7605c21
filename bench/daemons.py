"""The lease daemon next to the real sanlock's: speed, and a thousand clients.

Both daemons run at once, unprivileged and without a watchdog, on files of their own, and are
measured in turns with the same client. Prints tables in Markdown.

python -m bench.daemons [--clients N] [--seconds S] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import paxoslease
from paxoslease.client import Connection, connect
from paxoslease.wire import sanlock as wire

KINDS: Final = ("sanlock", "ours")
IO_TIMEOUT_S: Final = 2
LEASES_EACH: Final = 4
_FLAGS: Final = ("-D", "-w", "0", "-h", "0", "-l", "0", "-U", "root", "-G", "root", "-e")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class DaemonUnderTest:
    """A daemon of either kind in a run directory of its own."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        directory.mkdir()
        self.command = ["/usr/sbin/sanlock", "daemon", *_FLAGS, f"bench-{kind}"]
        if kind == "ours":
            program = str(Path(sys.executable).with_name("paxoslease"))
            self.command = [program, "daemon", "--watchdog", "none", "--host-name", "bench-ours"]
            self.command += ["--set", "lock_memory = 0"]  # as -l 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "SANLOCK_RUN_DIR": str(self.directory), "SANLOCK_PRIVILEGED": "0"}
        return subprocess.Popen(self.command, env=env, stderr=subprocess.DEVNULL)

    def connect(self) -> Connection:
        """Return a client of it."""
        return Connection(str(self.directory), timeout_s=120)

    def await_answer(self) -> None:
        """Wait until it answers."""
        while True:
            try:
                connect(str(self.directory), timeout_s=120)
            except paxoslease.DaemonUnreachable:
                if self.process.poll() is not None:
                    raise SystemExit(
                        f"{self.kind} daemon ended: {self.process.returncode}"
                    ) from None
                time.sleep(0.001)
            else:
                return

    def started_ms(self) -> float:
        """Start it anew and return how long it takes to the first answered command, in ms."""
        self.process.terminate()
        self.process.wait()
        began = time.perf_counter()
        self.process = self._start()
        self.await_answer()
        return (time.perf_counter() - began) * 1e3

    def usage(self) -> tuple[float, float, int]:
        """Return its CPU time in s so far, its resident memory in MiB, and its threads."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        memory = int(fields["VmRSS"].split()[0]) / 1024
        return (int(stat[11]) + int(stat[12])) / _TICKS, memory, int(fields["Threads"])

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def both(directory: Path) -> Iterator[dict[str, DaemonUnderTest]]:
    """Yield a daemon of each kind that answers."""
    daemons = {kind: DaemonUnderTest(kind, directory / kind) for kind in KINDS}
    try:
        for daemon in daemons.values():
            daemon.await_answer()
        yield daemons
    finally:
        for daemon in daemons.values():
            daemon.end()


def prepare(daemon: DaemonUnderTest, leases: int) -> str:
    """Make a lockspace with leases and have the daemon join it; returns the path."""
    path = str(daemon.directory / "leases")
    with open(path, "wb") as file:
        file.truncate((1 + leases) << 20)
    paxoslease.format_lockspace(path, "BENCH", io_timeout=IO_TIMEOUT_S, force=True)
    names = [f"R{i}" for i in range(leases)]
    made = paxoslease.format_resources(path, "BENCH", names, offset=1 << 20, force=True)
    for _ in made:
        continue
    space = wire.Lockspace(b"BENCH", 1, 0, wire.Disk(os.fsencode(path)))
    daemon.connect().add_lockspace(space, IO_TIMEOUT_S)
    return path


def resource(path: str, index: int) -> wire.Resource:
    """Return resource `index` of a prepared lockspace."""
    disk = wire.Disk(os.fsencode(path), (1 + index) << 20)
    return wire.Resource(b"BENCH", b"R%d" % index, (disk,), num_disks=1)


def timed_ms(work: Callable[[], Any]) -> float:
    """Return how long something takes, in ms."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def bench_start(daemons: dict[str, DaemonUnderTest], rounds: int) -> list[dict[str, Any]]:
    """Measure the time from start to the first answered command."""
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            samples[kind].append(daemons[kind].started_ms())
    return [row("start to first answer", "ms", samples)]


def bench_requests(
    daemons: dict[str, DaemonUnderTest], paths: dict[str, str], rounds: int
) -> list[dict[str, Any]]:
    """Measure single requests of a registered client."""
    work = ("version", "acquire", "release", "inquire", "acquire 8", "release 8")
    samples: dict[str, dict[str, list[float]]] = {w: {k: [] for k in KINDS} for w in work}
    clients = {kind: daemons[kind].connect() for kind in KINDS}
    for client in clients.values():
        client.register()
    for _ in range(rounds):
        for kind, client in clients.items():
            one = resource(paths[kind], 0)
            eight = [resource(paths[kind], i) for i in range(8)]
            steps: dict[str, Callable[[], Any]] = {
                "version": client.version,
                "acquire": lambda c=client, r=one: c.acquire([r]),
                "inquire": client.inquire,
                "release": lambda c=client, r=one: c.release([r]),
                "acquire 8": lambda c=client, r=eight: c.acquire(r),
                "release 8": lambda c=client, r=eight: c.release(r),
            }
            for name, step in steps.items():
                samples[name][kind].append(timed_ms(step))
    for client in clients.values():
        client.close()
    return [row(name, "ms", samples[name]) for name in work]


def bench_many(
    daemons: dict[str, DaemonUnderTest], paths: dict[str, str], clients: int, seconds: float
) -> list[dict[str, Any]]:
    """Have many clients hold four leases each, and see what that costs while nothing happens."""
    figures: dict[str, dict[str, list[float]]] = {}

    def note(what: str, kind: str, value: float) -> None:
        figures.setdefault(what, {k: [] for k in KINDS})[kind].append(value)

    held: list[Connection] = []
    for kind in KINDS:
        began = time.perf_counter()
        for number in range(clients):
            client = daemons[kind].connect()
            client.register()
            first = number * LEASES_EACH
            wanted = [resource(paths[kind], first + i) for i in range(LEASES_EACH)]
            client.acquire(wanted)
            held.append(client)
        note("acquire all, s", kind, time.perf_counter() - began)
    before = {kind: daemons[kind].usage()[0] for kind in KINDS}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for kind in KINDS:
            note("version meanwhile, ms", kind, timed_ms(daemons[kind].connect().version))
        time.sleep(0.2)
    for kind in KINDS:
        cpu, memory, threads = daemons[kind].usage()
        note("CPU, ms per s", kind, (cpu - before[kind]) / seconds * 1e3)
        note("memory, MiB", kind, memory)
        note("threads", kind, threads)
        note("status, ms", kind, timed_ms(lambda d=daemons[kind]: list(d.connect().status())))
        records = daemons[kind].connect().renewals(b"BENCH").records
        times = [record.state.data64 for record in records[-int(seconds) :]]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        note("longest time between renewals, s", kind, max(gaps, default=0))
    for client in held:
        client.close()
    return [row(what, "", samples) for what, samples in figures.items()]


def bench_restart(daemon: DaemonUnderTest, rounds: int) -> list[dict[str, Any]]:
    """Measure the pause that a client sees when our daemon executes itself anew, leases held."""
    samples: list[float] = []
    with daemon.connect() as client:
        client.register()
        for _ in range(rounds):
            os.kill(daemon.process.pid, signal.SIGUSR2)
            until = time.monotonic() + 3
            longest = 0.0
            while time.monotonic() < until:
                longest = max(longest, timed_ms(client.inquire))
            samples.append(longest)
    return [row("longest INQUIRE across a restart", "ms", {"sanlock": [], "ours": samples})]


def row(work: str, unit: str, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Return a line of a table: medians of both, and their ratio."""
    medians = {k: statistics.median(v) if v else None for k, v in samples.items()}
    ratio = None
    if medians["sanlock"] and medians["ours"] is not None:
        ratio = medians["ours"] / medians["sanlock"]
    return {"work": work, "unit": unit, **medians, "ratio": ratio, "samples": samples}


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| work | sanlock | ours | ours/sanlock |", "|---|---|---|---|"]
    for one in rows:
        cells = ["" if one[k] is None else f"{one[k]:.3g} {one['unit']}".rstrip() for k in KINDS]
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        lines.append(f"| {one['work']} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Run all, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pl-bench-") as directory,
        both(Path(directory)) as daemons,
    ):
        rows += bench_start(daemons, 11)
        leases = max(8, arguments.clients * LEASES_EACH)
        paths = {kind: prepare(daemons[kind], leases) for kind in KINDS}
        rows += bench_requests(daemons, paths, arguments.rounds)
        rows += bench_many(daemons, paths, arguments.clients, arguments.seconds)
        rows += bench_restart(daemons["ours"], 5)
        with suppress(BrokenPipeError):
            print(table(rows))
        if arguments.json:
            arguments.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
