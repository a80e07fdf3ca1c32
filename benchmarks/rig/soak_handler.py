"""The handler of all models of the soak; the model's name says what it does."""

from __future__ import annotations

import hashlib
import io
import json
import time
from typing import Any

import numpy

from cloister.serve.torchserve.handler_utils import send_intermediate_predict_response

PARTS = 5
SLOW_S = 0.02


def scaled(row: list[float]) -> list[float]:
    """What the model ``numbers`` answers to four numbers."""
    values = numpy.asarray(row, dtype="float64")
    if values.shape != (4,):
        raise ValueError(f"expected 4 numbers, found shape {values.shape}")
    doubled: list[float] = (values * 2).tolist()
    return doubled


class SoakHandler:
    """Named by the archive's manifest."""

    def initialize(self, context: Any) -> None:
        self._run = getattr(self, "_" + context.model_name)

    def handle(self, data: Any, context: Any) -> Any:
        return self._run([row.get("body") or row.get("data") for row in data], context)

    def _numbers(self, bodies: list[Any], context: Any) -> list[list[float]]:
        return [scaled(body) for body in bodies]

    def _images(self, bodies: list[Any], context: Any) -> list[dict[str, Any]]:
        from PIL import Image

        found = []
        for body in bodies:
            with Image.open(io.BytesIO(body)) as image:
                found.append({"size": list(image.size), "first": list(image.convert("RGB").getpixel((0, 0)))})
        return found

    def _parts(self, bodies: list[Any], context: Any) -> list[str]:
        for part in range(PARTS):
            texts = [f"{part}:{json.dumps(body)};" for body in bodies]
            send_intermediate_predict_response(texts, context.request_ids, "", 200, context)
            time.sleep(SLOW_S / PARTS)
        return ["end" for _ in bodies]

    def _digest(self, bodies: list[Any], context: Any) -> list[str]:
        time.sleep(SLOW_S)
        return [hashlib.sha256(bytes(body)).hexdigest() for body in bodies]
