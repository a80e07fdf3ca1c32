"""The broker without HTTP: challenge, attest, release, administer.

Attestation, in the numbers of the code:

1. The session exists, has not attested, and its nonce is the one in the runtime data. The nonce is used up.
2. The TEE key is one that we encrypt to, and is rebuilt from exactly the members that evidence binds.
3. The evidence is genuine (``verify_evidence``): under the vendor's root, or the simulated one if configured.
4. It is bound to this nonce and this key (``check_binding``).
5. It is acceptable to the owner (``appraise`` against the reference values as they are now).
6. The TEE gets an attestation result token, and its session counts as attested.

Release: the policy decides on the claims and the resource; the envelope is opened; the resource is encrypted
to the TEE key; the audit entry is committed; only then does the answer leave.

Every release is audited, and every refusal of evidence or of an attested TEE. A request that shows neither a
session nor a valid token is only logged, or anybody could grow the audit log at will.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

import structlog
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues, appraise
from cloister.attest.binding import check_binding
from cloister.attest.model import AttestationResult, Claims, Endorsements
from cloister.attest.token import issue_ear, verify_ear
from cloister.attest.verifier import vendor_roots, verify_evidence
from cloister.crypto.jwe import TeePublicKey, encrypt
from cloister.errors import (
    BindingMismatch,
    CloisterError,
    ConfigError,
    KeyUnavailable,
    MalformedInput,
)
from cloister.kbs import protocol
from cloister.kbs.admin import check_admin_token
from cloister.kbs.audit import AuditEvent, Kind, append
from cloister.kbs.claims import policy_context, tee_of_token
from cloister.kbs.records import StoredVersion, delete_versions, list_versions, load_version, store_version
from cloister.kbs.sessions import AttestedTee, SessionTable
from cloister.kbs.state import BrokerState
from cloister.policy.cedar import CedarPolicy, Decision, Entity

NOT_ACCEPTED = frozenset({"sample", "sampledevice"})


class Refused(KeyUnavailable):
    """A request that the broker refuses, with the protocol's error variant."""

    def __init__(self, variant: str, detail: str) -> None:
        super().__init__(detail)
        self.variant = variant


@dataclass(slots=True)
class _Findings:
    """What is known of a TEE so far, for the audit entry of a refusal."""

    tee: str
    evidence_digest: str = ""
    claims: dict[str, Any] = field(default_factory=dict)


class Broker:
    """One key broker. Methods block (cryptography, database) and may run in many threads.

    Args:
        state: keys and database.
        sessions: the session table.
        policy, reference_values, endorsements: asked at each use, so that files can change.
        simulated_root: a simulated platform's root to trust besides the vendors'; None in production.
        token_ttl_s: life of attestation result tokens.
        clock: aware UTC time.
    """

    def __init__(
        self,
        state: BrokerState,
        sessions: SessionTable,
        *,
        policy: Callable[[], CedarPolicy],
        reference_values: Callable[[], ReferenceValues],
        endorsements: Callable[[str], Endorsements | None],
        simulated_root: x509.Certificate | None = None,
        token_ttl_s: float = 300.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        log: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        self._state = state
        self._sessions = sessions
        self._policy = policy
        self._reference_values = reference_values
        self._endorsements = endorsements
        self._simulated_root = simulated_root
        self._token_ttl_s = token_ttl_s
        self._clock = clock
        self._log = log or structlog.get_logger("cloister.kbs")

    def challenge(self, body: bytes) -> tuple[str, protocol.Challenge]:
        """Step 1: a session id for the cookie, and the challenge."""
        try:
            request = protocol.parse(body, protocol.Request)
        except MalformedInput as error:
            raise Refused("SerdeError", error.message) from error
        try:
            protocol.check_request(request)
        except MalformedInput as error:
            raise Refused("AttestationError", error.message) from error
        if request.tee in NOT_ACCEPTED:
            raise Refused("AttestationError", f"evidence of TEE {request.tee!r} proves nothing")
        session_id, nonce = self._sessions.open(request.tee, self._clock())
        return session_id, protocol.Challenge(nonce=nonce)

    def attest(self, session_id: str | None, body: bytes) -> protocol.TokenAnswer:
        """Step 2: appraise the evidence, issue a token."""
        try:
            attestation = protocol.parse(body, protocol.Attestation)
        except MalformedInput as error:
            raise Refused("SerdeError", error.message) from error
        now = self._clock()
        # 1. Session and nonce.
        taken = self._sessions.take_nonce(session_id, now) if session_id else None
        if session_id is None or taken is None:
            raise Refused("AttestationError", "no session waits for evidence: expired, used, or unknown")
        tee, nonce = taken
        findings = _Findings(tee)
        try:
            attested, token = self._appraise(attestation, nonce, now, findings)
        except (CloisterError, RecursionError) as error:
            self._refuse(findings, "", _one_line(error), "AttestationError", (), error)
        self._sessions.attest(session_id, attested, now)
        self._sessions.remember_token(token, attested.evidence_digest)
        self._log.info("attested", tee=tee, evidence=attested.evidence_digest)
        return protocol.TokenAnswer(token=token)

    def release(
        self, path: protocol.ResourcePath, *, session_id: str | None, token: str | None
    ) -> dict[str, str]:
        """Step 3: the resource as a JWE to the TEE's key."""
        attested = self._attested(session_id, token)
        findings = _Findings(attested.tee, attested.evidence_digest, attested.context)
        decision = self._decide(attested, path, findings)
        if not decision.allowed:
            self._refuse(findings, str(path), decision.reason, "PolicyDeny", decision.policy_ids)
        try:
            with self._state.database.write() as transaction:
                data, version = load_version(transaction, self._state.kek, path)
                answer = encrypt(attested.key, data)
                named = f"{path.path}?version={version}"
                event = self._event("release", findings, named, decision.reason, decision.policy_ids)
                append(transaction, event, self._state.audit_key)
        except CloisterError as error:
            self._refuse(
                findings, str(path), _one_line(error), "PluginInternalError", decision.policy_ids, error
            )
        self._log.info("released", resource=path.path, version=version, tee=attested.tee)
        return answer

    def store(self, path: protocol.ResourcePath, data: bytes, *, token: str | None) -> StoredVersion:
        """Add a version of a resource."""
        self._check_admin(token)
        if not data:
            raise Refused("PluginInternalError", "a resource cannot be empty")
        now = self._clock()
        with self._state.database.write() as transaction:
            created = now.isoformat(timespec="seconds")
            stored = store_version(transaction, self._state.kek, path, data, created=created)
            event = AuditEvent(
                kind="stored",
                time=now,
                subject="role:admin",
                resource=f"{path.path}?version={stored.version}",
            )
            append(transaction, event, self._state.audit_key)
        self._log.info("stored", resource=path.path, version=stored.version)
        return stored

    def delete(self, path: protocol.ResourcePath, *, token: str | None) -> None:
        """Delete a resource, or the version of it that the path names."""
        self._check_admin(token)
        with self._state.database.write() as transaction:
            if not delete_versions(transaction, path):
                raise Refused("PluginInternalError", f"resource not found: {path}")
            event = AuditEvent(kind="deleted", time=self._clock(), subject="role:admin", resource=str(path))
            append(transaction, event, self._state.audit_key)
        self._log.info("deleted", resource=str(path))

    def resources(self, *, token: str | None) -> list[StoredVersion]:
        """Every stored version."""
        self._check_admin(token)
        with self._state.database.read() as transaction:
            return list_versions(transaction)

    def _appraise(
        self, attestation: protocol.Attestation, nonce: str, now: datetime, findings: _Findings
    ) -> tuple[AttestedTee, str]:
        tee = findings.tee
        composite = attestation.evidence()
        raw = protocol.evidence_bytes(tee, composite.primary_evidence)
        findings.evidence_digest = hashlib.sha256(raw).hexdigest()
        if not hmac.compare_digest(attestation.runtime_data.nonce.encode(), nonce.encode()):
            raise BindingMismatch("the nonce is not the one of this session's challenge")
        if composite.additional_evidence not in ("", "{}"):
            raise MalformedInput("evidence of additional devices is not accepted")
        # 2. The TEE key.
        key = TeePublicKey.from_jwk(attestation.runtime_data.tee_pubkey)
        # 3. Genuine?
        claims = self._verify(tee, raw, now)
        findings.claims = claims.to_mapping()
        # 4. About this nonce and this key?
        check_binding(claims, protocol.runtime_data(nonce, key, composite.additional_evidence))
        # 5. Acceptable?
        result = appraise(claims, self._reference_values(), now)
        findings.claims = policy_context(claims.to_mapping(), result.tier.name.lower(), tee)
        # 6. Say so.
        attested = AttestedTee(
            tee=tee, key=key, context=findings.claims, evidence_digest=findings.evidence_digest
        )
        return attested, self._issue(result, attested, now)

    def _verify(self, tee: str, raw: bytes, now: datetime) -> Claims:
        roots = None if self._simulated_root is None else [*vendor_roots(tee), self._simulated_root]
        return verify_evidence(tee, raw, self._endorsements(tee), now, roots=roots)

    def _issue(self, result: AttestationResult, attested: AttestedTee, now: datetime) -> str:
        return issue_ear(
            result, tee_pubkey=attested.key.jwk, key=self._state.token_key, now=now, ttl_s=self._token_ttl_s
        )

    def _attested(self, session_id: str | None, token: str | None) -> AttestedTee:
        now = self._clock()
        if token is not None:
            try:
                claims = verify_ear(token, [self._state.token_key.public_key()], now)
                return tee_of_token(claims, self._sessions.evidence_of(token))
            except CloisterError as error:
                raise Refused("TokenVerifierError", _one_line(error)) from error
        attested = self._sessions.attested(session_id, now) if session_id else None
        if attested is None:
            raise Refused("TokenNotFound", "no attested session and no token: attest first")
        return attested

    def _decide(self, attested: AttestedTee, path: protocol.ResourcePath, findings: _Findings) -> Decision:
        try:
            policy = self._policy()
        except ConfigError as error:
            self._refuse(findings, str(path), error.message, "PolicyEngine", (), error)
        attributes = {"repository": path.repository, "type": path.type, "tag": path.tag}
        resource = Entity("Resource", path.path, attributes)
        return policy.decide(Entity("Tee", attested.tee), "release", resource, attested.context)

    def _check_admin(self, token: str | None) -> None:
        if token is None:
            raise Refused("AdminAuth", "administration needs a bearer token")
        try:
            check_admin_token(token, self._state.admin_key.public_key(), self._clock())
        except CloisterError as error:
            self._log.warning("admin token refused", reason=error.message)
            raise Refused("AdminAuth", error.message) from error

    def _refuse(
        self,
        findings: _Findings,
        resource: str,
        reason: str,
        variant: str,
        policy_ids: Sequence[str],
        cause: BaseException | None = None,
    ) -> NoReturn:
        event = self._event("refusal", findings, resource, reason, policy_ids)
        with self._state.database.write() as transaction:
            append(transaction, event, self._state.audit_key)
        self._log.warning("refused", tee=findings.tee, resource=resource, reason=reason)
        # The owner's files are the owner's business: what is wrong in them is in the log, not in the answer.
        shown = "the broker's configuration is broken; its log says how" if _is_config(cause) else reason
        raise Refused(variant, shown) from cause

    def _event(
        self, kind: Kind, findings: _Findings, resource: str, reason: str, policy_ids: Sequence[str]
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
