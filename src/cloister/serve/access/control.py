"""Credential, policy, limits and log together: may this request go on, and as whom?

A request brings at most one credential: ``Authorization: Bearer`` with a JWT or an API key, or ``x-api-key``.
Inside a sealed request it travels sealed. Without one the caller is anonymous, and the policy decides about
that as well; with one that is wrong the answer is 401, never anonymous.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import rfc8785

from cloister.errors import BadSignature, CloisterError, ConfigError, TransportError
from cloister.policy.requests import ANONYMOUS, Action, Caller, FixedPolicy, WatchedPolicy
from cloister.serve.access.api_keys import PREFIX, ApiKey, find_record, read_api_keys
from cloister.serve.access.audit import DecisionLog
from cloister.serve.access.limits import CallerLimits
from cloister.serve.access.oidc import Issuer, IssuerKeys, verify_jwt
from cloister.serve.refusals import Refusal

REFRESH_S = 2.0
"""How often files are looked at, and issuers asked where that is due."""
CREDENTIALS = (b"authorization", b"x-api-key")
_BEARER = b"bearer "

Headers = Sequence[tuple[bytes, bytes]]


class Unauthenticated(Refusal):
    """A credential that is none, or that does not hold."""

    status = 401
    kind = "UnauthorizedException"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class Forbidden(Refusal):
    """No policy permits it."""

    status = 403
    kind = "AccessDeniedException"


class TooManyRequests(Refusal):
    """Over the caller's rate or quota."""

    status = 429
    kind = "TooManyRequestsException"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many requests: ask again after {retry_after_s} s")
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"retry-after", b"%d" % self.retry_after_s)]


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may go on."""

    caller: Caller
    until_s: float
    """Seconds since 1970: until when the same credential needs not be looked at again."""


class AccessControl:
    """Decides about requests; ``admit`` is fast and does no I/O, ``refresh`` does that in a thread."""

    def __init__(
        self,
        policy: WatchedPolicy | FixedPolicy,
        *,
        api_keys: Path | None = None,
        issuers: Iterable[Issuer] = (),
        limits: CallerLimits | None = None,
        log: DecisionLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read every file.

        Raises:
            ConfigError: a file cannot be used.
        """
        self._policy = policy
        self._api_keys_path = api_keys
        self._api_keys: dict[str, ApiKey] = {}
        self._api_keys_seen = -1
        self._issuers = [(issuer, IssuerKeys(issuer)) for issuer in issuers]
        self._limits = limits or CallerLimits()
        self._log = log
        self._clock = clock
        self._unknown_key = threading.Event()
        self._changes = 0
        self._callers_digest = self._digest_callers()
        self._read_api_keys()

    @property
    def generation(self) -> int:
        """Changes whenever a decision could come out differently, but for the end of a credential."""
        return self._policy.generation + self._changes

    @property
    def policy_digest(self) -> bytes:
        """SHA-384 of the policy that decides now."""
        return self._policy.policy.digest

    @property
    def callers_digest(self) -> bytes:
        """SHA-384 of what credentials are held against now."""
        return self._callers_digest

    @property
    def counts(self) -> bool:
        """Whether each request has to be counted, so that an admission holds for one request only."""
        return self._limits.is_on

    @property
    def takes_credentials(self) -> bool:
        """Whether there is anything to hold a credential against; without that callers are anonymous."""
        return self._api_keys_path is not None or bool(self._issuers)

    def admit(
        self,
        action: Action,
        model: str,
        version: str,
        way: str,
        headers: Headers,
        *,
        caller: Caller | None = None,
    ) -> Admission:
        """Let a request pass.

        Args:
            version: that would answer; empty where none is meant.
            way: ``sealed``, ``tls`` or ``open``.
            caller: who asks, where that is known already; ``headers`` are not looked at then.
        Raises:
            Unauthenticated: its credential does not hold.
            Forbidden: no policy permits it, or one forbids it.
            TooManyRequests: over the caller's limits.
        """
        until_s = float("inf")
        if caller is None:
            caller, until_s = self.identify(headers)
        decision = self._policy.policy.decide(caller, action, model, version, way)
        if self._log is not None:
            self._log.record(caller, action, model, version, decision)
        if not decision.allowed:
            # The reason names policies and attributes: that is for the log, not for a stranger.
            raise Forbidden(f"{caller.kind} caller may not {action} {model or 'here'}")
        wait_s = self._limits.wait_s(caller.name, self._clock())
        if wait_s:
            raise TooManyRequests(wait_s)
        return Admission(caller, until_s)

    def identify(self, headers: Headers) -> tuple[Caller, float]:
        """Who asks, and until when the credential holds.

        Raises:
            Unauthenticated: more than one credential, or one that does not hold.
        """
        found = [_credential(name, value) for name, value in headers if name in CREDENTIALS]
        if not found or not self.takes_credentials:
            return ANONYMOUS, float("inf")
        if len(found) > 1 or not found[0]:
            raise Unauthenticated("expected one credential: Authorization: Bearer, or x-api-key")
        credential = found[0]
        if credential.startswith(PREFIX.encode()):
            record = find_record(self._api_keys, credential, datetime.fromtimestamp(self._clock(), UTC))
            if record is None:
                raise Unauthenticated("the API key is not one of this server's, or has expired")
            return record.caller(), record.until_s
        return self._verify_jwt(credential)

    def refresh(self) -> None:
        """Look at files and issuers; blocks on both. To be called every ``REFRESH_S`` from a thread."""
        self._policy.refresh()
        with contextlib.suppress(ConfigError):  # being written, or broken: the known keys go on being good
            self._read_api_keys()
        asked_for = self._unknown_key.is_set()
        self._unknown_key.clear()
        for _, keys in self._issuers:
            try:
                keys.refresh(force=asked_for)
            except CloisterError:
                continue

    def _verify_jwt(self, token: bytes) -> tuple[Caller, float]:
        problem: CloisterError | None = None
        for issuer, keys in self._issuers:
            try:
                return verify_jwt(token, issuer, keys, self._clock(), may_ask=False)
            except TransportError as error:
                self._unknown_key.set()
                problem = error
            except BadSignature as error:
                self._unknown_key.set()
                problem = problem or error
            except CloisterError as error:
                problem = error
        message = problem.message if problem is not None else "this server takes no such credential"
        raise Unauthenticated(message)

    def _read_api_keys(self) -> None:
        if self._api_keys_path is None:
            return
        try:
            stamp = self._api_keys_path.stat().st_mtime_ns
        except OSError as error:
            raise ConfigError(f"cannot read the API keys in {self._api_keys_path}") from error
        if stamp != self._api_keys_seen:
            self._api_keys = read_api_keys(self._api_keys_path)
            self._api_keys_seen = stamp
            self._callers_digest = self._digest_callers()
            self._changes += 1

    def _digest_callers(self) -> bytes:
        keys = sorted(self._api_keys.values(), key=lambda key: key.sha256)
        document = {
            "api-keys": [msgspec.to_builtins(key) for key in keys],
            "issuers": [msgspec.to_builtins(issuer) for issuer, _ in self._issuers],
        }
        return hashlib.sha384(rfc8785.dumps(document)).digest()


def _credential(name: bytes, value: bytes) -> bytes:
    """What the header carries; empty if it is not of the expected form."""
    if name == b"x-api-key":
        return value.strip()
    if value[: len(_BEARER)].lower() != _BEARER:
        return b""
    return value[len(_BEARER) :].strip()
