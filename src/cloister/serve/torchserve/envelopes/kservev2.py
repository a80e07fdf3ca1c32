"""``request_envelope.kservev2``: KServe's protocol V2 around a handler, one request at a time.

Source: pytorch/serve 0.12, ts/torch_handler/request_envelope/kservev2.py.
"""

from __future__ import annotations

import json
from typing import Any

import numpy

from cloister.serve.torchserve.envelopes.base import BaseEnvelope, body_of

_DATATYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}


class KServev2Envelope(BaseEnvelope):
    """Tensors in, tensors of the same names out."""

    def __init__(self, handle_fn: Any) -> None:
        super().__init__(handle_fn)
        self._names: list[str] = []
        self._request_id = ""

    def parse_input(self, data: Any) -> Any:
        document = body_of(data[0])
        if isinstance(document, bytes | bytearray):
            document = json.loads(document)
        self._request_id = str(document.get("id") or "").strip()
        self._names = [item["name"] for item in document["inputs"]]
        return [{**item, "data": _values(item)} for item in document["inputs"]]

    def format_output(self, data: Any) -> Any:
        model = self.context.manifest["model"]
        outputs = [_tensor(item, name) for item, name in zip(data, self._names, strict=False)]
        return [
            {
                "id": self._request_id or self.context.get_request_id(0),
                "model_name": model.get("modelName"),
                "model_version": model.get("modelVersion"),
                "outputs": outputs,
            }
        ]


def _values(item: Any) -> Any:
    if item["datatype"] == "BYTES":
        return item["data"][0]
    return numpy.array(item["data"]).reshape(tuple(item["shape"])).tolist()


def _tensor(value: Any, name: str) -> dict[str, Any]:
    flat = numpy.array(value).flatten()
    datatype = _DATATYPES.get(str(flat.dtype), "BYTES")
    return {"name": name, "datatype": datatype, "data": flat.tolist(), "shape": list(flat.shape)}
