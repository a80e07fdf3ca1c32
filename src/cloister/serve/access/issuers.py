"""Whose JSON Web Tokens are believed, and how what they say becomes a caller: tenant, groups, scopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from cloister.errors import ConfigError, MalformedInput
from cloister.policy.requests import Caller

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = ("ES256", "ES384", "ES512", *_RSA, "EdDSA", "Ed25519")
"""Those that an issuer may be allowed; all asymmetric. ``EdDSA`` is the older name of ``Ed25519``."""
DEFAULT_ALGORITHMS = ("ES256", "ES384", "RS256", "PS256", "EdDSA", "Ed25519")
MAX_SKEW_S = 300.0
MAX_GROUPS = 1000


class Issuer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One issuer.

    A claim's name may be a path such as ``realm_access.roles``; a claim of exactly that name comes first.
    """

    url: str
    """Exactly the ``iss`` of its tokens."""
    audience: str | tuple[str, ...]
    """One of these has to be among the ``aud`` of a token."""
    jwks_url: str = ""
    """Where its keys are; empty means that its discovery document says so, or ``jwks_file``."""
    jwks_file: str = ""
    """File with its keys, instead; read again when it changes."""
    ca: str = ""
    """PEM file that its TLS is checked against; empty means the system's authorities."""
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    """What its tokens may be signed with."""
    subject_claim: str = "sub"
    tenant_claim: str = "tenant"
    groups_claim: str = "groups"
    tenant: str = ""
    """The tenant of all its callers, whatever their tokens say."""
    groups: Mapping[str, str] = {}
    """Groups by what tokens call them: other values of the claim are no groups then. Empty takes all."""
    clock_skew_s: float = 30.0
    """How far its clock may be from this one."""

    @property
    def audiences(self) -> tuple[str, ...]:
        """One of these has to be among the ``aud`` of a token."""
        return (self.audience,) if isinstance(self.audience, str) else self.audience

    def check(self) -> None:
        """Establish that it can be used.

        Raises:
            ConfigError: a field that means nothing, or too much.
        """
        if not self.url or not self.audiences or not all(self.audiences):
            raise ConfigError("an issuer has a url and an audience: tokens for others would be taken")
        unknown = sorted(set(self.algorithms) - set(ALGORITHMS))
        if unknown or not self.algorithms:
            raise ConfigError(
                f"issuer {self.url[:80]}: no algorithm {', '.join(unknown)[:80] or 'at all'}",
                hint=f"known: {', '.join(ALGORITHMS)}",
            )
        if self.jwks_url and self.jwks_file:
            raise ConfigError(f"issuer {self.url[:80]}: jwks_url and jwks_file exclude each other")
        if not 0 <= self.clock_skew_s <= MAX_SKEW_S:
            raise ConfigError(f"issuer {self.url[:80]}: clock_skew_s is 0 to {MAX_SKEW_S:.0f}")
        if not self.jwks_file:
            check_issuer_url(self.jwks_url or self.url)
        if self.ca and not Path(self.ca).is_file():
            raise ConfigError(f"issuer {self.url[:80]}: cannot read {self.ca}")

    def caller(self, claims: Mapping[str, Any]) -> Caller:
        """Whom verified claims speak for.

        Raises:
            MalformedInput: they name nobody, or more groups than anybody is in.
        """
        subject = _claim(claims, self.subject_claim)
        if not isinstance(subject, str) or not subject:
            raise MalformedInput("the token has no subject")
        tenant = self.tenant or _claim(claims, self.tenant_claim)
        groups = texts(_claim(claims, self.groups_claim))
        if len(groups) > MAX_GROUPS:
            raise MalformedInput(f"the token names more than {MAX_GROUPS} groups")
        if self.groups:
            groups = [self.groups[group] for group in groups if group in self.groups]
        scopes = claims.get("scope", claims.get("scp", ""))
        return Caller(
            kind="jwt",
            subject=subject,
            issuer=self.url,
            tenant=tenant if isinstance(tenant, str) else "",
            groups=tuple(groups),
            scopes=tuple(scopes.split() if isinstance(scopes, str) else texts(scopes)),
        )


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
    if not parsed.host or (parsed.scheme != "https" and not (parsed.scheme == "http" and local)):
        raise ConfigError(f"{url[:80]}: an issuer's keys come over https only")


def texts(value: Any) -> Sequence[str]:
    """The strings of a claim that is a string or a list of them."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, str)]
    return ()


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
