"""What every server makes of a request for a heavy model, and of its logits."""

from __future__ import annotations

import json

import numpy
import pytest
from rig.forms import heavy, make_body, make_picture


def test_a_picture_is_normalized() -> None:
    """A decoded picture is contiguous, (3, 224, 224), and back in its range once the norm is undone."""
    found = heavy.decode_picture(make_picture())
    assert (found.shape, found.dtype) == ((3, 224, 224), numpy.dtype("float32"))
    assert found.flags.c_contiguous
    pixels = found * heavy.DEVIATION + heavy.MEAN
    assert -1e-3 <= pixels.min() < 0.1
    assert 0.9 < pixels.max() <= 1 + 1e-3


def test_the_middle_is_taken_from_any_shape() -> None:
    """A picture that is higher than wide gives the turned middle of the one that is wider than high."""
    wide, high = (heavy.decode_picture(make_picture(*size)) for size in ((640, 480), (480, 640)))
    assert abs(wide[:, 112, 112] - high[:, 112, 112]).max() < 0.3


def test_token_ids_come_as_json_or_parsed() -> None:
    """Servers that parse JSON themselves hand over the same ids."""
    body = make_body("bert-large")
    assert heavy.decode_tokens(body).tolist() == json.loads(body)["input_ids"]
    assert heavy.decode_tokens(json.loads(body)).tolist() == json.loads(body)["input_ids"]


def test_another_number_of_tokens_is_refused() -> None:
    """No server measures a shorter text by mistake."""
    with pytest.raises(ValueError, match="expected 128"):
        heavy.decode_tokens(b'{"input_ids": [1, 2, 3]}')


def test_the_five_best_are_probabilities() -> None:
    """The best class comes first, and probabilities are those of a softmax."""
    row = numpy.zeros(1000, dtype="float32")
    row[7], row[3] = 10.0, 9.0
    found = heavy.render("resnet50", row)
    assert list(found)[:2] == ["7", "3"]
    assert len(found) == 5
    assert found["7"] / found["3"] == pytest.approx(numpy.e, rel=1e-5)
