"""The OpenAPI documents that ``OPTIONS /`` gives: one for each API, and one for each model.

Paths, operation names, parameters and statuses are those of pytorch/serve 0.12 (OpenApiUtils.java), with what
this server has besides; the words are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloister.serve.torchserve import VERSION

Document = dict[str, Any]
_ANY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_ERROR = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {"code": {"type": "integer"}, "type": {"type": "string"}, "message": {"type": "string"}},
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
_REASONS = {
    200: "OK",
    202: "Accepted",
    210: "Partial success",
    400: "Bad request",
    403: "Not allowed",
    404: "Model or version not found",
    408: "Not finished in time",
    409: "Model already registered",
    500: "Internal server error",
    503: "No worker is available",
}
_KSERVE = ("/v1/models/{model_name}:predict", "/v2/models/{model_name}/infer")
_NAME = ("path", "model_name", "string", None)
_VERSION = ("path", "model_version", "string", None)
_SCALE = (
    ("query", "min_worker", "integer", "1"),
    ("query", "max_worker", "integer", "1"),
    ("query", "number_gpu", "integer", "0"),
    ("query", "synchronous", "boolean", "false"),
    ("query", "timeout", "integer", "-1"),
)
_REMOVE = (("query", "synchronous", "boolean", "false"), ("query", "timeout", "integer", "-1"))
_REGISTER = (
    ("query", "url", "string", None),
    ("query", "model_name", "string", None),
    ("query", "handler", "string", None),
    ("query", "runtime", "string", None),
    ("query", "batch_size", "integer", "1"),
    ("query", "max_batch_delay", "integer", "100"),
    ("query", "response_timeout", "integer", "120"),
    ("query", "startup_timeout", "integer", "120"),
    ("query", "initial_workers", "integer", "0"),
    ("query", "synchronous", "boolean", "true"),
    ("query", "s3_sse_kms", "boolean", "false"),
)
Parameter = tuple[str, str, str, str | None]


def describe_inference() -> Document:
    """The inference API."""
    paths = _shared()
    paths["/ping"] = {"get": _operation("ping", "Health of the server.", (200, 500), answer=_STATUS)}
    predict = ("predictions", "One prediction by a model's default version.", (200, 400, 404, 500, 503, 507))
    for path in (
        "/v1/models/{model_name}:predict",
        "/v2/models/{model_name}/infer",
        "/predictions/{model_name}",
    ):
        paths[path] = {"post": _operation(*predict, parameters=(_NAME,), body=True)}
    paths["/predictions/{model_name}/{model_version}"] = {
        "post": _operation(
            "version_predictions", "One prediction by one version.", predict[2], (_NAME, _VERSION), body=True
        )
    }
    paths["/explanations/{model_name}"] = {
        "post": _operation("explanations", "One explanation by a model.", predict[2], (_NAME,), body=True)
    }
    return _document("TorchServe APIs", paths)


def describe_management() -> Document:
    """The management API."""
    paths = _shared()
    page = (("query", "limit", "integer", "100"), ("query", "next_page_token", "string", None))
    paths["/models"] = {
        "get": _operation("listModels", "Registered models.", (200, 500), page, answer={"type": "object"}),
        "post": _operation(
            "registerModel",
            "Register a model.",
            (200, 202, 210, 400, 404, 409, 500),
            _REGISTER,
            answer=_STATUS,
        ),
    }
    paths.update(_model_paths())
    return _document("TorchServe APIs", paths)


def describe_metrics() -> Document:
    """The metrics API."""
    return _document("TorchServe APIs", {"/metrics": _metrics()})


def describe_model(name: str) -> Document:
    """The inference API of one model."""
    operation = _operation(name, "A prediction entry point.", (200, 500), body=True)
    paths = (f"/prediction/{name}", "/v1/models/{model_name}:predict", "/v2/models/{model_name}/infer")
    return _document(
        f"RESTful API for: {name}", {path: {"post": operation} for path in paths}, version="1.0.0"
    )


def describe_model_management(name: str) -> Document:
    """The management API of one model."""
    return _document(f"RESTful Management API for: {name}", _model_paths())


def _model_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for prefix, path, named in (
        ("", "/models/{model_name}", (_NAME,)),
        ("version_", "/models/{model_name}/{model_version}", (_NAME, _VERSION)),
    ):
        paths[path] = {
            "get": _operation(
                f"{prefix}describeModel", "Facts of a model.", (200, 404, 500), named, answer={}
            ),
            "put": _operation(
                f"{prefix}setAutoScale",
                "Set how many workers a model has.",
                (200, 202, 210, 400, 404, 500),
                (*named, *_SCALE),
                answer=_STATUS,
            ),
            "delete": _operation(
                f"{prefix}unregisterModel",
                "Remove a model.",
                (200, 202, 403, 404, 408, 500),
                (*named, *_REMOVE),
                answer=_STATUS,
            ),
        }
    paths["/models/{model_name}/{model_version}/set-default"] = {
        "put": _operation(
            "setDefault", "Choose the default.", (200, 404, 500), (_NAME, _VERSION), answer=_STATUS
        )
    }
    return paths


def _shared() -> dict[str, Any]:
    about = "This description."
    document = {"type": "object", "required": ["openapi", "info", "paths"]}
    return {
        "/": {"options": _operation("apiDescription", about, (200, 500), answer=document)},
        "/api-description": {
            "get": {**_operation("api-description", about, (200, 500), answer=document), "deprecated": True}
        },
        "/metrics": _metrics(),
    }


def _metrics() -> dict[str, Any]:
    operation = _operation(
        "metrics", "Prometheus metrics.", (200, 500), (("query", "name[]", "string", None),)
    )
    content = {"text/plain; version=0.0.4; charset=utf-8": {"schema": {"type": "string"}}}
    operation["responses"]["200"]["content"] = content
    return {"get": operation}


def _operation(
    name: str,
    about: str,
    statuses: Sequence[int],
    parameters: Sequence[Parameter] = (),
    *,
    body: bool = False,
    answer: Document | None = None,
) -> Document:
    operation: Document = {
        "description": about,
        "operationId": name,
        "parameters": [_parameter(*parameter) for parameter in parameters],
    }
    if body:
        operation["requestBody"] = {
            "description": "As the model takes it.",
            "content": _ANY,
            "required": True,
        }
    success = {"application/json": {"schema": answer}} if answer is not None else _ANY
    operation["responses"] = {
        str(status): {
            "description": _REASONS.get(status, "Error"),
            "content": success if status < 300 else {"application/json": {"schema": _ERROR}},
        }
        for status in statuses
    }
    return operation


def _parameter(where: str, name: str, kind: str, default: str | None) -> Document:
    schema = {"type": kind} if default is None else {"type": kind, "default": default}
    return {"in": where, "name": name, "required": where == "path" or name == "url", "schema": schema}


def _document(title: str, paths: dict[str, Any], *, version: str = VERSION) -> Document:
    return {"openapi": "3.0.1", "info": {"title": title, "version": version}, "paths": paths}
