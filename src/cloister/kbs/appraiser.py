"""From a TEE's message to an attested TEE: what a broker and a key cache both establish before a release.

The steps, in the numbers of the code; 1 and 6 are the caller's (``cloister.kbs.broker``):

1. The session exists, has not attested, and gives its nonce, which is used up.
2. The TEE key is one that we encrypt to, and is rebuilt from exactly the members that evidence binds.
3. The evidence is genuine (``verify_evidence``): under the vendor's root, or the simulated one if configured.
4. It is bound to this nonce and this key (``check_binding``).
5. It is acceptable to the owner (``appraise`` against the reference values as they are now).
6. The session counts as attested.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import rfc8785
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues, appraise
from cloister.attest.binding import check_binding
from cloister.attest.model import AttestationResult, Claims, Endorsements
from cloister.attest.verifier import vendor_roots, verify_evidence
from cloister.crypto.jwe import TeePublicKey
from cloister.errors import BindingMismatch, MalformedInput
from cloister.kbs import protocol, sample
from cloister.kbs.claims import policy_context
from cloister.kbs.evidence import WireEvidence, read_evidence
from cloister.kbs.initdata import BoundInitData, check_init_data
from cloister.kbs.sample import SampleClaims, appraise_sample, read_sample, refuse_sample
from cloister.kbs.sessions import AttestedTee, Waiting

Refine = Callable[[AttestationResult, BoundInitData | None], AttestationResult]


@dataclass(slots=True)
class Findings:
    """What is known of a TEE so far, for the audit entry of a refusal."""

    tee: str
    evidence_digest: str = ""
    claims: dict[str, Any] = field(default_factory=dict)


class Appraiser:
    """Verifies and appraises evidence. Safe to use from many threads.

    Args:
        reference_values, endorsements: asked at each use, so that files can change.
        simulated_root: a simulated platform's root to trust besides the vendors'; None in production.
        allow_sample: whether to look at ``sample`` evidence at all (``cloister.kbs.sample``).
        refine: may lower the verdict's tier further, never raise it (``cloister.kbs.trustee``).
    """

    def __init__(
        self,
        *,
        reference_values: Callable[[], ReferenceValues],
        endorsements: Callable[[str], Endorsements | None],
        simulated_root: x509.Certificate | None = None,
        allow_sample: bool = False,
        refine: Refine = lambda result, _init_data: result,
    ) -> None:
        self._reference_values = reference_values
        self._endorsements = endorsements
        self._simulated_root = simulated_root
        self._allow_sample = allow_sample
        self._refine = refine

    def appraise(
        self, attestation: protocol.Attestation, waiting: Waiting, now: datetime, findings: Findings
    ) -> tuple[AttestedTee, AttestationResult]:
        """Steps 2 to 5; ``findings`` gathers what is known when one of them fails.

        Args:
            waiting: the session's challenge.
        Raises:
            CloisterError: a step failed; nothing may be released.
        """
        tee = findings.tee
        composite = attestation.evidence()
        sent = self._read(tee, composite.primary_evidence)
        findings.evidence_digest = hashlib.sha256(sent.raw).hexdigest()
        if not hmac.compare_digest(attestation.runtime_data.nonce.encode(), waiting.nonce.encode()):
            raise BindingMismatch("the nonce is not the one of this session's challenge")
        if composite.additional_evidence not in ("", "{}"):
            raise MalformedInput("evidence of additional devices is not accepted")
        # 2. The TEE key.
        key = TeePublicKey.from_jwk(attestation.runtime_data.tee_pubkey)
        # 3. Genuine?
        claims = self._verify(sent, now)
        findings.claims = claims.to_mapping()
        # 4. About this nonce and this key?
        bound = protocol.runtime_data(waiting.nonce, key, composite.additional_evidence)
        check_binding(claims, bound, waiting.hash_algorithm)
        init_data = None if attestation.init_data is None else check_init_data(attestation.init_data, claims)
        # 5. Acceptable?
        reference_values = self._reference_values()
        if isinstance(claims, SampleClaims):
            result = appraise_sample(claims, reference_values, now)
        else:
            result = appraise(claims, reference_values, now)
        result = self._refine(result, init_data)
        findings.claims = policy_context(claims.to_mapping(), result.tier.name.lower(), tee)
        if init_data is not None:
            findings.claims["init_data_digest"] = init_data.digest
        attested = AttestedTee(
            tee=tee,
            key=key,
            context=findings.claims,
            evidence_digest=findings.evidence_digest,
            init_data={} if init_data is None else dict(init_data.entries),
        )
        return attested, result

    def _read(self, tee: str, primary: Any) -> WireEvidence:
        if tee != sample.TEE:
            return read_evidence(tee, primary)
        if not self._allow_sample:
            raise refuse_sample()
        read_sample(primary)
        return WireEvidence(sample.TEE, rfc8785.dumps(primary))

    def _verify(self, sent: WireEvidence, now: datetime) -> Claims:
        if sent.scheme == sample.TEE:
            return read_sample(json.loads(sent.raw))
        root = self._simulated_root
        roots = None if root is None else [*vendor_roots(sent.scheme), root]
        endorsements = self._endorsements(sent.scheme) or sent.endorsements
        return verify_evidence(sent.scheme, sent.raw, endorsements, now, roots=roots)
