"""``ts.torch_handler.image_segmenter``: the most likely class of each pixel.

Source: pytorch/serve 0.12, ts/torch_handler/image_segmenter.py (form of the answer).
"""

from __future__ import annotations

from typing import Any

import torch

from cloister.serve.torchserve.handlers.image_classifier import ImageClassifier
from cloister.serve.torchserve.handlers.vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """Answers, for each pixel, the number of its class and its probability."""

    image_processing = ImageClassifier.image_processing

    def postprocess(self, data: Any) -> Any:
        """Height, width, (class, probability) for each picture; the model's output has them under ``out``."""
        best = torch.max(torch.nn.functional.softmax(data["out"], dim=1), dim=1)
        return torch.stack([best.indices.type(best.values.dtype), best.values], dim=3).tolist()
