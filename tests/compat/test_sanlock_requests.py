"""Our client asks the daemon for the same bytes as the original, and says the same of the answer.

Both programs run against a daemon that writes down what it is asked and answers with one number.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.compat.recorder import Recorder
from tests.daemon.daemons import PROGRAMS, Kind, require

pytestmark = pytest.mark.peer

REFUSED = -5
KINDS: tuple[Kind, Kind] = ("real", "ours")

SPACE = ["-s", "L:1:/p:0"]
RESOURCE = ["-r", "L:R:/p:0"]
INDEX = ["-x", "L:/p:1M"]

ACTIONS: dict[str, Sequence[Sequence[str]]] = {
    "gets": [[], ["-h", "1"]],
    "host_status": [[], SPACE, ["-s", "L"], ["-s", ":1:/p:0"]],
    "renewal": [[], ["-s", "L"]],
    "log_dump": [[]],
    "version": [[]],
    "shutdown": [["-w", "1"], ["-w", "1", "-f", "1"], ["-w", "1", "-f", "0x10"]],
    "add_lockspace": [[], SPACE, ["-s", "L"], [*SPACE, "-o", "5"], [*SPACE, "-o", "10"]],
    "inq_lockspace": [[], SPACE, ["-s", "L"]],
    "rem_lockspace": [[], SPACE],
    "set_config": [
        [],
        ["-s", "L"],
        ["-s", "L", "-u", "1"],
        ["-s", "L", "-u", "0"],
        ["-s", "L", "-O", "1", "-u", "1"],
        ["-s", "L", "-O", "0"],
    ],
    "set_event": [
        [],
        ["-s", "L", "-i", "3", "-g", "4", "-e", "5", "-d", "6"],
        ["-s", "L", "-i", "0x3", "-g", "-1", "-e", "0xfff", "-d", "010"],
    ],
    "examine": [[], SPACE, ["-s", "L"], RESOURCE, ["-r", "L:R"], [*SPACE, *RESOURCE]],
    "command": [
        ["-c", "/bin/true"],
        [*RESOURCE, "-c", "/bin/true"],
        [*RESOURCE, "-P", "1", "-O", "1", "-n", "7", "-c", "/bin/true", "-x"],
    ],
    "acquire": [
        [],
        ["-p", "7"],
        [*RESOURCE, "-p", "7"],
        [*RESOURCE, "-p", "-7", "-n", "-1", "-P", "5", "-O", "5"],
        ["-r", "L:R:/p:0:SH", "-p", "7"],
        ["-r", "L:R:/p:0:9", "-p", "7"],
        ["-r", "L:R:/p:0:/q:1048576", "-p", "7"],
        [*RESOURCE, "-p", "7", "-Z", "4096", "-A", "2M"],
        ["-r", "L:R", "-p", "7"],
    ],
    "release": [
        [],
        ["-p", "7"],
        [*RESOURCE, "-p", "7"],
        [*RESOURCE, "-r", "L:S:/q:0", "-p", "7"],
        ["-a", "1", "-p", "7"],
        ["-O", "1", *RESOURCE, "-p", "7"],
        ["-O", "1", "-s", "L", "-p", "7"],
        ["-O", "1", *SPACE, *RESOURCE, "-p", "7"],
    ],
    "convert": [[], ["-p", "7"], [*RESOURCE, "-p", "7"], ["-r", "L:R:SH", "-p", "7"]],
    "inquire": [[], ["-p", "7"], ["-p", "x"], ["-p", "7", "-D"]],
    "request": [
        [],
        RESOURCE,
        ["-r", "L:R:/p:0:7", "-f", "2"],
        ["-r", "L:R:/p:0:7", "-f", "0x2"],
        ["-r", "L:R"],
    ],
    "init": [
        [],
        SPACE,
        ["-s", "L"],
        [*SPACE, "-o", "5"],
        [*SPACE, "-Z", "4096", "-A", "2M"],
        [*SPACE, "-Z", "512"],
        [*SPACE, "-n", "3", "-m", "4"],
        RESOURCE,
        ["-r", "L:R"],
        [*RESOURCE, "-z", "0", "-n", "3", "-m", "4"],
        [*RESOURCE, "-Z", "4096", "-A", "8M"],
        [*RESOURCE, "-Z", "512"],
        ["-r", "L:R:/p:0:5"],
        [*SPACE, *RESOURCE],
    ],
    "write": [SPACE],
    "read": [
        [],
        SPACE,
        ["-s", "L"],
        [*SPACE, "-Z", "4096", "-A", "2M"],
        RESOURCE,
        ["-r", "L:R"],
        ["-r", "L:R:/p:18446744073709551615"],
        ["-r", "L:R:/p:0:/q:-99999999999999999999"],
        [*RESOURCE, "-h", "1"],
        [*RESOURCE, "-Z", "4096", "-A", "2M"],
    ],
    "align": [[], SPACE],
    "format": [[], INDEX, ["-x", "L"], [*INDEX, "-Z", "512", "-A", "1M"]],
    "create": [[], INDEX, [*INDEX, "-e", "n"], [*INDEX, "-e", "n", "-n", "3", "-m", "4"]],
    "delete": [[], [*INDEX, "-e", "n"], [*INDEX, "-e", "n:5M"]],
    "lookup": [[], INDEX, [*INDEX, "-e", "n"], [*INDEX, "-e", ":5"]],
    "update": [[], [*INDEX, "-e", "n:5"], [*INDEX, "-e", "n:5", "-z", "0"]],
    "rebuild": [[], INDEX],
}
CASES = [(action, *words) for action, options in ACTIONS.items() for words in options]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """Run a daemon that refuses everything."""
    require("real")
    require("ours")
    with Recorder(tmp_path_factory.mktemp("recorder"), REFUSED) as made:
        yield made


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_same_request(recorder: Recorder, words: Sequence[str]) -> None:
    """Both ask for the same, print the same and end alike when it is refused."""
    real = recorder.run(PROGRAMS["real"], ["client", *words])
    assert recorder.run(PROGRAMS["ours"], ["client", *words]) == real


@pytest.mark.parametrize("action", ACTIONS)
def test_same_without_daemon(tmp_path: Path, action: str) -> None:
    """Both say the same when nobody listens."""
    require("real")
    require("ours")
    # Without -c the original would wait for ever if it were registered; it is not.
    words = ["client", action, *ACTIONS[action][-1]]
    env = {**os.environ, "SANLOCK_RUN_DIR": str(tmp_path)}
    real, ours = (
        subprocess.run([PROGRAMS[kind], *words], env=env, stdout=subprocess.PIPE, timeout=20)
        for kind in KINDS
    )
    assert (ours.returncode, ours.stdout) == (real.returncode, real.stdout)


# -- strings -----------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    (
        *("L", "R", "/p", "/q", "0", "1", "5", "07", "0x5", " 7", "-1", "SH", "\\", "\\:", "\\ "),
        *(":" * 8),
        *("x" * 48, "x" * 49, "p" * 1020, "99999999999999999999"),
    )
)


def _is_short(text: str) -> bool:
    """Tell whether no path is longer than the original has room for: then it sends rubbish."""
    return all(len(part) < 1024 for part in text.replace("\\:", "..").split(":"))


STRINGS = st.lists(_PIECES, max_size=14).map("".join).filter(_is_short)
FEW = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FEW
@given(text=STRINGS)
def test_any_lockspace(recorder: Recorder, text: str) -> None:
    """Whatever is given for a lockspace, both understand the same. Offsets in M aside."""
    words = ["client", "inq_lockspace", "-s", text]
    assert recorder.run(PROGRAMS["ours"], words) == recorder.run(PROGRAMS["real"], words)


@FEW
@given(text=STRINGS)
def test_any_resource(recorder: Recorder, text: str) -> None:
    """Whatever is given for a resource, both understand the same, or refuse it alike."""
    words = ["client", "request", "-r", text]
    assert recorder.run(PROGRAMS["ours"], words) == recorder.run(PROGRAMS["real"], words)


@FEW
@given(text=STRINGS, entry=STRINGS)
def test_any_entry(recorder: Recorder, text: str, entry: str) -> None:
    """Whatever is given for an index and an entry, both understand the same."""
    words = ["client", "lookup", "-x", text, "-e", entry]
    assert recorder.run(PROGRAMS["ours"], words) == recorder.run(PROGRAMS["real"], words)
