"""PyTorch's types of numbers as safetensors has them, and the memory of a tensor as bytes."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from cloister.errors import MalformedInput, MissingDependencyError

if TYPE_CHECKING:
    import torch

NATIVE = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""PyTorch's name to safetensors' name."""

VIEWED = {
    "complex32": ("F16", 2),
    "complex64": ("F32", 2),
    "complex128": ("F64", 2),
    "float8_e4m3fnuz": ("U8", 1),
    "float8_e5m2fnuz": ("U8", 1),
    "float8_e8m0fnu": ("U8", 1),
    "float4_e2m1fn_x2": ("U8", 1),
}
"""Types that safetensors lacks, or not every reader of it has: stored as so many numbers of another one."""


def require_torch() -> Any:
    """The torch module.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "cloister.torch needs PyTorch", hint="pip install 'cloister[torch]'"
        ) from error
    return torch


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def stored_as(tensor: torch.Tensor, what: str) -> tuple[str, list[int]]:
    """Type and shape of a tensor in a safetensors header.

    Raises:
        MalformedInput: a type that cannot be stored; ``what`` names the tensor.
    """
    name = dtype_name(tensor.dtype)
    if name in NATIVE:
        return NATIVE[name], list(tensor.shape)
    if name in VIEWED:
        stored, count = VIEWED[name]
        return stored, list(tensor.shape) + ([count] if count > 1 else [])
    raise MalformedInput(f"{what}: tensors of type {name} cannot be saved")


def empty_tensor(stored: str, shape: list[int], viewed: str | None, name: str) -> torch.Tensor:
    """A new tensor, its memory not set, for what a safetensors header describes.

    Args:
        viewed: the type in ``VIEWED`` that the tensor really has, or None.
    Raises:
        MalformedInput: ``viewed`` does not fit what is stored.
    """
    torch = require_torch()
    if viewed is None:
        dtype = next(known for known, theirs in NATIVE.items() if theirs == stored)
        return torch.empty(shape, dtype=getattr(torch, dtype))  # type: ignore[no-any-return]
    expected = VIEWED.get(viewed)
    if expected is None or expected[0] != stored or (expected[1] > 1 and shape[-1:] != [expected[1]]):
        raise MalformedInput(f"tensor {name[:80]!r} cannot be of type {viewed[:20]!r}")
    real = shape[:-1] if expected[1] > 1 else shape
    return torch.empty(real, dtype=getattr(torch, viewed))  # type: ignore[no-any-return]


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in main memory, without a copy; the tensor must outlive the view."""
    room = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr() if tensor.nbytes else 0)
    return memoryview(room).cast("B")
