"""Operations of the lock table, done at once in the caller's thread."""

from __future__ import annotations

from typing import TypeVar

from paxoslease.lockd.session import Session
from paxoslease.lockd.work import OnFiles, Operation, Step, Until

T = TypeVar("T")


def done(operation: Operation[T]) -> T:
    """Do an operation; return what it returns, raise what it raises."""
    try:
        step = operation.send(None)
        while True:
            step = next_step(operation, step)
    except StopIteration as end:
        result: T = end.value
        return result


def next_step(operation: Operation[T], step: Step) -> Step:
    """Do what an operation waits for; return what it waits for next."""
    if not isinstance(step, OnFiles):
        assert not isinstance(step, Until), "there is nobody to wait for"
        return operation.send(None)
    try:
        result = step.function()
    except Exception as error:
        return operation.throw(error)
    return operation.send(result)


def answer(session: Session, message: bytes) -> bytes:
    """Return a session's answer to a client that waits for it."""
    return done(session.answer(message, lambda: True))
