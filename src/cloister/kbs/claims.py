"""From attested claims to what the release policy sees: the names and types of the policy's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cloister.crypto.jwe import TeePublicKey
from cloister.errors import MalformedInput
from cloister.kbs import protocol
from cloister.kbs.initdata import BoundInitData
from cloister.kbs.sessions import AttestedTee

MAX_ANNOTATION_CHARACTERS = 6000
_TEXT = frozenset(
    {"tcb_status", "tcb_date", "hardware_id"}
    | {"mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "mr_signer_seam"}
    | {"td_attributes", "seam_attributes", "xfam", "tee_tcb_svn", "fmspc"}
    | {"mr_enclave", "mr_signer", "config_id"}
    | {"measurement", "host_data", "id_key_digest", "author_key_digest"}
)
_FLAGS = frozenset({"simulated", "debug"})
_LISTS = frozenset({"advisory_ids"})
_NUMBERS = frozenset({"isv_prod_id", "isv_svn", "guest_svn", "vmpl"})


def policy_context(claims: Mapping[str, Any], tier: str, tee: str) -> dict[str, Any]:
    """The context of a release request.

    Only claims that the schema knows, in the form that it gives them; a claim of the wrong type is left out,
    and a policy that needs it then does not permit.

    Args:
        claims: ``Claims.to_mapping()``, or the same from a token that was verified.
        tier: of the appraisal, in lower case.
    """
    context: dict[str, Any] = {"tee": tee, "tier": tier}
    context |= {name: claims[name] for name in _TEXT & claims.keys() if isinstance(claims[name], str)}
    context |= {name: claims[name] for name in _NUMBERS & claims.keys() if type(claims[name]) is int}
    context |= {name: claims[name] for name in _FLAGS & claims.keys() if isinstance(claims[name], bool)}
    context |= {name: claims[name] for name in _LISTS & claims.keys() if isinstance(claims[name], list)}
    registers = claims.get("rtmrs")
    if isinstance(registers, list):
        context |= {f"rtmr{number}": register for number, register in enumerate(registers[:4])}
    return context


def init_data_annotations(attested: AttestedTee) -> dict[str, Any]:
    """What a token says of init data: its digest, and what is in it if that is short.

    A token travels in a header, which has little room. A policy that needs longer init data than fits decides
    on the session's cookie.
    """
    if "init_data_digest" not in attested.context:
        return {}
    bound = BoundInitData(attested.context["init_data_digest"], attested.init_data)
    annotations: dict[str, Any] = {"init_data": bound.digest}
    whole = {"init_data_claims": bound.claims(), "init_data_entries": dict(bound.entries)}
    return annotations | whole if len(json.dumps(whole)) <= MAX_ANNOTATION_CHARACTERS else annotations


def tee_of_token(token: Mapping[str, Any], evidence_digest: str) -> AttestedTee:
    """The TEE that a verified attestation result token speaks of.

    Raises:
        MalformedInput: a token for something else than the release of keys: it names no TEE key.
    """
    try:
        cpu = token["submods"]["cpu0"]
        annotated = cpu["ear.veraison.annotated-evidence"]
        jwk = annotated["runtime_data_claims"]["tee-pubkey"]
        (tee,) = annotated.keys() & protocol.TEES
        context = policy_context(annotated[tee], cpu["ear.status"], tee)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedInput("the token names no TEE key to release a resource to") from error
    digest, entries = annotated.get("init_data"), annotated.get("init_data_entries", {})
    if isinstance(digest, str):
        context["init_data_digest"] = digest
    if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
        raise MalformedInput("the token's init data is not a table of texts")
    return AttestedTee(
        tee=tee,
        key=TeePublicKey.from_jwk(jwk),
        context=context,
        evidence_digest=evidence_digest,
        init_data=entries,
    )
