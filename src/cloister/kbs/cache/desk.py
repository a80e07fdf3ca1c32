"""The cache for TEEs on other machines: the broker's protocol, appraisal and policy, over leased keys.

A sibling attests to the cache as it would to the broker (steps 1 to 6 of ``cloister.kbs.appraiser``), the
policy decides, and the key goes out encrypted to the sibling's attested key. Reference values and policy are
part of what the cache itself proves to the broker, so they do not change while it runs. There is no audit log
here: the broker's says which cache got which key, this one's log who asked it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from structlog.typing import FilteringBoundLogger

from cloister.attest.token import issue_ear, verify_ear
from cloister.crypto.jwe import encrypt
from cloister.errors import CloisterError, MalformedInput, TransportError
from cloister.kbs import protocol
from cloister.kbs.appraiser import Appraiser, Findings
from cloister.kbs.broker import NOT_ACCEPTED
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.claims import init_data_annotations, tee_of_token
from cloister.kbs.refused import CannotNow, Refused
from cloister.kbs.sessions import AttestedTee, SessionTable
from cloister.kbs.trustee import attestation_claims
from cloister.policy.release import ReleasePolicy, ReleaseRequest


class SiblingDesk:
    """A ``ReleaseDesk`` over a ``KeyKeep``. Methods block and may run in many threads."""

    def __init__(
        self,
        keep: KeyKeep,
        sessions: SessionTable,
        *,
        appraiser: Appraiser,
        policy: ReleasePolicy,
        token_ttl_s: float,
        log: FilteringBoundLogger,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keep = keep
        self._sessions = sessions
        self._appraiser = appraiser
        self._policy = policy
        self._token_key = ec.generate_private_key(ec.SECP256R1())
        self._token_ttl_s = token_ttl_s
        self._log = log
        self._clock = clock

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
        if request.tee in NOT_ACCEPTED:
            raise Refused("AttestationError", f"evidence of TEE {request.tee!r} proves nothing")
        session_id, nonce = self._sessions.open(request.tee, self._clock(), algorithm)
        return session_id, protocol.challenge_for(nonce, algorithm)

    def attest(self, session_id: str | None, body: bytes) -> protocol.TokenAnswer:
        """Step 2: appraise the evidence, issue a token."""
        try:
            attestation = protocol.parse(body, protocol.Attestation)
        except MalformedInput as error:
            raise Refused("SerdeError", error.message) from error
        now = self._clock()
        waiting = self._sessions.take_nonce(session_id, now) if session_id else None
        if session_id is None or waiting is None:
            raise Refused("AttestationError", "no session waits for evidence: expired, used, or unknown")
        tee = waiting.tee
        findings = Findings(tee)
        try:
            attested, result = self._appraiser.appraise(attestation, waiting, now, findings)
            token = issue_ear(
                result,
                tee_pubkey=attested.key.jwk,
                key=self._token_key,
                now=now,
                ttl_s=self._token_ttl_s,
                annotations=init_data_annotations(attested),
            )
        except (CloisterError, RecursionError) as error:
            reason = error.message if isinstance(error, CloisterError) else type(error).__name__
            self._log.warning("refused", tee=tee, evidence=findings.evidence_digest, reason=reason)
            raise Refused("AttestationError", reason) from error
        self._sessions.attest(session_id, attested, now)
        self._log.info("attested", tee=tee, evidence=attested.evidence_digest)
        return protocol.TokenAnswer(token=token)

    def release(
        self, path: protocol.ResourcePath, *, session_id: str | None, token: str | None
    ) -> dict[str, str]:
        """Step 3: the resource as a JWE to the TEE's key."""
        attested = self._attested(session_id, token)
        decision = self._policy.decide(
            ReleaseRequest(
                tee=attested.tee,
                context=attested.context,
                repository=path.repository,
                type=path.type,
                tag=path.tag,
                version=path.version or 0,
                claims=lambda: attestation_claims(attested),
                init_data=attested.init_data,
            )
        )
        if not decision.allowed:
            self._log.warning("refused", tee=attested.tee, resource=str(path), reason=decision.reason)
            raise Refused("PolicyDeny", decision.reason)
        try:
            with self._keep.lend(path) as key:
                answer = encrypt(attested.key, key)
        except CloisterError as error:
            self._log.warning("refused", tee=attested.tee, resource=str(path), reason=error.message)
            kind = CannotNow if isinstance(error, TransportError) else Refused
            raise kind("PluginInternalError", error.message) from error
        self._log.info("released", resource=str(path), tee=attested.tee, evidence=attested.evidence_digest)
        return answer

    def _attested(self, session_id: str | None, token: str | None) -> AttestedTee:
        now = self._clock()
        if token is not None:
            try:
                return tee_of_token(verify_ear(token, [self._token_key.public_key()], now), "")
            except CloisterError as error:
                raise Refused("TokenVerifierError", error.message) from error
        attested = self._sessions.attested(session_id, now) if session_id else None
        if attested is None:
            raise Refused("TokenNotFound", "no attested session and no token: attest first")
        return attested
