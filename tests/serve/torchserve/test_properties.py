"""The syntax of config.properties, against the rules of java.util.Properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve.torchserve.properties import MAX_BYTES, parse_properties, render_properties

# Characters that mean something in a file are drawn often; lone surrogates cannot be written in UTF-8.
TEXT = st.text(st.one_of(st.sampled_from(" =:#!\\\t\n\r\fun"), st.characters(exclude_categories=["Cs"])))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", {"a": "b"}),
        ("a = b ", {"a": "b "}),
        ("a:b", {"a": "b"}),
        ("a b", {"a": "b"}),
        ("a\t\f b", {"a": "b"}),
        ("a = = b", {"a": "= b"}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("=b", {"": "b"}),
        ("  \t a=b", {"a": "b"}),
        ("# a=b\n! c=d\n\n \t\ne=f", {"e": "f"}),
        ("a=b#c", {"a": "b#c"}),
        ("a=1\nb=2\r\nc=3\rd=4", {"a": "1", "b": "2", "c": "3", "d": "4"}),
        ("a=b\\\n   c", {"a": "bc"}),
        ("a=b\\\r\n   c", {"a": "bc"}),
        ("a=b\\\\\nc=d", {"a": "b\\", "c": "d"}),
        ("a=b\\\\\\\nc", {"a": "b\\c"}),
        ("a=b\\\n# no comment", {"a": "b# no comment"}),
        ("# comment\\\na=b", {"a": "b"}),
        ("a=b\\\n\nc=d", {"a": "b", "c": "d"}),
        ("a\\\n=b", {"a": "b"}),
        ("a=b\\", {"a": "b"}),
        ("a\\=b=c", {"a=b": "c"}),
        ("a\\:b:c", {"a:b": "c"}),
        ("a\\ b c", {"a b": "c"}),
        ("a=\\t\\n\\r\\f\\q\\\\", {"a": "\t\n\r\fq\\"}),
        ("a=\\u0041\\u00e9", {"a": "Aé"}),
        ("a=\\uD83D\\uDE00", {"a": "😀"}),
        ("a=1\na=2", {"a": "2"}),
        ("a=\\ b", {"a": " b"}),
        ("Cheeses", {"Cheeses": ""}),
        (
            'models={\\\n  "noop": {\\\n    "1.0": {\\\n        "minWorkers": 1\\\n    }\\\n  }\\\n}',
            {"models": '{"noop": {"1.0": {"minWorkers": 1}}}'},
        ),
    ],
)
def test_rules(text: str, expected: dict[str, str]) -> None:
    """Each rule of the syntax, one line each."""
    assert parse_properties(text.encode()) == expected


def test_encodings() -> None:
    """UTF-8 is read as that, and what is not UTF-8 as ISO 8859-1."""
    assert parse_properties("a=é".encode()) == {"a": "é"}
    assert parse_properties("a=é".encode("latin-1")) == {"a": "é"}


@pytest.mark.parametrize("text", [b"a=\\u12", b"a=\\uzzzz", b"\\u", b"x" * (MAX_BYTES + 1)])
def test_malformed(text: bytes) -> None:
    """An incomplete escape and a file that is too long are malformed."""
    with pytest.raises(MalformedInput):
        parse_properties(text)


@given(st.dictionaries(TEXT, TEXT))
def test_round_trip(values: dict[str, str]) -> None:
    """What is written is read back as it was, whatever it holds."""
    assert parse_properties(render_properties(values).encode()) == values


@given(st.binary())
def test_any_bytes(raw: bytes) -> None:
    """Any bytes are keys and values, or malformed: nothing else is raised."""
    try:
        found = parse_properties(raw)
    except MalformedInput:
        return
    assert parse_properties(render_properties(found).encode()) == found
