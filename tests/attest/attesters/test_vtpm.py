"""Evidence from a TPM: swtpm, through the real TPM software stack."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attest import ReferenceValues, appraise, verify_evidence
from cloister.attest.attesters import vtpm
from cloister.attest.attesters.vtpm import VtpmAttester
from cloister.attest.tpm.keys import parse_tpmt_public, spki_of
from cloister.attest.tpm.verify import TpmClaims
from cloister.errors import BindingMismatch, KeyUnavailable, MalformedInput, MissingDependencyError
from tests.attest.conftest import NOW, REPORT_DATA
from tests.fakes.swtpm import require_swtpm, software_tpm, write_nv

ENDORSED = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"


@pytest.fixture
def pytss() -> Any:
    """The TPM software stack."""
    return require_swtpm()


@pytest.fixture
def tcti(pytss: Any, tmp_path: Path) -> Iterator[str]:
    """A new TPM."""
    with software_tpm(tmp_path) as address:
        yield address


def verified(attester: VtpmAttester, **roots: Any) -> TpmClaims:
    """The claims of its evidence."""
    evidence = attester.get_evidence(REPORT_DATA)
    claims = verify_evidence(evidence.scheme, evidence.raw, attester.get_endorsements(), NOW, **roots)
    assert isinstance(claims, TpmClaims)
    return claims


def certificate_for(key: Any) -> tuple[x509.Certificate, x509.Certificate]:
    """A root, and a certificate of it for an attestation key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Some vendor's root")])
    signer = ec.generate_private_key(ec.SECP256R1())

    def build(subject: x509.Name, public: Any, *, ca: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )

    leaf = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attestation key")])
    return build(name, signer.public_key(), ca=True), build(leaf, key, ca=False)


def test_key_of_our_own(tcti: str) -> None:
    """A TPM without a provisioned key quotes with one of ours, the same at each use, to be enrolled."""
    attester = VtpmAttester(tcti, event_log=None)
    claims = verified(attester)
    assert (claims.report_data, claims.tcb_status) == (REPORT_DATA, "Uncertified")
    assert set(claims.pcrs) == {"sha256"}
    assert len(claims.pcrs["sha256"]) == 24
    assert verified(attester).hardware_id == claims.hardware_id
    enrolled = {"tpm": {"attestation_keys": [claims.hardware_id], "pcrs": {"0": ["00" * 32]}}}
    assert appraise(claims, ReferenceValues.from_mapping(enrolled), NOW)


def test_evidence_names_the_key_with_its_attributes(tcti: str) -> None:
    """The key goes along as the TPM's own public area, so that a verifier sees that it is restricted."""
    document = json.loads(VtpmAttester(tcti, event_log=None).get_evidence(REPORT_DATA).raw)
    key = parse_tpmt_public(base64.b64decode(document["ak_public"]))
    assert hashlib.sha256(spki_of(key)).hexdigest()
    assert set(document) == {"tpm_quote", "ak_public"}


@pytest.mark.parametrize("algorithm", ["ecc256:ecdsa-sha256:null", "rsa2048:rsassa-sha256:null"])
def test_provisioned_key_with_certificate(tcti: str, pytss: Any, algorithm: str) -> None:
    """A persistent key with a certificate in NV storage, as on Azure, leads to its vendor's root."""
    with pytss.ESAPI(tcti) as tpm:
        public = pytss.TPM2B_PUBLIC.parse(algorithm, objectAttributes=ENDORSED)
        handle, made, *_ = tpm.create_primary(None, public, pytss.ESYS_TR.OWNER)
        tpm.evict_control(pytss.ESYS_TR.OWNER, handle, 0x81000003)
        tpm.flush_context(handle)
        root, certificate = certificate_for(parse_tpmt_public(bytes(made.publicArea.marshal())))
        write_nv(tpm, pytss, 0x01C101D0, certificate.public_bytes(Encoding.DER).ljust(1024, b"\x00"))
    claims = verified(VtpmAttester(tcti, event_log=None), roots=[root])
    assert (claims.tcb_status, claims.simulated) == ("Certified", True)
    assert claims.ak_subject == "CN=attestation key"


def test_key_from_a_template(tcti: str, pytss: Any) -> None:
    """A key that is made from a template in NV storage, as on Google's cloud, is made again each time."""
    template = pytss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=ENDORSED).publicArea
    template.unique.ecc.x = b"\x01" * 32
    with pytss.ESAPI(tcti) as tpm:
        write_nv(tpm, pytss, 0x01C10003, bytes(template.marshal()))
    own = VtpmAttester(tcti, event_log=None)
    first, second = verified(own), verified(own)
    assert first.hardware_id == second.hardware_id


def test_empty_certificate_index(tcti: str, pytss: Any) -> None:
    """An index without a certificate in it counts as no certificate."""
    with pytss.ESAPI(tcti) as tpm:
        public = pytss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=ENDORSED)
        handle, *_ = tpm.create_primary(None, public, pytss.ESYS_TR.OWNER)
        tpm.evict_control(pytss.ESYS_TR.OWNER, handle, 0x81000003)
        tpm.flush_context(handle)
        write_nv(tpm, pytss, 0x01C101D0, bytes(64))
    assert verified(VtpmAttester(tcti, event_log=None)).tcb_status == "Uncertified"


def test_unrestricted_keys_are_not_used(tcti: str, pytss: Any) -> None:
    """A key that would sign a forged quote is refused here, before anybody else has to."""
    free = ENDORSED.replace("|restricted", "")
    with pytss.ESAPI(tcti) as tpm:
        public = pytss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=free)
        handle, *_ = tpm.create_primary(None, public, pytss.ESYS_TR.OWNER)
        tpm.evict_control(pytss.ESYS_TR.OWNER, handle, 0x81010002)
        tpm.flush_context(handle)
    with pytest.raises(KeyUnavailable, match="restricted"):
        VtpmAttester(tcti).get_evidence(REPORT_DATA)


def test_extended_pcr_is_in_the_evidence(tcti: str, pytss: Any) -> None:
    """What is measured after the start is in the next evidence."""
    attester = VtpmAttester(tcti, event_log=None)
    before = verified(attester).pcrs["sha256"][14]
    with pytss.ESAPI(tcti) as tpm:
        tpm.pcr_event(pytss.ESYS_TR.PCR14, b"something was loaded")
    digest = hashlib.sha256(b"something was loaded").digest()
    assert verified(attester).pcrs["sha256"][14] == hashlib.sha256(before + digest).digest()


def test_pcrs_that_keep_changing(tcti: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that were extended between quote and reading are not handed on; after some attempts it fails."""
    attester = VtpmAttester(tcti, event_log=None)
    monkeypatch.setattr(VtpmAttester, "_read_pcrs", lambda self, tpm: dict.fromkeys(range(24), bytes(32)))
    changed = BindingMismatch("PCR values hash to another value")
    monkeypatch.setattr(vtpm, "verify_tpm_quote", lambda part, key: (_ for _ in ()).throw(changed))
    with pytest.raises(KeyUnavailable, match="kept changing"):
        attester.get_evidence(REPORT_DATA)


def test_event_log(tcti: str, pytss: Any, tmp_path: Path) -> None:
    """A log that replays to the PCRs goes along; once a PCR is extended outside of it, it stays behind."""
    content = b"kernel command line"
    with pytss.ESAPI(tcti) as tpm:
        tpm.pcr_event(pytss.ESYS_TR.PCR8, content)
    log = tmp_path / "log"
    log.write_bytes(event_log(8, content))
    attester = VtpmAttester(tcti, event_log=log)
    assert [event["register"] for event in verified(attester).events] == ["pcr8"]
    with pytss.ESAPI(tcti) as tpm:
        tpm.pcr_event(pytss.ESYS_TR.PCR8, b"not logged")
    assert verified(attester).events == ()


def test_no_tpm_there(pytss: Any) -> None:
    """A TPM that cannot be reached is an error that says which one."""
    with pytest.raises(KeyUnavailable, match="/dev/absent"):
        VtpmAttester("device:/dev/absent")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tpm2-pytss the error names the extra that brings it."""

    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingDependencyError) as caught:
        VtpmAttester()
    assert "cloister[tpm]" in caught.value.hint


def test_report_data_has_64_bytes(tcti: str) -> None:
    """Report data of another length is refused."""
    with pytest.raises(MalformedInput):
        VtpmAttester(tcti).get_evidence(b"short")


def event_log(index: int, content: bytes) -> bytes:
    """A log in the crypto-agile form with one event (EV_IPL) of SHA-256.

    Source: TCG PC Client Platform Firmware Profile 1.06, sections 10.2 and 10.4.5.
    """

    def u32(number: int) -> bytes:
        return number.to_bytes(4, "little")

    specification = (
        b"Spec ID Event03\x00" + u32(0) + bytes([0, 2, 0, 2]) + u32(1) + b"\x0b\x00\x20\x00" + b"\x00"
    )
    head = u32(0) + u32(3) + bytes(20) + u32(len(specification)) + specification
    digest = u32(1) + b"\x0b\x00" + hashlib.sha256(content).digest()
    return head + u32(index) + u32(13) + digest + u32(len(content)) + content
