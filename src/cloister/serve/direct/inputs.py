"""From a request to a model's inputs, in the worker.

============================ ====================================================
body                         becomes
============================ ====================================================
Open Inference Protocol      its tensors, which must be the model's
JSON                         ``documents`` says how
picture                      ``input.image`` says how
numpy's ``.npy``             the only input
============================ ====================================================
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from cloister.engines.engine import Array
from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.engines.spec import InputSpec
from cloister.errors import MalformedInput
from cloister.serve.direct.documents import read_columns, with_rows
from cloister.serve.direct.pictures import MAX_PIXELS, PictureReader, is_picture
from cloister.serve.incoming import Incoming
from cloister.serve.oip.datatypes import DATATYPES, decode_nested
from cloister.serve.oip.request import InferRequest

Form = Literal["named", "instances", "npy", "picture", "oip"]
NPY = b"\x93NUMPY"
MAX_PICTURES = 4 * MAX_PIXELS
"""Values of all pictures of one request; a file of few bytes may hold a picture of many."""
_FIELDS = ("body", "data", "file")
"""Which field of a form, or of TorchServe's requests, holds the input."""


class Given(NamedTuple):
    """One request's inputs."""

    arrays: dict[str, Array]
    rows: int
    form: Form
    single: bool
    """It came as one row without a dimension for rows, and is answered so."""


class InputReader:
    """Reads requests for one model."""

    def __init__(self, schema: ModelSchema, spec: InputSpec) -> None:
        self._schema = schema
        self._pictures: PictureReader | None = None
        self._tensor = ""
        if spec.image is not None:
            tensor = schema.input(spec.image.tensor)
            self._pictures, self._tensor = PictureReader(spec.image, tensor), tensor.name

    def read(self, request: Incoming) -> Given:
        """The inputs of a request that is prepared.

        Raises:
            MalformedInput: they are not the model's, or the body is in no form that is known here.
        """
        body = self._body(request)
        if isinstance(body, InferRequest):
            return self._checked(body.arrays, "oip", single=False)
        if isinstance(body, bytes | bytearray | memoryview):
            return self._read_bytes(body)
        if self._pictures is not None:
            rows = _pictures_in(body)
            if rows:
                return self._read_pictures(rows, "instances" if _has_instances(body) else "picture")
        return self._read_document(body)

    def _body(self, request: Incoming) -> Any:
        fields = request.fields
        for name in _FIELDS:
            if name in fields:
                return fields[name]
        raise self._schema.refusal("the request has no body")

    def _read_bytes(self, body: bytes | bytearray | memoryview) -> Given:
        if bytes(body[:6]) == NPY:
            spec = self._schema.input()
            array = _read_npy(body)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            single = array.ndim == len(spec.shape) - 1
            return self._checked({spec.name: array[None] if single else array}, "npy", single=single)
        if self._pictures is not None and is_picture(body):
            return self._read_pictures([body], "picture")
        known = "JSON, npy or a picture" if self._pictures is not None else "JSON or npy"
        raise self._schema.refusal(f"the body is not {known}")

    def _read_pictures(self, contents: list[Any], form: Form) -> Given:
        assert self._pictures is not None
        rows: list[Array] = []
        for content in contents:
            rows.append(self._pictures.read(_decoded(content)))
            if rows[-1].shape != rows[0].shape:
                raise MalformedInput("the pictures are of different sizes")
            if len(rows) * rows[0].size > MAX_PICTURES:
                raise MalformedInput(f"the pictures have more than {MAX_PICTURES} values together")
        array = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return self._checked({self._tensor: array}, form, single=form == "picture")

    def _read_document(self, document: Any) -> Given:
        columns = read_columns(document, self._schema)
        arrays: dict[str, Array] = {}
        singles: set[bool] = set()
        for spec in self._schema.inputs:
            try:
                array = decode_nested(spec.datatype, columns.values[spec.name])
            except MalformedInput as error:
                raise self._schema.refusal(f"input {spec.name!r}: {error.message}") from error
            shape = with_rows(array.shape, spec, columns.kind)
            if spec.shape:
                singles.add(shape != array.shape)
            arrays[spec.name] = array.reshape(shape)
        return self._checked(arrays, columns.kind, single=singles == {True})

    def _checked(self, arrays: dict[str, Array], form: Form, *, single: bool) -> Given:
        return Given(arrays, self._schema.check(arrays), form, single)


def zero_inputs(schema: ModelSchema) -> dict[str, Array] | None:
    """One row of zeros, to warm a model up; None where a size is not known."""
    arrays: dict[str, Array] = {}
    for spec in schema.inputs:
        sizes = (abs(spec.shape[0]), *spec.shape[1:]) if spec.shape else ()
        if -1 in sizes or spec.datatype == "BYTES" or math.prod(sizes) > 1 << 28:
            return None
        arrays[spec.name] = np.zeros(sizes, dtype_of(spec))
    return arrays


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy type that an engine gets for an input."""
    return DATATYPES[spec.datatype]


def _read_npy(body: bytes | bytearray | memoryview) -> Array:
    try:
        found: Array = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # (a header is Python's syntax, and what is wrong with it may raise anything)
        raise MalformedInput("not a numpy file, or one with Python objects") from error
    return found


def _pictures_in(document: Any) -> list[Any]:
    """Pictures as base64 text: one, or rows of them; empty if the document is something else."""
    found = document["instances"] if _has_instances(document) else [document]
    texts = [item["b64"] if isinstance(item, dict) and item.keys() == {"b64"} else item for item in found]
    return texts if all(isinstance(text, str) for text in texts) else []


def _has_instances(document: Any) -> bool:
    rows = document.get("instances") if isinstance(document, dict) else None
    return isinstance(rows, list) and bool(rows)


def _decoded(content: Any) -> bytes | bytearray | memoryview:
    if not isinstance(content, str):
        return content  # type: ignore[no-any-return]
    try:
        return base64.b64decode(
            content.partition(",")[2] if content.startswith("data:") else content, validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise MalformedInput("a picture's text is not base64") from error
