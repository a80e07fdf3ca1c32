"""ResNet-50 from JPEG and BERT-Large from token ids, as every server gets them; needs nothing of Cloister.

``Eager`` is PyTorch as its users write it, ``OpenVino`` the same weights in OpenVINO, several requests at a
time. A request is a JPEG, or the JSON of ``input_ids``; an answer is the five best classes, or the logits.
"""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

SEQUENCE = 128
EDGE, SIZE = 256, 224
MEAN = numpy.array([0.485, 0.456, 0.406], dtype="float32")[:, None, None]
DEVIATION = numpy.array([0.229, 0.224, 0.225], dtype="float32")[:, None, None]
FACTOR, OFFSET = numpy.float32(1) / (255 * DEVIATION), MEAN / DEVIATION


def decode_picture(picture: bytes) -> numpy.ndarray:
    """The middle of a JPEG as ResNet takes it: float32, (3, 224, 224), normalized.

    Shorter edge to 256, then the middle 224 of both, as torchvision's transforms do; only those are computed.
    """
    with Image.open(io.BytesIO(picture)) as image:
        image = image.convert("RGB")
        half = min(image.size) * SIZE / EDGE / 2
        x, y = image.width / 2, image.height / 2
        box = (x - half, y - half, x + half, y + half)
        pixels = numpy.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box))
    values = numpy.multiply(pixels.transpose(2, 0, 1), FACTOR, dtype="float32", order="C")
    values -= OFFSET
    return values


def decode_tokens(body: bytes | str | list[int] | dict[str, Any]) -> numpy.ndarray:
    """Token ids, from JSON or parsed already: int64, (SEQUENCE,)."""
    parsed = json.loads(body) if isinstance(body, bytes | bytearray | str) else body
    ids = numpy.array(parsed["input_ids"] if isinstance(parsed, dict) else parsed, dtype="int64")
    if ids.shape != (SEQUENCE,):
        raise ValueError(f"expected {SEQUENCE} token ids, found shape {ids.shape}")
    return ids


DECODE = {"resnet50": decode_picture, "bert-large": decode_tokens}


def render(task: str, row: numpy.ndarray) -> dict[str, float] | list[float]:
    """The answer to one request, from one row of logits."""
    if task == "bert-large":
        return [float(value) for value in row]
    best = numpy.argsort(row)[::-1][:5]
    powers = numpy.exp(row - row.max())
    return {str(number): float(powers[number] / powers.sum()) for number in best}


def build(task: str) -> Any:
    """The model of PyTorch without its weights, from the configuration of `transformers`."""
    import transformers

    if task == "resnet50":
        return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)).eval()
    config = transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, num_labels=2
    )
    return transformers.BertForSequenceClassification(config).eval()


class Eager:
    """PyTorch, eager, float32."""

    def __init__(self, task: str, folder: Path) -> None:
        import torch

        self._torch, self._task, self.decode = torch, task, DECODE[task]
        self._model = build(task)
        self._model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True, mmap=True))

    def predict(self, rows: list[numpy.ndarray]) -> list[Any]:
        """Answers to decoded requests, computed as one batch."""
        with self._torch.inference_mode():
            logits = self._model(self._torch.from_numpy(numpy.stack(rows))).logits.numpy()
        return [render(self._task, row) for row in logits]

    def answer(self, bodies: list[Any]) -> list[Any]:
        """Answers to requests as they came."""
        return self.predict([self.decode(body) for body in bodies])


class OpenVino:
    """OpenVINO with as many streams as cores, each request an inference of its own."""

    def __init__(self, task: str, folder: Path, precision: str, streams: int = 0, threads: int = 0) -> None:
        import openvino

        threads = threads or len(os.sched_getaffinity(0))
        self._task, self.decode, self.streams = task, DECODE[task], streams or threads
        core = openvino.Core()
        model = core.read_model(folder / ("int8.xml" if precision == "int8" else "fp32.xml"))
        shape = [1, 3, 224, 224] if task == "resnet50" else [1, SEQUENCE]
        model.reshape(shape)
        settings = {
            "NUM_STREAMS": str(self.streams),
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        self.compiled = core.compile_model(model, "CPU", settings)
        self._queue = openvino.AsyncInferQueue(self.compiled, self.streams)
        self._queue.set_callback(self._done)
        self._decoders = ThreadPoolExecutor(self.streams)

    @staticmethod
    def _done(request: Any, place: tuple[list[Any], int]) -> None:
        found, number = place
        found[number] = request.get_output_tensor().data[0].astype("float32")

    def answer(self, bodies: list[Any]) -> list[Any]:
        """Answers to requests as they came; decoding and inference overlap."""
        found: list[Any] = [None] * len(bodies)
        for number, row in enumerate(self._decoders.map(self.decode, bodies)):
            self._queue.start_async([row[None]], (found, number))
        self._queue.wait_all()
        return [render(self._task, row) for row in found]


def open_model(task: str, folder: str, form: str) -> Eager | OpenVino:
    """The model in the form that is asked for: ``eager``, or ``openvino-`` and a precision."""
    if form == "eager":
        return Eager(task, Path(folder))
    return OpenVino(task, Path(folder), form.removeprefix("openvino-"))
