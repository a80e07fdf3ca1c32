"""Data and metrics that a user names on the command line: files, or functions of modules."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from cloister.errors import ConfigError
from cloister.optimize.metrics import METRICS, Metric, find_metric
from cloister.optimize.samples import Samples, gather, read_npz
from cloister.optimize.source import find_attribute

PICKLE = "pickle:"


def load_samples(text: str) -> Samples:
    """Data from a ``.npz`` file, or from ``module:function``, which returns or yields batches.

    Raises:
        ConfigError: there is no such file or function.
        MalformedInput: it is not data.
    """
    if Path(text).is_file():
        return read_npz(Path(text))
    if ":" not in text:
        raise ConfigError(f"there is no data {text[:256]!r}", hint="a .npz file, or module:function")
    found: Any = find_attribute(text, "the data")
    return gather(found() if callable(found) else found)


def load_metric(text: str) -> Metric:
    """A metric by its name, or a user's ``module:function`` of outputs and targets.

    A function's result counts as better when it is higher; give ``-module:function`` for the opposite.

    Raises:
        ConfigError: there is no such metric.
    """
    if text.startswith(PICKLE):
        found = pickle.loads(Path(text.removeprefix(PICKLE)).read_bytes())  # noqa: S301 (written by the search)
        assert isinstance(found, Metric)
        return found
    if text in METRICS or ":" not in text:
        return find_metric(text)
    place = text.removeprefix("-")
    function = find_attribute(place, "the metric")
    if not callable(function):
        raise ConfigError(f"the metric {place} is no function")

    def score(outputs: Any, targets: Any) -> float:
        return float(function(outputs, targets))

    return Metric(place, score, higher_is_better=not text.startswith("-"))
