"""Simulated hardware for machines on a fake Azure."""

from __future__ import annotations

import pytest

from cloister.attest.simulated.snp import SimulatedSnpPlatform
from tests.attest.conftest import NOW


@pytest.fixture(scope="package")
def snp_platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSnpPlatform:
    """A simulated SEV-SNP platform, made at ``NOW``."""
    return SimulatedSnpPlatform.create(tmp_path_factory.mktemp("azure") / "platform", NOW)
