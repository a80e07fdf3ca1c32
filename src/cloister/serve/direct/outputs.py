"""From a model's outputs to one request's answer, in the form that it asked in."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from cloister.engines.engine import Array
from cloister.engines.files import ModelFiles
from cloister.engines.schema import ModelSchema
from cloister.engines.spec import OutputSpec, TopSpec
from cloister.errors import ConfigError
from cloister.serve.direct.inputs import Given
from cloister.serve.frames import Headers
from cloister.serve.incoming import Incoming

JSON: Headers = [(b"content-type", b"application/json")]
NPY: Headers = [(b"content-type", b"application/x-npy")]
_encode = msgspec.json.Encoder().encode


class OutputWriter:
    """Renders answers of one model."""

    def __init__(self, schema: ModelSchema, spec: OutputSpec, files: ModelFiles) -> None:
        names = [output.name for output in schema.outputs]
        for name in spec.tensors:
            if name not in names:
                raise ConfigError(f"output.tensors: the model has no output {name!r}, but {', '.join(names)}")
        self._names = list(spec.tensors) or names
        self._top = None if spec.top is None else TopClasses(spec.top, names, files)

    def write(self, request: Incoming, given: Given, outputs: Mapping[str, Array]) -> tuple[bytes, Headers]:
        """Body and headers; the headers may be shared, so never to be changed.

        Raises:
            MalformedInput: the caller asked for an output that is not there.
            TypeError, ValueError: an output cannot be expressed in the form that was asked for.
        """
        if request.exchange is not None:
            body, headers = request.exchange.render({name: outputs[name] for name in self._names})
            return body, headers
        if given.form == "npy" and len(self._names) == 1:
            array = outputs[self._names[0]]
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, _one(array, given), allow_pickle=False)
            return buffer.getvalue(), NPY
        if self._top is not None:
            listed = self._top.name_rows(outputs)
            return _encode(
                {"predictions": listed} if given.form == "instances" else _one(listed, given)
            ), JSON
        return _encode(self._document(given, outputs)), JSON

    def _document(self, given: Given, outputs: Mapping[str, Array]) -> Any:
        values = {name: _plain(outputs[name]) for name in self._names}
        if given.form == "instances":
            if len(values) == 1:
                return {"predictions": values[self._names[0]]}
            rows = zip(*values.values(), strict=True)
            return {"predictions": [dict(zip(values, row, strict=True)) for row in rows]}
        if len(values) == 1:
            return _one(values[self._names[0]], given)
        return {name: _one(value, given) for name, value in values.items()}


class TopClasses:
    """The classes with the highest scores, by their names."""

    def __init__(self, spec: TopSpec, outputs: list[str], files: ModelFiles) -> None:
        self._tensor = spec.tensor or outputs[0]
        if self._tensor not in outputs:
            raise ConfigError(f"output.top: the model has no output {self._tensor!r}")
        self._count = spec.count
        self._softmax = spec.softmax
        self._labels = read_labels(files.read(spec.labels)) if spec.labels else {}

    def name_rows(self, outputs: Mapping[str, Array]) -> list[dict[str, float]]:
        """For each row, label (or number) of class to score, the highest first.

        Raises:
            ValueError: the output has not one score for each class.
        """
        scores = np.asarray(outputs[self._tensor], np.float32)
        if scores.ndim != 2:
            scores = scores.reshape(len(scores), -1)
        if self._softmax:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        count = min(self._count, scores.shape[1])
        found = []
        for row in scores:
            best = np.argpartition(-row, count - 1)[:count]
            best = best[np.argsort(-row[best], kind="stable")]
            named: dict[str, float] = {}
            for place in best:
                # Two classes may have one name (ImageNet's cranes): the higher score is the one that counts.
                named.setdefault(self._labels.get(int(place), str(place)), float(row[place]))
            found.append(named)
        return found


def read_labels(content: bytes | memoryview) -> dict[int, str]:
    """Names of classes by number, from ``index_to_name.json`` or a list.

    Raises:
        ConfigError: not of that form.
    """
    try:
        document = msgspec.json.decode(content)
        pairs = enumerate(document) if isinstance(document, list) else document.items()
        # ImageNet's file gives a synset before each name: ["n01440764", "tench"].
        return {int(key): str(name[-1] if isinstance(name, list) else name) for key, name in pairs}
    except (
        msgspec.DecodeError,
        ValueError,
        AttributeError,
        IndexError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise ConfigError("output.top.labels is not JSON of class numbers and names") from error


def _plain(array: Array) -> Any:
    return array.tolist()


def _one(rows: Any, given: Given) -> Any:
    """The row that answers a row. What is no row for a row is answered whole: a detector's finds, a sum."""
    plain = getattr(rows, "ndim", 1) == 0 or isinstance(rows, bool | int | float)
    return rows[0] if given.single and not plain and len(rows) < 2 else rows
