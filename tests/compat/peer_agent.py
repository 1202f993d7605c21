"""Speak to one real sanlock daemon on behalf of `peer.SanlockClient`, line by line in JSON.

Runs under the system's Python, where Debian puts the `sanlock` module, and holds the descriptors
registered with the daemon: as long as this process lives, the daemon counts it as the user of
their leases. libsanlock reads SANLOCK_RUN_DIR once per process, hence one agent per daemon.

A request is `{"op": name, "args": {...}}`, a reply `{"ok": value, "took_ns": n}` or
`{"number": -243, "text": ...}` (sanlock's number) or `{"broken": text}` (a mistake of ours).
Bytes travel as `{"hex": ...}`. Calls that take several leases, flags or that must be measured
without Python's share go through ctypes to libsanlock_client, whose calls release the GIL.
Layout of the structures: /usr/include/sanlock.h.
"""

import ctypes
import json
import os
import struct
import sys
import threading
import time

import sanlock

RES_NUM_HOSTS = 0x2
RES_SHARED = 0x4
RES_PERSISTENT = 0x8
ACQUIRE_LVB = 0x1
ACQUIRE_ORPHAN = 0x2
ACQUIRE_OWNER_NOWAIT = 0x8
RELEASE_ALL = 0x1
CALL_LEASES_MAX = 8
EAGAIN = -11
# Held by somebody else, or lost to somebody else in a ballot: worth another attempt.
CONTENDED = frozenset({EAGAIN, -243, -244, -245, -246, -247})

LIB = ctypes.CDLL("libsanlock_client.so.1", use_errno=True)


def resource(lease):
    """Return a `struct sanlk_resource` with its disks, as a ctypes buffer."""
    flags = RES_SHARED if lease.get("shared") else 0
    flags |= RES_PERSISTENT if lease.get("persistent") else 0
    flags |= RES_NUM_HOSTS if lease.get("num_hosts") else 0
    head = struct.pack(
        "<48s48sQQIIII",
        lease["lockspace"].encode(),
        lease["name"].encode(),
        0,
        0,
        lease.get("num_hosts") or 0,
        0,
        flags,
        1,
    )
    disk = struct.pack("<1024sQII", os.fsencode(lease["path"]), lease["offset"], 0, 0)
    return ctypes.create_string_buffer(head + disk, len(head) + len(disk))


def pointers(leases):
    """Return an array of pointers to resources, and the buffers that must outlive it."""
    buffers = [resource(lease) for lease in leases]
    array = (ctypes.c_void_p * max(1, len(buffers)))(*(ctypes.addressof(b) for b in buffers))
    return array, buffers


class Refused(Exception):
    """The daemon answered with an error number."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def checked(number):
    """Raise Refused for a negative result of libsanlock."""
    if number < 0:
        raise Refused(number)
    return number


class Agent:
    """The operations that `peer.SanlockClient` may ask for; every method is one `op`."""

    def __init__(self):
        self.fds = []

    def register(self):
        """Open one more registered connection and return its slot number."""
        self.fds.append(checked(LIB.sanlock_register()))
        return len(self.fds) - 1

    def drop(self, slot):
        """Close a registered connection: for the daemon its user is dead."""
        os.close(self.fds[slot])
        self.fds[slot] = -1

    def module(self, function, kwargs, with_fd=None):
        """Call a function of the `sanlock` module with keyword arguments."""
        if "disks" in kwargs:
            kwargs["disks"] = [tuple(disk) for disk in kwargs["disks"]]
        if with_fd is not None:
            kwargs["slkfd"] = self.fds[with_fd]
        return getattr(sanlock, function)(**kwargs)

    def acquire(self, leases, slot=0, lvb=False, orphan=False, nowait=False):
        """Acquire up to eight leases in one call."""
        flags = ACQUIRE_LVB * lvb | ACQUIRE_ORPHAN * orphan | ACQUIRE_OWNER_NOWAIT * nowait
        array, _keep = pointers(leases)
        return checked(LIB.sanlock_acquire(self.fds[slot], -1, flags, len(leases), array, None))

    def release(self, leases, slot=0):
        """Release up to eight leases in one call; none named: all that the slot holds."""
        flags = 0 if leases else RELEASE_ALL
        array, _keep = pointers(leases)
        return checked(LIB.sanlock_release(self.fds[slot], -1, flags, len(leases), array))

    def convert(self, lease, slot=0):
        """Convert a held lease to the mode that `lease` asks for."""
        return checked(LIB.sanlock_convert(self.fds[slot], -1, 0, resource(lease)))

    def cycles(self, lease, count):
        """Acquire and release `count` times; return the nanoseconds of each call."""
        array, _keep = pointers([lease])
        fd = self.fds[0]
        acquire_ns, release_ns = [], []
        for _ in range(count):
            begin = time.monotonic_ns()
            checked(LIB.sanlock_acquire(fd, -1, 0, 1, array, None))
            between = time.monotonic_ns()
            checked(LIB.sanlock_release(fd, -1, 0, 1, array))
            end = time.monotonic_ns()
            acquire_ns.append(between - begin)
            release_ns.append(end - between)
        return {"acquire_ns": acquire_ns, "release_ns": release_ns}

    def batch(self, leases, per_call=CALL_LEASES_MAX, in_turn=False):
        """Acquire, then release many leases, a registered client for each call.

        All calls at once, each in a thread, or one call after another; return the total ns of both.
        """
        groups = [leases[at : at + per_call] for at in range(0, len(leases), per_call)]
        while len(self.fds) < len(groups):
            self.register()
        run = self._in_turn if in_turn else self._at_once
        acquire_ns = run(groups, self.acquire)
        release_ns = run(groups, self.release)
        return {"acquire_ns": acquire_ns, "release_ns": release_ns}

    def _in_turn(self, groups, operation):
        """Run `operation` on every group, each on its slot; return the total ns."""
        begin = time.monotonic_ns()
        for slot, group in enumerate(groups):
            operation(group, slot)
        return time.monotonic_ns() - begin

    def _at_once(self, groups, operation):
        """Run `operation` on every group, each in a thread on its slot; return the total ns."""
        gate = threading.Barrier(len(groups) + 1)
        refusals = []

        def one(slot, group):
            gate.wait()
            try:
                operation(group, slot)
            except Refused as refused:
                refusals.append(refused.number)

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(groups)]
        for thread in threads:
            thread.start()
        gate.wait()
        begin = time.monotonic_ns()
        for thread in threads:
            thread.join()
        took_ns = time.monotonic_ns() - begin
        if refusals:
            raise Refused(refusals[0])
        return took_ns

    def hammer(self, lease, start_ns, duration_s, work_s, retry_s=0.0):
        """Want, hold for `work_s` and release one lease again and again until the time is up.

        Return `holds` as [wanted, got, begin of release, end of release] in CLOCK_MONOTONIC
        nanoseconds, the wait that the end cut off, the refused attempts and the CPU used here.
        """
        array, _keep = pointers([lease])
        fd = self.fds[0]
        end_ns = start_ns + int(duration_s * 1e9)
        holds, refused, unfinished_ns = [], 0, 0
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        while time.monotonic_ns() < end_ns:
            wanted = time.monotonic_ns()
            while (number := LIB.sanlock_acquire(fd, -1, 0, 1, array, None)) in CONTENDED:
                refused += 1
                if time.monotonic_ns() >= end_ns:
                    unfinished_ns = time.monotonic_ns() - wanted
                    break
                if retry_s:
                    time.sleep(retry_s)
            if unfinished_ns:
                break
            checked(number)
            got = time.monotonic_ns()
            time.sleep(work_s)
            leaving = time.monotonic_ns()
            checked(LIB.sanlock_release(fd, -1, 0, 1, array))
            holds.append([wanted, got, leaving, time.monotonic_ns()])
        return {"holds": holds, "refused": refused, "unfinished_ns": unfinished_ns}

    def format_many(self, leases, align_size, sector_size):
        """Format resources one after another, as the module offers it; return the total ns."""
        begin = time.monotonic_ns()
        for lease in leases:
            sanlock.write_resource(
                lockspace=lease["lockspace"].encode(),
                resource=lease["name"].encode(),
                disks=[(lease["path"], lease["offset"])],
                align=align_size,
                sector=sector_size,
            )
        return time.monotonic_ns() - begin

    def join_many(self, spaces, io_timeout_s):
        """Join several lockspaces at once, a thread for each; return the ns of each join."""
        took_ns = [0] * len(spaces)
        refusals = []

        def one(index, space):
            begin = time.monotonic_ns()
            try:
                sanlock.add_lockspace(
                    lockspace=space["lockspace"].encode(),
                    host_id=space["host_id"],
                    path=space["path"],
                    offset=space["offset"],
                    iotimeout=io_timeout_s,
                )
            except sanlock.SanlockException as error:
                refusals.append(error)
            took_ns[index] = time.monotonic_ns() - begin

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(spaces)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if refusals:
            raise refusals[0]
        return took_ns


def encode(value):
    """Return `value` in the form in which bytes may travel through JSON."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value):
    """Return what `encode` was given, tuples as lists."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def answer(agent, line):
    """Carry out one request and return its reply."""
    request = json.loads(line)
    begin = time.monotonic_ns()
    try:
        value = getattr(agent, request["op"])(**decode(request["args"]))
    except Refused as refused:
        return {"number": refused.number, "text": os.strerror(-refused.number)}
    except sanlock.SanlockException as error:
        return {"number": -abs(error.errno), "text": " ".join(map(str, error.args[1:]))}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    return {"ok": encode(value), "took_ns": time.monotonic_ns() - begin}


def main():
    """Answer requests until stdin ends."""
    agent = Agent()
    for line in sys.stdin:
        print(json.dumps(answer(agent, line)), flush=True)


if __name__ == "__main__":
    main()
