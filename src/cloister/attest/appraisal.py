"""Is it acceptable? Reference Values, and the appraisal of verified Claims by them.

Reference values are a TOML file with one table per scheme, two switches for all of them, and what else is
demanded of a model server::

    allow_simulated = false        # true accepts software platforms, which protect nothing
    require_sandbox = false        # true refuses model servers that do not confine their models' code

    [tdx]
    mr_td = ["91bc..."]            # SHA-384, 96 hexadecimal digits
    tcb_status = ["UpToDate"]

    [service]
    model_digests = ["xray=9f86..."]   # ``attest.demands``

Each scheme's fields are its ``rules`` (``cloister.attest.dcap.tdx.RULES`` and so on); ``describe`` renders
them as a table. Everywhere: an unknown field is an error, a value of the wrong length is an error, an empty
list denies, and a scheme without a table is denied. A file that says nothing accepts nothing.

An accepted platform is *affirming* if its TCB status leaves nothing to be desired and it is neither in debug
mode nor simulated, else *warning*: reference values may tolerate these, the verdict still says so. A denied
one is *contraindicated*.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from cloister.attest.demands import NO_DEMANDS, ServiceDemands
from cloister.attest.model import AttestationResult, Check, Claims, TrustTier
from cloister.attest.rules import Rule, render_reason
from cloister.attest.scheme import Scheme
from cloister.attest.verifier import SCHEMES, find_scheme
from cloister.errors import ConfigError, PolicyDenied


class AppraisalDenied(PolicyDenied):
    """Genuine but not acceptable; ``result`` holds every check, ``reasons`` the failed ones."""

    def __init__(self, result: AttestationResult) -> None:
        reasons = tuple(render_reason(check) for check in result.checks if not check.passed)
        super().__init__(
            f"{result.claims.scheme} evidence is genuine but not acceptable: {'; '.join(reasons)}",
            reasons=reasons,
            hint="compare the reference values with what was found",
        )
        self.result = result


_SERVICE = "service"
_SWITCHES = ("allow_simulated", "require_sandbox")


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """What is acceptable, per scheme; made by ``from_toml`` or ``from_mapping``."""

    tables: Mapping[str, Mapping[str, Any]]
    allow_simulated: bool = False
    require_sandbox: bool = False
    """Of a model server: every model's own code must be confined (``attest.service``)."""
    service: ServiceDemands = NO_DEMANDS
    """Of a model server: its models, signers, policy, settings."""

    @classmethod
    def from_toml(cls, source: Path | str) -> Self:
        """Reference values from a file, or from TOML text.

        Args:
            source: a ``Path`` is a file; a string is a file's name if it has one line without ``=`` or ``[``,
                and TOML text otherwise.
        Raises:
            ConfigError: unreadable, not TOML, or a field that is unknown or of the wrong form.
        """
        text, origin = _read(source)
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{origin}: not TOML: {error}") from error
        return cls.from_mapping(document, origin=origin)

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, origin: str = "reference values") -> Self:
        """Reference values from the form that TOML parses to.

        Raises:
            ConfigError: a field that is unknown or of the wrong form.
        """
        tables: dict[str, Mapping[str, Any]] = {}
        switches = dict.fromkeys(_SWITCHES, False)
        service = NO_DEMANDS
        for name, value in document.items():
            if name in switches:
                if not isinstance(value, bool):
                    raise ConfigError(f"{origin}: {name} must be true or false")
                switches[name] = value
                continue
            if name not in SCHEMES and name != _SERVICE:
                raise _unknown(f"{origin}: unknown table or field", name, [*SCHEMES, _SERVICE, *_SWITCHES])
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {name} must be a table such as [{name}]")
            if name == _SERVICE:
                service = ServiceDemands.from_mapping(value, origin)
                continue
            tables[name] = _parse_table(SCHEMES[name], value, origin)
        return cls(MappingProxyType(tables), **switches, service=service)

    def demanding(
        self,
        model_digest: str | Sequence[str] = (),
        model_signer: str | Sequence[str] = (),
        policy_digest: str | Sequence[str] = (),
    ) -> Self:
        """These, demanding this of a model server too; what is given wins over their own of that kind.

        Args:
            model_digest, model_signer, policy_digest: as in ``ServiceDemands``.
        Raises:
            ConfigError: a value that is no digest or signer.
        """
        given = [(item,) if isinstance(item, str) else item for item in (model_digest, model_signer)]
        policies = (policy_digest,) if isinstance(policy_digest, str) else policy_digest
        demands = self.service.narrowed(
            model_digests=given[0], model_signers=given[1], policy_digests=policies
        )
        return replace(self, service=demands)


def appraise(claims: Claims, reference_values: ReferenceValues, now: datetime) -> AttestationResult:
    """Compare verified claims with reference values: all checks are made, also after one has failed.

    Args:
        claims: what ``verify_evidence`` returned.
        now: aware time, for ages and for the verdict's date.
    Returns:
        The verdict, with all checks.
    Raises:
        AppraisalDenied: at least one check failed; a ``PolicyDenied`` with ``reasons`` and ``result``.
    """
    scheme = find_scheme(claims.scheme)
    checks = [_check_simulated(claims, reference_values)]
    table = reference_values.tables.get(claims.scheme)
    if table is None:
        checks.append(Check(claims.scheme, "reference values for this scheme", "no such table", False))
    else:
        made = (rule.check(claims, table.get(rule.name), now) for rule in scheme.rules)
        checks.extend(check for check in made if check is not None)
    denied = not all(check.passed for check in checks)
    tier = TrustTier.CONTRAINDICATED if denied else _tier(claims, scheme)
    result = AttestationResult(tier, claims, tuple(checks), now)
    if denied:
        raise AppraisalDenied(result)
    return result


def describe(scheme: str) -> tuple[tuple[str, str, str], ...]:
    """The documented table of a scheme: name, what it is, form and comparison."""
    return tuple((rule.name, rule.about, rule.meaning) for rule in find_scheme(scheme).rules)


def _check_simulated(claims: Claims, reference_values: ReferenceValues) -> Check:
    expected = "either (allow_simulated = true)" if reference_values.allow_simulated else "false"
    passed = reference_values.allow_simulated or not claims.simulated
    return Check("simulated", expected, str(claims.simulated).lower(), passed)


def _tier(claims: Claims, scheme: Scheme) -> TrustTier:
    sound = claims.tcb_status in scheme.sound_status and not claims.debug and not claims.simulated
    return TrustTier.AFFIRMING if sound else TrustTier.WARNING


def _parse_table(scheme: Scheme, table: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    rules: dict[str, Rule] = {rule.name: rule for rule in scheme.rules}
    parsed: dict[str, Any] = {}
    for name, value in table.items():
        if name not in rules:
            raise _unknown(f"{origin}: unknown field in [{scheme.name}]", name, list(rules))
        try:
            parsed[name] = rules[name].parse(value)
        except ConfigError as error:
            raise ConfigError(f"{origin}: [{scheme.name}] {name}: {error.message}") from error
    return MappingProxyType(parsed)


def _read(source: Path | str) -> tuple[str, str]:
    if isinstance(source, str):
        if not source.strip() or any(mark in source for mark in "\n=["):
            return source, "reference values"
        source = Path(source)
    try:
        return source.read_text(encoding="utf-8"), str(source)
    except OSError as error:
        raise ConfigError(f"cannot read reference values {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"reference values {source} are not UTF-8") from error


def _unknown(what: str, name: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1)
    return ConfigError(f"{what}: {name!r}", hint=f"did you mean {close[0]!r}?" if close else "")
