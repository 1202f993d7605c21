"""How areas and records found on a device are shown, to people and to programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paxoslease.disk.decode import AreaFound, RecordFound
from paxoslease.disk.records import (
    SHORT_HOLD,
    HostSector,
    Leader,
    Request,
    RindexEntry,
    RindexHeader,
)
from paxoslease.errors import BadRecord, ConfigError, StorageError

MIB = 1 << 20


def area_title(area: AreaFound) -> str:
    """Return the line that begins an area's report."""
    name = " ".join(
        part
        for part in (
            area.kind.value,
            _text(area.resource),
            f"of lockspace {_text(area.lockspace)}" if area.resource else _text(area.lockspace),
        )
        if part
    )
    sizes = f"{area.sizes.sector_size}/{area.sizes.align_size // MIB}M"
    return f"{area.offset:>14}  {name}  ({sizes})"


def record_line(found: RecordFound) -> str:
    """Return one record in a line of words."""
    value = found.value
    what = f"{found.record} {found.number}" if found.number else found.record
    return f"{found.offset:>14}    {what}: {_words(value)}{_notified(found.hosts)}"


def _notified(hosts: tuple[int, ...]) -> str:
    return f", notifies hosts {', '.join(map(str, hosts))}" if hosts else ""


def _words(value: object) -> str:
    if isinstance(value, Leader):
        return _leader_words(value)
    if isinstance(value, HostSector):
        return _host_words(value)
    if isinstance(value, Request):
        mode = {0: "none", 1: "force", 2: "graceful"}.get(value.force_mode, "unknown")
        return f"version {value.lver}, mode {mode}" if value.lver else "none"
    if isinstance(value, RindexEntry):
        return f"{_text(value.name)} at {value.res_offset}"
    if isinstance(value, RindexHeader):
        most = f"at most {value.max_resources} entries" if value.max_resources else "full size"
        return f"lockspace {_text(value.lockspace_name)}, {most}"
    return "not readable" if value is None else str(value)


def _leader_words(leader: Leader) -> str:
    if leader.max_hosts == 1:
        state = f"renewed at {leader.timestamp}" if leader.timestamp else "free"
        name = _text(leader.resource_name) or "nobody"
        return f"{name}, generation {leader.owner_generation}, {state}, io {leader.io_timeout} s"
    if leader.owner_id == 0:
        state = "never owned"
    elif leader.timestamp:
        state = f"owned by host {leader.owner_id} generation {leader.owner_generation}"
    else:
        state = f"free, last owned by host {leader.owner_id}"
    short = ", on the way to shared" if leader.flags & SHORT_HOLD else ""
    writer = f", written by host {leader.write_id}" if leader.write_id != leader.owner_id else ""
    return f"version {leader.lver}, {state}{short}{writer}, {leader.num_hosts} hosts"


def _host_words(sector: HostSector) -> str:
    words = [f"ballot {sector.mbal} for version {sector.lver}"]
    if sector.bal:
        words.append(f"proposed host {sector.inp} generation {sector.inp2} in {sector.bal}")
    if sector.released:
        words.append("released")
    if sector.shared_generation is not None:
        words.append(f"holds it shared, generation {sector.shared_generation}")
    return ", ".join(words)


def problem_line(problem: StorageError) -> str:
    """Return a problem in a line."""
    return f"{problem.offset:>14}    ! {problem} (code {problem.code})"


def area_json(area: AreaFound) -> dict[str, object]:
    """Return an area with its records, for programs."""
    return {
        "kind": area.kind.value,
        "offset": area.offset,
        "sector_size": area.sizes.sector_size,
        "align_size": area.sizes.align_size,
        "lockspace": area.lockspace,
        "resource": area.resource,
        "records": [_record_json(record) for record in area.records],
        "problems": [problem_json(problem) for problem in area.problems],
        "notes": list(area.notes),
    }


def _record_json(found: RecordFound) -> dict[str, object]:
    value = found.value
    fields = value._asdict() if value is not None else None
    return {
        "record": found.record,
        "offset": found.offset,
        "number": found.number,
        "fields": fields,
        "notified_hosts": list(found.hosts),
        "problems": [problem_json(problem) for problem in found.problems],
    }


def problem_json(problem: StorageError) -> dict[str, object]:
    """Return a problem with its fields, for programs."""
    detail: dict[str, object] = {}
    if isinstance(problem, BadRecord):
        detail = {
            "record": problem.record,
            "field": problem.field,
            "expected": str(problem.expected),
            "found": str(problem.found),
        }
    return {
        "offset": problem.offset,
        "code": problem.code,
        "message": str(problem),
        **detail,
    }


def areas_at(arguments: argparse.Namespace, doing: str) -> list[AreaFound]:
    """Return everything found from the place of `add_device` on, with progress."""
    from paxoslease.engine.inspection import inspect_device

    where = arguments.place
    if where.offset % MIB:
        raise ConfigError("OFFSET", f"areas lie at multiples of 1M, {where.offset} is none")
    with walking(f"{doing} {where.path}") as progress:
        return list(
            inspect_device(
                where.path,
                offset=where.offset,
                io_timeout=arguments.io_timeout,
                progress=progress,
            )
        )


@contextmanager
def walking(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show how far a walk over a device is, where a person looks on."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda at, size: bar.update(task, completed=at, total=max(size, 1))


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
