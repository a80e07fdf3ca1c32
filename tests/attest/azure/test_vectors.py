"""Evidence of real machines on Azure, with what the manifest expects of it."""

from __future__ import annotations

import contextlib
import json
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.azure import AzureSnpClaims, AzureTdxClaims, check_runtime_binding, parse_hcl_report
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.tpm.encoding import decode_bytes
from cloister.errors import BindingMismatch, MalformedInput, StaleEvidence, VerificationError
from tests.attest.eventlog.test_vectors import entries
from tests.vectors import vector, vectors_folder

MACHINES = {str(Path(entry["file"]).parent): entry["expected"] for entry in entries("azure-vtpm")}
NOW = datetime(2025, 6, 1, tzinfo=UTC)
_CASES = vectors_folder() / "dcap-cases" / "dev"
judged: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def count() -> Any:
    """Says at the end how many machines and reports were judged."""
    yield
    print(f"Azure vectors judged as expected: {dict(judged)}, {len(entries('azure-vtpm'))} files")


class Machine:
    """One folder of the vectors: evidence, endorsements and time."""

    def __init__(self, folder: str) -> None:
        self.folder = vector(folder)
        self.expected = MACHINES[folder]
        self.scheme = "az-tdx-vtpm" if "tdx" in folder else "az-snp-vtpm"
        self.now = NOW
        self.endorsements: DcapEndorsements | None = None
        if (self.folder / "collateral.yaml").exists():
            self.endorsements = DcapEndorsements.from_mapping(_read_yaml(self.folder / "collateral.yaml"))
            self.now = datetime.fromtimestamp(self.expected["verify_at"], UTC)
        elif self.scheme == "az-tdx-vtpm":
            self.endorsements, self.now = _collateral_of(self.expected["td_quote"]["fmspc"])

    @property
    def document(self) -> dict[str, Any]:
        """Evidence as its attester wrote it."""
        path = self.folder / "evidence.json"
        document = json.loads(path.read_text()) if path.exists() else _attested_tls(self.folder)
        assert isinstance(document, dict)
        return document

    def verify(self, document: dict[str, Any] | None = None) -> AzureSnpClaims | AzureTdxClaims:
        """Claims under the vendors' pinned keys."""
        raw = json.dumps(self.document if document is None else document).encode()
        claims = verify_evidence(self.scheme, raw, self.endorsements, self.now)
        assert isinstance(claims, AzureSnpClaims | AzureTdxClaims)
        return claims


def _read_yaml(path: Path) -> dict[str, str]:
    """The block texts of a flat YAML file."""
    members: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(" "):
            members[name := line.split(":")[0]] = []
        elif line:
            members[name].append(line[2:])
    return {name: "\n".join(lines) + ("\n" if "chain" in name else "") for name, lines in members.items()}


def _attested_tls(folder: Path) -> dict[str, Any]:
    """The document of attested-tls, from the files beside it; its own form is JSON with these members.

    The certificate is as the virtual TPM hands it out: with zeros up to 4,096 bytes.
    """
    lines = (folder / "evidence.yaml").read_text().splitlines()
    begin = lines.index("    -----BEGIN CERTIFICATE-----")
    end = lines.index("    -----END CERTIFICATE-----")
    pcrs = json.loads((folder / "pcrs.json").read_text())
    return {
        "tdx_quote_base64": urlsafe_b64encode((folder / "td_quote.bin").read_bytes()).decode(),
        "hcl_report_base64": urlsafe_b64encode((folder / "hcl_report.bin").read_bytes()).decode(),
        "tpm_attestation": {
            "ak_certificate_pem": "\n".join(line.strip() for line in lines[begin : end + 1]),
            "quote": {
                "message": list((folder / "tpm_quote.msg").read_bytes()),
                "signature": list((folder / "tpm_quote.sig").read_bytes()),
                "pcrs": [list(bytes.fromhex(value)) for value in pcrs],
            },
            "event_log": [],
            "instance_info": None,
        },
    }


def _collateral_of(fmspc: str) -> tuple[DcapEndorsements, datetime]:
    """Collateral of the same family of platforms, from another case, and its time."""
    path = next(iter(sorted(_CASES.glob(f"tdx_v4_{fmspc}_UpToDate_*.json"))), None)
    if path is None:
        pytest.skip(f"no collateral for {fmspc} among the vectors")
    case = json.loads(path.read_text())
    collateral = DcapEndorsements.from_mapping(case["collateral"])
    return collateral, datetime.fromtimestamp(case["verification_time"], UTC)


@pytest.mark.parametrize("folder", MACHINES)
def test_machine_has_its_verdict(folder: str) -> None:
    """Each real machine is accepted with the nonce, PCRs, hardware and configuration that are stated."""
    machine = Machine(folder)
    claims, expected = machine.verify(), machine.expected
    assert expected["verdict"] == "pass"
    assert not claims.simulated
    assert claims.report_data.hex() == expected["nonce_extraData"]
    assert [sorted(claims.pcrs["sha256"])] == [pcrs for _, pcrs in expected["pcr_selection"]]
    nonzero = {str(i): v.hex() for i, v in claims.pcrs["sha256"].items() if any(v)}
    assert {i: v for i, v in nonzero.items() if i in expected["pcrs_nonzero"]} == expected["pcrs_nonzero"]
    configuration = expected["hcl"]["vm-configuration"]
    assert claims.vm_configuration == configuration
    assert claims.user_data.hex() == expected["hcl"]["user-data"].lower()
    if isinstance(claims, AzureSnpClaims):
        assert claims.measurement.hex() == expected["snp"]["measurement"]
        assert claims.hardware_report_data.hex() == expected["snp"]["report_data"]
        assert (claims.vmpl, claims.debug) == (expected["snp"]["vmpl"], expected["snp"]["debug"])
    else:
        assert claims.mr_td.hex() == expected["td_quote"]["mr_td"]
        assert claims.hardware_report_data.hex() == expected["td_quote"]["report_data"]
        assert claims.fmspc == expected["td_quote"]["fmspc"]
        assert claims.tcb_status == expected.get("dcap_qvl_status", claims.tcb_status)
        assert bool(claims.ak_root) == ("ak_chain" in expected)
    judged[machine.scheme] += 1


@pytest.mark.parametrize("entry", entries("azure-hcl"), ids=lambda entry: entry["file"])
def test_report_binds_its_runtime_data(entry: dict[str, Any]) -> None:
    """Each real paravisor's report binds its runtime data, and no other."""
    raw, expected = vector(entry["file"]).read_bytes(), entry["expected"]
    assert expected["binding_ok"]
    report = parse_hcl_report(raw)
    assert check_runtime_binding(report).vm_configuration == expected["vm-configuration"]
    assert [key["kid"] for key in json.loads(report.variable_data)["keys"]] == expected["keys"]
    for offset in range(0x4D4, 0x4D4 + len(report.variable_data), 50):
        changed = bytearray(raw)
        changed[offset] ^= 1
        with pytest.raises((BindingMismatch, MalformedInput)):
            check_runtime_binding(parse_hcl_report(bytes(changed)))
    judged["azure-hcl"] += 1


@pytest.mark.parametrize(
    "folder", [folder for folder in MACHINES if (vectors_folder() / folder / "collateral.yaml").exists()]
)
def test_certificate_of_the_key_is_verified(folder: str) -> None:
    """A real certificate with zeros after it leads to the root; changed or out of time it is refused."""
    machine = Machine(folder)
    assert machine.verify().ak_root.startswith("CN=Azure Virtual TPM Root")
    document = machine.document
    pem = document["tpm_attestation"]["ak_certificate_pem"]
    document["tpm_attestation"]["ak_certificate_pem"] = pem.replace("A" * 64, "A" * 63 + "B", 1)
    with pytest.raises(MalformedInput, match="not zero"):
        machine.verify(document)
    machine.now = datetime(2025, 11, 1, tzinfo=UTC)
    with pytest.raises(StaleEvidence):
        machine.verify()


PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "message": (("tpm_quote", "message"), ("quote", "message")),
    "signature": (("tpm_quote", "signature"), ("quote", "signature")),
    "hardware": (("hcl_report",), ("report",), ("hcl_report_base64",)),
    "td_quote": (("td_quote",), ("tdx_quote_base64",)),
}


def _flip(machine: Machine, part: str, change: Callable[[bytearray], None]) -> dict[str, Any] | None:
    document = machine.document
    for path in PARTS[part]:
        holder = document.get("tpm_attestation", document) if len(path) > 1 else document
        for name in path[:-1]:
            holder = holder.get(name, {})
        if path[-1] in holder:
            content = bytearray(decode_bytes(holder[path[-1]], part, 100_000))
            change(content)
            holder[path[-1]] = content.hex()
            return document
    return None


_machines: dict[str, Machine] = {}


@settings(max_examples=400)
@given(data=st.data())
def test_flipped_bytes_are_refused(data: st.DataObject) -> None:
    """Any changed byte of the quote, the signature, the hardware report or the runtime data is refused."""
    if not MACHINES:
        pytest.skip("no test vectors")
    folder = data.draw(st.sampled_from(sorted(MACHINES)))
    machine = _machines.setdefault(folder, Machine(folder))
    part = data.draw(st.sampled_from(sorted(PARTS)))
    position, mask = data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(1, 255))

    def change(content: bytearray) -> None:
        begin, end = 0, len(content)
        if part == "hardware":
            end = 0x4D4 + int.from_bytes(content[0x4D0:0x4D4], "little")
            if machine.scheme == "az-snp-vtpm":
                begin = 0x20
            elif position < 0.5:
                begin, end = 0x20 + 256, 0x20 + 495
            else:
                begin = 0x20 + 512
        elif part == "td_quote":
            end = 632
        content[begin + int(position * (end - begin))] ^= mask

    document = _flip(machine, part, change)
    if document is None:
        return
    with pytest.raises((MalformedInput, VerificationError)):
        machine.verify(document)


@given(data=st.data())
def test_damaged_evidence_raises_nothing_else(data: st.DataObject) -> None:
    """Truncated and changed evidence raises only what is declared."""
    if not MACHINES:
        pytest.skip("no test vectors")
    folder = data.draw(st.sampled_from(sorted(MACHINES)))
    machine = _machines.setdefault(folder, Machine(folder))
    raw = bytearray(json.dumps(machine.document).encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    for part in (bytes(raw), bytes(raw[:place])):
        with contextlib.suppress(MalformedInput, VerificationError):
            verify_evidence(machine.scheme, part, machine.endorsements, machine.now)


def test_time_of_verification() -> None:
    """With cached endorsements a machine is verified in a few milliseconds."""
    for folder in MACHINES:
        machine = Machine(folder)
        raw = json.dumps(machine.document).encode()
        times = []
        for _ in range(30):
            begin = time.perf_counter()
            verify_evidence(machine.scheme, raw, machine.endorsements, machine.now)
            times.append(time.perf_counter() - begin)
        print(f"{machine.folder.name}: {median(times) * 1e3:.2f} ms")
        assert median(times) < 0.03  # only gross mistakes are caught here
