"""``ts.service``: what handlers import of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from cloister.serve.torchserve.util import PredictionException

__all__ = ["PREDICTION_METRIC", "PredictionException", "emit_metrics"]
PREDICTION_METRIC = "PredictionTime"
logger = logging.getLogger("ts.service")


def emit_metrics(metrics: Iterable[Any]) -> None:
    """Write metrics to the worker's log, in TorchServe's form; in protected mode nobody reads it."""
    for metric in metrics or ():
        logger.info("[METRICS]%s", metric)
