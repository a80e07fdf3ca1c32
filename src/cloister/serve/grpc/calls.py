"""What every call has in common: who may make it, how long it may take, and how it fails."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError

from cloister.errors import CloisterError
from cloister.serve.frames import Headers
from cloister.serve.grpc.messages import message, service
from cloister.serve.grpc.status import failure_of, read_failure
from cloister.serve.http.heads import find_priority
from cloister.serve.http.messages import Response
from cloister.serve.jobs import DEFAULT_PRIORITY, NEVER
from cloister.serve.log import log

Context = Any
"""``grpc.aio.ServicerContext``, whose annotations leave out too much."""

TOKEN_REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"  # noqa: S105


class Asked(NamedTuple):
    """What a call, or one message of a stream, asks for."""

    method: str
    model: str
    """Empty where no model is named."""
    version: str


Admit = Callable[[Asked, Headers, bytes], Response | None]
"""Decides by that, by the call's metadata and by its client certificate (DER); a response says no."""


class CallFailed(CloisterError):
    """A call's failure with the words that go to its caller."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


def admit_all(_: Asked, __: Headers, ___: bytes) -> Response | None:
    """Lets everybody in."""
    return None


def deadline_of(context: Context) -> float:
    """``time.monotonic()`` after which the caller does not wait any more."""
    remaining = context.time_remaining()
    return NEVER if remaining is None else time.monotonic() + float(remaining)


def priority_of(context: Context) -> int:
    """RFC 9218 urgency from the metadatum ``priority``, as in HTTP."""
    for key, value in context.invocation_metadata() or ():
        if key == "priority":
            return find_priority([(b"priority", value if isinstance(value, bytes) else value.encode())])
    return DEFAULT_PRIORITY


def metadata_of(context: Context) -> Headers:
    """The call's metadata as headers."""
    return [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in context.invocation_metadata() or ()
    ]


def certificate_of(context: Context) -> bytes:
    """DER of the client certificate that TLS has verified; empty if there is none."""
    shown = context.auth_context().get("x509_pem_cert", ())
    return ssl.PEM_cert_to_DER_cert(shown[0].decode("ascii")) if shown else b""


def make_handler(name: str, service_name: str, implementation: object, admit: Admit) -> Any:
    """What a gRPC server needs to answer one service with the methods of ``implementation``.

    Args:
        name: under which it is served.
        service_name: full name in the ``.proto`` files, whose methods and messages it has.
    """
    methods = {}
    for method in service(service_name).methods:
        call = getattr(implementation, method.name)
        reader = Reader(method.name, message(method.input_type.full_name), admit)
        if method.server_streaming:
            make: Any = grpc.unary_stream_rpc_method_handler
            read: Callable[[Any, Context], Any] = reader.read
            if method.client_streaming:
                make, read = grpc.stream_stream_rpc_method_handler, reader.read_each
            guarded: Any = _guard_stream(call, read)
        else:
            make, guarded = grpc.unary_unary_rpc_method_handler, _guard(call, reader.read)
        write = message(method.output_type.full_name).SerializeToString
        methods[method.name] = make(guarded, response_serializer=write)
    return grpc.method_handlers_generic_handler(name, methods)


class Reader:
    """Reads the requests of one method, and asks for each whether it may go on."""

    def __init__(self, method: str, kind: Any, admit: Admit) -> None:
        self._method = method
        self._kind = kind
        self._admit = admit
        fields = kind.DESCRIPTOR.fields_by_name
        self._model = next((name for name in ("model_name", "name") if name in fields), "")
        self._version = next((name for name in ("model_version", "version") if name in fields), "")

    def read(self, raw: bytes, context: Context) -> Any:
        """The message.

        Raises:
            CallFailed: it is none of this method, or may not go on.
        """
        try:
            request = self._kind.FromString(raw)
        except DecodeError as error:
            raise CallFailed(grpc.StatusCode.INVALID_ARGUMENT, "not a message of this method") from error
        if self._admit is not admit_all:
            self._check(request, context)
        return request

    async def read_each(self, raw: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """The messages of a stream; the first that may not go on ends it."""
        async for part in raw:
            yield self.read(part, context)

    def _check(self, request: Any, context: Context) -> None:
        model = getattr(request, self._model) if self._model else ""
        version = getattr(request, self._version) if self._version else ""
        asked = Asked(self._method, model, version)
        refusal = self._admit(asked, metadata_of(context), certificate_of(context))
        if refusal is None:
            return
        failure = read_failure(refusal)
        if failure.kind == "InvalidKeyException":
            raise CallFailed(grpc.StatusCode.PERMISSION_DENIED, TOKEN_REFUSED)
        raise CallFailed(failure.code, failure.message)


def _guard(call: Callable[[Any, Context], Awaitable[Any]], read: Callable[[Any, Context], Any]) -> Any:
    async def guarded(raw: bytes, context: Context) -> Any:
        try:
            return await call(read(raw, context), context)
        except CloisterError as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 (gRPC would send the text of the exception to the caller)
            await _abort(context, _internal(error))

    return guarded


def _guard_stream(
    call: Callable[[Any, Context], AsyncIterator[Any]], read: Callable[[Any, Context], Any]
) -> Any:
    async def guarded(raw: Any, context: Context) -> AsyncIterator[Any]:
        try:
            answers = cast("AsyncGenerator[Any]", call(read(raw, context), context))
            async with aclosing(answers) as parts:
                async for part in parts:
                    yield part
        except CloisterError as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 (as above)
            await _abort(context, _internal(error))

    return guarded


async def _abort(context: Context, error: CloisterError) -> None:
    if isinstance(error, CallFailed):
        await context.abort(error.code, error.message)
    failure = failure_of(error)
    await context.abort(failure.code, failure.details)


def _internal(error: Exception) -> CloisterError:
    log.error("call failed", exception=type(error).__name__)
    return CallFailed(grpc.StatusCode.INTERNAL, "Internal error")
