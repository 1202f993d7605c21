"""Figures of the aligned I/O: what pages cost, what a scan costs, what a request costs, who blocks.

The figures in docs/decisions/0001-linux-aio.md come from here:

    python -m bench.aligned_io                    a file beside the temporary ones
    python -m bench.aligned_io --directory /srv   a file in another file system
    python -m bench.aligned_io --json out.json    and the raw samples

Variants that are compared take turns, one sample each, so that a busy moment hits all of them.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from paxoslease.disk.areas import delta_columns, lockspace_area, nonzero_host_sectors
from paxoslease.disk.direct import Aio, BufferPool, DirectFile, Request, open_direct
from paxoslease.disk.layout import SIZES_512, SIZES_4096, Sizes

MIB: Final = 1 << 20
Samples = dict[str, list[float]]


def interleaved_us(variants: dict[str, Callable[[], object]], rounds: int) -> Samples:
    """Return the microseconds of `rounds` runs of every variant, which take turns."""
    samples: Samples = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(rounds):
        for name, run in variants.items():
            begin = time.perf_counter_ns()
            run()
            samples[name].append((time.perf_counter_ns() - begin) / 1000)
    return samples


def report_pages(file: DirectFile, rounds: int) -> Samples:
    """Read 1 MiB into reused huge pages, reused small pages, and memory that was just mapped."""
    huge = BufferPool().take(MIB)
    small = BufferPool(huge=False).take(MIB)

    def read(view: memoryview | mmap.mmap) -> None:
        moved = os.preadv(file.fd, [view], 0)
        if moved != MIB:
            raise EOFError(f"{moved} bytes")

    def read_fresh() -> None:
        with mmap.mmap(-1, MIB) as memory:
            read(memory)

    samples = interleaved_us(
        {
            "reused_huge_page": lambda: read(huge.view),
            "reused_small_pages": lambda: read(small.view),
            "fresh_memory": read_fresh,
        },
        rounds,
    )
    huge.release()
    small.release()
    return samples


def report_scans(sizes: Sizes, rounds: int) -> Samples:
    """Scan the host sectors of a lease, and copy out the columns of a lockspace, for all hosts."""
    lockspace = lockspace_area(b"LS", sizes, 10)[0]
    empty = bytes(sizes.align_size + 2 * sizes.sector_size)
    hosts = sizes.max_hosts
    return interleaved_us(
        {
            "scan_of_empty_host_sectors": lambda: nonzero_host_sectors(
                empty, sizes.sector_size, hosts
            ),
            "columns_of_a_lockspace": lambda: delta_columns(lockspace, sizes, b"LS", 7),
        },
        rounds,
    )


def report_requests(file: DirectFile, rounds: int) -> Samples:
    """Return the CPU microseconds of a 512-byte read: alone, in batches, and by preadv."""
    pool = BufferPool()
    aio = Aio(64)
    buffers = [pool.take(512) for _ in range(64)]
    samples: Samples = {}
    for batch in (1, 8, 64):
        requests = [Request(i, file, False, i * 4096, buffers[i], 512) for i in range(batch)]

        def run(requests: list[Request] = requests) -> None:
            left = len(requests) - len(aio.submit(requests))
            while left:
                left -= len(aio.reap(5.0))

        samples[f"cpu_per_request_batch_of_{batch}"] = _cpu_us(run, batch, rounds)
    samples["cpu_of_preadv"] = _cpu_us(lambda: os.preadv(file.fd, [buffers[0].view], 0), 1, rounds)
    aio.close()
    for buffer in buffers:
        buffer.release()
    return samples


def _cpu_us(run: Callable[[], object], per_run: int, rounds: int) -> list[float]:
    samples = []
    for _ in range(rounds):
        begin = time.thread_time_ns()
        run()
        samples.append((time.thread_time_ns() - begin) / 1000 / per_run)
    return samples


@contextmanager
def short_queue(backing: Path, requests: int) -> Iterator[DirectFile]:
    """Attach a loop device whose queue has room for few requests. Needs root."""
    command = ["losetup", "--find", "--show", "--direct-io=on", str(backing)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    room = Path("/sys/block", Path(device).name, "queue/nr_requests")
    before = room.read_text()
    try:
        room.write_text(str(requests))
        with open_direct(device) as file:
            yield file
    finally:
        room.write_text(before)
        subprocess.run(["losetup", "--detach", device], check=True)


def report_blocking(file: DirectFile, rounds: int) -> Samples:
    """Submit 48 reads of 1 MiB: how long does the submission take, how long until all are done?"""
    pool = BufferPool()
    aio = Aio(64)
    buffers = [pool.take(MIB) for _ in range(48)]
    samples: Samples = {"submission": [], "until_all_are_done": []}
    for _ in range(rounds):
        requests = [Request(i, file, False, i * MIB, b, MIB) for i, b in enumerate(buffers)]
        begin = time.perf_counter_ns()
        left = len(requests) - len(aio.submit(requests))
        samples["submission"].append((time.perf_counter_ns() - begin) / 1000)
        while left:
            left -= len(aio.reap(5.0))
        samples["until_all_are_done"].append((time.perf_counter_ns() - begin) / 1000)
    aio.close()
    for buffer in buffers:
        buffer.release()
    return samples


def show(title: str, samples: Samples) -> None:
    """Print one line per series: median, 99th percentile."""
    print(title)
    for name, series in samples.items():
        ordered = sorted(series)
        high = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        print(f"  {name:32} median {statistics.median(ordered):9.1f} us  p99 {high:9.1f} us")


def main() -> None:
    """Measure everything, print it, keep the raw samples when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--directory", type=Path, help="where the file to read is made")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path, help="where to keep the raw samples")
    given = parser.parse_args()
    results: dict[str, Samples] = {}
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        backing = Path(directory, "disk")
        backing.write_bytes(bytes(64 * MIB))
        with open_direct(str(backing)) as file:
            results["read 1 MiB"] = report_pages(file, given.rounds)
            results["CPU of a request"] = report_requests(file, given.rounds)
        results["area of 512/1M, 2000 hosts"] = report_scans(SIZES_512, given.rounds)
        results["area of 4096/8M, 2000 hosts"] = report_scans(SIZES_4096, given.rounds)
        if os.geteuid() == 0 and Path("/dev/loop-control").exists():
            for room in (4, 128):
                title = f"48 reads of 1 MiB at once, queue of {room}"
                with short_queue(backing, room) as file:
                    results[title] = report_blocking(file, max(given.rounds // 30, 3))
        else:
            print("no root or no loop devices: what a full queue does is left out")
    for title, samples in results.items():
        show(title, samples)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
