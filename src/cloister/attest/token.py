"""The verdict as a token: EAR (EAT Attestation Result), an ES256 JWT, as a Trustee service issues it.

================================================================ ==========================================
claim                                                            content
================================================================ ==========================================
``eat_profile``                                                  ``tag:github.com,2024:confidential-...``
``iat``, ``nbf``, ``exp``                                        seconds since 1970
``ear.verifier-id``                                              developer and build of the verifier
``submods.cpu0["ear.status"]``                                   tier: none, affirming, warning, ...
``submods.cpu0["ear.trustworthiness-vector"]``                   AR4SI claims
``submods.cpu0["ear.appraisal-policy-id"]``                      ``default_cpu``
``submods.cpu0["ear.veraison.annotated-evidence"]``              the claims below their scheme's name,
                                                                 ``report_data``, ``simulated``,
                                                                 ``runtime_data_claims["tee-pubkey"]``
================================================================ ==========================================

Source: draft-fv-rats-ear, draft-ietf-rats-ar4si, Trustee attestation service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import ECKey

import cloister
from cloister.attest.model import AttestationResult, TrustTier
from cloister.errors import BadSignature, MalformedInput, StaleEvidence

EAT_PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
DEFAULT_TTL_S = 300
MAX_TOKEN_BYTES = 256 * 1024
_ALGORITHMS = ["ES256"]


def issue_ear(
    result: AttestationResult,
    *,
    tee_pubkey: Mapping[str, Any] | None,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    ttl_s: float = DEFAULT_TTL_S,
) -> str:
    """The verdict as a compact JWT.

    Args:
        result: of ``appraise``; a denied one makes a token that says *contraindicated*.
        tee_pubkey: JWK of the key that the evidence bound, if any; only its public members belong here.
        key: P-256 key of the verifier; its public part goes into the header as ``jwk``.
        ttl_s: the token's life in seconds.
    """
    signer = ECKey.import_key(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    )
    issued = int(now.timestamp())
    annotated: dict[str, Any] = {
        result.claims.scheme: result.claims.to_mapping(),
        "report_data": result.claims.report_data.hex(),
        "simulated": result.simulated,
    }
    if tee_pubkey is not None:
        annotated["runtime_data_claims"] = {"tee-pubkey": dict(tee_pubkey)}
    claims = {
        "eat_profile": EAT_PROFILE,
        "iat": issued,
        "nbf": issued,
        "exp": issued + int(ttl_s),
        "ear.verifier-id": {"developer": "cloister", "build": f"cloister {cloister.__version__}"},
        "submods": {
            "cpu0": {
                "ear.status": result.tier.name.lower(),
                "ear.trustworthiness-vector": _trust_vector(result.tier),
                "ear.appraisal-policy-id": "default_cpu",
                "ear.veraison.annotated-evidence": annotated,
            }
        },
    }
    header = {"alg": "ES256", "typ": "JWT", "jwk": signer.as_dict(private=False)}
    return jwt.encode(header, claims, signer, algorithms=_ALGORITHMS)


def verify_ear(token: str, keys: Sequence[ec.EllipticCurvePublicKey], now: datetime) -> dict[str, Any]:
    """Establish that one of ``keys`` issued ``token``, and that it holds now; return its claims.

    The header's own ``jwk`` and ``x5c`` are not believed: whoever makes a token can put a key there.

    Args:
        keys: P-256 keys of the trusted verifiers; none denies.
    Raises:
        MalformedInput: not a JWT with ES256, or without the claims of an EAR.
        BadSignature: none of ``keys`` signed it.
        StaleEvidence: expired, or not yet valid.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedInput(f"token has {len(token)} characters, at most {MAX_TOKEN_BYTES} are read")
    claims = _verify_signature(token, keys)
    try:
        _check_time(claims, now)
        for submod in claims["submods"].values():
            TrustTier[submod["ear.status"].upper()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MalformedInput(
            "token lacks a claim of an attestation result, or has it in another form"
        ) from error
    return claims


def _verify_signature(token: str, keys: Sequence[ec.EllipticCurvePublicKey]) -> dict[str, Any]:
    try:
        header = jws.extract_compact(token.encode("ascii")).headers()
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise MalformedInput("token is not a compact JWT") from error
    if header.get("alg") not in _ALGORITHMS:
        raise MalformedInput(f"token is signed with {str(header.get('alg'))[:20]!r}, expected ES256")
    for key in keys:
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
        try:
            return dict(jwt.decode(token, ECKey.import_key(pem), algorithms=_ALGORITHMS).claims)
        except BadSignatureError:
            continue
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise MalformedInput("token is not a JWT with a JSON object in it") from error
    raise BadSignature(f"token is signed by none of {len(keys)} trusted keys")


def _check_time(claims: Mapping[str, Any], now: datetime) -> None:
    seconds = now.timestamp()
    expires, begins = float(claims["exp"]), float(claims.get("nbf", claims["iat"]))
    if not (math.isfinite(expires) and math.isfinite(begins)):
        raise ValueError("a time is not a number")
    if seconds >= expires:
        raise StaleEvidence("token has expired", hint="attest again")
    if seconds < begins:
        raise StaleEvidence("token is not valid yet", hint="check this machine's clock")


def _trust_vector(tier: TrustTier) -> dict[str, int]:
    """AR4SI claims that the appraisal speaks of, each at the verdict's tier; silent on the others."""
    return {"configuration": int(tier), "executables": int(tier), "hardware": int(tier)}
