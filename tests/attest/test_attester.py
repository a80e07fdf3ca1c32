"""The choice of an Attester."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.attest import verify_evidence
from cloister.attest.attester import SimulatedTdxAttester, pick_attester
from cloister.attest.configfs import ConfigfsAttester
from cloister.attest.dcap import TdxClaims
from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError, MalformedInput
from cloister.settings import AttestSettings
from tests.attest.conftest import MR_CONFIG_ID, REPORT_DATA
from tests.fakes.configfs import FakeConfigfsPath


def test_simulated_if_asked_for(tmp_path: Path) -> None:
    """The simulated Attester shows the installed package's measurement and the settings' digest."""
    now = datetime.now(UTC)
    platform = SimulatedPlatform.create(tmp_path / "p", now)
    settings = AttestSettings(attester="simulated-tdx", simulated_platform=str(tmp_path / "p"))
    attester = pick_attester(settings, mr_config_id=MR_CONFIG_ID)
    evidence = attester.get_evidence(REPORT_DATA)
    claims = verify_evidence(
        evidence.scheme, evidence.raw, attester.get_endorsements(), now, roots=[platform.root]
    )
    assert isinstance(claims, TdxClaims)
    assert claims.mr_td == measure_package(installed_package())
    assert claims.mr_config_id == MR_CONFIG_ID
    assert claims.simulated


def test_never_simulated_by_itself(tmp_path: Path) -> None:
    """Without a TEE the automatic choice fails, even with a simulated platform at hand."""
    SimulatedPlatform.create(tmp_path / "p", datetime.now(UTC))
    settings = AttestSettings(simulated_platform=str(tmp_path / "p"))
    with pytest.raises(ConfigError, match="no TEE") as caught:
        pick_attester(settings, mr_config_id=MR_CONFIG_ID, tsm_reports=tmp_path / "absent")
    assert "simulated-tdx" in caught.value.hint


def test_hardware_if_it_is_there(tmp_path: Path) -> None:
    """With the kernel's folder there, the automatic choice is the kernel."""
    attester = pick_attester(
        AttestSettings(), mr_config_id=MR_CONFIG_ID, tsm_reports=FakeConfigfsPath(tmp_path)
    )
    assert isinstance(attester, ConfigfsAttester)
    assert attester.scheme == "tdx"


@pytest.mark.parametrize("folder", ["", "/absent"])
def test_simulated_platform_must_be_there(folder: str) -> None:
    """Asking for a simulated platform without saying which, or where none is, is an error."""
    settings = AttestSettings(attester="simulated-tdx", simulated_platform=folder)
    with pytest.raises(ConfigError) as caught:
        pick_attester(settings, mr_config_id=MR_CONFIG_ID)
    assert "cloister simulate init" in caught.value.hint


def test_registers_have_48_bytes(platform: SimulatedPlatform) -> None:
    """Measurements of another length are refused at once."""
    with pytest.raises(MalformedInput):
        SimulatedTdxAttester(platform, mr_td=b"short", mr_config_id=MR_CONFIG_ID)
