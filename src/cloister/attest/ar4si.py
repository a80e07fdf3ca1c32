"""The trust vector of a verdict: eight claims, each a number from -128 to 127 with a fixed meaning.

What the vector says of an aspect follows from the appraisal's checks of it: each check belongs to one aspect
by its name, and an aspect that no check spoke of has no assertion (0).

==================== =================================== ============ ================= ===================
aspect               checks                              all passed   tolerated         failed
==================== =================================== ============ ================= ===================
instance-identity    ``hardware_ids``, keys, instances   2            -                 97 not recognized
configuration        everything that is not below        2            32 (debug, ...)   96 unacceptable
executables          measurements and registers          3 at boot    -                 33 not recognized
hardware             genuine; TCB, firmware, products    2            32 vulnerable     96, 97 simulated
runtime-opaque       debug, simulation; TEEs only        2            32                96 visible
file-system          none                                0
storage-opaque       none                                0
sourced-data         none                                0
==================== =================================== ============ ================= ===================

*Tolerated*: the reference values allow a weakness that the evidence shows. The verdict's tier is never better
than the worst claim; where a check that failed would only warn (executables), the tier still says
contraindicated.

Source: draft-ietf-rats-ar4si-08, section 2.3; the default policy of Trustee's attestation service.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.attest.model import AttestationResult, Check, TrustTier
from cloister.attest.verifier import SCHEMES, find_scheme

NAMES = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
NO_ASSERTION = 0
AFFIRMING = 2
APPROVED_AT_BOOT = 3
WARNING = 32
NOT_RECOGNIZED_EXECUTABLES = 33
CONTRAINDICATED = 96
NOT_RECOGNIZED = 97
MIN_CLAIM, MAX_CLAIM = -128, 127
_IDENTITY = {
    "hardware_ids",
    "attestation_keys",
    "vm_unique_ids",
    "module_id",
    "instance_id",
    "csp_ids",
    "fwid",
}
_EXECUTABLES = {
    "mr_td",
    "mr_enclave",
    "mr_signer",
    "min_isv_svn",
    "measurement",
    "measurements",
    "measres",
    "id_key_digests",
    "author_key_digests",
    "family_ids",
    "image_ids",
    "min_guest_svn",
    "pcrs",
    "mr_service_td",
}
_HARDWARE = {
    "simulated",
    "tcb_status",
    "allowed_advisory_ids",
    "mr_seam",
    "mr_signer_seam",
    "min_tee_tcb_svn",
    "min_cpu_svn",
    "min_tcb",
    "min_committed_tcb",
    "min_launch_tcb",
    "min_api",
    "min_tcb_evaluation_data_number",
    "min_firmware_version",
    "max_collateral_age_s",
    "max_crl_age_s",
    "fmspcs",
    "products",
    "signing_keys",
    "platform_flags",
    "smt",
    "hwmodel",
    "arch",
    "driver_version",
    "vbios_version",
    "ocsp_missing",
    "roots",
    "ak_roots",
    "kind",
    "max_age_s",
}
_OPAQUE = {"tdx", "sgx", "sev-snp", "az-snp-vtpm", "az-tdx-vtpm"}
"""Schemes whose evidence says that memory is encrypted and out of the host's reach."""


def trust_vector(result: AttestationResult) -> dict[str, int]:
    """The eight claims for one verdict."""
    by_aspect: dict[str, list[Check]] = {name: [] for name in NAMES}
    for check in result.checks:
        by_aspect[aspect_of(check.name)].append(check)
    if result.claims.scheme not in SCHEMES:  # "sample": evidence that nobody has verified asserts nothing.
        return dict.fromkeys(NAMES, NO_ASSERTION)
    claims, scheme = result.claims, find_scheme(result.claims.scheme)
    unsound = claims.tcb_status not in scheme.sound_status
    vector = dict.fromkeys(NAMES, NO_ASSERTION)
    vector["instance-identity"] = _claim(by_aspect["instance-identity"], failed=NOT_RECOGNIZED)
    vector["configuration"] = _claim(by_aspect["configuration"], tolerated=claims.debug)
    vector["executables"] = _claim(
        by_aspect["executables"], passed=APPROVED_AT_BOOT, failed=NOT_RECOGNIZED_EXECUTABLES
    )
    # That it is genuine has been established, even where nothing more was checked.
    hardware = _claim(by_aspect["hardware"], tolerated=unsound or claims.simulated) or AFFIRMING
    if claims.simulated and hardware == CONTRAINDICATED:
        hardware = NOT_RECOGNIZED
    vector["hardware"] = hardware
    if claims.scheme in _OPAQUE:
        visible = [check for check in result.checks if check.name in ("debug", "simulated")]
        vector["runtime-opaque"] = (
            _claim(visible, tolerated=claims.debug or claims.simulated) or CONTRAINDICATED
        )
    return vector


def aspect_of(check: str) -> str:
    """The aspect that a check belongs to, by its name."""
    if check in _IDENTITY:
        return "instance-identity"
    if check in _EXECUTABLES or check.startswith(("rtmr", "pcr")):
        return "executables"
    return "hardware" if check in _HARDWARE else "configuration"


def tier_of_claim(value: int) -> TrustTier:
    """The tier that a claim's number lies in.

    Source: draft-ietf-rats-ar4si-08, section 2.3.2: -1 to 1 say nothing, -32 to 31 affirm, -96 to 95 warn.
    """
    if -1 <= value <= 1:
        return TrustTier.NONE
    if -WARNING <= value < WARNING:
        return TrustTier.AFFIRMING
    return TrustTier.WARNING if -CONTRAINDICATED <= value < CONTRAINDICATED else TrustTier.CONTRAINDICATED


def worst_tier(vector: Mapping[str, int]) -> TrustTier:
    """The worst tier of a vector's claims."""
    return max((tier_of_claim(value) for value in vector.values()), default=TrustTier.NONE)


def _claim(
    checks: list[Check],
    *,
    passed: int = AFFIRMING,
    failed: int = CONTRAINDICATED,
    tolerated: bool = False,
) -> int:
    if not checks:
        return NO_ASSERTION
    if not all(check.passed for check in checks):
        return failed
    return WARNING if tolerated else passed
