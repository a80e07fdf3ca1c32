"""The choice of an Attester."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PosixPath
from typing import Any

import pytest

from cloister.attest import Attester, verify_evidence
from cloister.attest.attester import Interfaces, pick_attester
from cloister.attest.attesters.coco_rest import CocoAttester
from cloister.attest.attesters.configfs import ConfigfsAttester
from cloister.attest.attesters.gramine import GramineAttester
from cloister.attest.attesters.simulated import SimulatedTdxAttester, enclave_measurement
from cloister.attest.dcap import SgxClaims, TdxClaims
from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform, SimulatedSgxPlatform, SimulatedSnpPlatform
from cloister.attest.snp import SnpClaims
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.settings import AttestSettings
from tests.attest.conftest import MR_CONFIG_ID, REPORT_DATA
from tests.fakes.coco import FakeCoco, serve
from tests.fakes.configfs import FakeConfigfsPath
from tests.fakes.gramine import FakeGramineFolder


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


@pytest.fixture
def nothing(tmp_path: Path) -> Interfaces:
    """A machine without any TEE."""
    with serve(FakeCoco("tdx", lambda data: {})) as closed:
        pass
    absent = tmp_path / "absent"
    return Interfaces(tsm_reports=absent, dev_attestation=absent, coco_rest=closed, tpm_device=absent)


def picked(interfaces: Interfaces, attester: Any = "auto") -> Attester:
    """The choice on a machine."""
    settings = AttestSettings(attester=attester)
    return pick_attester(settings, mr_config_id=MR_CONFIG_ID, interfaces=interfaces)


def test_never_simulated_by_itself(tmp_path: Path, nothing: Interfaces) -> None:
    """Without a TEE the automatic choice fails, and says where it looked: no simulated platform counts."""
    SimulatedPlatform.create(tmp_path / "p", datetime.now(UTC))
    settings = AttestSettings(simulated_platform=str(tmp_path / "p"))
    with pytest.raises(ConfigError, match="no TEE") as caught:
        pick_attester(settings, mr_config_id=MR_CONFIG_ID, interfaces=nothing)
    assert "simulated-tdx" in caught.value.hint
    for title in ("configfs-tsm", "Gramine", "Confidential Containers", "TPM"):
        assert title in caught.value.message


def test_order(tmp_path: Path, nothing: Interfaces) -> None:
    """The automatic choice takes the kernel before Gramine, and Gramine before the REST service."""
    (tmp_path / "gramine").mkdir()
    gramine = FakeGramineFolder.create(tmp_path / "gramine")
    kernel = FakeConfigfsPath(tmp_path / "tsm")
    PosixPath(kernel).mkdir()
    with serve(FakeCoco("tdx", lambda data: {})) as url:
        rest_only = replace(nothing, coco_rest=url)
        assert isinstance(picked(rest_only), CocoAttester)
        in_enclave = replace(rest_only, dev_attestation=gramine)
        assert isinstance(picked(in_enclave), GramineAttester)
        assert isinstance(picked(replace(in_enclave, tsm_reports=kernel)), ConfigfsAttester)


def test_an_interface_without_a_tee_is_passed_over(tmp_path: Path, nothing: Interfaces) -> None:
    """An enclave that cannot attest by DCAP, and a REST service without attestation, are not there."""
    gramine = FakeGramineFolder.create(tmp_path, "none")
    with serve(FakeCoco(None, lambda data: {})) as url, pytest.raises(ConfigError) as caught:
        picked(replace(nothing, dev_attestation=gramine, coco_rest=url))
    assert "'none'" in caught.value.message
    assert "names no TEE" in caught.value.message


def test_an_interface_that_does_not_work_is_an_error(tmp_path: Path, nothing: Interfaces) -> None:
    """Weaker evidence does not silently take the place of a TEE that is there and fails."""
    with serve(FakeCoco("tdx", lambda data: {})) as url, pytest.raises(KeyUnavailable):
        picked(replace(nothing, tsm_reports=tmp_path, coco_rest=url))


@pytest.mark.parametrize("name", ["configfs", "gramine", "coco", "vtpm"])
def test_hardware_by_name(nothing: Interfaces, name: str) -> None:
    """Hardware that was asked for by name and is not there is an error, not a reason to look elsewhere."""
    with pytest.raises((KeyUnavailable, TransportError, ConfigError)) as caught:
        picked(nothing, name)
    assert "no TEE found" not in caught.value.message


@pytest.mark.parametrize("name", ["simulated-sgx", "simulated-sev-snp"])
def test_other_simulated_platforms(tmp_path: Path, name: str) -> None:
    """The other vendors' simulated platforms measure the same package, each in its vendor's place."""
    now, folder = datetime.now(UTC), tmp_path / "p"
    kind = SimulatedSgxPlatform if name == "simulated-sgx" else SimulatedSnpPlatform
    root = kind.create(folder, now).root
    settings = AttestSettings(attester=name, simulated_platform=str(folder))  # type: ignore[arg-type]
    attester = pick_attester(settings, mr_config_id=MR_CONFIG_ID)
    evidence = attester.get_evidence(REPORT_DATA)
    claims = verify_evidence(evidence.scheme, evidence.raw, attester.get_endorsements(), now, roots=[root])
    own = measure_package(installed_package())
    if isinstance(claims, SgxClaims):
        assert claims.mr_enclave == enclave_measurement(own)
    else:
        assert isinstance(claims, SnpClaims)
        assert (claims.measurement, claims.host_data) == (own, MR_CONFIG_ID[:32])


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
