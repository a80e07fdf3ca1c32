"""A batch that fails is run again in halves, until those that make it fail stand alone.

So a bad request costs the others of its batch some time and nothing else, and what the handler says of it is
said of it alone. With ``bad`` requests among ``n`` the handler runs at most ``2 * bad * log2(n)`` times more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Outcome = TypeVar("Outcome")


class BatchFailed(Exception, Generic[Outcome]):
    """A handler did not answer a batch. Which of its requests was the reason is not known."""

    def __init__(self, *, alone: Outcome, together: Outcome, begun: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.alone = alone
        """The outcome for a request that was the only one: says what the handler said."""
        self.together = together
        """The outcome for one of several: says nothing that may be of another request."""
        self.begun = begun
        """Places in the batch whose answers were begun to be sent: these cannot be run again."""


def run_in_halves(
    requests: Sequence[Request],
    run: Callable[[Sequence[Request]], list[Outcome]],
    *,
    again: bool = True,
) -> list[Outcome]:
    """One outcome for each request, in order.

    Args:
        run: answers a batch, or raises ``BatchFailed``.
        again: whether a request may be computed more than once.
    """
    try:
        return run(requests)
    except BatchFailed as failed:
        if len(requests) == 1:
            return [failed.alone]
        if not again:
            return [failed.together] * len(requests)
        if not failed.begun:
            middle = len(requests) // 2
            return run_in_halves(requests[:middle], run) + run_in_halves(requests[middle:], run)
        places = [place for place in range(len(requests)) if place not in failed.begun]
        outcomes: list[Outcome] = [failed.together] * len(requests)
        if places:
            rest = run_in_halves([requests[place] for place in places], run)
            for place, outcome in zip(places, rest, strict=True):
                outcomes[place] = outcome
        return outcomes
