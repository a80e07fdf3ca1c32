"""A queueing model of a server: how many requests it answers, and how long callers wait.

A closed network, as in our load: each of N callers waits for its answer before it asks again. It passes
through stations, each with a demand (seconds of one server for each request) and a number of servers. Solved
exactly by Buzen's convolution, in logarithms: all terms are positive, so that hundreds of callers and
stations with many servers lose no digits (mean value analysis does). ``wait_s`` gives the waiting time of an
open station, to which requests come at random.

Sources: Buzen, "Computational Algorithms for Closed Queueing Networks with Exponential Servers" (CACM 16,
1973); Allen, "Probability, Statistics and Queueing Theory" (1990), section 5.3, for the approximation of
Allen and Cunneen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Station:
    """Where a request needs something that others need too."""

    name: str
    demand_s: float
    """Seconds of one server that each request takes."""
    servers: int = 1


@dataclass(frozen=True)
class Outcome:
    """What the network does with so many callers."""

    per_s: float
    response_s: float
    """From asking to the answer, without the callers' own time."""
    busy: dict[str, float]
    """Part of each station's servers that is busy."""

    @property
    def bottleneck(self) -> str:
        """The busiest station."""
        return max(self.busy, key=lambda name: self.busy[name])


def solve_closed(stations: Sequence[Station], callers: int, *, think_s: float = 0.0) -> Outcome:
    """The network with ``callers`` callers, exactly, for service times that are exponential or shared.

    Args:
        think_s: what a caller does between an answer and its next request.
    Raises:
        ValueError: no caller, no station, or a demand or number of servers that makes no sense.
    """
    if callers < 1 or not stations:
        raise ValueError("a network needs a caller and a station")
    for station in stations:
        if station.servers < 1 or not station.demand_s >= 0 or not math.isfinite(station.demand_s):
            raise ValueError(f"station {station.name}: {station.servers} servers, {station.demand_s} s")
    if think_s < 0 or think_s + sum(station.demand_s for station in stations) == 0:
        raise ValueError("a request has to take some time")
    weights = [_weights(station.demand_s, station.servers, callers) for station in stations]
    if think_s:
        weights.append(_weights(think_s, callers, callers))
    normal = weights[0]
    for other in weights[1:]:
        normal = [
            _log_sum(normal[j] + other[held - j] for j in range(held + 1)) for held in range(callers + 1)
        ]
    per_s = math.exp(normal[callers - 1] - normal[callers])
    response_s = callers / per_s - think_s
    busy = {station.name: per_s * station.demand_s / station.servers for station in stations}
    return Outcome(per_s, response_s, busy)


def _weights(demand_s: float, servers: int, callers: int) -> list[float]:
    """Logarithms of the unnormalized chances of 0 to ``callers`` requests at a station."""
    if not demand_s:
        return [0.0, *[-math.inf] * callers]
    found = [0.0]
    for present in range(1, callers + 1):
        found.append(found[-1] + math.log(demand_s / min(present, servers)))
    return found


def _log_sum(terms: Iterable[float]) -> float:
    """The logarithm of a sum of numbers that are given by their logarithms."""
    values = list(terms)
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def most_callers_are_worth(stations: Sequence[Station]) -> float:
    """Requests per second that no number of callers can exceed."""
    return min(station.servers / station.demand_s for station in stations if station.demand_s)


def wait_s(rate_per_s: float, service_s: float, servers: int = 1, *, variation: float = 1.0) -> float:
    """Mean wait before service where requests come at random (M/G/c, Allen and Cunneen).

    Args:
        variation: squared coefficient of variation of the service time: 1 exponential, 0 constant.
    Returns:
        Seconds; infinite where more comes than can be served.
    """
    offered = rate_per_s * service_s
    if offered >= servers:
        return math.inf
    return (1 + variation) / 2 * erlang_c(offered, servers) * service_s / (servers - offered)


def erlang_c(offered: float, servers: int) -> float:
    """The chance that a request has to wait (M/M/c), from the recursion of Erlang's B."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))
