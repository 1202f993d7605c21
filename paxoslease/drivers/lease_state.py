"""The state of leases as text: what a daemon answers to INQUIRE, read and cut into parts.

    state    := resource ( " " resource )*
    resource := lockspace ":" name ( ":" path ":" offset )+ ":" ( lver | "SH" )

Names are not escaped; in a path a backslash stands before every colon and blank.

Source: spec/wire-protocol.md 9.3; spec/lock-drivers.md 12.6.
"""

from __future__ import annotations

from typing import NamedTuple

_MALFORMED = "it is not of the form lockspace:name:path:offset:version"
_LVER_MAX = (1 << 64) - 1


class Malformed(ValueError):
    """A text is no state; the argument says why."""


class HeldLease(NamedTuple):
    """One lease of a state. lver: its version, None for a shared one, which has none."""

    lockspace: str
    name: str
    lver: int | None
    text: str


def parse_state(state: str) -> tuple[HeldLease, ...]:
    """Return the leases of a state, as they stand in it. Raises Malformed."""
    return tuple(_parse_item(item) for item in _split(state, " ") if item)


def format_state(leases: tuple[HeldLease, ...]) -> str:
    """Return the state of these leases."""
    return " ".join(lease.text for lease in leases)


def _parse_item(item: str) -> HeldLease:
    fields = _split(item, ":")
    if len(fields) < 5 or len(fields) % 2 == 0 or not fields[0] or not fields[1]:
        raise Malformed(_MALFORMED)
    if not all(offset.isdecimal() for offset in fields[3:-1:2]):
        raise Malformed(_MALFORMED)
    last = fields[-1]
    if last == "SH":
        return HeldLease(fields[0], fields[1], None, item)
    if not (last.isascii() and last.isdecimal()) or int(last) > _LVER_MAX:
        raise Malformed(f"{last!r} is no version")
    return HeldLease(fields[0], fields[1], int(last), item)


def _split(text: str, separator: str) -> list[str]:
    """Split where no backslash precedes; backslashes stay."""
    parts = [""]
    escaped = False
    for character in text:
        if character == separator and not escaped:
            parts.append("")
            continue
        parts[-1] += character
        escaped = character == "\\" and not escaped
    return parts
