"""How good a model's outputs are: metrics by name, and the likeness to the original's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError, MalformedInput

Array = NDArray[Any]
Score = Callable[[Array, Array], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that says how good outputs are for their targets."""

    name: str
    score: Score
    """Gets the first output of all rows and their targets, both with rows first."""
    higher_is_better: bool = True
    share: bool = False
    """Whether it is a share of one, so that a percentage of drop means points."""

    def drop(self, original: float, found: float) -> float:
        """How much worse than the original, in the metric's unit; negative where it is better."""
        return original - found if self.higher_is_better else found - original


def classes(outputs: Array, labels: Array) -> Array:
    """The class of each row: the largest score, or yes and no where there is one score only."""
    if outputs.ndim > labels.ndim and outputs.shape[-1] > 1:
        return np.asarray(outputs.argmax(axis=-1))
    flat = outputs.reshape(labels.shape)
    if flat.dtype.kind != "f":
        return flat
    if np.all(flat == np.round(flat)) and len(np.unique(flat)) != 1:
        return flat.astype(np.int64)
    threshold = 0.5 if float(flat.min()) >= 0 and float(flat.max()) <= 1 else 0.0
    return np.asarray(flat > threshold).astype(np.int64)


def accuracy(outputs: Array, labels: Array) -> float:
    """The share of rows whose class is the right one."""
    labels = _flat_labels(labels)
    return float(np.mean(classes(outputs, labels) == labels))


def top5(outputs: Array, labels: Array) -> float:
    """The share of rows whose class is among the five highest scores."""
    labels = _flat_labels(labels)
    if outputs.ndim < 2 or outputs.shape[-1] < 5:
        raise MalformedInput(f"top5 needs five scores a row, found the shape {outputs.shape}")
    best = np.argpartition(outputs, -5, axis=-1)[..., -5:]
    return float(np.mean(np.any(best == labels[..., None], axis=-1)))


def f1(outputs: Array, labels: Array) -> float:
    """The mean over all classes of the harmonic mean of precision and recall."""
    labels = _flat_labels(labels)
    found = classes(outputs, labels)
    scores = []
    for label in np.union1d(labels, found):
        hits = np.sum((found == label) & (labels == label))
        scores.append(2 * hits / (np.sum(found == label) + np.sum(labels == label)))
    return float(np.mean(scores))


def rmse(outputs: Array, targets: Array) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean(np.square(_like(outputs, targets) - targets, dtype=np.float64))))


def mae(outputs: Array, targets: Array) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(_like(outputs, targets) - targets), dtype=np.float64))


def r2(outputs: Array, targets: Array) -> float:
    """The share of the targets' variance that is explained."""
    spread = float(np.sum(np.square(targets - targets.mean(), dtype=np.float64)))
    rest = float(np.sum(np.square(_like(outputs, targets) - targets, dtype=np.float64)))
    return 1 - rest / spread if spread else float(rest == 0)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, share=True),
        Metric("top5", top5, share=True),
        Metric("f1", f1, share=True),
        Metric("r2", r2, share=True),
        Metric("rmse", rmse, higher_is_better=False),
        Metric("mae", mae, higher_is_better=False),
    )
}


def find_metric(name: str) -> Metric:
    """A metric of this name.

    Raises:
        ConfigError: there is none.
    """
    metric = METRICS.get(name)
    if metric is None:
        raise ConfigError(
            f"there is no metric {name[:40]!r}", hint=f"one of {', '.join(METRICS)}, or module:function"
        )
    return metric


def align(found: Array, original: Array) -> Array:
    """The same numbers in the original's form: one column as none, or as the two of a classifier.

    Engines for trees give a column of scores, where libraries give numbers alone, or beside the probability
    of yes that of no.
    """
    if found.shape == (len(original), 1):
        if original.ndim == 1:
            return found[:, 0]
        if original.shape == (len(original), 2) and np.allclose(original.sum(axis=1), 1, atol=1e-3):
            return np.concatenate([1 - found, found], axis=1)
    return found


def mean_cosine(found: Sequence[Array], original: Sequence[Array]) -> float:
    """The mean cosine of each row of the outputs with the original's; 0 where a value is not finite.

    Args:
        found, original: the same output in pieces, each of shape (rows, ...).
    Raises:
        MalformedInput: the pieces have other shapes than the original's.
    """
    cosines: list[Array] = []
    for one, other in zip(found, original, strict=True):
        if one.shape != other.shape:
            raise MalformedInput(f"the outputs have the shape {one.shape}, the original's {other.shape}")
        a = one.reshape(len(one), -1).astype(np.float64)
        b = other.reshape(len(other), -1).astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return 0.0
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = np.all(a == b, axis=1)
        products = np.sum(a * b, axis=1)
        cosines.append(np.where(same, 1.0, products / np.where(lengths == 0, 1.0, lengths)))
    return float(np.mean(np.concatenate(cosines)))


def _flat_labels(labels: Array) -> Array:
    """Labels in a column of their own are labels as well."""
    return labels.reshape(labels.shape[:-1]) if labels.ndim > 1 and labels.shape[-1] == 1 else labels


def _like(outputs: Array, targets: Array) -> Array:
    if outputs.size != targets.size:
        raise MalformedInput(f"outputs of shape {outputs.shape} for targets of shape {targets.shape}")
    return outputs.reshape(targets.shape)
