"""JWTs of an OpenID Connect issuer, or of anybody with a JWK set: signature, issuer, audience, life.

Algorithms are a closed list, all asymmetric; a key serves only the algorithm of its kind. The key set is
fetched from the issuer's own HTTPS address: at start, when it is old, and (not more often than every few
seconds) when a token names a key that is not in it.

Source: OpenID Connect Core 1.0, section 3.1.3.7; RFC 7519; RFC 8725 (best current practices).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from cloister.errors import BadSignature, ConfigError, MalformedInput, StaleEvidence, TransportError
from cloister.policy.requests import Caller

ALGORITHMS = ("ES256", "ES384", "RS256", "PS256", "EdDSA")
MAX_TOKEN_BYTES = 16_384
MAX_DOCUMENT_BYTES = 1 << 18
MAX_AGE_S = 3600.0
RETRY_S = 5.0
SKEW_S = 60.0
MIN_RSA_BITS = 2048
_KINDS: Mapping[str, type] = {
    "ES256": ECKey,
    "ES384": ECKey,
    "RS256": RSAKey,
    "PS256": RSAKey,
    "EdDSA": OKPKey,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Whose tokens are believed, and what they must say."""

    url: str
    """Exactly the ``iss`` of its tokens."""
    audience: str
    """Has to be among the ``aud`` of a token."""
    jwks_url: str = ""
    """Where its keys are; empty means that its discovery document says so."""
    tenant_claim: str = "tenant"
    groups_claim: str = "groups"


Fetch = Callable[[str], bytes]


class IssuerKeys:
    """The keys of one issuer, kept up to date; safe to use from many threads."""

    def __init__(
        self, issuer: Issuer, *, fetch: Fetch | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch or fetch_document
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched = -MAX_AGE_S
        self._tried = -RETRY_S

    def refresh(self, *, force: bool = False) -> KeySet:
        """The current keys; blocks on the network where they are old.

        Raises:
            TransportError: they were never fetched, and cannot be now.
            MalformedInput: the issuer's documents are not what they should be.
        """
        with self._lock:
            now = self._clock()
            due = force or self._keys is None or now - self._fetched >= MAX_AGE_S
            if due and (self._keys is None or now - self._tried >= RETRY_S):
                self._tried = now
                try:
                    self._keys = self._load()
                    self._fetched = now
                except (TransportError, MalformedInput):
                    if self._keys is None:
                        raise
            assert self._keys is not None
            return self._keys

    def find(self, key_id: str | None, algorithm: str, *, may_ask: bool = True) -> Any:
        """The key that a token names.

        Args:
            may_ask: ask the issuer once more if it is not known, which blocks on the network.
        Raises:
            BadSignature: there is no such key for this algorithm.
            TransportError, MalformedInput: as ``refresh``.
        """
        for force in (False, True) if may_ask else (None,):
            fitting = [
                key
                for key in (self._known() if force is None else self.refresh(force=force)).keys
                if isinstance(key, _KINDS[algorithm])
                and (key_id is None or key.kid == key_id)
                and key.get("alg", algorithm) == algorithm
                and key.get("use", "sig") == "sig"
            ]
            if len(fitting) == 1:
                return fitting[0]
        raise BadSignature("the issuer has no such key for this token")

    def _known(self) -> KeySet:
        if self._keys is None:
            raise TransportError("the issuer's keys are not known yet", hint="try again in a few seconds")
        return self._keys

    def _load(self) -> KeySet:
        url = self._issuer.jwks_url or self._discover()
        try:
            found = [dict(key) for key in json.loads(self._fetch(url))["keys"]]
            public = [key for key in found if key.get("kty") in ("EC", "RSA", "OKP") and "d" not in key]
            keys = KeySet.import_key_set({"keys": public})
        except (ValueError, TypeError, KeyError, JoseError) as error:
            raise MalformedInput(f"{self._issuer.url}: not a JWK set") from error
        for key in keys.keys:
            if isinstance(key, RSAKey) and key.raw_value.key_size < MIN_RSA_BITS:
                raise MalformedInput(f"{self._issuer.url}: an RSA key of fewer than {MIN_RSA_BITS} bits")
        return keys

    def _discover(self) -> str:
        address = self._issuer.url.rstrip("/") + "/.well-known/openid-configuration"
        try:
            document = json.loads(self._fetch(address))
            named, url = document["issuer"], document["jwks_uri"]
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedInput(f"{self._issuer.url}: not a discovery document") from error
        if named != self._issuer.url or not isinstance(url, str):
            raise MalformedInput(f"{self._issuer.url}: its discovery document names another issuer")
        check_issuer_url(url)
        return url


def verify_jwt(
    token: bytes, issuer: Issuer, keys: IssuerKeys, now_s: float, *, may_ask: bool = True
) -> tuple[Caller, float]:
    """Whom a token speaks for, and until when (seconds since 1970).

    1. It is a compact JWT whose algorithm is on the list.
    2. The issuer's key of that name signed it.
    3. Issuer and audience are the expected ones.
    4. ``now_s`` lies in its life; one without end is refused.

    Raises:
        MalformedInput: step 1, or a claim of another type.
        BadSignature: step 2 or 3.
        StaleEvidence: step 4.
        TransportError: the issuer's keys could never be fetched.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedInput(f"token is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        header = jws.extract_compact(token).headers()
        algorithm, key_id = header.get("alg"), header.get("kid")
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise MalformedInput("token is not a compact JWT") from error
    if algorithm not in ALGORITHMS or "crit" in header or not isinstance(key_id, (str, type(None))):
        raise MalformedInput(f"token has an algorithm that is not accepted: {', '.join(ALGORITHMS)} are")
    try:
        claims = jwt.decode(
            token, keys.find(key_id, algorithm, may_ask=may_ask), algorithms=[algorithm]
        ).claims
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise BadSignature("the token's signature is not its issuer's") from error
    if claims.get("iss") != issuer.url or issuer.audience not in _texts(claims.get("aud", ())):
        raise BadSignature("the token is of another issuer or for another audience")
    expires = _check_life(claims, now_s)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise MalformedInput("the token has no subject")
    tenant = claims.get(issuer.tenant_claim, "")
    caller = Caller(
        kind="jwt",
        subject=subject,
        issuer=issuer.url,
        tenant=tenant if isinstance(tenant, str) else "",
        groups=tuple(_texts(claims.get(issuer.groups_claim, ()))),
        scopes=tuple(str(claims.get("scope", "")).split()),
    )
    return caller, expires


def fetch_document(url: str) -> bytes:
    """One JSON document over HTTPS (or from loopback), without redirects.

    Raises:
        ConfigError: the address may not be asked.
        TransportError: nothing came, or too much.
    """
    check_issuer_url(url)
    try:
        with httpx.stream("GET", url, timeout=10.0, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise TransportError(f"{url} answered HTTP status {response.status_code}")
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise TransportError(f"{url} sends more than {MAX_DOCUMENT_BYTES} bytes")
            return bytes(body)
    except httpx.HTTPError as error:
        raise TransportError(f"cannot fetch {url}: {type(error).__name__}") from error


def check_issuer_url(url: str) -> None:
    """HTTPS, or plain HTTP to this machine.

    Raises:
        ConfigError: another address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"not an address: {url[:80]}") from error
    local = parsed.host in ("localhost", "127.0.0.1", "::1")
    if parsed.scheme != "https" and not (parsed.scheme == "http" and local):
        raise ConfigError(f"{url[:80]}: an issuer's keys come over https only")


def _check_life(claims: Mapping[str, Any], now_s: float) -> float:
    times = [claims.get(name) for name in ("exp", "nbf", "iat")]
    if any(isinstance(t, bool) or not isinstance(t, (int, float, type(None))) for t in times):
        raise MalformedInput("the token's times are not numbers")
    expires, not_before, issued = times
    if expires is None:
        raise StaleEvidence("the token has no end of life")
    if expires <= now_s:
        raise StaleEvidence("the token has expired")
    if max(not_before or 0, issued or 0) > now_s + SKEW_S:
        raise StaleEvidence("the token is not valid yet")
    return float(expires)


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, str)]
    return ()
