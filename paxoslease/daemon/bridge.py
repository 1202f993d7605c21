"""Between the daemon's thread and the others: the engine's operations, and calls that may block.

The daemon runs on one thread, an asyncio event loop, which owns all of its state. What the engine
does on its own threads comes back to the loop through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from paxoslease.daemon.refusal import Refusal
from paxoslease.engine.operation import Operation

T = TypeVar("T")

THREADS_MAX: Final = 256
_AGAIN_S: Final = 0.5

_running = [0]


async def finished(operation: Operation[T]) -> T:
    """Wait for an operation of the engine; returns its result or raises its error.

    A wait that is cancelled leaves the operation as it is.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    operation.on_end(lambda _: post(loop, ended.set))
    await ended.wait()
    return operation.result()


def post(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call on the loop's thread; nothing when the loop is closed, since the daemon has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call what may block, on a thread of its own, and wait for its result.

    A device that hangs can hold such a thread for ever, so it never is one that others wait for.
    Raises Refusal (-EAGAIN) when too many wait already, or no thread can be had.
    """
    if _running[0] >= THREADS_MAX:
        raise Refusal(errno.EAGAIN)
    return await _in_thread(function, *args)


async def surely_in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call as `in_thread` what has to be done, however many wait and as soon as there is a thread.

    For what the life of a lockspace consists of: of that there is not more than of lockspaces.
    """
    while True:
        try:
            return await _in_thread(function, *args)
        except _NoThread:
            await asyncio.sleep(_AGAIN_S)


class _NoThread(Refusal):
    """The system gives this process no thread more."""


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        _running[0] -= 1
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
            post(loop, lambda: deliver(None, failure))
        else:
            post(loop, lambda: deliver(result, None))

    thread = threading.Thread(target=run, name="paxoslease-call", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise _NoThread(errno.EAGAIN) from error
    _running[0] += 1  # on the loop's thread, as the end is
    return await future
