"""Simulated platforms of the other vendors."""

from __future__ import annotations

import pytest

from cloister.attest.simulated import SimulatedSgxPlatform, SimulatedSnpPlatform
from tests.attest.conftest import NOW


@pytest.fixture(scope="session")
def sgx_platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSgxPlatform:
    """A simulated SGX platform, made at ``NOW``."""
    return SimulatedSgxPlatform.create(tmp_path_factory.mktemp("sgx") / "platform", NOW)


@pytest.fixture(scope="session")
def snp_platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSnpPlatform:
    """A simulated SEV-SNP platform, made at ``NOW``."""
    return SimulatedSnpPlatform.create(tmp_path_factory.mktemp("snp") / "platform", NOW)
