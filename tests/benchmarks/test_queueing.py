"""The queueing model, against closed forms and a simulation."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig.queueing import Station, erlang_c, most_callers_are_worth, solve_closed, wait_s


def simulate(stations: list[Station], callers: int, answers: int, *, seed: int = 1) -> float:
    """Requests per second of the same network with exponential times, request by request."""
    draw = random.Random(seed)
    idle = [station.servers for station in stations]
    waiting: list[list[int]] = [[] for _ in stations]
    events: list[tuple[float, int, int]] = []
    now, done = 0.0, 0

    def arrive(caller: int, place: int) -> None:
        if idle[place]:
            idle[place] -= 1
            heapq.heappush(events, (now + draw.expovariate(1 / stations[place].demand_s), caller, place))
        else:
            waiting[place].append(caller)

    for caller in range(callers):
        arrive(caller, 0)
    while done < answers:
        now, caller, place = heapq.heappop(events)
        idle[place] += 1
        if waiting[place]:
            arrive(waiting[place].pop(0), place)
        following = (place + 1) % len(stations)
        done += following == 0
        arrive(caller, following)
    return done / now


def test_one_caller_waits_for_nobody() -> None:
    """Alone, a caller's answer takes the sum of the demands."""
    found = solve_closed([Station("a", 0.01), Station("b", 0.03, 4)], 1, think_s=0.06)
    assert found.response_s == pytest.approx(0.04)
    assert found.per_s == pytest.approx(10)


def test_two_equal_stations_have_their_known_throughput() -> None:
    """Balanced single-server stations answer N / (N + K - 1) of one station's rate."""
    for callers in (1, 2, 7, 40):
        found = solve_closed([Station("a", 0.02), Station("b", 0.02)], callers)
        assert found.per_s == pytest.approx(50 * callers / (callers + 1))


def test_machine_repairman() -> None:
    """One station and thinking callers agree with the closed form of M/M/1//N."""
    think, service, callers = 0.5, 0.1, 6
    terms = [math.factorial(callers) / math.factorial(callers - k) * (service / think) ** k for k in range(7)]
    expected = (1 - 1 / sum(terms)) / service
    assert solve_closed([Station("a", service)], callers, think_s=think).per_s == pytest.approx(expected)


@pytest.mark.parametrize("callers", [2, 8, 24])
def test_a_simulation_agrees(callers: int) -> None:
    """A simulation request by request gives the same throughput within 2 %."""
    stations = [Station("front", 0.002, 1), Station("cores", 0.02, 4)]
    simulated = simulate(stations, callers, 60_000)
    assert solve_closed(stations, callers).per_s == pytest.approx(simulated, rel=0.02)


@given(
    demands=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=4),
    servers=st.integers(1, 8),
    callers=st.integers(1, 60),
)
def test_bounds_hold(demands: list[float], servers: int, callers: int) -> None:
    """Throughput never exceeds the bottleneck's, nor what callers who never wait would get."""
    stations = [Station(str(place), demand, servers) for place, demand in enumerate(demands)]
    found = solve_closed(stations, callers)
    assert found.per_s <= most_callers_are_worth(stations) * (1 + 1e-9)
    assert found.per_s <= callers / sum(demands) * (1 + 1e-9)
    assert found.response_s >= sum(demands) * (1 - 1e-9)
    assert all(0 <= busy <= 1 + 1e-9 for busy in found.busy.values())
    assert found.per_s * found.response_s == pytest.approx(callers)


def test_many_callers_reach_the_bottleneck() -> None:
    """With many callers the busiest station is always busy, and is named."""
    stations = [Station("front", 0.001), Station("cores", 0.05, 8)]
    found = solve_closed(stations, 200)
    assert found.bottleneck == "cores"
    assert found.per_s == pytest.approx(160, rel=1e-6)


def test_erlang_c_of_a_published_table() -> None:
    """Two erlangs at three servers wait with chance 4/9; one server waits as often as it is busy."""
    assert erlang_c(2, 3) == pytest.approx(4 / 9)
    assert erlang_c(0.7, 1) == pytest.approx(0.7)


def test_the_wait_of_known_queues() -> None:
    """M/M/1 waits rho/(mu - lambda), M/D/1 half of it, and a queue that grows for ever is infinite."""
    assert wait_s(8, 0.1) == pytest.approx(0.4)
    assert wait_s(8, 0.1, variation=0) == pytest.approx(0.2)
    assert wait_s(10, 0.1) == math.inf


@pytest.mark.parametrize(
    ("stations", "callers"),
    [
        ([], 1),
        ([Station("a", 1.0)], 0),
        ([Station("a", -1.0)], 1),
        ([Station("a", 1.0, 0)], 1),
        ([Station("a", math.nan)], 1),
        ([Station("a", 0.0)], 1),
    ],
)
def test_nonsense_is_refused(stations: list[Station], callers: int) -> None:
    """A network that cannot be is an error, not a number."""
    with pytest.raises(ValueError, match=r"."):
        solve_closed(stations, callers)
