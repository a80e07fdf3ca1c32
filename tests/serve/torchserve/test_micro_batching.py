"""A batch in pieces, whose steps run side by side."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cloister.serve.torchserve.context import Context, RequestProcessor
from cloister.serve.torchserve.micro_batching import MicroBatching


class Handler:
    """Notes which pieces each step has had."""

    def __init__(self) -> None:
        self.context: Any = None
        self.sizes: list[int] = []
        self.both = threading.Barrier(2, timeout=10)

    def preprocess(self, data: list[int]) -> list[int]:
        self.sizes.append(len(data))
        return data

    def inference(self, data: list[int]) -> list[int]:
        if 99 in data:
            raise ValueError("bad piece")
        return [item * 2 for item in data]

    def postprocess(self, data: list[int]) -> list[int]:
        return [item + 1 for item in data]

    def _is_describe(self) -> bool:
        return False

    def _is_explain(self) -> bool:
        return False


@pytest.fixture
def context() -> Context:
    """A context of one batch."""
    made = Context("m", "/", {}, 8, None, "0")
    made.request_processor = [RequestProcessor({})]
    return made


def test_order_and_sizes(context: Context) -> None:
    """Answers are in the batch's order, whatever the pieces and the threads."""
    handler = Handler()
    batching = MicroBatching(handler, 3, {"preprocess": 2, "inference": 3})
    assert batching(list(range(10)), context) == [item * 2 + 1 for item in range(10)]
    assert sorted(handler.sizes) == [1, 3, 3, 3]
    batching.parallelism = {"inference": 1}
    assert batching.parallelism["inference"] == 1
    assert batching.handle([]) == []
    batching.shutdown()


def test_failure(context: Context) -> None:
    """A piece that fails fails the batch with its own error."""
    batching = MicroBatching(Handler(), 2)
    with pytest.raises(ValueError, match="bad piece"):
        batching([1, 2, 99], context)
    batching.shutdown()
    with pytest.raises(ValueError, match="steps"):
        MicroBatching(Handler(), 2, {"other": 1})


def test_steps_overlap(context: Context) -> None:
    """While one piece is in the model, the next is prepared: each waits here for the other."""
    handler = Handler()
    prepared: list[list[int]] = []

    def preprocess(data: list[int]) -> list[int]:
        prepared.append(data)
        if len(prepared) == 2:
            handler.both.wait()
        return data

    def inference(data: list[int]) -> list[int]:
        if data == [1]:
            handler.both.wait()
        return data

    handler.preprocess = preprocess  # type: ignore[method-assign]
    handler.inference = inference  # type: ignore[method-assign]
    batching = MicroBatching(handler, 1)
    assert batching([1, 2], context) == [2, 3]
    batching.shutdown()
