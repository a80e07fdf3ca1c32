"""Runs a loaded handler on batches, as TorchServe does.

Source: pytorch/serve 0.12, ts/service.py and ts/protocol/otf_message_handler.py (messages, statuses, forms).
"""

from __future__ import annotations

import importlib
import json
import re
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cloister.errors import MalformedInput
from cloister.serve.batching import BatchFailed
from cloister.serve.fingerprint import fingerprint
from cloister.serve.frames import Fault, Headers, MetricSample
from cloister.serve.incoming import Incoming
from cloister.serve.torchserve.context import Context, RequestProcessor
from cloister.serve.torchserve.util import PredictionException

Entry = Callable[[Any, Context], Any]

BYTES: Headers = [(b"content-type", b"application/octet-stream")]
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
JSON: Headers = [(b"content-type", b"application/json")]
PREDICTION_TIME_EVERY_S = 0.1
"""How often at most the metric PredictionTime is given, which nobody set."""
_encode_json = msgspec.json.Encoder().encode
_format_json = msgspec.json.format
# What PyTorch says when a tensor is not of the shape or type that a model takes.
_SHAPES = re.compile(
    r"shape|size|dimension|dtype|scalar type|mat1 and mat2|must match|channels|stack expects|out of range"
    r"|could not convert|Expected .* (?:to have|but got)",
    re.IGNORECASE,
)


class Outcome(msgspec.Struct):
    """One request's answer, or a part of it, as it goes into a frame."""

    status: int
    body: bytes = b""
    headers: Headers = []
    """May be shared with other outcomes; never to be changed."""
    fault: Fault | None = None


class Handler:
    """A handler that is ready to answer."""

    def __init__(self, entry: Entry, context: Context, *, show_text: bool) -> None:
        self._entry = entry
        self._context = context
        self._show_text = show_text
        self.part_sink: Callable[[Incoming, Outcome], None] | None = None
        """Set by the worker: takes a part of a request's answer while the handler runs."""
        self._timed = 0.0
        self.inference_s = 0.0
        """Time in the handler; whoever reads it sets it back."""
        self.calls = 0

    def run(self, requests: Sequence[Incoming]) -> list[Outcome]:
        """One outcome for each request of a batch, in order.

        Raises:
            BatchFailed: the handler raised, or answered in the wrong shape. It passes nothing else that is an
                error.
        """
        context = self._context
        context.request_ids = {index: item.request_id for index, item in enumerate(requests)}
        processors = [RequestProcessor(item.head.headers) for item in requests]
        context.request_processor = processors
        context.metrics.request_ids = context.request_ids
        begun: set[int] = set()
        context.part_sink = None if self.part_sink is None else self._part_sink(requests, processors, begun)
        started = time.perf_counter()
        try:
            results = self._entry([item.fields for item in requests], context)
            if context.stopping_criteria is not None:
                results = self._step(requests, processors, results)
        except Exception as error:  # noqa: BLE001 (a handler may raise anything)
            raise self._failed(error, begun) from None
        finally:
            self.inference_s += time.perf_counter() - started
            self.calls += 1
            context.part_sink = context.stopping_criteria = None
        if not isinstance(results, list):
            raise _misshapen("Invalid model predict output", begun)
        if len(results) != len(requests):
            raise _misshapen("number of batch response mismatched", begun)
        return [
            self._render(result, processor, item.exchange)
            for result, processor, item in zip(results, processors, requests, strict=True)
        ]

    def take_metrics(self) -> list[MetricSample]:
        """What was measured since the last call; nothing in protected mode."""
        samples = self._context.metrics.take() if self._show_text else []
        now = time.monotonic()
        if self._show_text and self.calls and now - self._timed > PREDICTION_TIME_EVERY_S:
            self._timed = now
            labels = [("ModelName", self._context.model_name), ("Level", "Model")]
            value = round(self.inference_s / self.calls * 1000, 2)
            samples.append(MetricSample("PredictionTime", "gauge", "Milliseconds", labels, value))
        return samples

    def _step(
        self, requests: Sequence[Incoming], processors: Sequence[RequestProcessor], results: Any
    ) -> list[Any]:
        """A handler that answers in steps: call it again for the requests whose last result it has not given.

        All results but the last one of each request are sent as parts. TorchServe calls this continuous
        batching; there, requests that come later join between two steps.
        """
        context, last = self._context, dict[int, Any]()
        places = list(range(len(requests)))
        while isinstance(results, list) and len(results) == len(places):
            criteria = context.stopping_criteria or [lambda _: True] * len(places)
            going = []
            for index, place in enumerate(places):
                if criteria[index](results[index]) is False:
                    context.send_part(index, results[index])
                    going.append(place)
                else:
                    last[place] = results[index]
            if not going:
                return [last[place] for place in range(len(requests))]
            places, left = going, [requests[place] for place in going]
            context.request_ids = {index: item.request_id for index, item in enumerate(left)}
            context.request_processor = [processors[place] for place in going]
            context.stopping_criteria = None
            if self.part_sink is not None:
                context.part_sink = self._part_sink(left, context.request_processor, set())
            results = self._entry([item.fields for item in left], context)
        raise TypeError("a step gave another number of results than there are requests")

    def _part_sink(
        self, requests: Sequence[Incoming], processors: Sequence[RequestProcessor], begun: set[int]
    ) -> Callable[[int, Any], None]:
        def send(index: int, result: Any) -> None:
            assert self.part_sink is not None
            begun.add(index)
            self.part_sink(requests[index], self._render(result, processors[index], requests[index].exchange))

        return send

    def _render(self, result: Any, processor: RequestProcessor, exchange: Any = None) -> Outcome:
        try:
            body, headers = render_result(result) if exchange is None else exchange.render(result)
            chosen = processor.get_response_headers()
            if chosen:
                kind = headers
                headers = [
                    (str(k).lower().encode("latin-1"), str(v).encode("latin-1")) for k, v in chosen.items()
                ]
                if exchange is not None:  # what the protocol says of its body is not the handler's to change
                    own = {name for name, _ in kind}
                    headers = [pair for pair in headers if pair[0] not in own] + kind
                elif not any(name == b"content-type" for name, _ in headers):
                    headers.extend(kind)
            return Outcome(int(processor.get_response_status_code() or 200), body, headers)
        except MalformedInput as error:
            return Outcome(400, fault=Fault(error.message))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            fault = describe_failure("Unsupported model output data type.", error, show_text=self._show_text)
            return Outcome(503, fault=fault)

    def _failed(self, error: Exception, begun: set[int]) -> BatchFailed[Outcome]:
        if isinstance(error, PredictionException):
            chosen = _chosen_failure(error)
            return BatchFailed(alone=chosen, together=_FAILED, begun=frozenset(begun))
        status, reason, show_text = 503, "Prediction failed", self._show_text
        if isinstance(error, MemoryError) or "CUDA" in str(error):
            status, reason = 507, "Out of resources"
        elif is_input_error(error):
            # Whoever sent it may know what is wrong with it; the request ran alone, so it is of it alone.
            status, reason, show_text = 400, "The model does not take this input", True
        together = 507 if status == 507 else 503
        return BatchFailed(
            alone=Outcome(status, fault=describe_failure(reason, error, show_text=show_text)),
            together=Outcome(together, fault=describe_failure("Prediction failed", error, show_text=False)),
            begun=frozenset(begun),
        )


_FAILED = Outcome(503, fault=Fault("Prediction failed"))


def _misshapen(reason: str, begun: set[int]) -> BatchFailed[Outcome]:
    outcome = Outcome(503, fault=Fault(reason))
    return BatchFailed(alone=outcome, together=outcome, begun=frozenset(begun))


def is_input_error(error: Exception) -> bool:
    """Whether an exception speaks of what a handler was given, as far as that can be told from outside."""
    if isinstance(error, ValueError | TypeError | LookupError | AssertionError | struct.error | zlib.error):
        return True
    if isinstance(error, AttributeError):  # JSON of another shape: 'list' object has no attribute 'get'
        return isinstance(error.obj, dict | list | str | int | float | bytes | bytearray | None)
    if type(error).__name__ in ("UnidentifiedImageError", "DecompressionBombError"):
        return True
    if isinstance(error, OSError | EOFError | SyntaxError) and _raised_in(error, "PIL"):
        # A picture that is cut off or broken inside; the system's own errors have a number.
        return getattr(error, "errno", None) is None
    return isinstance(error, RuntimeError) and bool(_SHAPES.search(str(error)))


def _raised_in(error: Exception, package: str) -> bool:
    """Whether code of this package raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] == package


def render_result(result: Any) -> tuple[bytes, Headers]:
    """Body and content type of one result: bytes and text as they are, all else as JSON.

    Raises:
        TypeError: not a value that JSON has.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), BYTES
    if isinstance(result, str):
        return result.encode(), TEXT
    if type(result).__module__ == "torch":
        return _render_tensor(result), BYTES
    try:
        return _format_json(_encode_json(result), indent=2), JSON
    except (TypeError, UnicodeEncodeError):
        # Slower, and knows what is derived from Python's own types: NumPy's float64, keys that are None.
        return json.dumps(result, indent=2).encode(), JSON


def describe_failure(reason: str, error: BaseException, *, show_text: bool) -> Fault:
    """A fault that tells equal failures from different ones without the exception's text."""
    return Fault(reason, type(error).__name__, fingerprint(error), str(error) if show_text else "")


def _chosen_failure(error: PredictionException) -> Outcome:
    """A handler that raises this speaks to its caller: status and message are part of its answer."""
    document = {"code": error.error_code, "type": "InternalServerException", "message": error.message}
    body, headers = render_result(document)
    return Outcome(error.error_code, body + b"\n", headers)


def _render_tensor(tensor: Any) -> bytes:
    io = importlib.import_module("io")
    buffer = io.BytesIO()
    importlib.import_module("torch").save(tensor, buffer)
    return bytes(buffer.getvalue())
