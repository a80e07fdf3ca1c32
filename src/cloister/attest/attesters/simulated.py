"""Simulated Attesters: software that says of itself what hardware would measure. They protect nothing.

What Cloister measures of itself (48 bytes, ``measure_package``) and the digest of its settings (48 bytes) go
where the vendor has a place for them:

================== ========================================== =============================================
scheme             package                                    settings
================== ========================================== =============================================
tdx                ``mr_td``                                  ``mr_config_id``
sgx                ``mr_enclave``: SHA-256 of the measurement  CONFIGID of the report, zero-padded
sev-snp            ``measurement``                            ``host_data``: the digest's first 32 bytes
================== ========================================== =============================================
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from cloister.attest.measure import MEASUREMENT_BYTES
from cloister.attest.model import Endorsements, Evidence
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.attest.simulated.sgx import SimulatedSgxPlatform
from cloister.attest.simulated.snp import SimulatedSnpPlatform
from cloister.errors import MalformedInput

HOST_DATA_BYTES = 32


class SimulatedTdxAttester:
    """A software trust domain: MRTD measures a package's files, MRCONFIGID the settings. It protects nothing.

    Args:
        platform: the simulated platform that makes the quotes.
        mr_td: 48 bytes, usually ``measure_package(installed_package())``.
        mr_config_id: 48 bytes, usually ``settings_digest(settings)``.
    """

    scheme = "tdx"

    def __init__(self, platform: SimulatedPlatform, *, mr_td: bytes, mr_config_id: bytes) -> None:
        _check_lengths(mr_td, mr_config_id)
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


class SimulatedSgxAttester:
    """A software enclave. It protects nothing.

    Args:
        measurement: 48 bytes, usually ``measure_package(installed_package())``.
        mr_config_id: 48 bytes, usually ``settings_digest(settings)``.
    """

    scheme = "sgx"

    def __init__(self, platform: SimulatedSgxPlatform, *, measurement: bytes, mr_config_id: bytes) -> None:
        _check_lengths(measurement, mr_config_id)
        self._platform = platform
        self._mr_enclave = enclave_measurement(measurement)
        self._mr_config_id = mr_config_id

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A simulated quote over 64 bytes of ``report_data``."""
        raw = self._platform.quote(report_data, mr_enclave=self._mr_enclave, config_id=self._mr_config_id)
        return Evidence(self.scheme, raw)

    def get_endorsements(self) -> Endorsements | None:
        """The simulated platform's own collateral."""
        return self._platform.endorsements(datetime.now(UTC))


class SimulatedSnpAttester:
    """A software SEV-SNP guest. It protects nothing.

    Args:
        measurement: 48 bytes, usually ``measure_package(installed_package())``.
        mr_config_id: 48 bytes, usually ``settings_digest(settings)``.
    """

    scheme = "sev-snp"

    def __init__(self, platform: SimulatedSnpPlatform, *, measurement: bytes, mr_config_id: bytes) -> None:
        _check_lengths(measurement, mr_config_id)
        self._platform = platform
        self._measurement = measurement
        self._host_data = mr_config_id[:HOST_DATA_BYTES]

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A simulated report over 64 bytes of ``report_data``."""
        raw = self._platform.quote(report_data, measurement=self._measurement, host_data=self._host_data)
        return Evidence(self.scheme, raw)

    def get_endorsements(self) -> Endorsements | None:
        """The simulated platform's own certificates and revocation list."""
        return self._platform.endorsements(datetime.now(UTC))


def enclave_measurement(measurement: bytes) -> bytes:
    """The ``mr_enclave`` (32 bytes) that a simulated enclave shows for a package's measurement (48 bytes)."""
    return hashlib.sha256(measurement).digest()


def _check_lengths(measurement: bytes, mr_config_id: bytes) -> None:
    if len(measurement) != MEASUREMENT_BYTES or len(mr_config_id) != MEASUREMENT_BYTES:
        raise MalformedInput("a measurement and mr_config_id have 48 bytes")
