"""``ts.torch_handler.vision_handler``: pictures, from files, base64 or lists of numbers, as one tensor.

Source: pytorch/serve 0.12, ts/torch_handler/vision_handler.py (names and behaviour).
"""

from __future__ import annotations

import abc
import base64
import io
from typing import Any, ClassVar

import torch

from cloister.serve.torchserve.attribution import IntegratedGradients
from cloister.serve.torchserve.base_handler import BaseHandler
from cloister.serve.torchserve.timer import timed
from cloister.serve.torchserve.transforms import Image


class VisionHandler(BaseHandler, abc.ABC):
    """Base of the handlers of pictures."""

    image_processing: ClassVar[Any]
    explanation_steps = 15

    def initialize(self, context: Any) -> None:
        """Load the model. Pictures over Pillow's limit of pixels are refused, unless told otherwise."""
        super().initialize(context)
        self.ig = IntegratedGradients(self.model)
        if not context.system_properties.get("limit_max_image_pixels"):
            Image.MAX_IMAGE_PIXELS = None

    @timed
    def preprocess(self, data: Any) -> Any:
        """One picture per request, stacked."""
        images = []
        for row in data:
            image = row.get("data") or row.get("body")
            if isinstance(image, str):
                image = base64.b64decode(image)
            if isinstance(image, bytes | bytearray):
                images.append(self.image_processing(Image.open(io.BytesIO(image))))
            else:
                images.append(torch.FloatTensor(image))
        return torch.stack(images).to(self.device)

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """How much each value of the picture counted, by integrated gradients."""
        steps = self.explanation_steps
        return self.ig.attribute(tensor_data, target=int(target), n_steps=steps).tolist()
