"""A machine for libvirt: namespaces in which libvirt's places and the host name are its own.

Nothing of the host's own libvirt is touched: a directory is mounted over /etc/libvirt,
/var/lib/libvirt, /var/cache/libvirt, /var/log/libvirt and /run/libvirt, and the rest of /run is an
empty tmpfs. Everything else, processes and network with it, is the host's. What shall find this
machine's libvirtd at its usual place, such as a lease daemon that runs libvirt's sanlock helper,
is started with `prefix` before its command. Nothing of paxoslease is imported here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import unittest
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PLACES: Final = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run/libvirt",
}
PROGRAMS: Final = ("libvirtd", "virsh", "qemu-system-x86_64", "unshare", "nsenter", "mount")
PLUGINS: Final = Path("/usr/lib/x86_64-linux-gnu/libvirt/lock-driver")
# The shell ends its commands' namespaces with itself, and itself at the end of its input.
_BEGIN: Final = (
    "mount --make-rprivate / && mount -t tmpfs none /run && mkdir /run/libvirt && {binds} && "
    "echo {name} >/proc/sys/kernel/hostname && echo ready && read -r _"
)


class LibvirtMissing(unittest.SkipTest):
    """libvirt, one of its lock managers or QEMU is not installed, or we are not root."""


def require_libvirt(manager: str) -> None:
    """Raise LibvirtMissing when guests cannot be run here under a lock manager of libvirt."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    missing += [str(file) for file in [PLUGINS / f"{manager}.so"] if not file.exists()]
    missing += [place for place in list(PLACES.values())[:4] if not Path(place).is_dir()]
    if missing:
        raise LibvirtMissing(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        raise LibvirtMissing("namespaces need root")
    probe = subprocess.run(["unshare", "-mu", "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        raise LibvirtMissing(f"no namespaces: {probe.stderr.strip()}")


class Machine:
    """The namespaces; a context manager. They live as long as anything runs in them.

    directory: holds what the machine believes to be the system's directories, as etc, run and so
    on. name: the host name, which must be different for machines between which guests move.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = f"{name}.test"
        for place in PLACES:
            (directory / place).mkdir(parents=True)
        binds = " && ".join(f"mount --bind '{directory / n}' {to}" for n, to in PLACES.items())
        self._keeper = subprocess.Popen(
            ["unshare", "-mu", "sh", "-c", _BEGIN.format(binds=binds, name=self.name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stderr is not None
        if self._keeper.stdout.readline() != "ready\n":
            said = self._keeper.stderr.read()
            self.close()
            raise LibvirtMissing(f"no mounts: {said.strip()}")

    @property
    def prefix(self) -> list[str]:
        """Return the beginning of a command that runs on this machine, with the pid it is given."""
        return ["nsenter", "-t", str(self._keeper.pid), "-m", "-u", "--"]

    def close(self) -> None:
        """Leave the namespaces."""
        self._keeper.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
