"""The queue of a model: urgency before age, deadlines, callers that have gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.serve.jobs import Answer, Job
from cloister.serve.queue import JobQueue


def nobody(job: Job, answer: Answer) -> None:
    raise AssertionError("the queue delivers nothing")


def job(name: str, priority: int = 3, deadline: float = 1e9) -> Job:
    return Job(name, [], b"", b"", nobody, deadline, priority)


def names(jobs: list[Job]) -> list[str]:
    return [item.request_id for item in jobs]


@given(st.lists(st.integers(0, 7), max_size=30), st.integers(1, 7))
def test_urgent_first_then_oldest(priorities: list[int], step: int) -> None:
    """Jobs leave by urgency and, within one, in the order in which they came, however many at once."""
    queue = JobQueue()
    jobs = [job(str(place), priority) for place, priority in enumerate(priorities)]
    for item in jobs:
        queue.put(item)
    taken: list[Job] = []
    while queue:
        some, expired = queue.take_some(step, now=0.0)
        assert len(some) <= step
        assert not expired
        taken += some
    assert taken == sorted(jobs, key=lambda item: item.priority)
    assert queue.count == 0


def test_back_to_the_front() -> None:
    """Jobs that a dead worker leaves go before those that waited behind them, in their old order."""
    queue = JobQueue()
    for name in "abcd":
        queue.put(job(name))
    some, _ = queue.take_some(2, 0.0)
    queue.put_back(some)
    assert names(queue.take_some(9, 0.0)[0]) == ["a", "b", "c", "d"]


def test_cancelled_jobs_do_not_count() -> None:
    """A job whose caller has gone is neither counted nor given out."""
    queue = JobQueue()
    jobs = [job(name) for name in "abc"]
    for item in jobs:
        queue.put(item)
    jobs[1].cancelled = True
    queue.drop(jobs[1])
    assert queue.count == 2
    assert names(list(queue)) == ["a", "c"]
    assert names(queue.take_some(9, 0.0)[0]) == ["a", "c"]
    assert not queue


def test_expired_jobs() -> None:
    """A job whose time is out is given out as expired, whether it is met or looked for."""
    queue = JobQueue()
    for name, deadline in (("a", 1.0), ("b", 9.0), ("c", 2.0)):
        queue.put(job(name, deadline=deadline))
    assert names(queue.take_expired(1.5)) == ["a"]
    assert queue.count == 2
    some, expired = queue.take_some(9, now=3.0)
    assert (names(some), names(expired)) == (["b"], ["c"])
    assert queue.count == 0


@given(
    st.lists(st.tuples(st.sampled_from(["put", "take", "cancel", "expire"]), st.integers(0, 7)), max_size=60)
)
def test_count_is_right(steps: list[tuple[str, int]]) -> None:
    """After any sequence of steps the count is that of the jobs which are there and wanted."""
    queue = JobQueue()
    there: list[Job] = []
    for number, (step, value) in enumerate(steps):
        if step == "put":
            item = job(str(number), value, deadline=float(value))
            there.append(item)
            queue.put(item)
        elif step == "take":
            some, expired = queue.take_some(value, now=-1.0)
            there = [item for item in there if item not in some]
            assert not expired
        elif step == "cancel" and there:
            item = there.pop(value % len(there))
            item.cancelled = True
            queue.drop(item)
        elif step == "expire":
            gone = queue.take_expired(float(value))
            there = [item for item in there if item not in gone]
        assert queue.count == len(there) == len(list(queue))
    assert sorted(names(queue.take_all())) == sorted(names(there))
    assert queue.count == 0
