"""The simulated platform: its files, its variants, its speed."""

from __future__ import annotations

import stat
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import pytest

from cloister.attest import verify_evidence
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError, MalformedInput, Revoked
from tests.attest.conftest import MR_TD, NOW, REPORT_DATA


def test_private_files_are_private(tmp_path: Path) -> None:
    """Private keys are readable by their owner only; root and collateral by everyone."""
    SimulatedPlatform.create(tmp_path / "p", NOW)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "p").iterdir()}
    assert modes["root.pem"] == modes["collateral.json"] == 0o644
    private = {name for name in modes if name.endswith(".key")}
    assert len(private) == 5
    assert {modes[name] for name in private} == {0o600}
    public = b"".join(path.read_bytes() for path in (tmp_path / "p").iterdir() if path.name not in private)
    assert b"PRIVATE" not in public


def test_loaded_platform_is_the_same(tmp_path: Path) -> None:
    """A platform that was saved makes quotes that verify under the same root and collateral."""
    created = SimulatedPlatform.create(tmp_path / "p", NOW)
    loaded = SimulatedPlatform.load(tmp_path / "p")
    assert loaded.root == created.root
    raw = loaded.quote(REPORT_DATA, mr_td=MR_TD)
    claims = verify_evidence("tdx", raw, created.endorsements(NOW), NOW, roots=[created.root])
    assert claims.report_data == REPORT_DATA


def test_existing_platform_is_not_overwritten(tmp_path: Path) -> None:
    """Making a platform where there is one already is an error."""
    SimulatedPlatform.create(tmp_path / "p", NOW)
    with pytest.raises(ConfigError, match="already"):
        SimulatedPlatform.create(tmp_path / "p", NOW)


@pytest.mark.parametrize("name", ["root.key", "pck.key", "pck-chain.pem", "collateral.json"])
def test_damaged_platform(tmp_path: Path, name: str) -> None:
    """A missing or damaged file is an error that says so."""
    SimulatedPlatform.create(tmp_path / "p", NOW)
    (tmp_path / "p" / name).write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="damaged"):
        SimulatedPlatform.load(tmp_path / "p")
    (tmp_path / "p" / name).unlink()
    with pytest.raises(ConfigError, match=name):
        SimulatedPlatform.load(tmp_path / "p")


def test_stored_variants(tmp_path: Path) -> None:
    """A platform can be made with an outdated TCB, or with a revoked certificate."""
    outdated = SimulatedPlatform.create(tmp_path / "a", NOW, tcb_status="OutOfDate")
    raw = outdated.quote(REPORT_DATA, mr_td=MR_TD)
    claims = verify_evidence("tdx", raw, outdated.endorsements(NOW), NOW, roots=[outdated.root])
    assert claims.tcb_status == "OutOfDate"
    revoked = SimulatedPlatform.create(tmp_path / "b", NOW, revoke_pck=True)
    raw = revoked.quote(REPORT_DATA, mr_td=MR_TD)
    with pytest.raises(Revoked):
        verify_evidence("tdx", raw, revoked.endorsements(NOW), NOW, roots=[revoked.root])


def test_expired_collateral_is_issued_again(platform: SimulatedPlatform, quote: bytes) -> None:
    """Years later the platform still works, with collateral of that time."""
    later = NOW + timedelta(days=3 * 365)
    assert platform.endorsements(later) != platform.endorsements(NOW)
    claims = verify_evidence("tdx", quote, platform.endorsements(later), later, roots=[platform.root])
    assert claims.tcb_status == "UpToDate"


def test_wrong_lengths_are_refused(platform: SimulatedPlatform) -> None:
    """Registers have 48 bytes and report data 64."""
    with pytest.raises(MalformedInput):
        platform.quote(REPORT_DATA, mr_td=b"short")
    with pytest.raises(MalformedInput):
        platform.quote(b"short", mr_td=MR_TD)
    with pytest.raises(MalformedInput):
        platform.quote(REPORT_DATA, mr_td=MR_TD, rtmrs=(bytes(48),) * 3)


def test_quotes_are_made_fast(platform: SimulatedPlatform) -> None:
    """A quote takes less than 2 ms."""

    def once() -> float:
        begin = time.perf_counter()
        platform.quote(REPORT_DATA, mr_td=MR_TD)
        return time.perf_counter() - begin

    assert median(once() for _ in range(50)) < 0.002
