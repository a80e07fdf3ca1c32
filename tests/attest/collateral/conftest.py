"""Simulated platforms, and fake services on loopback that know them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.attest.collateral import HttpFetcher, KdsSource, PcsSource
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.simulated import SimulatedPlatform, SimulatedSnpPlatform
from cloister.attest.snp import SnpEndorsements
from tests.attest.conftest import NOW, REPORT_DATA
from tests.fakes.pcs import FakeVendors, serving

FMSPC = "90c06f000000"
MEASUREMENT = bytes(range(48))


@pytest.fixture(scope="session")
def snp_platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSnpPlatform:
    """A simulated Genoa processor with a VCEK."""
    return SimulatedSnpPlatform.create(tmp_path_factory.mktemp("snp") / "platform", NOW)


@pytest.fixture(scope="session")
def report(snp_platform: SimulatedSnpPlatform) -> bytes:
    """A report of it."""
    return snp_platform.quote(REPORT_DATA, measurement=MEASUREMENT)


@pytest.fixture(scope="session")
def snp_endorsements(snp_platform: SimulatedSnpPlatform) -> SnpEndorsements:
    """Its endorsements."""
    return snp_platform.endorsements(NOW)


@pytest.fixture
def vendors(
    platform: SimulatedPlatform,
    endorsements: DcapEndorsements,
    report: bytes,
    snp_endorsements: SnpEndorsements,
) -> Iterator[FakeVendors]:
    """Services that know both platforms."""
    vendors = FakeVendors()
    vendors.add_intel("tdx", FMSPC, "platform", endorsements)
    vendors.add_amd(report, snp_endorsements)
    with serving(vendors) as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    """How long the client waited between attempts, without waiting."""
    return []


@pytest.fixture
def fetcher(waits: list[float]) -> HttpFetcher:
    """A client that does not really wait."""
    return HttpFetcher(timeout_s=10, sleep=waits.append)


@pytest.fixture
def pcs(fetcher: HttpFetcher, vendors: FakeVendors) -> PcsSource:
    """The client of the fake Intel service."""
    return PcsSource(fetcher, vendors.url)


@pytest.fixture
def kds(fetcher: HttpFetcher, vendors: FakeVendors) -> KdsSource:
    """The client of the fake AMD service."""
    return KdsSource(fetcher, vendors.url)
