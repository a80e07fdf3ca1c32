"""One question, whichever language its answer is written in: may this TEE have this resource?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloister.errors import ConfigError
from cloister.policy.cedar import RELEASE_SCHEMA, CedarPolicy, Decision, Entity, release_policy, shipped
from cloister.policy.rego import RegoPolicy

RELEASE, RELEASE_OLD = "release", "release-old"
REGO_SUFFIX = ".rego"


def _nothing() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """Who asks for what."""

    tee: str
    context: Mapping[str, Any]
    """Attested claims, by the names of the Cedar schema."""
    repository: str
    type: str
    tag: str
    version: int
    old: bool = False
    """Below the oldest version that is released."""
    query: Mapping[str, str] = field(default_factory=dict)
    claims: Callable[[], Mapping[str, Any]] = _nothing
    """Attestation result as Trustee has it, for Rego; made only when it is asked for."""
    init_data: Mapping[str, str] = field(default_factory=dict)
    reference_values: Callable[[], Mapping[str, Any]] = _nothing
    """What ``query_reference_value`` answers from, in Rego."""


class ReleasePolicy(Protocol):
    """Decides each release."""

    def decide(self, request: ReleaseRequest) -> Decision:
        """Decide one request. Never raises: whatever goes wrong is a denial whose reason says so."""
        ...


class CedarRelease:
    """Cedar: the native one."""

    def __init__(self, policy: CedarPolicy) -> None:
        self._policy = policy

    def decide(self, request: ReleaseRequest) -> Decision:
        """See ``ReleasePolicy``."""
        path = f"{request.repository}/{request.type}/{request.tag}"
        names = {"repository": request.repository, "type": request.type, "tag": request.tag}
        resource = Entity("Resource", path, {**names, "version": request.version})
        principal = Entity("Tee", request.tee, tags=request.init_data)
        action = RELEASE_OLD if request.old else RELEASE
        return self._policy.decide(principal, action, resource, request.context)


class RegoRelease:
    """Rego: policies that come from Trustee. They know no versions, so an old one is never released."""

    def __init__(self, policy: RegoPolicy) -> None:
        self._policy = policy

    def decide(self, request: ReleaseRequest) -> Decision:
        """See ``ReleasePolicy``."""
        if request.old:
            return Decision(False, (), "a policy in Rego releases no old version")
        path = (request.repository, request.type, request.tag)
        return self._policy.decide(request.claims(), path, request.query, request.reference_values())


def load_release_policy(path: Path | None = None) -> ReleasePolicy:
    """The policy in a file, Rego if its name ends in ``.rego`` and Cedar otherwise; or the one that ships.

    Raises:
        ConfigError: unreadable, or not a valid policy.
        MissingDependencyError: Rego, and the extra ``rego`` is not installed.
    """
    if path is not None and path.suffix == REGO_SUFFIX:
        return RegoRelease(RegoPolicy.from_file(path))
    return CedarRelease(release_policy(path))


def parse_release_policy(text: str) -> ReleasePolicy:
    """The policy in a text: Rego if it declares a package, Cedar otherwise; see ``load_release_policy``."""
    if is_rego(text):
        return RegoRelease(RegoPolicy(text))
    if not text.strip():
        raise ConfigError("an empty policy would permit nothing")
    return CedarRelease(CedarPolicy.from_text(text, schema=shipped(RELEASE_SCHEMA)))


def is_rego(text: str) -> bool:
    """Whether a policy's first statement is a package, which Cedar does not have."""
    code = (line.strip() for line in text.splitlines())
    first = next((line for line in code if line and not line.startswith(("#", "//"))), "")
    return first.startswith("package ")
