"""The broker's interface as an OpenAPI 3.1 document, which it serves at ``GET /openapi.json``.

The forms of JSON bodies come from the classes that read and write them, so they cannot say anything else
(``cloister.kbs.openapi_forms``); paths, credentials and answers are here, and a test compares the paths with
the routes. The document names no resource, no policy and nothing else that a broker holds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

import cloister
from cloister.kbs import protocol
from cloister.kbs.openapi_forms import NAME, TEXT_TYPES, error_schema, schemas

PATH = "/openapi.json"
_JSON = "application/json"
_ABOUT = """Releases keys and other secrets to TEEs that prove what they run, over the Trustee KBS protocol
0.4.0: `auth` gives a challenge, `attest` takes evidence over it, `resource` gives a secret encrypted to the
TEE's key. The rest is administration.

Every failure has the protocol's error body. Two variants of error are 404; all others are 401, a missing
resource included. 503 is no refusal: ask again later."""
_OPEN: list[dict[str, list[str]]] = []
_SESSION: list[dict[str, list[str]]] = [{"session": []}]
_TEE: list[dict[str, list[str]]] = [*_SESSION, {"attestationToken": []}]
_ADMIN: list[dict[str, list[str]]] = [{"adminToken": []}, {"adminCertificate": []}]
_ROLES = {"resources": "admin or owner", "policies": "admin", "audit": "admin or auditor"}
_RESOURCE = "/kbs/v0/resource/{repository}/{type}/{tag}"


@functools.cache
def render_document(*, administration: bool) -> bytes:
    """The document as JSON.

    Args:
        administration: whether there is any; a key cache has none.
    """
    return msgspec.json.encode(openapi_document(administration=administration))


def openapi_document(*, administration: bool) -> dict[str, Any]:
    """The document as plain values."""
    paths = {**_protocol_paths(), **_service_paths()}
    if administration:
        for path, operations in _administration_paths().items():
            paths.setdefault(path, {}).update(operations)
    for path, operations in paths.items():
        for operation in operations.values():
            if isinstance(operation, dict) and ("{" in path or "parameters" in operation):
                operation["responses"]["404"] = {"$ref": "#/components/responses/NoSuchPath"}
    security = dict(_SCHEMES) if administration else {k: _SCHEMES[k] for k in ("session", "attestationToken")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cloister key broker" if administration else "Cloister key cache",
            "version": cloister.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "Where this document came from; HTTPS only."}],
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "responses": _failures(),
            "parameters": _parameters(),
            "securitySchemes": security,
        },
    }


def _protocol_paths() -> dict[str, dict[str, Any]]:
    cookie = {
        "description": f"`{protocol.COOKIE}`: the session, for the two steps that follow.",
        "schema": {"type": "string"},
        "required": True,
    }
    challenge = _answer("The challenge, and a cookie.", _json("Challenge"))
    challenge["headers"] = {"Set-Cookie": cookie}
    return {
        "/kbs/v0/auth": {
            "post": _operation(
                "auth", "Step 1: ask for a challenge", "protocol", _OPEN, challenge, body=_json("Request")
            )
        },
        "/kbs/v0/attest": {
            "post": _operation(
                "attest",
                "Step 2: show evidence that is bound to the challenge and to the TEE's key",
                "protocol",
                _SESSION,
                _answer("An attestation result token (EAR, ES256).", _json("TokenAnswer")),
                body=_json("Attestation"),
            )
        },
        _RESOURCE: {
            "parameters": _named("repository", "type", "tag"),
            "get": _operation(
                "getResource",
                "Step 3: a resource as a JWE to the TEE's key",
                "protocol",
                _TEE,
                _answer("The resource.", _json("ResourceAnswer")),
                parameters=_named("version"),
            ),
        },
    }


def _service_paths() -> dict[str, dict[str, Any]]:
    health = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}
    shown = _answer("It runs.", {_JSON: {"schema": health}})
    document = _answer("This document.", {_JSON: {"schema": {"type": "object", "required": ["openapi"]}}})
    return {
        "/healthz": {"get": _operation("health", "Whether it runs", "service", _OPEN, shown)},
        PATH: {"get": _operation("openapi", "This document", "service", _OPEN, document)},
    }


def _administration_paths() -> dict[str, dict[str, Any]]:
    policy = _text("The policy, Cedar or Rego.", "text/xml")
    values = _text("The reference values.", "text/plain")
    entries = {_JSON: {"schema": {"type": "array", "items": _ref("AuditEntry"), "maxItems": 1000}}}
    stored = {_JSON: {"schema": {"type": "array", "items": _ref("StoredVersion")}}}
    raw: dict[str, Any] = {"application/octet-stream": {"schema": {}}}
    done = _answer("Done.", _json("Nothing"))
    silent = {"description": "Done; no body."}
    number = _answer("The number of the new version.", _json("StoredNumber"))
    before = _answer("The minimum before.", _json("MinimumBefore"))
    return {
        "/kbs/v0/resource": {
            "get": _admin(
                "listResources", "Every stored version", "resources", _answer("The versions.", stored)
            )
        },
        _RESOURCE: {
            "post": _admin("storeResource", "Store a new version", "resources", number, body=raw),
            "delete": _admin(
                "deleteResource",
                "Delete a version, or all",
                "resources",
                done,
                parameters=_named("version"),
            ),
        },
        "/cloister/v0/resource/{repository}/{type}/{tag}": {
            "parameters": _named("repository", "type", "tag"),
            "get": _admin(
                "showResource",
                "Versions of a resource and their standing, never its content",
                "resources",
                _answer("What may be told.", _json("ResourceFacts")),
            ),
        },
        "/cloister/v0/revoke": {
            "post": _admin(
                "revoke", "Release to nobody any more", "resources", done, body=_json("Revocation")
            )
        },
        "/cloister/v0/restore": {
            "post": _admin("restore", "Take a revocation back", "resources", done, body=_json("Named"))
        },
        "/cloister/v0/minimum": {
            "post": _admin(
                "setMinimum", "Set the oldest version released", "resources", before, body=_json("Minimum")
            )
        },
        "/cloister/v0/rotate-kek": {
            "post": _admin(
                "rotateKek",
                "Wrap every data key under a new KEK",
                "policies",
                _answer("What was done.", _json("Rewrapped")),
                body=_json("KekRotation"),
            )
        },
        "/kbs/v0/resource-policy": {
            "get": _admin("getResourcePolicy", "The policy that was set", "policies", policy),
            "post": _admin(
                "setResourcePolicy",
                "Have another policy decide releases",
                "policies",
                silent,
                body=_json("PolicyMessage"),
            ),
        },
        "/kbs/v0/attestation-policy": {
            "post": _admin(
                "setAttestationPolicy",
                "Set a policy of Trustee's attestation service, in Rego",
                "policies",
                silent,
                body=_json("PolicyMessage"),
            )
        },
        "/kbs/v0/reference-value": {
            "post": _admin(
                "registerReferenceValues",
                "Register values for `query_reference_value`",
                "policies",
                silent,
                body=_json("ReferenceValueMessage"),
            )
        },
        "/kbs/v0/reference-value/{id}": {
            "parameters": _named("id"),
            "get": _admin(
                "getReferenceValue",
                "A value that was registered",
                "policies",
                _answer("The value.", {_JSON: {"schema": {}}}),
            ),
        },
        "/cloister/v0/reference-values": {
            "get": _admin("getReferenceValues", "The reference values that were set", "policies", values),
            "post": _admin(
                "setReferenceValues",
                "Say which TEEs may attest",
                "policies",
                done,
                body={name: {"schema": {"type": "string"}} for name in TEXT_TYPES},
            ),
        },
        "/cloister/v0/audit": {
            "get": _admin(
                "audit",
                "Entries of the audit log, oldest first",
                "audit",
                _answer("At most 1,000 entries.", entries),
                parameters=_named("after"),
            )
        },
    }


def _operation(
    name: str,
    summary: str,
    tag: str,
    security: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    *,
    body: Mapping[str, Any] | None = None,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "security": list(security),
        "responses": {"200": answer},
    }
    if tag != "service":
        failures = {"401": "Refused", "429": "TooMany", "503": "CannotNow"}
        if body is not None:
            failures["413"] = "TooLarge"
        operation["responses"] |= {
            status: {"$ref": f"#/components/responses/{failure}"} for status, failure in failures.items()
        }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {"required": True, "content": dict(body)}
    return operation


def _admin(
    name: str,
    summary: str,
    permission: str,
    answer: Mapping[str, Any],
    *,
    body: Mapping[str, Any] | None = None,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    operation = _operation(name, summary, permission, _ADMIN, answer, body=body, parameters=parameters)
    return {**operation, "description": f"Role: {_ROLES[permission]}."}


def _answer(about: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": dict(content)}


def _text(about: str, media_type: str) -> dict[str, Any]:
    return _answer(about, {media_type: {"schema": {"type": "string"}}})


def _json(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": _ref(name)}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _named(*names: str) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _failures() -> dict[str, Any]:
    wait = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
    answers = {
        "Refused": "No credential, a credential that does not do, or a refusal; `detail` says why.",
        "NoSuchPath": "A path that cannot be a resource, or a query that cannot be one of it.",
        "TooLarge": "A body over the limit of its route.",
        "TooMany": "Over the rate limit of requests without a credential.",
        "CannotNow": "Database or key provider do not answer now: nobody has refused anything.",
    }
    rendered = {
        name: _answer(about, {_JSON: {"schema": error_schema(name)}}) for name, about in answers.items()
    }
    rendered["TooMany"]["headers"] = {"Retry-After": wait}
    return rendered


def _parameters() -> dict[str, Any]:
    segments = {
        name: {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"The resource's {name}.",
            "schema": NAME,
        }
        for name in ("repository", "type", "tag")
    }
    version = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
    after = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1, "default": 0}
    identifier = {"type": "string", "pattern": r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}$"}
    return {
        **segments,
        "id": {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "Id of a reference value; a slash in it is percent-encoded.",
            "schema": identifier,
        },
        "version": {
            "name": "version",
            "in": "query",
            "description": "One version; without it the newest, or all of them where they are deleted.",
            "schema": version,
        },
        "after": {
            "name": "after",
            "in": "query",
            "description": "Sequence number after which to begin.",
            "schema": after,
        },
    }


_TAGS = {
    "protocol": "The three steps of a release, as Trustee's guests know them.",
    "resources": "Keeping keys.",
    "policies": "Who may attest, who gets what, and the key-encrypting key.",
    "audit": "What was released and refused, to whom and why.",
    "service": "About the broker itself.",
}
_SCHEMES: dict[str, dict[str, str]] = {
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": protocol.COOKIE,
        "description": "Set by `auth`; good for one attestation, and after it for resources.",
    },
    "attestationToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "What `attest` answers.",
    },
    "adminToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Of `cloister keys token issue`; its role says what it may do.",
    },
    "adminCertificate": {
        "type": "mutualTLS",
        "description": "A client certificate under `keys.admin_ca` that the owner has given a role.",
    },
}
