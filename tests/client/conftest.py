"""One simulated platform for all tests of the client, and a fresh service for each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated.platform import SimulatedPlatform
from tests.fakes.sealed_service import MR_TD, SealedService, TlsKey


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """A simulated platform; its root is what the tests trust."""
    return SimulatedPlatform.create(
        tmp_path_factory.mktemp("platform") / "tdx", datetime.now(UTC) - timedelta(minutes=1)
    )


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsKey:
    """The service's TLS key."""
    return TlsKey.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def other_tls(tmp_path_factory: pytest.TempPathFactory) -> TlsKey:
    """The TLS key of somebody between."""
    return TlsKey.make(tmp_path_factory.mktemp("other-tls"))


@pytest.fixture
def service(platform: SimulatedPlatform, tls: TlsKey) -> Iterator[SealedService]:
    """An honest service, running."""
    service = SealedService(platform, tls)
    with service.serving():
        yield service


@pytest.fixture(scope="session")
def reference_values() -> ReferenceValues:
    """Accept the service."""
    return ReferenceValues.from_toml(f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
