"""The error tree: one root, then one family per cause.

Every public function raises only these. A message gives the expected and the found value where both are
public, never a key, a weight, a prompt or an answer. ``hint`` says what to do next; the command line prints
both on one line and exits with ``exit_code``.

========= ==========================================================================
exit code meaning
========= ==========================================================================
0         accepted, done
1         a fault of Cloister itself
2         wrong usage or configuration, or a package that is not installed
3         refused: not genuine, not acceptable, not permitted, or no key released
4         malformed input
5         the other side could not be reached, or broke the protocol
6         the server could not answer: model missing, handler failed, overloaded
========= ==========================================================================
"""

from __future__ import annotations

from typing import ClassVar


class CloisterError(Exception):
    """Root of every error that Cloister raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class MalformedInput(CloisterError):
    """Bytes or text that do not have the declared form: length, version, encoding, must-be-zero field."""

    exit_code = 4


class VerificationError(CloisterError):
    """Something is not genuine: it does not verify, whatever the policy says."""

    exit_code = 3


class BadSignature(VerificationError):
    """A signature does not verify under the key that should have made it."""


class BadCiphertext(VerificationError):
    """Ciphertext was changed, reordered, truncated or extended, or the key or context is another one."""


class BindingMismatch(VerificationError):
    """Genuine evidence that does not speak of this key, nonce or content."""


class WrongModel(VerificationError):
    """A genuine container of another model than the one that was asked for."""


class EndorsementMismatch(VerificationError):
    """Endorsements that speak of another platform, TEE or issuer than the evidence does."""


class UntrustedRoot(VerificationError):
    """A chain ends in a root or signer that is not among the trusted ones."""


class Revoked(VerificationError):
    """A certificate, key or TCB level has been revoked by its issuer."""


class StaleEvidence(VerificationError):
    """Evidence, collateral or a model is older than it may be, or not yet valid."""


class RollbackRefused(StaleEvidence):
    """A model's sequence number is below the highest one already seen."""


class TcbOutOfDate(VerificationError):
    """The platform's TCB level is one that its vendor no longer considers secure."""


class Replayed(VerificationError):
    """A sealed request was seen before, or is too old to know whether it was."""


class UnknownKeyConfig(VerificationError):
    """A sealed request names a key or suite that is not offered, as happens after a rotation or restart."""


class PolicyDenied(CloisterError):
    """Genuine but not acceptable: appraisal or policy refused. ``reasons`` lists every failed check."""

    exit_code = 3

    def __init__(self, message: str, *, reasons: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reasons = reasons


class KeyUnavailable(CloisterError):
    """The key broker or a key provider did not give the key; the message says why."""

    exit_code = 3


class TransportError(CloisterError):
    """The other side could not be reached, or what it said breaks the protocol."""

    exit_code = 5


class ConfigError(CloisterError):
    """A setting is missing, unknown, of the wrong type, or contradicts another one."""

    exit_code = 2


class MissingDependencyError(ConfigError):
    """An optional package is needed; the message names the extra that brings it."""


class ServingError(CloisterError):
    """A request that reached the model server could not be answered."""

    exit_code = 6


class ModelNotFound(ServingError):
    """No model, or no such version of it, is loaded under this name."""


class RequestTooLarge(ServingError):
    """The request's body is over the configured limit."""


class ModelFailed(ServingError):
    """The handler raised or answered in the wrong shape.

    The message names the exception's type and a fingerprint; its text may hold the caller's data and stays
    inside the TEE.
    """


class WorkerLost(ServingError):
    """The worker process ended, or did not answer in time."""


class Overloaded(ServingError):
    """The queue of this model is full; try again later."""
