"""The other question that Cedar answers: may this caller do this with this model?

Default deny: an empty policy allows nothing. A file that was changed is taken over once it is valid; until
then the former one decides, and the log says what is wrong.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloister.errors import ConfigError
from cloister.policy.cedar import CedarPolicy, Decision, Entity, shipped

REQUEST_SCHEMA = "requests.cedarschema"
Action = Literal["predict", "explain", "describe", "manage", "metrics"]
ACTIONS: tuple[Action, ...] = ("predict", "explain", "describe", "manage", "metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, as far as a credential proves it."""

    kind: str = "anonymous"
    subject: str = ""
    issuer: str = ""
    tenant: str = ""
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What logs and limits know the caller by."""
        return f"{self.kind}:{self.issuer + '#' if self.issuer else ''}{self.subject}"


ANONYMOUS = Caller()


class RequestPolicy:
    """A compiled set of policies about requests.

    Args:
        text: policies in Cedar's syntax.
        origin: name of the file, for messages.
    Raises:
        ConfigError: not valid, or about something that requests do not have.
    """

    def __init__(self, text: str, *, origin: str = "policy") -> None:
        self._policy = CedarPolicy(text, schema=shipped(REQUEST_SCHEMA), origin=origin)
        self.digest = hashlib.sha384(text.encode()).digest()
        """SHA-384 of the text: what ``sha384sum`` says of its file."""

    def decide(
        self, caller: Caller, action: Action, model: str, version: str, way: str, certificate: str = ""
    ) -> Decision:
        """Decide one request. Never raises: whatever goes wrong is a denial whose reason says so."""
        attributes = {
            "kind": caller.kind,
            "subject": caller.subject,
            "issuer": caller.issuer,
            "tenant": caller.tenant,
            "scopes": sorted(set(caller.scopes)),
        }
        groups = tuple(Entity("Group", group) for group in caller.groups)
        principal = Entity("Caller", caller.name, attributes, parents=groups)
        resource = Entity("Model", model, {"name": model, "version": version})
        context = {"way": way, "certificate": certificate}
        return self._policy.decide(principal, action, resource, context)


class FixedPolicy:
    """A policy that no file can change; by default one that permits nothing."""

    generation = 0

    def __init__(self, text: str = "") -> None:
        self.policy = RequestPolicy(text)

    def refresh(self) -> bool:
        """Nothing ever changes."""
        return False


class WatchedPolicy:
    """The policy in a file, taken over when it changes; a broken one is reported and the former one kept."""

    def __init__(self, path: Path, *, on_problem: Callable[[ConfigError], None] = lambda _: None) -> None:
        """Load it.

        Raises:
            ConfigError: it cannot be read, or is not valid.
        """
        self._path = path
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._policy = self._load()
        self.generation = 0
        """Changes whenever a decision could come out differently."""

    @property
    def policy(self) -> RequestPolicy:
        """The one in force."""
        return self._policy

    def refresh(self) -> bool:
        """Look at the file; whether another policy is in force now."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp == self._seen:
                    return False
                self._seen = stamp
                policy = self._load()
            except ConfigError as error:
                self._on_problem(error)
                return False
            self._policy = policy
            self.generation += 1
            return True

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read policy {self._path}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _load(self) -> RequestPolicy:
        try:
            text = self._path.read_bytes().decode("utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read policy {self._path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"policy {self._path} is not UTF-8") from error
        return RequestPolicy(text, origin=str(self._path))
