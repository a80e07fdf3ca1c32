"""What is brought from Trustee: its policies' view of claims, and its administration's messages.

Policies in Rego see an attestation result as Trustee's token has it. Names below the TEE's own are Trustee's
(``tdx.quote.body.mr_td``); ours are beside them (``tdx.mr_td``).

An *attestation policy* gives AR4SI claims for the evidence, after the reference values have accepted it. Here
it can lower the verdict's tier and never raise it; a result that is contraindicated, or that does not affirm
executables and hardware, is treated as such.

Source: Trustee, attestation-service/docs/tcb_claims.md and kbs/docs/kbs.yaml.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from cloister.attest.appraisal import AppraisalDenied
from cloister.attest.ar4si import tier_of_claim
from cloister.attest.model import AttestationResult, Check, TrustTier
from cloister.errors import MalformedInput
from cloister.kbs.documents import ATTESTATION_POLICY, REFERENCE_VALUE, check_id
from cloister.kbs.evidence import tee_of_scheme
from cloister.kbs.initdata import BoundInitData
from cloister.kbs.protocol import parse
from cloister.kbs.sample import TEE as SAMPLE
from cloister.kbs.sessions import AttestedTee
from cloister.policy.rego import RegoPolicy

REFERENCE_VALUE_VERSION = "0.1.0"
POLICY_IDS = ("default_cpu", "default")
"""Ids of attestation policies that are applied, the first one that was set."""
_BODY = ("mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "xfam", "td_attributes")
_HEADER = {"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"}
"""Of every TDX quote that verifies."""


class PolicyMessage(msgspec.Struct, frozen=True, kw_only=True):
    """``POST resource-policy`` and ``attestation-policy``."""

    policy: str
    policy_id: str = "default"
    type: str = "rego"


class ReferenceValueMessage(msgspec.Struct, frozen=True, kw_only=True):
    """``POST reference-value``."""

    version: str
    type: str
    payload: str


def read_policy(body: bytes) -> tuple[str, str]:
    """Id and text of a policy that is to be set.

    Raises:
        MalformedInput: another form, or not base64.
    """
    message = parse(body, PolicyMessage)
    return check_id(message.policy_id), _text(message.policy, "policy")


def read_reference_values(body: bytes) -> dict[str, Any]:
    """Ids and values that are to be registered.

    Raises:
        MalformedInput: another form, version or type.
    """
    message = parse(body, ReferenceValueMessage)
    if message.version != REFERENCE_VALUE_VERSION or message.type != "sample":
        raise MalformedInput(f"reference values must be of version {REFERENCE_VALUE_VERSION}, type sample")
    try:
        values = json.loads(_text(message.payload, "payload"))
    except (ValueError, RecursionError) as error:
        raise MalformedInput("payload: not JSON") from error
    if not isinstance(values, dict) or not values:
        raise MalformedInput("payload: not an object of reference values")
    return {check_id(name): value for name, value in values.items()}


def attestation_claims(attested: AttestedTee) -> dict[str, Any]:
    """The claims of a TEE's attestation result, as a release policy in Rego sees them."""
    annotated: dict[str, Any] = {
        attested.tee: vendor_claims(attested.tee, attested.context),
        "runtime_data_claims": {"tee-pubkey": dict(attested.key.jwk)},
    }
    if "init_data_digest" in attested.context:
        bound = BoundInitData(attested.context["init_data_digest"], attested.init_data)
        annotated |= {"init_data": bound.digest, "init_data_claims": bound.claims()}
    return {
        "submods": {
            "cpu0": {
                "ear.status": attested.context["tier"],
                "ear.appraisal-policy-id": "default_cpu",
                "ear.veraison.annotated-evidence": annotated,
            }
        }
    }


def vendor_claims(tee: str, claims: Mapping[str, Any]) -> dict[str, Any]:
    """Claims under our names, and under those of Trustee that are most used in policies."""
    found = dict(claims)
    if tee in ("tdx", "az-tdx-vtpm"):
        body = {name: claims[name] for name in _BODY if name in claims}
        registers = claims.get("rtmrs") or [claims.get(f"rtmr{number}") for number in range(4)]
        body |= {f"rtmr_{number}": value for number, value in enumerate(registers) if value is not None}
        renamed = {"mrsigner_seam": "mr_signer_seam", "tcb_svn": "tee_tcb_svn"}
        body |= {theirs: claims[ours] for theirs, ours in renamed.items() if ours in claims}
        found["quote"] = {"header": _HEADER, "body": body}
        found["td_attributes"] = {"debug": claims.get("debug")}
        # Collateral that has expired does not verify, so there is no other value.
        found["collateral_expiration_status"] = "0"
    elif tee == "sgx":
        found["body"] = {name: claims[name] for name in ("mr_enclave", "mr_signer") if name in claims}
    elif tee in ("snp", "az-snp-vtpm"):
        names = ("measurement", "host_data", "reported_tcb", "id_key_digest", "author_key_digest")
        evidence = {name: claims[name] for name in names if name in claims}
        found["evidence"] = {**evidence, "policy": {"debug_allowed": claims.get("debug")}}
    return found


class AttestationPolicies:
    """Attestation policies that were set; ``refine`` is for ``Appraiser``.

    Args:
        documents: looks documents up by the beginning of their names.
    """

    def __init__(self, documents: Callable[[str], dict[str, str]]) -> None:
        self._documents = documents

    def reference_values(self) -> dict[str, Any]:
        """What was registered, by id."""
        return {name: json.loads(body) for name, body in self._documents(REFERENCE_VALUE).items()}

    def refine(self, result: AttestationResult, init_data: BoundInitData | None) -> AttestationResult:
        """The result with the policy's tier, where that is the worse one.

        Raises:
            AppraisalDenied: the policy contraindicates, or does not affirm executables and hardware.
            ConfigError: the policy fails.
        """
        policies = self._documents(ATTESTATION_POLICY)
        text = next((policies[name] for name in POLICY_IDS if name in policies), None)
        if text is None:
            return result
        scheme = result.claims.scheme
        tee = SAMPLE if scheme == SAMPLE else tee_of_scheme(scheme)
        claims: dict[str, Any] = {tee: vendor_claims(tee, result.claims.to_mapping())}
        if init_data is not None:
            claims |= {"init_data": init_data.digest, "init_data_claims": init_data.claims()}
        vector = RegoPolicy(text, rule="executables").trust_claims(claims, self.reference_values())
        tiers = {name: tier_of_claim(value or 0) for name, value in vector.items()}
        silent = [name for name in ("executables", "hardware") if tiers[name] is TrustTier.NONE]
        worst = TrustTier.CONTRAINDICATED if silent else max(tiers.values())
        shown = ", ".join(f"{name} {value}" for name, value in vector.items())
        passed = worst is not TrustTier.CONTRAINDICATED
        check = Check("attestation policy", "affirming or warning", f"{worst.name.lower()} ({shown})", passed)
        refined = replace(result, tier=max(result.tier, worst), checks=(*result.checks, check))
        if result.tier is TrustTier.NONE and passed:
            refined = replace(refined, tier=TrustTier.NONE)
        if not passed:
            raise AppraisalDenied(refined)
        return refined


def _text(encoded: str, what: str) -> str:
    """Text out of base64, in either alphabet, with padding or without."""
    try:
        bare = encoded.rstrip("=").replace("+", "-").replace("/", "_")
        return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise MalformedInput(f"{what}: not text in base64") from error
