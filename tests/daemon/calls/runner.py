"""Run both programs with their output and time bounded, ours without starting Python each time.

python -m tests.daemon.calls.runner

A line of JSON, `{"program": path or "", "words": [hex, ...], "env": {...}, "cwd": directory}`, runs
a program; without a path ours, in a fork of this process, which has loaded it. The answer is
`[exit code, stdout hex, stderr hex]`; a negative exit code is the signal that ended the program,
which is SIGKILL when it ran too long or wrote too much.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import time
from typing import Any, Final

import paxoslease.cli.sanlock
from paxoslease.cli.sanlock.main import run_and_exit

LIMIT_S: Final = 5.0
OUTPUT_MAX: Final = 1 << 20


def run(
    program: str, words: list[bytes], env: dict[str, str], cwd: str
) -> tuple[int, bytes, bytes]:
    """Run a program in a child."""
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        _become(program, words, env, cwd, [end for _, end in pipes])
    for _, end in pipes:
        os.close(end)
    said = {begin: bytearray() for begin, _ in pipes}
    if not _listen(said, time.monotonic() + LIMIT_S):
        os.kill(child, signal.SIGKILL)
    for begin in said:
        os.close(begin)
    _, status = os.waitpid(child, 0)
    out, err = (bytes(said[begin]) for begin, _ in pipes)
    return os.waitstatus_to_exitcode(status), out, err


def _listen(said: dict[int, bytearray], until: float) -> bool:
    """Read to the end of all pipes; False when it is too late or too much."""
    is_open = set(said)
    while is_open:
        ready, _, _ = select.select(list(is_open), [], [], max(0.0, until - time.monotonic()))
        if not ready or sum(map(len, said.values())) > OUTPUT_MAX:
            return False
        for end in ready:
            data = os.read(end, 65536)
            said[end] += data
            if not data:
                is_open.discard(end)
    return True


def _become(
    program: str, words: list[bytes], env: dict[str, str], cwd: str, ends: list[int]
) -> None:
    """Be the program from here on; does not return."""
    code = 70
    try:
        os.environ.update(env)
        os.chdir(cwd)
        os.dup2(ends[0], 1)
        os.dup2(ends[1], 2)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.closerange(3, 64)
        if program:
            os.execv(program, ["sanlock", *words])
        sys.argv = ["sanlock", *map(os.fsdecode, words)]
        run_and_exit()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answer until stdin ends."""
    for module in pkgutil.iter_modules(paxoslease.cli.sanlock.__path__):
        importlib.import_module(f"paxoslease.cli.sanlock.{module.name}")
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        words = [bytes.fromhex(word) for word in asked["words"]]
        code, out, err = run(asked["program"], words, asked["env"], asked["cwd"])
        print(json.dumps([code, out.hex(), err.hex()]), flush=True)


if __name__ == "__main__":
    main()
