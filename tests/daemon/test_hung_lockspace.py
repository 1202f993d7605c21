"""A lockspace that failed because its disk hangs, and is joined again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon import wire
from tests.daemon.daemons import Kind
from tests.daemon.scripts.common import SPACE, format_space
from tests.daemon.scripts.faults import IllDisk, require_fuse
from tests.daemon.stage import Stage
from tests.daemon.wire import Cmd, request


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["ours", pytest.param("real", marks=pytest.mark.peer)])
def test_it_is_not_there_while_its_last_write_hangs(tmp_path: Path, kind: Kind) -> None:
    """It is neither joined (-17), nor can it be: EAGAIN until the disk has answered."""
    require_fuse()
    with Stage(kind, tmp_path) as stage:
        disk = IllDisk(stage, 2)
        host = stage.host("one")
        # Before the daemon is ended: one that waits for its disk cannot be killed.
        stage.keep(lambda: disk.become("good"))
        space = wire.lockspace(SPACE, 1, disk.path)
        format_space(host, disk.path)
        host.join(SPACE, 1, disk.path)
        disk.become("write-hang")

        def result(cmd: Cmd, limit_s: float = 110.0) -> int:
            return wire.result(host.quietly(request(cmd, space, data=1), limit_s))

        def is_joined() -> bool:
            return result(Cmd.INQ_LOCKSPACE) == 0

        stage.until(lambda: not is_joined(), "it has failed", 30)
        assert result(Cmd.ADD_LOCKSPACE) == -11
        assert not is_joined()
        assert result(Cmd.ADD_LOCKSPACE) == -11
        disk.become("good")
        stage.until(lambda: result(Cmd.ADD_LOCKSPACE) == 0, "it is joined again", 110)
        assert is_joined()
