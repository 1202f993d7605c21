"""A device that returns errors, or hangs, under every kind of command."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.ill_disk import IllDisk
from tests.cli.tool import WARNING, await_that, call, end_of, refused, run_arguments, started

ILLNESSES = ("write-error", "read-error", "read-hang")


@contextmanager
def ill(disk: IllDisk, mode: str) -> Iterator[None]:
    """Let the disk be ill in this block; well again, so that processes can end, after it."""
    disk.set(mode)
    try:
        yield
    finally:
        disk.set("good")


def message_of(process: subprocess.Popen[str]) -> str:
    """Return the first line that a command says on standard error, warnings apart."""
    assert process.stderr is not None
    while True:
        message = process.stderr.readline()
        if not message.startswith(WARNING):
            return message


def test_errors_on_read_are_told(ill_disk: IllDisk) -> None:
    """Every command that reads says what failed, where, and why."""
    words = (f"read of {ill_disk.device}", "Input/output error")
    with ill(ill_disk, "read-error"):
        for command in ("check", "inspect"):
            done = call(command, ill_disk.device)
            assert all(word in done.out for word in words), done
            assert done.code == (command == "check")
        refused(call("lookup", "--index", ill_disk.device), 3, *words)
        refused(call(*run_arguments(ill_disk.device), "true"), 3, *words)
        refused(call("format", "lockspace", f"new:{ill_disk.device}"), 3, *words)


def test_errors_on_write_are_told(ill_disk: IllDisk) -> None:
    """Neither a join nor a format passes over a write that failed; what was there is there."""
    words = (f"write of {ill_disk.device}", "Input/output error")
    with ill(ill_disk, "write-error"):
        refused(call(*run_arguments(ill_disk.device), "true"), 3, *words)
        refused(call("format", "lockspace", f"new:{ill_disk.device}", "--force"), 3, *words)
    assert call("check", ill_disk.backing).code == 0


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_device_that_hangs_on_read_is_given_up(ill_disk: IllDisk, command: str) -> None:
    """The I/O time-out ends the command, long before the device comes back."""
    arguments = {
        "run": (*run_arguments(ill_disk.device), "true"),
        "check": ("check", ill_disk.device, "--io-timeout", "1"),
    }[command]
    with ill(ill_disk, "read-hang"), started(*arguments) as process:
        message = message_of(process)
        ill_disk.set("good")
        assert f"read at {ill_disk.device}:0 did not end" in message
        assert end_of(process).code == 3


def test_a_device_that_hangs_on_write_gives_no_membership(ill_disk: IllDisk) -> None:
    """A join whose write does not come back in time is refused, also when it lands later."""
    arguments = run_arguments(ill_disk.device)
    with ill(ill_disk, "write-hang"), started(*arguments, "echo", "ran") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        while "does not end" not in said:
            said = process.stderr.readline()
            assert said
        clock = time.monotonic()
        await_that(lambda: time.monotonic() - clock > 2, "longer than two io_timeouts")
        ill_disk.set("good")
        done = end_of(process)
        assert done.out == ""
        refused(done, 4, "host id 1")


@pytest.mark.parametrize(
    "mode", ["write-hang", *(pytest.param(m, marks=pytest.mark.long) for m in ILLNESSES)]
)
def test_a_command_is_stopped_when_the_disk_is_lost(ill_disk: IllDisk, mode: str) -> None:
    """Under a lease that can't be renewed the command is stopped; the exit code says so."""
    arguments = run_arguments(ill_disk.device)
    with started(*arguments, "sh", "-c", "echo runs; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "runs\n"
        with ill(ill_disk, mode):
            lines = [""]
            while "the command was stopped" not in lines[-1]:
                lines.append(process.stderr.readline())
                assert lines[-1], lines
        done = end_of(process)
    assert done.code == 5, (lines, done)
    assert "Traceback" not in "".join(lines) + done.err
    assert call("check", ill_disk.backing).code == 0


def test_format_of_a_hanging_device_can_be_interrupted(ill_disk: IllDisk) -> None:
    """SIGINT ends a format whose write hangs as soon as that is over; nothing is half-made."""
    arguments = ("format", "lockspace", f"new:{ill_disk.device}", "--force")
    with ill(ill_disk, "write-hang"), started(*arguments) as process:
        in_flight = Path("/sys/block", Path(ill_disk.device).name, "inflight")
        await_that(lambda: int(in_flight.read_text().split()[1]) > 0, "the write is on its way")
        process.send_signal(signal.SIGINT)
        ill_disk.set("good")
        assert message_of(process) == "paxoslease: interrupted\n"
        assert end_of(process).code == 130
    done = call("check", ill_disk.backing)
    assert done.code == 0, done
