"""Metrics say how good outputs are, in the forms that models answer in."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from cloister.errors import ConfigError, MalformedInput
from cloister.optimize.metrics import METRICS, align, find_metric, mean_cosine

RANDOM = np.random.default_rng(3)
SCORES = RANDOM.normal(size=(200, 7))
LABELS = RANDOM.integers(0, 7, 200)


def test_accuracy_of_scores_labels_and_probabilities() -> None:
    """Scores of many classes, labels, and one probability or logit for two classes are all understood."""
    accuracy = METRICS["accuracy"].score
    expected = reference.accuracy_score(LABELS, SCORES.argmax(1))
    assert accuracy(SCORES, LABELS) == pytest.approx(expected)
    assert accuracy(SCORES, LABELS[:, None]) == pytest.approx(expected)
    assert accuracy(LABELS.astype(np.float32), LABELS) == 1.0
    binary = np.array([0, 1, 1, 0])
    assert accuracy(np.array([0.2, 0.7, 0.4, 0.1]), binary) == 0.75
    assert accuracy(np.array([[-2.0], [3.0], [-0.5], [-1.0]]), binary) == 0.75


def test_metrics_are_those_of_scikit_learn() -> None:
    """f1, rmse, mae and r2 agree with an outside implementation."""
    found, target = RANDOM.normal(size=50), RANDOM.normal(size=50)
    assert METRICS["f1"].score(SCORES, LABELS) == pytest.approx(
        reference.f1_score(LABELS, SCORES.argmax(1), average="macro")
    )
    assert METRICS["r2"].score(found[:, None], target) == pytest.approx(reference.r2_score(target, found))
    assert METRICS["mae"].score(found, target) == pytest.approx(reference.mean_absolute_error(target, found))
    squared = reference.mean_squared_error(target, found)
    assert METRICS["rmse"].score(found, target) == pytest.approx(squared**0.5)
    assert METRICS["top5"].score(SCORES, LABELS) == pytest.approx(
        reference.top_k_accuracy_score(LABELS, SCORES, k=5)
    )


def test_a_drop_is_positive_where_it_is_worse() -> None:
    """For an error, worse is higher."""
    assert METRICS["accuracy"].drop(0.9, 0.8) == pytest.approx(0.1)
    assert METRICS["rmse"].drop(1.0, 1.5) == pytest.approx(0.5)


def test_unknown_metrics_and_wrong_shapes_are_refused() -> None:
    """The error names what there is, or what was found."""
    with pytest.raises(ConfigError, match="no metric"):
        find_metric("acuracy")
    with pytest.raises(MalformedInput):
        METRICS["top5"].score(np.zeros((3, 4)), np.zeros(3))
    with pytest.raises(MalformedInput):
        METRICS["rmse"].score(np.zeros((3, 4)), np.zeros(3))


def test_scores_are_compared_in_the_originals_form() -> None:
    """An engine's one column is a library's plain numbers, or the second of a classifier's two."""
    column = np.array([[0.25], [1.0]])
    np.testing.assert_array_equal(align(column, np.array([0.25, 1.0])), [0.25, 1.0])
    np.testing.assert_array_equal(align(column, np.array([[0.75, 0.25], [0.0, 1.0]])), [[0.75, 0.25], [0, 1]])
    for other in (np.zeros((2, 3)), np.ones((2, 2)), column):
        assert align(column, other) is column


def test_cosine_of_rows() -> None:
    """Equal rows count 1, opposite ones -1, and a value that is not finite makes it 0."""
    a = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert mean_cosine([a], [a]) == 1.0
    assert mean_cosine([-a[:1], a[:1]], [a[:1], a[:1]]) == pytest.approx(0.0)
    assert mean_cosine([a * np.nan], [a]) == 0.0
    with pytest.raises(MalformedInput, match="shape"):
        mean_cosine([a[:1]], [a])
