"""Service evidence: one JSON bundle in which a model server proves, to one caller, which keys are its own.

======================= =======================================================================
member                  meaning
======================= =======================================================================
``scheme``              key of the verifier's table, for example ``tdx``
``evidence``            standard base64 of the vendor's bytes
``endorsements``        the vendor's collateral as the Attester holds it, or null
``runtime-data``        what ``report_data`` binds, as the seven strings below
- ``nonce``             standard base64 of the caller's own nonce
- ``tls-key``           standard base64 of the TLS key's SubjectPublicKeyInfo (DER)
- ``ohttp-key-config``  standard base64 of one RFC 9458 key configuration
- ``settings-digest``   hexadecimal SHA-384 of the effective settings
- ``policy-digest``     hexadecimal SHA-384 of the access policy's text, as it is in force now
- ``callers-digest``    hexadecimal SHA-384 of what callers are known by: API keys, issuers, authorities
- ``models-digest``     hexadecimal SHA-384 of ``models`` as RFC 8785 canonical JSON
``models``              every loaded model: name, version, container digest, signer, sandbox
======================= =======================================================================
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.appraisal import ReferenceValues, appraise
from cloister.attest.binding import check_binding, report_data_for, runtime_data_digest
from cloister.attest.model import AttestationResult, Attester, Endorsements
from cloister.attest.verifier import parse_endorsements, verify_evidence
from cloister.errors import BindingMismatch, MalformedInput, PolicyDenied

NONCE_MIN_BYTES = 16
NONCE_MAX_BYTES = 64
MAX_BUNDLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """One model that the service holds in memory."""

    name: str
    version: str
    container_digest: str
    """Lower-case hexadecimal."""
    signer: str
    sandbox: str
    """What confines the model's own code: ``none``, ``unknown``, or ``part=layers`` for each part, separated
    by ``; ``. Where workers differ, each of their states, separated by `` | ``."""

    @property
    def confined(self) -> bool:
        """Whether every worker is kept from network, files and all system calls but those of a list."""
        return all(
            {"network", "files", "syscalls"} <= _isolated(worker) for worker in self.sandbox.split(" | ")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceIdentity:
    """What a model server is known by."""

    tls_spki: bytes
    ohttp_key_config: bytes
    settings_digest: bytes
    policy_digest: bytes
    """SHA-384 of the text of the access policy that decides now."""
    callers_digest: bytes
    """SHA-384 of what credentials are held against: hashes of API keys, issuers, authorities."""
    models: tuple[LoadedModel, ...]

    def runtime_data(self, nonce: bytes) -> dict[str, str]:
        """The members that ``report_data`` binds, for one caller's nonce."""
        return {
            "nonce": _base64(nonce),
            "tls-key": _base64(self.tls_spki),
            "ohttp-key-config": _base64(self.ohttp_key_config),
            "settings-digest": self.settings_digest.hex(),
            "policy-digest": self.policy_digest.hex(),
            "callers-digest": self.callers_digest.hex(),
            "models-digest": models_digest(self.models).hex(),
        }


@dataclass(frozen=True, slots=True)
class VerifiedService:
    """A service whose evidence is genuine, acceptable, fresh, and about these keys and models."""

    result: AttestationResult
    identity: ServiceIdentity


def models_digest(models: Sequence[LoadedModel]) -> bytes:
    """SHA-384 (48 bytes) of the list of models as RFC 8785 canonical JSON."""
    return runtime_data_digest({"models": [asdict(model) for model in models]})


def make_bundle(attester: Attester, identity: ServiceIdentity, nonce: bytes) -> bytes:
    """Evidence over this identity and the caller's nonce, as a JSON bundle.

    Raises:
        MalformedInput: a nonce shorter than 16 or longer than 64 bytes.
        KeyUnavailable, TransportError: the Attester could not make evidence.
    """
    _check_nonce(nonce)
    runtime_data = identity.runtime_data(nonce)
    evidence = attester.get_evidence(report_data_for(runtime_data))
    endorsements = attester.get_endorsements()
    bundle = {
        "scheme": evidence.scheme,
        "evidence": _base64(evidence.raw),
        "endorsements": None if endorsements is None else endorsements.to_mapping(),
        "runtime-data": runtime_data,
        "models": [asdict(model) for model in identity.models],
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def verify_bundle(
    raw: bytes,
    *,
    nonce: bytes,
    reference_values: ReferenceValues,
    now: datetime,
    roots: Sequence[x509.Certificate] | None = None,
    endorsements: Endorsements | None = None,
) -> VerifiedService:
    """Verify and appraise a service's bundle, step by step; nothing in it is believed before its step.

    1. The bundle has the declared form and repeats the caller's nonce.
    2. The evidence is genuine.
    3. ``report_data`` binds the runtime data: nonce, TLS key, OHTTP key, settings, policy, callers, models.
    4. The list of models has that digest.
    5. The claims are acceptable under the caller's reference values.
    6. Every model's own code is confined, if the reference values require it.
    7. Models, signers, policy and settings are those that the reference values demand of a service.

    Args:
        raw: the bundle, at most 1 MiB.
        nonce: what the caller sent, 16 to 64 bytes.
        roots: trusted roots; None means the vendors' pinned keys.
        endorsements: the caller's own; None means those in the bundle, which are signed by the vendor.
    Raises:
        MalformedInput: not a bundle.
        VerificationError: not genuine; BindingMismatch: genuine, but of another nonce, key or model.
        PolicyDenied: genuine, but not acceptable.
    """
    _check_nonce(nonce)
    bundle = _parse(raw)
    if not hmac.compare_digest(bundle.runtime_data["nonce"].encode(), _base64(nonce).encode()):
        raise BindingMismatch(
            "evidence answers another nonce than this caller sent", hint="it may be a replay; ask again"
        )
    if endorsements is None and bundle.endorsements is not None:
        endorsements = parse_endorsements(bundle.scheme, bundle.endorsements)
    claims = verify_evidence(bundle.scheme, bundle.evidence, endorsements, now, roots=roots)
    check_binding(claims, bundle.runtime_data)
    found = models_digest(bundle.models).hex()
    if found != bundle.runtime_data["models-digest"]:
        raise BindingMismatch(
            f"list of models has digest {found[:16]}…,"
            f" evidence is bound to {bundle.runtime_data['models-digest'][:16]}…"
        )
    result = appraise(claims, reference_values, now)
    if reference_values.require_sandbox:
        _require_sandbox(bundle.models)
    identity = bundle.identity()
    reference_values.service.check(identity)
    return VerifiedService(result, identity)


@dataclass(frozen=True, slots=True)
class _Bundle:
    scheme: str
    evidence: bytes
    endorsements: Mapping[str, Any] | None
    runtime_data: dict[str, str]
    models: tuple[LoadedModel, ...]

    def identity(self) -> ServiceIdentity:
        return ServiceIdentity(
            tls_spki=_bytes(self.runtime_data["tls-key"], "tls-key"),
            ohttp_key_config=_bytes(self.runtime_data["ohttp-key-config"], "ohttp-key-config"),
            settings_digest=_hex(self.runtime_data["settings-digest"], "settings-digest"),
            policy_digest=_hex(self.runtime_data["policy-digest"], "policy-digest"),
            callers_digest=_hex(self.runtime_data["callers-digest"], "callers-digest"),
            models=self.models,
        )


def _isolated(state: str) -> set[str]:
    parts = (part.partition("=") for part in state.split("; "))
    return {name for name, equals, layers in parts if equals and layers not in ("", "none")}


def _require_sandbox(models: Sequence[LoadedModel]) -> None:
    reasons = tuple(
        f"{model.name} {model.version}: {model.sandbox}" for model in models if not model.confined
    )
    if reasons:
        raise PolicyDenied(
            f"the code of {len(reasons)} models is not confined: {reasons[0][:200]}",
            reasons=reasons,
            hint="require_sandbox = false accepts it, if you trust who wrote the model",
        )


_MEMBERS = {"scheme", "evidence", "endorsements", "runtime-data", "models"}
_RUNTIME_MEMBERS = {
    "nonce",
    "tls-key",
    "ohttp-key-config",
    "settings-digest",
    "policy-digest",
    "callers-digest",
    "models-digest",
}
_MODEL_MEMBERS = set(LoadedModel.__dataclass_fields__)


def _parse(raw: bytes) -> _Bundle:
    if len(raw) > MAX_BUNDLE_BYTES:
        raise MalformedInput(f"evidence bundle has {len(raw)} bytes, at most {MAX_BUNDLE_BYTES} are read")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("evidence bundle is not JSON") from error
    _members(document, _MEMBERS, "evidence bundle")
    runtime_data = document["runtime-data"]
    _members(runtime_data, _RUNTIME_MEMBERS, "runtime-data")
    _strings(runtime_data, "runtime-data")
    if not isinstance(document["models"], list):
        raise MalformedInput("evidence bundle: models is not a list")
    for model in document["models"]:
        _members(model, _MODEL_MEMBERS, "model")
        _strings(model, "model")
    endorsements = document["endorsements"]
    if endorsements is not None and not isinstance(endorsements, dict):
        raise MalformedInput("evidence bundle: endorsements is not an object")
    if not isinstance(document["scheme"], str):
        raise MalformedInput("evidence bundle: scheme is not a string")
    return _Bundle(
        scheme=document["scheme"],
        evidence=_bytes(document["evidence"], "evidence"),
        endorsements=endorsements,
        runtime_data=runtime_data,
        models=tuple(LoadedModel(**model) for model in document["models"]),
    )


def _members(value: Any, expected: set[str], what: str) -> None:
    if not isinstance(value, dict):
        raise MalformedInput(f"{what} is not a JSON object")
    if set(value) != expected:
        missing, unknown = sorted(expected - set(value)), sorted(set(value) - expected)
        raise MalformedInput(f"{what}: missing members {missing}, unknown members {unknown[:5]!r}")


def _strings(value: Mapping[str, Any], what: str) -> None:
    for name, item in value.items():
        if not isinstance(item, str):
            raise MalformedInput(f"{what}: {name} is not a string")


def _bytes(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise MalformedInput(f"evidence bundle: {what} is not base64") from error


def _hex(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise MalformedInput(f"evidence bundle: {what} is not hexadecimal") from error


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _check_nonce(nonce: bytes) -> None:
    if not NONCE_MIN_BYTES <= len(nonce) <= NONCE_MAX_BYTES:
        raise MalformedInput(
            f"a nonce has {NONCE_MIN_BYTES} to {NONCE_MAX_BYTES} bytes, found {len(nonce)}",
            hint="use 32 random bytes",
        )
