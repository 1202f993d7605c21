"""libvirt's guests under leases: libvirtd, its sanlock plugin and qemu, all real."""

from __future__ import annotations

import hashlib
import os
import signal

from tests.daemon import wire
from tests.daemon.scripts.common import SPACE, prepare
from tests.daemon.stage import MIB, Stage
from tests.daemon.wire import Cmd, acquire, request
from tests.guests.hosts import SANLOCK_CONF
from tests.guests.libvirt import Libvirt, disk_xml, lease_xml
from tests.guests.machine import Machine

DISKS = "__LIBVIRT__DISKS__"


def guests(stage: Stage) -> None:
    """Start, refuse, suspend, resume, kill and end guests; see their leases each time."""
    host = stage.host("one")
    path = prepare(stage, host, 2)
    leases = stage.directory / "auto"
    leases.mkdir()
    options = SANLOCK_CONF.format(leases=leases, number=1)
    machine = stage.enter(Machine(stage.directory / "lv", "one"))
    libvirt = stage.enter(Libvirt(machine, "sanlock", options, host.daemon.env))
    disk = stage.file("disk", 1)
    digest = hashlib.md5(os.fsencode(disk)).hexdigest()
    stage.masks.add_text(digest, "<digest>")

    def virsh(step: str, *words: str) -> bool:
        done = libvirt.virsh(*words)
        said = (done.stdout + done.stderr).strip()
        stage.see(step, [f"exit {done.returncode}", *said.splitlines()])
        return done.returncode == 0

    explicit = lease_xml(SPACE, "R1", path, MIB)
    libvirt.done("define", libvirt.domain("alpha", explicit + disk_xml(disk)))
    libvirt.done("define", libvirt.domain("beta", explicit, share_rw=False))
    host.cli("the lockspace of the disks", "gets")
    if not virsh("alpha starts", "start", "alpha"):
        return
    alpha = libvirt.pid("alpha")
    stage.masks.add_pid(alpha, "<alpha>")
    host.cli("alpha's leases", "status", "-o", "s")
    host.ask("as the daemon tells them", wire.inquire(alpha))
    virsh("beta wants the same lease", "start", "beta")
    host.cli("after the refusal", "status", "-o", "s")
    virsh("alpha is suspended", "suspend", "alpha")
    host.cli("a suspended guest holds nothing", "status", "-o", "s")
    virsh("alpha is resumed", "resume", "alpha")
    host.cli("a resumed guest holds them again", "status", "-o", "s")
    virsh("alpha ends", "destroy", "alpha")

    def is_free() -> bool:
        status = host.quietly(request(Cmd.STATUS))
        return b"R1" not in status and digest.encode() not in status

    stage.until(is_free, "alpha's leases are released")
    holder = host.client("holder")
    wanted = wire.lease(DISKS, digest, leases / digest, 0)
    holder.ask("somebody takes the disk's lease", acquire(wanted))
    virsh("alpha cannot have its disk", "start", "alpha")
    holder.kill()
    stage.until(is_free, "the disk's lease is released")
    virsh("now it can", "start", "alpha")
    second = libvirt.pid("alpha")
    os.kill(second, signal.SIGKILL)
    stage.until(is_free, "the leases of a guest that died are released")
    stage.disk("R1 after all", path, MIB)
    virsh("beta starts", "start", "beta")
    host.ask("its lockspace goes", request(Cmd.REM_LOCKSPACE, wire.lockspace(SPACE, 1, path)))

    def is_off() -> bool:
        return libvirt.done("domstate", "beta") == "shut off"

    stage.until(is_off, "beta was killed")
    virsh("beta has no lockspace", "start", "beta")


SCRIPTS = (guests,)
