"""What a model answers is not to be trusted any more than what a caller asks."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.client.answer import Answer, raise_for_status
from cloister.errors import CloisterError, MalformedInput, ServingError

DEEP = b"[" * 100_000


def test_deep_json_is_malformed() -> None:
    """A model that nests without end gets its caller an error of this package."""
    with pytest.raises(MalformedInput):
        Answer(200, (), DEEP).json()


def test_deep_errors_are_errors() -> None:
    """The same in the answer of a refusal: its status says what there is to say."""
    with pytest.raises(ServingError, match="HTTP status 418"):
        raise_for_status(Answer(418, (), DEEP))


@given(st.integers(200, 599), st.binary(max_size=200))
def test_any_answer(status: int, content: bytes) -> None:
    """Whatever is answered, only declared errors come of it."""
    with contextlib.suppress(CloisterError):
        raise_for_status(Answer(status, (), content)).json()
