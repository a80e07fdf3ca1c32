"""What a caller demands of a model server besides its TEE: models, their signers, policy, settings.

A demand on models is ``VALUE``, ``NAME=VALUE`` or ``NAME/VERSION=VALUE``. It speaks of every loaded model of
that name and version, of all that are loaded if it names none. Each of these has to have one of the values
that are demanded of it, and at least one has to be there: what is not met is refused, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from cloister.errors import ConfigError, PolicyDenied

if TYPE_CHECKING:
    from cloister.attest.service import LoadedModel, ServiceIdentity

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA384 = re.compile(r"[0-9a-f]{96}")
_SIGNER = re.compile(r"[!-~]{1,256}")
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class ServiceDemands:
    """What must be true of a service, beyond its platform; by default nothing."""

    model_digests: tuple[str, ...] = ()
    """SHA-256 of containers, lower-case hexadecimal; each may begin with ``NAME=`` or ``NAME/VERSION=``."""
    model_signers: tuple[str, ...] = ()
    """Signers as evidence names them; each may begin with ``NAME=`` or ``NAME/VERSION=``."""
    policy_digests: tuple[str, ...] = ()
    """SHA-384 of the access policy's text; it is one of these."""
    settings_digests: tuple[str, ...] = ()
    """SHA-384 of the effective settings; it is one of these."""

    def __post_init__(self) -> None:
        """Check the form.

        Raises:
            ConfigError: a value that is not one.
        """
        for name, form, meaning in _FORMS:
            for value in getattr(self, name):
                bare = _split(value)[1] if name.startswith("model") else value
                if not form.fullmatch(bare):
                    raise ConfigError(f"{name}: {value[:80]!r} is not {meaning}")

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], origin: str) -> Self:
        """The ``[service]`` table of reference values.

        Raises:
            ConfigError: an unknown field, an empty list, or a value of the wrong form.
        """
        known = [field.name for field in fields(cls)]
        for name, value in table.items():
            if name not in known:
                raise ConfigError(f"{origin}: unknown field in [service]: {name!r}", hint=", ".join(known))
            if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"{origin}: [service] {name} must be a list of strings that is not empty")
        try:
            return cls(**{name: tuple(value) for name, value in table.items()})
        except ConfigError as error:
            raise ConfigError(f"{origin}: [service] {error.message}") from error

    def narrowed(
        self,
        *,
        model_digests: Sequence[str] = (),
        model_signers: Sequence[str] = (),
        policy_digests: Sequence[str] = (),
    ) -> Self:
        """These demands, with those given here in the place of the former ones of their kind."""
        given = {
            "model_digests": tuple(model_digests),
            "model_signers": tuple(model_signers),
            "policy_digests": tuple(policy_digests),
        }
        return replace(self, **{name: values for name, values in given.items() if values})

    def check(self, identity: ServiceIdentity) -> None:
        """Establish that a verified service meets them.

        Raises:
            PolicyDenied: it does not; ``reasons`` has every demand that is not met.
        """
        reasons = (
            *_unmet("model digest", self.model_digests, identity.models, lambda m: m.container_digest),
            *_unmet("model signer", self.model_signers, identity.models, lambda m: m.signer),
            *_differs("policy digest", self.policy_digests, identity.policy_digest),
            *_differs("settings digest", self.settings_digests, identity.settings_digest),
        )
        if reasons:
            raise PolicyDenied(
                f"the service is not the one that is demanded: {'; '.join(reasons)}",
                reasons=reasons,
                hint="nothing was sent; look at what changed before you accept it",
            )


def _unmet(
    what: str,
    demanded: Sequence[str],
    models: Iterable[LoadedModel],
    found: Callable[[LoadedModel], str],
) -> list[str]:
    by_model: dict[str, list[str]] = {}
    for demand in demanded:
        named, value = _split(demand)
        by_model.setdefault(named, []).append(value)
    reasons = []
    loaded = list(models)
    for named, values in by_model.items():
        name, _, version = named.partition("/")
        meant = [m for m in loaded if name in ("", m.name) and version in ("", m.version)]
        if not meant:
            reasons.append(f"{what}: {named or 'no model'} is not loaded" if named else f"{what}: no model")
        reasons += [
            f"{what}: {model.name} {model.version} has {_short(found(model))},"
            f" demanded {' or '.join(map(_short, values))}"
            for model in meant
            if found(model) not in values
        ]
    return reasons


def _differs(what: str, demanded: Sequence[str], found: bytes) -> list[str]:
    if not demanded or found.hex() in demanded:
        return []
    return [f"{what}: it is {_short(found.hex())}, demanded {' or '.join(map(_short, demanded))}"]


def _split(demand: str) -> tuple[str, str]:
    """The model that is named, or an empty text, and the value. Base64 may end with ``=``, not hold it."""
    named, equals, value = demand.partition("=")
    return (named, value) if equals and value.strip("=") else ("", demand)


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"


_FORMS = (
    ("model_digests", _SHA256, "[NAME[/VERSION]=] and 64 lower-case hexadecimal digits"),
    ("model_signers", _SIGNER, "[NAME[/VERSION]=] and a signer's name as `cloister verify` shows it"),
    ("policy_digests", _SHA384, "96 lower-case hexadecimal digits"),
    ("settings_digests", _SHA384, "96 lower-case hexadecimal digits"),
)

NO_DEMANDS = ServiceDemands()
