"""What the daemon answers a client that cannot have what it asked for."""

from __future__ import annotations

from paxoslease.errors import PaxosleaseError
from paxoslease.wire.numbers import meaning


class Refusal(Exception):
    """A request is refused: `number` is the result, negative as it goes to the client.

    Made from a positive errno, or from one of sanlock's own numbers (spec/errors.md).
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number if number < 0 else -number

    def __str__(self) -> str:
        return meaning(self.number)


def number_of(error: BaseException) -> int:
    """Return the result that tells a client of an error. Raises what is nobody's refusal."""
    if isinstance(error, Refusal):
        return error.number
    if isinstance(error, PaxosleaseError):
        return error.code
    raise error
