"""Jobs and answers: what their callers can rely on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloister.serve import jobs as jobs_module
from cloister.serve.jobs import Answer, Job, answer_parts, failure, whole_answer


def nobody(job: Job, answer: Answer) -> None:
    raise AssertionError("nothing is delivered here")


class Owner:
    """Notes who gave up."""

    def __init__(self) -> None:
        self.gone: list[Job] = []

    def give_up(self, job: Job) -> None:
        self.gone.append(job)


def test_nothing_of_the_content_in_a_repr() -> None:
    """Neither a job nor an answer shows what it carries."""
    secret = b"the-content"
    job = Job("id", [(b"x", secret)], secret, secret, nobody)
    assert "the-content" not in repr(job) + repr(Answer(200, [(b"x", secret)], secret))


def test_cancel_tells_once() -> None:
    """Whoever holds a job hears once that its caller has gone."""
    owner = Owner()
    job = Job("id", [], b"", b"", nobody, owner=owner)
    job.cancel()
    job.cancel()
    assert owner.gone == [job]
    Job("id", [], b"", b"", nobody).cancel()


def test_jobs_can_be_extended() -> None:
    """A protocol's own kind of job carries what it needs for its answer."""

    class Own(Job):
        connection: Any = None

    job = Own("id", [], b"", b"", nobody, connection=5)
    assert (job.connection, job.priority, job.deadline > 1e300) == (5, 3, True)
    assert job != Own("id", [], b"", b"", nobody, connection=5)


def test_whole_answers_join_parts() -> None:
    """A coroutine gets status and headers of the first part and all bodies; a failure stands for all."""

    async def ask(*answers: Answer) -> Answer:
        def submit(job: Job) -> None:
            for answer in answers:
                job.deliver(job, answer)

        return await whole_answer(submit, Job("id", [], b"", b"", nobody))

    first = Answer(201, [(b"a", b"b")], b"x", more=True)
    whole = asyncio.run(ask(first, Answer(200, [], memoryview(b"y"))))
    assert (whole.status, whole.headers, whole.body) == (201, [(b"a", b"b")], b"xy")
    broken = asyncio.run(ask(first, failure(507, "Worker died.")))
    assert broken.status == 507


def test_a_cancelled_task_cancels_its_job() -> None:
    """A coroutine that is cancelled, or leaves a stream early, leaves no job behind."""

    async def run() -> list[bool]:
        whole = Job("id", [], b"", b"", nobody)
        task = asyncio.create_task(whole_answer(lambda job: None, whole))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        streamed = Job("id", [], b"", b"", nobody)
        parts = answer_parts(lambda job: job.deliver(job, Answer(200, [], b"x", more=True)), streamed)
        assert (await anext(parts)).more
        await parts.aclose()  # type: ignore[attr-defined]
        return [whole.cancelled, streamed.cancelled]

    assert asyncio.run(run()) == [True, True]


def test_parts_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that floods an answer, gathered or taken slowly, is told to stop, and memory stays bounded."""
    monkeypatch.setattr(jobs_module, "MAX_ANSWER_BYTES", 1000)
    monkeypatch.setattr(jobs_module, "MAX_BACKLOG_BYTES", 1000)

    async def run() -> None:
        owner, sent = Owner(), 0

        def flood(job: Job) -> None:
            nonlocal sent
            job.owner, sent = owner, 0
            while not job.cancelled:
                job.deliver(job, Answer(200, [], bytes(100), None, True))
                sent += 1
                assert sent < 100

        answer = await whole_answer(flood, Job("id", [], b"", b"", nobody))
        assert (answer.status, answer.fault is not None, len(answer.body)) == (503, True, 0)
        taken = [part async for part in answer_parts(flood, Job("id", [], b"", b"", nobody))]
        assert len(taken) == 11
        assert [part.fault is not None for part in taken] == [False] * 10 + [True]
        assert len(owner.gone) == 2

    asyncio.run(run())
