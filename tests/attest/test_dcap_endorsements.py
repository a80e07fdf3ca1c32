"""The JSON form of DCAP collateral."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.endorsements import parse_signed_json, validity
from cloister.errors import MalformedInput
from tests.attest.conftest import NOW

_JSON = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)


def test_round_trip(endorsements: DcapEndorsements) -> None:
    """The mapping form gives the same endorsements back."""
    assert DcapEndorsements.from_mapping(endorsements.to_mapping()) == endorsements


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("tcb_info", None),
        ("tcb_info", 7),
        ("tcb_info", "\ud800"),
        ("root_ca_crl", "zz"),
        ("pck_crl", "0" * 600_000),
        ("unknown", "x"),
    ],
)
def test_wrong_members_are_refused(endorsements: DcapEndorsements, member: str, value: object) -> None:
    """Missing, unknown, mistyped, non-ASCII and oversized members are malformed."""
    mapping = endorsements.to_mapping() | {member: value}
    with pytest.raises(MalformedInput):
        DcapEndorsements.from_mapping(mapping)


def test_missing_member_is_named(endorsements: DcapEndorsements) -> None:
    """The error names the member that is missing."""
    mapping = endorsements.to_mapping()
    del mapping["qe_identity"]
    with pytest.raises(MalformedInput, match="qe_identity"):
        DcapEndorsements.from_mapping(mapping)


@given(st.dictionaries(st.sampled_from(list(DcapEndorsements.__dataclass_fields__)), _JSON))
def test_any_mapping_raises_only_malformed(mapping: dict[str, Any]) -> None:
    """Whatever JSON is given, nothing but MalformedInput is raised."""
    try:
        DcapEndorsements.from_mapping(mapping)
    except MalformedInput:
        return


@given(st.text(max_size=60))
def test_signed_json_raises_only_malformed(text: str) -> None:
    """Any text is a JSON object or malformed; its dates are times or malformed."""
    try:
        validity(parse_signed_json(text, "text"), "text")
    except MalformedInput:
        return


def test_repeated_member_is_refused() -> None:
    """A signed text in which a member occurs twice could be read in two ways."""
    with pytest.raises(MalformedInput):
        parse_signed_json('{"id":"TDX","id":"SGX"}', "TCB info")


def test_is_current(endorsements: DcapEndorsements) -> None:
    """Collateral knows the time for which it was made."""
    assert endorsements.is_current(NOW)
    assert not endorsements.is_current(NOW + timedelta(days=366))
