"""Administration over HTTP: Trustee's endpoints, and more. Each wants an admin token or certificate.

============================================ ======== =========== ======================================
path                                         method   permission  body, answer
============================================ ======== =========== ======================================
/kbs/v0/resource                             GET      resources   every stored version
/kbs/v0/resource/{r}/{t}/{tag}               POST     resources   raw body; ``{"version"}``
same                                         DELETE   resources   all versions, or ``?version=n``
/kbs/v0/resource-policy                      POST     policies    ``{"policy": base64url}``
same                                         GET      policies    its text
/kbs/v0/attestation-policy                   POST     policies    ``{"policy_id", "policy": base64url}``
/kbs/v0/reference-value                      POST     policies    ``{"version", "type", "payload"}``
/kbs/v0/reference-value/{id}                 GET      policies    the value
/cloister/v0/resource/{r}/{t}/{tag}          GET      resources   versions and their standing
/cloister/v0/revoke, restore                 POST     resources   ``{"uri", "reason"}``
/cloister/v0/minimum                         POST     resources   ``{"uri", "version"}``; ``{"before"}``
/cloister/v0/rotate-kek                      POST     policies    ``{"renew", "retire"}``
/cloister/v0/reference-values                POST GET policies    TOML text
/cloister/v0/audit                           GET      audit       entries after ``?after=n``
============================================ ======== =========== ======================================

A policy or reference values that the settings pin by a file cannot be set here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cloister.errors import CloisterError, ConfigError, KeyUnavailable, MalformedInput, MissingDependencyError
from cloister.kbs import protocol, trustee
from cloister.kbs.admin import Permission
from cloister.kbs.administration import Administration
from cloister.kbs.administrators import Credential
from cloister.kbs.database import DatabaseFailed
from cloister.kbs.documents import (
    ATTESTATION_POLICY,
    REFERENCE_VALUE,
    REFERENCE_VALUES,
    RESOURCE_POLICY,
    check_id,
    refuse_pinned,
)
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.refused import Refused
from cloister.kbs.requests import credential, read_body, resource_path
from cloister.kbs.stored import parse_reference_values
from cloister.policy.rego import RegoPolicy
from cloister.policy.release import parse_release_policy
from cloister.settings import KeysSettings

MAX_RESOURCE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 19
MAX_ENTRIES = 1000
_RESOURCE = "/kbs/v0/resource/{path:path}"
_Act = Callable[[Request, Administration], Awaitable[Response]]


class Administrator(Protocol):
    """Who checks administrators' credentials: ``Broker``."""

    def administer(self, shown: Credential, needs: Permission) -> Administration:
        """Administration on behalf of whoever showed this; raises Refused."""
        ...

    def audit_entries(self, shown: Credential, after: int, limit: int) -> list[dict[str, Any]]:
        """Entries of the audit log; raises Refused."""
        ...


class Named(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A resource or a version of it, and why."""

    uri: str
    reason: str = ""


class Minimum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The oldest version to release."""

    uri: str
    version: int


class KekRotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to rotate the KEK."""

    renew: bool = True
    retire: bool = True


class AdminRoutes:
    """The handlers; each checks the credential before it reads a body."""

    def __init__(self, broker: Administrator, settings: KeysSettings) -> None:
        self._broker = broker
        self._settings = settings

    def table(self) -> list[Route]:
        """Every route."""
        routes: list[tuple[str, str, Permission, _Act]] = [
            ("/kbs/v0/resource", "GET", "resources", self.list_resources),
            (_RESOURCE, "POST", "resources", self.store),
            (_RESOURCE, "DELETE", "resources", self.delete),
            ("/kbs/v0/resource-policy", "GET", "policies", self.get_resource_policy),
            ("/kbs/v0/resource-policy", "POST", "policies", self.set_resource_policy),
            ("/kbs/v0/attestation-policy", "POST", "policies", self.set_attestation_policy),
            ("/kbs/v0/reference-value", "POST", "policies", self.register_reference_value),
            ("/kbs/v0/reference-value/{id:path}", "GET", "policies", self.get_reference_value),
            ("/cloister/v0/resource/{path:path}", "GET", "resources", self.show),
            ("/cloister/v0/revoke", "POST", "resources", self.revoke),
            ("/cloister/v0/restore", "POST", "resources", self.restore),
            ("/cloister/v0/minimum", "POST", "resources", self.set_minimum),
            ("/cloister/v0/rotate-kek", "POST", "policies", self.rotate_kek),
            ("/cloister/v0/reference-values", "GET", "policies", self.get_reference_values),
            ("/cloister/v0/reference-values", "POST", "policies", self.set_reference_values),
        ]
        table = [
            Route(path, self._guarded(needs, act), methods=[method]) for path, method, needs, act in routes
        ]
        return [*table, Route("/cloister/v0/audit", self.audit, methods=["GET"])]

    async def list_resources(self, _request: Request, admin: Administration) -> Response:
        """Every stored version, never its content."""
        stored = await run_in_threadpool(admin.resources)
        return JSONResponse(
            [
                {"uri": f"kbs:///{v.path}", "version": v.version, "bytes": v.size, "created": v.created}
                for v in stored
            ]
        )

    async def store(self, request: Request, admin: Administration) -> Response:
        """Store a version."""
        path = resource_path(request)
        body = await read_body(request, MAX_RESOURCE_BYTES)
        stored = await run_in_threadpool(admin.store, path, body)
        return JSONResponse({"version": stored.version})

    async def delete(self, request: Request, admin: Administration) -> Response:
        """Delete versions."""
        await run_in_threadpool(admin.delete, resource_path(request))
        return JSONResponse({})

    async def show(self, request: Request, admin: Administration) -> Response:
        """Versions of a resource and their standing."""
        facts = await run_in_threadpool(admin.show, resource_path(request))
        return JSONResponse(facts.to_mapping())

    async def revoke(self, request: Request, admin: Administration) -> Response:
        """Revoke a resource or version."""
        named = await self._message(request, Named)
        await run_in_threadpool(admin.revoke, ResourcePath.from_uri(named.uri), named.reason)
        return JSONResponse({})

    async def restore(self, request: Request, admin: Administration) -> Response:
        """Take a revocation back."""
        named = await self._message(request, Named)
        await run_in_threadpool(admin.restore, ResourcePath.from_uri(named.uri), named.reason)
        return JSONResponse({})

    async def set_minimum(self, request: Request, admin: Administration) -> Response:
        """Set the oldest version that is released."""
        minimum = await self._message(request, Minimum)
        if not 0 <= minimum.version < 1 << 31:
            raise MalformedInput("version must be a number, 0 or more")
        path = ResourcePath.from_uri(minimum.uri)
        before = await run_in_threadpool(admin.set_minimum, path, minimum.version)
        return JSONResponse({"before": before})

    async def rotate_kek(self, request: Request, admin: Administration) -> Response:
        """Rotate the KEK."""
        wanted = await self._message(request, KekRotation)
        done = await run_in_threadpool(admin.rotate_kek, renew=wanted.renew, retire=wanted.retire)
        return JSONResponse(asdict(done))

    async def set_resource_policy(self, request: Request, admin: Administration) -> Response:
        """Set the policy that decides releases, Rego or Cedar."""
        refuse_pinned(self._settings.policy, "policies")
        _, text = trustee.read_policy(await read_body(request, MAX_DOCUMENT_BYTES))
        await run_in_threadpool(parse_release_policy, text)
        await run_in_threadpool(admin.put_document, RESOURCE_POLICY, text)
        return Response()

    async def get_resource_policy(self, _request: Request, admin: Administration) -> Response:
        """The policy that was set."""
        text = await run_in_threadpool(admin.get_document, RESOURCE_POLICY)
        if text is None:
            raise ConfigError("no policy was set here; the broker's file or the one that ships decides")
        return Response(text, media_type="text/xml")

    async def set_attestation_policy(self, request: Request, admin: Administration) -> Response:
        """Set a policy of Trustee's attestation service."""
        name, text = trustee.read_policy(await read_body(request, MAX_DOCUMENT_BYTES))
        await run_in_threadpool(RegoPolicy, text, rule="executables")
        await run_in_threadpool(admin.put_document, ATTESTATION_POLICY + name, text)
        return Response()

    async def register_reference_value(self, request: Request, admin: Administration) -> Response:
        """Register values for ``query_reference_value``."""
        values = trustee.read_reference_values(await read_body(request, MAX_DOCUMENT_BYTES))
        for name, value in values.items():
            await run_in_threadpool(admin.put_document, REFERENCE_VALUE + name, json.dumps(value))
        return Response(media_type="application/json")

    async def get_reference_value(self, request: Request, admin: Administration) -> Response:
        """One registered value."""
        try:
            name = REFERENCE_VALUE + check_id(request.path_params["id"])
        except MalformedInput as error:
            raise Refused("InvalidRequestPath", error.message) from error
        body = await run_in_threadpool(admin.get_document, name)
        if body is None:
            raise KeyUnavailable("no such reference value was registered")
        return Response(body, media_type="application/json")

    async def set_reference_values(self, request: Request, admin: Administration) -> Response:
        """Set the reference values, as TOML."""
        refuse_pinned(self._settings.reference_values, "reference values")
        try:
            text = (await read_body(request, MAX_DOCUMENT_BYTES)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedInput("reference values are not UTF-8") from error
        parse_reference_values(text)
        await run_in_threadpool(admin.put_document, REFERENCE_VALUES, text)
        return JSONResponse({})

    async def get_reference_values(self, _request: Request, admin: Administration) -> Response:
        """The reference values that were set."""
        text = await run_in_threadpool(admin.get_document, REFERENCE_VALUES)
        if text is None:
            raise ConfigError("no reference values were set here")
        return PlainTextResponse(text)

    async def audit(self, request: Request) -> Response:
        """Entries of the audit log."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise Refused("InvalidRequestPath", "after must be a number")
        shown = credential(request)
        entries = await run_in_threadpool(self._broker.audit_entries, shown, int(after), MAX_ENTRIES)
        return JSONResponse(entries)

    def _guarded(self, needs: Permission, act: _Act) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            admin = self._broker.administer(credential(request), needs)
            try:
                return await act(request, admin)
            except (Refused, DatabaseFailed):
                raise
            except MissingDependencyError as error:
                raise Refused("PolicyEngine", f"{error.message} ({error.hint})") from error
            except ConfigError as error:
                raise Refused("PolicyEngine", error.message) from error
            except MalformedInput as error:
                if error.__class__ is not MalformedInput:
                    raise
                raise Refused("SerdeError", error.message) from error
            except CloisterError as error:
                raise Refused("PluginInternalError", error.message) from error

        return handler

    async def _message(self, request: Request, form: type[protocol.T]) -> protocol.T:
        return protocol.parse(await read_body(request, MAX_DOCUMENT_BYTES), form)
