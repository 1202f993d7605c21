"""Who is stopped when nobody knows any more what the clients hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from paxoslease.daemon.clients import start_time
from paxoslease.daemon.connection import Connection
from paxoslease.daemon.inherit import Inheritance, stop_everybody
from paxoslease.daemon.journal import Journal, salvage

CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.recv(1)
"""


class Rig:
    """Processes that are connected, by slot."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.stack = stack
        self.path = path
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.bind(path)
        self.listener.listen()
        self.inheritance = Inheritance()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def client(self, number: int) -> dict[str, Any]:
        """Connect a process; returns the note of a registered client."""
        process = subprocess.Popen([sys.executable, "-c", CLIENT, self.path])
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        connected, _ = self.listener.accept()
        self.stack.callback(connected.close)
        self.processes[number] = process
        self.inheritance.connections[number] = Connection(number, connected)
        return {"number": number, "pid": process.pid, "started": start_time(process.pid)}

    def check_killed(self, *numbers: int) -> None:
        """Check which processes were stopped; the end of a connection is a little before theirs."""
        for number, process in self.processes.items():
            if number in numbers:
                assert process.wait(10) == -9
            else:
                assert process.poll() is None


@pytest.fixture
def rig(tmp_path: Any) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(str(tmp_path / "s"), stack)


def held_by(*numbers: int, doing: str = "") -> dict[str, Any]:
    return {"tokens": [[n, 1, False, 0] for n in numbers], "doing": doing, "pid": os.getpid()}


def test_only_holders_are_stopped(rig: Rig) -> None:
    """Neither a process that only asked something, nor a registered one that holds nothing."""
    holder, idle = rig.client(2), rig.client(3)
    rig.client(4)
    assert stop_everybody(rig.inheritance, [holder, idle, held_by(2), {"wanted": ""}])
    rig.check_killed(2)


@pytest.mark.parametrize("note", [{}, {"tokens": None}, held_by(2, doing="acquire")])
def test_what_cannot_be_read_may_be_a_lease_of_any_registered_client(
    rig: Rig, note: dict[str, Any]
) -> None:
    """Then all of these are stopped; who is not registered still holds nothing."""
    notes = [rig.client(2), rig.client(3)]
    rig.client(4)
    assert stop_everybody(rig.inheritance, [*notes, note])
    rig.check_killed(2, 3)


def test_without_any_notes_all_that_was_kept_is_stopped(rig: Rig) -> None:
    """A journal that is lost says of nobody that he holds nothing."""
    rig.client(2)
    rig.client(3)
    rig.inheritance.registered = {2, 3}
    rig.client(4)
    assert stop_everybody(rig.inheritance, [])
    rig.check_killed(2, 3)


def test_damaged_line_is_not_believed(tmp_path: Any) -> None:
    """A line that was changed is told apart from one that was written, even if it makes sense."""
    path = str(tmp_path / "journal")
    journal = Journal(path, {"c2": {"number": 2, "pid": 1, "started": 5}})
    journal.begin()
    assert {} not in salvage(path)
    with open(path, "r+b") as file:
        data = file.read().replace(b'"number":2', b'"number":3')
        file.seek(0)
        file.write(data)
    assert {} in salvage(path)
    journal.close()
