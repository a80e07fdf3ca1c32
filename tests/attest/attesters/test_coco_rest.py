"""Evidence from Confidential Containers' REST service, against a stand-in on loopback."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.attest import verify_evidence
from cloister.attest.attesters.coco_rest import CocoAttester
from cloister.attest.simulated import SimulatedPlatform, SimulatedSnpPlatform
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, TransportError
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA
from tests.fakes.coco import FakeCoco, serve
from tests.vectors import vector


def base64_of(raw: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(raw).decode()


@pytest.fixture
def service(platform: SimulatedPlatform) -> FakeCoco:
    """The service of a TDX guest; its quotes are made by a simulated platform."""

    def evidence(runtime_data: bytes) -> dict[str, Any]:
        return {"cc_eventlog": None, "quote": base64_of(platform.quote(runtime_data, mr_td=MR_TD))}

    return FakeCoco("tdx", evidence)


@pytest.fixture
def url(service: FakeCoco) -> Iterator[str]:
    """Where it listens."""
    with serve(service) as address:
        yield address


def test_tdx_guest(url: str, service: FakeCoco, platform: SimulatedPlatform) -> None:
    """The service hands our 64 bytes to the hardware, and we take the quote out of its answer."""
    attester = CocoAttester(url)
    evidence = attester.get_evidence(REPORT_DATA)
    claims = verify_evidence(
        evidence.scheme, evidence.raw, platform.endorsements(NOW), NOW, roots=[platform.root]
    )
    assert (evidence.scheme, claims.report_data) == ("tdx", REPORT_DATA)
    assert service.runtime_data == [REPORT_DATA]
    assert attester.get_endorsements() is None


def test_any_bytes_reach_the_hardware(url: str, service: FakeCoco) -> None:
    """Report data that needs both special characters of the URL alphabet arrives as it is."""
    report_data = b"\xfb\xef\xff" * 21 + b"\xff"
    CocoAttester(url).get_evidence(report_data)
    assert service.runtime_data == [report_data]


def test_snp_guest(url: str, service: FakeCoco, snp_platform: SimulatedSnpPlatform) -> None:
    """A SEV-SNP report comes as JSON fields; its certificates become the endorsements."""
    endorsements = snp_platform.endorsements(NOW)
    raw = snp_platform.quote(REPORT_DATA, measurement=MR_TD)
    chain = [{"cert_type": "VCEK", "data": list(endorsements.vcek or b"")}]
    service.tee = "snp"
    service.make_evidence = lambda data: {"attestation_report": as_fields(raw), "cert_chain": chain}
    attester = CocoAttester(url)
    evidence = attester.get_evidence(REPORT_DATA)
    found = attester.get_endorsements()
    assert (evidence.scheme, evidence.raw) == ("sev-snp", raw)
    assert found is not None
    assert found.to_mapping()["vcek"] == base64_of(endorsements.vcek or b"")


def test_azure_evidence_stays_as_it_is(url: str, service: FakeCoco) -> None:
    """Where the scheme's evidence is JSON itself, the answer is the evidence."""
    service.tee = "az-snp-vtpm"
    service.raw = b'{"version": 2, "hcl_report": "AA"}'
    evidence = CocoAttester(url).get_evidence(REPORT_DATA)
    assert (evidence.scheme, evidence.raw) == ("az-snp-vtpm", service.raw)


def test_evidence_of_a_real_guest() -> None:
    """The SEV-SNP evidence that a real guest sent to a Trustee service is turned back into a report."""
    document = json.loads(vector("kbs/dev/attestation-service_tests_e2e_evidence.json").read_bytes())
    service = FakeCoco("snp", lambda data: document)
    with serve(service) as address:
        evidence = CocoAttester(address).get_evidence(REPORT_DATA)
    assert len(evidence.raw) == 1184


@pytest.mark.parametrize("tee", [None, "sample", "cca", "se", "", 7])
def test_tees_that_are_not_supported(service: FakeCoco, tee: Any) -> None:
    """A service without attestation, or for another TEE, is an error at the start."""
    service.tee = tee
    with serve(service) as address, pytest.raises(ConfigError):
        CocoAttester(address)


def test_nobody_there() -> None:
    """A closed port is a transport error."""
    with serve(FakeCoco("tdx", lambda data: {})) as address:
        pass
    with pytest.raises(TransportError, match="does not answer"):
        CocoAttester(address)


def test_another_service_there(url: str) -> None:
    """Something else that listens there is not taken for the guest's service."""
    with pytest.raises(TransportError, match="not the guest's"):
        CocoAttester(f"{url}/elsewhere")


def test_hardware_fails(url: str, service: FakeCoco) -> None:
    """What the service says of a failure is passed on."""
    attester = CocoAttester(url)
    service.failure = "TDX Attester: failed to create TSM Report path"
    with pytest.raises(KeyUnavailable, match="500: TDX Attester"):
        attester.get_evidence(REPORT_DATA)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"quote": 7}', b'{"quote": "!"}', b"\xff", b"[" * 5000, b"x" * (1 << 21)]
)
@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_answers_that_are_no_evidence(url: str, service: FakeCoco, tee: str, raw: bytes) -> None:
    """An answer of another form breaks the protocol."""
    service.tee, service.raw = tee, raw
    attester = CocoAttester(url)
    with pytest.raises(TransportError):
        attester.get_evidence(REPORT_DATA)


def test_report_data_has_64_bytes(url: str) -> None:
    """Report data of another length is refused before anything is asked."""
    with pytest.raises(MalformedInput):
        CocoAttester(url).get_evidence(b"short")


def as_fields(raw: bytes) -> dict[str, Any]:
    """A version 5 report as the Rust crate ``sev`` writes it in JSON."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], "little")

    def octets(offset: int, size: int) -> list[int]:
        return list(raw[offset : offset + size])

    def tcb(offset: int) -> dict[str, Any]:
        names = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
        return {"fmc": None, **{name: raw[offset + at] for name, at in names.items()}}

    def firmware(offset: int) -> dict[str, int]:
        return {"build": raw[offset], "minor": raw[offset + 1], "major": raw[offset + 2]}

    return {
        "version": number(0, 4),
        "guest_svn": number(4, 4),
        "policy": number(8, 8),
        "family_id": octets(0x10, 16),
        "image_id": octets(0x20, 16),
        "vmpl": number(0x30, 4),
        "sig_algo": number(0x34, 4),
        "current_tcb": tcb(0x38),
        "plat_info": number(0x40, 8),
        "key_info": number(0x48, 4),
        "report_data": octets(0x50, 64),
        "measurement": octets(0x90, 48),
        "host_data": octets(0xC0, 32),
        "id_key_digest": octets(0xE0, 48),
        "author_key_digest": octets(0x110, 48),
        "report_id": octets(0x140, 32),
        "report_id_ma": octets(0x160, 32),
        "reported_tcb": tcb(0x180),
        "cpuid_fam_id": raw[0x188],
        "cpuid_mod_id": raw[0x189],
        "cpuid_step": raw[0x18A],
        "chip_id": octets(0x1A0, 64),
        "committed_tcb": tcb(0x1E0),
        "current": firmware(0x1E8),
        "committed": firmware(0x1EC),
        "launch_tcb": tcb(0x1F0),
        "launch_mit_vector": number(0x1F8, 8),
        "current_mit_vector": number(0x200, 8),
        "signature": {"r": octets(0x2A0, 72), "s": octets(0x2E8, 72)},
    }
