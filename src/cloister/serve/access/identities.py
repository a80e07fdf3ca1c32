"""Who is known, and as whom: the file of issuers and of client certificates.

```toml
[[issuer]]
url = "https://login.example"
audience = "models"
algorithms = ["ES256"]
groups_claim = "realm_access.roles"

[[certificate]]
uri = "spiffe://example.org/pipeline"    # or: email, dns, subject (RFC 4514), fingerprint (SHA-256)
name = "pipeline"
tenant = "acme"
groups = ["robots"]
```

A certificate without an entry is known by its own first name alone; the first entry that fits decides.
"""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cloister.crypto.client_certificates import NAMES, ClientCertificate
from cloister.errors import ConfigError
from cloister.policy.requests import Caller
from cloister.serve.access.issuers import Issuer


class CertificateEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a client certificate speaks for; it names one of the certificate's names."""

    uri: str = ""
    email: str = ""
    dns: str = ""
    subject: str = ""
    fingerprint: str = ""
    name: str = ""
    """``principal.subject``; empty means the certificate's name with its kind."""
    tenant: str = ""
    groups: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name by which it is found, with its kind."""
        return next(f"{kind}:{value}" for kind in NAMES if (value := getattr(self, kind)))

    def check(self) -> None:
        """Establish that it can be used.

        Raises:
            ConfigError: it has not exactly one name, or a fingerprint that is none.
        """
        given = [kind for kind in NAMES if getattr(self, kind)]
        if len(given) != 1:
            raise ConfigError(f"a certificate has one of {', '.join(NAMES)}, found {len(given)}")
        if self.fingerprint and (len(self.fingerprint) != 64 or self.fingerprint != self.fingerprint.lower()):
            raise ConfigError("a fingerprint is SHA-256 in lower-case hexadecimal, 64 digits")


class Identities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of the file."""

    issuer: tuple[Issuer, ...] = ()
    certificate: tuple[CertificateEntry, ...] = ()

    def bearer(self, certificate: ClientCertificate) -> Caller:
        """Whom a certificate speaks for that TLS has verified."""
        names = frozenset(certificate.names)
        entry = next((entry for entry in self.certificate if entry.key in names), None)
        if entry is None:
            return Caller(kind="mtls", subject=certificate.name)
        return Caller(kind="mtls", subject=entry.name or entry.key, tenant=entry.tenant, groups=entry.groups)

    def admits_until(self, certificate: ClientCertificate, now_s: float) -> float:
        """Until when (seconds since 1970) a certificate is good.

        Raises:
            StaleEvidence: it is not, now.
        """
        certificate.check_time(datetime.fromtimestamp(now_s, UTC))
        return certificate.not_after.timestamp()


def read_identities(path: Path) -> Identities:
    """The file.

    Raises:
        ConfigError: not TOML, an unknown field, or an entry that cannot be.
    """
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Identities)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"cannot use identities of {path}: {error}") from error
    try:
        check_identities(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    return found


def check_identities(found: Identities) -> None:
    """Establish that they can be used.

    Raises:
        ConfigError: an entry that cannot be, or two of one issuer.
    """
    for issuer in found.issuer:
        issuer.check()
    for entry in found.certificate:
        entry.check()
    urls = [issuer.url for issuer in found.issuer]
    if len(set(urls)) != len(urls):
        raise ConfigError("an issuer is there twice", hint="give it several audiences instead")
