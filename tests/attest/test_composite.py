"""One verdict on a CPU TEE and its devices, on a simulated TDX platform with simulated GPUs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cloister.attest import ReferenceValues, TrustTier
from cloister.attest.binding import report_data_for, runtime_data_digest
from cloister.attest.composite import (
    Binding,
    CompositeDenied,
    CompositeResult,
    Part,
    RuntimeBinding,
    TrusteeBinding,
    device_nonce_for,
    verify_composite,
)
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.nvidia.report import parse_report
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import BadSignature, BindingMismatch, MalformedInput, Revoked, VerificationError
from tests.attest.conftest import MR_TD, NOW
from tests.fakes.nvidia import MEASUREMENTS, FakeGpu, FakeNvidia
from tests.vectors import vector

RUNTIME: dict[str, Any] = {"nonce": "bm9uY2U=", "tls-key": "a2V5"}
BINDING = RuntimeBinding(RUNTIME)


class Machine:
    """A TDX platform with two GPUs."""

    def __init__(self, platform: SimulatedPlatform, endorsements: DcapEndorsements) -> None:
        self.platform = platform
        self.endorsements = endorsements
        self.vendor = FakeNvidia()
        self.gpus = [self.vendor.gpu(), self.vendor.gpu()]

    def cpu(self, report_data: bytes | None = None, **options: Any) -> Part:
        """Evidence of the TD."""
        report_data = BINDING.cpu_report_data() if report_data is None else report_data
        return Part(
            name="cpu0",
            scheme="tdx",
            evidence=self.platform.quote(report_data, mr_td=MR_TD, **options),
            endorsements=self.endorsements,
            roots=[self.platform.root],
        )

    def gpu(self, index: int, nonce: bytes | None = None, **options: Any) -> Part:
        """Evidence of a GPU."""
        gpu: FakeGpu = self.gpus[index]
        return Part(
            name=f"gpu{index}",
            scheme="nvidia",
            evidence=gpu.report(BINDING.device_nonce() if nonce is None else nonce, **options),
            endorsements=gpu.endorsements(NOW),
            roots=[self.vendor.root],
        )


@pytest.fixture(scope="module")
def machine(platform: SimulatedPlatform, endorsements: DcapEndorsements) -> Machine:
    """A machine."""
    return Machine(platform, endorsements)


VALUES: dict[str, Any] = {"allow_simulated": True, "tdx": {"mr_td": [MR_TD.hex()]}, "nvidia": {}}


def verify(
    parts: Sequence[Part], *, binding: Binding = BINDING, count: int | None = None, **changes: Any
) -> CompositeResult:
    """Verify and appraise with reference values that accept the machine."""
    values = ReferenceValues.from_mapping({**VALUES, **changes})
    return verify_composite(parts, NOW, binding=binding, reference_values=values, device_count=count)


def test_one_verdict(machine: Machine) -> None:
    """All parts are verified and appraised; the verdict names every check by its part."""
    result = verify([machine.cpu(), machine.gpu(0), machine.gpu(1)], count=2)
    assert list(result.parts) == ["cpu0", "gpu0", "gpu1"]
    assert result.simulated
    assert result.tier is TrustTier.WARNING  # simulated
    names = {check.name for check in result.checks}
    assert {"cpu0.mr_td", "gpu0.measres", "gpu1.measres", "gpu1.debug", "devices"} <= names
    assert json.loads(json.dumps(result.to_mapping()))["parts"]["gpu1"]["claims"]["arch"] == "HOPPER"


def test_worst_part_decides(machine: Machine) -> None:
    """One bad GPU makes the whole contraindicated, and the checks of all parts are reported."""
    parts = [
        machine.cpu(),
        machine.gpu(0),
        machine.gpu(1, measurements=MEASUREMENTS | {2: bytes(48)}),
    ]
    with pytest.raises(CompositeDenied, match=r"gpu1\.measres") as caught:
        verify(parts, tdx={"mr_td": ["00" * 48]})
    assert caught.value.result.tier is TrustTier.CONTRAINDICATED
    assert [reason.partition(":")[0] for reason in caught.value.reasons] == ["cpu0.mr_td", "gpu1.measres"]


def test_each_part_needs_reference_values(machine: Machine) -> None:
    """A part without a table of reference values is denied, and simulated parts unless permitted."""
    parts = [machine.cpu(), machine.gpu(0)]
    without_table: dict[str, Any] = {"tdx": {"mr_td": [MR_TD.hex()]}, "allow_simulated": True}
    for bad in (without_table, {**VALUES, "allow_simulated": False}):
        with pytest.raises(CompositeDenied):
            verify_composite(parts, NOW, binding=BINDING, reference_values=ReferenceValues.from_mapping(bad))


def test_debug_cpu(machine: Machine) -> None:
    """A debug TD spoils the verdict of good GPUs."""
    with pytest.raises(CompositeDenied, match=r"cpu0\.debug"):
        verify([machine.cpu(debug=True), machine.gpu(0)])


def test_bindings(machine: Machine) -> None:
    """Every part must be bound: another nonce or other runtime data is refused, with the part's name."""
    cases = [
        ([machine.cpu(bytes(64)), machine.gpu(0)], "cpu0"),
        ([machine.cpu(), machine.gpu(0, bytes(32))], "gpu0"),
        ([machine.cpu(), machine.gpu(0), machine.gpu(1, bytes(32))], "gpu1"),
        ([machine.cpu(), machine.gpu(0, BINDING.cpu_report_data()[:32])], "gpu0"),
    ]
    for parts, name in cases:
        with pytest.raises(BindingMismatch, match=f"^{name}: "):
            verify(parts)
    with pytest.raises(BindingMismatch):
        verify([machine.cpu(), machine.gpu(0)], binding=RuntimeBinding(RUNTIME | {"nonce": ""}))


def test_forged_part(machine: Machine) -> None:
    """A part that is not genuine, or revoked, is refused with its own error and its name."""
    gpu = machine.gpu(0)
    forged = replace(gpu, evidence=gpu.evidence[:-1] + bytes([gpu.evidence[-1] ^ 1]))
    with pytest.raises(BadSignature, match=r"^gpu0: "):
        verify([machine.cpu(), forged])
    with pytest.raises(MalformedInput, match=r"^gpu0: "):
        verify([machine.cpu(), replace(gpu, evidence=b"")])
    device = machine.gpus[0]
    revoked = device.endorsements(NOW, ocsp=device.ocsp(NOW, revoked=device.device))
    with pytest.raises(Revoked, match=r"^gpu0: "):
        verify([machine.cpu(), replace(gpu, endorsements=revoked)])


def test_one_device_twice(machine: Machine) -> None:
    """One GPU cannot stand for two, even with two different reports."""
    again = replace(machine.gpu(0, slot=1), name="gpu1")
    with pytest.raises(VerificationError, match=r"gpu1: this device .* is gpu0 already"):
        verify([machine.cpu(), machine.gpu(0), again])


def test_missing_device(machine: Machine) -> None:
    """A device that was left out is noticed where the number is stated."""
    with pytest.raises(CompositeDenied, match="devices: expected 2, found 1"):
        verify([machine.cpu(), machine.gpu(0)], count=2)


def test_shape(machine: Machine) -> None:
    """There is one CPU part, at least one device, not too many parts, and no name twice."""
    cpu, gpu = machine.cpu(), machine.gpu(0)
    for parts in ([], [cpu], [gpu], [cpu, cpu], [cpu, gpu, gpu], [cpu, *[gpu] * 33]):
        with pytest.raises(MalformedInput):
            verify(parts)
    with pytest.raises(MalformedInput, match="unknown evidence scheme"):
        verify([replace(cpu, scheme="x"), gpu])


def test_runtime_binding() -> None:
    """CPU and devices are bound to the same canonical JSON, by different hashes of it."""
    canonical = b'{"nonce":"bm9uY2U=","tls-key":"a2V5"}'
    assert BINDING.cpu_report_data() == hashlib.sha384(canonical).digest().ljust(64, b"\0")
    assert BINDING.device_nonce() == device_nonce_for(RUNTIME) == hashlib.sha256(canonical).digest()
    with pytest.raises(MalformedInput):
        device_nonce_for({"nonce": b"bytes"})


def test_trustee_binding(machine: Machine) -> None:
    """Evidence as Confidential Containers binds it: devices to nonce and key, the CPU to these and them."""
    pubkey = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}
    device = TrusteeBinding(nonce="bm9uY2U=", tee_pubkey=pubkey).device_nonce()
    assert device == runtime_data_digest({"nonce": "bm9uY2U=", "tee-pubkey": pubkey})[:32]
    gpu = machine.gpu(0, device)
    text = json.dumps({"nvidia": base64.b64encode(gpu.evidence).decode()})
    binding = TrusteeBinding(nonce="bm9uY2U=", tee_pubkey=pubkey, additional_evidence=text)
    runtime = {"additional-evidence": text, "nonce": "bm9uY2U=", "tee-pubkey": pubkey}
    assert binding.cpu_report_data() == report_data_for(runtime)
    assert verify([machine.cpu(binding.cpu_report_data()), gpu], binding=binding).parts
    other = replace(binding, additional_evidence=text + " ")
    with pytest.raises(BindingMismatch, match=r"^cpu0: "):
        verify([machine.cpu(binding.cpu_report_data()), gpu], binding=other)


def test_trustee_vectors() -> None:
    """The digests over nonce and key are those of Trustee's own vectors."""
    path = vector("kbs/dev/kbs_jwe_and_runtime_data_vectors.json")
    for case in json.loads(path.read_text())["runtime_data"]:
        runtime = case["runtime_data"]
        binding = TrusteeBinding(nonce=runtime["nonce"], tee_pubkey=runtime["tee-pubkey"])
        assert binding.device_nonce().hex() == case["device_sha384"][:64]
        assert binding.cpu_report_data().hex() == case["report_data_64_with_default_sha384"]


def test_nonce_of_a_real_report() -> None:
    """A report from Confidential Containers' own tests has the first half of its report data as nonce."""
    stated = (
        "87d8e24ab336adafe228d49e83d745f6dba4ae505372b6a5704820856b343fece279b616efefc2aae21da80cf5581250"
    )
    report = parse_report(vector("nvidia/dev/hopper_coco_580.95.05.report.bin").read_bytes())
    assert report.nonce == bytes.fromhex(stated)[:32]
