"""Loads the handler of an unpacked archive and runs it on batches, as TorchServe does.

Source: pytorch/serve 0.12, ts/model_loader.py and ts/service.py (order of attempts, messages, statuses).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve import torchserve
from cloister.serve.archive import MANIFEST_NAME, Manifest
from cloister.serve.forms import parse_fields
from cloister.serve.frames import Fault, Headers, RequestItem
from cloister.serve.torchserve.context import Context, RequestProcessor
from cloister.serve.torchserve.util import PredictionException, list_classes_from_module

Entry = Callable[[Any, Context], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request's answer as it goes into a frame."""

    status: int
    body: bytes = b""
    headers: Headers = field(default_factory=list)
    fault: Fault | None = None


class Handler:
    """A handler that is ready to answer."""

    def __init__(self, entry: Entry, context: Context, *, show_text: bool) -> None:
        self._entry = entry
        self._context = context
        self._show_text = show_text

    def answer(self, items: Sequence[RequestItem], bodies: Sequence[memoryview]) -> list[Outcome]:
        """One outcome for each request, in order. Nothing that a handler raises as an error passes."""
        inputs: list[dict[str, Any]] = []
        processors: list[RequestProcessor] = []
        try:
            for item, body in zip(items, bodies, strict=True):
                headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in item.headers}
                content_type = headers.get("content-type", "")
                inputs.append(parse_fields(body, content_type=content_type, query=item.query))
                processors.append(RequestProcessor(headers))
        except MalformedInput as error:
            return [Outcome(400, fault=Fault(error.message)) for _ in items]
        context = self._context
        context.request_ids = {index: item.request_id for index, item in enumerate(items)}
        context.request_processor = processors
        context.metrics.request_ids = context.request_ids
        try:
            results = self._entry(inputs, context)
        except PredictionException as error:
            return [_chosen_failure(error) for _ in items]
        except MemoryError as error:
            fault = self._fault("Out of resources", error)
            return [Outcome(507, fault=fault) for _ in items]
        except Exception as error:  # noqa: BLE001 (a handler may raise anything)
            status, reason = (507, "Out of resources") if "CUDA" in str(error) else (503, "Prediction failed")
            fault = self._fault(reason, error)
            return [Outcome(status, fault=fault) for _ in items]
        if not isinstance(results, list):
            return [Outcome(503, fault=Fault("Invalid model predict output")) for _ in items]
        if len(results) != len(items):
            return [Outcome(503, fault=Fault("number of batch response mismatched")) for _ in items]
        return [self._render(result, processors[index]) for index, result in enumerate(results)]

    def _render(self, result: Any, processor: RequestProcessor) -> Outcome:
        try:
            body, content_type = render_result(result)
            chosen = processor.get_response_headers()
            headers = [
                (str(k).lower().encode("latin-1"), str(v).encode("latin-1")) for k, v in chosen.items()
            ]
            if content_type and not any(name == b"content-type" for name, _ in headers):
                headers.append((b"content-type", content_type))
            return Outcome(int(processor.get_response_status_code() or 200), body, headers)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            return Outcome(503, fault=self._fault("Unsupported model output data type.", error))

    def _fault(self, reason: str, error: BaseException) -> Fault:
        return describe_failure(reason, error, show_text=self._show_text)


def load_handler(
    folder: Path,
    manifest: Manifest,
    *,
    name: str,
    batch_size: int = 1,
    gpu_id: int | None = None,
    show_text: bool = False,
) -> Handler:
    """Import the handler that ``manifest`` names from ``folder`` and initialize it.

    Args:
        show_text: put the text of exceptions into faults; open mode only, it may hold what a caller sent.
    Raises:
        ModelFailed: there is no such handler, or more than one. What the handler raises passes through.
    """
    torchserve.install()
    sys.path.insert(0, str(folder))
    module, function = _import_handler(manifest.model.handler)
    context = Context(
        name,
        str(folder),
        _manifest_document(folder),
        batch_size,
        gpu_id,
        torchserve.VERSION,
        model_yaml_config=_read_model_config(folder, manifest),
    )
    entry = getattr(module, function or "handle", None)
    if entry is not None:
        entry(None, context)
        return Handler(entry, context, show_text=show_text)
    if function:
        raise ModelFailed(f"handler module has no function {function!r}")
    service = _sole_class(module)()
    if not hasattr(service, "handle"):
        raise ModelFailed("handler class has no method 'handle'")
    if hasattr(service, "initialize"):
        service.initialize(context)
    return Handler(service.handle, context, show_text=show_text)


def render_result(result: Any) -> tuple[bytes, bytes]:
    """Body and content type of one result: bytes and text as they are, all else as JSON.

    Raises:
        TypeError: not a value that JSON has.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), b"application/octet-stream"
    if isinstance(result, str):
        return result.encode(), b"text/plain; charset=utf-8"
    if type(result).__module__ == "torch":
        return _render_tensor(result), b"application/octet-stream"
    return msgspec.json.format(msgspec.json.encode(result), indent=2), b"application/json"


def describe_failure(reason: str, error: BaseException, *, show_text: bool) -> Fault:
    """A fault that tells equal failures from different ones without the exception's text.

    The fingerprint covers the exception's type and the places that it passed, so the same defect has the same
    one whatever the request was.
    """
    places = [
        f"{Path(f.filename).name}:{f.lineno}:{f.name}" for f in traceback.extract_tb(error.__traceback__)
    ]
    kind = type(error).__name__
    fingerprint = hashlib.sha256("\n".join([kind, *places]).encode()).hexdigest()[:12]
    return Fault(reason, kind, fingerprint, str(error) if show_text else "")


def _chosen_failure(error: PredictionException) -> Outcome:
    """A handler that raises this speaks to its caller: status and message are part of its answer."""
    document = {"code": error.error_code, "type": "InternalServerException", "message": error.message}
    body, content_type = render_result(document)
    return Outcome(error.error_code, body, [(b"content-type", content_type)])


def _render_tensor(tensor: Any) -> bytes:
    io = importlib.import_module("io")
    buffer = io.BytesIO()
    importlib.import_module("torch").save(tensor, buffer)
    return bytes(buffer.getvalue())


def _import_handler(handler: str) -> tuple[ModuleType, str]:
    if not handler:
        raise ModelFailed("the archive names no handler, and none of the usual files is in it")
    file, _, function = handler.partition(":")
    name = file.removesuffix(".py").rpartition("/")[2]
    try:
        return importlib.import_module(name), function
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return importlib.import_module(f"ts.torch_handler.{name}"), function


def _sole_class(module: ModuleType) -> type:
    classes = list_classes_from_module(module)
    if len(classes) > 1:
        # A module may define its network beside its handler: the one that can handle is meant.
        classes = [item for item in classes if callable(getattr(item, "handle", None))]
    if len(classes) != 1:
        raise ModelFailed(f"handler module has {len(classes)} handler classes, expected 1, and no function")
    return classes[0]


def _manifest_document(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def _read_model_config(folder: Path, manifest: Manifest) -> Mapping[str, Any]:
    """The model's YAML settings. JSON is YAML, so only real YAML needs the PyYAML package."""
    if not manifest.model.config_file:
        return {}
    raw = (folder / manifest.model.config_file).read_bytes()
    try:
        document = importlib.import_module("yaml").safe_load(raw)
    except ModuleNotFoundError:
        document = msgspec.json.decode(raw)
    if not isinstance(document, dict):
        raise ModelFailed("the archive's configuration file is not one mapping")
    return document
