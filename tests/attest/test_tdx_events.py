"""A TDX event log becomes claims only if it replays to the registers in the quote."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.dcap import DcapEndorsements, TdxClaims, attach_events
from cloister.errors import BindingMismatch, MalformedInput
from tests.vectors import vector

CASE = "dcap-cases/dev/tdx_v4_00806f050000_UpToDate_00b2526a_eval17_2025-10-19.json"
LOG = "ccel/dev/00b2526a.ccel.bin"


@pytest.fixture(scope="module")
def case() -> tuple[TdxClaims, datetime]:
    """Verified claims of a genuine quote whose event log is there too."""
    document = json.loads(vector(CASE).read_text())
    now = datetime.fromtimestamp(document["verification_time"], UTC)
    endorsements = DcapEndorsements.from_mapping(document["collateral"])
    claims = verify_evidence("tdx", vector(document["quote"]).read_bytes(), endorsements, now)
    assert isinstance(claims, TdxClaims)
    return claims, now


def references(claims: TdxClaims, digests: list[str]) -> ReferenceValues:
    """Reference values that accept this quote, and these events."""
    table = {"mr_td": [claims.mr_td.hex()], "allowed_event_digests": digests}
    return ReferenceValues.from_mapping({"tdx": table})


def test_events_become_claims(case: tuple[TdxClaims, datetime]) -> None:
    """A genuine log replays, and a policy that lists its events accepts."""
    claims, now = case
    with_events = attach_events(claims, vector(LOG).read_bytes())
    assert with_events.events
    assert {event["register"] for event in with_events.events} <= {"rtmr0", "rtmr1", "rtmr2", "rtmr3"}
    digests = [str(event["digest"]) for event in with_events.events]
    assert appraise(with_events, references(claims, digests), now).checks
    assert json.dumps(with_events.to_mapping()["events"])


def test_an_unlisted_event_is_denied(case: tuple[TdxClaims, datetime]) -> None:
    """One event that the owner does not list is enough."""
    claims, now = case
    with_events = attach_events(claims, vector(LOG).read_bytes())
    digests = [str(event["digest"]) for event in with_events.events or ()]
    missing = digests[-1]
    with pytest.raises(AppraisalDenied) as denied:
        appraise(with_events, references(claims, [item for item in digests if item != missing]), now)
    assert missing[:12] in denied.value.reasons[0]


def test_events_that_are_demanded_must_be_there(case: tuple[TdxClaims, datetime]) -> None:
    """Without a log, a policy on events denies."""
    claims, now = case
    with pytest.raises(AppraisalDenied, match="no event log"):
        appraise(claims, references(claims, ["00" * 48]), now)


def test_a_changed_log_is_refused(case: tuple[TdxClaims, datetime]) -> None:
    """A flipped bit in any measured digest, or a cut, is found."""
    claims, _ = case
    log = bytearray(vector(LOG).read_bytes())
    digest = bytes.fromhex(str((attach_events(claims, bytes(log)).events or ())[3]["digest"]))
    log[log.index(digest)] ^= 1
    with pytest.raises((BindingMismatch, MalformedInput)):
        attach_events(claims, bytes(log))
    with pytest.raises((BindingMismatch, MalformedInput)):
        attach_events(claims, vector(LOG).read_bytes()[:2000])
