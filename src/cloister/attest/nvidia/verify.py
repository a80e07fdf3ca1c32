"""Is a report of an NVIDIA GPU or NVSwitch genuine, and does it show known firmware? All of it offline.

Source: NVIDIA attestation SDK and its claims, version 3; NVIDIA GPU attestation, device identity chain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.model import Claims, Endorsements
from cloister.attest.nvidia.endorsements import NvidiaEndorsements
from cloister.attest.nvidia.evidence import DeviceEvidence, parse_evidence
from cloister.attest.nvidia.fwid import fwids_of
from cloister.attest.nvidia.measurements import FAIL, NOT_RUN, SUCCESS, compare_measurements
from cloister.attest.nvidia.ocsp import check_revocation
from cloister.attest.nvidia.report import Report, parse_report
from cloister.attest.nvidia.rim import Rim, open_rim
from cloister.attest.nvidia.roots import device_roots, is_device_root, is_rim_root, rim_roots
from cloister.attest.nvidia.rules import GoldenMeasurements
from cloister.attest.p384 import Chain, common_name, key_of, open_chain, split_pem, verify_raw
from cloister.attest.rules import OneOf, OneWord, Rule, Unless
from cloister.attest.scheme import Scheme
from cloister.errors import BindingMismatch, EndorsementMismatch, MalformedInput

GOOD, NOT_CHECKED = "good", "not-checked"
_FEWEST_CERTIFICATES = 3
_ARCHITECTURES = {"GH": "HOPPER", "GB": "BLACKWELL", "LS": "LS10"}
_MODES = {0: "SPT", 1: "MPT", 2: "PPCIE"}
_SWITCHES = {b"\x55": "disabled", b"\xaa": "enabled"}
_SEPARATORS = re.compile(r"[^A-Z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaClaims(Claims):
    """What a report says, and what its endorsements say of it.

    ``report_data`` is the verifier's nonce, 32 bytes. ``tcb_status`` is ``measres``. ``hardware_id`` is the
    serial number of the certificate of the device's own key, which no update changes.
    """

    hwmodel: str
    """For example ``GH100 A01 GSP BROM``."""
    arch: str
    """``HOPPER``, ``BLACKWELL``, ``LS10``, or ``unknown``."""
    ueid: str
    """Serial number of the signing certificate, decimal; it changes with the firmware."""
    driver_version: str
    """Empty for a switch."""
    vbios_version: str
    """Of a switch: its BIOS's."""
    mode: str
    """``SPT`` (one GPU), ``MPT`` (several), ``PPCIE`` (protected PCIe), or empty where it is not stated."""
    measres: str
    """``success``, ``fail``, ``not-run``: ``cloister.attest.nvidia.measurements``."""
    mismatched_measurements: tuple[str, ...]
    secboot: bool
    """As NVIDIA defines it: the measurements were compared, and they match."""
    dbgstat: str
    """``disabled`` where ``secboot`` is true, else ``undefined``."""
    ocsp_status: str
    """``good`` if every certificate in use has an OCSP response that says so, else ``not-checked``."""
    fwid: bytes
    """Firmware identity: digest of the first mutable code, as the certificate states it."""
    fwid_in_report: bool
    """Whether the report repeats it; switches, and drivers before 550, do not."""
    measurements: Mapping[int, bytes]
    """By SPDM index, from 1."""
    nvdec0_status: str
    protected_pcie_status: str
    opaque: Mapping[str, str]
    """All fields of the opaque data: identifiers as text, everything else as hexadecimal."""

    def to_mapping(self) -> dict[str, Any]:
        """Every claim as JSON; measurement indexes become text, as JSON requires."""
        mapping = Claims.to_mapping(self)
        mapping["measurements"] = {str(index): value for index, value in mapping["measurements"].items()}
        return mapping


def verify_nvidia(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> NvidiaClaims:
    """Establish that a report is genuine, compare it with its endorsements, and return its claims.

    1. Report and evidence have their form.
    2. The device's chain ends in one of ``roots``, holds at ``now``, and its leaf signed the report.
    3. The firmware identity in report and certificate agree; so does what the sender says of them.
    4. The manifests are signed under NVIDIA's RIM root (or ``roots``), hold at ``now``, and are of the
       versions that run.
    5. No certificate in use is revoked, as far as the OCSP responses tell.
    6. The measurements are compared with the manifests; the result is a claim, not an error.

    Raises:
        MalformedInput: something does not have its form, or there is no certificate chain.
        VerificationError: a step before the last fails; its subclass says why.
    """
    if endorsements is None:
        endorsements = NvidiaEndorsements()
    if not isinstance(endorsements, NvidiaEndorsements):
        raise MalformedInput("these endorsements are of another vendor than NVIDIA")
    evidence = parse_evidence(raw)
    report = parse_report(evidence.report)
    chain = open_chain(
        _certificates(evidence, endorsements),
        device_roots() if roots is None else tuple(roots),
        "NVIDIA device chain",
        _FEWEST_CERTIFICATES,
    )
    chain.check_dates(now)
    verify_raw(key_of(chain.leaf), report.signature, report.signed, "NVIDIA report")
    fwid = _check_fwid(report, chain)
    _check_sender(evidence, report, chain)
    trusted = rim_roots() if roots is None else tuple(roots)
    driver_rim = _open_rim(endorsements.driver_rim, trusted, "driver manifest", now)
    vbios_rim = _open_rim(endorsements.vbios_rim, trusted, "VBIOS manifest", now)
    checked = _check_revocation(endorsements, chain, (driver_rim, vbios_rim), now)
    measres, mismatched = compare_measurements(report, driver_rim, vbios_rim)
    manifests = [rim for rim in (driver_rim, vbios_rim) if rim is not None]
    return NvidiaClaims(
        scheme="nvidia",
        simulated=not is_device_root(chain.root) or not all(is_rim_root(rim.chain.root) for rim in manifests),
        debug=False,
        report_data=report.nonce,
        tcb_status=measres,
        tcb_date="",
        advisory_ids=(),
        hardware_id=f"{chain.certificates[1].serial_number:x}",
        hwmodel=common_name(chain.certificates[1]),
        arch=_architecture(chain),
        ueid=str(chain.leaf.serial_number),
        driver_version=report.driver_version,
        vbios_version=report.vbios_version,
        mode=_mode(report),
        measres=measres,
        mismatched_measurements=mismatched,
        secboot=measres == SUCCESS,
        dbgstat="disabled" if measres == SUCCESS else "undefined",
        ocsp_status=GOOD if checked else NOT_CHECKED,
        fwid=fwid,
        fwid_in_report="fwid" in report.opaque,
        measurements=report.measurements,
        nvdec0_status=_switch(report, "nvdec0_status"),
        protected_pcie_status=_switch(report, "protected_pcie_status"),
        opaque={name: report.opaque_text(name) for name in report.opaque},
    )


def _certificates(evidence: DeviceEvidence, endorsements: NvidiaEndorsements) -> tuple[bytes, ...]:
    if evidence.chain_pem is not None:
        return split_pem(evidence.chain_pem, "NVIDIA device chain")
    if not endorsements.certificate_chain:
        raise MalformedInput(
            "an NVIDIA report cannot be verified without its certificate chain",
            hint="give it as certificate_chain in the endorsements",
        )
    return endorsements.certificate_chain


def _check_fwid(report: Report, chain: Chain) -> bytes:
    stated = fwids_of(chain.leaf, chain.certificates[1])
    reported = report.opaque.get("fwid")
    if reported is not None and reported not in stated:
        raise EndorsementMismatch(
            f"firmware identity is {reported.hex()[:16]}… in the report,"
            f" {stated[0].hex()[:16]}… in the certificate"
        )
    return stated[0] if reported is None else reported


def _check_sender(evidence: DeviceEvidence, report: Report, chain: Chain) -> None:
    if evidence.nonce is not None and evidence.nonce != report.nonce:
        raise BindingMismatch(
            f"the sender says nonce {evidence.nonce.hex()[:16]}…, the report has {report.nonce.hex()[:16]}…"
        )
    said = _SEPARATORS.sub("", evidence.arch.upper())
    if said and said != _architecture(chain):
        raise EndorsementMismatch(f"the sender says {said[:20]!r}, the certificates {_architecture(chain)!r}")


def _open_rim(xml: bytes | None, roots: tuple[x509.Certificate, ...], what: str, now: datetime) -> Rim | None:
    if xml is None:
        return None
    rim = open_rim(xml, roots, what)
    rim.chain.check_dates(now)
    return rim


def _check_revocation(
    endorsements: NvidiaEndorsements, chain: Chain, rims: tuple[Rim | None, ...], now: datetime
) -> bool:
    # The device itself signs its leaf, at each change of firmware; no service knows of it.
    complete = check_revocation(endorsements.ocsp, chain, subjects=slice(1, None), now=now)
    for rim in rims:
        if rim is not None:
            good = check_revocation(endorsements.ocsp, rim.chain, subjects=slice(None), now=now)
            complete = complete and good
    return complete


def _architecture(chain: Chain) -> str:
    return _ARCHITECTURES.get(common_name(chain.certificates[1])[:2], "unknown")


def _mode(report: Report) -> str:
    flag = report.opaque.get("feature_flag")
    if not flag:
        return ""
    return _MODES.get(int.from_bytes(flag, "little"), f"unknown {flag.hex()}")


def _switch(report: Report, name: str) -> str:
    value = report.opaque.get(name)
    return "" if value is None else _SWITCHES.get(value, f"unknown {value.hex()}")


RULES: tuple[Rule, ...] = (
    OneWord("hwmodel", "kind and stepping of the chip", lambda claims: claims.hwmodel),
    OneWord("arch", "architecture", lambda claims: claims.arch, known=("HOPPER", "BLACKWELL", "LS10")),
    OneWord("driver_version", "versions of the driver", lambda claims: claims.driver_version),
    OneWord(
        "vbios_version", "versions of the VBIOS, or of a switch's BIOS", lambda claims: claims.vbios_version
    ),
    OneWord("mode", "mode of the driver", lambda claims: claims.mode, known=tuple(_MODES.values())),
    OneOf("fwid", 48, "firmware identities of the first mutable code", lambda claims: claims.fwid),
    OneWord(
        "measres",
        "comparison of the measurements with NVIDIA's manifests; secure boot follows from it",
        lambda claims: claims.measres,
        known=(SUCCESS, FAIL, NOT_RUN),
        default=(SUCCESS,),
    ),
    GoldenMeasurements(
        "measurements", "acceptable measurements by SPDM index", lambda claims: claims.measurements
    ),
    OneWord(
        "hardware_ids",
        "serial numbers (hexadecimal) of the devices that may be used",
        lambda claims: claims.hardware_id,
        fold_case=True,
    ),
    Unless(
        "insecure_skip_ocsp",
        "without OCSP responses a revoked certificate is not noticed",
        lambda claims: claims.ocsp_status != GOOD,
        "ocsp_missing",
    ),
    Unless("allow_debug", "the device's memory can be read", lambda claims: claims.debug, "debug"),
)

SCHEME = Scheme(
    name="nvidia",
    title="NVIDIA GPU",
    verify=verify_nvidia,
    parse_endorsements=NvidiaEndorsements.from_mapping,
    vendor_roots=lambda: (*device_roots(), *rim_roots()),
    claims=NvidiaClaims,
    rules=RULES,
    sound_status=frozenset({SUCCESS}),
)
