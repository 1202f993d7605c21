"""Measure paxoslease: the counterparts of peer_sanlock.py, with the same units and storage.

Functions that need a host of their own run it in this process; those about several hosts start
processes (`python -m bench.ours host ...`).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import paxoslease
from bench import raw_io
from bench.peer_rig import SPACE_NAME, Storage
from bench.peer_sanlock import Contention

IO_TIMEOUT_S = 1
WATCHDOG_S = 60


def prepare(where: Storage, resources: int) -> None:
    """Format the lockspace and `resources` resources behind it."""
    sizes = {"sector_size": where.sector_size, "align_size": where.align_size, "force": True}
    paxoslease.format_lockspace(where.path, SPACE_NAME, io_timeout=IO_TIMEOUT_S, **sizes)
    names = [f"R{index}" for index in range(resources)]
    made = paxoslease.format_resources(
        where.path, SPACE_NAME, names, offset=where.align_size, **sizes
    )
    assert len(list(made)) == resources


def join(where: Storage, host_id: int = 1) -> paxoslease.Lockspace:
    """Join the lockspace."""
    return paxoslease.join(where.path, SPACE_NAME, host_id, io_timeout=IO_TIMEOUT_S)


def acquire_release_ms(
    space: paxoslease.Lockspace, where: Storage, count: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of `count` acquisitions and of their releases, uncontended."""
    acquires, releases = [], []
    for _ in range(count):
        begin = time.perf_counter()
        lease = space.lease("R0", where.path, offset=where.align_size)
        acquired = time.perf_counter()
        lease.release()
        acquires.append((acquired - begin) * 1000)
        releases.append((time.perf_counter() - acquired) * 1000)
    return acquires, releases


def cycle_cpu_ms(
    space: paxoslease.Lockspace, where: Storage, count: int, rounds: int
) -> list[float]:
    """Return this process's CPU milliseconds for one acquire and release, a mean per round."""
    samples = []
    for _ in range(rounds):
        before = time.process_time()
        acquire_release_ms(space, where, count)
        samples.append((time.process_time() - before) * 1000 / count)
    return samples


def batch_s(space: paxoslease.Lockspace, where: Storage, leases: int, rounds: int) -> list[float]:
    """Return the seconds until `leases` free leases are all held."""
    wanted = [
        paxoslease.WantedLease(f"R{index}", where.path, (1 + index) * where.align_size)
        for index in range(leases)
    ]
    samples = []
    for _ in range(rounds):
        begin = time.perf_counter()
        held = space.lease_many(wanted)
        samples.append(time.perf_counter() - begin)
        for lease in held:
            lease.release()
    return samples


def format_s(where: Storage, leases: int, rounds: int) -> list[float]:
    """Return the seconds of formatting `leases` resources."""
    names = [f"R{index}" for index in range(leases)]
    samples = []
    for _ in range(rounds):
        begin = time.perf_counter()
        made = paxoslease.format_resources(
            where.path,
            SPACE_NAME,
            names,
            offset=where.align_size,
            sector_size=where.sector_size,
            align_size=where.align_size,
            force=True,
        )
        assert len(list(made)) == leases
        samples.append(time.perf_counter() - begin)
    return samples


def contention(where: Storage, hosts: int, duration_s: float, work_s: float) -> Contention:
    """Let `hosts` processes want one lease all the time, holding it for `work_s`.

    Raises AssertionError if two ever held it at once.
    """
    prepare(where, 1)
    start = time.monotonic() + 4.0
    processes = [
        _spawn("hammer", where, host_id, start, duration_s, work_s)
        for host_id in range(1, hosts + 1)
    ]
    results = [json.loads(process.communicate(timeout=duration_s + 60)[0]) for process in processes]
    holds = sorted(hold[1:3] for result in results for hold in result["holds"])
    for (_, left), (entered, _) in pairwise(holds):
        if entered < left:
            raise AssertionError(f"two hosts held the lease at once, from {entered} to {left}")
    waits = [got - wanted for result in results for wanted, got, _ in result["holds"]]
    waits += [result["unfinished_s"] for result in results]
    return Contention(duration_s, [len(result["holds"]) for result in results], waits, 0)


def join_leave_s(where: Storage, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of joining a formatted lockspace with a free host id, and of leaving."""
    joins, leaves = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        space = join(where)
        joins.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        space.leave()
        leaves.append(time.perf_counter() - begin)
    return joins, leaves


def _spaces(where: Storage, count: int) -> list[paxoslease.WantedLockspace]:
    sizes = {"sector_size": where.sector_size, "align_size": where.align_size, "force": True}
    wanted = []
    for index in range(count):
        offset = index * where.align_size
        name = f"LS{index}"
        paxoslease.format_lockspace(
            where.path, name, offset=offset, io_timeout=IO_TIMEOUT_S, **sizes
        )
        wanted.append(paxoslease.WantedLockspace(where.path, name, 1, offset, None, IO_TIMEOUT_S))
    return wanted


def joins_at_once_s(where: Storage, count: int, rounds: int) -> list[float]:
    """Return the seconds until `count` lockspaces, joined at once, are all usable."""
    wanted = _spaces(where, count)
    samples = []
    for _ in range(rounds):
        begin = time.perf_counter()
        spaces = paxoslease.join_many(wanted)
        samples.append(time.perf_counter() - begin)
        for space in spaces:
            space.leave()
    return samples


def many_lockspaces(where: Storage, count: int, window_s: float, rounds: int) -> dict[str, object]:
    """Return CPU us per renewal, peak MiB and threads of a process with `count` lockspaces."""
    process = _spawn("many", where, count, 0.0, window_s, float(rounds))
    out, _ = process.communicate(timeout=window_s * rounds + 120)
    report: dict[str, object] = json.loads(out)
    return report


def takeover_late_s(where: Storage, watchdog_s: int) -> float:
    """Return how long after the safe bound a waiting host gets the lease of a killed one.

    The bound is the victim's last renewal as it became visible on the disk, plus `dead`.
    """
    prepare(where, 1)
    victim = _spawn("hold", where, 1, 0.0, 0.0, float(watchdog_s))
    assert victim.stdout is not None
    victim.stdout.readline()
    with paxoslease.join(
        where.path,
        SPACE_NAME,
        2,
        io_timeout=IO_TIMEOUT_S,
        watchdog_fire_timeout=watchdog_s,
    ) as heir:
        _await_renewal(where)
        renewed_at = time.monotonic()
        victim.kill()
        victim.wait()
        lease = heir.lease("R0", where.path, offset=where.align_size, wait=None)
        late = time.monotonic() - renewed_at - (8 * IO_TIMEOUT_S + watchdog_s)
        lease.release()
    return late


def _await_renewal(where: Storage) -> None:
    """Wait until host id 1 writes its delta lease anew."""
    with raw_io.RawDevice(where.path, where.sector_size, where.align_size) as device:
        before = device.read(0, where.sector_size)
        while device.read(0, where.sector_size) == before:
            time.sleep(0.002)


def _spawn(
    role: str, where: Storage, number: int, start: float, duration_s: float, extra: float
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.ours", role, where.path, str(where.sector_size)]
    command += [str(where.align_size), str(number), str(start), str(duration_s), str(extra)]
    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)


# -- the processes -----------------------------------------------------------------------------


def _hammer(where: Storage, host_id: int, start: float, duration_s: float, work_s: float) -> None:
    holds = []
    with join(where, host_id) as space:
        time.sleep(max(0.0, start - time.monotonic()))
        stop = start + duration_s
        wanted = time.monotonic()
        while wanted < stop:
            try:
                lease = space.lease(
                    "R0", where.path, offset=where.align_size, wait=max(0.001, stop - wanted)
                )
            except paxoslease.PaxosleaseError:
                break
            got = time.monotonic()
            time.sleep(work_s)
            left = time.monotonic()
            lease.release()
            holds.append((wanted, got, left))
            wanted = time.monotonic()
        unfinished = max(0.0, time.monotonic() - wanted)
    print(json.dumps({"holds": holds, "unfinished_s": unfinished}))


def _many(where: Storage, count: int, window_s: float, rounds: int) -> None:
    spaces = paxoslease.join_many(_spaces(where, count))
    time.sleep(3 * IO_TIMEOUT_S)
    samples = []
    for _ in range(rounds):
        renewals = sum(space._membership.member.renewals for space in spaces)
        before = time.process_time()
        time.sleep(window_s)
        used = time.process_time() - before
        done = sum(space._membership.member.renewals for space in spaces) - renewals
        samples.append(used * 1e6 / done)
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    gaps = [r.read_us + r.write_us for space in spaces for r in space.renewals()]
    print(
        json.dumps(
            {
                "cpu_us": samples,
                "rss_mib": int(fields["VmRSS"].split()[0]) / 1024,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": int(fields["Threads"]),
                "renewal_us": gaps,
            }
        )
    )
    for space in spaces:
        space.leave()


def _hold(where: Storage, watchdog_s: int) -> None:
    space = paxoslease.join(
        where.path,
        SPACE_NAME,
        1,
        io_timeout=IO_TIMEOUT_S,
        watchdog_fire_timeout=watchdog_s,
    )
    space.lease("R0", where.path, offset=where.align_size)
    print("held", flush=True)
    time.sleep(600)


def main() -> None:
    """Play one of the processes above."""
    logging.disable(logging.WARNING)
    role, path, sector, align, number, start, duration, extra = sys.argv[1:]
    where = Storage(path, int(sector), int(align))
    if role == "hammer":
        _hammer(where, int(number), float(start), float(duration), float(extra))
    elif role == "many":
        _many(where, int(number), float(duration), int(float(extra)))
    else:
        _hold(where, int(float(extra)))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
