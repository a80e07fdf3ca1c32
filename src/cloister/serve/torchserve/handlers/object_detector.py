"""``ts.torch_handler.object_detector``: what is where in a picture.

Source: pytorch/serve 0.12, ts/torch_handler/object_detector.py (threshold, form of the answer).
"""

from __future__ import annotations

from typing import Any

from cloister.serve.torchserve.handlers.vision_handler import VisionHandler
from cloister.serve.torchserve.transforms import Compose, ToTensor
from cloister.serve.torchserve.util import map_class_to_label


class ObjectDetector(VisionHandler):
    """Answers label to box, with its score, for each object above ``threshold``."""

    image_processing = Compose([ToTensor()])
    threshold = 0.5

    def postprocess(self, data: Any) -> Any:
        """The objects of each picture; the model's output has boxes, labels and scores for each."""
        return [self._objects(row) for row in data]

    def _objects(self, row: Any) -> list[dict[str, Any]]:
        found = row["scores"] >= self.threshold
        boxes, labels, scores = (row[key][found].tolist() for key in ("boxes", "labels", "scores"))
        objects = []
        for box, label, score in zip(boxes, labels, scores, strict=True):
            (answer,) = map_class_to_label([[box]], self.mapping, [[label]])
            objects.append({**answer, "score": score})
        return objects
