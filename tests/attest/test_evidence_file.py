"""Evidence in a file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.binding import check_binding, report_data_for
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.evidence_file import (
    MAX_FILE_BYTES,
    make_evidence_file,
    nonce_data,
    parse_document,
    parse_evidence_file,
)
from cloister.attest.model import Evidence
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.verifier import parse_endorsements
from cloister.errors import MalformedInput
from tests.attest.conftest import MR_TD, NOW

NONCE = bytes(range(32))


def test_round_trip(platform: SimulatedPlatform, endorsements: DcapEndorsements) -> None:
    """What was written is read again, and verifies with what it brings."""
    data = nonce_data(NONCE)
    evidence = Evidence("tdx", platform.quote(report_data_for(data), mr_td=MR_TD))
    text = make_evidence_file(evidence, endorsements, data).to_json()
    found = parse_evidence_file(parse_document(text.encode()))
    assert (found.evidence, found.runtime_data) == (evidence, data)
    assert found.endorsements is not None
    own = parse_endorsements("tdx", found.endorsements)
    check_binding(verify_evidence("tdx", found.evidence.raw, own, NOW, roots=[platform.root]), data)


def test_optional_members() -> None:
    """A file with nothing but scheme and evidence is one."""
    found = parse_evidence_file({"scheme": "tdx", "evidence": "AA=="})
    assert (found.endorsements, found.runtime_data) == (None, None)


def test_too_long() -> None:
    """A file over the limit is refused before it is parsed."""
    with pytest.raises(MalformedInput, match="at most"):
        parse_document(b" " * (MAX_FILE_BYTES + 1))


@given(st.binary(max_size=60) | st.from_type(dict).map(lambda value: json.dumps(value, default=str).encode()))
def test_any_bytes_raise_only_declared_errors(raw: bytes) -> None:
    """Any content is refused with a declared error."""
    with pytest.raises(MalformedInput):
        parse_evidence_file(parse_document(raw))
