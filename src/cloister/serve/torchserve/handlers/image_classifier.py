"""``ts.torch_handler.image_classifier``: a picture's most likely classes.

Source: pytorch/serve 0.12, ts/torch_handler/image_classifier.py (sizes, constants, form of the answer).
"""

from __future__ import annotations

from typing import Any

import torch

from cloister.serve.torchserve.handlers.vision_handler import VisionHandler
from cloister.serve.torchserve.timer import timed
from cloister.serve.torchserve.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from cloister.serve.torchserve.util import map_class_to_label


class ImageClassifier(VisionHandler):
    """Answers label (or class number) to probability, for the ``topk`` most likely classes."""

    topk = 5
    # ImageNet's mean and deviation.
    image_processing = Compose(
        [
            Resize(256),
            CenterCrop(224),
            ToTensor(),
            Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )

    def set_max_result_classes(self, topk: int) -> None:
        self.topk = topk

    def get_max_result_classes(self) -> int:
        return self.topk

    @timed
    def postprocess(self, data: Any) -> Any:
        """The most likely classes of each picture."""
        probabilities, classes = torch.topk(torch.nn.functional.softmax(data, dim=1), self.topk, dim=1)
        return map_class_to_label(probabilities.tolist(), self.mapping, classes.tolist())
