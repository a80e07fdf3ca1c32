"""What an archive's settings say of a model that needs no handler: its engine, its input and its output.

::

    engine: {kind: openvino, file: model.xml}
    input: {image: {resize: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
    output: {top: {count: 5, labels: index_to_name.json}}

It is read by the frontend, so it is bounded, and names files of its own archive only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from cloister.engines.schema import ModelSchema, check_schema
from cloister.errors import MalformedInput

SERVED_KEY = "engine"
"""The section that says that a model needs no handler."""
SECTIONS = (SERVED_KEY, "input", "output")
MAX_EDGE = 8192
MAX_THREADS = 4096

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_THREADS)]
Edge = Annotated[int, msgspec.Meta(ge=1, le=MAX_EDGE)]
# Not tuple[Edge, Edge]: msgspec 0.22 spoils the heap on a union of that with a bounded number.
Edges = Edge | Annotated[tuple[Edge, ...], msgspec.Meta(min_length=2, max_length=2)]
FileName = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Numbers = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=4)]


class EngineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``engine``: which engine runs which file, and how."""

    kind: str
    file: FileName
    precision: Literal["", "fp32", "bf16", "fp16", "int8"] = ""
    threads: Count = 0
    streams: Count = 0
    rows: Count = 0
    compiled: bool = False
    entry: str = ""
    form: ModelSchema | None = msgspec.field(default=None, name="schema")
    """The model's schema, where its file does not say it: TorchScript, weights alone."""


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``input.image``: a picture to one tensor of the model."""

    tensor: str = ""
    """Name of the input; may be left out where there is one only."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Edges | None = None
    """The shorter edge, or height and width."""
    crop: Edges | None = None
    """From the middle, after ``resize``: a square, or height and width."""
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    scale: float | None = None
    """What a value is divided by; 255 for inputs of floating point, 1 for whole numbers."""
    mean: Numbers | None = None
    std: Numbers | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``input``: what is made of a body that is not a request of tensors already."""

    image: ImageSpec | None = None


class TopSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``output.top``: the classes with the highest scores, as TorchServe's image classifier answers."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    tensor: str = ""
    """Name of the output; the first if left out."""
    labels: str = ""
    """A JSON file of the archive: ``{"0": "name"}``, ``{"0": ["id", "name"]}`` or a list."""
    softmax: bool = True
    """Whether scores are to become probabilities first."""


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``output``: what is answered to requests that do not ask for tensors."""

    top: TopSpec | None = None
    tensors: tuple[str, ...] = ()
    """Names of the outputs to answer; all if left out."""


class ServedSpec(msgspec.Struct, frozen=True):
    """All of it."""

    engine: EngineSpec
    input: InputSpec = InputSpec()
    output: OutputSpec = OutputSpec()


def parse_spec(settings: Mapping[Any, Any]) -> ServedSpec | None:
    """The three sections of a model's settings; None if it has no engine, and so a handler.

    Raises:
        MalformedInput: a section is not of the form above. Says where.
    """
    if SERVED_KEY not in settings:
        return None
    try:
        spec = msgspec.convert({name: settings[name] for name in SECTIONS if name in settings}, ServedSpec)
    except msgspec.ValidationError as error:
        raise MalformedInput(f"the model's settings: {error}") from error
    if spec.engine.form is not None:
        check_schema(spec.engine.form)
    _check_names(spec)
    return spec


def _check_names(spec: ServedSpec) -> None:
    labels = "" if spec.output.top is None else spec.output.top.labels
    entry = spec.engine.entry.partition(":")[0]
    for name in filter(None, (spec.engine.file, labels, entry)):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable() or "\\" in name:
            raise MalformedInput("the model's settings name a file outside of the archive")
    image = spec.input.image
    if image is not None and 0 in (image.scale, *(image.std or ())):
        raise MalformedInput("the model's settings divide by zero: input.image.scale or std")
