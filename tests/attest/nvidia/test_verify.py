"""Is a report genuine and its firmware known? On simulated devices, where every part can be forged."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.nvidia import NvidiaClaims, NvidiaEndorsements
from cloister.attest.verifier import parse_endorsements
from cloister.errors import (
    BadSignature,
    BindingMismatch,
    ConfigError,
    EndorsementMismatch,
    MalformedInput,
    Revoked,
    StaleEvidence,
    UntrustedRoot,
)
from tests.attest.conftest import NOW
from tests.fakes.nvidia import (
    DRIVER,
    FWID,
    GOLDEN_DRIVER,
    GOLDEN_VBIOS,
    MEASUREMENTS,
    NONCE,
    OPAQUE,
    VBIOS,
    FakeGpu,
    FakeNvidia,
    composite_device_id,
)
from tests.fakes.p384_pki import issue


@pytest.fixture(scope="module")
def vendor() -> FakeNvidia:
    """A simulated NVIDIA."""
    return FakeNvidia()


@pytest.fixture(scope="module")
def gpu(vendor: FakeNvidia) -> FakeGpu:
    """A device of it."""
    return vendor.gpu()


def verify(gpu: FakeGpu, raw: bytes | None = None, **changes: object) -> NvidiaClaims:
    """Verify under the simulated root, without OCSP responses unless they are given."""
    raw = gpu.report() if raw is None else raw
    endorsements = gpu.endorsements(**changes)  # type: ignore[arg-type]
    claims = verify_evidence("nvidia", raw, endorsements, NOW, roots=[gpu.vendor.root])
    assert isinstance(claims, NvidiaClaims)
    return claims


def denied(claims: NvidiaClaims, **table: object) -> set[str]:
    """Names of the checks that fail."""
    values = ReferenceValues.from_mapping({"allow_simulated": True, "nvidia": table})
    try:
        appraise(claims, values, NOW)
    except AppraisalDenied as error:
        return {check.name for check in error.result.checks if not check.passed}
    return set()


def test_simulated_device(gpu: FakeGpu) -> None:
    """A good report has its claims, matches its manifests, and is simulated."""
    claims = verify(gpu, ocsp=gpu.ocsp(NOW))
    assert claims.simulated
    assert (claims.report_data, claims.fwid, claims.fwid_in_report) == (NONCE, FWID, True)
    assert (claims.driver_version, claims.vbios_version, claims.mode) == (DRIVER, VBIOS, "SPT")
    assert (claims.measres, claims.secboot, claims.ocsp_status) == ("success", True, "good")
    assert json.loads(json.dumps(claims.to_mapping()))["measurements"]["2"] == "02" * 48
    assert denied(claims) == set()
    with pytest.raises(UntrustedRoot):
        verify_evidence("nvidia", gpu.report(), gpu.endorsements(), NOW)


def test_signature_of_another_device(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """A report that another device signed is refused."""
    with pytest.raises(BadSignature):
        verify(gpu, vendor.gpu().report())


def test_firmware_identity(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """The report's firmware identity must be the certificate's; a report without one shows the latter."""
    with pytest.raises(EndorsementMismatch, match="firmware identity"):
        verify(vendor.gpu(fwid=b"\x0e" * 48))
    silent = {kind: value for kind, value in OPAQUE.items() if kind != 20}
    claims = verify(gpu, gpu.report(opaque=silent))
    assert (claims.fwid, claims.fwid_in_report) == (FWID, False)
    with pytest.raises(MalformedInput, match="no TCG extension"):
        verify(vendor.gpu(fwid=bytes(48)))
    with pytest.raises(MalformedInput, match="FWID"):
        verify(gpu, gpu.report(opaque=OPAQUE | {20: FWID[:47]}))


def test_identity_of_another_device(vendor: FakeNvidia) -> None:
    """A certificate that states another device's key is refused, and so is one without the extension."""
    gpu, other = vendor.gpu(), vendor.gpu()
    extension = ((composite_device_id(other.device), False),)
    gpu.leaf = issue("LF", gpu.device, authority=False, extensions=extension)
    gpu.chain = (gpu.leaf, *gpu.chain[1:])
    with pytest.raises(EndorsementMismatch, match="another device"):
        verify(gpu)
    bare = issue("LF", gpu.device, authority=False)
    gpu.leaf, gpu.chain = bare, (bare, *gpu.chain[1:])
    with pytest.raises(MalformedInput, match="no TCG extension"):
        verify(gpu)


@pytest.mark.parametrize(
    "der", ["", "30", "3080", "300300", "04020000", "3003020101", "3083000001aa", "3f0100", "300a0201010400"]
)
def test_malformed_extension(vendor: FakeNvidia, der: str) -> None:
    """An extension that is not what TCG defines is malformed."""
    gpu = vendor.gpu()
    value = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), bytes.fromhex(der))
    gpu.leaf = issue("LF", gpu.device, authority=False, extensions=((value, False),))
    gpu.chain = (gpu.leaf, *gpu.chain[1:])
    with pytest.raises(MalformedInput):
        verify(gpu)


def test_measurements(gpu: FakeGpu) -> None:
    """A changed or missing measurement fails the comparison; the verdict names it."""
    for measurements in (MEASUREMENTS | {4: bytes(48)}, {k: v for k, v in MEASUREMENTS.items() if k != 4}):
        claims = verify(gpu, gpu.report(measurements=measurements))
        assert (claims.measres, claims.mismatched_measurements) == ("fail", ("driver 4",))
        assert (claims.secboot, claims.dbgstat) == (False, "undefined")
        assert denied(claims, insecure_skip_ocsp=True) == {"measres"}
    for missing in ({"driver_rim": None}, {"vbios_rim": None}):
        assert verify(gpu, **missing).measres == "not-run"


def test_switched_off_decoder(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """The measurement of video decoder 0 counts only where it is switched on."""
    rim = vendor.rim(DRIVER, GOLDEN_DRIVER | {36: b"\x24" * 48})
    assert verify(gpu, driver_rim=rim).measres == "success"
    enabled = gpu.report(opaque=OPAQUE | {11: b"\xaa"})
    assert verify(gpu, enabled, driver_rim=rim).mismatched_measurements == ("driver 36",)


def test_conflict_of_manifests(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """Two manifests that claim the same index fail the comparison."""
    rim = vendor.rim(VBIOS, GOLDEN_VBIOS | {2: GOLDEN_DRIVER[2]})
    assert verify(gpu, vbios_rim=rim).mismatched_measurements == ("conflict 2",)


def test_forged_manifests(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """A manifest of a stranger, for another version, changed, or with an expired signer is refused."""
    stranger = FakeNvidia()
    with pytest.raises(UntrustedRoot):
        verify(gpu, driver_rim=stranger.rim(DRIVER, GOLDEN_DRIVER))
    with pytest.raises(EndorsementMismatch, match="version"):
        verify(gpu, driver_rim=vendor.rim("1.0", GOLDEN_DRIVER))
    rim = vendor.rim(DRIVER, GOLDEN_DRIVER)
    with pytest.raises(BadSignature):
        verify(gpu, driver_rim=rim.replace(b'index="1"', b'index="9"'))
    hour = timedelta(hours=1)
    expired = issue("RIM Signer", vendor.rim_chain[1], authority=False, end=NOW - hour)
    with pytest.raises(StaleEvidence):
        verify(gpu, driver_rim=vendor.rim(DRIVER, GOLDEN_DRIVER, (expired, *vendor.rim_chain[1:])))
    usurper = (issue("RIM Signer", vendor.rim_chain[1], authority=False), *vendor.rim_chain)
    with pytest.raises((EndorsementMismatch, BadSignature)):
        verify(gpu, driver_rim=vendor.rim(DRIVER, GOLDEN_DRIVER, usurper))


def test_responder_is_no_signer(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """A certificate for OCSP responses, though of the same authority, signs no manifest."""
    chain = (vendor.responder(vendor.rim_chain[1]), *vendor.rim_chain[1:])
    with pytest.raises(MalformedInput, match="critical extension"):
        verify(gpu, driver_rim=vendor.rim(DRIVER, GOLDEN_DRIVER, chain))


def test_revocation(gpu: FakeGpu) -> None:
    """A revoked certificate, of the device or of a manifest's signer, is refused."""
    for holder in (gpu.device, gpu.vendor.identity, *gpu.vendor.rim_chain[:2]):
        with pytest.raises(Revoked):
            verify(gpu, ocsp=gpu.ocsp(NOW, revoked=holder))


def test_ocsp_is_asked_for(gpu: FakeGpu) -> None:
    """Without a response on every certificate the reference values refuse, unless told otherwise."""
    claims = verify(gpu, ocsp=gpu.ocsp(NOW)[1:])
    assert claims.ocsp_status == "not-checked"
    assert denied(claims) == {"ocsp_missing"}
    assert denied(claims, insecure_skip_ocsp=True) == set()


def test_ocsp_signers(vendor: FakeNvidia, gpu: FakeGpu) -> None:
    """A responder counts if the issuer has appointed it, and only then."""
    begin = NOW - timedelta(hours=1)
    rest = gpu.ocsp(NOW)[1:]
    appointed = vendor.ocsp(gpu.device, vendor.identity, begin, responder=vendor.responder(vendor.identity))
    assert verify(gpu, ocsp=(appointed, *rest)).ocsp_status == "good"
    for responder in (
        vendor.responder(vendor.identity, appointed=False),
        vendor.responder(vendor.root_holder),
        gpu.leaf,
    ):
        with pytest.raises(BadSignature):
            verify(gpu, ocsp=(vendor.ocsp(gpu.device, vendor.identity, begin, responder=responder), *rest))
    for late in (NOW - timedelta(days=2), NOW + timedelta(minutes=1)):
        with pytest.raises(StaleEvidence):
            verify(gpu, ocsp=(vendor.ocsp(gpu.device, vendor.identity, late), *rest))


def test_json_evidence(gpu: FakeGpu, endorsements: DcapEndorsements) -> None:
    """Evidence that brings its chain needs no endorsements; its nonce must be the report's."""
    device = {
        "arch": "HOPPER",
        "nonce": NONCE.hex(),
        "evidence": base64.b64encode(gpu.report()).decode(),
        "certificate": base64.b64encode(b"".join(holder.pem for holder in gpu.chain)).decode(),
    }
    raw = json.dumps(device).encode()
    assert verify_evidence("nvidia", raw, None, NOW, roots=[gpu.vendor.root]).report_data == NONCE
    other = json.dumps(device | {"nonce": "00" * 32}).encode()
    with pytest.raises(BindingMismatch):
        verify_evidence("nvidia", other, None, NOW, roots=[gpu.vendor.root])
    with pytest.raises(MalformedInput, match="without its certificate chain"):
        verify_evidence("nvidia", gpu.report(), None, NOW, roots=[gpu.vendor.root])
    with pytest.raises(MalformedInput, match="another vendor"):
        verify_evidence("nvidia", raw, endorsements, NOW)


def test_chain_without_its_root(gpu: FakeGpu) -> None:
    """A chain may leave out the root, which the verifier has; it may not leave out anything else."""
    ders = tuple(holder.der for holder in gpu.chain)
    assert verify(gpu, certificate_chain=ders[:-1]).simulated
    with pytest.raises((UntrustedRoot, BadSignature)):
        verify(gpu, certificate_chain=(ders[0], *ders[2:]))
    with pytest.raises(MalformedInput):
        verify(gpu, certificate_chain=ders[:2])


def test_appraisal(gpu: FakeGpu) -> None:
    """Each field is compared where it is given; an empty list denies; index errors are found early."""
    claims = verify(gpu, ocsp=gpu.ocsp(NOW))
    good: dict[str, object] = {
        "hwmodel": ["GH100 A01 FAKE BROM"],
        "arch": ["HOPPER"],
        "driver_version": [DRIVER],
        "vbios_version": [VBIOS],
        "mode": ["SPT"],
        "fwid": [FWID.hex()],
        "hardware_ids": [f"{gpu.device.certificate.serial_number:X}"],
        "measurements": {"2": ["02" * 48, "00" * 48]},
    }
    bad: dict[str, object] = {
        "hwmodel": ["GB100"],
        "arch": ["LS10"],
        "driver_version": [],
        "vbios_version": ["1"],
        "mode": ["MPT"],
        "fwid": ["00" * 48],
        "hardware_ids": ["1"],
        "measurements": {"2": ["00" * 48]},
    }
    assert denied(claims, **good) == set()
    assert denied(claims, **bad) == set(bad)
    assert denied(claims, measurements={}) == {"measurements"}
    assert denied(replace(claims, debug=True)) == {"debug"}
    malformed: list[Any] = [[], {"0": []}, {"x": []}, {"1": "00"}, {"1": ["zz"]}, {"1": ["00"]}]
    for wrong in malformed:
        with pytest.raises(ConfigError):
            denied(claims, measurements=wrong)


def test_endorsements(gpu: FakeGpu) -> None:
    """Endorsements survive their JSON form, and are read from each form that they come in."""
    original = gpu.endorsements(NOW)
    assert parse_endorsements("nvidia", json.loads(json.dumps(original.to_mapping()))) == original
    pem = b"".join(holder.pem for holder in gpu.chain)
    rim = base64.b64encode(original.driver_rim or b"").decode()
    for chain in (pem.decode(), base64.b64encode(pem).decode(), [holder.der.hex() for holder in gpu.chain]):
        for manifest in (rim, {"rim": rim, "id": "x"}, (original.driver_rim or b"").decode()):
            read = NvidiaEndorsements.from_mapping({"certificate": chain, "driver_rim": manifest})
            assert read.certificate_chain == original.certificate_chain
            assert read.driver_rim == original.driver_rim
    wrong: list[dict[str, Any]] = [
        {"x": 1},
        {"ocsp": "00"},
        {"ocsp": ["zz!"]},
        {"driver_rim": 1},
        {"certificate": "-----BEGIN"},
    ]
    for mapping in wrong:
        with pytest.raises(MalformedInput):
            NvidiaEndorsements.from_mapping(mapping)
    assert "4 certificates" in repr(original)
