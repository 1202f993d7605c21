"""Fuzz what takes bytes from outside: the targets of tests/fuzz, each in a process of its own.

With atheris, if that is installed, guided by coverage; else with changed seeds, unguided. An input
that finds a mistake is printed as hex with the traceback, and makes the exit code 1; `--replay`
runs it again.

    .venv/bin/python tools/fuzz.py --minutes 60
    .venv/bin/python tools/fuzz.py --target states --replay 7b7d
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CORPUS = ROOT / ".fuzz"
INPUT_BYTES_MAX = 20_000
ONE_INPUT_S = 30
# Under atheris each input costs a megabyte that is not given back, and the seeds are good enough.
UNGUIDED = frozenset(("areas",))


def fuzz_guided(name: str, seconds: int) -> None:
    """Run one target under atheris; does not return."""
    import atheris

    with atheris.instrument_imports(include=["paxoslease"]):
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except BaseException:
            print(f"{name}: {data.hex()}", flush=True)
            raise

    flags = [f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}", "-rss_limit_mb=2048"]
    flags += [f"-timeout={ONE_INPUT_S}", "-print_final_stats=1", "-verbosity=0"]
    flags += [f"-artifact_prefix={CORPUS}/{name}-"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


def fuzz_unguided(name: str, seconds: int, seed: int) -> int:
    """Run one target on changed seeds; returns how many inputs it got."""
    from tests.fuzz.mutation import mutated
    from tests.fuzz.targets import TARGETS

    target, draw = TARGETS[name], random.Random(f"{name} {seed}")
    end_s = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end_s:
        data = mutated(draw, target.seeds)
        try:
            target.run(data)
        except BaseException:
            print(f"{name}: {data.hex()}", flush=True)
            raise
        count += 1
    return count


def worker(name: str, seconds: int, seed: int, *, guided: bool) -> int:
    """Fuzz one target in this process."""
    logging.disable(logging.ERROR)
    if guided:
        fuzz_guided(name, seconds)
    print(f"{name}: {fuzz_unguided(name, seconds, seed)} inputs")
    return 0


def replay(name: str, data: bytes) -> int:
    """Run one input again."""
    from tests.fuzz.targets import TARGETS

    try:
        TARGETS[name].run(data)
    except Exception:
        traceback.print_exc()
        return 1
    print("passed")
    return 0


def main() -> int:
    """Fuzz all targets one after the other, or one of them."""
    parser = argparse.ArgumentParser(description="fuzz what takes bytes from outside")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--target", action="append", help="only this one (may be repeated)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--unguided", action="store_true", help="without atheris")
    parser.add_argument("--replay", metavar="HEX", help="run one input of --target again")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    guided = not options.unguided and importlib.util.find_spec("atheris") is not None
    if options.worker:
        # Before anything is imported that is to be instrumented.
        return worker(options.target[0], int(options.minutes * 60), options.seed, guided=guided)
    from tests.fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    if options.replay is not None:
        return replay(names[0], bytes.fromhex(options.replay))
    seconds = max(1, int(options.minutes * 60 / len(names)))
    print(f"{'atheris' if guided else 'changed seeds'}, {seconds} s each, seed {options.seed}")
    failed = []
    for name in names:
        command = [sys.executable, __file__, "--worker", "--target", name]
        command += ["--minutes", str((seconds + 0.5) / 60), "--seed", str(options.seed)]
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run(
                command + ["--unguided"] * (not guided or name in UNGUIDED),
                cwd=directory,
                capture_output=True,
                text=True,
                errors="replace",
            )
        lines = (done.stdout + done.stderr).splitlines()
        told = [line for line in lines if "number_of_executed_units" in line or "inputs" in line]
        print(f"{name}: {'failed' if done.returncode else 'passed'} {' '.join(told)}", flush=True)
        if done.returncode:
            failed.append(name)
            print("\n".join(lines[-60:]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
