"""A model is known by its file or its factory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.optimize.data import load_metric, load_samples
from cloister.optimize.source import (
    family_of,
    family_of_object,
    find_attribute,
    input_names,
    load,
    parse_source,
    required_inputs,
)
from tests.optimize import models


@pytest.mark.parametrize(
    ("name", "form", "family"),
    [
        ("m.onnx", "onnx", "onnx"),
        ("m.xml", "ir", "ir"),
        ("m.pt2", "pt2", "torch"),
        ("m.PT", "torchscript", "torch"),
        ("m.ubj", "xgboost", "trees"),
        ("m.joblib", "sklearn", "trees"),
        ("m.keras", "keras", "tensorflow"),
    ],
)
def test_files_are_known_by_their_endings(tmp_path: Path, name: str, form: str, family: str) -> None:
    """Whatever the case of the letters."""
    (tmp_path / name).touch()
    source = parse_source(str(tmp_path / name))
    assert (source.form, family_of(source)) == (form, family)


def test_a_saved_model_is_a_folder(tmp_path: Path) -> None:
    """With the file that makes it one."""
    with pytest.raises(ConfigError):
        parse_source(str(tmp_path))
    (tmp_path / "saved_model.pb").touch()
    assert parse_source(str(tmp_path)).form == "savedmodel"


def test_factories() -> None:
    """A factory is called in a process of its own; its module must export it."""
    source = parse_source("tests.optimize.models:picture_net")
    assert (source.form, family_of(source)) == ("factory", None)
    assert family_of_object(load(source)) == "torch"
    for place in ("tests.optimize.models:absent", "no_such_module_here:x"):
        with pytest.raises(ConfigError):
            find_attribute(place, "the model")


def test_inputs_of_a_module() -> None:
    """Names are those of forward; data without names takes them in order."""
    model = models.two_inputs()
    assert required_inputs(model) == 2
    assert input_names(model, ["attention_mask", "input_ids"]) == ["attention_mask", "input_ids"]
    assert input_names(model, ["input_0", "input_1"]) == ["input_ids", "attention_mask"]


def test_data_and_metrics_by_name(tmp_path: Path) -> None:
    """Functions of modules give data and metrics; a minus says that lower is better."""
    assert len(load_samples("tests.optimize.models:pictures")) == 64
    metric = load_metric("-tests.optimize.models:error_rate")
    assert not metric.higher_is_better
    assert metric.drop(0.1, 0.3) == pytest.approx(0.2)
    for place in ("nowhere", "tests.optimize.models:absent", str(tmp_path)):
        with pytest.raises(ConfigError):
            load_samples(place)


@given(st.text(max_size=40))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    """Nothing but a ConfigError comes of a wrong name."""
    try:
        source = parse_source(text)
    except (ConfigError, ValueError) as error:
        assert isinstance(error, ConfigError) or "null" in str(error)  # noqa: PT017
    else:
        assert source.form in {"factory", "savedmodel", "torchscript"} or Path(text).is_file()
