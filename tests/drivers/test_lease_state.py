"""The state of leases as text: what comes from a daemon or another host is parsed or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.drivers.lease_state import Malformed, format_state, parse_state
from paxoslease.drivers.migration import Handover
from paxoslease.errors import ConfigError

EXAMPLE = (
    "__LIBVIRT__DISKS__:e2a4e6d938f557685858b0e989617815:"
    "/var/lib/libvirt/sanlock/e2a4e6d938f557685858b0e989617815:0:1"
)


def test_a_state_of_libvirt() -> None:
    """The example of the specification, and several leases in one text."""
    (lease,) = parse_state(EXAMPLE)
    assert lease.lockspace == "__LIBVIRT__DISKS__"
    assert lease.name == "e2a4e6d938f557685858b0e989617815"
    assert lease.lver == 1
    two = f"{EXAMPLE} LS:R:/mnt/co\\:lo\\ n:0:/b:1048576:SH"
    first, second = parse_state(two)
    assert first.text == EXAMPLE
    assert (second.lockspace, second.name, second.lver) == ("LS", "R", None)
    assert format_state((first, second)) == two
    assert parse_state("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a:b:c",
        "a:b:/p:0",
        "a:b:/p:x:1",
        "a:b:/p:0:-1",
        "a:b:/p:0:1:2",
        ":b:/p:0:1",
        "a::/p:0:1",
    ],
)
def test_what_is_no_state_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(Malformed):
        parse_state(text)


@given(st.text(max_size=60))
def test_any_text_is_a_state_or_refused(text: str) -> None:
    """Whatever comes, nothing else is raised, and what is accepted comes back unchanged."""
    try:
        leases = parse_state(text)
    except Malformed:
        return
    assert format_state(leases) == " ".join(part for part in text.split(" ") if part)


def test_the_cookie_of_libvirt() -> None:
    """A handover is what libvirt puts into a migration's cookie."""
    handover = Handover("sanlock", EXAMPLE)
    assert handover.to_cookie() == (
        f'<lockstate driver="sanlock"><leases>{EXAMPLE}</leases></lockstate>'
    )
    theirs = f"<lockstate driver='sanlock'>\n  <leases>{EXAMPLE}</leases>\n</lockstate>"
    assert Handover.from_cookie(theirs) == handover
    assert Handover("lockd", None).to_cookie() == ""
    with pytest.raises(ConfigError):
        Handover.from_cookie("<domain/>")
