"""Which Attester this machine has: hardware that is there, or a simulated platform that was asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cloister.attest.configfs import TSM_REPORTS, ConfigfsAttester
from cloister.attest.measure import MEASUREMENT_BYTES, installed_package, measure_package
from cloister.attest.model import Attester, Endorsements, Evidence
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError, MalformedInput
from cloister.settings import AttestSettings


class SimulatedTdxAttester:
    """A software trust domain: MRTD measures a package's files, MRCONFIGID the settings. It protects nothing.

    Args:
        platform: the simulated platform that makes the quotes.
        mr_td: 48 bytes, usually ``measure_package(installed_package())``.
        mr_config_id: 48 bytes, usually ``settings_digest(settings)``.
    """

    scheme = "tdx"

    def __init__(self, platform: SimulatedPlatform, *, mr_td: bytes, mr_config_id: bytes) -> None:
        if len(mr_td) != MEASUREMENT_BYTES or len(mr_config_id) != MEASUREMENT_BYTES:
            raise MalformedInput("mr_td and mr_config_id have 48 bytes")
        self._platform = platform
        self._mr_td = mr_td
        self._mr_config_id = mr_config_id

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A simulated quote over 64 bytes of ``report_data``."""
        raw = self._platform.quote(report_data, mr_td=self._mr_td, mr_config_id=self._mr_config_id)
        return Evidence(self.scheme, raw)

    def get_endorsements(self) -> Endorsements | None:
        """The simulated platform's own collateral."""
        return self._platform.endorsements(datetime.now(UTC))


def pick_attester(
    settings: AttestSettings, *, mr_config_id: bytes, tsm_reports: Path = TSM_REPORTS
) -> Attester:
    """The Attester that the settings ask for.

    Args:
        mr_config_id: 48 bytes; a simulated platform shows them. Hardware has its own, set at launch.
        tsm_reports: where the kernel's interface is.
    Raises:
        ConfigError: no TEE is here, or the simulated platform is not.
    """
    if settings.attester == "simulated-tdx":
        if not settings.simulated_platform:
            raise ConfigError(
                "a simulated TDX platform was asked for, but not which: attest.simulated_platform is empty",
                hint="make one with `cloister simulate init`, then set attest.simulated_platform",
            )
        platform = SimulatedPlatform.load(Path(settings.simulated_platform))
        mr_td = measure_package(installed_package())
        return SimulatedTdxAttester(platform, mr_td=mr_td, mr_config_id=mr_config_id)
    if tsm_reports.is_dir():
        return ConfigfsAttester(tsm_reports)
    raise ConfigError(
        f"no TEE found on this machine: {tsm_reports} is missing",
        hint='to try Cloister without one: attest.attester = "simulated-tdx" and attest.simulated_platform'
        " (protects nothing)",
    )
