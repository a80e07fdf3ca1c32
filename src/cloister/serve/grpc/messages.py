"""The messages and services of the ``.proto`` files beside this module, as classes made at start.

They live in a pool of their own: a program that loads another copy of the same protocol, such as
``tritonclient``, would clash with it in the common one. ``descriptors.binpb`` is what ``protoc`` makes of the
files (``make protos``); classes made from it work with every version of protobuf, generated code does not.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE = "org.pytorch.serve.grpc.inference"
MANAGEMENT = "org.pytorch.serve.grpc.management"
OPEN_INFERENCE = "inference"
HEALTH = "grpc.health.v1"
DESCRIPTORS = "descriptors.binpb"


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    raw = (resources.files(__package__) / "protos" / DESCRIPTORS).read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message by its full name."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


def service(name: str) -> Any:
    """The descriptor of a service by its full name."""
    return _pool().FindServiceByName(name)
