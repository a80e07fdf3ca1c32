"""Requests that may be what kills workers: each runs with nothing beside it, on a worker kept free for it."""

from __future__ import annotations

from cloister.serve.jobs import Job
from cloister.serve.queue import JobQueue
from cloister.serve.seat import Seat

SUSPECT_ATTEMPTS = 2
"""A request that was with so many workers when they died is run alone."""


class Suspects(JobQueue):
    """The queue of these requests, and the worker that gets them one at a time."""

    __slots__ = ("_reserved",)

    def __init__(self) -> None:
        super().__init__()
        self._reserved: Seat | None = None

    @property
    def active(self) -> bool:
        """Whether one waits, or a worker is kept for them."""
        return self._reserved is not None or bool(self.count)

    def hand_out(self, seats: list[Seat], now: float) -> tuple[list[Seat], list[Job]]:
        """Give the next one to its worker; the workers left for others, and jobs whose time is out."""
        seat = self._reserved
        if seat is not None and (seat not in seats or (not seat.sent and not self.count)):
            seat = self._reserved = None
        if seat is None and self.count and seats:
            seat = self._reserved = min(seats, key=lambda item: len(item.sent))
        if seat is None:
            return seats, []
        expired: list[Job] = []
        if not seat.sent:
            jobs, expired = self.take_some(1, now)
            if jobs:
                seat.give(jobs, now, alone=True)
        return [item for item in seats if item is not seat], expired
