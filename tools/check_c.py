"""Run the C helper under sanitizers and valgrind: a program that uses every function of it.

python tools/check_c.py      exit 1 when a run reports anything
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-g"]
SOURCES = [str(ROOT / "csrc/alignedio.c"), str(ROOT / "tools/exercise_aio.c")]


def build(target: Path, *flags: str) -> None:
    """Compile the exercise with warnings as errors."""
    command = ["cc", *WARNINGS, *flags, "-I", str(ROOT / "csrc"), *SOURCES, "-o", str(target)]
    subprocess.run(command, check=True)


def main() -> int:
    """Build and run all variants."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        disk = directory / "disk"
        disk.write_bytes(bytes(8 << 20))
        build(directory / "sanitized", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover")
        build(directory / "plain", "-O1")
        runs = [[str(directory / "sanitized"), str(disk)]]
        if shutil.which("valgrind"):
            runs.append(
                ["valgrind", "-q", "--error-exitcode=9", str(directory / "plain"), str(disk)]
            )
        else:
            print("valgrind is not installed: that run is left out", file=sys.stderr)
        for run in runs:
            if subprocess.run(run, check=False).returncode != 0:
                print(f"failed: {' '.join(run)}", file=sys.stderr)
                return 1
    print(f"{len(runs)} runs of the C helper are clean")
    return 0


if __name__ == "__main__":
    sys.exit(main())
