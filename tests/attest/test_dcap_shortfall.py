"""A refusal for an old platform says what is old, and what would be enough."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.pck import PckExtension
from cloister.attest.dcap.shortfall import describe_shortfall
from cloister.attest.dcap.tcb import TdxModule
from tests.vectors import vector

CASE = "tdx_v4_b0c06f000000_OutOfDate_063c31a7_eval20_2026-08-13.json"
PCK = PckExtension(
    ppid=bytes(16),
    cpu_svn=bytes([3] * 16),
    pce_svn=11,
    pce_id=bytes(2),
    fmspc=bytes(6),
    platform_instance_id=None,
)


def level(status: str, date: str, *, svn: int = 3, pcesvn: int = 11) -> dict[str, Any]:
    """One TCB level of TCB info."""
    components = [{"svn": svn}] * 16
    tcb = {"sgxtcbcomponents": components, "tdxtcbcomponents": components, "pcesvn": pcesvn}
    return {"tcb": tcb, "tcbStatus": status, "tcbDate": date}


QE = {"tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbStatus": "UpToDate", "tcbDate": "2026-01-01T00:00:00Z"}]}
QE_REPORT = bytes(258) + b"\x04\x00" + bytes(124)


def test_a_genuine_old_platform_is_explained() -> None:
    """The failed check of a genuine quote names the TDX module's SVN and the one that is needed."""
    case = json.loads(vector(f"dcap-cases/dev/{CASE}").read_text())
    now = datetime.fromtimestamp(case["verification_time"], UTC)
    quote = vector(case["quote"]).read_bytes()
    claims = verify_evidence("tdx", quote, DcapEndorsements.from_mapping(case["collateral"]), now)
    references = ReferenceValues.from_toml(f'[tdx]\nmr_td = ["{claims.to_mapping()["mr_td"]}"]\n')
    with pytest.raises(AppraisalDenied) as denied:
        appraise(claims, references, now)
    assert "OutOfDate" in denied.value.reasons[0]
    assert "TDX module SVN 5, needs 11" in denied.value.reasons[0]


def test_nothing_is_behind() -> None:
    """A platform that reaches the newest good level lacks nothing."""
    info = {"tcbLevels": [level("UpToDate", "2026-01-01T00:00:00Z")]}
    assert describe_shortfall(info, QE, PCK, QE_REPORT, None) == ()


def test_each_kind_of_version_is_compared() -> None:
    """CPU components, PCE, quoting enclave and TDX module are named when they are behind."""
    info = {
        "tcbLevels": [
            level("UpToDate", "2025-01-01T00:00:00Z"),
            level("UpToDate", "2026-01-01T00:00:00Z", svn=5, pcesvn=13),
        ],
        "tdxModuleIdentities": [
            {"id": "TDX_01", "tcbLevels": [{**QE["tcbLevels"][0], "tcb": {"isvsvn": 9}}]},
        ],
    }
    module = TdxModule(bytes([6, 1] + [3] * 14), None, bytes(48), bytes(8))
    found = describe_shortfall(info, QE, PCK, bytes(384), module)
    assert "SGX component 1 SVN 3, needs 5" in found
    assert "PCE SVN 11, needs 13" in found
    assert "quoting enclave SVN 0, needs 4" in found
    assert "TDX module SVN 6, needs 9" in found
    assert "TDX component 3 SVN 3, needs 5" in found
    assert not any(text.startswith("TDX component 1 ") for text in found)


def test_unknown_forms_give_no_words() -> None:
    """The explanation never turns a verdict into another error."""
    assert describe_shortfall({"tcbLevels": [{}]}, QE, PCK, QE_REPORT, None) == ()
