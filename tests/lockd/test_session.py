"""Sessions answer byte for byte as virtlockd 9.0.0 did."""

from __future__ import annotations

import contextlib
import tempfile

import pytest
from hypothesis import given, settings, strategies as st

from paxoslease.lockd.session import Session
from paxoslease.lockd.space import LockTable
from paxoslease.wire.virtlock import (
    PROGRAM,
    STRING_SIZE_MAX,
    Header,
    Procedure,
    Register,
    ResourceCall,
    pack_call,
    pack_message,
    parse_failure,
)
from paxoslease.wire.xdr import XdrError, pack_string, pack_word
from tests.lockd.conversation import Surroundings, place, scripted
from tests.lockd.operations import answer


def test_the_recorded_conversation() -> None:
    """Every answer of the recording comes again, and the hang-ups are errors."""
    table = LockTable()
    sessions: dict[str, Session] = {}
    with place() as directory, Surroundings(directory) as surroundings:
        for exchange in scripted(directory):
            surroundings.before(exchange.name)
            session = sessions.setdefault(exchange.connection, Session(table))
            if exchange.is_hangup:
                with pytest.raises(XdrError):
                    answer(session, exchange.request)
                continue
            messages = _split(exchange.request)
            answers = b"".join(answer(session, message) for message in messages)
            assert answers == exchange.reply, exchange.name
            surroundings.after(exchange.name)
        assert not list(table.held())
        assert sorted(p.name for p in directory.iterdir()) == [
            "one.img", "sp", "sp2", "sp3", "two.img",
        ]  # fmt: skip


def _split(data: bytes) -> list[bytes]:
    messages = []
    while data:
        length = int.from_bytes(data[:4], "big")
        messages.append(data[:length])
        data = data[length:]
    return messages


def _registered() -> Session:
    session = Session(LockTable())
    answer(session, pack_call(Register(bytes(16), b"vm", 1, 4242), 0))
    return session


def test_the_longest_string_is_decoded_and_fails_later() -> None:
    """65536 bytes are decoded, one more is not."""
    session = _registered()
    longest = ResourceCall(Procedure.ACQUIRE_RESOURCE, b"", b"x" * STRING_SIZE_MAX)
    failure = parse_failure(answer(session, pack_call(longest, 1)))
    assert (failure.code, failure.int1) == (38, 36)
    assert failure.str2 == b"Unable to open resource %s: File name too long" % longest.name
    longer = longest._replace(name=longest.name + b"x")
    failure = parse_failure(answer(session, pack_call(longer, 2)))
    assert failure.message == b"Unable to decode message payload"


@given(
    st.builds(
        Header,
        st.sampled_from([PROGRAM, 0x6B656570, 0x06900690, -1]),
        st.sampled_from([0, 1, 2]),
        st.integers(-3, 10),
        st.integers(0, 8),
        st.integers(0, 2**32 - 1),
        st.integers(0, 3),
    ),
    st.one_of(
        st.binary(max_size=64).filter(lambda data: b"/" not in data),
        st.builds(
            lambda path, name, flags: pack_string(path) + pack_string(name) + pack_word(flags),
            st.sampled_from([b"", b"below"]),
            st.binary(max_size=20).map(lambda tail: b"/proc/no\0" + tail),
            st.integers(0, 2**32 - 1),
        ),
    ),
)
@settings(max_examples=400, deadline=None)
def test_any_message_gets_an_answer_or_none(header: Header, payload: bytes) -> None:
    """Whatever comes in a complete message, the session answers one message, nothing, or ends."""
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        session = _registered()
        try:
            reply = answer(session, pack_message(header, payload))
        except XdrError:
            assert header.kind == 4
            return
    if reply:
        assert len(reply) == int.from_bytes(reply[:4], "big")
    else:
        assert header.kind not in (0, 4)
