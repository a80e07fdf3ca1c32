"""One simulated platform for all tests of attestation, and the time at which they run."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloister.attest import ReferenceValues
from cloister.attest.dcap import DcapEndorsements, TdxClaims
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.verifier import verify_evidence

NOW = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
MR_TD = bytes(range(48))
MR_CONFIG_ID = bytes(range(48, 96))
REPORT_DATA = bytes(range(64))


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """A simulated platform, made at ``NOW``."""
    return SimulatedPlatform.create(tmp_path_factory.mktemp("simulated") / "platform", NOW)


@pytest.fixture(scope="session")
def endorsements(platform: SimulatedPlatform) -> DcapEndorsements:
    """Its collateral."""
    return platform.endorsements(NOW)


@pytest.fixture(scope="session")
def quote(platform: SimulatedPlatform) -> bytes:
    """A good quote of it."""
    return platform.quote(REPORT_DATA, mr_td=MR_TD, mr_config_id=MR_CONFIG_ID)


@pytest.fixture(scope="session")
def claims(platform: SimulatedPlatform, endorsements: DcapEndorsements, quote: bytes) -> TdxClaims:
    """The verified claims of that quote."""
    verified = verify_evidence("tdx", quote, endorsements, NOW, roots=[platform.root])
    assert isinstance(verified, TdxClaims)
    return verified


@pytest.fixture(scope="session")
def reference_values() -> ReferenceValues:
    """Reference values that accept that quote."""
    return ReferenceValues.from_mapping({"allow_simulated": True, "tdx": {"mr_td": [MR_TD.hex()]}})
