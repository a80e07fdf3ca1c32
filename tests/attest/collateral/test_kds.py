"""AMD's service: the questions, the answers, and what it does not have."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest import verify_evidence
from cloister.attest.collateral import (
    EvidenceSource,
    HttpFetcher,
    KdsSource,
    get_endorsements,
    read_wanted,
)
from cloister.attest.simulated import SimulatedSnpPlatform
from cloister.attest.snp import SnpEndorsements
from cloister.errors import ConfigError, TransportError
from tests.attest.collateral.conftest import MEASUREMENT
from tests.attest.conftest import NOW, REPORT_DATA
from tests.fakes.pcs import FakeVendors, serving
from tests.vectors import vector

REPORTS = ("v2_milan_vcek_597d1fae", "v3_genoa_vcek_227a641d", "v5_turin_vcek_3f44a09b")
PRODUCT = {name: name.split("_")[1] for name in REPORTS}


def test_a_report_is_verified_with_what_was_fetched(
    kds: KdsSource, report: bytes, snp_platform: SimulatedSnpPlatform, snp_endorsements: SnpEndorsements
) -> None:
    """End to end over HTTP: ask for a report's endorsements, verify the report with them."""
    found = get_endorsements("sev-snp", report, (kds,), NOW)
    assert found == snp_endorsements
    claims = verify_evidence("sev-snp", report, found, NOW, roots=[snp_platform.root])
    assert claims.simulated


@pytest.mark.parametrize("name", REPORTS)
def test_genuine_certificates_survive_the_way(fetcher: HttpFetcher, name: str) -> None:
    """AMD's own certificates, asked for with AMD's own parameters, verify genuine reports."""
    raw = vector(f"snp/dev/{name}.report.bin").read_bytes()
    ask, ark = (_der(vector(f"snp/certs/{kind}_{PRODUCT[name]}.pem")) for kind in ("ask", "ark"))
    listed = x509.load_der_x509_crl(_crl(PRODUCT[name]))
    known = SnpEndorsements(
        vcek=vector(f"snp/dev/{name}.ek.der").read_bytes(), ask=ask, ark=ark, crl=_crl(PRODUCT[name])
    )
    assert listed.next_update_utc is not None
    now = listed.next_update_utc - timedelta(days=1)
    vendors = FakeVendors()
    vendors.add_amd(raw, known)
    with serving(vendors):
        found = get_endorsements("sev-snp", raw, (KdsSource(fetcher, vendors.url),), now)
    assert found == known
    if PRODUCT[name] == "turin":
        found = replace(known, crl=None)
    verify_evidence("sev-snp", raw, found, now)


def test_the_questions_are_those_of_the_interface(
    kds: KdsSource, vendors: FakeVendors, report: bytes, snp_platform: SimulatedSnpPlatform
) -> None:
    """Three requests, with AMD's paths and parameters."""
    kds.find(read_wanted("sev-snp", report), NOW)
    chip = snp_platform.extensions.hwid.hex()
    assert vendors.asked == [
        f"/vcek/v1/Genoa/{chip}?blSPL=10&teeSPL=00&snpSPL=27&ucodeSPL=27",
        "/vcek/v1/Genoa/cert_chain",
        "/vcek/v1/Genoa/crl",
    ]


def test_products_are_tried_in_turn(
    kds: KdsSource, vendors: FakeVendors, snp_platform: SimulatedSnpPlatform
) -> None:
    """A version 2 report does not say its product: the one that knows the chip is right."""
    raw = snp_platform.quote(REPORT_DATA, measurement=MEASUREMENT, version=2)
    found = kds.find(read_wanted("sev-snp", raw), NOW)
    assert found is not None
    assert found.key["product"] == "Genoa"
    assert vendors.asked[0].startswith("/vcek/v1/Milan/")


@pytest.mark.parametrize("part", ["cert_chain", "crl", "Genoa"])
@pytest.mark.parametrize("body", [b"", b"<html></html>", b"\x30\x82\x01", b"-----BEGIN CERTIFICATE-----"])
def test_wrong_content_is_refused(
    kds: KdsSource, vendors: FakeVendors, report: bytes, part: str, body: bytes
) -> None:
    """What is no certificate or CRL is an error of the service."""
    vendors.break_path(part, body=body)
    with pytest.raises(TransportError):
        kds.find(read_wanted("sev-snp", report), NOW)


def test_a_chip_that_amd_does_not_know(kds: KdsSource, snp_platform: SimulatedSnpPlatform) -> None:
    """404 for a chip is an error that says so."""
    raw = bytearray(snp_platform.quote(REPORT_DATA, measurement=MEASUREMENT))
    raw[0x1A0] ^= 1
    with pytest.raises(TransportError, match="404"):
        kds.find(read_wanted("sev-snp", bytes(raw)), NOW)


def test_a_masked_chip_gets_the_chain_only(
    kds: KdsSource, vendors: FakeVendors, report: bytes, snp_platform: SimulatedSnpPlatform
) -> None:
    """No certificate can be asked for a chip that hides; its host's table has it, AMD the CRL."""
    raw = bytearray(report)
    raw[0x1A0:0x1E0] = bytes(64)
    masked = bytes(raw)
    with pytest.raises(ConfigError, match="no certificate of the key"):
        get_endorsements("sev-snp", masked, (kds,), NOW)
    assert not any("?" in target for target in vendors.asked)
    both = get_endorsements("sev-snp", masked + snp_platform.certificate_table(), (kds,), NOW)
    assert isinstance(both, SnpEndorsements)
    assert (both.vcek, both.crl is not None) == (None, True)


def test_a_later_source_brings_the_key(
    kds: KdsSource, report: bytes, snp_endorsements: SnpEndorsements
) -> None:
    """What came beside the evidence completes what AMD's service has: nothing of either is lost."""
    raw = bytearray(report)
    raw[0x1A0:0x1E0] = bytes(64)
    beside = EvidenceSource(SnpEndorsements(vcek=snp_endorsements.vcek).to_mapping())
    assert get_endorsements("sev-snp", bytes(raw), (kds, beside), NOW) == snp_endorsements


def _der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def _crl(product: str) -> bytes:
    """AMD's CRL; there is no genuine one of Turin here, another product's stands in for the way."""
    product = "genoa" if product == "turin" else product
    return sorted(vector("snp/crl").glob(f"amd_{product}_crl_*.der"))[-1].read_bytes()
