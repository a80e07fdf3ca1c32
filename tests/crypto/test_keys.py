"""SecretKey: shows its bytes to nobody who did not ask."""

from __future__ import annotations

import copy
import pickle

import pytest

from cloister.crypto.keys import SecretKey
from cloister.errors import MalformedInput


def test_text_forms_are_redacted() -> None:
    """No text form of a key holds its bytes or their hexadecimal."""
    key = SecretKey(b"K" * 32)
    for text in (repr(key), str(key), f"{key}", f"{key!r:>40}"):
        assert "redacted" in text
        assert "KKKK" not in text
        assert (b"K" * 32).hex() not in text


def test_equality_is_by_value() -> None:
    """Two keys are equal exactly when their bytes are."""
    assert SecretKey(b"a" * 32) == SecretKey(b"a" * 32)
    assert SecretKey(b"a" * 32) != SecretKey(b"b" * 32)
    assert SecretKey(b"a" * 32) != b"a" * 32


def test_generated_keys_differ() -> None:
    """Two generated keys are not the same key."""
    assert SecretKey.generate() != SecretKey.generate()


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_other_lengths_are_refused(length: int) -> None:
    """A key has 32 bytes, nothing else, and the error does not show what was given."""
    with pytest.raises(MalformedInput) as caught:
        SecretKey(b"S" * length)
    assert "SS" not in str(caught.value)


def test_a_key_leaves_by_no_other_door() -> None:
    """Pickling, copying and hashing a key are refused."""
    key = SecretKey.generate()
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        copy.copy(key)
    with pytest.raises(TypeError):
        hash(key)
    with pytest.raises(AttributeError):
        key.note = "x"  # type: ignore[attr-defined]
