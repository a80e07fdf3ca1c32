"""Is a DCAP quote genuine? On a simulated platform, where every part can be forged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.attest.dcap import DcapEndorsements, TdxClaims
from cloister.attest.dcap import verify as verify_module
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.simulated import quote as simulated_quote
from cloister.attest.simulated.collateral import raw_signature
from cloister.attest.simulated.pki import make_crl, make_pck
from cloister.attest.verifier import vendor_roots, verify_evidence
from cloister.errors import (
    BadSignature,
    CloisterError,
    EndorsementMismatch,
    MalformedInput,
    Revoked,
    StaleEvidence,
    TcbOutOfDate,
    UntrustedRoot,
    VerificationError,
)
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA

DECLARED = (VerificationError, MalformedInput)


def verify(platform: SimulatedPlatform, raw: bytes, endorsements: DcapEndorsements) -> TdxClaims:
    """Verify under the platform's own root at ``NOW``."""
    verified = verify_evidence("tdx", raw, endorsements, NOW, roots=[platform.root])
    assert isinstance(verified, TdxClaims)
    return verified


def accepted_by_dcap_qvl(platform: SimulatedPlatform, raw: bytes, endorsements: DcapEndorsements) -> bool:
    """Whether dcap-qvl alone takes it."""
    now_secs = int(NOW.timestamp())
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(endorsements.to_mapping()))
    root = platform.root.public_bytes(Encoding.DER)
    return dcap_qvl.verify_with_root_ca(raw, collateral, root, now_secs).status == "UpToDate"


def resign(
    platform: SimulatedPlatform, endorsements: DcapEndorsements, **changes: object
) -> DcapEndorsements:
    """Collateral whose TCB info has other members, signed again by the TCB signing key."""
    text = json.dumps(json.loads(endorsements.tcb_info) | changes, separators=(",", ":"))
    signature = raw_signature(platform.issuer.tcb_signing.key, text.encode())
    return replace(endorsements, tcb_info=text, tcb_info_signature=signature)


def test_good_quote_gives_its_claims(claims: TdxClaims) -> None:
    """A quote verifies under its root, and its claims are those that were put in; it is simulated."""
    assert (claims.mr_td, claims.report_data, claims.tcb_status) == (MR_TD, REPORT_DATA, "UpToDate")
    assert claims.simulated
    assert not claims.debug
    assert claims.fmspc == "90c06f000000"
    assert len(claims.rtmrs) == 4
    assert json.loads(json.dumps(claims.to_mapping()))["mr_td"] == MR_TD.hex()


def test_simulated_root_is_not_trusted_by_itself(quote: bytes, endorsements: DcapEndorsements) -> None:
    """Without roots of one's own, only Intel's key is trusted."""
    with pytest.raises(UntrustedRoot):
        verify_evidence("tdx", quote, endorsements, NOW)


def test_another_platforms_root_is_not_enough(
    tmp_path: Path, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """Two simulated platforms do not vouch for each other; nor does an empty list of roots for anyone."""
    other = SimulatedPlatform.create(tmp_path / "other", NOW)
    for roots in ([other.root], [*vendor_roots("tdx"), other.root], []):
        with pytest.raises(UntrustedRoot):
            verify_evidence("tdx", quote, endorsements, NOW, roots=roots)


def test_several_roots(platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements) -> None:
    """The one root of several that signed the chain is found, and still marks the claims as simulated."""
    roots = [*vendor_roots("tdx"), platform.root]
    assert verify_evidence("tdx", quote, endorsements, NOW, roots=roots).simulated


def test_collateral_of_another_platform(tmp_path: Path, platform: SimulatedPlatform, quote: bytes) -> None:
    """Collateral under another root than the quote's is refused, even where both roots are trusted."""
    other = SimulatedPlatform.create(tmp_path / "other", NOW)
    with pytest.raises(UntrustedRoot):
        verify_evidence("tdx", quote, other.endorsements(NOW), NOW, roots=[platform.root, other.root])


def test_no_collateral(platform: SimulatedPlatform, quote: bytes) -> None:
    """Without collateral nothing is verified."""
    with pytest.raises(MalformedInput, match="without its collateral"):
        verify_evidence("tdx", quote, None, NOW, roots=[platform.root])


def test_tdx_quote_is_no_sgx_quote(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """A quote of one TEE is not taken for the other's."""
    with pytest.raises(MalformedInput, match="TEE type"):
        verify_evidence("sgx", quote, endorsements, NOW, roots=[platform.root])


@pytest.mark.filterwarnings("ignore")  # cryptography warns of damaged names
def test_every_flipped_byte_is_refused(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """Whichever byte of a quote is changed, the quote is refused with a declared error."""
    for offset in range(len(quote)):
        changed = bytearray(quote)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises(DECLARED):
            verify(platform, bytes(changed), endorsements)


@pytest.mark.parametrize("member", list(DcapEndorsements.__dataclass_fields__))
def test_every_part_of_collateral_matters(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, member: str
) -> None:
    """One changed character or byte in any member of the collateral is refused."""
    value = getattr(endorsements, member)
    for position in range(40, len(value), max(1, len(value) // 12)):
        if isinstance(value, bytes):
            changed: object = value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]
        else:
            changed = value[:position] + chr(ord(value[position]) ^ 1) + value[position + 1 :]
        with pytest.raises(DECLARED):
            verify(platform, quote, replace(endorsements, **{member: changed}))


@pytest.mark.parametrize("days", [-1, 366, 4000])
def test_time_is_checked(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, days: int
) -> None:
    """Before the collateral was issued, after it expired, and after the certificates expired: refused."""
    with pytest.raises(StaleEvidence):
        verify_evidence("tdx", quote, endorsements, NOW + timedelta(days=days), roots=[platform.root])


def test_last_second_counts(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """Collateral holds up to its last second."""
    last = NOW + timedelta(days=365, seconds=-1)
    assert verify_evidence("tdx", quote, endorsements, last, roots=[platform.root]).tcb_status == "UpToDate"
    with pytest.raises(StaleEvidence):
        verify_evidence("tdx", quote, endorsements, last + timedelta(seconds=1), roots=[platform.root])


def test_revoked_pck(platform: SimulatedPlatform, quote: bytes) -> None:
    """A platform whose certificate is on the CRL is refused."""
    with pytest.raises(Revoked, match="PCK Certificate"):
        verify(platform, quote, platform.endorsements(NOW, revoke_pck=True))


@pytest.mark.parametrize("which", ["platform_ca", "tcb_signing"])
def test_revoked_authorities(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, which: str
) -> None:
    """A revoked PCK CA or TCB signing certificate is refused."""
    issuer = platform.issuer
    serial = getattr(issuer, which).certificate.serial_number
    crl = make_crl(issuer.root, NOW, NOW + timedelta(days=30), revoked=(serial,))
    with pytest.raises(Revoked):
        verify(platform, quote, replace(endorsements, root_ca_crl=crl))


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "OutOfDateConfigurationNeeded"])
def test_tcb_status_is_a_claim(platform: SimulatedPlatform, quote: bytes, status: str) -> None:
    """A platform that is not up to date is genuine all the same; its status and advisories are claims."""
    found = verify(platform, quote, platform.endorsements(NOW, tcb_status=status))
    assert (found.tcb_status, found.advisory_ids) == (status, ("INTEL-SA-00000",))


def test_revoked_tcb_level(platform: SimulatedPlatform, quote: bytes) -> None:
    """A TCB level that its vendor has revoked is refused whatever the policy."""
    with pytest.raises(TcbOutOfDate):
        verify(platform, quote, platform.endorsements(NOW, tcb_status="Revoked"))


def test_no_tcb_level(platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements) -> None:
    """A platform below every level is refused."""
    levels = json.loads(endorsements.tcb_info)["tcbLevels"]
    levels[0]["tcb"]["pcesvn"] = 200
    with pytest.raises(TcbOutOfDate):
        verify(platform, quote, resign(platform, endorsements, tcbLevels=levels))


@pytest.mark.parametrize(
    ("more", "field"),
    [({"debug": True}, "debug"), ({"sept_ve_disable": False}, ""), ({"more_attributes": 1 << 29}, "")],
)
def test_policy_attributes_are_claims(
    platform: SimulatedPlatform, endorsements: DcapEndorsements, more: dict[str, bool], field: str
) -> None:
    """Debug, SEPT_VE and migration are for the reference values to judge, with the right TCB status."""
    raw = platform.quote(REPORT_DATA, mr_td=MR_TD, **more)
    found = verify(platform, raw, endorsements)
    assert found.tcb_status == "UpToDate"
    assert found.debug == (field == "debug")


@pytest.mark.filterwarnings("ignore")  # cryptography warns of damaged names
def test_policy_attributes_do_not_weaken_signatures(
    platform: SimulatedPlatform, endorsements: DcapEndorsements
) -> None:
    """A debug quote, which dcap-qvl does not judge, is verified just as strictly."""
    raw = platform.quote(REPORT_DATA, mr_td=MR_TD, debug=True)
    for offset in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[offset] ^= 0x10
        with pytest.raises(DECLARED):
            verify(platform, bytes(changed), endorsements)


def test_debug_quote_needs_a_tcb_level(platform: SimulatedPlatform) -> None:
    """A revoked TCB level refuses a debug quote too."""
    raw = platform.quote(REPORT_DATA, mr_td=MR_TD, debug=True)
    with pytest.raises(TcbOutOfDate):
        verify(platform, raw, platform.endorsements(NOW, tcb_status="Revoked"))


def test_reserved_attributes_are_refused(platform: SimulatedPlatform, endorsements: DcapEndorsements) -> None:
    """Reserved attribute bits are refused, with and without a bit that is a matter of policy."""
    for debug in (False, True):
        raw = platform.quote(REPORT_DATA, mr_td=MR_TD, debug=debug, more_attributes=1 << 40)
        with pytest.raises(VerificationError):
            verify(platform, raw, endorsements)


def test_collateral_signed_by_a_pck_key(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """TCB info signed by a PCK key is refused, though dcap-qvl takes it."""
    issuer = platform.issuer
    rogue = make_pck(issuer.platform_ca, issuer.tcb, NOW)
    chain = b"".join(
        certificate.public_bytes(Encoding.PEM)
        for certificate in (rogue.certificate, issuer.platform_ca.certificate, platform.root)
    ).decode()
    signature = raw_signature(rogue.key, endorsements.tcb_info.encode())
    forged = replace(endorsements, tcb_info_issuer_chain=chain, tcb_info_signature=signature)
    assert accepted_by_dcap_qvl(platform, quote, forged)
    with pytest.raises(DECLARED):
        verify(platform, quote, forged)


def test_collateral_signed_below_the_root_by_another_name(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements
) -> None:
    """A certificate of the root that is not the TCB signing one does not sign TCB info."""
    issuer = platform.issuer
    rogue = make_pck(issuer.root, issuer.tcb, NOW)
    chain = (rogue.certificate.public_bytes(Encoding.PEM) + platform.root.public_bytes(Encoding.PEM)).decode()
    signature = raw_signature(rogue.key, endorsements.tcb_info.encode())
    with pytest.raises(EndorsementMismatch, match="TCB Signing"):
        verify(
            platform,
            quote,
            replace(endorsements, tcb_info_issuer_chain=chain, tcb_info_signature=signature),
        )


def test_pce_id_must_agree(platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements) -> None:
    """TCB info of another PCEID is refused, though dcap-qvl takes it."""
    forged = resign(platform, endorsements, pceId="0001")
    assert accepted_by_dcap_qvl(platform, quote, forged)
    with pytest.raises(EndorsementMismatch, match="PCEID"):
        verify(platform, quote, forged)


def test_qe_report_data_must_end_in_zeros(
    platform: SimulatedPlatform,
    endorsements: DcapEndorsements,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Bytes after the hash in the QE's report data are refused, though dcap-qvl takes them."""
    make_report = simulated_quote._qe_report
    monkeypatch.setattr(
        simulated_quote, "_qe_report", lambda data, prod: make_report(data + bytes(31) + b"\x01", prod)
    )
    other = SimulatedPlatform.create(tmp_path / "other", NOW)
    raw = other.quote(REPORT_DATA, mr_td=MR_TD)
    assert accepted_by_dcap_qvl(other, raw, other.endorsements(NOW))
    with pytest.raises(BadSignature, match="QE report"):
        verify(other, raw, other.endorsements(NOW))


@pytest.mark.parametrize("member", ["root_ca_crl", "pck_crl"])
def test_crl_from_the_future(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, member: str
) -> None:
    """A CRL that is not valid yet is refused, though dcap-qvl takes it."""
    issuer = platform.issuer.root if member == "root_ca_crl" else platform.issuer.platform_ca
    crl = make_crl(issuer, NOW + timedelta(days=1), NOW + timedelta(days=30))
    forged = replace(endorsements, **{member: crl})
    assert accepted_by_dcap_qvl(platform, quote, forged)
    with pytest.raises(StaleEvidence, match="CRL"):
        verify(platform, quote, forged)


@pytest.mark.parametrize("version", [2, 4, "3", None])
def test_unknown_tcb_info_version(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, version: object
) -> None:
    """Only version 3 of TCB info is understood."""
    with pytest.raises(MalformedInput, match="version"):
        verify(platform, quote, resign(platform, endorsements, version=version))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"fmspc": "000000000000"}, EndorsementMismatch),
        ({"id": "SGX"}, EndorsementMismatch),
        ({"tdxModuleIdentities": []}, EndorsementMismatch),
        ({"tcbLevels": []}, TcbOutOfDate),
        ({"tcbLevels": 7}, MalformedInput),
        ({"tcbEvaluationDataNumber": "x"}, MalformedInput),
        ({"issueDate": "yesterday"}, MalformedInput),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_signed_but_wrong_tcb_info(
    platform: SimulatedPlatform,
    endorsements: DcapEndorsements,
    changes: dict[str, object],
    error: type[CloisterError],
    debug: bool,
) -> None:
    """TCB info of another platform or form is refused alike by dcap-qvl and by our own evaluation."""
    raw = platform.quote(REPORT_DATA, mr_td=MR_TD, debug=debug)
    with pytest.raises(error):
        verify(platform, raw, resign(platform, endorsements, **changes))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_mutations_raise_only_declared_errors(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, data: st.DataObject
) -> None:
    """Any cut, splice or overwrite of a quote raises nothing but declared errors."""
    begin = data.draw(st.integers(0, len(quote) - 1))
    end = data.draw(st.integers(begin, len(quote)))
    changed = quote[:begin] + data.draw(st.binary(max_size=80)) + quote[end:]
    if changed != quote:
        with pytest.raises(DECLARED):
            verify(platform, changed, endorsements)


def test_refusal_without_a_cause_stays_a_refusal(
    platform: SimulatedPlatform, quote: bytes, endorsements: DcapEndorsements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dcap-qvl refuses is refused, also where our own evaluation finds nothing wrong."""

    def refuse(*arguments: object) -> object:
        raise ValueError("Verification failed: something new")

    monkeypatch.setattr(verify_module.dcap_qvl, "verify_with_root_ca", refuse)
    with pytest.raises(VerificationError, match="something new"):
        verify(platform, quote, endorsements)
