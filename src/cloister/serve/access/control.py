"""Credential, policy, limits and log together: may this request go on, and as whom?

A request brings at most one credential: ``Authorization: Bearer`` with a JWT or an API key, or ``x-api-key``.
Inside a sealed request it travels sealed. Without one the caller is the bearer of the client certificate that
TLS has verified, if there is one; else anonymous, and the policy decides about that as well. A credential
that is wrong is answered 401: its bearer is never taken for the certificate's, nor for anonymous.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import rfc8785

from cloister.crypto.client_certificates import ClientCertificate, read_client_certificate
from cloister.errors import CloisterError, TransportError
from cloister.policy.cedar import Decision
from cloister.policy.requests import ANONYMOUS, Action, Caller, FixedPolicy, WatchedPolicy
from cloister.serve.access.api_keys import PREFIX, find_record, read_api_keys
from cloister.serve.access.audit import DecisionLog
from cloister.serve.access.identities import Identities, check_identities, read_identities
from cloister.serve.access.issuer_keys import RETRY_S, IssuerKeys
from cloister.serve.access.issuers import Issuer
from cloister.serve.access.limits import CallerLimits
from cloister.serve.access.tokens import read_token, verify_token
from cloister.serve.access.watched import WatchedFile
from cloister.serve.refusals import Refusal

REFRESH_S = 2.0
"""How often files are looked at, and issuers asked where that is due."""
CREDENTIALS = (b"authorization", b"x-api-key")
UNKNOWN_MODEL = "(unknown)"
_NOBODY = Caller(kind="unauthenticated")
_BEARER = b"bearer "

Headers = Sequence[tuple[bytes, bytes]]


class Unauthenticated(Refusal):
    """A credential that is none, or that does not hold."""

    status = 401
    kind = "UnauthorizedException"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class IssuerAway(Refusal):
    """A token that cannot be judged, because its issuer's keys cannot be had."""

    status = 503
    kind = "ServiceUnavailableException"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"retry-after", b"%d" % RETRY_S)]


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
        identities: Path | None = None,
        client_ca: bytes = b"",
        limits: CallerLimits | None = None,
        log: DecisionLog | None = None,
        clock: Callable[[], float] = time.time,
        on_problem: Callable[[CloisterError], None] = lambda _: None,
    ) -> None:
        """Read every file.

        Args:
            issuers: besides those of ``identities``.
            client_ca: PEM of the authorities by which TLS verifies client certificates.
        Raises:
            ConfigError: a file cannot be used.
        """
        self._policy = policy
        self._api_keys = (
            None if api_keys is None else WatchedFile(api_keys, read_api_keys, on_problem=on_problem)
        )
        self._own_issuers = tuple(issuers)
        self._file = (
            None if identities is None else WatchedFile(identities, self._read, on_problem=on_problem)
        )
        self._client_ca = client_ca
        self._limits = limits or CallerLimits()
        self._log = log
        self._clock = clock
        self._on_problem = on_problem
        self._problems: dict[str, str] = {}
        self._issuer_keys: dict[str, tuple[Issuer, IssuerKeys]] = {}
        self._identities = Identities()
        self._changes = 0
        self._callers_digest = b""
        self._use_identities()

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
        """Whether there is anything to hold a credential against; without that its bearer has none."""
        return self._api_keys is not None or self._file is not None or bool(self._own_issuers)

    def admit(
        self,
        action: Action,
        model: str,
        version: str,
        way: str,
        headers: Headers,
        *,
        certificate: bytes = b"",
        caller: Caller | None = None,
        known: bool = True,
        note_refusal: bool = True,
    ) -> Admission:
        """Let a request pass.

        Args:
            model: as the request names it.
            version: that would answer; empty where none is meant.
            way: ``sealed``, ``tls`` or ``open``.
            certificate: DER of the client certificate that TLS has verified; nothing inside a sealed request.
            caller: who asks, where that is known already; ``headers`` are not looked at then.
            known: whether the server has this model and version. If not, their names are the caller's own
                words, and the log does not get them.
            note_refusal: False where whoever answers the request asks again, so that the log has it once.
        Raises:
            Unauthenticated: its credential does not hold.
            IssuerAway: nothing can be said of its credential now.
            Forbidden: no policy permits it, or one forbids it.
            TooManyRequests: over the caller's limits.
        """
        until_s = float("inf")
        named = (model, version) if known else (UNKNOWN_MODEL, "")
        if caller is None:
            try:
                caller, until_s = self.identify(headers, certificate)
            except Unauthenticated as error:
                if note_refusal:
                    self._note(_NOBODY, action, named, Decision(False, (), error.message))
                raise
        shown = read_client_certificate(certificate).name if certificate else ""
        decision = self._policy.policy.decide(caller, action, model, version, way, shown)
        wait_s = self._limits.wait_s(caller.name, self._clock()) if decision.allowed else 0
        if wait_s:
            decision = Decision(False, (), "over the caller's rate or quota")
        if decision.allowed or note_refusal:
            self._note(caller, action, named, decision)
        if wait_s:
            raise TooManyRequests(wait_s)
        if not decision.allowed:
            # The reason names policies and attributes: that is for the log, not for a stranger.
            raise Forbidden(f"{caller.kind} caller may not {action} {model or 'here'}")
        return Admission(caller, until_s)

    def identify(self, headers: Headers, certificate: bytes = b"") -> tuple[Caller, float]:
        """Who asks, and until when the credential holds.

        Raises:
            Unauthenticated: more than one credential, or one that does not hold.
            IssuerAway: nothing can be said of it now.
        """
        now_s = self._clock()
        found = [_credential(name, value) for name, value in headers if name in CREDENTIALS]
        try:
            bearer = read_client_certificate(certificate) if certificate else None
            if found and self.takes_credentials:
                if len(found) > 1 or not found[0]:
                    raise Unauthenticated("expected one credential: Authorization: Bearer, or x-api-key")
                return self._judge(found[0], bearer, now_s)
            if bearer is None:
                return ANONYMOUS, float("inf")
            return self._identities.bearer(bearer), self._identities.admits_until(bearer, now_s)
        except TransportError as error:
            raise IssuerAway(error.message) from error
        except Refusal:
            raise
        except CloisterError as error:
            raise Unauthenticated(error.message) from error

    def _note(self, caller: Caller, action: Action, named: tuple[str, str], decision: Decision) -> None:
        if self._log is not None:
            self._log.record(caller, action, *named, decision)

    def refresh(self) -> None:
        """Look at files and issuers; blocks on both. To be called every ``REFRESH_S`` from a thread."""
        self._policy.refresh()
        changed = [file.refresh() for file in (self._api_keys, self._file) if file is not None]
        for url, (_, keys) in list(self._issuer_keys.items()):
            try:
                changed.append(keys.refresh())
            except CloisterError as error:
                if self._problems.get(url) != error.message:  # not again at every attempt
                    self._problems[url] = error.message
                    self._on_problem(error)
            else:
                if changed[-1]:
                    self._problems.pop(url, None)
        if any(changed):
            self._use_identities()

    def _judge(
        self, credential: bytes, certificate: ClientCertificate | None, now_s: float
    ) -> tuple[Caller, float]:
        if credential.startswith(PREFIX.encode()):
            known = {} if self._api_keys is None else self._api_keys.content
            record = find_record(known, credential, datetime.fromtimestamp(now_s, UTC))
            if record is None:
                raise Unauthenticated("the API key is not one of this server's, or has expired")
            return record.caller(), record.until_s
        shown = read_token(credential)
        if shown.issuer not in self._issuer_keys:
            raise Unauthenticated("the token is of an issuer that this server does not know")
        issuer, keys = self._issuer_keys[shown.issuer]
        return verify_token(shown, issuer, keys, now_s, certificate=certificate, may_ask=False)

    def _read(self, path: Path) -> Identities:
        found = read_identities(path)
        check_identities(Identities(issuer=(*self._own_issuers, *found.issuer)))
        return found

    def _use_identities(self) -> None:
        """Take over what the files say now; an issuer that is as it was keeps its keys."""
        self._identities = Identities() if self._file is None else self._file.content
        issuers = (*self._own_issuers, *self._identities.issuer)
        check_identities(Identities(issuer=issuers))
        former = self._issuer_keys
        self._issuer_keys = {
            issuer.url: former[issuer.url]
            if issuer.url in former and former[issuer.url][0] == issuer
            else (issuer, IssuerKeys(issuer))
            for issuer in issuers
        }
        self._callers_digest = self._digest_callers()
        self._changes += 1

    def _digest_callers(self) -> bytes:
        records = [] if self._api_keys is None else self._api_keys.content.values()
        document = {
            "api-keys": [msgspec.to_builtins(key) for key in sorted(records, key=lambda key: key.sha256)],
            "issuers": [
                {
                    **msgspec.to_builtins(issuer),
                    "keys": keys.public,
                    "authorities": hashlib.sha384(keys.authorities).hexdigest() if keys.authorities else "",
                }
                for _, (issuer, keys) in sorted(self._issuer_keys.items())
            ],
            "certificates": msgspec.to_builtins(self._identities.certificate),
            "client-ca": hashlib.sha384(self._client_ca).hexdigest() if self._client_ca else "",
        }
        return hashlib.sha384(rfc8785.dumps(document)).digest()


def _credential(name: bytes, value: bytes) -> bytes:
    """What the header carries; empty if it is not of the expected form."""
    if name == b"x-api-key":
        return value.strip()
    if value[: len(_BEARER)].lower() != _BEARER:
        return b""
    return value[len(_BEARER) :].strip()
