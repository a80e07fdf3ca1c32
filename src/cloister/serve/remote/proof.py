"""What a frontend and a worker host show each other, and how each judges it. No I/O, no clock.

Evidence binds, as runtime data in ``report_data`` (``cloister.attest.binding``):

====================== ==================================================================
member                 meaning
====================== ==================================================================
``protocol``           ``cloister-join/1``
``role``               who proves itself: ``frontend`` or ``worker``
``mode``               ``protected`` or ``open``
``frontend-nonce``     base64 of the frontend's nonce for this connection
``worker-nonce``       base64 of the worker host's
``frontend-tls-key``   base64 of the frontend's TLS key (SPKI, DER), as this side sees it
``worker-tls-key``     base64 of the worker host's
``settings-digest``    hexadecimal SHA-384 of the prover's settings
``confinement``        those that both sides must have alike, as canonical JSON
====================== ==================================================================

Both nonces and both keys name this one connection, so that evidence made for it is worth nothing on another
one: whoever sits between has a TLS key of its own, and then the two ends name different keys. The join token
proves the same data by HMAC and never travels.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any as Anything

import rfc8785
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues, appraise
from cloister.attest.binding import check_binding, report_data_for
from cloister.attest.model import AttestationResult, Attester, Endorsements
from cloister.attest.verifier import find_scheme, parse_endorsements, verify_evidence
from cloister.errors import BadSignature, BindingMismatch, MalformedInput, PolicyDenied
from cloister.serve.remote.messages import VERSION, Hello, Mode, Proof, Role

PROTOCOL = "cloister-join/1"
TITLES: dict[Role, str] = {"frontend": "frontend", "worker": "worker host"}
MIN_TOKEN_BYTES = 16


Obtain = Callable[[str, bytes, Mapping[str, Anything] | None, datetime], Endorsements | None]
"""Scheme, evidence, what came with it, time -> endorsements, wherever they are from. May ask the vendor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """One connection, as one side sees it."""

    mode: Mode
    frontend_nonce: bytes
    worker_nonce: bytes
    frontend_spki: bytes
    worker_spki: bytes

    def runtime_data(self, role: Role, settings_digest: bytes, confinement: str) -> dict[str, str]:
        """What the proof of the side ``role`` binds."""
        return {
            "protocol": PROTOCOL,
            "role": role,
            "mode": self.mode,
            "frontend-nonce": _base64(self.frontend_nonce),
            "worker-nonce": _base64(self.worker_nonce),
            "frontend-tls-key": _base64(self.frontend_spki),
            "worker-tls-key": _base64(self.worker_spki),
            "settings-digest": settings_digest.hex(),
            "confinement": confinement,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What this side can prove."""

    settings_digest: bytes
    confinement: str
    """The settings that both sides must have alike, as canonical JSON."""
    attester: Attester | None
    """None in open mode."""
    token: bytes
    """Shared secret; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What this side wants of the other one."""

    mode: Mode
    token: bytes
    """The token that it must know; empty if evidence is enough."""
    reference_values: ReferenceValues | None
    """None in open mode."""
    simulated_root: x509.Certificate | None
    obtain: Obtain
    """Endorsements for the other side's evidence."""
    confinement: str
    """This side's own: the other side must confine handlers in the same way."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side, after it has proved itself."""

    result: AttestationResult | None
    """None in open mode."""


def check_hello(hello: Hello, *, role: Role, mode: Mode) -> None:
    """Establish that the other side is who can be talked with.

    Args:
        role: what it should be.
        mode: this side's own.
    Raises:
        PolicyDenied: another version, role or mode.
    """
    if hello.version != VERSION:
        raise PolicyDenied(
            f"{TITLES[role]} speaks version {hello.version} of the joining protocol, this side {VERSION}",
            hint="run the same version of Cloister on both sides",
        )
    if hello.role != role:
        raise PolicyDenied(f"the other side is a {TITLES[hello.role]}, expected a {TITLES[role]}")
    if hello.mode != mode:
        raise PolicyDenied(f"{TITLES[role]} is in {hello.mode} mode, this side in {mode} mode")


def make_proof(transcript: Transcript, role: Role, own: Credentials) -> Proof:
    """The proof of this side, whose role is ``role``. May block on hardware.

    Raises:
        KeyUnavailable, TransportError: the Attester could not make evidence.
    """
    runtime_data = transcript.runtime_data(role, own.settings_digest, own.confinement)
    token = _token_proof(own.token, runtime_data) if own.token else b""
    if own.attester is None:
        return Proof(own.settings_digest, own.confinement, token=token)
    evidence = own.attester.get_evidence(report_data_for(runtime_data))
    endorsements = own.attester.get_endorsements()
    return Proof(
        own.settings_digest,
        own.confinement,
        token=token,
        scheme=evidence.scheme,
        evidence=evidence.raw,
        endorsements=b"" if endorsements is None else json.dumps(endorsements.to_mapping()).encode(),
    )


def judge_proof(proof: Proof, transcript: Transcript, role: Role, demands: Demands, now: datetime) -> Peer:
    """Believe the other side, whose role is ``role``, or say why not. May block on the vendor's service.

    1. It knows the join token, if this side wants one. Open mode ends here, and needs one.
    2. Its evidence is genuine.
    3. Its evidence speaks of this connection, this role and the settings that it shows.
    4. Its claims are acceptable.
    5. Its settings confine a model's code as this side's do.

    Raises:
        MalformedInput: not a proof.
        VerificationError: not genuine, or of another connection.
        PolicyDenied: not acceptable, or nothing was shown.
    """
    runtime_data = transcript.runtime_data(role, proof.settings_digest, proof.confinement)
    if demands.token:
        _check_token(proof.token, demands.token, runtime_data, role)
    if demands.mode == "open":
        if not demands.token:
            raise PolicyDenied("open mode takes workers with a join token only, and none is set")
        return Peer(None)
    if not proof.evidence:
        raise PolicyDenied(f"the {TITLES[role]} showed no evidence")
    if demands.reference_values is None:
        raise PolicyDenied(f"no reference values for a {TITLES[role]}: none is acceptable")
    endorsements = _endorsements(proof, demands, now)
    claims = verify_evidence(
        proof.scheme, proof.evidence, endorsements, now, roots=_roots(proof.scheme, demands)
    )
    try:
        check_binding(claims, runtime_data)
    except BindingMismatch as error:
        raise BindingMismatch(
            f"the {TITLES[role]}'s evidence was made for another connection, role or settings",
            hint="somebody may sit between, or it is a replay",
        ) from error
    result = appraise(claims, demands.reference_values, now)
    if proof.confinement != demands.confinement:
        raise PolicyDenied(
            f"the {TITLES[role]} confines models by {proof.confinement}, this side by {demands.confinement}"
        )
    return Peer(result)


def _token_proof(token: bytes, runtime_data: Mapping[str, str]) -> bytes:
    return hmac.digest(token, rfc8785.dumps(dict(runtime_data)), "sha384")


def _check_token(found: bytes, token: bytes, runtime_data: Mapping[str, str], role: Role) -> None:
    if not found:
        raise PolicyDenied(f"the {TITLES[role]} showed no join token, and one is needed here")
    if not hmac.compare_digest(found, _token_proof(token, runtime_data)):
        raise BadSignature(f"the {TITLES[role]} has another join token, or somebody sits between")


def _roots(scheme: str, demands: Demands) -> Sequence[x509.Certificate] | None:
    if demands.simulated_root is None:
        return None
    return (*find_scheme(scheme).vendor_roots(), demands.simulated_root)


def _endorsements(proof: Proof, demands: Demands, now: datetime) -> Endorsements | None:
    brought = _json_object(proof.endorsements, "endorsements") if proof.endorsements else None
    if brought is not None and demands.simulated_root is not None:
        return parse_endorsements(proof.scheme, brought)  # no vendor knows a simulated platform
    return demands.obtain(proof.scheme, proof.evidence, brought, now)


def _json_object(raw: bytes, what: str) -> dict[str, Anything]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{what}: not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput(f"{what}: not a JSON object")
    return document


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
