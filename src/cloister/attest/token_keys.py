"""Whose tokens are believed: keys, JWK sets, and roots that a token's own certificate chain must lead to.

A token's header can bring its key along (``jwk``, ``x5c``). Whoever makes a token can put anything there, so
that key is only ever used if the anchors vouch for it: a certificate chain from one of the roots is of
exactly this key, or it is in a trusted set already. There is no switch that turns this off.

Source: RFC 7515, section 4.1; RFC 7517; RFC 5280, section 6.1; Trustee, ``kbs/src/crypto/jwt.rs``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from cloister.attest.dcap.roots import is_issued_by
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError, EndorsementMismatch, MalformedInput, StaleEvidence, UntrustedRoot

TokenKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
MAX_CHAIN = 8
MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_JWKS = 64
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_KNOWN_CRITICAL = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


@dataclass(frozen=True, slots=True)
class SetKey:
    """One key of a JWK set."""

    key: TokenKey
    kid: str | None
    alg: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EarTrust:
    """The trust anchors for attestation result tokens; with none of them every token is refused."""

    keys: tuple[TokenKey, ...] = ()
    """Keys of verifiers, ECDSA P-256 or RSA."""
    jwks: tuple[SetKey, ...] = ()
    """Keys of JWK sets; ``parse_jwk_set`` makes them."""
    roots: tuple[x509.Certificate, ...] = ()
    """Roots, or verifiers' own certificates, for tokens that bring a certificate chain."""

    @classmethod
    def of(
        cls,
        *,
        keys: Sequence[TokenKey] = (),
        jwk_sets: Sequence[Mapping[str, Any]] = (),
        roots_pem: bytes = b"",
    ) -> Self:
        """Anchors from keys, parsed JWK sets, and PEM text with one or several certificates.

        Raises:
            ConfigError: a set or the PEM text cannot be read.
        """
        try:
            found = tuple(key for document in jwk_sets for key in parse_jwk_set(document))
            roots = tuple(x509.load_pem_x509_certificates(roots_pem)) if roots_pem else ()
        except MalformedInput as error:
            raise ConfigError(f"trusted JWK set: {error.message}") from error
        except UNREADABLE as error:
            raise ConfigError("trusted roots are not PEM certificates") from error
        return cls(keys=tuple(keys), jwks=found, roots=roots)

    def candidates(self, header: Mapping[str, Any], now: datetime) -> list[TokenKey]:
        """The keys that a token with this header may be signed with: all are vouched for.

        Raises:
            MalformedInput: the header's key or certificates cannot be read.
            UntrustedRoot, StaleEvidence, EndorsementMismatch: it brings a chain, there are roots, and the
                chain does not vouch for the key.
        """
        kid, alg = header.get("kid"), header.get("alg")
        keys = list(self.keys)
        keys.extend(
            found.key
            for found in self.jwks
            if found.alg in (None, alg) and (kid is None or found.kid is None or found.kid == kid)
        )
        own = header.get("jwk")
        if own is not None and not isinstance(own, Mapping):
            raise MalformedInput("token: jwk is not a JSON object")
        chain = header.get("x5c") or (own or {}).get("x5c")
        if self.roots and chain:
            key = verify_x5c(chain, self.roots, now)
            if own is not None and not _same(key, parse_jwk(own)):
                raise EndorsementMismatch("token's key is another one than its certificate is of")
            keys.append(key)
        return keys


def parse_jwk_set(document: Mapping[str, Any]) -> tuple[SetKey, ...]:
    """The keys of a JWK set that can sign tokens; keys for other uses or of other kinds are left out.

    Raises:
        MalformedInput: not a JWK set, or a key of a known kind that is damaged or too short.
    """
    keys = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(keys, list) or len(keys) > MAX_JWKS:
        raise MalformedInput(f"not a JWK set of at most {MAX_JWKS} keys")
    found: list[SetKey] = []
    for jwk in keys:
        if not isinstance(jwk, Mapping):
            raise MalformedInput("a key of the JWK set is not a JSON object")
        if jwk.get("use", "sig") != "sig" or not _is_supported(jwk):
            continue
        kid, alg = jwk.get("kid"), jwk.get("alg")
        if not isinstance(kid, str | None) or not isinstance(alg, str | None):
            raise MalformedInput("a key of the JWK set has a kid or alg that is not a string")
        found.append(SetKey(parse_jwk(jwk), kid, alg))
    return tuple(found)


def parse_jwk(jwk: Mapping[str, Any]) -> TokenKey:
    """The public key in a JWK; its private members are not read.

    Raises:
        MalformedInput: neither P-256 nor RSA of 2048 to 8192 bits.
    """
    members = ("kty", "crv", "x", "y") if jwk.get("kty") == "EC" else ("kty", "n", "e")
    public = {name: jwk[name] for name in members if isinstance(jwk.get(name), str)}
    if len(public) != len(members) or not _is_supported(jwk):
        raise MalformedInput("key is neither an EC key on P-256 nor an RSA key in JWK form")
    if any(len(value) > 2 * MAX_RSA_BITS // 8 for value in public.values()):
        raise MalformedInput("key in JWK form is too long")
    try:
        key = (ECKey if public["kty"] == "EC" else RSAKey).import_key(public).public_key
    except (JoseError, ValueError, TypeError, binascii.Error) as error:
        raise MalformedInput("key in JWK form is damaged") from error
    return _accept(key)


def verify_x5c(chain: Any, roots: Sequence[x509.Certificate], now: datetime) -> TokenKey:
    """Establish that a header's certificates lead to one of ``roots`` at ``now``; return the first one's key.

    1. The first certificate is one for signatures; it may be in ``roots`` itself.
    2. Each next one is an authority, is the issuer by name and signature, and permits what is below it.
    3. All are valid at ``now``, with a signature hash of SHA-256 or longer and no critical extension unknown.

    The others may come in any order, and may include roots.

    Raises:
        MalformedInput: not a list of certificates.
        UntrustedRoot: it does not lead to any of ``roots``.
        StaleEvidence: it does, but not at ``now``.
        EndorsementMismatch: the first certificate is not for signatures.
    """
    leaf, *others = _certificates(chain)
    key = _accept(leaf.public_key())
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise EndorsementMismatch("token's certificate is not for signatures")
    valid = [item for item in (*others, *roots) if _is_valid(item, now)]
    if _is_valid(leaf, now) and (leaf in roots or _leads_to(leaf, valid, roots)):
        return key
    if leaf in roots or _leads_to(leaf, (*others, *roots), roots):
        raise StaleEvidence(f"token's certificate chain is not valid at {now:%Y-%m-%d %H:%M}")
    raise UntrustedRoot(
        f"token's certificate chain does not end in one of {len(roots)} trusted roots: it begins at"
        f" {leaf.issuer.rfc4514_string()[:80]!r}"
    )


def _leads_to(
    leaf: x509.Certificate, pool: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> bool:
    """Whether issuers in ``pool`` lead from ``leaf`` to one of ``roots``.

    Breadth first: a certificate is reached on its shortest path, which permits all that a longer one does, so
    each is looked at once.
    """
    reached, waiting = [leaf], list(pool)
    for depth in range(MAX_CHAIN):
        issuers = [item for item in waiting if _may_issue(item, below=depth)]
        above = [item for item in issuers if any(is_issued_by(one, item) for one in reached)]
        if any(item in roots for item in above):
            return True
        if not above:
            return False
        waiting = [item for item in waiting if item not in above]
        reached = above
    return False


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _may_issue(certificate: x509.Certificate, *, below: int) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return False
    return constraints.path_length is None or below <= constraints.path_length


def _certificates(chain: Any) -> list[x509.Certificate]:
    if not isinstance(chain, list) or not 0 < len(chain) <= MAX_CHAIN:
        raise MalformedInput(f"token: x5c is not a list of 1 to {MAX_CHAIN} certificates")
    return [_certificate(text) for text in chain]


def _certificate(text: Any) -> x509.Certificate:
    if not isinstance(text, str) or len(text) > 2 * MAX_CERTIFICATE_BYTES:
        raise MalformedInput("token: x5c has something that is not a certificate")
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode("".join(text.split()), validate=True))
        critical = [item.value for item in certificate.extensions if item.critical]
        certificate.public_key()
        _ = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    except (*UNREADABLE, binascii.Error, UnsupportedAlgorithm) as error:
        raise MalformedInput("token: x5c has a certificate that cannot be read") from error
    if not isinstance(certificate.signature_hash_algorithm, _HASHES):
        raise MalformedInput("token: x5c has a certificate whose signature is not with SHA-256 or longer")
    if not all(isinstance(value, _KNOWN_CRITICAL) for value in critical):
        raise MalformedInput("token: x5c has a certificate with an unknown critical extension")
    return certificate


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    return next((item.value for item in certificate.extensions if isinstance(item.value, kind)), None)


def _is_supported(jwk: Mapping[str, Any]) -> bool:
    return jwk.get("kty") == "RSA" or (jwk.get("kty") == "EC" and jwk.get("crv") == "P-256")


def _accept(key: object) -> TokenKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return key
    raise MalformedInput(f"token's key is neither on P-256 nor RSA of {MIN_RSA_BITS} bits or more")


def _same(one: TokenKey, other: TokenKey) -> bool:
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return one.public_bytes(*form) == other.public_bytes(*form)
