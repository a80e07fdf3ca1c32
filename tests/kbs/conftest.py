"""One simulated platform and one broker for all tests that do not change its files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.attest.simulated import SimulatedPlatform
from tests.kbs.broker_process import RunningBroker


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """A software TDX platform."""
    return SimulatedPlatform.create(tmp_path_factory.mktemp("platform"), datetime.now(UTC))


@pytest.fixture(scope="module")
def broker(platform: SimulatedPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker that releases to the simulated platform's TEEs; holds ``models/key/digits``."""
    running = RunningBroker(tmp_path_factory.mktemp("broker"), platform)
    running.put("kbs:///models/key/digits", SECRET)
    yield running
    running.stop()


@pytest.fixture
def own_broker(platform: SimulatedPlatform, tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker of this test's own, whose files it may change."""
    running = RunningBroker(tmp_path, platform)
    running.put("kbs:///models/key/digits", SECRET)
    yield running
    running.stop()


SECRET = b"CANARY-DEK-" + bytes(range(200, 221))
