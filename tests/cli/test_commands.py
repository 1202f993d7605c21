"""Every command once for real, as people and as programs call it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import paxoslease
from paxoslease.cli.explain_command import find
from paxoslease.wire.numbers import all_numbers
from tests.cli.tool import FAST, MIB, call, end_of, refused, run_arguments, started


def member(path: Path, host_id: int = 1) -> tuple[object, ...]:
    """Return the options that join the lockspace on a file."""
    return ("--lockspace", f"vms:{path}", "--host-id", host_id, *FAST)


def test_version_and_help() -> None:
    """The version is the package's, and help lists every command and exit code."""
    assert call("--version").out == f"paxoslease {paxoslease.__version__}\n"
    shown = call("--help").out
    for word in ("format", "inspect", "run", "demo", "exit codes:", "130"):
        assert word in shown


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("inspcet", "x"), "inspect"),
        (("format", "locksapce", "x"), "lockspace"),
        (("check", "x", "--jsno"), "--json"),
        (("format", "lockspace", "a:b", "--sectorsize", "512"), "--sector-size"),
    ],
)
def test_typing_mistakes(typed: tuple[str, ...], meant: str) -> None:
    """What was probably meant is suggested."""
    refused(call(*typed), 2, f"did you mean '{meant}'?")


def test_a_mistake_on_the_command_line_is_json_too() -> None:
    """Who asked for JSON gets it whatever is wrong, unless the word is the command's own."""
    done = call("format", "lockspace", "vms", "--json")
    assert (done.code, done.err) == (2, "")
    assert done.json["error"] == "UsageError"
    assert "NAME:PATH" in done.json["message"]
    assert "--help" in done.json["hint"]
    theirs = call("run", "--host-id", "0", "--", "true", "--json")
    assert (theirs.code, theirs.out) == (2, "")
    assert "host id" in theirs.err


def test_help_is_filled() -> None:
    """Long descriptions are broken into lines, also where the exit codes below are not."""
    for command in ("run", "guard", "daemon", "events"):
        lines = call(command, "--help").out.splitlines()
        assert max(map(len, lines)) <= 90, command


def test_format_one_of_each(tmp_path: Path) -> None:
    """A file is made and extended; what was made is where the command says."""
    path = tmp_path / "disk"
    done = call("format", "lockspace", f"vms:{path}")
    assert (done.code, done.out, done.err) == (0, f"lockspace vms is at {path}:0\n", "")
    done = call("format", "resource", f"guest:{path}:1M", "--lockspace", "vms", "--json")
    expected = {"subject": "resource", "name": "guest", "path": str(path), "offset": MIB}
    assert done.json == [expected]
    done = call("format", "index", f"vms:{path}:2M")
    assert done.out == f"index vms is at {path}:{2 * MIB}\n"
    done = call("inspect", "--json", path)
    assert [area["kind"] for area in done.json][:3] == [
        "lockspace",
        "resource",
        "resource index",
    ]
    assert path.stat().st_size == 4 * MIB


def test_format_many(tmp_path: Path) -> None:
    """`--count` makes numbered resources one behind the other; `check` finds them all good."""
    path = tmp_path / "disk"
    done = call("format", "resource", f"guest:{path}", "--lockspace", "vms", "--count", 20)
    assert done.out == f"20 resources guest0 to guest19 are at {path}:0 to {19 * MIB}\n"
    assert call("check", path).out == f"{path}: 20 areas, nothing wrong\n"
    assert call("check", path, "--json").json == {"areas": 20, "problems": []}
    done = call("format", "resource", f"g:{path}:20M", "--lockspace", "v", "--count", 2, "--json")
    assert [(one["name"], one["offset"]) for one in done.json] == [
        ("g0", 20 * MIB),
        ("g1", 21 * MIB),
    ]


def test_check_tells_what_is_wrong(space: Path) -> None:
    """A damaged record gives exit code 1, its place, and what was found and expected."""
    with space.open("r+b") as disk:
        disk.seek(MIB + 60)
        disk.write(b"?")
    done = call("check", space)
    assert done.code == 1
    assert "1 problem" in done.out
    assert "checksum" in done.out
    done = call("check", space, "--json")
    assert done.code == 1
    (problem,) = done.json["problems"]
    assert (problem["offset"], problem["field"]) == (MIB, "checksum")
    assert "1 area, nothing wrong" not in call("check", f"{space}:1M").out


def test_check_of_nothing(tmp_path: Path) -> None:
    """A place without any lease is not a good one: it may be the wrong place."""
    path = tmp_path / "zeros"
    path.write_bytes(bytes(MIB))
    done = call("check", path)
    assert (done.code, done.out) == (1, f"no lockspace, resource or index was found at {path}\n")
    done = call("check", "--json", path)
    assert (done.code, done.json) == (1, {"areas": 0, "problems": []})
    assert "no lockspace, resource or index" in call("inspect", path).out


def test_an_index_through_its_life(space: Path) -> None:
    """Create, look up, delete and rebuild; errors name the resource."""
    assert call("format", "index", f"vms:{space}:2M").code == 0
    index = ("--index", f"{space}:2M")
    made = call("create", "one", *index, *member(space))
    assert (made.code, made.out) == (0, f"created one at {space}:{4 * MIB}\n"), made
    second = call("create", "two", *index, *member(space), "--json").json
    assert second == {"name": "two", "path": str(space), "offset": 5 * MIB}
    assert call("lookup", *index).out.split() == [
        "name", "offset", "one", str(4 * MIB), "two", str(5 * MIB),
    ]  # fmt: skip
    assert call("lookup", "two", *index, "--json").json == [{"name": "two", "offset": 5 * MIB}]
    refused(call("lookup", "three", *index), 1, "three")
    refused(call("create", "one", *index, *member(space)), 1, "one")
    gone = call("delete", "one", *index, *member(space))
    assert gone.out == f"deleted one at {space}:{4 * MIB}\n"
    assert "rindex header: lockspace vms, at most 4096 entries\n" in call("inspect", space).out
    rebuilt = call("rebuild", *index, *member(space), "--json")
    assert rebuilt.json == {"entries": [{"name": "two", "offset": 5 * MIB}], "problems": []}
    assert call("check", space).code == 0


def test_run_passes_on(space: Path) -> None:
    """The command gets the token and its input, and its exit code is that of `run`."""
    script = 'echo "token $PAXOSLEASE_TOKEN_1"; exit 7'
    done = call(*run_arguments(space), "sh", "-c", script)
    assert (done.code, done.out, done.errors) == (7, "token 1\n", [])
    assert "no watchdog for lockspace vms" in done.err
    assert len(done.err.splitlines()) == 1
    done = call(*run_arguments(space), "sh", "-c", "echo $PAXOSLEASE_TOKEN_1; kill -9 $$")
    assert (done.code, done.out) == (137, "2\n")


def test_run_while_another_host_holds_the_lease(space: Path) -> None:
    """Without `--wait` it is refused with who holds it; with it, it runs as soon as it is free."""
    with started(*run_arguments(space, 1, "--host-name", "a"), "sh", "-c",
                 "echo runs; exec sleep 8") as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "runs\n"
        with started(*run_arguments(space, 2, "--wait", 30), "sh", "-c",
                     "echo $PAXOSLEASE_TOKEN_1") as waiting:  # fmt: skip
            refused_now = call(*run_arguments(space, 3), "echo", "ran")
            refused(refused_now, 4, "lease guest of lockspace vms is held by host 1 (a)", "alive")
            assert refused_now.out == ""
            in_json = call(*run_arguments(space, 3, "--json")[:-1], "--", "true")
            assert in_json.code == 4
            assert in_json.json["error"] == "LeaseHeld"
            assert (in_json.json["host_id"], in_json.json["host_name"]) == (1, "a")
            assert holder.poll() is None
            assert end_of(holder).code == 0
            done = end_of(waiting)
    assert (done.code, done.out, done.errors) == (0, "2\n", [])


def test_two_hosts_share(space: Path) -> None:
    """Shared leases are held together, and keep an exclusive one out."""
    script = ("sh", "-c", "echo runs; exec sleep 60")
    with (
        started(*run_arguments(space, 1, "--shared"), *script) as first,
        started(*run_arguments(space, 2, "--shared"), *script) as second,
    ):
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == "runs\n"
        refused(call(*run_arguments(space, 3), "true"), 4, "held shared by hosts", "1", "2")
        for process in (first, second):
            process.terminate()
            assert end_of(process).code == 143


def test_explain() -> None:
    """Numbers are explained with or without their sign; the unknown is refused."""
    assert call("explain", "-243").out.startswith("-243 LeaseHeld: Another host holds the lease.")
    assert call("explain", 28, "--json").json["code"] == -28
    magic = call("explain", 223)
    assert magic.out == "-223 SANLK_LEADER_MAGIC: There is no lease at that place.\n"
    assert "in sanlock: SANLK_LEADER_LOCKSPACE, the lease belongs to" in call("explain", 226).out
    refused(call("explain", 999), 2, "999")


@pytest.mark.parametrize("number", all_numbers())
def test_every_number_of_sanlock_is_explained(number: int) -> None:
    """None of them is unknown, and none is explained by a class that stands for nothing."""
    found = find(number)
    assert found is not None
    assert found[0] != "PaxosleaseError"


@pytest.mark.parametrize(
    ("subject", "operations"),
    [
        ("renewal", ["read the lockspace", "write one sector", "renewal"]),
        ("acquire", ["acquire", "release"]),
    ],
)
def test_bench(tmp_path: Path, subject: str, operations: list[str]) -> None:
    """It says what was measured, how often and how long, and draws a histogram to look at."""
    path, plot = tmp_path / "disk", tmp_path / "plot.svg"
    done = call("bench", subject, path, "--seconds", 1, "--plot", plot)
    assert done.code == 0, done
    for operation in operations:
        assert re.search(rf"^{operation} +\d+ +\d+\.\d\d\d", done.out, re.MULTILINE), done.out
    assert "of io_timeout 10 s" in done.out
    assert done.out.startswith(f"{subject} at {path}: ")
    assert "█" in done.out
    assert plot.read_text().startswith("<?xml")


def test_bench_for_programs(tmp_path: Path) -> None:
    """The same in JSON, on the place that an earlier run made; a picture may be a PNG."""
    path, picture = tmp_path / "disk", tmp_path / "plot.png"
    arguments = ("bench", "renewal", path, "--seconds", 0.2, "--json")
    assert call(*arguments).code == 0
    again = call(*arguments, "--plot", picture).json
    assert [one["name"] for one in again["operations"]][-1] == "renewal"
    assert again["operations"][0]["count"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_refuses(space: Path, tmp_path: Path) -> None:
    """It does not touch what is not its own, and knows early where a picture cannot go."""
    before = space.read_bytes()
    refused(call("bench", "renewal", space), 3, "already holds the lockspace vms")
    assert space.read_bytes() == before
    refused(call("bench", "renewal", tmp_path / "x", "--plot", "p.txt"), 2, "p.txt")
    refused(call("bench", "renewal", tmp_path / "x", "--plot", "/no/such/p.svg"), 3, "/no/such")
    assert not (tmp_path / "x").exists()


def test_simulate() -> None:
    """A seed gives the same run every time, and says what was found."""
    arguments = ("simulate", "--seed", 3, "--hosts", 2, "--hours", 0.2)
    first, second = call(*arguments, "--json"), call(*arguments, "--json")
    assert first.code == second.code == 0, first
    assert first.json == second.json
    assert "3" in call(*arguments).out


def test_demo() -> None:
    """The guest moves to the other host once, no earlier than it is safe."""
    done = call("demo", "--plain")
    assert done.code == 0, done
    assert "The guest moved 1 time, and never ran on two hosts" in done.out
    for words in ("is killed with everything on it", "gets the lease of guest-1", "Time line"):
        assert words in done.out
    assert done.err == ""
