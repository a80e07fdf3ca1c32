"""A picture as an array for a model: decode, resize, crop, normalize, lay out.

The same as torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize``, so that a model trained
with these sees what it was trained on, give or take one of 255 steps. Pillow and
numpy let go of the interpreter's lock while they work: several pictures are decoded beside each other, and
beside inferences.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from cloister.engines.engine import Array
from cloister.engines.schema import TensorSpec
from cloister.engines.spec import ImageSpec
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError

Content = bytes | bytearray | memoryview
MAX_PIXELS = 64 << 20
"""A picture with more is refused before it is decoded: 256 MB as RGBA."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's names of modes with more than 8 bits a value."""
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
"""How files of these formats begin."""


class PictureReader:
    """Makes one row of an input from a picture's bytes.

    Raises:
        ConfigError: the input is not one for pictures.
        MissingDependencyError: Pillow is not installed.
    """

    def __init__(self, spec: ImageSpec, tensor: TensorSpec) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise MissingDependencyError(
                "input.image needs Pillow", hint="pip install 'cloister[images]'"
            ) from error
        if len(tensor.shape) != 4:
            raise ConfigError(
                f"input.image needs an input of four dimensions, and there is {tensor.render()}"
            )
        self._image = Image
        self._spec = spec
        self._mode = "L" if spec.color == "gray" else "RGB"
        self._channels = 1 if spec.color == "gray" else 3
        self._filter = Image.Resampling[spec.filter.upper()]
        self._dtype = np.dtype(np.uint8 if tensor.datatype == "UINT8" else np.float32)
        self._final = {"FP16": np.float16, "FP64": np.float64}.get(tensor.datatype)
        if tensor.datatype not in ("UINT8", "FP32", "FP16", "FP64", "BF16"):
            raise ConfigError(f"input.image does not make {tensor.render()}")
        divisor = spec.scale if spec.scale is not None else (1.0 if tensor.datatype == "UINT8" else 255.0)
        mean, std = (
            np.asarray(listed or default, np.float32)
            for listed, default in ((spec.mean, (0,)), (spec.std, (1,)))
        )
        for listed in (mean, std):
            if listed.size not in (1, self._channels):
                raise ConfigError(f"input.image has {listed.size} numbers for {self._channels} channels")
        # (x / divisor - mean) / std in one multiplication and one subtraction.
        self._factor = (1.0 / (divisor * std)).astype(np.float32)
        self._offset = (mean / std).astype(np.float32)
        self._plain = bool((self._factor == 1).all() and (self._offset == 0).all())
        if self._dtype == np.uint8 and not self._plain:
            raise ConfigError("input.image normalizes, and the input is of whole numbers")

    def read(self, content: Content) -> Array:
        """The picture as float32 or uint8, (1, channels, height, width), or with channels last.

        Raises:
            MalformedInput: not a picture of a known format, broken, or too large.
        """
        pixels = self._pixels(content)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self._spec.color == "bgr":
            pixels = pixels[:, :, ::-1]
        if self._spec.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
            factor, offset = self._factor.reshape(-1, 1, 1), self._offset.reshape(-1, 1, 1)
        else:
            factor, offset = self._factor, self._offset
        if self._plain:
            row = np.ascontiguousarray(pixels, self._dtype)
        else:
            row = np.multiply(pixels, factor, dtype=np.float32, order="C")
            row -= offset
        row = row if self._final is None else row.astype(self._final)
        return row[None]

    def _pixels(self, content: Content) -> Array:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture: Any = self._image.open(io.BytesIO(content), formats=FORMATS)
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise MalformedInput(f"a picture of {width} x {height} is over {MAX_PIXELS} pixels")
                if picture.mode in WIDE:
                    picture = self._narrowed(picture)
                if picture.mode != self._mode:
                    picture = picture.convert(self._mode)
                return np.asarray(self._fit(picture))
        except MalformedInput:
            raise
        except Exception as error:  # (Pillow's plug-ins raise anything on broken files)
            if isinstance(error, MemoryError):
                raise
            raise MalformedInput("not a picture in a format that is known here, or a broken one") from error

    def _narrowed(self, picture: Any) -> Any:
        """16 bits as 8, the upper ones; Pillow's own conversion makes all that is not almost black white."""
        if not picture.mode.startswith("I;16") and not (picture.mode == "I" and picture.format == "PNG"):
            raise MalformedInput("a picture of fractions, or of numbers over 16 bits, has no known white")
        return self._image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))

    def _fit(self, picture: Any) -> Any:
        """Resized and cropped; of the resized picture, only what the crop keeps is made."""
        spec = self._spec
        width, height = picture.size
        new_width, new_height = (
            (width, height) if spec.resize is None else _resized(picture.size, spec.resize)
        )
        if spec.crop is None:
            return self._whole(picture, new_width, new_height) if spec.resize else picture
        crop_height, crop_width = (spec.crop, spec.crop) if isinstance(spec.crop, int) else spec.crop
        left, top = round((new_width - crop_width) / 2), round((new_height - crop_height) / 2)
        right, bottom = left + crop_width, top + crop_height
        if spec.resize is None:
            return picture.crop((left, top, right, bottom))
        if left < 0 or top < 0:
            return self._whole(picture, new_width, new_height).crop((left, top, right, bottom))
        across, down = width / new_width, height / new_height
        box = (left * across, top * down, min(right * across, width), min(bottom * down, height))
        return picture.resize((crop_width, crop_height), self._filter, box=box)

    def _whole(self, picture: Any, width: int, height: int) -> Any:
        """Resized. The longer edge grows with the shorter one: a line of few bytes would become a wall."""
        if width * height > MAX_PIXELS:
            raise MalformedInput(f"a picture would be {width} x {height}, which is over {MAX_PIXELS} pixels")
        return picture.resize((width, height), self._filter)


def _resized(size: tuple[int, int], target: int | tuple[int, ...]) -> tuple[int, int]:
    """Width and height after ``resize``: the shorter edge becomes the number, or both are given."""
    if not isinstance(target, int):
        return target[1], target[0]
    width, height = size
    if width <= height:
        return target, max(1, int(target * height / width))
    return max(1, int(target * width / height)), target


def is_picture(content: Content) -> bool:
    """Whether it begins like one."""
    return bytes(content[:8]).startswith(MAGIC)
