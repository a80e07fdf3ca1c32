"""Machines on a fake Azure with simulated hardware: every link, broken one at a time."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from cloister.attest import AppraisalDenied, Claims, ReferenceValues, appraise, verify_evidence
from cloister.attest.appraisal import describe
from cloister.attest.azure import AzureSnpClaims, AzureTdxClaims
from cloister.attest.azure.tdx import cut_quote
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.quote import parse_quote
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.simulated.snp import SimulatedSnpPlatform
from cloister.attest.verifier import vendor_roots
from cloister.errors import BindingMismatch, CloisterError, MalformedInput, UntrustedRoot
from tests.attest.conftest import NOW
from tests.fakes.azure import MEASUREMENT, MR_TD, PCRS, bound, evidence, hcl_report, runtime_data, tdreport
from tests.fakes.p384_pki import issue
from tests.fakes.tpm import NONCE, FakeTpm, encode, event_log, rsa_key

TPM = FakeTpm()
DATA = runtime_data(TPM)


def snp_evidence(platform: SimulatedSnpPlatform, data: bytes = DATA, **more: Any) -> dict[str, Any]:
    """Evidence of a machine on SEV-SNP that brings its VCEK."""
    fields = {"vmpl": more.pop("vmpl", 0)}
    report = platform.quote(bound(data), measurement=MEASUREMENT, **fields)
    vcek = platform.endorsements(NOW).vcek or b""
    return evidence(TPM, hcl_report(report, 2, data), **{"vcek": base64.b64encode(vcek).decode(), **more})


def verify_snp(platform: SimulatedSnpPlatform, document: dict[str, Any], **more: Any) -> AzureSnpClaims:
    """Claims of a machine on SEV-SNP."""
    given = {"endorsements": platform.endorsements(NOW), "roots": [platform.root], **more}
    claims = verify_evidence(
        "az-snp-vtpm", encode(document), given["endorsements"], NOW, roots=given["roots"]
    )
    assert isinstance(claims, AzureSnpClaims)
    return claims


def tdx_evidence(platform: SimulatedPlatform, data: bytes = DATA, **more: Any) -> dict[str, Any]:
    """Evidence of a machine on TDX."""
    quote = platform.quote(bound(data), mr_td=MR_TD)
    report = tdreport(bound(data), parse_quote(quote).body)
    return evidence(TPM, hcl_report(report, 4, data), **{"td_quote": (quote + bytes(70)).hex(), **more})


def verify_tdx(
    platform: SimulatedPlatform, endorsements: DcapEndorsements, document: dict[str, Any], **more: Any
) -> AzureTdxClaims:
    """Claims of a machine on TDX."""
    roots = more.get("roots", [platform.root])
    claims = verify_evidence("az-tdx-vtpm", encode(document), endorsements, NOW, roots=roots)
    assert isinstance(claims, AzureTdxClaims)
    return claims


def check_common(claims: AzureSnpClaims | AzureTdxClaims) -> None:
    """What both kinds of machine say."""
    assert claims.simulated
    assert claims.report_data == NONCE
    assert claims.hardware_report_data == bound(DATA)
    assert claims.user_data == bytes(range(64))
    assert claims.vm_unique_id == "vm-1"
    assert claims.pcrs == PCRS
    assert claims.to_mapping()["pcrs"]["sha256"]["7"] == PCRS["sha256"][7].hex()


def test_machine_on_snp(snp_platform: SimulatedSnpPlatform) -> None:
    """Claims are the hardware's and the virtual TPM's; the VCEK is in the evidence or the endorsements."""
    claims = verify_snp(snp_platform, snp_evidence(snp_platform))
    check_common(claims)
    assert claims.measurement == MEASUREMENT
    assert verify_snp(snp_platform, snp_evidence(snp_platform, vcek=None)).vmpl == 0
    with pytest.raises(MalformedInput, match="certificate"):
        verify_snp(snp_platform, snp_evidence(snp_platform, vcek=None), endorsements=None)


def test_machine_on_tdx(platform: SimulatedPlatform, endorsements: DcapEndorsements) -> None:
    """Claims are the hardware's and the virtual TPM's; zeros after the quote do not matter."""
    claims = verify_tdx(platform, endorsements, tdx_evidence(platform))
    check_common(claims)
    assert claims.mr_td == MR_TD
    assert claims.tcb_status == "UpToDate"


def test_guests_own_report_is_refused(snp_platform: SimulatedSnpPlatform) -> None:
    """A report that the guest asked for at its own level may bind anything, and is refused."""
    with pytest.raises(BindingMismatch, match="VMPL 2"):
        verify_snp(snp_platform, snp_evidence(snp_platform, vmpl=2))


def test_quote_of_another_domain_is_refused(
    platform: SimulatedPlatform, endorsements: DcapEndorsements
) -> None:
    """A genuine quote of another domain, or over other data, does not vouch for the paravisor's report."""
    own = tdx_evidence(platform)
    for quote in (platform.quote(bound(DATA), mr_td=MEASUREMENT), platform.quote(bytes(64), mr_td=MR_TD)):
        with pytest.raises(BindingMismatch):
            verify_tdx(platform, endorsements, {**own, "td_quote": quote.hex()})


def test_quote_of_another_tpm_is_refused(snp_platform: SimulatedSnpPlatform) -> None:
    """A quote that another key signed is refused, as is a certificate of another key."""
    document = snp_evidence(snp_platform)
    other = FakeTpm(rsa_key(3072)).evidence(PCRS)["tpm_quote"]
    with pytest.raises(CloisterError):
        verify_snp(snp_platform, {**document, "tpm_quote": other})
    certificate = issue("ak", issue("root"), authority=False)
    with pytest.raises(BindingMismatch, match="certificate is of another key"):
        verify_snp(snp_platform, {**document, "ak_certificate_pem": certificate.pem.decode()})


@pytest.mark.parametrize(
    "changes",
    [
        {"hcl_report": None},
        {"hcl_report": "AAAA"},
        {"report": "AAAA"},
        {"tpm_quote": None},
        {"tpm_attestation": []},
        {"vcek": "zz"},
        {"vcek": base64.b64encode(bytes(3)).decode()},
        {"event_log": "zz"},
    ],
)
def test_broken_evidence_is_malformed(snp_platform: SimulatedSnpPlatform, changes: dict[str, Any]) -> None:
    """A member that is missing, of another form, or there under two names makes evidence malformed."""
    document = {**snp_evidence(snp_platform), **changes}
    with pytest.raises(MalformedInput):
        verify_snp(snp_platform, {name: value for name, value in document.items() if value is not None})


def test_schemes_are_not_exchanged(
    snp_platform: SimulatedSnpPlatform, platform: SimulatedPlatform, endorsements: DcapEndorsements
) -> None:
    """Evidence and endorsements of one kind of hardware are malformed for the other."""
    with pytest.raises(MalformedInput):
        verify_tdx(platform, endorsements, snp_evidence(snp_platform))
    with pytest.raises(MalformedInput, match="hardware type"):
        verify_snp(snp_platform, tdx_evidence(platform))
    with pytest.raises(MalformedInput):
        verify_snp(snp_platform, snp_evidence(snp_platform), endorsements=endorsements)
    with pytest.raises(MalformedInput):
        verify_evidence("az-tdx-vtpm", encode(tdx_evidence(platform)), None, NOW, roots=[platform.root])


def test_simulation_is_opt_in(
    snp_platform: SimulatedSnpPlatform, platform: SimulatedPlatform, endorsements: DcapEndorsements
) -> None:
    """Simulated hardware is refused unless its root is given, whatever else holds."""
    with pytest.raises(UntrustedRoot):
        verify_snp(snp_platform, snp_evidence(snp_platform), roots=None)
    with pytest.raises(UntrustedRoot):
        verify_tdx(platform, endorsements, tdx_evidence(platform), roots=vendor_roots("az-tdx-vtpm"))


def test_bytes_after_a_quote_are_refused(platform: SimulatedPlatform) -> None:
    """Only zeros may follow a TD quote; they are cut off."""
    quote = platform.quote(bound(DATA), mr_td=MR_TD)
    assert cut_quote(quote + bytes(70)) == quote
    with pytest.raises(MalformedInput, match="follow"):
        cut_quote(quote + b"\x00\x01")


def test_event_log_must_replay(snp_platform: SimulatedSnpPlatform) -> None:
    """A log that does not replay to the quoted PCRs is refused."""
    log = event_log([(4, 4, bytes(4), bytes(4))])
    with pytest.raises(BindingMismatch, match="pcr4"):
        verify_snp(snp_platform, snp_evidence(snp_platform, event_log=log.hex()))


def denied(claims: Claims, table: dict[str, Any]) -> set[str]:
    """Names of the checks that fail."""
    values = ReferenceValues.from_mapping({"allow_simulated": True, claims.scheme: table})
    try:
        appraise(claims, values, NOW)
    except AppraisalDenied as error:
        return {check.name for check in error.result.checks if not check.passed}
    return set()


def test_appraisal(
    snp_platform: SimulatedSnpPlatform, platform: SimulatedPlatform, endorsements: DcapEndorsements
) -> None:
    """Both the hardware's measurement and PCRs must be named; the paravisor's words can be."""
    pcrs = {"pcrs": {"7": [PCRS["sha256"][7].hex()]}}
    snp = verify_snp(snp_platform, snp_evidence(snp_platform))
    tdx = verify_tdx(platform, endorsements, tdx_evidence(platform))
    assert denied(snp, {"measurement": [MEASUREMENT.hex()], **pcrs}) == set()
    assert denied(tdx, {"mr_td": [MR_TD.hex()], **pcrs}) == set()
    assert denied(snp, {}) == {"measurement", "pcrs"}
    assert denied(tdx, {}) == {"mr_td", "pcrs"}
    words = {"user_data": [bytes(64).hex()], "secure_boot": ["false"], "vm_unique_ids": ["vm-2"]}
    more = {"console_enabled": ["true"], "ak_roots": ["CN=x"]}
    assert denied(tdx, {"mr_td": [MR_TD.hex()], **pcrs, **words, **more}) == {*words, *more}


@pytest.mark.parametrize("scheme", ["az-snp-vtpm", "az-tdx-vtpm"])
def test_tables_have_no_name_twice(scheme: str) -> None:
    """The hardware's fields and the virtual TPM's have different names."""
    names = [name for name, _, _ in describe(scheme)]
    assert len(set(names)) == len(names)
