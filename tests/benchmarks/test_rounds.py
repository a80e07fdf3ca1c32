"""Runs in turn, and the ratios of pairs."""

from __future__ import annotations

from rig.rounds import Rounds, run_in_turn


def test_every_second_round_goes_backwards() -> None:
    """A load that grows steadily favours nobody."""
    order: list[str] = []

    def measure(name: str) -> dict[str, float]:
        order.append(name)
        return {"per_s": 1.0}

    run_in_turn(["a", "b"], 3, measure)
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_a_ratio_is_taken_within_a_round() -> None:
    """A machine that gets slower by ten from round to round does not change the ratio."""
    rounds = Rounds()
    for speed in (100.0, 10.0, 1.0):
        rounds.add("a", {"per_s": 2 * speed})
        rounds.add("b", {"per_s": speed})
    assert rounds.ratios("a", "b", "per_s") == [2.0, 2.0, 2.0]
    assert rounds.ratio("a", "b", "per_s") == 2.0
    assert rounds.medians() == {"a": {"per_s": 20.0}, "b": {"per_s": 10.0}}


def test_one_odd_round_does_not_decide() -> None:
    """The median of the ratios, not their mean."""
    rounds = Rounds()
    for ours, theirs in ((1.0, 1.0), (1.0, 1.0), (9.0, 1.0)):
        rounds.add("a", {"per_s": ours})
        rounds.add("b", {"per_s": theirs})
    assert rounds.ratio("a", "b", "per_s") == 1.0
