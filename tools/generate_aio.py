"""Generate csrc/_aio.c, the cffi wrapper of the C helper, or check that it is up to date.

python tools/generate_aio.py           write csrc/_aio.c
python tools/generate_aio.py --check   exit 1 when it differs from what would be written
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent.parent / "csrc"


def generate() -> str:
    """Return the C source of the extension module paxoslease._aio."""
    ffi = FFI()
    ffi.cdef((CSRC / "aio.cdef.txt").read_text())
    ffi.set_source("paxoslease._aio", '#include "alignedio.h"')
    target = io.StringIO()
    with contextlib.redirect_stdout(None):  # it reports the address of the StringIO
        ffi.emit_c_code(target)
    return target.getvalue()


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    path = CSRC / "_aio.c"
    source = generate()
    if not arguments.check:
        path.write_text(source)
        return 0
    if path.read_text() != source:
        print("csrc/_aio.c is out of date: run python tools/generate_aio.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
