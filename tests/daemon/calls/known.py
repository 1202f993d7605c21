"""Where the two are known to differ, and why: each as narrow as can be told from a call.

What clients may notice of it stands in docs/compatibility.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Final

from tests.daemon import wire
from tests.daemon.calls.calls import Call, Command, Function, Raw
from tests.daemon.wire import Cmd

Judge = Callable[[Call, Sequence[str], Sequence[str], Sequence[str]], bool]

_EBADF: Final = -9
# What a dump makes of bytes that are none of a lease.
_NO_LEASE: Final = re.compile(
    r" {100,}\S+ \S+ SH$|\d+ {80,}0 \d+ \d+|.* \d{11,} 0 0$|dblock\S+ mbal 0 "
)


def _result(lines: Sequence[str]) -> int | None:
    found = re.match(r"result (-?\d+)", lines[0]) if lines else None
    return int(found[1]) if found else None


def _cmd(call: Call) -> int:
    return wire.parse_header(call.data).cmd if isinstance(call, Raw) else 0


def _several_disks(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """Whether a file of several cannot be used, which 3.8.5 finds out while it writes or reads."""
    leases = (Cmd.WRITE_RESOURCE, Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS, Cmd.ACQUIRE)
    if not isinstance(call, Raw) or _cmd(call) not in leases:
        return False
    if struct.unpack_from("<I", call.data, 32 + 124)[0] < 2:
        return False
    if _cmd(call) not in (Cmd.WRITE_RESOURCE, Cmd.ACQUIRE):
        return _result(real) == _EBADF and (_result(ours) or 0) < 0
    return (_result(real) or 0) < 0 and (_result(ours) or 0) < 0


def _negative_num_hosts(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """Whether num_hosts is negative, which 3.8.5 writes as it is."""
    if isinstance(call, Command):
        words = b" ".join(call.words)
        return re.search(rb"-[mn] (-[1-9]|\d{10})", words) is not None and real == ours
    if isinstance(call, Function):
        return max(call.kwargs.get(key, 0) for key in ("max_hosts", "num_hosts")) >= 1 << 31
    return _cmd(call) == Cmd.WRITE_RESOURCE and wire.parse_header(call.data).data < 0


def _far_host_id(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether the place of a host's record wraps around, where 3.8.5 reads."""
    if not isinstance(call, Raw) or _cmd(call) != Cmd.READ_LOCKSPACE:
        return False
    host_id = struct.unpack_from("<Q", call.data, 32 + 48)[0]
    offset = struct.unpack_from("<Q", call.data, 32 + 64 + 1024)[0]
    return host_id * 4096 + offset >= 1 << 63 and _result(ours) == -22 and not disk


def _outside_of_index(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """Whether a place of an index lies behind its last one, where 3.8.5 reads and writes."""
    if isinstance(call, Command):
        return ours[-2:-1] in (["lookup done -277"], ["update done -277"])
    return _cmd(call) in (Cmd.UPDATE_RINDEX, Cmd.LOOKUP_RINDEX) and _result(ours) == -277


def _crashed(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether the original's program ended by a signal, and ours did not."""
    return isinstance(call, Command) and real[0].startswith("exit -") and ours[0][5] != "-"


def _rubbish(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether the original prints a leader that it has not read."""
    if not isinstance(call, Command) or b"read_leader" not in call.words:
        return False
    if "magic 0x0" in ours and not disk:
        return True
    return _without_odd(real) == _without_odd(ours)


def _without_odd(lines: Sequence[str]) -> list[str]:
    """Put 0 for numbers that no lease has, but a damaged one, or bytes that were never cleared."""
    return [re.sub(r"-\d+|\*+|\d{10,}", "0", line) for line in lines]


def _mega(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether an offset in M was taken apart at the wrong colon."""
    if not isinstance(call, Command) or not re.search(rb":\d+M", b" ".join(call.words)):
        return False
    return any("parse error" in line for line in (*real, *ours))


def _newer(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether VERSION was asked for in the protocol's newer minor version, which ours has."""
    return isinstance(call, Raw) and _cmd(call) == Cmd.VERSION and call.data[4] == 2


def _dumped(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether a dump goes by sizes that are not those on the disk, and reads on behind them."""
    if not isinstance(call, Command) or b"dump" not in call.words:
        return False
    lines = [[line for line in found if not _NO_LEASE.match(line)] for found in (real, ours)]
    is_unaligned = any(line.startswith("WARNING: dump offset") for line in real)
    return is_unaligned or _without_odd(lines[0]) == _without_odd(lines[1])


def _next_free(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether `next_free` has an offset or no sizes, which the original does not see to."""
    if not isinstance(call, Command) or b"next_free" not in call.words:
        return False
    has_sizes = {b"-Z", b"-A"} <= set(call.words)
    return not has_sizes or b":" in call.words[2]


def _several_disks_of_line(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """The same as `_several_disks`, by way of the command line."""
    if not isinstance(call, Command) or b"-r" not in call.words:
        return False
    has_several = any(word.count(b":") > 4 for word in call.words)
    return has_several and real[0] == ours[0] == "exit 1"


def _far_host_id_of_line(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """The same as `_far_host_id`, by way of the command line."""
    if not isinstance(call, Command) or b"-s" not in call.words:
        return False
    numbers = [int(n) for word in call.words for n in re.findall(rb":(\d{15,})", word)]
    return max(numbers, default=0) >= 1 << 51 and real[0] == ours[0] == "exit 1" and not disk


def _several_disks_of_module(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """The same as `_several_disks`, by way of the module."""
    if not isinstance(call, Function) or len(call.kwargs.get("disks", ())) < 2:
        return False
    if call.name == "write_resource":
        return real[0].startswith("raised") and ours[0].startswith("raised")
    return "module: -9 " in real[0] and ours[0].startswith("raised")


def _several_leases(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """Whether one of several leases is not to be had, and ours has tried for them all at once."""
    if not isinstance(call, Raw) or _cmd(call) != Cmd.ACQUIRE:
        return False
    is_several = wire.parse_header(call.data).data > 1
    return is_several and (_result(real) or 0) < 0 and (_result(ours) or 0) < 0


def _late_value_block(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """Whether a value block was asked for when the lease was there already, without one."""
    if _cmd(call) not in (Cmd.GET_LVB, Cmd.SET_LVB):
        return False
    return _result(real) == -22 and _result(ours) in (0, -7)


def _order(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether leases that were acquired together are told in another order."""
    if _cmd(call) not in (Cmd.INQUIRE, Cmd.STATUS):
        return False
    words = [sorted(re.split(r"[\s'\\]+|x00", " ".join(lines))) for lines in (real, ours)]
    return words[0] == words[1]


def _restrictions(
    call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]
) -> bool:
    """Whether restrictions are shown for a lease that was acquired in shared mode."""
    shown = [
        [re.sub(r"list=(held|orphan) flags=\w+", "", line) for line in lines]
        for lines in (real, ours)
    ]
    return _cmd(call) == Cmd.STATUS and shown[0] == shown[1]


def _rebuilt(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether resources of one name were found, which ours enters once."""
    is_rebuild = isinstance(call, Command) and b"rebuild" in call.words
    return (is_rebuild or _cmd(call) == Cmd.REBUILD_RINDEX) and real == ours


def _index_sizes(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether an index states sizes that no format has, by which 3.8.5 goes."""
    return any("-230" in line for line in ours[:2])


def _damaged(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> bool:
    """Whether a record is damaged in what 3.8.5 does not look at: ballots, num_hosts."""
    names = ("read_resource", "read_resource_owners")
    is_reading = _cmd(call) in (Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS)
    if isinstance(call, Function):
        is_reading = call.name in names
    elif isinstance(call, Command):
        is_reading = bool({b"read", b"read_leader"} & set(call.words[:2]))
    return is_reading and any("-214" in line or "-228" in line for line in ours[:3])


KNOWN: Final[dict[str, Judge]] = {
    "one of several files": _several_disks,
    "negative num_hosts": _negative_num_hosts,
    "far host id": _far_host_id,
    "outside of an index": _outside_of_index,
    "the original crashed": _crashed,
    "several leases": _several_leases,
    "late value block": _late_value_block,
    "order": _order,
    "restrictions": _restrictions,
    "rebuilt": _rebuilt,
    "offset in M": _mega,
    "newer protocol": _newer,
    "sizes of an index": _index_sizes,
    "damaged record": _damaged,
    "rubbish": _rubbish,
    "dump": _dumped,
    "next_free": _next_free,
    "one of several files, line": _several_disks_of_line,
    "far host id, line": _far_host_id_of_line,
    "one of several files, module": _several_disks_of_module,
}


def known(call: Call, real: Sequence[str], ours: Sequence[str], disk: Sequence[str]) -> str:
    """Return why the two differ, empty when nobody knows."""
    return next((why for why, judge in KNOWN.items() if judge(call, real, ours, disk)), "")
