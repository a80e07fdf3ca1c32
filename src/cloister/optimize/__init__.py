"""Find the form of a model that runs best on this machine, under the user's constraints.

``search`` tries engines, precisions, layouts and streams, each in a process of its own;
``InferenceOptimizer`` offers the same under BigDL Nano's names.
"""

from __future__ import annotations

from cloister.optimize.facade import InferenceOptimizer
from cloister.optimize.model import OptimizedModel
from cloister.optimize.quantities import parse_drop, parse_duration
from cloister.optimize.result import Goal, Result, Row
from cloister.optimize.samples import Samples
from cloister.optimize.search import Plan, search
from cloister.optimize.workspace import Workspace

__all__ = [
    "Goal",
    "InferenceOptimizer",
    "OptimizedModel",
    "Plan",
    "Result",
    "Row",
    "Samples",
    "Workspace",
    "parse_drop",
    "parse_duration",
    "search",
]
