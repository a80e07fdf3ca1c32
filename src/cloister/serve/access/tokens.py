"""JSON Web Tokens: of which issuer, signed by which key, for whom, until when.

Algorithms are a closed list, all asymmetric, narrowed by issuer; a key serves only the algorithms of its
kind. Nothing in a token is believed before its signature, but for the names of issuer and key.

Source: OpenID Connect Core 1.0, section 3.1.3.7; RFC 7519; RFC 8725 (best current practices); RFC 8705,
section 3 (tokens that are bound to a client certificate).
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError

from cloister.crypto.client_certificates import ClientCertificate
from cloister.errors import BadSignature, MalformedInput, StaleEvidence
from cloister.policy.requests import Caller
from cloister.serve.access.issuer_keys import IssuerKeys
from cloister.serve.access.issuers import ALGORITHMS, Issuer, texts

MAX_TOKEN_BYTES = 16_384
MAX_TIME_S = 253_402_300_799
"""The end of the year 9999."""


class _Registry(jws.JWSRegistry):
    """The algorithms of the list; without a warning at each token for the older name of Ed25519."""

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(f"algorithm {name[:20]}")
        return self.algorithms[name]


_REGISTRY = _Registry()


@dataclass(frozen=True, slots=True)
class Shown:
    """A token as it is shown: nothing in it is believed yet."""

    raw: bytes
    algorithm: str
    key_id: str | None
    issuer: str


def read_token(raw: bytes) -> Shown:
    """Take a token apart as far as is needed to know whom to ask about it.

    Raises:
        MalformedInput: not a compact JWT of an algorithm that any issuer may use.
    """
    if len(raw) > MAX_TOKEN_BYTES:
        raise MalformedInput(f"token is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        compact = jws.extract_compact(raw)
        header, claims = compact.headers(), json.loads(compact.payload)
        algorithm, key_id, issuer = header.get("alg"), header.get("kid"), claims.get("iss")
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedInput("token is not a compact JWT") from error
    if algorithm not in ALGORITHMS or "crit" in header or not isinstance(key_id, (str, type(None))):
        raise MalformedInput("token has an algorithm that is not accepted")
    if header.get("b64", True) is not True or not isinstance(issuer, str):
        raise MalformedInput("token names no issuer")
    return Shown(raw, algorithm, key_id, issuer)


def verify_token(
    shown: Shown,
    issuer: Issuer,
    keys: IssuerKeys,
    now_s: float,
    *,
    certificate: ClientCertificate | None = None,
    may_ask: bool = True,
) -> tuple[Caller, float]:
    """Whom a token speaks for, and until when (seconds since 1970).

    1. Its algorithm is one of its issuer's.
    2. The issuer's key of that name signed it.
    3. Issuer and audience are the expected ones.
    4. ``now_s`` lies in its life; one without end is refused.
    5. If it is bound to a client certificate, that one was shown.

    Args:
        certificate: that TLS has verified; None inside a sealed request, where TLS is another's.
    Raises:
        MalformedInput: step 1, or a claim of another type.
        BadSignature: steps 2, 3, 5.
        StaleEvidence: step 4.
        TransportError: the issuer's keys could not be fetched.
    """
    if shown.algorithm not in issuer.algorithms:
        raise MalformedInput(f"its issuer's tokens are signed with {', '.join(issuer.algorithms)} only")
    key = keys.find(shown.key_id, shown.algorithm, may_ask=may_ask)
    try:
        claims = json.loads(jws.deserialize_compact(shown.raw, key, registry=_REGISTRY).payload)
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise BadSignature("the token's signature is not its issuer's") from error
    if not isinstance(claims, dict):
        raise MalformedInput("the token's claims are not an object")
    _check_text(claims)
    if claims.get("iss") != issuer.url or not set(issuer.audiences) & set(texts(claims.get("aud"))):
        raise BadSignature("the token is of another issuer or for another audience")
    expires = _check_life(claims, now_s, issuer.clock_skew_s)
    _check_confirmation(claims, certificate)
    return issuer.caller(claims), expires


def _check_text(claims: Mapping[str, Any]) -> None:
    """Half of a surrogate pair is no text (RFC 7493, section 2.1): no log and no policy could be given it."""
    try:
        json.dumps(claims, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MalformedInput("the token's claims are not Unicode") from error


def _check_life(claims: Mapping[str, Any], now_s: float, skew_s: float) -> float:
    times = [claims.get(name) for name in ("exp", "nbf", "iat")]
    expires, not_before, issued = map(_seconds, times)
    if times[0] is None:
        raise StaleEvidence("the token has no end of life")
    if now_s >= expires + skew_s:
        raise StaleEvidence("the token has expired")
    if max(not_before, issued) > now_s + skew_s:
        raise StaleEvidence("the token is not valid yet")
    return expires + skew_s


def _seconds(value: Any) -> float:
    if value is None:
        return 0.0
    # JSON has neither, but Python reads NaN and 1e999, and every comparison with NaN is false.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TIME_S:
        raise MalformedInput("the token's times are not seconds since 1970")
    return float(value)


def _check_confirmation(claims: Mapping[str, Any], certificate: ClientCertificate | None) -> None:
    """Who has a bound token without its key has stolen it (RFC 8705, section 3.1)."""
    if "cnf" not in claims:
        return
    bound = claims["cnf"]
    thumbprint = bound.get("x5t#S256") if isinstance(bound, Mapping) and len(bound) == 1 else None
    if not isinstance(thumbprint, str):
        raise BadSignature("the token is bound to a key in a way that is not known here")
    if certificate is None:
        raise BadSignature("the token is bound to a client certificate, and none counts for this request")
    shown = base64.urlsafe_b64encode(certificate.fingerprint).rstrip(b"=")
    if not hmac.compare_digest(shown, thumbprint.encode()):
        raise BadSignature("the token is bound to another client certificate")
