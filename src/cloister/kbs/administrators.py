"""Who may administer a broker: bearers of admin tokens, and of client certificates with a role.

A certificate counts only if TLS has verified it under ``keys.admin_ca``; its role is in the owner's file:

```toml
[[administrator]]
role = "owner"
uri = "spiffe://example.org/release"    # or: email, dns, subject (RFC 4514), fingerprint (SHA-256 of the DER)
```

The first entry that fits decides. The file is read again when it changes, so an administrator who is struck
out has no role from the next request on. A request with a token is judged by its token alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.crypto.certificates import UNREADABLE
from cloister.crypto.client_certificates import NAMES, read_client_certificate
from cloister.errors import ConfigError, PolicyDenied
from cloister.kbs.admin import ROLES, Permission, check_admin_token
from cloister.kbs.reload import ReloadedFile
from cloister.settings import KeysSettings


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request for administration shows."""

    token: str | None = None
    certificate: bytes | None = None
    """DER of a client certificate that TLS has verified."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One administrator: a role, and one name of the certificate."""

    role: str
    uri: str = ""
    email: str = ""
    dns: str = ""
    subject: str = ""
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """The name that is given, with its kind."""
        return next(f"{kind}:{value}" for kind in NAMES if (value := getattr(self, kind)))


class Roles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner's file."""

    administrator: tuple[Entry, ...] = ()


class Administrators:
    """Says on whose behalf a request for administration is made. Safe to use from many threads.

    Args:
        token_key: checks admin tokens; None takes none.
        roles: the owner's file as it is at each call; None takes no certificates.
    """

    def __init__(
        self, token_key: ed25519.Ed25519PublicKey | None, roles: Callable[[], Roles] | None = None
    ) -> None:
        self._token_key = token_key
        self._roles = roles

    def actor(self, shown: Credential, now: datetime, *, needs: Permission) -> str:
        """Who acts, for the audit log, once it is established that the role has the permission.

        Raises:
            PolicyDenied: nothing was shown, or nothing whose role may do this.
            BadSignature, StaleEvidence: a token or certificate that does not hold, or not now.
            ConfigError: the owner's file is broken.
        """
        if shown.token is not None:
            if self._token_key is None:
                raise PolicyDenied("this broker takes no admin tokens: show a client certificate")
            return f"role:{check_admin_token(shown.token, self._token_key, now, needs=needs)}"
        if shown.certificate is None or self._roles is None:
            wanted = [] if self._token_key is None else ["a bearer token"]
            wanted += [] if self._roles is None else ["a client certificate"]
            raise PolicyDenied(f"administration needs {' or '.join(wanted)}")
        certificate = read_client_certificate(shown.certificate)
        certificate.check_time(now)
        for entry in self._roles().administrator:
            if entry.name in certificate.names:
                if needs not in ROLES[entry.role]:
                    raise PolicyDenied(f"the certificate's role may not do this ({needs})")
                return f"role:{entry.role} certificate:{entry.name}"
        raise PolicyDenied("the client certificate has no role here")


def open_administrators(settings: KeysSettings, token_key: ed25519.Ed25519PublicKey) -> Administrators:
    """As the settings say.

    Raises:
        ConfigError: certificates without roles or the other way round, nobody could administer, or a file
            cannot be used.
    """
    if bool(settings.admin_ca) != bool(settings.admin_roles):
        raise ConfigError("keys.admin_ca and keys.admin_roles belong together: set both, or neither")
    if not settings.admin_roles:
        if not settings.admin_tokens:
            raise ConfigError("keys.admin_tokens is off and keys.admin_ca is empty: nobody could administer")
        return Administrators(token_key)
    try:
        x509.load_pem_x509_certificates(Path(settings.admin_ca).read_bytes())
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"cannot read certificates from {settings.admin_ca}") from error
    source = ReloadedFile(Path(settings.admin_roles), read_roles)
    source.get()
    return Administrators(token_key if settings.admin_tokens else None, source.get)


def read_roles(path: Path) -> Roles:
    """The owner's file.

    Raises:
        ConfigError: not TOML, an unknown name or role, or an entry without exactly one name.
    """
    try:
        document: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        roles = msgspec.convert(document, Roles)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"cannot use administrators of {path}: {error}") from error
    for entry in roles.administrator:
        given = [kind for kind in NAMES if getattr(entry, kind)]
        if entry.role not in ROLES:
            raise ConfigError(f"{path}: unknown role {entry.role[:20]!r}", hint=f"known: {', '.join(ROLES)}")
        if len(given) != 1:
            raise ConfigError(f"{path}: an administrator has one of {', '.join(NAMES)}, found {len(given)}")
        if entry.fingerprint and len(entry.fingerprint) != 64:
            raise ConfigError(f"{path}: a fingerprint is SHA-256 in hexadecimal, 64 digits")
    fold = [
        msgspec.structs.replace(entry, fingerprint=entry.fingerprint.lower()) for entry in roles.administrator
    ]
    return Roles(administrator=tuple(fold))
