"""The report as Confidential Containers' attester sends it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.snp.certificate import load_certificate
from cloister.attest.snp.report import parse_report
from cloister.attest.snp.trustee import parse_trustee_evidence, render_report
from cloister.errors import BadSignature, MalformedInput
from tests.attest.snp.conftest import Platform
from tests.vectors import vector


def to_json(raw: bytes, product: str) -> dict[str, Any]:
    """What the Rust crate makes of a report."""
    report = parse_report(raw)
    turin = product == "Turin"

    def tcb(value: bytes) -> dict[str, Any]:
        at = (1, 2, 3, 7) if turin else (0, 1, 6, 7)
        parts = dict(zip(("bootloader", "tee", "snp", "microcode"), (value[i] for i in at), strict=True))
        return {"fmc": value[0] if turin else None, **parts}

    def firmware(value: Any) -> dict[str, int]:
        return {"major": value.major, "minor": value.minor, "build": value.build}

    octets = ("family_id", "image_id", "report_data", "measurement", "host_data", "id_key_digest")
    more = ("author_key_digest", "report_id", "report_id_ma", "chip_id")
    family, model, stepping = report.cpuid or (None, None, None)
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy,
        "vmpl": report.vmpl,
        "sig_algo": 1,
        "plat_info": report.platform_info,
        "key_info": raw[0x48],
        **{name: list(getattr(report, name)) for name in octets + more},
        **{name: tcb(getattr(report, name)) for name in ("current_tcb", "reported_tcb")},
        **{name: tcb(getattr(report, name)) for name in ("committed_tcb", "launch_tcb")},
        "cpuid_fam_id": family,
        "cpuid_mod_id": model,
        "cpuid_step": stepping,
        "current": firmware(report.current_version),
        "committed": firmware(report.committed_version),
        "launch_mit_vector": report.launch_mit_vector,
        "current_mit_vector": report.current_mit_vector,
        "signature": {"r": list(raw[0x2A0:0x2E8]), "s": list(raw[0x2E8:0x330])},
    }


def test_evidence_of_a_trustee_test() -> None:
    """Trustee's own example is a genuine Genoa report with its VCEK, and verifies."""
    document = json.loads(vector("kbs/dev/attestation-service_tests_e2e_evidence.json").read_text())
    raw, given = parse_trustee_evidence(document)
    assert given.vcek is not None
    now = load_certificate(given.vcek, "VCEK").not_before + timedelta(days=30)
    claims = verify_evidence("sev-snp", raw, given, now)
    assert not claims.simulated
    document["attestation_report"]["guest_svn"] += 1
    with pytest.raises(BadSignature):
        verify_evidence("sev-snp", parse_trustee_evidence(document)[0], given, now)


@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("which", ["genoa", "turin", "vlek"])
def test_bytes_come_back(request: pytest.FixtureRequest, which: str, version: int) -> None:
    """A report of every version and product is turned back into the same bytes."""
    platform: Platform = request.getfixturevalue(which)
    raw = platform.report(version=version)
    document = json.loads(json.dumps(to_json(raw, platform.chip.product)))
    assert render_report(document) == raw


def test_names_of_older_versions(genoa: Platform) -> None:
    """Older versions of the crate name key_info and the firmware's version otherwise."""
    raw = genoa.report(version=2)
    document = to_json(raw, "Genoa")
    document["_author_key_en"] = document.pop("key_info")
    for name in ("current", "committed"):
        version = document.pop(name)
        document.update({f"{name}_{part}": number for part, number in version.items()})
    assert render_report(document) == raw


def test_evidence_without_certificates(genoa: Platform) -> None:
    """Where the host gave none, the chain is null, and the endorsements are empty."""
    document = {"attestation_report": to_json(genoa.report(), "Genoa"), "cert_chain": None}
    assert parse_trustee_evidence(document)[1].to_mapping() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", None),
        ("version", 2**32),
        ("version", True),
        ("policy", -1),
        ("policy", "0x30000"),
        ("report_data", [0] * 63),
        ("report_data", [256] + [0] * 63),
        ("measurement", "00" * 48),
        ("current_tcb", None),
        ("current_tcb", {"bootloader": 1}),
        ("current", {"major": 1}),
        ("cpuid_fam_id", None),
        ("launch_mit_vector", None),
        ("signature", {"r": [], "s": []}),
        ("key_info", None),
    ],
)
def test_wrong_fields(genoa: Platform, name: str, value: Any) -> None:
    """A missing field, another type and a number out of range are errors."""
    document = {**to_json(genoa.report(), "Genoa"), name: value}
    with pytest.raises(MalformedInput):
        render_report(document)


@given(
    st.dictionaries(st.sampled_from(["attestation_report", "cert_chain"]), st.none() | st.lists(st.none()))
)
def test_random_documents(document: dict[str, Any]) -> None:
    """Random documents raise MalformedInput."""
    with pytest.raises(MalformedInput):
        parse_trustee_evidence(document)
    with pytest.raises(MalformedInput):
        parse_trustee_evidence([])  # type: ignore[arg-type]
