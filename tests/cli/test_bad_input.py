"""Bad input: what the command says when a place, a name or a number is wrong."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import paxoslease
from tests.cli.tool import (
    FAST,
    MIB,
    call,
    end_of,
    make_space,
    refused,
    run_arguments,
    started,
)
from tests.conftest import MakeLoop, run

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def test_a_device_that_is_too_small(make_loop: MakeLoop) -> None:
    """A block device is never extended: the message says where it ends."""
    device = make_loop(512, 512 << 10)
    refused(call("format", "lockspace", f"vms:{device}"), 3, device, "it ends at 524288")


def test_wrong_sector_sizes(make_loop: MakeLoop, tmp_path: Path) -> None:
    """Sizes that no format has, and a format too fine for the device, are refused."""
    device = make_loop(4096, 8 * MIB)
    refused(
        call("format", "lockspace", f"vms:{device}", "--sector-size", "512"),
        3,
        "its sectors have 4096 bytes",
    )
    path = tmp_path / "disk"
    done = call("format", "lockspace", f"vms:{path}", "--sector-size", "1000")
    refused(done, 2, "1000", "512/1M")
    assert not path.exists()


def test_a_lockspace_too_fine_for_its_device(make_loop: MakeLoop, tmp_path: Path) -> None:
    """A lockspace of 512-byte sectors copied to a device of 4096 cannot be joined."""
    image = tmp_path / "disk"
    make_space(image)
    device = make_loop(4096, 2 * MIB)
    Path(device).write_bytes(image.read_bytes())
    refused(call(*run_arguments(device), "true"), 3, device, "4096")


def test_an_offset_that_is_not_aligned(space: Path) -> None:
    """Areas lie at multiples of the align size; elsewhere nothing is made, and none is found."""
    place = f"more:{space}:1000000"
    refused(
        call("format", "resource", place, "--lockspace", "vms"), 2, "not a multiple of the align"
    )
    done = call("run", "--lockspace", f"vms:{space}:100", "--resource", f"guest:{space}:1M",
                "--host-id", 1, "--", "true")  # fmt: skip
    refused(done, 3, f"{space} at offset 100", "multiples of the sector size")
    refused(call("inspect", f"{space}:1000"), 2, "multiples of 1M", "inspect --help")


def test_an_offset_beyond_the_end(space: Path) -> None:
    """Nothing is there: it is the wrong place, not an empty one."""
    refused(call("inspect", f"{space}:64M"), 3, "it ends at", "another offset")
    refused(call("check", f"{space}:64M"), 3, "it ends at", "another offset")


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "{}", "--io-timeout", "0"),
        ("format", "lockspace", "x:{}:8M", "--io-timeout", "256"),
        ("format", "resource", "x:{}:8M", "--lockspace", "vms", "--count", "0"),
        ("join", "vms:{}", "--host-id", "1", "--io-timeout", "300"),
        ("events", "vms", "--send", "1", "--event", "-1"),
        ("simulate", "--seeds", "0"),
        ("simulate", "--hosts", "0"),
    ],
)
def test_numbers_out_of_range(space: Path, words: tuple[str, ...]) -> None:
    """A number that makes no sense is refused before anything is done, with what there is."""
    refused(call(*(word.format(space) for word in words)), 2, "is not a number from", "--help")


def test_hints_fit_the_mistake(space: Path, tmp_path: Path) -> None:
    """What to do is about what went wrong, and the system's words come without its numbers."""
    text = tmp_path / "text"
    text.write_text("dear diary")
    refused(call(*run_arguments(text), "true"), 3, "only 10 bytes", "look at the path and offset")
    done = call(*run_arguments(space, 1, "--watchdog", "/dev/nope"), "true")
    refused(done, 1, "/dev/nope: No such file or directory")
    assert "Errno" not in done.err
    done = call("guard", "--driver", "nop", "--domain", tmp_path / "none.xml", "--", "true")
    refused(done, 2, "--domain: there is no file")
    done = call("guard", "--driver", "fcntl", "--option", f"socket={tmp_path}/none", "--", "true")
    refused(done, 1, "no daemon at", "No such file or directory")
    assert "Errno" not in done.err
    refused(call("explain", "9999"), 2, "no error", "paxoslease explain --help")
    refused(call("simulate", "--hours", "-1"), 2, "'-1' is not a number of hours")
    nowhere = tmp_path / "none" / "disk"
    refused(call("format", "lockspace", f"x:{nowhere}"), 3, "create of", "the directory is not")


def test_what_cannot_be_meant(space: Path) -> None:
    """A lease given twice, and a resource by the name of the index's own lease."""
    twice = run_arguments(space, 1, "--resource", f"guest:{space}:1M")
    refused(call(*twice, "true"), 2, "--resource: one is given twice")
    assert call("format", "index", f"vms:{space}:2M").code == 0
    member = ("--lockspace", f"vms:{space}", "--host-id", 1, *FAST)
    made = call("create", "rindex_lease", "--index", f"{space}:2M", *member)
    refused(made, 2, "the index's own lease")
    assert call("lookup", "--index", f"{space}:2M", "--json").json == []


def test_o_direct_refused(tmp_path: Path) -> None:
    """A file system without O_DIRECT is named as the reason, and no file is left on it."""
    command = ["mount", "-t", "ramfs", "-o", "size=8M", "ramfs", tmp_path]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system without O_DIRECT (ramfs) cannot be mounted")
    try:
        path = tmp_path / "disk"
        refused(call("format", "lockspace", f"vms:{path}"), 3, str(path), "O_DIRECT")
        assert not path.exists()
        path.write_bytes(bytes(MIB))
        refused(call("check", path), 3, str(path), "O_DIRECT")
    finally:
        run("umount", "--lazy", str(tmp_path))


def test_no_permission(space: Path) -> None:
    """Somebody who may not open the disk is told so."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("dropping privileges needs root and setpriv")
    # Where the interpreter is closed to others (in root's home), root without its capabilities,
    # which is one of the others here: the disk belongs to nobody.
    user = [*NOBODY, "--"]
    if call("--version", prefix=user).code != 0:
        user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
        os.chown(space, 65534, 65534)
    space.chmod(0o600)
    for command in (("check", space), ("format", "lockspace", f"vms:{space}", "--force")):
        refused(call(*command, prefix=user), 3, str(space), "Permission denied", "as a user who")


def test_not_a_lockspace(space: Path, tmp_path: Path) -> None:
    """An empty file, a resource and a text are not taken for a lockspace; the hint says why."""
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(2 * MIB))
    refused(call(*run_arguments(empty), "true"), 3, str(empty), "magic", "nothing of paxoslease")
    done = call("run", "--lockspace", f"vms:{space}:1M", "--resource", f"guest:{space}:1M",
                "--host-id", 1, "--", "true")  # fmt: skip
    refused(done, 3, f"{space}:1048576", "there is a resource")


def test_a_wrong_checksum(space: Path) -> None:
    """A damaged record is named with what was expected and found, by `run` and by `check`."""
    with space.open("r+b") as disk:
        disk.seek(100)
        disk.write(b"!")
    done = call(*run_arguments(space), "true")
    refused(done, 3, f"{space}:0", "checksum")
    checked = call("check", space)
    assert checked.code == 1
    assert "checksum" in checked.out


def test_names_of_others(space: Path) -> None:
    """Another lockspace's or resource's name is told from what is on the disk."""
    done = call("run", "--lockspace", f"other:{space}", "--resource", f"guest:{space}:1M",
                "--host-id", 1, "--", "true")  # fmt: skip
    refused(done, 3, "space_name is vms, expected other")
    done = call("run", "--lockspace", f"vms:{space}", "--resource", f"other:{space}:1M",
                "--host-id", 1, *FAST, "--", "true")  # fmt: skip
    refused(done, 3, "resource_name is guest, expected other")


@pytest.mark.parametrize("host_id", ["0", "-1", "2001", "one"])
def test_host_ids_out_of_range(space: Path, host_id: str) -> None:
    """A host id that no lockspace has is refused by the command line."""
    done = call("run", "--lockspace", f"vms:{space}", "--resource", f"guest:{space}:1M",
                f"--host-id={host_id}", "--", "true")  # fmt: skip
    refused(done, 2, f"'{host_id}' is not a host id")


def test_a_host_id_too_large_for_the_lockspace(tmp_path: Path) -> None:
    """The lockspace's own limit is in the message."""
    path = tmp_path / "disk"
    paxoslease.format_lockspace(str(path), "vms", sector_size=4096, align_size=MIB)
    done = call("run", "--lockspace", f"vms:{path}", "--resource", f"guest:{path}:1M",
                "--host-id", 251, *FAST, "--", "true")  # fmt: skip
    refused(done, 2, "host id 251", "between 1 and 250")


def test_a_host_id_in_use(space: Path) -> None:
    """Of two hosts with one id the second is refused, and told who is there."""
    arguments = run_arguments(space, 1, "--host-name", "first")
    with started(*arguments, "sh", "-c", "echo runs; exec sleep 60") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "runs\n"
        done = call(*run_arguments(space, 1), "true")
        refused(done, 4, "host id 1 of lockspace vms is in use by first")
        assert first.poll() is None


@pytest.mark.parametrize("name", ["", "x" * 49])
def test_resource_names(space: Path, name: str) -> None:
    """A resource name must have 1 to 48 bytes."""
    place = f"{name}:{space}:2M"
    words = "empty" if not name else "49 bytes"
    refused(call("format", "resource", place, "--lockspace", "vms"), 2, words)
    done = call("run", "--lockspace", f"vms:{space}", "--resource", place, "--host-id", 1,
                "--", "true")  # fmt: skip
    refused(done, 2, words)
    assert space.stat().st_size == 2 * MIB


def test_a_truncated_file(space: Path) -> None:
    """A file that ends within an area is told from a good one."""
    os.truncate(space, MIB + 700)
    checked = call("check", space)
    assert checked.code == 1, checked
    done = call(*run_arguments(space), "true")
    refused(done, 3, str(space), "beyond the end")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    """A missing file, a directory and a character device are told apart; /dev gets no files."""
    refused(call("check", "no/such", cwd=tmp_path), 3, "no/such", "No such file", "how the path")
    refused(call("check", tmp_path), 3, "directory")
    refused(call("format", "lockspace", f"a:{tmp_path}"), 3, str(tmp_path))
    refused(call("check", "/dev/null"), 3, "character device")
    refused(call("format", "lockspace", "a:/dev/no-such-disk"), 3, "No such file")
    assert not Path("/dev/no-such-disk").exists()


@pytest.mark.parametrize("exists", [False, True])
def test_disk_full_on_format(mounted: Path, exists: bool) -> None:
    """A format that finds no room leaves no lockspace, and the file as it was."""
    path = mounted / "disk"
    if exists:
        path.touch()
    room = os.statvfs(mounted)
    with (mounted / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, room.f_bavail * room.f_frsize - MIB // 2)
    done = call("format", "lockspace", f"vms:{path}", "--sector-size", "4096",
                "--align-size", "8M")  # fmt: skip
    refused(done, 3, str(path), "No space left", "make room")
    assert path.exists() == exists
    assert not exists or path.stat().st_size == 0


def test_two_programs_format_at_once(tmp_path: Path) -> None:
    """Of two formats of one new place one wins and the other changes nothing."""
    path = tmp_path / "disk"
    arguments = ("format", "resource", f"guest:{path}", "--lockspace")
    for _ in range(2):
        path.unlink(missing_ok=True)
        with started(*arguments, "a") as first, started(*arguments, "b") as second:
            ends = {"a": end_of(first), "b": end_of(second)}
        winners = [name for name, done in ends.items() if done.code == 0]
        assert len(winners) == 1, ends
        loser = next(done for name, done in ends.items() if name not in winners)
        refused(loser, 3, str(path), "already holds")
        (area,) = call("inspect", "--json", path).json
        assert area["lockspace"] == winners[0]


def test_a_format_waits_for_nobody(space: Path) -> None:
    """While another program formats, a place is refused even with --force."""
    before = space.read_bytes()
    with space.open("r+b") as disk:
        fcntl.flock(disk, fcntl.LOCK_EX)
        done = call("format", "lockspace", f"new:{space}", "--force")
    refused(done, 3, "another program formats now")
    assert space.read_bytes() == before


def test_format_refuses_what_is_not_empty(space: Path, tmp_path: Path) -> None:
    """Neither leases nor other data nor a file system is overwritten without --force."""
    before = space.read_bytes()
    refused(call("format", "lockspace", f"new:{space}"), 3, "already holds the lockspace vms")
    refused(
        call("format", "resource", f"new:{space}:1M", "--lockspace", "vms"),
        3,
        "already holds the resource guest of lockspace vms",
    )
    assert space.read_bytes() == before
    text = tmp_path / "text"
    text.write_text("dear diary")
    refused(call("format", "lockspace", f"new:{text}"), 3, "already holds data")
    assert text.read_text() == "dear diary"
    if shutil.which("mkfs.ext4") and shutil.which("blkid"):
        image = tmp_path / "ext4"
        image.write_bytes(bytes(8 * MIB))
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        refused(call("format", "lockspace", f"new:{image}:4M"), 3, "already holds ext4")


def test_commands_that_cannot_be_run(space: Path, tmp_path: Path) -> None:
    """A command that does not exist is refused before joining; one that fails to start after."""
    refused(call(*run_arguments(space), "no-such-program"), 2, "no-such-program")
    script = tmp_path / "script"
    script.write_bytes(b"\x7fELF nothing")
    script.chmod(0o755)
    done = call(*run_arguments(space), script)
    assert done.code == 126
    assert done.errors == [f"paxoslease: {script} cannot be run: Exec format error"]


def test_the_disk_is_as_before_when_nothing_was_done(space: Path) -> None:
    """A run that is refused writes nothing."""
    before = space.read_bytes()
    call("run", "--lockspace", f"other:{space}", "--resource", f"guest:{space}:1M",
         "--host-id", 1, "--", "true")  # fmt: skip
    assert space.read_bytes() == before
