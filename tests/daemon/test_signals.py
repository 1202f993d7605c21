"""Signals that come at the wrong moment: while the daemon replaces itself."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.compat.peer import wait_until
from tests.daemon import wire
from tests.daemon.stage import Stage

SHOWER_S = 4.0


def test_signals_during_a_restart_end_nothing(tmp_path: Path) -> None:
    """Restarts asked for during restarts, and requests to end, leave daemon and lockspace there."""
    with Stage("ours", tmp_path) as stage:
        host = stage.host("h1")
        path = stage.file("disk", 2)
        place = wire.lockspace("LS", 0, path)
        host.quietly(wire.request(wire.Cmd.WRITE_LOCKSPACE, place, data2=1))
        host.join("LS", 1, path, is_ready=False)
        end = time.monotonic() + SHOWER_S
        while time.monotonic() < end and host.daemon.process.poll() is None:
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP):
                host.daemon.process.send_signal(number)
            time.sleep(0.01)
        assert host.daemon.process.poll() is None
        question = wire.request(wire.Cmd.INQ_LOCKSPACE, wire.lockspace("LS", 1, path))
        wait_until(lambda: wire.result(host.quietly(question)) == 0, 20.0, "it is in the lockspace")
        assert "restarting" in host.daemon.stderr()
