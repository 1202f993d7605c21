"""Check the C helper: warnings as errors, then sanitizers and valgrind over every function of it.

python tools/check_c.py              everything; exit 1 when something is reported
python tools/check_c.py --warnings   only compile, which takes a second
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
COMPILE = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-I", str(CSRC)]
STRICT = ["-Wshadow", "-Wconversion", "-Wcast-align", "-Wstrict-prototypes", "-Wvla"]
OURS = [str(CSRC / "alignedio.c"), str(CSRC / "records.c"), str(ROOT / "tools/exercise_aio.c")]
PYTHON = ["-I", sysconfig.get_path("include"), "-DPy_LIMITED_API=0x030b0000"]
DISK_BYTES = 8 << 20

# valgrind looks up a request when it is reaped, in memory that the kernel asks for only until it is
# submitted; what it finds there is of no consequence, but it says so.
VALGRIND_NOISE = "Warning: unhandled io_getevents opcode"


def warnings() -> None:
    """Compile everything, also what cffi generated, with warnings as errors."""
    run([*COMPILE, *STRICT, "-O2", "-fsyntax-only", *OURS])
    run([*COMPILE, *PYTHON, "-O2", "-fsyntax-only", str(CSRC / "_aio.c")])


def sanitizers(directory: Path, disk: Path) -> None:
    """Run the exercise under AddressSanitizer, LeakSanitizer and UBSan."""
    target = str(directory / "sanitized")
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    run([*COMPILE, *STRICT, *flags, *OURS, "-o", target])
    run([target, str(disk)])


def valgrind(directory: Path, disk: Path) -> None:
    """Run the exercise under valgrind's memory checker."""
    target = str(directory / "plain")
    run([*COMPILE, *STRICT, "-O1", *OURS, "-o", target])
    run(["valgrind", "-q", "--leak-check=full", "--error-exitcode=9", target, str(disk)])


def run(command: list[str]) -> None:
    """Run a command; end the program with what it reported when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    reported = [line for line in lines if VALGRIND_NOISE not in line]
    if reported:
        print("\n".join(reported), file=sys.stderr)
    if done.returncode != 0 or reported:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--warnings", action="store_true", help="only compile")
    arguments = parser.parse_args()
    warnings()
    if arguments.warnings:
        return
    # Not /tmp, which may be a file system without O_DIRECT.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        disk = directory / "disk"
        disk.write_bytes(bytes(DISK_BYTES))
        sanitizers(directory, disk)
        print("the C helper is clean under ASan, LSan and UBSan")
        if shutil.which("valgrind"):
            valgrind(directory, disk)
            print("the C helper is clean under valgrind")
        else:
            print("valgrind is not installed: that run is left out", file=sys.stderr)


if __name__ == "__main__":
    main()
