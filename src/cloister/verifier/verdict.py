"""A service's evidence as a verdict that others can check without knowing what a quote is. No I/O.

The verdict is an EAR (``cloister.attest.token``). Its CPU's annotated evidence has one more member,
``service``: the runtime data that the evidence binds (nonce, TLS key, OHTTP key, digests of settings and
models) and the models themselves, all as in the bundle (``cloister.attest.service``).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import verify_bundle
from cloister.attest.token import DEFAULT_TTL_S, issue_ear


def issue_verdict(
    bundle: bytes,
    *,
    nonce: bytes,
    reference_values: ReferenceValues,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    roots: Sequence[x509.Certificate] | None = None,
    ttl_s: float = DEFAULT_TTL_S,
) -> str:
    """The verdict on a service's bundle, as a compact JWT; there is none on a service that is not acceptable.

    Args:
        nonce: what the caller asked the service with; the caller finds it again in the verdict.
        key: P-256 key of this verifier.
        roots: trusted roots; None means the vendors' pinned keys.
    Raises:
        MalformedInput, VerificationError, PolicyDenied: as ``verify_bundle``.
    """
    service = verify_bundle(bundle, nonce=nonce, reference_values=reference_values, now=now, roots=roots)
    identity = service.identity
    described = {
        **identity.runtime_data(nonce),
        "nonce": base64.urlsafe_b64encode(nonce).rstrip(b"=").decode(),
        "models": [asdict(model) for model in identity.models],
    }
    return issue_ear(
        service.result, tee_pubkey=None, key=key, now=now, ttl_s=ttl_s, annotations={"service": described}
    )
