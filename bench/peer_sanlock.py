"""Measure real sanlock, the peer that our figures stand beside.

Every measurement is a function that returns raw samples, so that a bench can take them in turns
with its own: open a `Rig`, then call the functions as often as wanted. Samples carry their unit in
the name of the function. Times are taken in the client's process around the call into libsanlock,
so Python's and JSON's share stays outside; CPU is the daemon's, user and system.

As a program: `python bench/peer_sanlock.py --what acquire --storage loop4k --json out.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import raw_io
from bench.peer_rig import IO_TIMEOUT_S, KINDS, Rig, Storage, rig, storage
from tests.compat.peer import (
    HELD,
    Lockspace,
    SanlockError,
    SanlockHost,
    host_dead_s,
    leases_as_args,
    wait_until,
)

RETRY_S: Final = 0.05


# -- one lease, one host -----------------------------------------------------------------------


def acquire_release_ms(bench: Rig, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of `count` acquisitions and of their releases, uncontended."""
    lease = leases_as_args([bench.where.resource(0)])[0]
    cycles = bench.hosts[0].call("cycles", lease=lease, count=count)
    acquire_ms = [ns / 1e6 for ns in cycles["acquire_ns"]]
    return acquire_ms, [ns / 1e6 for ns in cycles["release_ns"]]


def cycle_cpu_ms(bench: Rig, count: int, rounds: int) -> list[float]:
    """Return the daemon's CPU milliseconds for one acquire and release, a mean for each round."""
    samples = []
    for _ in range(rounds):
        before_s = bench.hosts[0].cpu_s()
        acquire_release_ms(bench, count)
        samples.append((bench.hosts[0].cpu_s() - before_s) * 1000 / count)
    return samples


def batch_s(
    bench: Rig, leases: int, rounds: int, per_call: int = 8, in_turn: bool = False
) -> list[float]:
    """Return the seconds until `leases` free leases are all held.

    As sanlock does it best: a registered client for every `per_call` leases, all at once (other
    sizes of a call, or more worker threads, change little); or one call after another.
    """
    args = leases_as_args([bench.where.resource(index) for index in range(leases)])
    samples = []
    for _ in range(rounds):
        took = bench.hosts[0].call("batch", leases=args, per_call=per_call, in_turn=in_turn)
        samples.append(took["acquire_ns"] / 1e9)
    return samples


def format_s(bench: Rig, leases: int, rounds: int) -> list[float]:
    """Return the seconds of formatting `leases` resources over the socket, one after another."""
    args = leases_as_args([bench.where.resource(index) for index in range(leases)])
    sizes = {"align_size": bench.where.align_size, "sector_size": bench.where.sector_size}
    host = bench.hosts[0]
    return [host.call("format_many", leases=args, **sizes) / 1e9 for _ in range(rounds)]


# -- one lease, many hosts ---------------------------------------------------------------------


class Contention(NamedTuple):
    """How hosts shared one lease: uses of each host, and every wait in seconds.

    The last wait of a host counts although the end cut it off, else the starving would not show.
    """

    duration_s: float
    uses: list[int]
    waits_s: list[float]
    refused: int

    @property
    def rate_per_s(self) -> float:
        """Return the uses of all hosts together per second."""
        return sum(self.uses) / self.duration_s

    @property
    def fairness(self) -> float:
        """Return Jain's index of the uses: 1 when all are equal, 1/n when one has all."""
        squares = sum(uses * uses for uses in self.uses)
        return sum(self.uses) ** 2 / (len(self.uses) * squares) if squares else 0.0

    @property
    def worst_wait_s(self) -> float:
        """Return the longest wait of any host."""
        return max(self.waits_s)


def contention(bench: Rig, duration_s: float, work_s: float, retry_s: float = 0.0) -> Contention:
    """Let all hosts of the rig want one lease all the time, holding it for `work_s`.

    A refused host tries again after `retry_s`. Raises AssertionError if two ever held it at once.
    """
    lease = leases_as_args([bench.where.resource(0)])[0]
    start_ns = time.monotonic_ns() + 300_000_000
    for host in bench.hosts:
        times = {"duration_s": duration_s, "work_s": work_s, "retry_s": retry_s}
        host.send("hammer", lease=lease, start_ns=start_ns, **times)
    results = [host.receive("hammer", duration_s + 60.0) for host in bench.hosts]
    holds = sorted(hold[1:3] for result in results for hold in result["holds"])
    for (_, left), (entered, _) in pairwise(holds):
        if entered < left:
            raise AssertionError(f"two hosts held the lease at once, from {entered} to {left}")
    waits_s = [(got - wanted) / 1e9 for result in results for wanted, got, *_ in result["holds"]]
    waits_s += [result["unfinished_ns"] / 1e9 for result in results if result["unfinished_ns"]]
    uses = [len(result["holds"]) for result in results]
    return Contention(duration_s, uses, waits_s, sum(result["refused"] for result in results))


# -- lockspaces --------------------------------------------------------------------------------


def join_leave_s(
    host: SanlockHost, space: Lockspace, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of joining a formatted lockspace with a free host id, and of leaving."""
    joins, leaves = [], []
    for _ in range(rounds):
        host.add_lockspace(space, 1)
        joins.append(host.took_ns / 1e9)
        host.rem_lockspace(space, 1)
        leaves.append(host.took_ns / 1e9)
    return joins, leaves


def spaces_of(where: Storage, count: int) -> list[Lockspace]:
    """Return `count` lockspaces, one in each area of the storage."""
    first = where.space()
    return [
        first._replace(name=f"LS{index}", offset=index * where.align_size) for index in range(count)
    ]


def joins_at_once_s(host: SanlockHost, spaces: list[Lockspace]) -> list[float]:
    """Return the seconds of each of the joins of all `spaces` at once by one host as host id 1.

    The largest is the time until all are usable. The lockspaces must be formatted; they stay.
    """
    args = [
        {"lockspace": space.name, "host_id": 1, "path": space.path, "offset": space.offset}
        for space in spaces
    ]
    took_ns = host.call("join_many", 600.0, spaces=args, io_timeout_s=host.io_timeout_s)
    return [ns / 1e9 for ns in took_ns]


def leave_all(host: SanlockHost, spaces: list[Lockspace]) -> None:
    """Leave all lockspaces at once and wait until they are gone."""
    for space in spaces:
        where = {"lockspace": space.name.encode(), "host_id": 1, "path": space.path}
        host.module("rem_lockspace", **where, offset=space.offset, wait=False)
    wait_until(lambda: not host.get_lockspaces(), 60.0, "all lockspaces are left")


def renewals_seen(host: SanlockHost, spaces: list[Lockspace]) -> int:
    """Return how many renewals the daemon remembers; it keeps 180 of each lockspace."""
    return sum(host.cli("renewal", "-s", space.name).count("timestamp=") for space in spaces)


def renewal_cpu_us(
    host: SanlockHost, spaces: list[Lockspace], window_s: float, rounds: int
) -> list[float]:
    """Return the daemon's CPU microseconds per renewal of the joined lockspaces, by window."""
    samples = []
    for _ in range(rounds):
        renewals = renewals_seen(host, spaces)
        before_s = host.cpu_s()
        time.sleep(window_s)
        used_s = host.cpu_s() - before_s
        samples.append(used_s * 1e6 / (renewals_seen(host, spaces) - renewals))
    return samples


# -- a host that dies --------------------------------------------------------------------------


def takeover_late_s(bench: Rig) -> float:
    """Return how long after the safe bound the second host gets the lease of the killed first.

    The bound is the victim's last renewal, as it became visible on the disk, plus the time after
    which it is surely dead. Takes 70 seconds, and the victim's daemon with it: one use per rig.
    """
    victim, heir = bench.hosts[:2]
    resource = bench.where.resource(0)
    victim.acquire(resource)
    renewed_at = _await_renewal(bench.where)
    victim.kill_daemon()
    while True:
        try:
            heir.acquire(resource, limit_s=300.0)
        except SanlockError as error:
            if error.number != HELD:
                raise
            time.sleep(RETRY_S)
            continue
        return time.monotonic() - renewed_at - host_dead_s(IO_TIMEOUT_S)


def _await_renewal(where: Storage) -> float:
    """Wait until host id 1 writes its delta lease anew; return when, by the monotonic clock."""
    with raw_io.RawDevice(where.path, where.sector_size, where.align_size) as device:
        before = device.read(0, where.sector_size)
        while device.read(0, where.sector_size) == before:
            time.sleep(0.005)
        return time.monotonic()


# -- the program -------------------------------------------------------------------------------


class Options(NamedTuple):
    """What the command line asked for."""

    directory: Path
    kind: str
    rounds: int
    duration_s: float


Report = dict[str, Any]


def report_acquire(options: Options) -> Report:
    """Measure acquire, release and their CPU, in turns with the raw I/O of the same."""
    found: dict[str, list[float]] = {name: [] for name in ACQUIRE_SERIES}
    with (
        storage(options.directory, options.kind, 3) as where,
        rig(options.directory, where, resources=2) as bench,
    ):
        sizes = (where.path, where.sector_size, where.align_size)
        apart = 2 * where.align_size
        for _ in range(options.rounds):
            acquire_ms, release_ms = acquire_release_ms(bench, 20)
            found["acquire_ms"] += acquire_ms
            found["release_ms"] += release_ms
            found["cpu_ms"] += cycle_cpu_ms(bench, 20, 1)
            found["raw_acquire_ms"] += raw_io.raw_acquire(*sizes, 20, apart)
            found["raw_release_ms"] += raw_io.raw_release(*sizes, 20, apart)
            found["raw_cpu_ms"].append(raw_io.raw_cpu_ms(*sizes, 20, apart))
    return dict(found)


ACQUIRE_SERIES: Final = (
    "acquire_ms",
    "release_ms",
    "cpu_ms",
    "raw_acquire_ms",
    "raw_release_ms",
    "raw_cpu_ms",
)


def report_batch(options: Options) -> Report:
    """Measure 200 leases at once, in turns with one call after another and with the raw I/O."""
    leases = 200
    found: dict[str, list[float]] = {"batch_s": [], "in_turn_batch_s": [], "raw_batch_s": []}
    with (
        storage(options.directory, options.kind, 2 * leases + 1) as where,
        rig(options.directory, where, resources=leases) as bench,
    ):
        sizes = (where.path, where.sector_size, where.align_size)
        apart = (1 + leases) * where.align_size
        raw_io.raw_format_s(*sizes, leases, apart)
        for _ in range(options.rounds):
            found["batch_s"] += batch_s(bench, leases, 1)
            found["in_turn_batch_s"] += batch_s(bench, leases, 1, in_turn=True)
            found["raw_batch_s"].append(raw_io.raw_batch_s(*sizes, leases, apart))
    return dict(found)


def report_format(options: Options) -> Report:
    """Measure the formatting of 1000 leases (100 on the loop device), and the raw writes."""
    leases = 1000 if options.kind == "file" else 100
    found: dict[str, list[float]] = {"format_s": [], "raw_format_s": []}
    with (
        storage(options.directory, options.kind, leases + 1) as where,
        rig(options.directory, where) as bench,
    ):
        sizes = (where.path, where.sector_size, where.align_size)
        for _ in range(options.rounds):
            found["format_s"] += format_s(bench, leases, 1)
            raw_s = raw_io.raw_format_s(*sizes, leases, where.align_size)
            found["raw_format_s"].append(raw_s)
    return {**found, "leases": leases}


def report_contention(options: Options) -> Report:
    """Measure two and eight hosts that hammer one lease with 2 ms of work."""
    found: Report = {}
    for hosts in (2, 8):
        with (
            storage(options.directory, options.kind, 2) as where,
            rig(options.directory, where, hosts=hosts) as bench,
        ):
            for retry_s in (0.0, 0.01):
                result = contention(bench, options.duration_s, 0.002, retry_s)
                summary = {
                    "rate_per_s": result.rate_per_s,
                    "fairness": result.fairness,
                    "worst_wait_s": result.worst_wait_s,
                }
                name = f"{hosts} hosts, retry after {retry_s * 1000:.0f} ms"
                found[name] = {**summary, **result._asdict()}
            if hosts == 2:
                sizes = (where.path, where.sector_size, where.align_size)
                offset = where.align_size
                turns = raw_io.raw_turns_per_s(*sizes, 3.0, 0.002, offset)
                found["raw_turns_per_s"] = [turns]
    return found


def report_join(options: Options) -> Report:
    """Measure the join of a free slot, and leaving."""
    with (
        storage(options.directory, options.kind, 1) as where,
        SanlockHost(options.directory, "h1", io_timeout_s=IO_TIMEOUT_S) as host,
    ):
        host.init_lockspace(where.space())
        joins, leaves = join_leave_s(host, where.space(), options.rounds)
    return {"join_s": joins, "leave_s": leaves}


def report_joins(options: Options) -> Report:
    """Measure 16 joins at once: the time until all are usable, and each of them."""
    last, each = [], []
    with (
        storage(options.directory, options.kind, 16) as where,
        SanlockHost(options.directory, "h1", io_timeout_s=IO_TIMEOUT_S) as host,
    ):
        spaces = spaces_of(where, 16)
        for space in spaces:
            host.init_lockspace(space)
        for _ in range(options.rounds):
            joins = joins_at_once_s(host, spaces)
            last.append(max(joins))
            each.append(sorted(joins))
            leave_all(host, spaces)
    return {"joins_s": last, "each_s": each}


def report_renewal(options: Options) -> Report:
    """Measure CPU per renewal, memory and threads with 64 lockspaces."""
    with (
        storage(options.directory, options.kind, 65) as where,
        SanlockHost(options.directory, "h1", io_timeout_s=IO_TIMEOUT_S) as host,
    ):
        idle_kib, idle_threads = host.memory_and_threads()
        spaces = spaces_of(where, 64)
        for space in spaces:
            host.init_lockspace(space)
        joins = joins_at_once_s(host, spaces)
        cpu_us = renewal_cpu_us(host, spaces, options.duration_s, options.rounds)
        memory_kib, threads = host.memory_and_threads()
        sizes = (where.path, where.sector_size, where.align_size)
        apart = 64 * where.align_size
        raw_io.raw_format_s(*sizes, 1, apart)
        raw_us = [raw_io.raw_renewal_cpu_us(*sizes, 50, apart) for _ in range(options.rounds)]
    return {
        "renewal_cpu_us": cpu_us,
        "raw_renewal_cpu_us": raw_us,
        "memory_mib": [memory_kib / 1024],
        "threads": [threads],
        "idle_memory_mib": [idle_kib / 1024],
        "idle_threads": [idle_threads],
        "join_all_64_s": [max(joins)],
    }


def report_takeover(options: Options) -> Report:
    """Measure how late the lease of a killed host is taken over; 75 s for each round."""
    late = []
    for _ in range(options.rounds):
        with (
            storage(options.directory, options.kind, 2) as where,
            rig(options.directory, where, hosts=2) as bench,
        ):
            late.append(takeover_late_s(bench))
    return {"takeover_late_s": late}


REPORTS: Final[dict[str, tuple[Callable[[Options], Report], int]]] = {
    "acquire": (report_acquire, 10),
    "batch": (report_batch, 5),
    "format": (report_format, 3),
    "contention": (report_contention, 1),
    "join": (report_join, 3),
    "joins": (report_joins, 2),
    "renewal": (report_renewal, 3),
    "takeover": (report_takeover, 1),
}


def summarise(name: str, samples: object) -> str:
    """Return one line about a series: median, 99th percentile, extremes, count."""
    if not (isinstance(samples, list) and samples and isinstance(samples[0], int | float)):
        return f"  {name}: {samples}"
    ordered = sorted(samples)
    high = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    middle = statistics.median(ordered)
    spread = f"p99 {high:.3f}  min {ordered[0]:.3f}  max {ordered[-1]:.3f}"
    return f"  {name}: median {middle:.3f}  {spread}  n {len(ordered)}"


def main() -> None:
    """Run the measurements asked for, print a summary, keep the raw samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--what", choices=[*REPORTS, "all"], default="all")
    parser.add_argument("--storage", choices=KINDS, default=KINDS[0])
    parser.add_argument("--rounds", type=int, help="how often; by default as often as is useful")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of a contention")
    parser.add_argument("--json", type=Path, help="where to keep the raw samples")
    given = parser.parse_args()
    wanted = list(REPORTS) if given.what == "all" else [given.what]
    results: dict[str, Report] = {}
    for what in wanted:
        report, rounds = REPORTS[what]
        with tempfile.TemporaryDirectory(prefix="slk-") as directory:
            options = (given.storage, given.rounds or rounds, given.duration)
            results[what] = report(Options(Path(directory), *options))
        print(f"{what} ({given.storage}, load {os.getloadavg()[0]:.2f})")
        for name, samples in results[what].items():
            if isinstance(samples, dict):
                print(f"  {name}:")
                for key in ("rate_per_s", "fairness", "worst_wait_s", "uses"):
                    print(f"    {key}: {samples[key]}")
            else:
                print(summarise(name, samples), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"storage": given.storage, **results}, indent=1))


if __name__ == "__main__":
    main()
