"""Release policies in Rego, as they are brought from Trustee; needs the extra ``rego``.

========= =========================================================================================
name      what a policy sees
========= =========================================================================================
``input`` the claims of the attestation result: ``input.submods.cpu0["ear.status"]`` and so on
``data``  ``{"plugin": "resource", "resource-path": [repository, type, tag], "query": {...}}``
========= =========================================================================================

``data.policy.allow`` decides, and only ``true`` permits. ``query_reference_value(id)`` answers what was
registered under the id; it is undefined for any other. A policy is checked when it is set, and one that fails
in a decision is a denial. A decision compiles the policy anew and takes some milliseconds; Cedar's takes a
tenth of one.

Source: Trustee, kbs/src/policy_engine and deps/policy-engine; Open Policy Agent, Rego v1.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cloister.errors import ConfigError, MissingDependencyError
from cloister.policy.cedar import Decision

POLICY_ID = "data.policy.allow"
MAX_POLICY_CHARACTERS = 1 << 18
TRUST_CLAIMS = ("executables", "hardware", "configuration")
_MODULE = "policy.rego"
_EXTENSION = """package policy

query_reference_value(id) := data["cloister-reference-values"][id]
"""
_ONE_AT_A_TIME = threading.Lock()


class RegoPolicy:
    """A policy of package ``policy``.

    Args:
        text: Rego v1, or v0 with the keywords that both have.
        origin: name of the file, for messages.
    Raises:
        ConfigError: not a policy: does not compile, or has no rule ``allow`` in package ``policy``.
        MissingDependencyError: the extra ``rego`` is not installed.
    """

    def __init__(self, text: str, *, origin: str = "policy", rule: str = "allow") -> None:
        if len(text) > MAX_POLICY_CHARACTERS:
            raise ConfigError(f"{origin}: a policy has at most {MAX_POLICY_CHARACTERS} characters")
        self._text = text
        try:
            self._evaluate(f"data.policy.{rule}", {}, _data((), "", {}), {})
        except _Failed as error:
            raise ConfigError(f"{origin}: not valid Rego: {error}") from error
        bare = "\n".join(line.split("#")[0] for line in text.splitlines())
        words = bare.replace("{", " ").replace(":=", " ").replace("=", " ").split()
        if "package policy" not in " ".join(words) or rule not in words:
            raise ConfigError(f"{origin}: has no rule {rule!r} in package policy")

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """See the class; also ``ConfigError`` if the file cannot be read."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read policy {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"policy {path} is not UTF-8") from error
        return cls(text, origin=str(path))

    def decide(
        self,
        claims: Mapping[str, Any],
        path: tuple[str, ...],
        query: Mapping[str, str],
        reference_values: Mapping[str, Any] | None = None,
        *,
        plugin: str = "resource",
    ) -> Decision:
        """Decide one request. Never raises: whatever goes wrong is a denial whose reason says so."""
        try:
            allowed = self._evaluate(POLICY_ID, claims, _data(path, plugin, query), reference_values or {})
        except _Failed as error:
            return Decision(False, (), f"policy error: {error}")
        if len(allowed) == 1 and allowed[0] is True:  # and not 1, which equals it
            return Decision(True, (POLICY_ID,), f"permitted by {POLICY_ID}")
        found = "undefined" if not allowed else json.dumps(allowed[0])[:40]
        return Decision(False, (), f"no policy permits: {POLICY_ID} is {found}")

    def trust_claims(
        self, claims: Mapping[str, Any], reference_values: Mapping[str, Any]
    ) -> dict[str, int | None]:
        """What a policy of Trustee's attestation service says: AR4SI claims; None where it says nothing.

        Raises:
            ConfigError: the policy fails on these claims.
        """
        found: dict[str, int | None] = {}
        for name in TRUST_CLAIMS:
            try:
                values = self._evaluate(f"data.policy.{name}", claims, {}, reference_values)
            except _Failed as error:
                raise ConfigError(f"attestation policy fails: {error}") from error
            value = values[0] if values else None
            found[name] = value if type(value) is int and -128 <= value <= 127 else None
        return found

    def _evaluate(
        self,
        query: str,
        claims: Mapping[str, Any],
        data: Mapping[str, Any],
        reference_values: Mapping[str, Any],
    ) -> list[Any]:
        regopy = _library()
        with _ONE_AT_A_TIME:
            try:
                engine = regopy.Interpreter()
                engine.log_level = regopy.LogLevel.NONE
                engine.add_module(_MODULE, self._text)
                engine.add_module("cloister.rego", _EXTENSION)
                engine.add_data({**data, "cloister-reference-values": dict(reference_values)})
                engine.set_input(_plain(claims))
                results = engine.query(query).results
            except (regopy.RegoError, ValueError, TypeError, RuntimeError, RecursionError) as error:
                raise _Failed(_first_message(error)) from error
        return [value for result in results for value in result.expressions]


class _Failed(Exception):
    """The engine's refusal, in one line."""


def _data(path: tuple[str, ...], plugin: str, query: Mapping[str, str]) -> dict[str, Any]:
    return {"plugin": plugin, "resource-path": list(path), "query": dict(query)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _first_message(error: BaseException) -> str:
    """The engine's own words are a syntax tree; what it complains of is behind ``errormsg``."""
    _, found, rest = str(error).partition("(errormsg ")
    if not found:
        return "it cannot be evaluated"
    return " ".join(rest.split(")")[0].partition(":")[2].split())[:200] or "it cannot be evaluated"


def _library() -> Any:
    try:
        import regopy
        import regopy.rego_shared
    except ImportError as error:
        raise MissingDependencyError(
            "policies in Rego need the package regopy", hint="pip install 'cloister[rego]'"
        ) from error
    return regopy
