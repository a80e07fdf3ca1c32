"""The binding of evidence to runtime data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.attest.binding import check_binding, report_data_for, runtime_data_digest
from cloister.attest.dcap import TdxClaims
from cloister.errors import BindingMismatch, MalformedInput


def test_known_digest() -> None:
    """The digest is that of the key release protocol's vector."""
    digest = runtime_data_digest({"a": "test", "b": 1, "c": {"d": "e"}})
    assert digest.hex() == (
        "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    )


def test_padding() -> None:
    """Report data is the digest and 16 zero bytes, whatever the order of members."""
    data = report_data_for({"b": 1, "a": 2})
    assert (len(data), data[48:]) == (64, bytes(16))
    assert data == report_data_for({"a": 2, "b": 1})


def test_check(claims: TdxClaims) -> None:
    """Bound data passes; any other is a mismatch, non-zero padding too."""
    bound = replace(claims, report_data=report_data_for({"nonce": "x"}))
    check_binding(bound, {"nonce": "x"})
    with pytest.raises(BindingMismatch):
        check_binding(bound, {"nonce": "y"})
    with pytest.raises(BindingMismatch):
        check_binding(replace(bound, report_data=bound.report_data[:63] + b"\x01"), {"nonce": "x"})


@pytest.mark.parametrize("value", [b"bytes", float("nan"), "\ud800", 2**60])
def test_data_without_canonical_form(value: object) -> None:
    """What has no canonical JSON form is malformed."""
    with pytest.raises(MalformedInput):
        report_data_for({"x": value})
