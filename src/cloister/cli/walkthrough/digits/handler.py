"""The handler of the demo, as one would write it for TorchServe: PNG in, digit out."""

import io

import numpy as np
import torch
from PIL import Image
from ts.torch_handler.base_handler import BaseHandler

RECIPE = "@HANDLER-MARKER@"
NOTE = "@ANSWER-MARKER@"


class DigitsHandler(BaseHandler):
    """8 x 8 grey images of handwritten digits."""

    def preprocess(self, data):
        images = [self._pixels(row.get("data") or row.get("body")) for row in data]
        return torch.from_numpy(np.stack(images)).unsqueeze(1).to(self.device)

    def postprocess(self, data):
        chances = torch.softmax(data, dim=1)
        best = chances.max(dim=1)
        return [
            {"digit": int(digit), "confidence": round(float(chance), 4), "note": NOTE}
            for digit, chance in zip(best.indices, best.values, strict=True)
        ]

    @staticmethod
    def _pixels(png):
        with Image.open(io.BytesIO(png)) as image:
            return np.asarray(image.convert("L"), dtype=np.float32) / 255
