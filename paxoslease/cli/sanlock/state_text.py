"""The text with which a daemon answers INQUIRE: resources with blanks between them.

A backslash takes the next character literally. A blank before the third colon of a resource is part
of a name, since names are written as they are. Source: spec/wire-protocol.md 9.3.
"""

from __future__ import annotations

from paxoslease.cli.sanlock.strings import parse_resource
from paxoslease.wire.sanlock import Resource

__all__ = ["parse_state_text"]


def parse_state_text(text: bytes) -> list[Resource]:
    """Return the resources in a text. Raises ResourceUnreadable."""
    found: list[Resource] = []
    start = at = colons = 0
    while at < len(text):
        byte = text[at : at + 1]
        if byte == b"\\":
            at += 1
        elif byte == b":":
            colons += 1
        elif byte == b" " and colons >= 3:
            found.append(parse_resource(text[start:at]))
            start, colons = at + 1, 0
        at += 1
    if start < len(text):
        found.append(parse_resource(text[start:]))
    return found
