"""One of our hosts as a process of its own, so that it can be killed: join, acquire, hold.

python -m tests.compat.our_host PATH LOCKSPACE AT HOST_ID IO_TIMEOUT RESOURCE OFFSET

Prints "held TOKEN" and holds the lease until it is killed.
"""

from __future__ import annotations

import sys
import threading

import paxoslease


def main() -> None:
    """Hold the lease for ever."""
    path, space, at, host_id, io_timeout, resource, offset = sys.argv[1:]
    lockspace = paxoslease.join(
        path, space, int(host_id), offset=int(at), io_timeout=int(io_timeout)
    )
    lease = lockspace.lease(resource, path, offset=int(offset))
    print(f"held {lease.fencing_token}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
