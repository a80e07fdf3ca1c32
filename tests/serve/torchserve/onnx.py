"""A small ONNX model, written byte by byte: the package that writes them is not needed for one operator."""

from __future__ import annotations

import struct


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def scaling_model(factor: float) -> bytes:
    """ModelProto of ``y = x * factor`` for x of two dimensions of any length (onnx.proto3, opset 13)."""
    shape = _field(1, _field(2, b"n")) + _field(1, _field(2, b"k"))
    tensor = _field(1, _field(1, 1) + _field(2, shape))
    node = _field(1, b"x") + _field(1, b"k") + _field(2, b"y") + _field(4, b"Mul")
    constant = _field(2, 1) + _field(8, b"k") + _field(9, struct.pack("<f", factor))
    graph = _field(1, node) + _field(2, b"g") + _field(5, constant)
    graph += _field(11, _field(1, b"x") + _field(2, tensor)) + _field(12, _field(1, b"y") + _field(2, tensor))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))
