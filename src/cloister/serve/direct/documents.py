"""What a JSON document says about a model's inputs. No array library is imported here: the frontend asks too.

============================================ ================================================================
document                                     meaning
============================================ ================================================================
``{"ids": [...], "mask": [...]}``            the inputs by name
``[...]``                                    the only input
``{"inputs": ...}``                          either of these (TensorFlow Serving's column form)
``{"instances": [row, ...]}``                rows one by one, each a value or an object by name (KServe's v1)
============================================ ================================================================

An input may come without its first dimension: it is one row then, and so is the answer.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.errors import MalformedInput
from cloister.serve.oip.nested import flatten

Kind = Literal["named", "instances"]
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})


class Columns(NamedTuple):
    """Nested lists for each input."""

    values: dict[str, Any]
    kind: Kind


def read_columns(document: Any, schema: ModelSchema) -> Columns:
    """The inputs that a document gives.

    Raises:
        MalformedInput: it is of none of these forms. Says what was expected.
    """
    wanted = {spec.name for spec in schema.inputs}
    if isinstance(document, dict) and document.keys() == {"inputs"} and "inputs" not in wanted:
        document = document["inputs"]  # once: what is nested further is no form of these
    if isinstance(document, dict):
        if document.keys() == wanted:
            return Columns(document, "named")
        if document.keys() == {"instances"}:
            return Columns(_by_name(document["instances"], schema), "instances")
        if document.keys() & wanted:
            missing = sorted(wanted - document.keys())
            raise schema.refusal(
                f"input {missing[0]!r} is missing" if missing else "there is an input that the model has not"
            )
    elif isinstance(document, list) and len(wanted) == 1:
        return Columns({schema.inputs[0].name: document}, "named")
    raise schema.refusal("this is no JSON of the model's inputs")


def check_columns(columns: Columns, schema: ModelSchema) -> None:
    """Refuse shapes and types that are not the model's, without making arrays.

    Raises:
        MalformedInput: with what was found and expected.
    """
    declared = []
    for spec in schema.inputs:
        value = columns.values[spec.name]
        flat, lengths = flatten(value)
        shape = tuple(lengths) if isinstance(value, list | tuple) else ()
        found = found_type(flat, spec)
        if found is None:
            raise schema.refusal(f"input {spec.name!r} has elements that are not {spec.datatype}")
        declared.append(TensorSpec(spec.name, spec.datatype, with_rows(shape, spec, columns.kind)))
    schema.check_declared(declared)


def with_rows(shape: tuple[int, ...], spec: TensorSpec, kind: Kind) -> tuple[int, ...]:
    """``shape`` with a first dimension of 1 where it is one row without it; instances are rows already."""
    return (1, *shape) if kind == "named" and len(shape) == len(spec.shape) - 1 else shape


def found_type(flat: list[Any], spec: TensorSpec) -> str | None:
    """The datatype of ``spec`` if the elements can be of it, as far as their types tell."""
    types = set(map(type, flat))
    if spec.datatype == "BYTES":
        fits = types <= {str, bytes}
    elif spec.datatype == "BOOL":
        fits = types <= {bool, int}
    elif spec.datatype in _FLOATS:
        fits = types <= {int, float}
    else:
        fits = types <= {int, float} and all(type(item) is int or item.is_integer() for item in flat)
    return spec.datatype if fits else None


def _by_name(rows: Any, schema: ModelSchema) -> dict[str, Any]:
    if not isinstance(rows, list) or not rows:
        raise MalformedInput("instances is not a list of rows")
    names = [spec.name for spec in schema.inputs]
    if all(isinstance(row, dict) for row in rows):
        if any(row.keys() != set(names) for row in rows):
            raise schema.refusal("a row of instances has other inputs")
        return {name: [row[name] for row in rows] for name in names}
    if len(names) > 1:
        raise schema.refusal("rows of instances are no objects by name")
    return {names[0]: rows}
