"""A load test: the same request again and again, as many at once as asked for, for a time.

Each of ``concurrency`` tasks sends its next request when it has the answer to the last (a closed loop). What
ends within the time counts, beginning with a warm-up that does not. Latency is what a caller sees: sealing,
sending, waiting, receiving, opening.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from cloister.client.channel import MAX_CONNECTIONS, reaching
from cloister.client.requests import Parts
from cloister.client.sealing import seal_whole
from cloister.errors import CloisterError, ConfigError
from cloister.ohttp.capsule import KeyConfig

PAUSE_S = 0.05
"""After a request that got no answer at all: what is down is not to be beaten."""
SEALS = 32
BUSY = 0.8
"""A share of one core from which on the caller itself may be what limits the figures."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load, and for how long."""

    concurrency: int = 16
    duration_s: float = 10.0
    warm_up_s: float = 1.0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: no request at once or too many, or no time.
        """
        if not 1 <= self.concurrency <= MAX_CONNECTIONS:
            raise ConfigError(f"concurrency {self.concurrency} is not within 1 to {MAX_CONNECTIONS}")
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ConfigError("the duration is not a number of seconds over 0")
        if not (math.isfinite(self.warm_up_s) and self.warm_up_s >= 0):
            raise ConfigError("the warm-up is not a number of seconds")


@dataclass(slots=True)
class Load:
    """What came of it."""

    plan: Plan
    latencies_s: list[float] = field(default_factory=list)
    """Of requests that were answered with success, in the order of their ends."""
    errors: Counter[str] = field(default_factory=Counter)
    """Status of other answers, or the kind of error where there was no answer."""
    cpu_s: float = 0.0
    """Processor time of this process within the time that counts."""

    @property
    def throughput_per_s(self) -> float:
        """Successes a second."""
        return len(self.latencies_s) / self.plan.duration_s

    @property
    def caller_share(self) -> float:
        """Of one core, what this process used itself."""
        return self.cpu_s / self.plan.duration_s

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        failed = self.errors.total()
        ended = len(self.latencies_s) + failed
        return {
            "concurrency": self.plan.concurrency,
            "duration_s": self.plan.duration_s,
            "answered": len(self.latencies_s),
            "failed": failed,
            "throughput_per_s": self.throughput_per_s,
            "latency_ms": summarize(self.latencies_s),
            "errors": dict(sorted(self.errors.items())),
            "client": {
                "cpu_ms_per_request": self.cpu_s * 1e3 / ended if ended else None,
                "share_of_a_core": self.caller_share,
            },
        }


def summarize(latencies_s: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in milliseconds; None without any."""
    if not latencies_s:
        return None
    in_ms = np.asarray(latencies_s) * 1e3
    p50, p90, p99 = np.percentile(in_ms, (50, 90, 99)).tolist()
    return {"mean": float(in_ms.mean()), "p50": p50, "p90": p90, "p99": p99, "max": float(in_ms.max())}


async def run_load(http: httpx.AsyncClient, asked: Parts, plan: Plan) -> Load:
    """Send one request over and over.

    What goes wrong with single requests is counted, and does not end the test.

    Args:
        http: sends to the service; with ``AsyncOhttpTransport``, verified and sealed.
    Raises:
        ConfigError: see ``Plan.check``.
    """
    plan.check()
    load = Load(plan)
    begin = time.perf_counter() + plan.warm_up_s
    end = begin + plan.duration_s
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(load))
        for _ in range(plan.concurrency):
            group.create_task(_ask(http, asked, load, begin, end))
    return load


async def _ask(http: httpx.AsyncClient, asked: Parts, load: Load, begin: float, end: float) -> None:
    path, content, headers = asked
    while (started := time.perf_counter()) < end:
        request = http.build_request("POST", path, content=content, headers=headers)
        problem = ""
        try:
            with reaching(str(http.base_url)):
                response = await http.send(request)
            if not response.is_success:
                problem = str(response.status_code)
        except CloisterError as error:
            problem = type(error).__name__
            await asyncio.sleep(PAUSE_S)
        ended = time.perf_counter()
        if not begin <= ended < end:
            continue
        if problem:
            load.errors[problem] += 1
        else:
            load.latencies_s.append(ended - started)


async def _watch(load: Load) -> None:
    await asyncio.sleep(load.plan.warm_up_s)
    before = time.process_time()
    await asyncio.sleep(load.plan.duration_s)
    load.cpu_s = time.process_time() - before


def time_sealing(key_config: bytes, base_url: str, asked: Parts) -> float:
    """Seconds to seal this request to this key configuration: the median of several.

    Raises:
        MalformedInput: no key configuration, or a request that HTTP does not have.
    """
    config = KeyConfig.parse(key_config)
    path, content, headers = asked
    request = httpx.Request("POST", base_url + path, content=content, headers=headers)
    took = []
    for _ in range(SEALS):
        before = time.perf_counter()
        seal_whole(config, request, content)
        took.append(time.perf_counter() - before)
    return statistics.median(took)
