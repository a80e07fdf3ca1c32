"""Stateful models with real workers: a sequence stays with its worker, in order, and ends with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from cloister.errors import Overloaded
from cloister.serve.jobs import Answer, Job
from cloister.serve.scaling import Autoscaler
from tests.serve.engine import Engine, engine, value
from tests.serve.test_supervisor import runs

HANDLER = """
import os, time
state = {}
def handle(data, context):
    if data is None:
        return None
    names = [context.get_request_header(i, "ts_request_sequence_id") for i in range(len(data))]
    assert len(set(names)) == len(names)
    answers = []
    for name, item in zip(names, data):
        time.sleep(item["body"].get("s", 0))
        state.setdefault(name, []).append(item["body"]["n"])
        answers.append({"pid": os.getpid(), "seen": state[name]})
    return answers
"""


async def ask(e: Engine, name: str, n: int, s: float = 0, **more: str) -> Answer:
    """One request of a sequence."""
    headers = [(b"content-type", b"application/json")]
    if name:
        headers.append((b"ts_request_sequence_id", name.encode()))
    headers += [(key.encode(), text.encode()) for key, text in more.items()]
    return await e.supervisor.ask(headers, b"", json.dumps({"n": n, "s": s}).encode())


@runs
async def test_a_sequence_stays_in_order_with_its_worker() -> None:
    """Requests of several sequences at once: each sequence sees its own, in order, in one process."""
    async with engine(
        HANDLER,
        stateful=True,
        min_workers=2,
        max_workers=2,
        batch_size=4,
        max_sequences=4,
        max_sequence_queue=20,
    ) as e:
        answers = await asyncio.gather(*(ask(e, f"s{n % 6}", n, 0.002) for n in range(60)))
        pids = set()
        for sequence in range(6):
            own = [value(answer) for answer in answers[sequence::6]]
            assert len({answer["pid"] for answer in own}) == 1
            assert own[-1]["seen"] == list(range(sequence, 60, 6))
            assert [len(answer["seen"]) for answer in own] == list(range(1, 11))
            pids.add(own[0]["pid"])
        assert len(pids) == 2


@runs
async def test_a_new_sequence_gets_a_name() -> None:
    """A request without a name begins a sequence, and goes on with the name from its answer."""
    async with engine(HANDLER, stateful=True, max_sequences=2) as e:
        first = await ask(e, "", 1)
        name = dict(first.headers)[b"ts_request_sequence_id"].decode()
        assert name.startswith("ts-seq-")
        second = await ask(e, name, 2)
        assert value(second)["seen"] == [1, 2]
        assert b"ts_request_sequence_id" not in dict(second.headers)


@runs
async def test_a_dead_worker_ends_its_sequences() -> None:
    """What a worker knew is gone with it: its sequences' requests are answered so, later ones start anew."""
    async with engine(HANDLER, stateful=True, max_sequence_queue=9) as e:
        assert value(await ask(e, "a", 1))
        asked = [asyncio.create_task(ask(e, "a", n, 0.5)) for n in (2, 3)]
        await asyncio.sleep(0.1)
        os.kill(e.supervisor.pid, signal.SIGKILL)
        assert [(await task).status for task in asked] == [507, 507]
        assert value(await ask(e, "a", 4))["seen"] == [4]


@runs
async def test_no_worker_goes_while_sequences_are_open() -> None:
    """A worker that calm times do not need stays until the last sequence has ended: it knows some of them."""
    scaler = Autoscaler(up_hold_s=0.3, down_hold_s=0.5)
    async with engine(
        HANDLER, stateful=True, max_workers=2, max_sequences=8, max_sequence_queue=50, autoscaler=scaler
    ) as e:
        asked = [asyncio.create_task(ask(e, name, n, 0.1)) for n in range(6) for name in "abc"]
        await e.until(lambda: len(e.pids) == 2)
        await asyncio.gather(*asked)
        await ask(e, "d", 0)
        await asyncio.sleep(2.0)
        assert len(e.pids) == 2
        for name in "abcd":
            answer = await ask(e, name, 6, ts_request_sequence_end="true")
            assert value(answer)["seen"] == ([0, 6] if name == "d" else list(range(7)))
        await e.until(lambda: len(e.pids) == 1)


@runs
async def test_limits() -> None:
    """More sequences than there may be, or more waiting requests in one, are refused."""
    async with engine(
        HANDLER, stateful=True, max_sequences=1, max_sequence_queue=1, sequence_max_idle_ms=300
    ) as e:
        busy = [asyncio.create_task(ask(e, "a", n, 0.1)) for n in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded, match="this sequence"):
            await ask(e, "a", 3)
        with pytest.raises(Overloaded, match="1 sequences are open"):
            await ask(e, "b", 1)
        await asyncio.gather(*busy)
        await asyncio.sleep(0.7)
        assert value(await ask(e, "b", 1))["seen"] == [1]


@runs
async def test_an_end_makes_room() -> None:
    """A sequence that says that it ends is forgotten; without a limit the one that rested longest goes."""
    async with engine(HANDLER, stateful=True, max_sequences=2) as e:
        await ask(e, "a", 1, ts_request_sequence_end="true")
        await ask(e, "b", 1)
        await ask(e, "c", 1)
        assert value(await ask(e, "d", 1))["seen"] == [1]
        assert e.supervisor._sequences is not None
        assert len(e.supervisor._sequences) == 2


@runs
async def test_a_description_is_no_sequence() -> None:
    """Who asks what a model is leaves no sequence open, which others would have no place beside."""
    described = HANDLER.replace('item["body"].get("s", 0)', "0").replace('item["body"]["n"]', "0")
    async with engine(described, stateful=True, max_sequences=1, sequence_max_idle_ms=60_000) as e:
        for _ in range(3):
            assert (await e.supervisor.describe()).status == 200
        assert (await ask(e, "a", 1)).status == 200


@runs
async def test_callers_that_leave_hold_nothing_up() -> None:
    """A request that is given up, computed or waiting, lets the next one of its sequence go."""
    async with engine(HANDLER, stateful=True, max_sequence_queue=9) as e:
        headers = [(b"content-type", b"application/json"), (b"ts_request_sequence_id", b"a")]
        jobs = []
        for n in range(3):
            body = json.dumps({"n": n, "s": 0.1}).encode()
            jobs.append(Job("", list(headers), b"", body, lambda job, answer: None))
            e.supervisor.submit(jobs[-1])
        await asyncio.sleep(0.05)
        jobs[0].cancel()
        jobs[1].cancel()
        seen = value(await ask(e, "a", 9))["seen"]
        assert seen == [0, 2, 9]
