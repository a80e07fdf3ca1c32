"""From costs that were measured on one or two cores to what a larger machine should do, and how sure that is.

Assumptions, all of them optimistic or neutral except the third:

1. Streams: each core runs one inference at a time, alone. A worker of c cores has c of them.
2. Cores of one worker slow each other down as two cores did here (``interference``, measured); workers of
   different cores do not slow each other any further. Memory bandwidth is the part of this that a larger
   machine may lack.
3. Service times vary as exponential ones do. Real ones hardly vary, so that waiting is overstated: most with
   as many callers as streams, not at all with one caller or with many.
4. Frontend processes and workers have cores of their own on the larger machine; here they share two.
5. Callers cost nothing on the larger machine; here they are on the same cores and counted.
6. What a hardware TEE costs by itself (encrypted memory) is not in it: no figure of this machine says it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rig.queueing import Outcome, Station, solve_closed


@dataclass(frozen=True)
class Costs:
    """Processor seconds of one request, measured."""

    engine_s: float
    """Decoding, inference, rendering: in process, on one core, alone."""
    frontend_s: float
    """The frontend's process: HTTP, sealing, batches."""
    callers_s: float
    """The load generator."""
    interference: float = 1.0
    """How much longer an inference takes while all cores infer."""


def predict_here(costs: Costs, cores: int, callers: int) -> Outcome:
    """Server and callers share ``cores`` cores.

    One inference uses one core; what the request needs besides comes before and after it on any core.
    """
    slower = costs.interference if cores > 1 else 1.0
    demand = costs.engine_s * slower + costs.frontend_s + costs.callers_s
    return solve_closed([Station("cores", demand, cores)], callers)


def predict_machine(
    costs: Costs, *, workers: int, cores_each: int, frontends: int, callers: int, speed: float = 1.0
) -> Outcome:
    """A machine whose workers and frontends have cores of their own.

    Args:
        speed: how much faster one of its cores is than one of those that were measured.
    """
    stations = [
        Station("frontend", costs.frontend_s / speed, frontends),
        Station("workers", costs.engine_s * costs.interference / speed, workers * cores_each),
    ]
    return solve_closed(stations, callers)
