"""Options that show only while a daemon runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import paxoslease
from paxoslease.client import Connection, DaemonError
from paxoslease.wire import sanlock as wire
from tests.compat.peer import wait_until
from tests.daemon.daemons import Daemon
from tests.daemon.stage import restart


@pytest.mark.parametrize(("options", "stays"), [((), False), (("-b", "600"), True)])
def test_for_how_long_others_are_told(
    tmp_path: Path, options: tuple[str, ...], stays: bool
) -> None:
    """An event is told for six I/O time-outs, or as long as -b says, also after a restart."""
    disk = tmp_path / "disk"
    paxoslease.format_lockspace(str(disk), "vms", io_timeout=1)
    space = wire.Lockspace(b"vms", 1, 0, wire.Disk(bytes(disk), 0))
    with (
        Daemon("ours", tmp_path / "run", "host-a", ("-o", "1", *options)) as daemon,
        Connection(str(tmp_path / "run"), timeout_s=60) as client,
    ):
        client.add_lockspace(space)
        client.set_event(b"vms", wire.HostEvent(2, 0, event=1))
        restart(daemon)

        def renewals() -> int:
            return len(client.renewals(b"vms").records)

        begun = renewals()
        # Two seconds each: the first tells it, the last is beyond the six seconds.
        wait_until(lambda: renewals() >= begun + 5, 60, "five renewals")
        other = wire.HostEvent(2, 0, event=2)
        if stays:
            with pytest.raises(DaemonError, match="-16"):
                client.set_event(b"vms", other)
        else:
            client.set_event(b"vms", other)
