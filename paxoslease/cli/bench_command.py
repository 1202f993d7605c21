"""`paxoslease bench`: how fast is this storage for leases, and is that good enough?

`renewal` repeats what a host does every two io_timeouts: read a lockspace area, write one sector.
`acquire` takes and releases one lease over and over. Both work on a scratch area at the given
place, which is refused when it holds something, unless it is a lockspace or resource made by
an earlier run of this command.
"""

from __future__ import annotations

import argparse
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paxoslease.cli.addresses import Place, io_timeout, place, seconds
from paxoslease.cli.exits import Exit
from paxoslease.cli.options import add_json, add_sizes
from paxoslease.cli.output import console, print_json, print_table
from paxoslease.errors import ConfigError, DiskError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float64]

SCRATCH_LOCKSPACE = "paxoslease-bench"
MEASURES = {
    "renewal": "read the lockspace area past all caches, then write one sector durably, as every "
    "member does once in two io_timeouts; one after the other, by one host",
    "acquire": "acquire a free lease and release it, one after the other, by one host without "
    "rivals; as seen by a caller of the Python API",
}
_PERCENTILES = (50, 90, 99, 99.9)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `bench` with its two subjects."""
    parser = commands.add_parser("bench", help="measure the latency of leases on some storage")
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    for subject, words in (
        ("renewal", "read a lockspace and write one sector, as every member does all the time"),
        ("acquire", "acquire and release one lease"),
    ):
        what = subjects.add_parser(subject, help=words, description=words.capitalize() + ".")
        what.add_argument(
            "place",
            type=place,
            metavar="PATH[:OFFSET]",
            help="a scratch area: empty, or of an earlier run",
        )
        what.add_argument(
            "--seconds",
            type=seconds,
            default=10.0,
            metavar="S",
            help="for how long (default: %(default)s)",
        )
        what.add_argument(
            "--io-timeout",
            type=io_timeout,
            default=10,
            metavar="S",
            help="judge the figures against this io_timeout (default: %(default)s)",
        )
        what.add_argument("--plot", metavar="FILE", help="write a histogram as .svg, .png or .pdf")
        what.add_argument("--force", action="store_true", help="overwrite what is there")
        add_sizes(what)
        add_json(what)
        what.set_defaults(run=run)


class Measured(NamedTuple):
    """Latencies of one kind of operation: float64 milliseconds, in the order measured."""

    name: str
    samples_ms: Samples

    def percentiles(self) -> dict[str, float]:
        """Return minimum, percentiles and maximum in milliseconds."""
        import numpy as np

        values = np.percentile(self.samples_ms, _PERCENTILES)
        named = {f"p{p:g}": float(v) for p, v in zip(_PERCENTILES, values, strict=True)}
        return {
            "min": float(self.samples_ms.min()),
            **named,
            "max": float(self.samples_ms.max()),
        }


def run(arguments: argparse.Namespace) -> int:
    """Measure, report, and say whether the storage suits the io_timeout."""
    if arguments.plot:
        _check_plot(arguments.plot)
    measure = {"renewal": _measure_renewal, "acquire": _measure_acquire}[arguments.subject]
    measured = measure(arguments)
    worst_ms = max(float(m.samples_ms.max()) for m in measured)
    verdict = judge(worst_ms, arguments.io_timeout)
    if arguments.plot:
        _plot(arguments.plot, measured, f"{arguments.subject} at {arguments.place}")
    if arguments.json:
        print_json(
            {
                "subject": arguments.subject,
                "measures": MEASURES[arguments.subject],
                "place": str(arguments.place),
                "operations": [
                    {"name": m.name, "count": len(m.samples_ms), "ms": m.percentiles()}
                    for m in measured
                ],
                "verdict": verdict,
                "plot": arguments.plot,
            }
        )
        return Exit.OK
    print(f"{arguments.subject} at {arguments.place}: {MEASURES[arguments.subject]}\n")
    _print(measured)
    print(f"\n{verdict}")
    if arguments.plot:
        print(f"histogram: {arguments.plot}")
    return Exit.OK


def _check_plot(path: str) -> None:
    """See early that a picture can be written, and not after measuring for a minute."""
    if Path(path).suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError("--plot", f"'{path}' does not end in .svg, .png or .pdf")
    directory = Path(path).absolute().parent
    if not directory.is_dir():
        raise DiskError(path, 0, "create", errno.ENOENT, os.strerror(errno.ENOENT))
    if not os.access(directory, os.W_OK):
        raise DiskError(path, 0, "create", errno.EACCES, os.strerror(errno.EACCES))


def judge(worst_ms: float, io_timeout: int) -> str:
    """Return a sentence on how the slowest operation compares with the io_timeout."""
    share = worst_ms / (io_timeout * 1000)
    if share >= 1:
        return (
            f"The slowest took {worst_ms:.0f} ms, longer than io_timeout {io_timeout} s allows: "
            "hosts would lose their leases here."
        )
    if share >= 0.1:
        return (
            f"The slowest took {worst_ms:.0f} ms, {share:.0%} of io_timeout {io_timeout} s: "
            "measure for longer, and under load, before you trust it."
        )
    return f"The slowest took {worst_ms:.1f} ms, {share:.2%} of io_timeout {io_timeout} s."


def _measure_renewal(arguments: argparse.Namespace) -> list[Measured]:
    import numpy as np

    import paxoslease

    where: Place = arguments.place
    with paxoslease.measure_renewals(
        where.path,
        offset=where.offset,
        name=SCRATCH_LOCKSPACE,
        sector_size=arguments.sector_size,
        align_size=arguments.align_size,
        force=arguments.force,
    ) as renewals:
        pairs = np.array(list(_for_seconds(arguments, renewals)))
    return [
        Measured("read the lockspace", pairs[:, 0] / 1000),
        Measured("write one sector", pairs[:, 1] / 1000),
        Measured("renewal", pairs.sum(axis=1) / 1000),
    ]


def _measure_acquire(arguments: argparse.Namespace) -> list[Measured]:
    import numpy as np

    import paxoslease

    where: Place = arguments.place
    with paxoslease.measure_acquires(
        where.path,
        offset=where.offset,
        name=SCRATCH_LOCKSPACE,
        sector_size=arguments.sector_size,
        align_size=arguments.align_size,
        force=arguments.force,
    ) as acquires:
        pairs = np.array(list(_for_seconds(arguments, acquires)))
    return [Measured("acquire", pairs[:, 0] / 1000), Measured("release", pairs[:, 1] / 1000)]


def _for_seconds(
    arguments: argparse.Namespace, samples: Iterator[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    """Yield samples for the wanted time, at least one, with progress."""
    from paxoslease.cli.progress import progress

    begun = time.monotonic()
    shown = 0
    total = max(1, int(arguments.seconds))
    with progress(f"measuring for {arguments.seconds:g} s", total) as advance:
        for sample in samples:
            yield sample
            elapsed = time.monotonic() - begun
            while shown < min(total, int(elapsed)):
                advance()
                shown += 1
            if elapsed >= arguments.seconds:
                return


def _print(measured: list[Measured]) -> None:
    heads = list(measured[0].percentiles())
    rows = [
        [m.name, len(m.samples_ms), *(f"{m.percentiles()[head]:.3f}" for head in heads)]
        for m in measured
    ]
    print_table(["operation", "count", *(f"{head} ms" for head in heads)], rows)
    console().print(histogram(measured[-1] if len(measured) == 3 else measured[0]))


def histogram(measured: Measured, bins: int = 12) -> str:
    """Return a histogram in text, on a logarithmic scale of time."""
    import numpy as np

    samples = np.maximum(measured.samples_ms, 1e-3)
    edges = np.geomspace(samples.min(), max(samples.max(), samples.min() * 1.01), bins + 1)
    edges[0], edges[-1] = 0.0, np.inf
    counts, _ = np.histogram(samples, edges)
    finite = np.geomspace(samples.min(), max(samples.max(), samples.min() * 1.01), bins + 1)
    lines = [f"\n{measured.name}:"]
    for low, high, count in zip(finite[:-1], finite[1:], counts, strict=True):
        bar = "█" * round(40 * count / max(1, counts.max()))
        lines.append(f"  {low:9.3f} - {high:9.3f} ms  {count:7d}  {bar}")
    return "\n".join(lines)


def _plot(path: str, measured: list[Measured], title: str) -> None:
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for one in measured:
        samples = np.maximum(one.samples_ms, 1e-3)
        edges = np.geomspace(samples.min(), max(samples.max(), samples.min() * 1.01), 60)
        axes.hist(samples, bins=list(edges), histtype="step", label=one.name)
    axes.set_xscale("log")
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("operations")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
