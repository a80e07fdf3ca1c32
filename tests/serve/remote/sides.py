"""Two sides of a joining connection on one simulated platform, for tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.attesters.simulated import SimulatedTdxAttester
from cloister.attest.model import Endorsements
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.verifier import parse_endorsements, verify_evidence
from cloister.errors import ConfigError
from cloister.serve.remote.proof import Credentials, Demands, Transcript
from cloister.serve.remote.same import same_as

MEASUREMENT = bytes(range(48))
SETTINGS = bytes(range(48, 96))
ALIKE = '{"mode":"protected"}'


class AgedAttester(SimulatedTdxAttester):
    """A platform whose vendor says that it is out of date."""

    def get_endorsements(self) -> Endorsements | None:
        return self._platform.endorsements(datetime.now(UTC), tcb_status="OutOfDate")


def attester(
    platform: SimulatedPlatform, *, measurement: bytes = MEASUREMENT, aged: bool = False
) -> SimulatedTdxAttester:
    """Evidence of a machine with this measurement."""
    kind = AgedAttester if aged else SimulatedTdxAttester
    return kind(platform, mr_td=measurement, mr_config_id=SETTINGS)


def credentials(maker: SimulatedTdxAttester | None, *, token: bytes = b"", **changes: Any) -> Credentials:
    """What a side proves itself with."""
    own = Credentials(settings_digest=SETTINGS, confinement=ALIKE, attester=maker, token=token)
    return replace(own, **changes)


def demands(platform: SimulatedPlatform | None, *, token: bytes = b"", **changes: Any) -> Demands:
    """What a side wants: the test's measurement, on this platform; without one, open mode."""
    values = None
    if platform is not None:
        maker = attester(platform)
        values = same_as(
            verify_evidence(
                "tdx",
                maker.get_evidence(bytes(64)).raw,
                maker.get_endorsements(),
                datetime.now(UTC),
                roots=[platform.root],
            )
        )
    wanted = Demands(
        mode="open" if platform is None else "protected",
        token=token,
        reference_values=values,
        simulated_root=None if platform is None else platform.root,
        obtain=brought_along,
        confinement=ALIKE,
    )
    return replace(wanted, **changes)


def brought_along(scheme: str, evidence: bytes, brought: Any, now: datetime) -> Endorsements | None:
    """What came with the evidence; no vendor is asked in tests."""
    if brought is None:
        raise ConfigError("no collateral is fetched in tests")
    return parse_endorsements(scheme, brought)


def values(**fields: Any) -> ReferenceValues:
    """Reference values for simulated TDX."""
    return ReferenceValues.from_mapping({"allow_simulated": True, "tdx": fields})


def transcript(**changes: Any) -> Transcript:
    """One connection."""
    seen = Transcript(
        mode="protected",
        frontend_nonce=b"f" * 32,
        worker_nonce=b"w" * 32,
        frontend_spki=b"key of the frontend",
        worker_spki=b"key of the host",
    )
    return replace(seen, **changes)


def make_platform(folder: Path) -> SimulatedPlatform:
    """A new platform."""
    return SimulatedPlatform.create(folder, datetime.now(UTC))
