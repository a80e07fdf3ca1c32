"""Admin tokens: JWTs with a ``role``, signed by the broker's own key.

======== ============ ===========================================================
role     permissions  may
======== ============ ===========================================================
admin    all          everything, policies and rotation of the KEK included
owner    resources    store, delete, list, revoke keys; raise minimum versions
auditor  audit        read the audit log
======== ============ ===========================================================
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from joserfc.jwt import JWTClaimsRegistry

from cloister.errors import BadSignature, ConfigError, MalformedInput, PolicyDenied, StaleEvidence
from cloister.kbs.owner_files import read_private, replace_file

Permission = Literal["resources", "policies", "audit"]
ADMIN_ROLE = "admin"
ROLES: dict[str, frozenset[Permission]] = {
    ADMIN_ROLE: frozenset({"resources", "policies", "audit"}),
    "owner": frozenset({"resources"}),
    "auditor": frozenset({"audit"}),
}
AUDIENCE = "cloister-key-broker"
LIFETIME = timedelta(days=365)
MAX_LIFETIME = timedelta(days=3650)
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
    """A bearer token for one role.

    Raises:
        ConfigError: no such role, or a lifetime that is not positive or over ten years.
    """
    if role not in ROLES:
        raise ConfigError(f"unknown role {role[:20]!r}", hint=f"known: {', '.join(ROLES)}")
    if not timedelta(0) < lifetime <= MAX_LIFETIME:
        raise ConfigError(f"a token lives between one second and {MAX_LIFETIME.days} days")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    claims = {
        "aud": AUDIENCE,
        "role": role,
        "iat": int(now.timestamp()),
        "exp": int((now + lifetime).timestamp()),
    }
    return jwt.encode({"alg": _ALGORITHM}, claims, OKPKey.import_key(pem), algorithms=[_ALGORITHM])


def check_admin_token(
    token: str, key: ed25519.Ed25519PublicKey, now: datetime, *, needs: Permission = "policies"
) -> str:
    """Establish that a bearer's role has a permission; returns the role.

    Raises:
        BadSignature: not a token of this broker.
        StaleEvidence: expired, or not valid yet.
        PolicyDenied: a token of this broker whose role may not do this.
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
    role = claims.get("role")
    if claims.get("aud") != AUDIENCE or not isinstance(role, str) or needs not in ROLES.get(role, ()):
        raise PolicyDenied(f"admin token has no role that may do this ({needs})")
    return role


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
