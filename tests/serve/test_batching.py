"""A batch with bad requests: the good ones are answered, the bad ones stand alone."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cloister.serve.batching import BatchFailed, run_in_halves


def failing(bad: set[int], calls: list[int], begun: frozenset[int] = frozenset()) -> object:
    def run(requests: Sequence[int]) -> list[str]:
        calls.append(len(requests))
        if bad & set(requests):
            places = frozenset(place for place, item in enumerate(requests) if item in begun)
            raise BatchFailed(alone=f"bad {requests[0]}", together="failed", begun=places)
        return [f"ok {item}" for item in requests]

    return run


@given(st.integers(0, 64), st.sets(st.integers(0, 63)))
def test_only_the_bad_ones_fail(count: int, bad: set[int]) -> None:
    """Every good request is answered, every bad one fails with its own reason, in few runs."""
    calls: list[int] = []
    outcomes = run_in_halves(range(count), failing(bad, calls))  # type: ignore[arg-type]
    assert outcomes == [f"bad {item}" if item in bad else f"ok {item}" for item in range(count)]
    wrong = len([item for item in bad if item < count])
    assert len(calls) <= 1 + 2 * wrong * max(1, count.bit_length())


def test_not_again() -> None:
    """Where a request may not be computed twice, a failed batch fails whole, without any one's reason."""
    calls: list[int] = []
    assert run_in_halves([1, 2, 3], failing({2}, calls), again=False) == ["failed"] * 3  # type: ignore[arg-type]
    assert run_in_halves([2], failing({2}, calls), again=False) == ["bad 2"]  # type: ignore[arg-type]
    assert calls == [3, 1]


@given(st.integers(2, 16), st.sets(st.integers(0, 15), min_size=1), st.sets(st.integers(0, 15)))
def test_what_was_begun_is_not_run_again(count: int, bad: set[int], begun: set[int]) -> None:
    """A request whose answer has begun to be sent is not computed anew; the others of its batch are."""
    seen: list[int] = []
    inner = failing(bad, [], frozenset(begun))

    def run(requests: Sequence[int]) -> list[str]:
        seen.extend(item for item in requests if item in begun)
        return inner(requests)  # type: ignore[operator, no-any-return]

    outcomes = run_in_halves(range(count), run)
    assert len(outcomes) == count
    for item in range(count):
        if item not in begun:
            assert outcomes[item] == (f"bad {item}" if item in bad else f"ok {item}")
        assert seen.count(item) <= 1
