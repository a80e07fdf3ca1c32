"""Does a device run known firmware? Its measurements against those of the manifests.

=========== ================================================================================
result      meaning
=========== ================================================================================
success     every active measurement of the driver's and the VBIOS's manifest has one of its values
fail        one has another value, is absent, or both manifests claim the same index
not-run     a manifest is missing, and what there is matches
=========== ================================================================================

A switch has one manifest only, of its BIOS.

Source: NVIDIA attestation SDK, measurement comparison; RFC 9711, section 4.2.16 (``measres``).
"""

from __future__ import annotations

from cloister.attest.nvidia.report import Report
from cloister.attest.nvidia.rim import Rim
from cloister.errors import EndorsementMismatch

SUCCESS, FAIL, NOT_RUN = "success", "fail", "not-run"
NVDEC0_INDEX = 36
"""SPDM index of the measurement of video decoder 0, which does not count where that is switched off."""
_DISABLED = b"\x55"


def compare_measurements(
    report: Report, driver_rim: Rim | None, vbios_rim: Rim | None
) -> tuple[str, tuple[str, ...]]:
    """The result of the comparison, and what did not match, for example ``driver 10``.

    Raises:
        EndorsementMismatch: a manifest is of another version than the one that runs.
    """
    rims = {"vbios": vbios_rim} if report.is_switch else {"driver": driver_rim, "vbios": vbios_rim}
    _expect_version(driver_rim, report.driver_version, "driver")
    _expect_version(vbios_rim, report.vbios_version, "VBIOS")
    mismatched = [
        f"{name} {index}"
        for name, rim in rims.items()
        if rim is not None
        for index, values in rim.golden.items()
        if _counts(index, report) and report.measurements.get(index) not in values
    ]
    if driver_rim is not None and vbios_rim is not None:
        both = driver_rim.golden.keys() & vbios_rim.golden.keys()
        mismatched.extend(f"conflict {index}" for index in sorted(both))
    if mismatched:
        return FAIL, tuple(mismatched)
    return (NOT_RUN if None in rims.values() else SUCCESS), ()


def _counts(index: int, report: Report) -> bool:
    return index != NVDEC0_INDEX or report.opaque.get("nvdec0_status") != _DISABLED


def _expect_version(rim: Rim | None, running: str, what: str) -> None:
    if rim is not None and rim.version.upper() != running.upper():
        raise EndorsementMismatch(
            f"{what} manifest is of version {rim.version!r}, the device runs {running!r}"
        )
