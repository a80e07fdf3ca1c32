"""Genuine reports of NVIDIA: verdicts, claims and revocation as stated, and every listed mutation."""

from __future__ import annotations

import json
import statistics
import struct
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.nvidia import NvidiaClaims, NvidiaEndorsements
from cloister.attest.nvidia.evidence import parse_evidence
from cloister.attest.nvidia.ocsp import check_revocation
from cloister.attest.nvidia.report import parse_report
from cloister.attest.nvidia.rim import open_rim
from cloister.attest.nvidia.roots import device_roots, is_device_root, is_rim_root, rim_roots
from cloister.attest.p384 import Chain, open_chain, split_pem
from cloister.errors import BadSignature, MalformedInput, StaleEvidence, UntrustedRoot, VerificationError
from tests.attest.nitro.test_vectors import entries
from tests.attest.test_dcap_vectors import mutate
from tests.fakes.nvidia import FakeNvidia
from tests.vectors import vector

DECLARED = (VerificationError, MalformedInput)
# Devices' certificates hold until the year 9999; the manifests' and the OCSP responses' dates differ.
NOW = datetime(2025, 8, 21, 12, tzinfo=UTC)
RIM_NOW = datetime(2025, 10, 24, 20, tzinfo=UTC)
HOPPER = "nvidia/dev/hopper_550.90.07"
DRIVER_RIM = "nvidia/dev/rim/NV_GPU_DRIVER_GH100_550.90.07.xml"
VBIOS_RIM = "nvidia/dev/rim/NV_GPU_VBIOS_1010_0200_882_96009F0001.xml"

EXPECTED: dict[str, dict[str, Any]] = {entry["file"]: entry["expected"] for entry in entries("nvidia")}
REPORTS = [file for file in EXPECTED if file.endswith(".report.bin")]
LISTS = [file for file in EXPECTED if file.endswith(".evidence.json")]
MUTATIONS = [
    (entry["file"], index)
    for entry in entries("nvidia-mutations")
    for index in range(len(json.loads(vector(entry["file"]).read_text())["mutations"]))
]
needs_vectors = pytest.mark.skipif(not REPORTS, reason="no test vectors")


def chain_of(report: str) -> str:
    """PEM of the chain that belongs to a report."""
    return vector(report.replace(".report.bin", ".chain.pem")).read_text()


def verify(report: str, raw: bytes | None = None, now: datetime = NOW, **members: Any) -> NvidiaClaims:
    """Verify a report under NVIDIA's pinned keys."""
    endorsements = NvidiaEndorsements.from_mapping({"certificate_chain": chain_of(report), **members})
    claims = verify_evidence("nvidia", vector(report).read_bytes() if raw is None else raw, endorsements, now)
    assert isinstance(claims, NvidiaClaims)
    return claims


def responses(pattern: str) -> list[str]:
    """OCSP responses as hexadecimal."""
    folder: Path = vector("nvidia/dev/ocsp")
    return [path.read_bytes().hex() for path in sorted(folder.glob(pattern))]


def manifests() -> dict[str, Any]:
    """The two manifests of the Hopper report."""
    return {"driver_rim": vector(DRIVER_RIM).read_text(), "vbios_rim": vector(VBIOS_RIM).read_bytes().hex()}


@pytest.mark.parametrize("file", REPORTS)
def test_report_has_its_verdict(file: str) -> None:
    """Each report is genuine, and has the fields that the manifest states."""
    expected = EXPECTED[file]
    claims = verify(file)
    assert expected["verdict"].startswith("accept")
    assert not claims.simulated
    assert claims.report_data.hex() == expected["request_nonce"]
    assert claims.driver_version == (expected["driver_version"] or "")
    assert len(claims.measurements) == expected["measurement_blocks"]
    assert claims.fwid_in_report == expected["fwid_ext_in_leaf_contains_report_fwid"]
    assert claims.fwid.hex().startswith(expected["opaque"].get("FWID", ""))
    assert (claims.measres, claims.ocsp_status) == ("not-run", "not-checked")
    raw = parse_report(vector(file).read_bytes()).opaque
    for name in ("BOARD_ID", "CPRINFO", "PROTECTED_PCIE_STATUS", "OPAQUE_DATA_VERSION", "FEATURE_FLAG"):
        ours = {"CPRINFO": "cpr_info"}.get(name, name.lower())
        assert raw.get(ours, b"").hex() == expected["opaque"].get(name, "")


@pytest.mark.parametrize("file", LISTS)
def test_list_of_the_sdk(file: str) -> None:
    """A list as NVIDIA's SDK writes it brings report, chain and nonce itself."""
    raw = vector(file).read_bytes()
    claims = verify_evidence("nvidia", raw, None, NOW)
    assert isinstance(claims, NvidiaClaims)
    (device,) = json.loads(raw)
    assert claims.report_data.hex() == device["nonce"]
    assert claims.arch == device["arch"]
    assert parse_evidence(raw).report == vector(file.replace(".evidence.json", "_0.report.bin")).read_bytes()
    for member, value in (("nonce", "00" * 32), ("arch", "BLACKWELL")):
        with pytest.raises(VerificationError):
            verify_evidence("nvidia", json.dumps([device | {member: value}]).encode(), None, NOW)
    with pytest.raises(MalformedInput, match="2 devices"):
        verify_evidence("nvidia", json.dumps([device, device]).encode(), None, NOW)
    guest = json.dumps({"device_evidence_list": [device | {"uuid": "GPU-1"}]}).encode()
    assert verify_evidence("nvidia", guest, None, NOW) == claims


@pytest.mark.parametrize(("file", "index"), MUTATIONS)
def test_listed_mutations(file: str, index: int) -> None:
    """Every listed change is refused but the one zero byte that some tools append, which is stated as OK."""
    document = json.loads(vector(file).read_text())
    mutation = document["mutations"][index]
    raw = mutate(vector(document["base"]).read_bytes(), mutation["ops"])
    if mutation["result"] == "OK":
        assert verify(document["base"], raw) == verify(document["base"])
        return
    with pytest.raises(DECLARED):
        verify(document["base"], raw)


@needs_vectors
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """Whichever byte of a genuine report is changed, it is refused; so is every truncation."""
    file = data.draw(st.sampled_from(REPORTS))
    raw = bytearray(vector(file).read_bytes().removesuffix(b"\0" if "coco" in file else b""))
    at = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DECLARED):
        verify(file, bytes(raw[:at]))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DECLARED):
        verify(file, bytes(raw))


@needs_vectors
@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 3700), flip=st.integers(1, 255))
def test_chain_cannot_be_changed(at: int, flip: int) -> None:
    """Whichever byte of a certificate is changed, the report is refused."""
    ders = [bytearray(der) for der in split_pem(chain_of(f"{HOPPER}.report.bin").encode(), "chain")]
    for der in ders:
        if at < len(der):
            der[at] ^= flip
            break
        at -= len(der)
    else:
        return
    with pytest.raises(DECLARED):
        verify(f"{HOPPER}.report.bin", certificate_chain=[bytes(der).hex() for der in ders])


@needs_vectors
def test_measurements_match_the_manifests() -> None:
    """The Hopper report matches its driver's and its VBIOS's manifest, index for index plus one."""
    claims = verify(f"{HOPPER}.report.bin", now=RIM_NOW, **manifests())
    assert (claims.measres, claims.secboot, claims.dbgstat) == ("success", True, "disabled")
    for entry in entries("nvidia-rim"):
        rim = open_rim(vector(entry["file"]).read_bytes(), rim_roots(), "manifest")
        assert (rim.version, rim.product) == (
            entry["expected"]["meta"]["colloquialVersion"],
            entry["expected"]["meta"]["product"],
        )
        assert len(rim.golden) == entry["expected"]["active"]
        matching = [index for index, golden in rim.golden.items() if claims.measurements[index] in golden]
        assert len(matching) == entry["expected"]["matches_idx_plus1"]
        shifted = [i for i, golden in rim.golden.items() if claims.measurements.get(i - 1) in golden]
        assert len(shifted) == entry["expected"]["matches_idx"]


@needs_vectors
def test_manifests_of_another_device() -> None:
    """A manifest of another version, swapped, altered or expired is refused."""
    with pytest.raises(VerificationError, match="version"):
        verify("nvidia/dev/hopper_580.159.03.report.bin", now=RIM_NOW, **manifests())
    swapped = {"driver_rim": manifests()["vbios_rim"]}
    with pytest.raises(VerificationError, match="version"):
        verify(f"{HOPPER}.report.bin", now=RIM_NOW, **swapped)
    altered = manifests()["driver_rim"].replace('active="True"', 'active="False"', 1)
    with pytest.raises(BadSignature):
        verify(f"{HOPPER}.report.bin", now=RIM_NOW, driver_rim=altered)
    with pytest.raises(StaleEvidence):
        verify(f"{HOPPER}.report.bin", now=datetime(2026, 6, 2, tzinfo=UTC), **manifests())
    with pytest.raises(UntrustedRoot):
        open_rim(vector(DRIVER_RIM).read_bytes(), device_roots(), "manifest")


@needs_vectors
@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 20_000), flip=st.integers(1, 127))
def test_manifest_cannot_be_changed(at: int, flip: int) -> None:
    """A changed byte of a manifest is refused, unless the XML means the same."""
    original = vector(DRIVER_RIM).read_bytes()
    changed = bytearray(original)
    changed[at % len(changed)] ^= flip
    try:
        rim = open_rim(bytes(changed), rim_roots(), "manifest")
    except DECLARED:
        return
    assert rim == open_rim(original, rim_roots(), "manifest")


@needs_vectors
def test_ocsp_of_the_device() -> None:
    """OCSP responses on the three certificates above the leaf make the status good, while they hold."""
    found = responses("test_gpu_certificate*")
    assert verify(f"{HOPPER}.report.bin", ocsp=found).ocsp_status == "good"
    assert verify(f"{HOPPER}.report.bin", ocsp=found[1:]).ocsp_status == "not-checked"
    for now in (datetime(2025, 8, 22, 6, 48, tzinfo=UTC), datetime(2025, 8, 21, 6, 47, 6, tzinfo=UTC)):
        with pytest.raises(StaleEvidence):
            verify(f"{HOPPER}.report.bin", now=now, ocsp=found)


@pytest.mark.parametrize("entry", entries("nvidia-ocsp"), ids=lambda entry: Path(entry["file"]).stem)
def test_each_ocsp_response(entry: dict[str, Any]) -> None:
    """Each response says *good* of the one certificate that it names, and a changed one is refused."""
    der = vector(entry["file"]).read_bytes()
    now = datetime.fromisoformat(entry["expected"]["this_update"])
    device = split_pem(chain_of(f"{HOPPER}.report.bin").encode(), "chain")
    chains = [
        open_chain(device, device_roots(), "chain", 3),
        *(open_rim(vector(file).read_bytes(), rim_roots(), "m").chain for file in (DRIVER_RIM, VBIOS_RIM)),
    ]
    serial = int(entry["expected"]["serial"], 16)
    places = [
        (chain, place)
        for chain in chains
        for place, certificate in enumerate(chain.certificates)
        if certificate.serial_number == serial
    ]
    assert places
    for chain, place in places:
        assert check_revocation([der], chain, subjects=slice(place, place + 1), now=now)
        for at in range(0, len(der), 29):
            changed = der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
            assert not counts(changed, chain, slice(place, place + 1), now), f"byte {at}"


def counts(der: bytes, chain: Chain, subjects: slice, now: datetime) -> bool:
    """Whether a response is believed."""
    try:
        return check_revocation([der], chain, subjects=subjects, now=now)
    except DECLARED:
        return False


@needs_vectors
def test_claims_of_nvtrust() -> None:
    """What NVIDIA's own verifier reads from the Hopper report is what we read."""
    expected = json.loads(vector("nvidia/dev/claims/hopper_nvtrust_expected_claims.txt").read_text())
    claims = verify(f"{HOPPER}.report.bin")
    assert {str(i): value.hex() for i, value in claims.measurements.items()} == expected["measurements"]
    assert claims.arch.lower() == expected["arch"].lower()
    config = expected["config"]
    assert claims.vbios_version.lower() == config["vbios_version"]
    assert claims.driver_version == config["driver_version"]
    same = ("board_id", "chip_sku", "chip_sku_mod", "cpr_info", "fwid", "gpu_info", "project", "project_sku")
    assert {name: claims.opaque[name] for name in same} == {name: config[name] for name in same}
    counts = struct.unpack("<64I", bytes.fromhex(claims.opaque["measurement_count"]))
    assert {str(i): count for i, count in enumerate(counts, 1)} == config["measurement_count"]


@needs_vectors
@pytest.mark.parametrize(
    ("file", "name", "report"),
    [
        ("hopperClaimsv3_decoded.json", "GPU-0", f"{HOPPER}.report.bin"),
        ("switch_decoded.json", "SWITCH-0", "nvidia/dev/switch_ls10.report.bin"),
    ],
)
def test_claims_of_nras(file: str, name: str, report: str) -> None:
    """Identity, versions and nonce are those that NVIDIA's remote service states of the same report."""
    expected = json.loads(vector(f"nvidia/dev/claims/{file}").read_text())[name]
    extra = manifests() if name == "GPU-0" else {}
    claims = verify(report, now=RIM_NOW, **extra)
    assert (claims.hwmodel, claims.ueid) == (expected["hwmodel"], expected["ueid"])
    assert claims.report_data.hex() == expected["eat_nonce"]
    if name == "GPU-0":
        assert claims.driver_version == expected["x-nvidia-gpu-driver-version"]
        assert claims.vbios_version == expected["x-nvidia-gpu-vbios-version"]
        found = (claims.measres, claims.secboot, claims.dbgstat)
        assert found == (expected["measres"], expected["secboot"], expected["dbgstat"])
    else:
        assert claims.vbios_version == expected["x-nvidia-switch-bios-version"]


@needs_vectors
def test_parse_of_the_sdk() -> None:
    """The response is read as NVIDIA's SDK reads it: nonce, signature, every measurement."""
    expected = json.loads(vector("nvidia/dev/claims/spdm_parsed_output.json").read_text())
    raw = vector("nvidia/dev/hopper_580.159.03.report.bin").read_bytes()
    report = parse_report(raw)
    assert report.signature.hex() == expected["Signature"][2:]
    assert raw[45 + expected["MeasurementRecordLength"] :][:32].hex() == expected["Nonce"][2:]
    blocks = expected["MeasurementRecord"]["MeasurementBlocks"]
    assert {str(i): f"0x{value.hex()}" for i, value in report.measurements.items()} == {
        index: block["DMTFSpecMeasurementValue"] for index, block in blocks.items()
    }


@pytest.mark.parametrize(
    "entry",
    [entry for entry in entries("nvidia-cert") if "subjects" in entry["expected"]],
    ids=lambda entry: Path(entry["file"]).stem,
)
def test_each_chain(entry: dict[str, Any]) -> None:
    """Each device chain has the stated subjects, leaf first, and ends in NVIDIA's pinned key."""
    chain = open_chain(split_pem(vector(entry["file"]).read_bytes(), "chain"), device_roots(), "chain", 3)
    subjects = [certificate.subject.rfc4514_string() for certificate in chain.certificates]
    expected = entry["expected"]["subjects"]
    assert len(subjects) == len(expected)
    assert all(ours.startswith(theirs) for ours, theirs in zip(subjects, expected, strict=True))
    assert is_device_root(chain.root)


@needs_vectors
def test_roots_are_pinned() -> None:
    """The embedded roots are the vectors' own, and no other certificate has their keys."""
    for file, roots in (("device_identity_root", device_roots()), ("rim_root", rim_roots())):
        (der,) = split_pem(vector(f"nvidia/certs/{file}.pem").read_bytes(), "root")
        digest = hashes.Hash(hashes.SHA256())
        digest.update(der)
        assert roots[0].fingerprint(hashes.SHA256()) == digest.finalize()
    assert is_device_root(device_roots()[0])
    assert is_rim_root(rim_roots()[0])
    assert not is_device_root(rim_roots()[0])
    assert not is_rim_root(FakeNvidia().root)


@needs_vectors
def test_time_of_verification() -> None:
    """With chains and manifests cached a report takes little more than one signature."""
    raw = vector(f"{HOPPER}.report.bin").read_bytes()
    chain = {"certificate_chain": chain_of(f"{HOPPER}.report.bin")}
    endorsements = NvidiaEndorsements.from_mapping({**chain, **manifests()})
    samples = []
    for _ in range(100):
        begin = time.perf_counter()
        verify_evidence("nvidia", raw, endorsements, RIM_NOW)
        samples.append(time.perf_counter() - begin)
    print(f"NVIDIA verification: {statistics.median(samples) * 1e3:.2f} ms")
    assert statistics.median(samples) < 0.01  # the figure is kept by the benchmark
