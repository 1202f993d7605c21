"""SIGINT and SIGTERM at every stage of `run`: the lease is released, and nothing is half-done."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.tool import (
    FAST,
    await_that,
    call,
    end_of,
    records_of,
    run_arguments,
    started,
)

SIGNALS = [signal.SIGINT, signal.SIGTERM]
# Each stage sees one of them in the default suite, the other in the long one.
MOSTLY_INT = [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
MOSTLY_TERM = [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM]


def is_good(space: Path) -> None:
    """Check that no lease is held and that no record is damaged."""
    leader = records_of(space).get("paxos leader")
    assert leader is None or leader["timestamp"] == 0, leader
    done = call("check", space)
    assert done.code == 0, done


def children_of(pid: int) -> list[int]:
    """Return the children of a process, zombies too."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


@pytest.mark.parametrize("number", SIGNALS)
def test_while_joining(space: Path, number: signal.Signals) -> None:
    """A signal while joining ends the command, which never runs; the host id is free after."""
    with started(*run_arguments(space), "echo", "ran") as process:
        await_that(lambda: "delta lease 1" in records_of(space), "the host id is being acquired")
        begun = time.monotonic()
        process.send_signal(number)
        done = end_of(process)
    assert time.monotonic() - begun < 4
    assert (done.code, done.out, done.errors) == (128 + number, "", ["paxoslease: interrupted"])
    assert records_of(space)["delta lease 1"]["timestamp"] == 0
    is_good(space)


def test_twice_while_joining(space: Path) -> None:
    """A second signal ends the command at once; the host id looks used then."""
    with started(*run_arguments(space), "echo", "ran") as process:
        await_that(lambda: "delta lease 1" in records_of(space), "the host id is being acquired")
        begun = time.monotonic()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        done = end_of(process)
    assert time.monotonic() - begun < 1.5
    assert (done.code, done.out) == (130, "")
    assert records_of(space)["delta lease 1"]["timestamp"] != 0


@pytest.mark.parametrize("number", MOSTLY_INT)
def test_while_waiting_and_while_running(space: Path, number: signal.Signals) -> None:
    """Of two hosts the waiting one gives up, the other one's command gets the signal."""
    script = "trap 'echo got; exit 3' INT TERM; echo runs; while :; do sleep 0.05; done"
    with started(*run_arguments(space, 1), "sh", "-c", script) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "runs\n"
        with started(*run_arguments(space, 2, "--wait", 60), "echo", "ran") as second:
            await_that(lambda: _is_joined(space, 2), "the second host is a member")
            second.send_signal(number)
            done = end_of(second)
        assert (done.code, done.out) == (128 + number, "")
        assert done.errors == ["paxoslease: interrupted"]
        assert first.poll() is None
        first.send_signal(number)
        done = end_of(first)
    assert (done.code, done.out, done.errors) == (3, "got\n", [])
    is_good(space)
    assert all(
        fields["timestamp"] == 0
        for name, fields in records_of(space).items()
        if name.startswith("delta lease")
    ), "both hosts left"


def _is_joined(space: Path, host_id: int) -> bool:
    """Tell whether a host has renewed: its record is not the one it was first seen with."""
    seen = records_of(space).get(f"delta lease {host_id}")
    if seen is None:
        return False
    first = _FIRST.setdefault((space, host_id), seen["timestamp"])
    return bool(seen["timestamp"] != first)


_FIRST: dict[tuple[Path, int], int] = {}


@pytest.mark.parametrize("number", MOSTLY_TERM)
def test_a_command_that_dies_of_it(space: Path, number: signal.Signals) -> None:
    """The exit code tells the signal that ended the command, as a shell does."""
    with started(*run_arguments(space), "sh", "-c", "echo runs; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(number)
        done = end_of(process)
    assert (done.code, done.errors) == (128 + number, [])
    is_good(space)


@pytest.mark.parametrize("number", MOSTLY_INT)
def test_while_releasing(space: Path, number: signal.Signals) -> None:
    """A signal after the command's end changes nothing: the lease is released, the code kept."""
    with started(*run_arguments(space), "sh", "-c", "echo runs; exec sleep 0.5") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        (child,) = children_of(process.pid)
        await_that(lambda: not Path(f"/proc/{child}").exists(), "the command was reaped")
        process.send_signal(number)
        done = end_of(process)
    assert (done.code, done.errors) == (0, [])
    is_good(space)
    assert records_of(space)["delta lease 1"]["timestamp"] == 0


def test_a_killed_keeper_takes_its_command_along(space: Path) -> None:
    """When `run` is killed nobody renews any more, so the command dies with it at once."""
    with started(*run_arguments(space), "sh", "-c", "echo runs; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        (child,) = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        await_that(lambda: not _runs(child), "the command is gone", 2)
    assert records_of(space)["paxos leader"]["timestamp"] != 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", MOSTLY_TERM)
def test_create_is_not_left_halfway(space: Path, number: signal.Signals) -> None:
    """A signal while an index is changed waits for its end: the index's lease is free after."""
    assert call("format", "index", f"vms:{space}:2M").code == 0
    arguments = ("create", "one", "--index", f"{space}:2M", "--lockspace", f"vms:{space}")
    with started(*arguments, "--host-id", 1, *FAST) as process:
        await_that(lambda: "delta lease 1" in records_of(space), "the host id is being acquired")
        process.send_signal(number)
        done = end_of(process)
    assert done.code == 128 + number
    is_good(space)
    assert call("lookup", "--index", f"{space}:2M", "--json").json == []
