"""``input`` of TorchServe's predictions as a body that workers decode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.forms import parse_fields
from cloister.serve.grpc.fields import encode_fields

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=5))
def test_round_trip(fields: dict[str, bytes]) -> None:
    """The worker sees exactly the names and bytes that the caller sent."""
    headers, body = encode_fields(fields)
    content_type = dict(headers).get(b"content-type", b"").decode()
    assert parse_fields(memoryview(body), content_type=content_type, query=b"") == fields


@pytest.mark.parametrize("name", ["a\r\nb", "a\0", "a" * 257, "\u2028"])
def test_names_that_are_refused(name: str) -> None:
    """Names that could break the form's lines are refused."""
    with pytest.raises(MalformedInput):
        encode_fields({name: b""})
