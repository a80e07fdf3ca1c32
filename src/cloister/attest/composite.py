"""One verdict on a CPU TEE and its devices: all genuine, all bound to the same caller, all acceptable.

========================== =========================================== ==================================
binding                    ``report_data`` of the CPU's evidence       nonce of each device
========================== =========================================== ==================================
``RuntimeBinding``         SHA-384 of the runtime data, zero-padded to SHA-256 of the same runtime data
                           64 bytes (``cloister.attest.binding``)
``TrusteeBinding``         SHA-384 of ``additional-evidence``,         first 32 bytes of the SHA-384 of
                           ``nonce``, ``tee-pubkey``, zero-padded      ``nonce``, ``tee-pubkey``
========================== =========================================== ==================================

Data is hashed as RFC 8785 canonical JSON. Both bind the devices to the caller's nonce and to the TEE's key;
Trustee's also binds the device evidence itself into the CPU's.

What this does not show is that a device is plugged into this machine. The software in the TEE asks the
device, over a session whose keys never leave the two; the CPU part's measurements say which software that is.

Source: Trustee KBS protocol 0.4.0, composite evidence; RFC 9334, section 3.3 (composite devices).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

import rfc8785
from cryptography import x509

from cloister.attest.appraisal import AppraisalDenied, ReferenceValues, appraise
from cloister.attest.binding import report_data_for, runtime_data_digest
from cloister.attest.model import AttestationResult, Check, Claims, Endorsements, TrustTier
from cloister.attest.rules import render_reason
from cloister.attest.verifier import verify_evidence
from cloister.errors import BindingMismatch, MalformedInput, PolicyDenied, VerificationError

DEVICE_SCHEMES = frozenset({"nvidia"})
DEVICE_NONCE_BYTES = 32
MAX_PARTS = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Evidence of one component."""

    name: str
    """What the verdict calls it, for example ``cpu0`` or ``gpu3``."""
    scheme: str
    evidence: bytes
    endorsements: Endorsements | None = None
    roots: Sequence[x509.Certificate] | None = None
    """None: the vendor's own."""

    @property
    def is_device(self) -> bool:
        """Whether this is a device of the TEE, and not the TEE itself."""
        return self.scheme in DEVICE_SCHEMES


class Binding(Protocol):
    """What the parts must speak of."""

    def cpu_report_data(self) -> bytes:
        """The ``report_data`` of the CPU's evidence."""
        ...

    def device_nonce(self) -> bytes:
        """The nonce of every device."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimeBinding:
    """Cloister's own: CPU and devices speak of the same runtime data, which holds the caller's nonce."""

    runtime_data: Mapping[str, Any]

    def cpu_report_data(self) -> bytes:
        return report_data_for(self.runtime_data)

    def device_nonce(self) -> bytes:
        return device_nonce_for(self.runtime_data)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrusteeBinding:
    """As Confidential Containers' guest components bind their evidence."""

    nonce: str
    """Standard base64, as the broker gave it."""
    tee_pubkey: Mapping[str, Any]
    additional_evidence: str = ""
    """JSON text of the device evidence, exactly as it was sent."""

    def cpu_report_data(self) -> bytes:
        return report_data_for(
            {
                "additional-evidence": self.additional_evidence,
                "nonce": self.nonce,
                "tee-pubkey": dict(self.tee_pubkey),
            }
        )

    def device_nonce(self) -> bytes:
        data = {"nonce": self.nonce, "tee-pubkey": dict(self.tee_pubkey)}
        return runtime_data_digest(data)[:DEVICE_NONCE_BYTES]


@dataclass(frozen=True, slots=True)
class CompositeResult:
    """The verdict on all parts together: as bad as the worst of them."""

    tier: TrustTier
    parts: Mapping[str, AttestationResult]
    checks: tuple[Check, ...]
    """Every check of every part, named ``part.check``."""
    evaluated_at: datetime

    @property
    def simulated(self) -> bool:
        """Whether any part is simulated."""
        return any(result.simulated for result in self.parts.values())

    def to_mapping(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "tier": self.tier.name.lower(),
            "simulated": self.simulated,
            "evaluated_at": self.evaluated_at.isoformat(),
            "parts": {name: result.to_mapping() for name, result in self.parts.items()},
        }


class CompositeDenied(PolicyDenied):
    """All parts are genuine and bound, but not all acceptable; ``result`` holds every check of every part."""

    def __init__(self, result: CompositeResult) -> None:
        reasons = tuple(render_reason(check) for check in result.checks if not check.passed)
        super().__init__(
            f"composite evidence is genuine but not acceptable: {'; '.join(reasons)}",
            reasons=reasons,
            hint="compare the reference values with what was found",
        )
        self.result = result


def device_nonce_for(runtime_data: Mapping[str, Any]) -> bytes:
    """The nonce (32 bytes) with which a device is asked under ``RuntimeBinding``.

    Raises:
        MalformedInput: the data has no canonical JSON form.
    """
    runtime_data_digest(runtime_data)  # raises where there is no canonical form
    return hashlib.sha256(rfc8785.dumps(dict(runtime_data))).digest()


def verify_composite(
    parts: Sequence[Part],
    now: datetime,
    *,
    binding: Binding,
    reference_values: ReferenceValues,
    device_count: int | None = None,
) -> CompositeResult:
    """Verify and appraise a CPU TEE and its devices as one.

    1. There is one CPU part and at least one device; names differ.
    2. Every part is genuine.
    3. Every part is bound: the CPU by its ``report_data``, each device by its nonce.
    4. No device is presented twice.
    5. Every part is acceptable; all checks of all parts are made, also after one has failed.

    Args:
        now: aware time.
        reference_values: with a table for each scheme that occurs.
        device_count: how many devices there must be; None accepts any number, and a TEE that leaves some out.
    Raises:
        MalformedInput, VerificationError: steps 1 to 4; the message begins with the part's name.
        CompositeDenied: step 5.
    """
    _check_shape(parts)
    claims = {part.name: _verify(part, now) for part in parts}
    for part in parts:
        expected = binding.device_nonce() if part.is_device else binding.cpu_report_data()
        _check_bound(part.name, claims[part.name], expected)
    devices = {part.name: claims[part.name] for part in parts if part.is_device}
    _check_distinct(devices)
    results = {name: _appraise(found, reference_values, now) for name, found in claims.items()}
    checks = [
        Check(f"{name}.{check.name}", check.expected, check.found, check.passed)
        for name, result in results.items()
        for check in result.checks
    ]
    tier = max(result.tier for result in results.values())
    if device_count is not None:
        complete = len(devices) == device_count
        checks.append(Check("devices", str(device_count), str(len(devices)), complete))
        tier = tier if complete else TrustTier.CONTRAINDICATED
    composite = CompositeResult(tier, MappingProxyType(results), tuple(checks), now)
    if not all(check.passed for check in checks):
        raise CompositeDenied(composite)
    return composite


def _check_shape(parts: Sequence[Part]) -> None:
    if len(parts) > MAX_PARTS:
        raise MalformedInput(f"composite evidence has {len(parts)} parts, at most {MAX_PARTS} are verified")
    cpus = sum(not part.is_device for part in parts)
    if cpus != 1 or len(parts) < 2:
        raise MalformedInput(
            f"composite evidence has {cpus} CPU parts and {len(parts) - cpus} devices,"
            " expected one and at least one"
        )
    if len({part.name for part in parts}) != len(parts):
        raise MalformedInput("two parts of composite evidence have the same name")


def _verify(part: Part, now: datetime) -> Claims:
    try:
        return verify_evidence(part.scheme, part.evidence, part.endorsements, now, roots=part.roots)
    except (MalformedInput, VerificationError) as error:
        raise type(error)(f"{part.name}: {error.message}", hint=error.hint) from error


def _check_bound(name: str, claims: Claims, expected: bytes) -> None:
    if not hmac.compare_digest(claims.report_data, expected):
        raise BindingMismatch(
            f"{name}: evidence is bound to other data: found {claims.report_data.hex()[:16]}…,"
            f" expected {expected.hex()[:16]}…",
            hint="the evidence was made for another key, nonce or caller",
        )


def _check_distinct(devices: Mapping[str, Claims]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for name, claims in devices.items():
        other = seen.setdefault((claims.scheme, claims.hardware_id), name)
        if other != name:
            raise VerificationError(f"{name}: this device ({claims.hardware_id}) is {other} already")


def _appraise(claims: Claims, reference_values: ReferenceValues, now: datetime) -> AttestationResult:
    try:
        return appraise(claims, reference_values, now)
    except AppraisalDenied as denied:
        return denied.result
