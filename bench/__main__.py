"""`make bench`: paxoslease next to the raw I/O of the same work and next to real sanlock.

What is compared is measured in one run, in turns, so that a noisy machine is noisy for all. Prints
a table in Markdown and keeps the raw samples as JSON.

python -m bench [--only WHAT ...] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench import ours, peer_sanlock, raw_io
from bench.peer_rig import rig, storage
from tests.compat.peer import SanlockHost

Samples = dict[str, Any]


class Row(NamedTuple):
    """One line of the table: medians in the unit of the work, and what was aimed at."""

    work: str
    unit: str
    sanlock: list[float]
    raw: list[float]
    ours: list[float]
    aim: str

    def cells(self) -> list[str]:
        """Return the line's cells."""

        def median(samples: list[float]) -> str:
            return f"{statistics.median(samples):.3g} {self.unit}" if samples else ""

        def ratio(samples: list[float]) -> str:
            if not samples or not self.ours:
                return ""
            return f"{statistics.median(self.ours) / statistics.median(samples):.2f}"

        return [
            self.work,
            median(self.sanlock),
            median(self.raw),
            median(self.ours),
            ratio(self.sanlock),
            ratio(self.raw),
            self.aim,
        ]


HEADS = ["work", "sanlock", "raw I/O", "ours", "ours/sanlock", "ours/raw", "aim"]


def bench_acquire(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Acquire and release one lease: latency and CPU."""
    acquire: dict[str, list[float]] = {"peer": [], "raw": [], "ours": []}
    release: dict[str, list[float]] = {"peer": [], "raw": [], "ours": []}
    cpu: dict[str, list[float]] = {"peer": [], "raw": [], "ours": []}
    with ExitStack() as stack:
        theirs = stack.enter_context(storage(directory, kind, 3))
        bench = stack.enter_context(rig(directory, theirs))
        where = stack.enter_context(storage(directory / "ours", kind, 3))
        sizes = (where.sector_size, where.align_size)
        ours.prepare(where, 1)
        last = 2 * where.align_size
        with raw_io.RawDevice(where.path, *sizes) as device:
            device.prepare(last, 1)  # reading a hole would be no I/O
        space = stack.enter_context(ours.join(where))
        ours.acquire_release_ms(space, where, 20)
        for _ in range(rounds):
            got, gave = peer_sanlock.acquire_release_ms(bench, 20)
            acquire["peer"] += got
            release["peer"] += gave
            acquire["raw"] += raw_io.raw_acquire(where.path, *sizes, 20, last)
            release["raw"] += raw_io.raw_release(where.path, *sizes, 20, last)
            got, gave = ours.acquire_release_ms(space, where, 20)
            acquire["ours"] += got
            release["ours"] += gave
            cpu["peer"] += peer_sanlock.cycle_cpu_ms(bench, 20, 1)
            cpu["raw"].append(raw_io.raw_cpu_ms(where.path, *sizes, 20, last))
            cpu["ours"] += ours.cycle_cpu_ms(space, where, 20, 1)
    name = "512/1M file" if kind == "file" else "4096/8M loop"
    aims = ("<= 0.35x sanlock, <= 1.4x raw", "<= 1.0x sanlock", "<= 0.3x sanlock")
    if kind != "file":
        aims = ("<= 0.40x sanlock", "", "")
    parts = (("acquire", acquire), ("release", release), ("CPU of acquire and release", cpu))
    return [
        Row(f"{what}, {name}", "ms", x["peer"], x["raw"], x["ours"], aim)
        for (what, x), aim in zip(parts, aims, strict=True)
    ]


def bench_batch(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Acquire 200 leases at once."""
    count = 200
    peer, raw, mine = [], [], []
    with ExitStack() as stack:
        theirs = stack.enter_context(storage(directory, kind, count + 1))
        bench = stack.enter_context(rig(directory, theirs, resources=count))
        where = stack.enter_context(storage(directory / "ours", kind, count + 1))
        ours.prepare(where, count)
        sizes = (where.sector_size, where.align_size)
        with ours.join(where) as space:
            for _ in range(rounds):
                peer += peer_sanlock.batch_s(bench, count, 1)
                mine += ours.batch_s(space, where, count, 1)
        for _ in range(rounds):
            raw.append(raw_io.raw_batch_s(where.path, *sizes, count, where.align_size))
    return [Row("200 leases at once", "s", peer, raw, mine, "<= 0.3x sanlock")]


def bench_format(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Format 1000 leases."""
    count = 1000
    peer, raw, mine = [], [], []
    with storage(directory, kind, count + 1) as where, rig(directory, where) as bench:
        sizes = (where.sector_size, where.align_size)
        for _ in range(rounds):
            peer += peer_sanlock.format_s(bench, count, 1)
            mine += ours.format_s(where, count, 1)
            raw.append(raw_io.raw_format_s(where.path, *sizes, count, where.align_size))
    return [Row("format 1000 leases", "s", peer, raw, mine, "<= 0.4x sanlock")]


def bench_contention(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Two and eight hosts hammering one lease with 2 ms of work."""
    duration, work = (10.0, 0.002) if rounds > 2 else (5.0, 0.002)
    rows = []
    for hosts, aim in ((2, ">= 130 per s"), (8, ">= 80 per s")):
        with storage(directory, kind, 2) as where, rig(directory, where, hosts=hosts) as bench:
            peer = peer_sanlock.contention(bench, duration, work)
        with storage(directory / "ours", kind, 2) as where:
            mine = ours.contention(where, hosts, duration, work)
            sizes = (where.sector_size, where.align_size)
            raw = raw_io.raw_turns_per_s(where.path, *sizes, 3.0, work, where.align_size)
        name = f"{hosts} hosts hammering one lease"
        rows.append(Row(name, "per s", [peer.rate_per_s], [raw], [mine.rate_per_s], aim))
        rows.append(Row(f"{name}: fairness", "", [peer.fairness], [], [mine.fairness], ">= 0.95"))
        rows.append(
            Row(
                f"{name}: worst wait",
                "s",
                [peer.worst_wait_s],
                [],
                [mine.worst_wait_s],
                "<= 1 s",
            )
        )
    return rows


def bench_join(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Join a free slot and leave."""
    rounds = min(rounds, 3)
    with storage(directory, kind, 2) as where, SanlockHost(directory, "h1") as host:
        host.init_lockspace(where.space())
        peer, peer_leaves = peer_sanlock.join_leave_s(host, where.space(), rounds)
    with storage(directory / "ours", kind, 2) as where:
        ours.prepare(where, 1)
        mine, leaves = ours.join_leave_s(where, rounds)
    return [
        Row("join of a free slot, io_timeout 1", "s", peer, [2.0], mine, "<= 2.1 s"),
        Row("leave", "s", peer_leaves, [], leaves, "<= 0.1 s"),
    ]


def bench_joins(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Sixteen joins at once."""
    with storage(directory, kind, 16) as where, SanlockHost(directory, "h1") as host:
        spaces = peer_sanlock.spaces_of(where, 16)
        for space in spaces:
            host.init_lockspace(space)
        peer = [max(peer_sanlock.joins_at_once_s(host, spaces))]
        peer_sanlock.leave_all(host, spaces)
    with storage(directory / "ours", kind, 16) as where:
        mine = ours.joins_at_once_s(where, 16, min(rounds, 3))
    return [Row("16 joins at once", "s", peer, [2.0], mine, "<= 2.2 s")]


def bench_renewal(directory: Path, kind: str, rounds: int) -> list[Row]:
    """CPU per renewal, memory and threads with 64 lockspaces."""
    count, window = 64, 6.0
    with storage(directory, kind, count) as where, SanlockHost(directory, "h1") as host:
        spaces = peer_sanlock.spaces_of(where, count)
        for space in spaces:
            host.init_lockspace(space)
        peer_sanlock.joins_at_once_s(host, spaces)
        peer = peer_sanlock.renewal_cpu_us(host, spaces, window, min(rounds, 3))
        peer_kib, peer_threads = host.memory_and_threads()
    with storage(directory / "ours", kind, count) as where:
        mine = ours.many_lockspaces(where, count, window, min(rounds, 3))
        sizes = (where.sector_size, where.align_size)
        raw = [raw_io.raw_renewal_cpu_us(where.path, *sizes, 200)]
    return [
        Row("CPU per renewal, 64 lockspaces", "us", peer, raw, mine["cpu_us"], "<= 0.25x sanlock"),
        Row("memory, 64 lockspaces", "MiB", [peer_kib / 1024], [], [mine["rss_mib"]], "<= 60 MiB"),
        Row("threads, 64 lockspaces", "", [peer_threads], [], [mine["threads"]], "<= 12"),
    ]


def bench_takeover(directory: Path, kind: str, rounds: int) -> list[Row]:
    """Take-over after the safe bound."""
    with storage(directory, kind, 2) as where, rig(directory, where, hosts=2) as bench:
        peer = [peer_sanlock.takeover_late_s(bench)]
    mine = []
    with storage(directory / "ours", kind, 2) as where:
        for watchdog in (3, 4, 5, 60)[: max(2, min(rounds, 4))]:
            mine.append(ours.takeover_late_s(where, watchdog))
    return [Row("take-over after the safe bound", "s", peer, [], mine, "<= 0.6 s, never early")]


BENCHES: dict[str, tuple[Callable[[Path, str, int], list[Row]], str]] = {
    "acquire": (bench_acquire, "file"),
    "acquire-4k": (bench_acquire, "loop4k-direct"),
    "batch": (bench_batch, "file"),
    "format": (bench_format, "file"),
    "contention": (bench_contention, "file"),
    "join": (bench_join, "file"),
    "joins": (bench_joins, "file"),
    "renewal": (bench_renewal, "file"),
    "takeover": (bench_takeover, "file"),
}


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Run the benches and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--json", type=Path, help="keep the raw samples in this file")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--directory", type=Path, help="where the storage is made")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    for name in arguments.only:
        run, kind = BENCHES[name]
        with tempfile.TemporaryDirectory(prefix="plb", dir=arguments.directory) as place:
            directory = Path(place)
            (directory / "ours").mkdir()
            made = run(directory, kind, 2 if arguments.quick else 8)
        rows += made
        print(table(made), flush=True)
    print(f"\nload average: {os.getloadavg()}\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
