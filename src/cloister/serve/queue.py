"""Requests of one model that wait for a worker: by urgency, then by age.

RFC 9218 urgencies are strict: a less urgent request waits while a more urgent one is there, and its deadline
bounds how long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from cloister.serve.jobs import URGENCIES, Job


class JobQueue:
    """Waiting jobs. Cancelled ones stay until they are met, but do not count."""

    __slots__ = ("_levels", "count", "level")

    def __init__(self) -> None:
        self._levels: tuple[deque[Job], ...] = tuple(deque() for _ in range(URGENCIES))
        self.count = 0
        """How many wait."""
        self.level = URGENCIES
        """No job is more urgent than this one; kept so that looking for the next is quick."""

    def __bool__(self) -> bool:
        return self.count > 0

    def __iter__(self) -> Iterator[Job]:
        for level in self._levels:
            for job in level:
                if not job.cancelled:
                    yield job

    def put(self, job: Job) -> None:
        """Queue a job behind the others of its urgency."""
        urgency = job.priority
        self._levels[urgency].append(job)
        self.count += 1
        if urgency < self.level:
            self.level = urgency

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Queue jobs that were here before, in their order, ahead of the others of their urgency."""
        for job in reversed(list(jobs)):
            self._levels[job.priority].appendleft(job)
            self.count += 1
            self.level = min(self.level, job.priority)

    def take_some(self, most: int, now: float) -> tuple[list[Job], list[Job]]:
        """Remove up to ``most`` jobs, the most urgent first; also those met whose time is out."""
        jobs: list[Job] = []
        expired: list[Job] = []
        while self.level < URGENCIES and len(jobs) < most:
            level = self._levels[self.level]
            while level and len(jobs) < most:
                job = level.popleft()
                if job.cancelled:
                    continue
                (jobs if job.deadline > now else expired).append(job)
            if not level:
                self.level += 1
        self.count -= len(jobs) + len(expired)
        return jobs, expired

    def drop(self, job: Job) -> None:
        """Note that a job which waits here was cancelled."""
        self.count -= 1

    def take_expired(self, now: float) -> list[Job]:
        """Remove and return the jobs whose time is out; forget the cancelled ones."""
        expired: list[Job] = []
        for level in self._levels:
            if not level:
                continue
            kept: deque[Job] = deque()
            for job in level:
                if job.cancelled:
                    continue
                (expired if job.deadline <= now else kept).append(job)
            if len(kept) != len(level):
                level.clear()
                level.extend(kept)
        self.count -= len(expired)
        return expired

    def take_all(self) -> list[Job]:
        """Remove and return all jobs."""
        jobs = list(self)
        for level in self._levels:
            level.clear()
        self.count, self.level = 0, URGENCIES
        return jobs
