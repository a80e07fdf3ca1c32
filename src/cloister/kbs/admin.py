"""Admin tokens: JWTs with a ``role``, signed by the broker's own key and kept in a file of the owner."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from joserfc.jwt import JWTClaimsRegistry

from cloister.errors import BadSignature, MalformedInput, PolicyDenied, StaleEvidence
from cloister.kbs.owner_files import read_private, replace_file

ADMIN_ROLE = "admin"
AUDIENCE = "cloister-key-broker"
LIFETIME = timedelta(days=365)
MAX_TOKEN_CHARACTERS = 4096
_RENEW_BEFORE = timedelta(days=30)
_ALGORITHM = "Ed25519"


def issue_admin_token(
    key: ed25519.Ed25519PrivateKey,
    now: datetime,
    *,
    role: str = ADMIN_ROLE,
    lifetime: timedelta = LIFETIME,
) -> str:
    """A bearer token for one role."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    claims = {
        "aud": AUDIENCE,
        "role": role,
        "iat": int(now.timestamp()),
        "exp": int((now + lifetime).timestamp()),
    }
    return jwt.encode({"alg": _ALGORITHM}, claims, OKPKey.import_key(pem), algorithms=[_ALGORITHM])


def check_admin_token(
    token: str, key: ed25519.Ed25519PublicKey, now: datetime, *, role: str = ADMIN_ROLE
) -> Mapping[str, Any]:
    """Establish that a bearer may act in a role; returns the token's claims.

    Raises:
        BadSignature: not a token of this broker.
        StaleEvidence: expired, or not valid yet.
        PolicyDenied: a token of this broker for something else.
    """
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise BadSignature("admin token is too long")
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        claims = jwt.decode(token, OKPKey.import_key(pem), algorithms=[_ALGORITHM]).claims
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadSignature("admin token is not one of this broker") from error
    registry = JWTClaimsRegistry(
        now=int(now.timestamp()), leeway=0, exp={"essential": True}, iat={"essential": True}
    )
    try:
        registry.validate(claims)
    except JoseError as error:
        raise StaleEvidence("admin token has expired or is not valid yet") from error
    if claims.get("aud") != AUDIENCE or claims.get("role") != role:
        raise PolicyDenied(f"admin token does not have the role {role!r}")
    return claims


def ensure_admin_token(path: Path, key: ed25519.Ed25519PrivateKey, now: datetime) -> None:
    """Keep a token in ``path`` that is good for at least a month."""
    try:
        if path.exists():
            token = read_private(path).decode("ascii").strip()
            check_admin_token(token, key.public_key(), now + _RENEW_BEFORE)
            return
    except (BadSignature, StaleEvidence, PolicyDenied, MalformedInput, UnicodeDecodeError):
        pass  # Of another key, or soon to expire: replaced below.
    replace_file(path, issue_admin_token(key, now).encode("ascii"))
