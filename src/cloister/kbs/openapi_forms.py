"""The forms of JSON bodies for the OpenAPI document, from the classes that read and write them."""

from __future__ import annotations

from typing import Any

import msgspec

from cloister.kbs import protocol
from cloister.kbs.administration import ResourceFacts
from cloister.kbs.adminroutes import KekRotation, Minimum, Named
from cloister.kbs.chain import AuditEntry
from cloister.kbs.rotation import Rewrapped
from cloister.kbs.trustee import PolicyMessage, ReferenceValueMessage

TEXT_TYPES = ("application/toml", "text/plain")
_SEGMENT = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
NAME = {"type": "string", "pattern": f"^{_SEGMENT}$"}
_URI = rf"^kbs:///{_SEGMENT}/{_SEGMENT}/{_SEGMENT}(\?version=[1-9][0-9]{{0,8}})?$"
_CLASSES: tuple[Any, ...] = (
    protocol.Request,
    protocol.Challenge,
    protocol.Attestation,
    protocol.TeeEvidence,
    protocol.TokenAnswer,
    protocol.ResourceAnswer,
    protocol.ErrorInformation,
    Named,
    Minimum,
    KekRotation,
    PolicyMessage,
    ReferenceValueMessage,
    ResourceFacts,
    Rewrapped,
    AuditEntry,
)
VARIANTS = {
    "Refused": (
        *("AttestationError", "SerdeError", "TokenNotFound", "TokenVerifierError", "AdminAuth"),
        *("PolicyDeny", "PolicyEngine", "PluginInternalError"),
    ),
    "NoSuchPath": ("InvalidRequestPath", "PluginNotFound"),
    "TooLarge": ("SerdeError",),
    "TooMany": ("TooManyRequests",),
    "CannotNow": ("PluginInternalError",),
}
"""Which variants of error each kind of failure may have."""


def schemas() -> dict[str, Any]:
    """Every named schema of the document."""
    _, found = msgspec.json.schema_components(_CLASSES, ref_template="#/components/schemas/{name}")
    found |= {
        "Evidence": _evidence(),
        "StoredVersion": _object(
            uri=_text(pattern=_URI), version=_count(1), bytes=_count(0), created=_text(format="date-time")
        ),
        "StoredNumber": _object(version=_count(1)),
        "MinimumBefore": _object(before=_count(0)),
        "Nothing": {"type": "object", "maxProperties": 0},
        "Extra": _extra(),
    }
    # Where a class leaves a member open, the protocol says more.
    found["Request"]["properties"]["version"] = {"const": protocol.VERSION}
    found["Request"]["properties"]["tee"] = {"enum": sorted(protocol.TEES)}
    found["Request"]["properties"]["extra-params"] = _ref("Extra")
    found["TeeEvidence"]["properties"]["primary_evidence"] = _ref("Evidence")
    found["Attestation"]["properties"]["tee-evidence"] = _ref("TeeEvidence")
    found["RuntimeData"]["properties"]["tee-pubkey"] = _tee_key()
    found["InitData"]["properties"]["format"] = {"enum": ["toml", "json"]}
    for name in ("Named", "Minimum", "ResourceFacts"):
        found[name]["properties"]["uri"] = _text(pattern=_URI)
    found["Minimum"]["properties"]["version"] = _count(0)
    found["Revocation"] = {**found["Named"], "required": ["uri", "reason"]}
    about = "base64url without padding; standard base64 is taken too"
    found["PolicyMessage"]["properties"]["policy"] = _text(description=about)
    found["ReferenceValueMessage"]["properties"] |= {
        "version": {"const": "0.1.0"},
        "type": {"const": "sample"},
        "payload": _text(description="base64 of a JSON object: id to list of values", format="byte"),
    }
    return found


def error_schema(failure: str) -> dict[str, Any]:
    """The error body, with the variants that one kind of failure may have."""
    types = [protocol.ERROR_TYPE_PREFIX + variant for variant in VARIANTS[failure]]
    return {"allOf": [_ref("ErrorInformation"), {"properties": {"type": {"enum": types}}}]}


def _evidence() -> dict[str, Any]:
    base64 = _text(format="byte")
    report = _object(attestation_report={"type": "object"}, cert_chain={"type": ["array", "null"]})
    tdx = _object(quote=base64, cc_eventlog={"type": ["string", "null"], "format": "byte"})
    tdx["required"] = ["quote"]
    forms = {
        "TDX": tdx,
        "SGX": _object(quote=base64),
        "SEV-SNP": {**report, "required": ["attestation_report"]},
        "Azure's vTPMs, and TPMs: the vendor's JSON": {"type": "object"},
        "sample, which proves nothing": _object(svn=_text(), report_data=base64),
    }
    return {"anyOf": [{**form, "description": name} for name, form in forms.items()]}


def _tee_key() -> dict[str, Any]:
    b64url = _text(pattern="^[A-Za-z0-9_-]*$")
    ec = _object(
        kty={"const": "EC"},
        crv={"enum": ["P-256", "P-521"]},
        alg={"const": "ECDH-ES+A256KW"},
        x=b64url,
        y=b64url,
    )
    rsa = _object(kty={"const": "RSA"}, alg={"const": "RSA-OAEP-256"}, n=b64url, e=b64url)
    return {"description": "A JWK (RFC 7517).", "oneOf": [ec, rsa]}


def _extra() -> dict[str, Any]:
    hashes = {"type": "array", "items": {"enum": list(protocol.SUPPORTED_HASH_ALGORITHMS)}, "minItems": 1}
    offered = {"type": "object", "properties": {"supported-hash-algorithms": hashes}}
    return {"anyOf": [{"const": ""}, offered]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def _count(minimum: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum, "maximum": (1 << 31) - 1}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
