"""Which Attester this machine has: hardware that is there, or a simulated platform that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.attest.attesters.coco_rest import COCO_REST, CocoAttester
from cloister.attest.attesters.configfs import TSM_REPORTS, ConfigfsAttester
from cloister.attest.attesters.gramine import DEV_ATTESTATION, GramineAttester
from cloister.attest.attesters.simulated import (
    SimulatedSgxAttester,
    SimulatedSnpAttester,
    SimulatedTdxAttester,
)
from cloister.attest.attesters.vtpm import TPM_DEVICE, VtpmAttester
from cloister.attest.measure import installed_package, measure_package
from cloister.attest.model import Attester
from cloister.attest.simulated import SimulatedPlatform, SimulatedSgxPlatform, SimulatedSnpPlatform
from cloister.errors import ConfigError, TransportError
from cloister.settings import AttestSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Interfaces:
    """Where the hardware's interfaces are; other places are for tests."""

    tsm_reports: Path = TSM_REPORTS
    dev_attestation: Path = DEV_ATTESTATION
    coco_rest: str = COCO_REST
    tpm_device: Path = TPM_DEVICE


def pick_attester(
    settings: AttestSettings, *, mr_config_id: bytes, interfaces: Interfaces | None = None
) -> Attester:
    """The Attester that the settings ask for.

    ``auto`` takes the first interface that is there: configfs-tsm, Gramine, Confidential Containers' REST
    service, TPM. One that is there and does not work is an error, for the next one would prove less. It never
    takes a simulated platform.

    Args:
        mr_config_id: 48 bytes; a simulated platform shows them. Hardware has its own, set at launch.
        interfaces: where to look; None means where they are on every machine.
    Raises:
        ConfigError: no TEE is here, or not the one that was asked for, or the simulated platform is not.
        KeyUnavailable: the interface is there and does not work, for want of rights for example.
        TransportError: the REST service was asked for and does not answer.
    """
    at = interfaces or Interfaces()
    name = settings.attester
    if name == "auto":
        return _first_there(at)
    if name in _HARDWARE:
        return _HARDWARE[name].open(at)
    return _SIMULATED[name](_simulated_folder(settings), mr_config_id)


@dataclass(frozen=True, slots=True)
class _Hardware:
    title: str
    seems_there: Callable[[Interfaces], bool]
    """A look that costs nothing; the REST service is found out by asking it."""
    open: Callable[[Interfaces], Attester]


_HARDWARE = {
    "configfs": _Hardware(
        "configfs-tsm", lambda at: at.tsm_reports.is_dir(), lambda at: ConfigfsAttester(at.tsm_reports)
    ),
    "gramine": _Hardware(
        "Gramine",
        lambda at: (at.dev_attestation / "attestation_type").exists(),
        lambda at: GramineAttester(at.dev_attestation),
    ),
    "coco": _Hardware("Confidential Containers", lambda at: True, lambda at: CocoAttester(at.coco_rest)),
    "vtpm": _Hardware(
        "TPM", lambda at: at.tpm_device.exists(), lambda at: VtpmAttester(f"device:{at.tpm_device}")
    ),
}


def _first_there(at: Interfaces) -> Attester:
    found: list[str] = []
    for hardware in _HARDWARE.values():
        if not hardware.seems_there(at):
            found.append(f"{hardware.title}: not there")
            continue
        try:
            return hardware.open(at)
        except (ConfigError, TransportError) as error:
            found.append(f"{hardware.title}: {error.message}")
    raise ConfigError(
        f"no TEE found on this machine: {'; '.join(found)}",
        hint='to try Cloister without one: attest.attester = "simulated-tdx" and attest.simulated_platform'
        " (protects nothing)",
    )


def _simulated_folder(settings: AttestSettings) -> Path:
    if not settings.simulated_platform:
        raise ConfigError(
            f"{settings.attester} was asked for, but not which platform: attest.simulated_platform is empty",
            hint="make one with `cloister simulate init`, then set attest.simulated_platform",
        )
    return Path(settings.simulated_platform)


def _simulated_tdx(folder: Path, mr_config_id: bytes) -> Attester:
    platform = SimulatedPlatform.load(folder)
    return SimulatedTdxAttester(platform, mr_td=_own_measurement(), mr_config_id=mr_config_id)


def _simulated_sgx(folder: Path, mr_config_id: bytes) -> Attester:
    platform = SimulatedSgxPlatform.load(folder)
    return SimulatedSgxAttester(platform, measurement=_own_measurement(), mr_config_id=mr_config_id)


def _simulated_snp(folder: Path, mr_config_id: bytes) -> Attester:
    platform = SimulatedSnpPlatform.load(folder)
    return SimulatedSnpAttester(platform, measurement=_own_measurement(), mr_config_id=mr_config_id)


def _own_measurement() -> bytes:
    return measure_package(installed_package())


_SIMULATED: dict[str, Callable[[Path, bytes], Attester]] = {
    "simulated-tdx": _simulated_tdx,
    "simulated-sgx": _simulated_sgx,
    "simulated-sev-snp": _simulated_snp,
}
