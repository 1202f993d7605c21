"""Another version is installed while the daemon runs, and it is executed anew."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from paxoslease.client import Connection
from tests.compat.peer import wait_until
from tests.daemon import daemons
from tests.daemon.restart_rig import RestartedHost

PROGRAM = """#!{python}
from paxoslease.cli.sanlock.main import run_and_exit
run_and_exit()
"""


class Installed:
    """A copy of the package that a daemon runs, to be changed under it."""

    def __init__(self, directory: Path, host: RestartedHost) -> None:
        self.package = directory / "lib" / "paxoslease"
        self.host = host
        (self.helper,) = host.daemon.children()

    def change(self, module: str, line: str) -> None:
        """Install another version of a module."""
        with (self.package / "daemon" / module).open("a") as file:
            file.write(line + "\n")

    @property
    def helper_is_new(self) -> bool:
        """Tell whether the helper has executed its program anew."""
        return b"PAXOSLEASE_HELPER=" in Path(f"/proc/{self.helper}/environ").read_bytes()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    library = tmp_path / "lib"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(daemons.REPOSITORY / "paxoslease", library / "paxoslease", ignore=skipped)
    program = tmp_path / "sanlock"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setitem(daemons.PROGRAMS, "ours", str(program))
    paths = [str(library), sysconfig.get_path("purelib")]
    environment = {"PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    with RestartedHost(tmp_path, env=environment) as host:
        host.format()
        host.join()
        yield Installed(tmp_path, host)


def test_helper_is_of_the_new_code(installed: Installed) -> None:
    """The helper executes its program anew, too, with all that it keeps; nobody notices."""
    host = installed.host
    agent = host.agent()
    agent("acquire", resources=[host.resource(0)])
    host.exec()
    host.restart("crash")
    host.exec()
    assert not installed.helper_is_new
    installed.change("keeper.py", "# another version")
    host.exec()
    host.until(lambda: installed.helper_is_new, "the helper is new")
    agent("acquire", resources=[host.resource(1)])
    host.crash()
    host.start()
    assert set(agent("held")) == {"r0", "r1"}
    agent("release", resources=[host.resource(0), host.resource(1)])
    assert host.helper_lives


def test_helper_that_cannot_be_replaced_stays(installed: Installed) -> None:
    """Where the new program cannot be a helper the old one serves on."""
    host = installed.host
    agent = host.agent()
    agent("acquire", resources=[host.resource(0)])
    unfit = "if TRIAL in os.environ and os.getppid() == HELPER: sys.exit(1)"
    installed.change("helper_renewal.py", unfit.replace("HELPER", str(installed.helper)))
    host.exec()
    host.until(lambda: host.log_has("stays of the old version"), "it is told")
    assert not installed.helper_is_new
    host.crash()
    host.start()
    assert set(agent("held")) == {"r0"}


def test_program_that_does_not_start_is_not_executed(installed: Installed) -> None:
    """A version that is half installed ends nothing."""
    host = installed.host
    agent = host.agent()
    agent("acquire", resources=[host.resource(0)])
    installed.change("spaces.py", "this is no Python")
    host.ask_restart()
    host.until(lambda: host.log_has("called off"), "it is called off")
    assert host.starts() == 1
    assert set(agent("held")) == {"r0"}
    agent("release", resources=[host.resource(0)])


def test_program_that_was_named_from_where_it_began(tmp_path: Path) -> None:
    """A daemon in the background has left the directory from which its program was named."""
    program = Path(daemons.OUR_SANLOCK)
    run_dir = tmp_path / "run"
    environment = {**os.environ, "SANLOCK_RUN_DIR": str(run_dir), "SANLOCK_PRIVILEGED": "0"}
    command = [f"./{program.name}", "daemon", *daemons.QUIET[1:], "-U", "root", "-G", "root"]
    subprocess.run(command, cwd=program.parent, env=environment, check=True, timeout=30)
    pid = int((run_dir / "sanlock.pid").read_text())
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGUSR2)
        arguments = Path(f"/proc/{pid}/cmdline")
        wait_until(lambda: bytes(program) in arguments.read_bytes(), 20, "it is executed anew")
        with Connection(str(run_dir), timeout_s=20) as connection:
            connection.shutdown()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(20_000)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
