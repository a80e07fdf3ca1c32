"""ResNet-50 from JPEG bytes to the five best classes: a handler for servers, a loop when run by itself.

Usage: python resnet_handler.py PICTURE SECONDS BATCH_SIZE   (prints pictures per second,
and processor seconds for each)
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

try:
    from resnet50 import random_resnet50
except ImportError:  # by itself: beside an archive it is in it
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    from resnet50 import random_resnet50

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def decode(picture: bytes) -> torch.Tensor:
    """The middle of a JPEG as ResNet takes it: (3, 224, 224), normalized."""
    with Image.open(io.BytesIO(picture)) as image:
        image = image.convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
    pixels = torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float() / 255
    return (pixels - MEAN) / DEVIATION


class ResNetHandler:
    """Named by the archive's manifest."""

    def initialize(self, context: Any) -> None:
        self.model = random_resnet50()
        with torch.inference_mode():
            self.model(torch.zeros(1, 3, 224, 224))

    def handle(self, data: Any, context: Any) -> Any:
        with torch.inference_mode():
            best = self.model(torch.stack([decode(bytes(row["body"])) for row in data])).softmax(-1).topk(5)
        return [
            dict(zip(map(str, classes), values, strict=True))
            for classes, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def main() -> None:
    """The same code in a loop, without a server."""
    handler = ResNetHandler()
    handler.initialize(None)
    batch = [{"body": Path(sys.argv[1]).read_bytes()}] * int(sys.argv[3])
    handler.handle(batch, None)
    handler.handle(batch, None)
    started, used, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < float(sys.argv[2]):
        done += len(handler.handle(batch, None))
    print(done / (time.perf_counter() - started), (time.process_time() - used) / done)


if __name__ == "__main__":
    main()
