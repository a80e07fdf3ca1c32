"""The engine with real workers: batches, deaths, hangs, deadlines, callers that leave, scaling, stopping."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ModelFailed, Overloaded, WorkerLost
from cloister.serve.jobs import Answer
from cloister.serve.scaling import Autoscaler
from tests.serve.engine import JSON, engine, value


def runs(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(test(*args, **options))

    return run


@runs
async def test_answers_come_back() -> None:
    """Each request gets its own answer, with its headers and counted once."""
    async with engine() as e:
        answers = await asyncio.gather(*(e.ask("echo", echo=n) for n in range(100)))
        assert [value(a)["echo"] for a in answers] == list(range(100))
        assert answers[0].headers == [(b"content-type", b"application/json")]
        assert answers[0].headers is answers[99].headers
        assert e.supervisor.stats.by_class[2] == 100
        assert e.supervisor.stats.queue.count == e.supervisor.stats.batch.count == 100


@runs
async def test_batches_form_while_the_worker_works() -> None:
    """An idle worker gets a request at once and alone; what comes while it works makes the next batch."""
    async with engine(batch_size=8) as e:
        first = asyncio.create_task(e.ask("sleep", s=0.3))
        await asyncio.sleep(0.1)
        rest = await e.many(8, "echo")
        assert value(await first)["batch"] == 1
        assert {value(a)["batch"] for a in rest} == {8}
        started = time.monotonic()
        assert value(await e.ask("echo"))["batch"] == 1
        assert time.monotonic() - started < 0.1


@runs
async def test_poison() -> None:
    """Among 16 requests at once 12 malformed or wrong-shaped ones make none of the 4 good ones fail."""
    bad = [
        b"{",
        b"[1,",
        b'{"do": 7}',
        b"null",
        b"[]",
        b'"text"',
        b"3",
        b'{"x": 1}',
        b'{"do": "bad", "what": "x"}',
    ]
    bodies = [*bad, *bad[:3]]
    good = json.dumps({"do": "echo", "echo": 1}).encode()
    for place in (0, 4, 9, 15):
        bodies.insert(place, good)
    async with engine(batch_size=16) as e:
        busy = asyncio.create_task(e.ask("sleep", s=0.2))
        await asyncio.sleep(0.05)
        answers = await asyncio.gather(*(e.supervisor.ask(JSON, b"", body) for body in bodies))
        await busy
    for body, answer in zip(bodies, answers, strict=True):
        if body == good or body == b'{"do": 7}':
            assert answer.status == 200
        else:
            assert answer.status == 400, (body, answer.fault)
            assert answer.fault is not None
            assert answer.fault.reason
    reasons = [
        answer.fault.text
        for body, answer in zip(bodies, answers, strict=True)
        if answer.fault and body == bad[-1]
    ]
    assert reasons == ["no such x"]


@runs
async def test_a_defect_is_no_bad_request() -> None:
    """A handler's own defect is answered 503 and memory 507, in a batch and alone."""
    async with engine(batch_size=4) as e:
        answers = await asyncio.gather(e.ask("bug"), e.ask("memory"), e.ask("echo"))
        assert [a.status for a in answers] == [503, 507, 200]
        assert answers[0].fault is not None
        assert answers[0].fault.reason == "Prediction failed"


@runs
async def test_not_idempotent(tmp_path: Path) -> None:
    """Where a request may not be computed twice, a failed batch fails whole, and so do a dead worker's."""
    log = tmp_path / "log"
    async with engine(batch_size=4, idempotent=False) as e:
        busy = asyncio.create_task(e.ask("sleep", s=0.2))
        await asyncio.sleep(0.05)
        answers = await asyncio.gather(
            e.ask("count", file=str(log)), e.ask("bad", what="secret"), e.ask("echo")
        )
        await busy
        assert {a.status for a in answers} == {503}
        assert all("secret" not in repr(a.fault) for a in answers)
        assert log.read_text() == "x"
        answer = await e.ask("exit")
        assert (answer.status, answer.fault and answer.fault.reason) == (507, "Worker died.")
        assert value(await e.ask("echo"))["calls"] == 1


@runs
async def test_killed_under_load() -> None:
    """Workers that are killed while hundreds of requests are on their way lose none of them."""
    async with engine(min_workers=2, max_workers=2, batch_size=4, max_queue=1000) as e:
        seen: set[int] = set()

        async def caller(number: int) -> None:
            for turn in range(40):
                got = value(await e.ask("sleep", s=0.0005, echo=[number, turn]))
                assert got["echo"] == [number, turn]
                seen.add(got["pid"])

        callers = [asyncio.create_task(caller(number)) for number in range(24)]
        for _ in range(3):
            await asyncio.sleep(0.15)
            if e.pids:
                os.kill(e.pids[0], signal.SIGKILL)
        await asyncio.gather(*callers)
        assert len(seen) >= 3
        assert e.supervisor.stats.by_class[2] == 24 * 40
        assert e.supervisor.stats.restarts >= 1
        assert e.supervisor.stats.retried >= 1


@runs
async def test_killed_while_it_loads() -> None:
    """Requests that wait for a worker which is killed while it loads are answered by the next one."""
    source = """
import os

with open("loads", "a") as file:
    file.write("x")
if os.path.getsize("loads") == 2:
    os.kill(os.getpid(), 9)

def handle(data, context):
    return data and ["ok"] * len(data)
"""
    async with engine(source) as e:
        os.kill(e.supervisor.pid, signal.SIGKILL)
        answers = await asyncio.gather(*(e.supervisor.ask([], b"", b"x") for _ in range(4)))
        assert {bytes(answer.body) for answer in answers} == {b"ok"}


@runs
async def test_a_worker_that_never_loads_again() -> None:
    """Who waits for a worker that ends each time before it is ready is told so after a few attempts."""
    source = """
import os

with open("loads", "a") as file:
    file.write("x")
if os.path.getsize("loads") > 1:
    os._exit(9)

def handle(data, context):
    return data and ["ok"] * len(data)
"""
    async with engine(source) as e:
        os.kill(e.supervisor.pid, signal.SIGKILL)
        answer = await e.supervisor.ask([], b"", b"x")
        assert answer.status == 503
        assert answer.fault is not None
        assert answer.fault.reason == "no worker could be started"


@runs
async def test_what_kills_workers_is_found() -> None:
    """A request that kills each worker is answered 507 after three; those beside it are answered."""
    async with engine(batch_size=8) as e:
        busy = asyncio.create_task(e.ask("sleep", s=0.2))
        await asyncio.sleep(0.05)
        killer = asyncio.create_task(e.ask("exit"))
        rest = await e.many(5, "echo")
        assert value(await busy)
        assert {a.status for a in rest} == {200}
        answer = await killer
        assert (answer.status, answer.fault and answer.fault.reason) == (507, "Worker died.")
        assert e.supervisor.stats.restarts == 3


@runs
async def test_a_death_is_made_good(tmp_path: Path) -> None:
    """A request whose worker died once is answered by the next one."""
    async with engine() as e:
        first = e.supervisor.pid
        assert value(await e.ask("once", marker=str(tmp_path / "m")))["pid"] != first


@runs
async def test_hang() -> None:
    """A worker that does not answer in time is ended, in words, and the next one serves."""
    async with engine(response_timeout_s=0.6, idempotent=False) as e:
        answer = await e.ask("hang")
        assert (answer.status, answer.fault and answer.fault.reason) == (507, "Worker died.")
        assert value(await e.ask("echo"))


@runs
async def test_large_bodies() -> None:
    """Bodies and answers that are too large for one frame together arrive whole, each with its request."""
    source = """
def handle(data, context):
    return data and [bytes(item["body"])[::-1] for item in data]
"""
    async with engine(source, batch_size=8) as e:
        bodies = [bytes([number]) * 9_000_000 + b"end" for number in range(8)]
        answers = await asyncio.gather(*(e.supervisor.ask([], b"", body) for body in bodies))
        assert [a.body == body[::-1] for a, body in zip(answers, bodies, strict=True)] == [True] * 8
        assert e.supervisor.stats.restarts == 0


@runs
async def test_full_queue() -> None:
    """More requests than the queue takes are refused at once, and what was taken is answered."""
    async with engine(max_queue=3) as e:
        busy = [e.submit("sleep", s=0.3) for _ in range(2)]
        await asyncio.sleep(0.05)
        waiting = [e.submit("echo") for _ in range(3)]
        with pytest.raises(Overloaded, match="3 requests waiting"):
            e.submit("echo")
        assert e.supervisor.stats.overloaded == 1
        await e.until(lambda: all(answers for _, answers in busy + waiting))
        assert all(answers[0].status == 200 for _, answers in busy + waiting)


@runs
async def test_job_tickets() -> None:
    """A model that takes requests only while a worker is free refuses the others, and takes the next ones."""
    async with engine(use_job_ticket=True) as e:
        busy = e.submit("sleep", s=0.2)
        with pytest.raises(Overloaded, match="free"):
            e.submit("echo")
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match="free"):
            e.submit("echo")
        await e.until(lambda: busy[1])
        assert value(await e.ask("echo"))


@runs
async def test_a_models_own_time_limit() -> None:
    """A model's own limit for waiting requests holds where it is the shorter one."""
    async with engine(client_timeout_ms=200) as e:
        await e.ask("sleep", s=0.1)
        busy = e.submit("sleep", s=0.8)
        await asyncio.sleep(0.02)
        assert (await e.ask("echo")).status == 503
        await e.until(lambda: busy[1])
        assert busy[1][0].status == 200


@runs
async def test_urgent_requests_overtake() -> None:
    """Of the requests that wait, the more urgent are computed first."""
    order: list[str] = []
    async with engine(max_queue=50) as e:
        await e.ask("sleep", s=0.1)  # now it is known to be slow
        busy = e.submit("sleep", s=0.2)
        await asyncio.sleep(0.05)

        async def ask(name: str, priority: int) -> None:
            await e.ask("sleep", s=0.06, priority=priority)
            order.append(name)

        await asyncio.gather(*(ask(f"{p}{n}", p) for n in range(2) for p in (7, 3, 0)))
        assert busy[1][0].status == 200
        assert order == ["00", "01", "30", "31", "70", "71"]


@runs
async def test_deadlines(tmp_path: Path) -> None:
    """A request whose time is out while it waits is answered so, and never computed."""
    log = tmp_path / "log"
    async with engine() as e:
        await e.ask("sleep", s=0.1)
        busy = asyncio.create_task(e.ask("sleep", s=1.0))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        answer = await e.ask("count", file=str(log), deadline=started + 0.2)
        assert answer.status == 503
        assert time.monotonic() - started < 0.8
        await busy
        assert value(await e.ask("echo"))
        assert not log.exists()
        assert e.supervisor.stats.expired == 1


@runs
async def test_callers_that_leave(tmp_path: Path) -> None:
    """A request whose caller has gone is neither computed, in the queue or in the worker, nor answered."""
    log = tmp_path / "log"
    async with engine(batch_size=1) as e:
        await e.many(20, "echo")  # a quick worker: the next requests go to it at once
        busy = e.submit("sleep", s=0.3)
        jobs = [e.submit("count", file=str(log)) for _ in range(5)]
        await asyncio.sleep(0.05)
        for job, _ in jobs:
            job.cancel()
        task = asyncio.create_task(e.ask("count", file=str(log)))
        await asyncio.sleep(0.05)
        task.cancel()
        await e.until(lambda: busy[1])
        assert value(await e.ask("echo"))
        assert not log.exists()
        assert all(not answers for _, answers in jobs)


@runs
async def test_parts() -> None:
    """An answer in parts comes as they are made, and joined for who asks for it whole."""
    async with engine() as e:
        body = b'{"do": "parts", "n": 3}'
        parts = [part async for part in e.supervisor.stream(JSON, b"", body)]
        assert [bytes(part.body) for part in parts] == [b"0,", b"1,", b"2,", b"end"]
        assert [part.more for part in parts] == [True, True, True, False]
        assert (await e.supervisor.ask(JSON, b"", body)).body == b"0,1,2,end"


@runs
async def test_death_between_parts() -> None:
    """An answer that has begun is not computed again: its end says that the worker died."""
    async with engine() as e:
        body = b'{"do": "parts", "n": 3, "die": 1}'
        parts = [part async for part in e.supervisor.stream(JSON, b"", body)]
        assert bytes(parts[0].body) == b"0,"
        assert (parts[-1].status, parts[-1].more) == (507, False)


@runs
async def test_a_caller_that_leaves_between_parts(tmp_path: Path) -> None:
    """A handler that goes on making parts for nobody is stopped at the next one."""
    source = """
import time
def handle(data, context):
    if data is None:
        return None
    if data[0]["body"] == b"short":
        return ["end"]
    try:
        for number in range(3000):
            context.send_part(0, str(number))
            time.sleep(0.01)
    finally:
        time.sleep(0)
    return ["end"]
"""
    async with engine(source) as e:
        async for part in e.supervisor.stream([], b"", b"long"):
            if bytes(part.body) == b"3":
                break
        started = time.monotonic()
        assert (await e.supervisor.ask([], b"", b"short")).body == b"end"
        assert time.monotonic() - started < 5
        assert e.supervisor.stats.restarts == 0


@runs
async def test_scaling() -> None:
    """Workers come and go by number; those that go answer what they have."""
    async with engine(max_workers=4) as e:
        await e.supervisor.scale(3, 3, wait=True)
        assert len(set(e.pids)) == 3
        asked = [e.submit("sleep", s=0.2) for _ in range(3)]
        await asyncio.sleep(0.05)
        await e.supervisor.scale(1, 1, wait=True)
        assert len(e.pids) == 1
        await e.until(lambda: all(answers for _, answers in asked))
        assert {answers[0].status for _, answers in asked} == {200}
        views = e.supervisor.workers()
        assert views[0].memory_bytes > 1 << 20
        assert abs(views[0].started - time.time()) < 60


@runs
async def test_scaled_to_nothing() -> None:
    """Without workers and without leave to start one, requests are refused with the reason."""
    async with engine() as e:
        await e.supervisor.scale(0, 0, wait=True)
        with pytest.raises(Overloaded, match="no worker"):
            e.submit("echo")
        await e.supervisor.scale(1, 1, wait=True)
        assert value(await e.ask("echo"))


@runs
async def test_on_demand() -> None:
    """A model that may have a worker but needs none gets one when somebody asks."""
    async with engine(min_workers=0, max_workers=1) as e:
        assert e.pids == []
        assert e.supervisor.ready
        assert value(await e.ask("echo"))


@runs
async def test_scaling_by_load() -> None:
    """While requests wait there come more workers, up to the maximum; later they go."""
    async with engine(max_workers=2, autoscaler=Autoscaler(up_hold_s=0.3, down_hold_s=0.5)) as e:
        asked = [e.submit("sleep", s=0.1) for _ in range(25)]
        await e.until(lambda: len(e.pids) == 2)
        await e.until(lambda: all(answers for _, answers in asked))
        await e.until(lambda: len(e.pids) == 1)


@runs
async def test_scaling_that_fails() -> None:
    """Who waits for more workers hears why there are none, and the model goes on with what it has."""
    source = """
import os
def handle(data, context):
    if data is None and os.path.exists(os.environ["HOME"] + "/../block"):
        raise ValueError
    return data and ["ok"] * len(data)
"""
    async with engine(source, max_workers=3) as e:
        folder = Path(f"/proc/{e.supervisor.pid}/environ").read_bytes().split(b"HOME=")[1].split(b"\0")[0]
        block = Path(folder.decode()).parent / "block"
        block.touch()
        with pytest.raises((ModelFailed, WorkerLost)):
            await e.supervisor.scale(2, 2, wait=True)
        assert (await e.supervisor.ask([], b"", b"x")).body == b"ok"
        block.unlink()
        await e.until(lambda: len(e.pids) == 2)


@runs
async def test_warm_spare() -> None:
    """A spare is loaded beside the worker, gets no request, and stands in when the worker dies."""
    async with engine(warm_spare=True) as e:
        await e.until(lambda: [v.status for v in e.supervisor.workers()] == ["READY", "SPARE"])
        ready, spare = (view.pid for view in e.supervisor.workers())
        assert {value(a)["pid"] for a in await e.many(20, "echo")} == {ready}
        os.kill(ready, signal.SIGKILL)
        assert value(await e.ask("echo"))["pid"] == spare
        await e.until(lambda: [v.status for v in e.supervisor.workers()] == ["READY", "SPARE"])


@runs
async def test_draining() -> None:
    """A supervisor that stops answers what it has, and takes nothing more."""
    async with engine() as e:
        asked = [e.submit("sleep", s=0.05) for _ in range(4)]
        stopping = asyncio.create_task(e.supervisor.stop(drain_s=5.0))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="stopped"):
            e.submit("echo")
        await stopping
        assert {answers[0].status for _, answers in asked} == {200}


@runs
async def test_draining_without_workers() -> None:
    """What still waits when the last worker was scaled away holds nobody up who removes the model."""
    async with engine() as e:
        asked = [e.submit("sleep", s=0.2) for _ in range(5)]
        await asyncio.sleep(0.05)
        await e.supervisor.scale(0, 0, wait=True)
        waiting = [answers for _, answers in asked if not answers]
        assert waiting
        started = time.monotonic()
        assert await e.supervisor.drain(20.0)
        assert time.monotonic() - started < 5
        assert {answers[0].status for answers in waiting} == {503}


@runs
async def test_stopping_without_patience() -> None:
    """What is not answered when the time to drain is over is answered 503."""
    async with engine() as e:
        asked = [e.submit("sleep", s=30) for _ in range(3)]
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(e.supervisor.stop(drain_s=0.1))
        for pid in e.pids:
            await asyncio.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
        await stopping
        assert {answers[0].status for _, answers in asked} == {503}


@runs
async def test_stopping_with_a_worker_that_leaves() -> None:
    """A worker that was scaled away and still computes delays the end no longer than the others."""
    async with engine(min_workers=2, max_workers=2) as e:
        asked = [e.submit("sleep", s=30) for _ in range(2)]
        await asyncio.sleep(0.05)
        await e.supervisor.scale(1, 1, wait=False)
        pids = [view.pid for view in e.supervisor.workers()]
        assert len(pids) == 2
        started = time.monotonic()
        stopping = asyncio.create_task(e.supervisor.stop(drain_s=0.1))
        await e.until(lambda: all(answers for _, answers in asked))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await stopping
        assert time.monotonic() - started < 4
        assert {answers[0].status for _, answers in asked} == {503}


@runs
async def test_a_handler_that_cannot_load() -> None:
    """A model whose handler raises at its start says so, without the exception's text in protected words."""
    with pytest.raises(ModelFailed, match="could not be loaded"):
        async with engine("raise ValueError('x')"):
            pass


@runs
async def test_a_workers_lies() -> None:
    """Answers to nobody's request end the worker that sent them, and nothing else."""
    source = """
import gc
from cloister.serve.session import Session
def handle(data, context):
    if data and data[0]["body"] == b"lie":
        session = next(o for o in gc.get_objects() if isinstance(o, Session))
        session._done.append((10**6, session._done[0][1] if session._done else __import__(
            "cloister.serve.handler", fromlist=["Outcome"]).Outcome(200)))
    return data and ["ok"] * len(data)
"""
    async with engine(source) as e:
        first = e.supervisor.pid
        answer = await e.supervisor.ask([], b"", b"lie")
        assert answer.status == 507
        assert (await e.supervisor.ask([], b"", b"x")).body == b"ok"
        assert e.supervisor.pid != first


@runs
async def test_a_faulty_taker_costs_nobody_else() -> None:
    """A function for answers that raises neither ends the worker nor keeps the others' answers."""
    async with engine() as e:
        job, _ = e.submit("echo")

        def broken(_: Any, __: Answer) -> None:
            raise RuntimeError

        job.deliver = broken
        first = e.supervisor.pid
        assert value(await e.ask("echo"))["pid"] == first
