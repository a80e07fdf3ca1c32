"""The simulated SGX platform, through the production verifier."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import ReferenceValues, appraise, verify_evidence
from cloister.attest.appraisal import AppraisalDenied
from cloister.attest.dcap import SgxClaims
from cloister.attest.model import TrustTier
from cloister.attest.simulated import SimulatedPlatform, SimulatedSgxPlatform
from cloister.attest.simulated.sgx import MR_SIGNER
from cloister.errors import (
    ConfigError,
    MalformedInput,
    Revoked,
    StaleEvidence,
    TcbOutOfDate,
    UntrustedRoot,
    VerificationError,
)
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA

MR_ENCLAVE = bytes(range(32))


@pytest.fixture(scope="module")
def sgx(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSgxPlatform:
    """A platform, made at ``NOW``."""
    return SimulatedSgxPlatform.create(tmp_path_factory.mktemp("sgx") / "p", NOW)


def verified(sgx: SimulatedSgxPlatform, raw: bytes) -> SgxClaims:
    """The claims of one of its quotes."""
    claims = verify_evidence("sgx", raw, sgx.endorsements(NOW), NOW, roots=[sgx.root])
    assert isinstance(claims, SgxClaims)
    return claims


def test_claims(sgx: SimulatedSgxPlatform) -> None:
    """A simulated enclave's quote says what it was asked to say."""
    raw = sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE, isv_prod_id=3, isv_svn=7, config_id=MR_TD)
    claims = verified(sgx, raw)
    assert (claims.mr_enclave, claims.mr_signer, claims.report_data) == (MR_ENCLAVE, MR_SIGNER, REPORT_DATA)
    assert (claims.isv_prod_id, claims.isv_svn, claims.quote_version) == (3, 7, 3)
    assert (claims.tcb_status, claims.debug, claims.simulated) == ("UpToDate", False, True)


def test_appraisal(sgx: SimulatedSgxPlatform) -> None:
    """It is acceptable only where simulations are, and never better than a warning."""
    claims = verified(sgx, sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE))
    table = {"sgx": {"mr_enclave": [MR_ENCLAVE.hex()]}}
    allowed = ReferenceValues.from_mapping({"allow_simulated": True, **table})
    assert appraise(claims, allowed, NOW).tier == TrustTier.WARNING
    with pytest.raises(AppraisalDenied, match="simulated"):
        appraise(claims, ReferenceValues.from_mapping(table), NOW)


def test_debug_enclave(sgx: SimulatedSgxPlatform) -> None:
    """A debug enclave is genuine, and says that it is one."""
    assert verified(sgx, sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE, debug=True)).debug


def test_nobody_trusts_it_by_itself(sgx: SimulatedSgxPlatform) -> None:
    """Intel's root does not vouch for it."""
    raw = sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE)
    with pytest.raises(UntrustedRoot):
        verify_evidence("sgx", raw, sgx.endorsements(NOW), NOW)


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded"])
def test_tcb_status(sgx: SimulatedSgxPlatform, status: str) -> None:
    """What collateral says of the platform is in the claims."""
    raw = sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE)
    collateral = sgx.endorsements(NOW, tcb_status=status)
    assert verify_evidence("sgx", raw, collateral, NOW, roots=[sgx.root]).tcb_status == status


def test_revocation_and_expiry(sgx: SimulatedSgxPlatform) -> None:
    """A revoked level, a revoked certificate and expired collateral are refused."""
    raw = sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE)
    with pytest.raises(TcbOutOfDate):
        verify_evidence("sgx", raw, sgx.endorsements(NOW, tcb_status="Revoked"), NOW, roots=[sgx.root])
    with pytest.raises(Revoked):
        verify_evidence("sgx", raw, sgx.endorsements(NOW, revoke_pck=True), NOW, roots=[sgx.root])
    with pytest.raises(StaleEvidence):
        verify_evidence("sgx", raw, sgx.endorsements(NOW), NOW + timedelta(days=366), roots=[sgx.root])


def test_collateral_of_the_other_tee(sgx: SimulatedSgxPlatform, tmp_path: Path) -> None:
    """TDX collateral of the very same platform does not endorse its enclaves."""
    SimulatedSgxPlatform.create(tmp_path / "p", NOW)
    both, tdx = SimulatedSgxPlatform.load(tmp_path / "p"), SimulatedPlatform.load(tmp_path / "p")
    raw = both.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE)
    with pytest.raises(VerificationError):
        verify_evidence("sgx", raw, tdx.endorsements(NOW), NOW, roots=[both.root])
    td = tdx.quote(REPORT_DATA, mr_td=MR_TD)
    assert verify_evidence("tdx", td, tdx.endorsements(NOW), NOW, roots=[both.root]).simulated


def test_load(tmp_path: Path) -> None:
    """What was saved is loaded again, and a folder without SGX collateral gets some when it is asked."""
    made = SimulatedSgxPlatform.create(tmp_path / "p", NOW)
    again = SimulatedSgxPlatform.load(tmp_path / "p")
    assert again.endorsements(NOW) == made.endorsements(NOW)
    (tmp_path / "p" / "sgx-collateral.json").unlink()
    older = SimulatedSgxPlatform.load(tmp_path / "p")
    raw = older.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE)
    assert verify_evidence("sgx", raw, older.endorsements(NOW), NOW, roots=[made.root])
    assert older.endorsements(NOW + timedelta(days=400)).is_current(NOW + timedelta(days=400))


def test_damaged_folder(tmp_path: Path) -> None:
    """A damaged file is an error that names it; an existing platform is not overwritten."""
    SimulatedSgxPlatform.create(tmp_path / "p", NOW)
    with pytest.raises(ConfigError, match="already"):
        SimulatedSgxPlatform.create(tmp_path / "p", NOW)
    (tmp_path / "p" / "sgx-collateral.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        SimulatedSgxPlatform.load(tmp_path / "p")


@pytest.mark.parametrize(
    "wrong",
    [
        {"mr_enclave": b""},
        {"mr_enclave": bytes(32), "mr_signer": b""},
        {"mr_enclave": bytes(32), "config_id": bytes(65)},
        {"mr_enclave": bytes(32), "isv_svn": 65536},
    ],
)
def test_fields_of_the_wrong_length(sgx: SimulatedSgxPlatform, wrong: dict[str, bytes]) -> None:
    """A field of another length is refused, never padded or cut."""
    with pytest.raises(MalformedInput):
        sgx.quote(REPORT_DATA, **wrong)  # type: ignore[arg-type]


@given(st.integers(0, 48 + 384 - 1), st.integers(1, 255))
def test_flipped_bytes(sgx: SimulatedSgxPlatform, position: int, difference: int) -> None:
    """Any changed byte of header or report is refused."""
    raw = bytearray(sgx.quote(REPORT_DATA, mr_enclave=MR_ENCLAVE))
    raw[position] ^= difference
    with pytest.raises((MalformedInput, VerificationError)):
        verify_evidence("sgx", bytes(raw), sgx.endorsements(NOW), NOW, roots=[sgx.root])
