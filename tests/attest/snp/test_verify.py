"""Whether a report is genuine: each step refuses."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.simulated.snp_pki import make_ark, make_ark_crl, make_authority
from cloister.attest.snp import SnpClaims, SnpEndorsements
from cloister.attest.snp.roots import amd_roots
from cloister.errors import (
    BadSignature,
    CloisterError,
    EndorsementMismatch,
    MalformedInput,
    Revoked,
    StaleEvidence,
    UntrustedRoot,
)
from tests.attest.snp.conftest import HWID, NOW, TCB, Platform, der, make_platform, rsa_key


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_every_kind_is_verified(version: int, product: str, kind: str) -> None:
    """Each version of the report, of each product, signed with either key, verifies; its claims say so."""
    platform = make_platform(product, kind)
    claims = platform.verify(platform.report(version=version))
    assert claims.simulated
    assert (claims.version, claims.product, claims.signing_key) == (version, product, kind)
    assert claims.reported_tcb == {k: v for k, v in TCB.items() if k != "fmc" or product == "Turin"}
    assert claims.hardware_id == (HWID[:8].ljust(64, b"\x00") if product == "Turin" else HWID).hex()
    assert (claims.cpuid_fam_id is None) == (version == 2)
    assert (claims.launch_mit_vector is None) == (version < 5)
    assert claims.to_mapping()["report_data"] == claims.report_data.hex()


def test_amd_does_not_vouch_for_a_simulation(genoa: Platform) -> None:
    """Without its root given, a simulated platform is not trusted, and its root beside AMD's is simulated."""
    raw = genoa.report()
    with pytest.raises(UntrustedRoot):
        verify_evidence("sev-snp", raw, genoa.endorsements(), NOW)
    roots = [*amd_roots(), genoa.ark.certificate]
    assert verify_evidence("sev-snp", raw, genoa.endorsements(), NOW, roots=roots).simulated


@pytest.mark.parametrize("roots", [[], [0]])
def test_other_roots(genoa: Platform, turin: Platform, roots: list[int]) -> None:
    """No root, and the root of another product, trust nothing."""
    certificates = [turin.ark.certificate for _ in roots]
    with pytest.raises(UntrustedRoot):
        verify_evidence("sev-snp", genoa.report(), genoa.endorsements(), NOW, roots=certificates)


def test_root_that_came_along_must_be_the_trusted_one(genoa: Platform) -> None:
    """An ARK among the endorsements is compared, not trusted."""
    other = make_ark("Genoa", rsa_key(2), NOW)
    with pytest.raises(UntrustedRoot):
        genoa.verify(genoa.report(), genoa.endorsements(ark=der(other.certificate)))


def test_missing_certificates(genoa: Platform, vlek: Platform) -> None:
    """Without the certificate of the key that signed there is nothing to verify."""
    with pytest.raises(MalformedInput, match="VCEK"):
        verify_evidence("sev-snp", genoa.report(), None, NOW)
    with pytest.raises(MalformedInput, match="VLEK"):
        genoa.verify(vlek.report(), genoa.endorsements())
    with pytest.raises(UntrustedRoot):
        genoa.verify(genoa.report(), genoa.endorsements(ask=None))


def test_endorsements_of_another_vendor(genoa: Platform) -> None:
    """Collateral of another kind is an error of its own."""

    class Other:
        def to_mapping(self) -> dict[str, Any]:
            return {}

    with pytest.raises(MalformedInput, match="AMD"):
        verify_evidence("sev-snp", genoa.report(), Other(), NOW)


def test_authorities_have_one_purpose(genoa: Platform) -> None:
    """A VCEK is not accepted below the authority of VLEKs, nor below one that is not a CA."""
    asvk = make_authority(genoa.ark, "Genoa", "vlek", rsa_key(1), NOW)
    with pytest.raises(EndorsementMismatch):
        genoa.verify(genoa.report(), genoa.endorsements(ask=der(asvk.certificate)))
    with pytest.raises(EndorsementMismatch):
        genoa.verify(genoa.report(), genoa.endorsements(ask=der(genoa.certificate)))


def test_authority_with_another_key(genoa: Platform) -> None:
    """A certificate that the authority did not sign is refused."""
    ask = make_authority(genoa.ark, "Genoa", "vcek", rsa_key(2), NOW)
    with pytest.raises(BadSignature):
        genoa.verify(genoa.report(), genoa.endorsements(ask=der(ask.certificate)))


def test_authority_below_another_root(genoa: Platform) -> None:
    """An authority that another root signed is refused, whatever its name."""
    ark = make_ark("Genoa", rsa_key(2), NOW)
    ask = make_authority(ark, "Genoa", "vcek", rsa_key(1), NOW)
    with pytest.raises(UntrustedRoot):
        genoa.verify(genoa.report(), genoa.endorsements(ask=der(ask.certificate)))


@pytest.mark.parametrize("moment", [NOW - timedelta(hours=2), NOW + timedelta(days=7 * 365 + 1)])
def test_dates_of_certificates(genoa: Platform, moment: Any) -> None:
    """A certificate is refused before and after its time, also when the chain is in the cache."""
    genoa.verify(genoa.report())
    with pytest.raises(StaleEvidence):
        genoa.verify(genoa.report(), now=moment)


def test_revocation(genoa: Platform) -> None:
    """A good CRL changes nothing but the claims; an authority or root on it is refused."""
    claims = genoa.verify(genoa.report(), genoa.endorsements(crl=genoa.crl(77)))
    assert claims.crl_issued.startswith("2026-10-01T11:00")
    for serial in (genoa.authority.certificate.serial_number, genoa.ark.certificate.serial_number):
        with pytest.raises(Revoked):
            genoa.verify(genoa.report(), genoa.endorsements(crl=genoa.crl(serial)))


def test_wrong_crls(genoa: Platform, turin: Platform) -> None:
    """A CRL of another root, with another key, from another time, or damaged is refused."""
    report = genoa.report()
    with pytest.raises(EndorsementMismatch):
        genoa.verify(report, genoa.endorsements(crl=turin.crl()))
    foreign = make_ark_crl(make_ark("Genoa", rsa_key(2), NOW), NOW)
    with pytest.raises(BadSignature):
        genoa.verify(report, genoa.endorsements(crl=foreign))
    for moment in (NOW - timedelta(days=366), NOW + timedelta(days=1)):
        with pytest.raises(StaleEvidence):
            genoa.verify(report, genoa.endorsements(crl=genoa.crl(now=moment)))
    for raw in (b"", genoa.crl()[:-1], genoa.crl() + b"\x00", bytes(300_000)):
        with pytest.raises(MalformedInput):
            genoa.verify(report, genoa.endorsements(crl=raw))


def test_no_bit_of_a_list_can_be_changed(genoa: Platform) -> None:
    """A revocation list with one bit changed, in or outside of what is signed, is refused."""
    report, good = genoa.report(), genoa.crl(77)
    outside = len(good) - 512 - 80  # the second algorithm, which nothing signs, is before the signature
    for at in (
        *range(0, outside, 17),
        *range(outside, len(good) - 500),
        *range(len(good) - 500, len(good), 61),
    ):
        raw = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises(CloisterError):
            genoa.verify(report, genoa.endorsements(crl=raw))


def test_signature_of_another_key(genoa: Platform) -> None:
    """A report that another chip's key signed is refused."""
    other = make_platform()
    with pytest.raises(BadSignature):
        genoa.verify(other.report())


@pytest.mark.parametrize(
    "signing",
    [
        {"tcb": bytes.fromhex("04020000000018dc")},
        {"tcb": bytes.fromhex("04020100000018db")},
        {"chip_id": HWID[::-1]},
        {"chip_id": HWID[:8]},
        {"product": "Milan"},
        {"product": "Turin"},
    ],
)
def test_certificate_of_another_platform(genoa: Platform, signing: dict[str, Any]) -> None:
    """Report and certificate agree on security versions, chip and product, or it is refused."""
    with pytest.raises(EndorsementMismatch):
        genoa.verify(genoa.report(signing))


def test_chip_of_turin_ends_in_zeros(turin: Platform) -> None:
    """Bytes after Turin's eight are no part of its identity, and must be zero."""
    turin.verify(turin.report())
    with pytest.raises(EndorsementMismatch):
        turin.verify(turin.report({"chip_id": HWID[:9]}))


def test_masked_chip_id(genoa: Platform, vlek: Platform) -> None:
    """With CHIP_ID masked, the VCEK's certificate identifies the chip; behind a VLEK nothing does."""
    claims = genoa.verify(genoa.report({"chip_id": b""}))
    assert (claims.chip_id, claims.hardware_id) == (bytes(64), HWID.hex())
    assert vlek.verify(vlek.report({"chip_id": b""})).hardware_id == ""


def test_key_on_another_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endorsement keys are of P-384."""
    original = ec.generate_private_key
    monkeypatch.setattr(ec, "generate_private_key", lambda curve: original(ec.SECP256R1()))
    platform = make_platform()
    with pytest.raises(MalformedInput, match="P-384"):
        platform.verify(make_platform().report())


@pytest.mark.parametrize(
    ("signing", "status"),
    [
        ({}, "Committed"),
        ({"current_tcb": bytes.fromhex("05020000000018db")}, "Provisional"),
        (
            {
                "current_tcb": bytes.fromhex("05020000000018db"),
                "committed_tcb": bytes.fromhex("05020000000018db"),
            },
            "Reported",
        ),
    ],
)
def test_tcb_status(genoa: Platform, signing: dict[str, Any], status: str) -> None:
    """The status says how reported, committed and current TCB lie to each other."""
    assert genoa.verify(genoa.report(signing)).tcb_status == status


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1183), mask=st.integers(1, 255))
def test_any_changed_byte_is_refused(genoa: Platform, at: int, mask: int) -> None:
    """No byte of a report can be changed unnoticed, signed or not."""
    raw = bytearray(genoa.report())
    raw[at] ^= mask
    with pytest.raises(CloisterError):
        genoa.verify(bytes(raw))


def test_claims_have_the_vendors_names(genoa: Platform) -> None:
    """The claims decode policy and platform information by name."""
    claims = genoa.verify(genoa.report(policy=0x17011F, debug=True, vmpl=3))
    assert isinstance(claims, SnpClaims)
    assert claims.debug
    assert claims.policy == 0x1F011F
    decoded = {"abi_major": 1, "abi_minor": 0x1F, "smt": True, "migrate_ma": True, "single_socket": True}
    assert decoded.items() <= claims.guest_policy.items()
    assert claims.platform["ecc_en"]
    assert not claims.platform["tsme_en"]
    assert claims.current_version == "1.55.49"


def test_empty_endorsements_are_not_enough(genoa: Platform) -> None:
    """An empty set of endorsements is no better than none."""
    with pytest.raises(MalformedInput):
        genoa.verify(genoa.report(), SnpEndorsements())
