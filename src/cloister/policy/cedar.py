"""Cedar decides: default deny, ``forbid`` wins, and a policy that cannot be evaluated is a refusal.

One language for key release and, later, for requests. A ``CedarPolicy`` is parsed, validated against its
schema and compiled once; a decision costs about 0.2 ms the first time, and does no I/O.

Source: Cedar policy language reference, "Authorization" and "Policy syntax".
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cedarpy

from cloister.errors import ConfigError
from cloister.policy.explain import NearMiss, near_misses

RELEASE_POLICY = "release.cedar"
UNSAFE_SIMULATED_POLICY = "unsafe_simulated.cedar"
RELEASE_SCHEMA = "schema.cedarschema"
MAX_VALUE_CHARACTERS = 40
MAX_DECISIONS = 1024


@dataclass(frozen=True, slots=True)
class Entity:
    """A principal, action or resource: ``Resource::"models/key/7"`` with its attributes."""

    type: str
    id: str
    attributes: Mapping[str, Any] | None = None
    tags: Mapping[str, str] | None = None
    """Values whose names no schema can know, for ``hasTag`` and ``getTag``."""
    parents: tuple[Entity, ...] = ()
    """What it is a member of, for ``in``."""

    @property
    def uid(self) -> dict[str, str]:
        """The form of Cedar's JSON entities, which needs no quoting of ``id``."""
        return {"type": self.type, "id": self.id}

    @property
    def form(self) -> dict[str, Any]:
        """The whole entity in that form."""
        return {
            "uid": self.uid,
            "attrs": dict(self.attributes or {}),
            "tags": dict(self.tags or {}),
            "parents": [parent.uid for parent in self.parents],
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policies say, and why in one line."""

    allowed: bool
    policy_ids: tuple[str, ...]
    """The policies that decided: those that permitted, or those that forbade. Empty if none applied."""
    reason: str


class CedarPolicy:
    """A compiled set of policies.

    Args:
        text: policies in Cedar's own syntax. An empty set is valid and permits nothing.
        schema: schema text; with one, a policy that names an unknown attribute is refused here, and a
            request that does not fit is denied.
        origin: name of the file, for messages.
    Raises:
        ConfigError: does not parse, does not fit the schema, or holds templates (nothing would link them).
    """

    def __init__(self, text: str, *, schema: str | None = None, origin: str = "policy") -> None:
        try:
            self._policies = cedarpy.PolicySet.from_str(text)
            self._schema = None if schema is None else cedarpy.Schema.from_str(schema)
        except ValueError as error:
            raise ConfigError(f"{origin}: not valid Cedar: {_line(str(error))}") from error
        if self._schema is not None:
            result = cedarpy.validate_policies(text, self._schema)
            if not result.validation_passed:
                raise ConfigError(f"{origin}: {'; '.join(_line(found.error) for found in result.errors)}")
        if self._policies.templates():
            raise ConfigError(f"{origin}: policy templates are not supported")
        self._near_misses: tuple[NearMiss, ...] = near_misses(self._policies)
        self._decisions: OrderedDict[bytes, Decision] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_text(cls, text: str, *, schema: str | None = None) -> Self:
        """See the class."""
        return cls(text, schema=schema)

    @classmethod
    def from_file(cls, path: Path, *, schema: str | None = None) -> Self:
        """See the class; also ``ConfigError`` if the file cannot be read."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read policy {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"policy {path} is not UTF-8") from error
        return cls(text, schema=schema, origin=str(path))

    def decide(
        self, principal: Entity, action: str, resource: Entity, context: Mapping[str, Any]
    ) -> Decision:
        """Decide one request. Never raises: whatever goes wrong is a denial whose reason says so.

        Policies see nothing but what is given here, no clock either, so the same question has the same
        answer: the latest ones are remembered, by the digest of the question.
        """
        try:
            asked = json.dumps([principal.form, action, resource.form, context], sort_keys=True)
        except (ValueError, TypeError, RecursionError) as error:
            return Decision(False, (), f"policy error: {_line(str(error))}")
        digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            known = self._decisions.get(digest)
        if known is None:
            known = self._decide(principal, action, resource, context)
            with self._lock:
                self._decisions[digest] = known
                while len(self._decisions) > MAX_DECISIONS:
                    self._decisions.popitem(last=False)
        return known

    def _decide(
        self, principal: Entity, action: str, resource: Entity, context: Mapping[str, Any]
    ) -> Decision:
        request = {
            "principal": principal.uid,
            "action": {"type": "Action", "id": action},
            "resource": resource.uid,
            "context": dict(context),
        }
        try:
            parents = [parent.form for parent in (*principal.parents, *resource.parents)]
            entities = json.dumps([principal.form, resource.form, *parents])
            handle = cedarpy.Entities.from_json_str(entities, self._schema)
            result = cedarpy.is_authorized(request, self._policies, handle, self._schema)
        except (ValueError, TypeError) as error:
            return Decision(False, (), f"policy error: {_line(str(error))}")
        ids = tuple(sorted(_names(result.diagnostics)))
        if result.diagnostics.errors:
            # Cedar itself skips a policy that fails; a forbid that is skipped would open a door.
            return Decision(False, ids, f"policy error: {_line('; '.join(result.diagnostics.errors))}")
        if result.allowed:
            return Decision(True, ids, f"permitted by {', '.join(ids)}")
        if ids:
            return Decision(False, ids, f"forbidden by {', '.join(ids)}")
        return Decision(False, (), self._why_none_permits(request, handle))

    def _why_none_permits(self, request: dict[str, Any], entities: cedarpy.Entities) -> str:
        failed = [(miss.failed_conditions(request, entities), miss.name) for miss in self._near_misses]
        if not failed:
            return "no policy permits"
        conditions, name = min(failed, key=lambda item: len(item[0]))
        unmet = " and ".join(conditions)
        lead = _differing(conditions, request)
        return f"no policy permits; closest: {name}, {lead} {unmet} does not hold{_found(unmet, request)}"


def shipped(name: str) -> str:
    """Text of a policy or schema that comes with the package."""
    return importlib.resources.files("cloister.policy").joinpath(name).read_text(encoding="utf-8")


def release_policy(path: Path | None = None) -> CedarPolicy:
    """The policy that decides key releases: the given file, or the one that ships."""
    schema = shipped(RELEASE_SCHEMA)
    if path is None:
        return CedarPolicy(shipped(RELEASE_POLICY), schema=schema, origin=RELEASE_POLICY)
    return CedarPolicy.from_file(path, schema=schema)


def _differing(conditions: list[str], request: Mapping[str, Any]) -> str:
    """``mr_td differs:`` where nothing but claims with another value is amiss, else ``where``."""
    compared = [re.fullmatch(r'context\.(\w+) == ".*', condition) for condition in conditions]
    names = list(dict.fromkeys(found[1] for found in compared if found))
    if None in compared or not names or not request["context"].keys() >= set(names):
        return "where"
    return f"{' and '.join(names)} {'differs' if len(names) == 1 else 'differ'}:"


def _found(conditions: str, request: Mapping[str, Any]) -> str:
    """What was found in place of the claims that unmet conditions speak of; claims are public."""
    context = request["context"]
    names = dict.fromkeys(re.findall(r"context\.(\w+)", conditions))
    shown = [f"{name} is {_short(context[name])}" if name in context else f"no {name}" for name in names]
    return f" ({', '.join(shown)})" if shown else ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 1]}…"


def _names(diagnostics: cedarpy.Diagnostics) -> list[str]:
    annotations = diagnostics.id_annotations_by_reason
    return [annotations.get(policy_id) or policy_id for policy_id in diagnostics.reasons]


def _line(text: str) -> str:
    return " ".join(text.split())
