"""The verdict as a token: EAR (EAT Attestation Result), a JWT, as a Trustee service issues it.

================================================================ ==========================================
claim                                                            content
================================================================ ==========================================
``eat_profile``                                                  ``tag:github.com,2024:confidential-...``
``iat``, ``nbf``, ``exp``                                        seconds since 1970; ``nbf`` is optional
``ear.verifier-id``                                              developer and build of the verifier
``submods``                                                      one member per component: ``cpu0``, ``gpu0``
- ``["ear.status"]``                                             tier: none, affirming, warning, ...
- ``["ear.trustworthiness-vector"]``                             AR4SI claims (``cloister.attest.ar4si``)
- ``["ear.appraisal-policy-id"]``                                ``default_cpu``, ``default_gpu``
- ``["ear.veraison.annotated-evidence"]``                        the claims below their TEE's name as Trustee
                                                                 has it (``snp`` for sev-snp), and
                                                                 ``report_data``, ``simulated``,
                                                                 ``runtime_data_claims["tee-pubkey"]``
================================================================ ==========================================

Issued with ES256, a life of five minutes, and the public key as ``jwk`` in the header. Trustee's tokens are
ES256 too, or RS256 with the key in a certificate chain below ``jwk``; whose keys are believed is
``cloister.attest.token_keys``' subject.

Source: draft-fv-rats-ear, draft-ietf-rats-ar4si, Trustee attestation service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
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
from joserfc.jwk import ECKey, RSAKey

import cloister
from cloister.attest.ar4si import MAX_CLAIM, MIN_CLAIM, trust_vector, worst_tier
from cloister.attest.composite import CompositeResult
from cloister.attest.model import AttestationResult, TrustTier
from cloister.attest.token_keys import EarTrust, TokenKey
from cloister.errors import BadSignature, ConfigError, MalformedInput, StaleEvidence, UntrustedRoot

EAT_PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
PROFILES = (EAT_PROFILE, "tag:github.com,2023:veraison/ear")
DEFAULT_TTL_S = 300
MAX_SKEW_S = 60
MAX_TOKEN_BYTES = 256 * 1024
MAX_HEADER_BYTES = 64 * 1024
MAX_SUBMODS = 64
_TEE_NAMES = {"sev-snp": "snp"}
_ISSUED_WITH = "ES256"
_KEY_KINDS: dict[str, type[ECKey | RSAKey]] = {"ES256": ECKey, "RS256": RSAKey}


class _Registry(jws.JWSRegistry):
    """Room for certificate chains in the header and for event logs among the claims."""

    max_header_length = MAX_HEADER_BYTES
    max_payload_length = MAX_TOKEN_BYTES


def issue_ear(
    result: AttestationResult | CompositeResult,
    *,
    tee_pubkey: Mapping[str, Any] | None,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    ttl_s: float = DEFAULT_TTL_S,
    annotations: Mapping[str, Any] | None = None,
) -> str:
    """The verdict as a compact JWT.

    Args:
        result: of ``appraise`` or ``verify_composite``; a denied one makes a token that says so.
        tee_pubkey: JWK of the key that the evidence bound, if any; only its public members belong here. It
            goes to the CPU's part.
        key: P-256 key of the verifier; its public part goes into the header as ``jwk``.
        ttl_s: the token's life in seconds.
        annotations: what else is known of the CPU's part, such as ``init_data_claims``.
    """
    signer = _signer(key)
    issued = int(now.timestamp())
    parts = result.parts if isinstance(result, CompositeResult) else {"cpu0": result}
    claims = {
        "eat_profile": EAT_PROFILE,
        "iat": issued,
        "nbf": issued,
        "exp": issued + int(ttl_s),
        "ear.verifier-id": {"developer": "cloister", "build": f"cloister {cloister.__version__}"},
        "submods": {name: _submod(name, part, tee_pubkey, annotations or {}) for name, part in parts.items()},
    }
    header = {"alg": _ISSUED_WITH, "typ": "JWT", "jwk": signer.as_dict(private=False)}
    return jwt.encode(header, claims, signer, algorithms=[_ISSUED_WITH])


def verify_ear(
    token: str,
    trust: EarTrust | Sequence[ec.EllipticCurvePublicKey],
    now: datetime,
    *,
    skew_s: float = 0,
    max_life_s: float | None = None,
) -> dict[str, Any]:
    """Establish that a trusted verifier issued ``token``, and that it holds now; return its claims.

    1. It is a compact JWT with ES256 or RS256, and nothing in its header is critical.
    2. A key that the anchors vouch for signed it; the header's own key is none without them.
    3. ``now`` lies in its life.
    4. It has the claims of an attestation result, and no status is better than its trust vector.

    Args:
        trust: the anchors, or keys of trusted verifiers; none denies.
        skew_s: by how much the verifier's clock may differ from ours, at most 60 seconds.
        max_life_s: longest life that is accepted; None accepts the verifier's decision.
    Raises:
        MalformedInput: step 1 or 4.
        UntrustedRoot, EndorsementMismatch: step 2, the certificates that the token brings do not vouch.
        BadSignature: step 2, none of the keys signed it.
        StaleEvidence: step 3, or its certificates are not valid now.
    """
    if not 0 <= skew_s <= MAX_SKEW_S:
        raise ConfigError(f"clocks may differ by 0 to {MAX_SKEW_S} s, not by {skew_s}")
    anchors = trust if isinstance(trust, EarTrust) else EarTrust(keys=tuple(trust))
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedInput(f"token has {len(token)} characters, at most {MAX_TOKEN_BYTES} are read")
    header = _parse_header(token)
    claims = _verify_signature(token, header, anchors, now)
    try:
        _check_time(claims, now, skew_s, max_life_s)
        _check_claims(claims)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MalformedInput(
            "token lacks a claim of an attestation result, or has it in another form"
        ) from error
    return claims


def _submod(
    name: str,
    result: AttestationResult,
    tee_pubkey: Mapping[str, Any] | None,
    annotations: Mapping[str, Any],
) -> dict[str, Any]:
    scheme = result.claims.scheme
    annotated: dict[str, Any] = {
        **(annotations if name == "cpu0" else {}),
        _TEE_NAMES.get(scheme, scheme): result.claims.to_mapping(),
        "report_data": result.claims.report_data.hex(),
        "simulated": result.simulated,
    }
    if tee_pubkey is not None and name == "cpu0":
        annotated["runtime_data_claims"] = {"tee-pubkey": dict(tee_pubkey)}
    return {
        "ear.status": result.tier.name.lower(),
        "ear.trustworthiness-vector": trust_vector(result),
        "ear.appraisal-policy-id": f"default_{name.rstrip('0123456789')}",
        "ear.veraison.annotated-evidence": annotated,
    }


def _parse_header(token: str) -> dict[str, Any]:
    try:
        header = dict(jws.extract_compact(token.encode("ascii"), registry=_Registry()).headers())
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise MalformedInput("token is not a compact JWT") from error
    if header.get("alg") not in _KEY_KINDS:
        raise MalformedInput(
            f"token is signed with {str(header.get('alg'))[:20]!r}, expected {' or '.join(_KEY_KINDS)}"
        )
    if "crit" in header or "b64" in header:
        raise MalformedInput("token's header has critical members that are not known here")
    return header


# A verifier has one key and issues a token per attestation; preparing the key costs more than signing.
@lru_cache(maxsize=8)
def _signer(key: ec.EllipticCurvePrivateKey) -> ECKey:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return ECKey.import_key(pem.decode("ascii"))


@lru_cache(maxsize=64)
def _verifier(algorithm: str, pem: bytes) -> ECKey | RSAKey:
    return _KEY_KINDS[algorithm].import_key(pem.decode("ascii"))


def _verify_signature(
    token: str, header: Mapping[str, Any], anchors: EarTrust, now: datetime
) -> dict[str, Any]:
    algorithm = header["alg"]
    keys = [key for key in anchors.candidates(header, now) if _fits(key, algorithm)]
    for key in keys:
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        try:
            own = _verifier(algorithm, pem)
            registry = _Registry(algorithms=[algorithm], strict_check_header=False)
            return dict(jwt.decode(token, own, registry=registry).claims)
        except BadSignatureError:
            continue
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise MalformedInput("token is not a JWT with a JSON object in it") from error
    if not keys and anchors.roots and not anchors.keys and not anchors.jwks:
        raise UntrustedRoot(
            "token brings no certificate chain, so it leads to none of the trusted roots",
            hint="its issuer must put x5c into the header",
        )
    raise BadSignature(f"token is signed by none of {len(keys)} trusted keys")


def _fits(key: TokenKey, algorithm: str) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) == (algorithm == "ES256")


def _check_time(claims: Mapping[str, Any], now: datetime, skew_s: float, max_life_s: float | None) -> None:
    seconds = now.timestamp()
    expires, issued = _number(claims["exp"]), _number(claims["iat"])
    begins = max(issued, _number(claims.get("nbf", issued)))
    if expires <= issued:
        raise ValueError("expires before it is issued")
    if seconds >= expires + skew_s:
        raise StaleEvidence("token has expired", hint="attest again")
    if seconds < begins - skew_s:
        raise StaleEvidence("token is not valid yet", hint="check this machine's clock")
    if max_life_s is not None and expires - issued > max_life_s:
        raise StaleEvidence(
            f"token is valid for {expires - issued:.0f} s, at most {max_life_s:.0f} are accepted"
        )


def _check_claims(claims: Mapping[str, Any]) -> None:
    if claims["eat_profile"] not in PROFILES:
        raise ValueError("another profile")
    verifier = claims["ear.verifier-id"]
    if not isinstance(verifier["developer"], str) or not isinstance(verifier["build"], str):
        raise TypeError("verifier-id")
    submods = claims["submods"]
    if not 0 < len(submods) <= MAX_SUBMODS:
        raise ValueError("no submods, or too many")
    for submod in submods.values():
        tier = TrustTier[submod["ear.status"].upper()]
        vector = submod.get("ear.trustworthiness-vector", {})
        for value in vector.values():
            if isinstance(value, bool) or not isinstance(value, int) or not MIN_CLAIM <= value <= MAX_CLAIM:
                raise ValueError("a claim of the vector is not a number of one byte")
        if tier < worst_tier(vector):
            raise MalformedInput(
                f"token's status is {tier.name.lower()}, but its trust vector says"
                f" {worst_tier(vector).name.lower()}"
            )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a time is not a number")
    return float(value)
