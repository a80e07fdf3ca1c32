"""``sample`` evidence: what Trustee's test attester says of itself without any hardware. It proves nothing.

It is refused unless ``keys.allow_sample`` is set *and* the reference values accept simulated TEEs. Even then
its tier is *none*, its TCB status is empty and it counts as simulated, so that only a policy that speaks of
``sample`` itself can release anything to it.

Source: guest-components, ``attestation-agent/attester/src/sample``; Trustee, ``deps/verifier/src/sample``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloister.attest.appraisal import AppraisalDenied, ReferenceValues
from cloister.attest.model import AttestationResult, Check, Claims, TrustTier
from cloister.errors import MalformedInput, PolicyDenied

TEE = "sample"
LAUNCH_DIGEST = "abcde"
_REPORT_DATA_BYTES = (32, 48, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleClaims(Claims):
    """What the sample attester says; every value but ``svn`` and ``report_data`` is fixed."""

    svn: str
    launch_digest: str = LAUNCH_DIGEST


def read_sample(primary: Any) -> SampleClaims:
    """The claims of sample evidence, which nobody vouches for.

    Raises:
        MalformedInput: not ``{"svn", "report_data"}``.
    """
    if not isinstance(primary, Mapping) or not isinstance(primary.get("report_data"), str):
        raise MalformedInput("sample evidence: report_data is missing")
    svn = primary.get("svn")
    if not isinstance(svn, str) or len(svn) > 16:
        raise MalformedInput("sample evidence: svn is missing")
    try:
        report_data = base64.b64decode(primary["report_data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInput("sample evidence: report_data is not base64") from error
    if len(report_data) not in _REPORT_DATA_BYTES:
        raise MalformedInput("sample evidence: report_data has no length of a digest")
    return SampleClaims(
        scheme=TEE, simulated=True, debug=False, report_data=report_data, tcb_status="", tcb_date="",
        advisory_ids=(), hardware_id="", svn=svn,
    )  # fmt: skip


def appraise_sample(
    claims: SampleClaims, reference_values: ReferenceValues, now: datetime
) -> AttestationResult:
    """The verdict on sample evidence: never better than *none*.

    Raises:
        PolicyDenied: the reference values accept no simulated TEE.
    """
    accepted = reference_values.allow_simulated
    check = Check("simulated", "either (allow_simulated = true)" if accepted else "false", "true", accepted)
    if not accepted:
        raise AppraisalDenied(AttestationResult(TrustTier.CONTRAINDICATED, claims, (check,), now))
    return AttestationResult(TrustTier.NONE, claims, (check,), now)


def refuse_sample() -> PolicyDenied:
    """What is said to a sample TEE where none is allowed."""
    return PolicyDenied("evidence of TEE 'sample' proves nothing")
