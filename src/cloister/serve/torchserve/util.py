"""``ts.utils.util``: helpers that TorchServe's handlers import.

Source: pytorch/serve 0.12, ts/utils/util.py (names and behaviour).
"""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cloister.serve.manifest import parse_settings

CLEANUP_REGEX = re.compile("<.*?>|&([a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")
"""HTML tags and entities."""


class PT2Backend(enum.StrEnum):
    """Backends of ``torch.compile`` that TorchServe takes."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


class PredictionException(Exception):
    """Raised by a handler to answer with a status and a message of its own choice."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Classes that the module itself defines, optionally only subclasses of ``parent_class``."""
    classes = [item for _, item in inspect.getmembers(module, inspect.isclass)]
    own = [item for item in classes if item.__module__ == module.__name__]
    return [item for item in own if parent_class is None or issubclass(item, parent_class)]


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether ``torch.compile`` can be asked for this backend."""
    if any(backend == member.value for member in PT2Backend):
        return True
    warnings.warn(f"{backend} is not a supported backend", stacklevel=2)
    return False


def load_label_mapping(mapping_file_path: str) -> dict[str, str] | None:
    """Class number to label from ``index_to_name.json``; None where there is no such file."""
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    mapping = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(mapping, dict):
        raise ValueError("index_to_name.json must be one JSON object")
    names = mapping.get("object_type_names")
    if isinstance(names, list):
        return {str(index): str(name) for index, name in enumerate(names)}
    labels = {key: value[-1] if isinstance(value, list) else value for key, value in mapping.items()}
    if not all(isinstance(label, str) for label in labels.values()):
        raise ValueError("labels in index_to_name.json must be strings or lists of strings")
    return labels


def map_class_to_label(
    probs: Sequence[Sequence[float]],
    mapping: Mapping[str, str] | None = None,
    lbl_classes: Iterable[Iterable[Any]] | None = None,
) -> list[dict[str, float]]:
    """For each row of probabilities, label (or class number) to probability."""
    if not isinstance(probs, list):
        raise TypeError("convert classes to a list before mapping them")
    if mapping is not None and not isinstance(mapping, dict):
        raise TypeError("the mapping must be a dict")
    rows = itertools.repeat(range(len(probs[0])), len(probs)) if lbl_classes is None else lbl_classes
    return [
        {str(c) if mapping is None else mapping[str(c)]: p for c, p in zip(classes, row, strict=False)}
        for classes, row in zip(rows, probs, strict=False)
    ]


def get_yaml_config(yaml_file_path: str) -> dict[str, Any]:
    """A YAML file's one mapping, of plain values."""
    return parse_settings(Path(yaml_file_path).read_bytes())


def deprecated(
    version: Any, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that warns when the function is called."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def warning(*args: Any, **kwargs: Any) -> Any:
            text = f"{function.__name__} is deprecated in {version} and moved to {replacement}"
            warnings.warn(text, klass, stacklevel=2)
            return function(*args, **kwargs)

        return warning

    return decorate
