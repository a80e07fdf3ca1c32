"""What surrounds the tensors of a checkpoint, as JSON instead of pickle: data only, nothing that runs.

================================ =================================================================
Python                           JSON
================================ =================================================================
None, bool, int, str, float      itself; ``{"float": "nan" | "inf" | "-inf"}`` for what JSON lacks
list                             array
dict                             ``{"dict": [[key, value], ...]}``; keys are None, bool, int, float, str
OrderedDict                      ``{"ordered": [[key, value], ...], "metadata": ...}``; the latter is what
                                 a ``state_dict`` keeps in ``_metadata``
tuple, torch.Size                ``{"tuple": [...]}``, ``{"size": [...]}``
bytes                            ``{"bytes": base64}``
torch.dtype, torch.device        ``{"dtype": "float32"}``, ``{"device": "cpu"}``
Tensor                           ``{"tensor": name}``; ``"requires_grad": true`` where it does
Parameter                        ``{"tensor": name, "parameter": requires_grad}``
================================ =================================================================

The same tensor in two places has one name, and comes back as the same tensor: tied weights stay tied. Tensors
that share only a part of their memory come back separate.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cloister.errors import MalformedInput
from cloister.torch.dtypes import dtype_name, require_torch

if TYPE_CHECKING:
    import torch

RESERVED = "__metadata__"
_SCALARS = (type(None), bool, int, float, str)


class Flattened:
    """A checkpoint taken apart: ``tensors`` by name, and ``structure`` around them.

    Raises:
        MalformedInput: something that only pickle could save; the message says what and where.
    """

    def __init__(self, checkpoint: Any) -> None:
        self._torch = require_torch()
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        try:
            self.structure = self._value(checkpoint, ())
        except RecursionError as error:
            raise MalformedInput("the checkpoint is nested too deeply, or contains itself") from error

    def _value(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if isinstance(value, self._torch.Tensor):
            return self._tensor(value, path)
        if kind is float and not math.isfinite(value):
            return {"float": str(value)}
        if kind is str:
            return _unicode(value, path)
        if kind in _SCALARS:
            return value
        if kind is dict:
            return {"dict": self._pairs(value, path)}
        if kind is OrderedDict:
            made = {"ordered": self._pairs(value, path)}
            if hasattr(value, "_metadata"):
                made["metadata"] = self._value(value._metadata, (*path, "_metadata"))
            return made
        if kind is list or kind is tuple or kind is self._torch.Size:
            items = [self._value(item, (*path, str(index))) for index, item in enumerate(value)]
            return items if kind is list else {"tuple" if kind is tuple else "size": items}
        if kind is bytes:
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if kind is self._torch.dtype:
            return {"dtype": dtype_name(value)}
        if kind is self._torch.device:
            return {"device": str(value)}
        raise MalformedInput(
            f"{_shown(path)} is a {kind.__module__}.{kind.__qualname__}, which only pickle could save",
            hint="save tensors, numbers, text, lists, tuples and dicts",
        )

    def _pairs(self, value: dict[Any, Any], path: tuple[str, ...]) -> list[list[Any]]:
        pairs = []
        for key, item in value.items():
            if type(key) not in _SCALARS or (type(key) is float and not math.isfinite(key)):
                raise MalformedInput(f"{_shown(path)} has a key that is a {type(key).__qualname__}")
            if type(key) is str:
                _unicode(key, path)
            pairs.append([key, self._value(item, (*path, str(key)))])
        return pairs

    def _tensor(self, tensor: torch.Tensor, path: tuple[str, ...]) -> dict[str, Any]:
        self._check(tensor, path)
        node: dict[str, Any] = {"tensor": self._name(tensor, path)}
        if isinstance(tensor, self._torch.nn.Parameter):
            node["parameter"] = tensor.requires_grad
        elif tensor.requires_grad:
            node["requires_grad"] = True
        return node

    def _check(self, tensor: torch.Tensor, path: tuple[str, ...]) -> None:
        if type(tensor) not in (self._torch.Tensor, self._torch.nn.Parameter):
            raise MalformedInput(f"{_shown(path)} is a {type(tensor).__qualname__}: save a plain tensor")
        if tensor.layout is not self._torch.strided or tensor.is_quantized or tensor.is_nested:
            raise MalformedInput(f"{_shown(path)} is a sparse, quantized or nested tensor: save a dense one")
        if tensor.is_meta:
            raise MalformedInput(f"{_shown(path)} is on the meta device: it has no content to save")

    def _name(self, tensor: torch.Tensor, path: tuple[str, ...]) -> str:
        """The name of the tensor's content, which is another one's where both are the same memory."""
        identity: tuple[Any, ...] = (id(tensor),)
        if tensor.numel() and not tensor.is_conj() and not tensor.is_neg():
            identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if identity not in self._names:
            name = base = ".".join(path) or "tensor"
            number = 0
            while name in self.tensors or name == RESERVED:
                number += 1
                name = f"{base}~{number}"
            self._names[identity] = name
            self.tensors[name] = tensor.detach()
        return self._names[identity]


class Rebuilt:
    """``value``: a checkpoint put together again from its structure and its tensors.

    Raises:
        MalformedInput: not such a structure, or not of these tensors.
    """

    def __init__(self, structure: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self._torch = require_torch()
        self._tensors = tensors
        self._made: dict[tuple[str, str], torch.Tensor] = {}
        try:
            self.value = self._value(structure)
        except (RecursionError, ValueError, TypeError, KeyError, binascii.Error) as error:
            raise MalformedInput(f"checkpoint structure: {type(error).__name__}") from error
        unused = tensors.keys() - {name for name, _ in self._made}
        if unused:
            raise MalformedInput(f"checkpoint structure does not name tensor {min(unused)[:80]!r}")

    def _value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._value(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            return self._tensor(node)
        if "ordered" in node:
            made = self._pairs(node["ordered"], OrderedDict())
            if "metadata" in node:
                made._metadata = self._value(node["metadata"])  # type: ignore[attr-defined]
            return made
        ((tag, content),) = node.items()
        if tag == "dict":
            return self._pairs(content, {})
        if tag in ("tuple", "size"):
            items = [self._value(item) for item in content]
            return tuple(items) if tag == "tuple" else self._torch.Size(items)
        if tag == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "bytes":
            return base64.b64decode(content, validate=True)
        if tag == "dtype" and isinstance(found := getattr(self._torch, content, None), self._torch.dtype):
            return found
        if tag == "device" and isinstance(content, str):
            return self._device(content)
        raise MalformedInput(f"checkpoint structure: unknown {str(tag)[:40]!r}")

    def _device(self, name: str) -> torch.device:
        try:
            return self._torch.device(name)  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise MalformedInput(f"checkpoint structure: unknown device {name[:40]!r}") from error

    def _pairs(self, pairs: Any, into: dict[Any, Any]) -> dict[Any, Any]:
        for key, item in pairs:
            into[key] = self._value(item)
        return into

    def _tensor(self, node: dict[str, Any]) -> torch.Tensor:
        name = node["tensor"]
        flavour = next((key for key in ("parameter", "requires_grad") if key in node), "")
        if node.keys() - {"tensor", flavour}:
            raise MalformedInput(f"checkpoint structure: unknown fields beside tensor {str(name)[:80]!r}")
        if name not in self._tensors:
            raise MalformedInput(f"checkpoint structure names {str(name)[:80]!r}: no such tensor")
        if (name, flavour) not in self._made:
            tensor = self._tensors[name]
            if flavour == "parameter":
                tensor = self._torch.nn.Parameter(tensor, requires_grad=node["parameter"] is True)
            elif flavour:
                tensor = tensor.detach().requires_grad_(node["requires_grad"] is True)
            self._made[name, flavour] = tensor
        return self._made[name, flavour]


def render(document: Any) -> str:
    """Compact JSON."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def parse(text: str) -> Any:
    """Inverse of ``render``.

    Raises:
        MalformedInput: not JSON.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("checkpoint structure: not JSON") from error


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _unicode(text: str, path: tuple[str, ...]) -> str:
    """The text; JSON would join half characters to whole ones."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedInput(f"{_shown(path)} has text that is not Unicode") from error
    return text


def _shown(path: tuple[str, ...]) -> str:
    return "checkpoint" + "".join(f"[{step[:60]!r}]" for step in path[:20])
