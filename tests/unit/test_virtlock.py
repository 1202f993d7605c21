"""virtlockd's messages: known answers from recorded conversations, and hostile input."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.wire.virtlock import (
    HEADER_SIZE,
    KEEPALIVE_PROGRAM,
    MESSAGE_SIZE_MAX,
    PROGRAM,
    STRING_SIZE_MAX,
    USED_SIZE_MAX,
    AcquireFlag,
    CreateLockspace,
    Failure,
    Header,
    Keepalive,
    MessageType,
    New,
    Procedure,
    Register,
    ResourceCall,
    Restrict,
    Status,
    pack_call,
    pack_failure,
    pack_keepalive,
    pack_message,
    pack_reply,
    parse_call,
    parse_failure,
    parse_header,
    parse_length,
)
from paxoslease.wire.xdr import XdrError
from tests.lockd.conversation import Exchange, recorded

# Messages that no client packs like that: wrong on purpose, or more than one.
_ODD = ("bad-status", "short", "missing", "unknown-", "trailing", "nonzero", "with-nul", "fds",
        "pipelined", "ignored", "type", "keepalive", "hangup")  # fmt: skip
USUAL = [e for e in recorded() if not any(word in e.name for word in _ODD)]


@pytest.mark.parametrize("exchange", USUAL, ids=lambda e: e.name)
def test_recorded_calls_are_parsed_and_packed(exchange: Exchange) -> None:
    """A recorded call parses, and packs to the same bytes."""
    header = parse_header(exchange.request)
    assert parse_length(exchange.request) == len(exchange.request)
    call = parse_call(Procedure(header.procedure), exchange.request)
    assert pack_call(call, header.serial) == exchange.request


REPLIES = [e for e in recorded() if e.reply and "pipelined" not in e.name]


@pytest.mark.parametrize("exchange", REPLIES, ids=lambda e: e.name)
def test_recorded_answers_are_parsed_and_packed(exchange: Exchange) -> None:
    """A recorded answer parses, and packs to the same bytes."""
    header = parse_header(exchange.reply)
    if header.program == KEEPALIVE_PROGRAM:
        assert pack_keepalive(Keepalive.PONG) == exchange.reply
        return
    failure = parse_failure(exchange.reply) if header.status == Status.ERROR else None
    assert pack_reply(parse_header(exchange.request), failure) == exchange.reply


def test_the_worked_example_of_a_registration() -> None:
    """The bytes of spec/lock-drivers.md 11."""
    uuid = bytes.fromhex("c794502702215a99828a6f7c8d6f06bb")
    assert pack_call(Register(uuid, b"demo", 1, 86), 0) == bytes.fromhex(
        "00000040 0ea7beef 00000001 00000001 00000000 00000000 00000000"
        "c794502702215a99828a6f7c8d6f06bb 00000004 64656d6f 00000001 00000056 00000000"
    )


def test_lengths_that_no_message_has() -> None:
    """A length that does not count more than itself, or too much, is refused."""
    for length in (0, 3, 4, MESSAGE_SIZE_MAX + 1, 2**32 - 1):
        with pytest.raises(XdrError):
            parse_length(length.to_bytes(4, "big"))
    assert parse_length((27).to_bytes(4, "big")) == 27
    assert parse_length(MESSAGE_SIZE_MAX.to_bytes(4, "big")) == MESSAGE_SIZE_MAX
    with pytest.raises(XdrError):
        parse_header(bytes(HEADER_SIZE - 1))


def test_no_call_uses_more_than_the_limit() -> None:
    """The largest call, descriptor count included, fits into what a daemon keeps of a message."""
    text = b"x" * STRING_SIZE_MAX
    call = ResourceCall(Procedure.ACQUIRE_RESOURCE, text, text, AcquireFlag.SHARED)
    assert len(pack_call(call, 0)) + 4 == USED_SIZE_MAX


def test_an_error_may_name_a_guest_and_a_network() -> None:
    """Members that virtlockd leaves out are read over."""
    plain = Failure(87, 51, b"m", b"p", b"d", 3, 4)
    packed = pack_failure(plain)
    named = bytes.fromhex("00000001 00000002 76310000") + bytes(16)
    # The guest comes behind the level, the network at the end.
    level_end = 4 + 4 + 4 + 8 + 4
    full = packed[:level_end] + named + bytes(4) + packed[level_end + 4 : -4] + named
    assert parse_failure(full, 0) == plain


@given(st.sampled_from(list(Procedure)), st.binary(max_size=80))
def test_any_arguments_are_parsed_or_refused(procedure: Procedure, data: bytes) -> None:
    """Hostile arguments give a call that packs again, or XdrError."""
    try:
        call = parse_call(procedure, data, 0)
    except XdrError:
        return
    again = parse_call(procedure, call.pack(), 0)
    assert again == call


@given(st.binary(max_size=120))
def test_any_error_is_parsed_or_refused(data: bytes) -> None:
    """Hostile errors give a failure or XdrError."""
    try:
        failure = parse_failure(data, 0)
    except XdrError:
        return
    assert parse_failure(pack_failure(failure), 0) == failure


@pytest.mark.parametrize(
    "call",
    [
        Restrict(1),
        New(b"/a", 2),
        CreateLockspace(b"/b"),
        Register(bytes(16), b"\xff", 1, 2, 3),
        ResourceCall(Procedure.DELETE_RESOURCE, b"", b"\xe9", 4),
    ],
)
def test_calls_of_every_kind(call: Restrict | New | CreateLockspace) -> None:
    """Every kind of call is read as it was packed, under its number."""
    message = pack_call(call, 9)
    header = parse_header(message)
    assert header == Header(PROGRAM, 1, call.procedure, MessageType.CALL, 9, Status.OK)
    assert parse_call(Procedure(header.procedure), message) == call
    assert pack_message(header, call.pack()) == message
