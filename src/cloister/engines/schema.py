"""What a model takes and gives: names, datatypes and shapes of its tensors.

No array library is imported here: the frontend, which checks requests against a schema, loads none.

Source: Open Inference Protocol v2, "Model Metadata Response JSON Object" (datatypes, -1 for any size).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec

from cloister.errors import MalformedInput

MAX_TENSORS = 1024
MAX_DIMENSIONS = 32
ANY = -1
"""A size that is not fixed."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
    "FP64", "BYTES",
]  # fmt: skip
Size = Annotated[int, msgspec.Meta(ge=ANY, le=1 << 48)]

DATATYPE_OF: dict[str, Datatype] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
"""The protocol's name for each numpy type, by that type's name."""


class Tensor(Protocol):
    """An array of any library that names its types as numpy does."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output. The first dimension is the batch; -1 stands for any size."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    datatype: Datatype
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]

    def render(self) -> str:
        """For people: ``pixels FP32[-1,3,224,224]``."""
        return f"{self.name} {self.datatype}[{','.join(map(str, self.shape))}]"

    def admits(self, datatype: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this datatype and shape is one of these."""
        if datatype != self.datatype or len(shape) != len(self.shape):
            return False
        return all(own in (ANY, size) for own, size in zip(self.shape, shape, strict=True))


class Place(msgspec.Struct, frozen=True):
    """A dimension of an input."""

    input: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    axis: Annotated[int, msgspec.Meta(ge=0, lt=MAX_DIMENSIONS)]


class SharedSize(msgspec.Struct, frozen=True, omit_defaults=True):
    """An open size that the model takes to be the same in several places, or to have bounds.

    Compiled code does not look: with other sizes it reads what lies behind an input in memory.
    """

    places: Annotated[tuple[Place, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    least: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)] = 0
    most: Size = ANY

    def refuses(self, found: Sequence[int]) -> bool:
        """Whether the sizes that were found at the places differ, or are out of bounds."""
        return len(set(found)) > 1 or found[0] < self.least or (self.most != ANY and found[0] > self.most)

    def render(self, found: Sequence[int]) -> str:
        """For people: ``ids[1] of 64 and mask[1] of 2, which are one size``."""
        listed = " and ".join(
            f"{place.input}[{place.axis}] of {size}" for place, size in zip(self.places, found, strict=True)
        )
        if len(set(found)) > 1:
            return f"{listed}, which are one size"
        bound = f"at least {self.least}" if found[0] < self.least else f"at most {self.most}"
        return f"{listed}, which is {bound}"


class ModelSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """All inputs and outputs of a model."""

    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=MAX_TENSORS)]
    sizes: Annotated[tuple[SharedSize, ...], msgspec.Meta(max_length=MAX_TENSORS)] = ()
    """What is known of the inputs' open sizes."""

    def render(self) -> str:
        """The inputs, for people."""
        return ", ".join(spec.render() for spec in self.inputs)

    @property
    def joins(self) -> bool:
        """Whether rows of several requests can go through the model together."""
        return all(spec.shape[:1] == (ANY,) for spec in (*self.inputs, *self.outputs))

    @property
    def most_rows(self) -> int:
        """Up to how many rows the model takes at a time; ``ANY`` where there is no such bound."""
        bounds = [size.most for size in self.sizes if any(place.axis == 0 for place in size.places)]
        return min((most for most in bounds if most != ANY), default=ANY)

    def check(self, tensors: Mapping[str, Tensor]) -> int:
        """Whether these are the model's inputs; returns how many rows they have.

        A BF16 input may come as float32, which holds each of its values.

        Raises:
            MalformedInput: an input is missing, unknown, of another datatype or shape, or has another number
                of rows than the others. Says what was expected.
        """
        return self.check_declared(
            TensorSpec(name, self._datatype(name, tensor), tensor.shape) for name, tensor in tensors.items()
        )

    def check_declared(self, tensors: Iterable[TensorSpec]) -> int:
        """As ``check``, for tensors that are only described."""
        given = {tensor.name: tensor for tensor in tensors}
        wanted = {spec.name for spec in self.inputs}
        if given.keys() != wanted:
            missing = [name for name in wanted if name not in given]
            raise self.refusal(
                f"input {missing[0]!r} is missing" if missing else "there is an input that the model has not"
            )
        rows: int | None = None
        for spec in self.inputs:
            tensor = given[spec.name]
            if not spec.admits(tensor.datatype, tensor.shape):
                raise self.refusal(f"found {tensor.render()}")
            if 0 in tensor.shape[1:] and 0 not in spec.shape[1:]:
                # Any number of rows of it fits into no bytes, and what the model makes of them does not.
                raise self.refusal(f"found {tensor.render()}, which has no elements")
            if spec.shape and spec.shape[0] == ANY:
                if rows is not None and tensor.shape[0] != rows:
                    raise self.refusal("the inputs have different numbers of rows")
                rows = tensor.shape[0]
        if rows == 0:
            raise self.refusal("the inputs have no rows")
        for size in self.sizes:
            found = [given[place.input].shape[place.axis] for place in size.places]
            if size.refuses(found):
                raise self.refusal(f"found {size.render(found)}")
        return 1 if rows is None else rows

    def refusal(self, found: str) -> MalformedInput:
        """The error for inputs that are not the model's: what was found and what was expected."""
        return MalformedInput(f"{found[:256]}; expected {self.render()}")

    def input(self, name: str = "") -> TensorSpec:
        """The input of this name, or the only one.

        Raises:
            MalformedInput: there is no such input, or a name is needed.
        """
        for spec in self.inputs:
            if spec.name == name or (not name and len(self.inputs) == 1):
                return spec
        raise self.refusal(f"no input {name!r}" if name else "the name of the input is missing")

    def _datatype(self, name: str, tensor: Tensor) -> Datatype:
        found = DATATYPE_OF.get(tensor.dtype.name)
        if found is None:
            raise self.refusal(f"{name!r} is of a type that no tensor has")
        if found == "FP32" and any(spec.name == name and spec.datatype == "BF16" for spec in self.inputs):
            return "BF16"
        return found


def parse_schema(document: Any) -> ModelSchema:
    """A schema from plain values, as an archive's settings or a worker's message carry it.

    Raises:
        MalformedInput: not of that form, or two tensors of one name.
    """
    try:
        schema = msgspec.convert(document, ModelSchema)
    except msgspec.ValidationError as error:
        raise MalformedInput(f"not a model's schema: {error}") from error
    check_schema(schema)
    return schema


def check_schema(schema: ModelSchema) -> None:
    """Refuse what the types alone let pass.

    Raises:
        MalformedInput: two tensors of one name, a name that cannot be printed, or a size of no input.
    """
    for listed in (schema.inputs, schema.outputs):
        names = [spec.name for spec in listed]
        if len(set(names)) != len(names):
            raise MalformedInput("a model's schema has two tensors of one name")
        if not all(name.isprintable() for name in names):
            raise MalformedInput("a model's schema has a name that is not printable")
    dimensions = {spec.name: len(spec.shape) for spec in schema.inputs}
    if any(place.axis >= dimensions.get(place.input, 0) for size in schema.sizes for place in size.places):
        raise MalformedInput("a model's schema has a size of a dimension that no input has")
