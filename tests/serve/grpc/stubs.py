"""Callers for the services, made from the messages of the ``.proto`` files."""

from __future__ import annotations

from typing import Any

import grpc

from cloister.serve.grpc.messages import INFERENCE, MANAGEMENT, message, service

INFERENCE_SERVICE = f"{INFERENCE}.InferenceAPIsService"
MANAGEMENT_SERVICE = f"{MANAGEMENT}.ManagementAPIsService"


class Stub:
    """The methods of one service over one channel, as attributes."""

    def __init__(self, channel: grpc.Channel, name: str, *, described_as: str = "") -> None:
        for method in service(described_as or name).methods:
            kinds = {
                (False, False): channel.unary_unary,
                (False, True): channel.unary_stream,
                (True, True): channel.stream_stream,
            }
            call = kinds[method.client_streaming, method.server_streaming](
                f"/{name}/{method.name}",
                request_serializer=message(method.input_type.full_name).SerializeToString,
                response_deserializer=message(method.output_type.full_name).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def predictions(model: str, sequence_id: str | None = None, **fields: bytes) -> Any:
    """A ``PredictionsRequest``."""
    return message(f"{INFERENCE}.PredictionsRequest")(model_name=model, input=fields, sequence_id=sequence_id)


def management(kind: str, **members: Any) -> Any:
    """A request of the management service."""
    return message(f"{MANAGEMENT}.{kind}")(**members)


def failure(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    """Code and details of a call that fails."""
    try:
        found = call(*arguments, **options)
        list(found) if hasattr(found, "__iter__") else None
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("the call did not fail")
