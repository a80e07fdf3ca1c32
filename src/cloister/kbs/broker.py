"""The broker without HTTP: challenge, attest, release, administer.

Attestation, in the numbers of the code:

1. The session exists, has not attested, and gives its nonce, which is used up.
2. to 5. The evidence is genuine, bound to nonce and TEE key, and acceptable: ``cloister.kbs.appraiser``.
6. The TEE gets an attestation result token, and its session counts as attested.

Release: the policy decides on the claims and the resource; the envelope is opened; the resource is encrypted
to the TEE key; the audit entry is committed (``cloister.kbs.journal``); only then does the answer leave.

Every release is audited, and every refusal of evidence or of an attested TEE. A request that shows neither a
session nor a valid token is only logged, or anybody could grow the audit log at will.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy.engine import Connection

from cloister.attest.model import AttestationResult
from cloister.attest.token import issue_ear, verify_ear
from cloister.crypto.jwe import encrypt
from cloister.errors import CloisterError, ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs import protocol
from cloister.kbs.admin import Permission
from cloister.kbs.administration import Administration
from cloister.kbs.administrators import Administrators, Credential
from cloister.kbs.appraiser import Appraiser, Findings
from cloister.kbs.audit import AuditEvent, Kind
from cloister.kbs.claims import init_data_annotations, tee_of_token
from cloister.kbs.database import DatabaseFailed
from cloister.kbs.entries import entries_after
from cloister.kbs.records import SealedVersion, find_version, open_version
from cloister.kbs.refused import CannotNow, Refused
from cloister.kbs.sample import TEE as SAMPLE
from cloister.kbs.sessions import AttestedTee, Sessions
from cloister.kbs.standing import Standing, standing_of
from cloister.kbs.state import BrokerState
from cloister.kbs.trustee import attestation_claims
from cloister.policy.cedar import Decision
from cloister.policy.release import ReleasePolicy, ReleaseRequest

NOT_ACCEPTED = frozenset({"sample", "sampledevice"})
_BROKEN = "the broker's configuration is broken; its log says how"


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What one request for a resource comes to, and what it was judged on."""

    event: AuditEvent
    answer: dict[str, str] | Refused
    standing: Standing | None = None
    decision: Decision | None = None
    version_id: int = 0


class Broker:
    """One key broker. Methods may run in many threads; those that do not begin with ``begin_`` block.

    Args:
        state: keys and database.
        sessions: between challenge and release.
        policy: asked at each use, so that its file can change.
        appraiser: says which evidence is acceptable.
        allow_sample: whether a TEE that proves nothing gets a challenge.
        rego_values: what ``query_reference_value`` answers from, in policies that are in Rego.
        token_ttl_s: life of attestation result tokens.
        administrators: who may administer; None means bearers of this broker's admin tokens.
        clock: aware UTC time.
    """

    def __init__(
        self,
        state: BrokerState,
        sessions: Sessions,
        *,
        policy: Callable[[], ReleasePolicy],
        appraiser: Appraiser,
        allow_sample: bool = False,
        rego_values: Callable[[], Mapping[str, Any]] = dict,
        token_ttl_s: float = 300.0,
        administrators: Administrators | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        log: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        self._state = state
        self._sessions = sessions
        self._policy = policy
        self._appraiser = appraiser
        self._allow_sample = allow_sample
        self._rego_values = rego_values
        self._token_ttl_s = token_ttl_s
        self._administrators = administrators or Administrators(state.admin_key.public_key())
        self._clock = clock
        self._log = log or structlog.get_logger("cloister.kbs")

    @property
    def quick(self) -> bool:
        """Whether ``begin_`` methods wait for nothing: KEK and database are on this machine."""
        return self._state.database.local and self._state.kek.local

    def challenge(self, body: bytes) -> tuple[str, protocol.Challenge]:
        """Step 1: a session id for the cookie, and the challenge."""
        try:
            request = protocol.parse(body, protocol.Request)
        except MalformedInput as error:
            raise Refused("SerdeError", error.message) from error
        try:
            algorithm = protocol.check_request(request)
        except MalformedInput as error:
            raise Refused("AttestationError", error.message) from error
        if request.tee in NOT_ACCEPTED and not (self._allow_sample and request.tee == SAMPLE):
            raise Refused("AttestationError", f"evidence of TEE {request.tee!r} proves nothing")
        session_id, nonce = self._sessions.open(request.tee, self._clock(), algorithm)
        return session_id, protocol.challenge_for(nonce, algorithm)

    def begin_attest(self, session_id: str | None, body: bytes) -> Future[protocol.TokenAnswer]:
        """Step 2: appraise the evidence, issue a token. A refusal comes by the future, once it is on disk."""
        try:
            attestation = protocol.parse(body, protocol.Attestation)
        except MalformedInput as error:
            raise Refused("SerdeError", error.message) from error
        now = self._clock()
        # 1. Session and nonce.
        waiting = self._sessions.take_nonce(session_id, now) if session_id else None
        if session_id is None or waiting is None:
            raise Refused("AttestationError", "no session waits for evidence: expired, used, or unknown")
        tee = waiting.tee
        findings = Findings(tee)
        try:
            attested, result = self._appraiser.appraise(attestation, waiting, now, findings)
            token = self._issue(result, attested, now)
        except (CloisterError, RecursionError) as error:
            event, refused = self._refusal(findings, "", error, "AttestationError")
            self._log_refusal(tee, "", error)
            return self._state.journal.record(event, refused)
        self._sessions.attest(session_id, attested, now)
        self._sessions.remember_token(token, attested.evidence_digest, now)
        self._log.info("attested", tee=tee, evidence=attested.evidence_digest)
        done: Future[protocol.TokenAnswer] = Future()
        done.set_result(protocol.TokenAnswer(token=token))
        return done

    def attest(self, session_id: str | None, body: bytes) -> protocol.TokenAnswer:
        """As ``begin_attest``, but waits."""
        return self.begin_attest(session_id, body).result()

    def begin_release(
        self, path: protocol.ResourcePath, *, session_id: str | None, token: str | None
    ) -> Future[dict[str, str]]:
        """Step 3: the resource as a JWE to the TEE's key; it comes by the future, once its entry is on disk.

        Whether it may be released is judged in the transaction that writes the entry: what was revoked or
        deleted before is not released after. A KEK in a device and a policy may take their time, so where
        anybody else waits for this transaction, all is done beforehand too, and only what has changed again.
        """
        attested = self._attested(session_id, token)
        earlier: _Judgement | None = None
        if not self.quick:
            with self._state.database.read_connection() as connection:
                earlier = self._judge(connection, attested, path)

        def decide(connection: Connection) -> tuple[AuditEvent, dict[str, str] | CloisterError]:
            judgement = self._judge(connection, attested, path, earlier)
            return judgement.event, judgement.answer

        released = self._state.journal.submit(decide)
        released.add_done_callback(lambda done: self._log_release(done, path, attested.tee))
        return released

    def release(
        self, path: protocol.ResourcePath, *, session_id: str | None, token: str | None
    ) -> dict[str, str]:
        """As ``begin_release``, but waits."""
        return self.begin_release(path, session_id=session_id, token=token).result()

    def administer(self, shown: Credential, needs: Permission) -> Administration:
        """Administration on behalf of an administrator whose role has a permission."""
        try:
            actor = self._administrators.actor(shown, self._clock(), needs=needs)
        except CloisterError as error:
            self._log.warning("administrator refused", reason=error.message)
            raise Refused("AdminAuth", _BROKEN if _is_config(error) else error.message) from error
        return self._state.administration().acting(actor)

    def audit_entries(self, shown: Credential, after: int, limit: int) -> list[dict[str, Any]]:
        """At most ``limit`` entries of the audit log after a sequence number."""
        self.administer(shown, "audit")
        with self._state.database.read() as session:
            return entries_after(session, after, limit)

    def _issue(self, result: AttestationResult, attested: AttestedTee, now: datetime) -> str:
        return issue_ear(
            result,
            tee_pubkey=attested.key.jwk,
            key=self._state.token_key,
            now=now,
            ttl_s=self._token_ttl_s,
            annotations=init_data_annotations(attested),
        )

    def _attested(self, session_id: str | None, token: str | None) -> AttestedTee:
        now = self._clock()
        if token is not None:
            try:
                claims = verify_ear(token, [self._state.token_key.public_key()], now)
                return tee_of_token(claims, self._sessions.evidence_of(token, now))
            except CloisterError as error:
                raise Refused("TokenVerifierError", _one_line(error)) from error
        attested = self._sessions.attested(session_id, now) if session_id else None
        if attested is None:
            raise Refused("TokenNotFound", "no attested session and no token: attest first")
        return attested

    def _judge(
        self,
        connection: Connection,
        attested: AttestedTee,
        path: protocol.ResourcePath,
        earlier: _Judgement | None = None,
    ) -> _Judgement:
        """May it be released, and what is the message? Of an earlier judgement, what still holds is kept."""
        findings = Findings(attested.tee, attested.evidence_digest, attested.context)
        decision: Decision | None = None
        try:
            standing = standing_of(connection, path)
            if standing.revoked is not None:
                raise Refused("PolicyDeny", f"{path} is revoked: {standing.revoked}")
            if earlier is not None and earlier.standing == standing:
                decision = earlier.decision
            decision = decision or self._decide(attested, path, standing)
            if not decision.allowed:
                raise Refused("PolicyDeny", decision.reason)
            found = find_version(connection, path)
            if earlier is not None and earlier.version_id == found.id and isinstance(earlier.answer, dict):
                message = earlier.answer
            else:
                message = encrypt(attested.key, self._open(path, found))
        except CloisterError as error:
            variant = "PluginInternalError" if decision or not _is_config(error) else "PolicyEngine"
            ids = decision.policy_ids if decision else ()
            event, refused = self._refusal(findings, str(path), error, variant, ids)
            return _Judgement(event, refused)
        named = f"{path.path}?version={found.version}"
        event = self._event("release", findings, named, decision.reason, decision.policy_ids)
        return _Judgement(event, message, standing, decision, found.id)

    def _open(self, path: protocol.ResourcePath, found: SealedVersion) -> bytes:
        try:
            return open_version(self._state.kek, path, found)
        except KeyUnavailable as error:  # the KEK's provider does not answer: nobody has refused anything
            raise CannotNow("PluginInternalError", error.message) from error

    def _decide(self, attested: AttestedTee, path: protocol.ResourcePath, standing: Standing) -> Decision:
        request = ReleaseRequest(
            tee=attested.tee,
            context=attested.context,
            repository=path.repository,
            type=path.type,
            tag=path.tag,
            version=standing.version,
            old=standing.old,
            query={} if path.version is None else {"version": str(path.version)},
            claims=lambda: attestation_claims(attested),
            init_data=attested.init_data,
            reference_values=self._rego_values,
        )
        decision = self._policy().decide(request)
        if standing.old and not decision.allowed:
            reason = f"version {standing.version} is older than {standing.minimum}, the oldest released"
            return Decision(False, decision.policy_ids, f"{reason}; {decision.reason}")
        return decision

    def _refusal(
        self,
        findings: Findings,
        resource: str,
        cause: BaseException,
        variant: str,
        policy_ids: Sequence[str] = (),
    ) -> tuple[AuditEvent, Refused]:
        reason = _one_line(cause)
        event = self._event("refusal", findings, resource, reason, policy_ids)
        # The owner's files are the owner's business: what is wrong in them is in the log, not in the answer.
        shown = _BROKEN if _is_config(cause) else reason
        kind = CannotNow if isinstance(cause, CannotNow | TransportError | DatabaseFailed) else Refused
        refused = kind(cause.variant if isinstance(cause, Refused) else variant, shown)
        refused.__cause__ = cause
        return event, refused

    def _log_release(self, done: Future[dict[str, str]], path: protocol.ResourcePath, tee: str) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            self._log.info("released", resource=str(path), tee=tee)
        else:
            self._log_refusal(tee, str(path), error)

    def _log_refusal(self, tee: str, resource: str, error: BaseException) -> None:
        reason = _one_line(error.__cause__ if isinstance(error.__cause__, CloisterError) else error)
        self._log.warning("refused", tee=tee, resource=resource, reason=reason)

    def _event(
        self, kind: Kind, findings: Findings, resource: str, reason: str, policy_ids: Sequence[str]
    ) -> AuditEvent:
        return AuditEvent(
            kind=kind,
            time=self._clock(),
            subject=f"tee:{findings.tee}",
            resource=resource,
            evidence_digest=findings.evidence_digest,
            claims=findings.claims,
            policy_ids=tuple(policy_ids),
            reason=reason,
        )


def _is_config(cause: BaseException | None) -> bool:
    return isinstance(cause, ConfigError)


def _one_line(error: BaseException) -> str:
    message = error.message if isinstance(error, CloisterError) else type(error).__name__
    return " ".join(message.split())
