"""Runs in turn, and what they say together: medians of figures, medians of the ratios of pairs.

The machine's speed drifts, so that only two runs beside each other can be compared: a ratio is taken within
a round, and its median over the rounds is the result.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Figures = Mapping[str, float]
Name = TypeVar("Name", bound=str)


class Rounds:
    """The figures of each contestant in each round."""

    def __init__(self) -> None:
        self._runs: defaultdict[str, list[dict[str, float]]] = defaultdict(list)

    def add(self, name: str, figures: Figures) -> None:
        """Note one run of one contestant; its place is its round."""
        self._runs[name].append(dict(figures))
        shown = "  ".join(f"{key} {value:.4g}" for key, value in list(figures.items())[:4])
        print(f"  {name:<34} {shown}", file=sys.stderr, flush=True)

    @property
    def names(self) -> list[str]:
        return list(self._runs)

    def median(self, name: str, figure: str) -> float:
        """The middle of one contestant's figure."""
        return statistics.median(run[figure] for run in self._runs[name])

    def medians(self) -> dict[str, dict[str, float]]:
        """The middle of every figure."""
        return {
            name: {figure: round(self.median(name, figure), 4) for figure in runs[0]}
            for name, runs in self._runs.items()
        }

    def runs(self) -> dict[str, list[dict[str, float]]]:
        """Every figure of every run."""
        return {
            name: [{k: round(v, 4) for k, v in run.items()} for run in runs]
            for name, runs in self._runs.items()
        }

    def ratio(self, name: str, other: str, figure: str) -> float:
        """The median over the rounds of ``name``'s figure divided by ``other``'s in the same round."""
        return statistics.median(self.ratios(name, other, figure))

    def ratios(self, name: str, other: str, figure: str) -> list[float]:
        """The ratio in each round."""
        pairs = zip(self._runs[name], self._runs[other], strict=True)
        return [run[figure] / against[figure] for run, against in pairs]


def run_in_turn(names: Sequence[Name], rounds: int, measure: Callable[[Name], Figures]) -> Rounds:
    """Measure each contestant once in every round; every second round goes backwards.

    A load that grows or shrinks steadily then favours nobody.
    """
    found = Rounds()
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        for name in names if turn % 2 == 0 else reversed(names):
            found.add(name, measure(name))
    return found
