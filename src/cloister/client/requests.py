"""What callers ask of a service, as the parts of an HTTP request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cloister.client.payload import encode_payload
from cloister.client.tensors import Array, encode_tensors
from cloister.errors import ConfigError

Parts = tuple[str, bytes, dict[str, str]]
"""Path, body and headers."""


def prediction(model: str, data: Any, version: str | None, content_type: str | None = None) -> Parts:
    """A POST to a model; ``data`` as ``cloister.client.payload`` takes it.

    Raises:
        MalformedInput, ConfigError: data without a form, or no name of a model.
    """
    content, kind = encode_payload(data, content_type)
    path = f"/predictions/{_segment(model, 'model')}"
    if version is not None:
        path += f"/{_segment(version, 'version')}"
    return path, content, {"content-type": kind}


def inference(model: str, inputs: Mapping[str, Array], version: str | None) -> Parts:
    """A POST of arrays by name: the Open Inference Protocol, binary both ways; errors as ``prediction``."""
    content, headers = encode_tensors(inputs)
    return metadata_path(model, version) + "/infer", content, headers


def metadata_path(model: str, version: str | None) -> str:
    """Where a model says what it is, in the Open Inference Protocol."""
    path = f"/v2/models/{_segment(model, 'model')}"
    return path if version is None else f"{path}/versions/{_segment(version, 'version')}"


def own_headers(token: str) -> dict[str, str]:
    """Of every request. Answers are taken as they are: what is not asked for compressed cannot burst here."""
    own = {"accept-encoding": "identity"}
    return own | {"authorization": f"Bearer {token}"} if token else own


def _segment(name: str, what: str) -> str:
    # "." and ".." would be taken as steps of the path.
    if not name or name in (".", ".."):
        raise ConfigError(f"{what}: empty or not a name")
    return quote(name, safe="")
