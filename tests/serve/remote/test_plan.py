"""Tests of ``cloister.serve.remote.plan``."""

from __future__ import annotations

from cloister.serve.remote.messages import ModelKey
from cloister.serve.remote.plan import next_model

A, B, C = (ModelKey(name, "1", name * 8) for name in "abc")


def fill(slots: int, has: list[ModelKey], workers: dict[ModelKey, int]) -> list[str]:
    """The names of the models that a host starts, until it has enough to do."""
    running: list[ModelKey] = []
    while len(running) < 20:
        key = next_model(slots=slots, running=running, has={key.digest for key in has}, workers=workers)
        if key is None:
            break
        running.append(key)
        workers[key] += 1
    return [key.name for key in running]


def test_one_of_each_by_default() -> None:
    """A host without a number of slots starts one worker of every model that it has and that is served."""
    assert fill(0, [A, B], {A: 5, B: 0, C: 0}) == ["b", "a"]


def test_slots_go_round() -> None:
    """With more slots than models each has its turn; with fewer, the model with the fewest workers wins."""
    assert fill(5, [A, B], {A: 0, B: 0}) == ["a", "b", "a", "b", "a"]
    assert fill(1, [A, B], {A: 1, B: 0}) == ["b"]


def test_same_name_with_another_digest_is_another_model() -> None:
    """A host whose container differs from the frontend's serves nothing."""
    assert fill(0, [ModelKey("a", "1", "other")], {A: 0}) == []


def test_what_failed_waits() -> None:
    """A model that has just failed on the host is left out."""
    assert next_model(slots=0, running=[], has={A.digest}, workers={A: 0}, held=frozenset({A})) is None
