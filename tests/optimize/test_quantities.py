"""Constraints are read as people write them, and nothing else is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.optimize.quantities import parse_drop, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20ms", 0.02), ("1.5 s", 1.5), ("800us", 8e-4), ("6m", 360.0), ("2min", 120.0), (".5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration has a unit and means that many seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "ms", "-1s", "0ms", "1e3s", "1h", "٣s", "1s2", ""])
def test_no_durations(text: str) -> None:
    """What has no unit, or is nothing, is refused."""
    with pytest.raises(ConfigError):
        parse_duration(text)


def test_a_percentage_of_a_share_means_points() -> None:
    """Half a percent of accuracy is 0.005 of it, of another metric 0.5 % of the original's value."""
    drop = parse_drop("0.5%")
    assert drop.allowed(0.8, share=True) == pytest.approx(0.005)
    assert drop.allowed(-40.0, share=False) == pytest.approx(0.2)
    assert parse_drop("0.01").allowed(0.8, share=True) == 0.01


@pytest.mark.parametrize("text", ["", "%", "-1%", "101%", "0.5 percent", "1e-3", "nan"])
def test_no_drops(text: str) -> None:
    """A drop is a number or a percentage of at most hundred."""
    with pytest.raises(ConfigError):
        parse_drop(text)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever is written, the outcome is a value or a ConfigError."""
    for parse in (parse_drop, parse_duration):
        with contextlib.suppress(ConfigError):
            assert parse(text) is not None


@given(st.floats(0.001, 99, allow_nan=False))
def test_a_drop_survives_its_rendering(value: float) -> None:
    """What is rendered is read as the same again."""
    drop = parse_drop(f"{value:.4f}%")
    assert parse_drop(drop.render()).value == pytest.approx(drop.value, rel=1e-4)
