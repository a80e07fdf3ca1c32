"""Picture to tensor: what TorchServe's handlers take from ``torchvision.transforms``, with the same results.

PyTorch's packages bind torchvision to one version of torch and bring a decoder for everything; these few
transforms need Pillow alone. Where torchvision is not installed, workers find them under its name.

Source: pytorch/vision, torchvision.transforms v1 on PIL images (rounding, order of sizes, scaling).
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Sequence
from typing import Any

torch: Any = importlib.import_module("torch")
try:
    Image: Any = importlib.import_module("PIL.Image")
    ImageOps: Any = importlib.import_module("PIL.ImageOps")
except ImportError as _error:
    raise ImportError("handlers of pictures need Pillow: install cloister[images]") from _error

Size = int | Sequence[int]


class InterpolationMode(enum.Enum):
    """How a picture is resized."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """Any function."""

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)


class Resize:
    """To a height and width; with one number, to that for the shorter side."""

    def __init__(
        self,
        size: Size,
        interpolation: InterpolationMode | int = InterpolationMode.BILINEAR,
        max_size: int | None = None,
        antialias: Any = True,
    ) -> None:
        self.size = size
        self.interpolation = interpolation
        self.max_size = max_size

    def __call__(self, image: Any) -> Any:
        width, height = image.size
        wanted = self._wanted(width, height)
        if wanted == (width, height):
            return image
        if Image.MAX_IMAGE_PIXELS is not None and wanted[0] * wanted[1] > 2 * Image.MAX_IMAGE_PIXELS:
            # As Pillow refuses what a file claims: a line of few bytes would become a wall.
            raise Image.DecompressionBombError("a picture would have too many pixels")
        mode = self.interpolation
        if isinstance(mode, InterpolationMode):
            mode = getattr(Image.Resampling, mode.name)
        return image.resize(wanted, mode)

    def _wanted(self, width: int, height: int) -> tuple[int, int]:
        size = [self.size] if isinstance(self.size, int) else list(self.size)
        if len(size) == 2:
            return size[1], size[0]
        short, long = sorted((width, height))
        new_short, new_long = size[0], int(size[0] * long / short)
        if self.max_size is not None and new_long > self.max_size:
            new_short, new_long = int(self.max_size * new_short / new_long), self.max_size
        return (new_short, new_long) if width <= height else (new_long, new_short)


class CenterCrop:
    """The middle of a picture; a smaller one gets a black border first."""

    def __init__(self, size: Size) -> None:
        self.height, self.width = (size, size) if isinstance(size, int) else (size[0], size[-1])

    def __call__(self, image: Any) -> Any:
        width, height = image.size
        if self.width > width or self.height > height:
            left, top = max(0, (self.width - width) // 2), max(0, (self.height - height) // 2)
            right = max(0, (self.width - width + 1) // 2)
            bottom = max(0, (self.height - height + 1) // 2)
            image = ImageOps.expand(image, border=(left, top, right, bottom), fill=0)
            width, height = image.size
            if (width, height) == (self.width, self.height):
                return image
        top, left = round((height - self.height) / 2.0), round((width - self.width) / 2.0)
        return image.crop((left, top, left + self.width, top + self.height))


class Grayscale:
    """Without colour, in one or three channels."""

    def __init__(self, num_output_channels: int = 1) -> None:
        self.num_output_channels = num_output_channels

    def __call__(self, image: Any) -> Any:
        gray = image.convert("L")
        return gray if self.num_output_channels == 1 else Image.merge("RGB", (gray, gray, gray))


class PILToTensor:
    """Channels, height, width; the values as they are."""

    def __call__(self, image: Any) -> Any:
        numpy: Any = importlib.import_module("numpy")
        values = torch.as_tensor(numpy.array(image, copy=True))
        values = values.view(image.size[1], image.size[0], len(image.getbands()))
        return values.permute((2, 0, 1))


class ToTensor:
    """Channels, height, width; bytes become numbers from 0 to 1."""

    def __call__(self, image: Any) -> Any:
        numpy: Any = importlib.import_module("numpy")
        if isinstance(image, numpy.ndarray):
            planes = image[:, :, None] if image.ndim == 2 else image
            tensor = torch.from_numpy(planes.transpose((2, 0, 1))).contiguous()
            return tensor.to(torch.get_default_dtype()).div(255) if tensor.dtype == torch.uint8 else tensor
        kind = getattr(numpy, _WIDE_MODES.get(image.mode, "uint8"))
        values = torch.from_numpy(numpy.array(image, kind, copy=True))
        if image.mode == "1":
            values = 255 * values
        values = values.view(image.size[1], image.size[0], len(image.getbands()))
        tensor = values.permute((2, 0, 1)).contiguous()
        if tensor.dtype == torch.uint8:
            return tensor.to(torch.get_default_dtype()).div(255)
        return tensor


class ConvertImageDtype:
    """Bytes to numbers from 0 to 1, or numbers of another length."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def __call__(self, tensor: Any) -> Any:
        if tensor.dtype == self.dtype:
            return tensor
        if not self.dtype.is_floating_point:
            raise TypeError("only conversion to floating point is there")
        converted = tensor.to(self.dtype)
        return converted if tensor.is_floating_point() else converted / torch.iinfo(tensor.dtype).max


class Normalize:
    """Less the mean, over the standard deviation, for each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        self.mean = mean
        self.std = std
        self.inplace = inplace

    def __call__(self, tensor: Any) -> Any:
        if not tensor.is_floating_point():
            raise TypeError(f"Input tensor should be a float tensor. Got {tensor.dtype}.")
        tensor = tensor if self.inplace else tensor.clone()
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype, device=tensor.device)
        std = torch.as_tensor(self.std, dtype=tensor.dtype, device=tensor.device)
        if (std == 0).any():
            raise ValueError("a standard deviation is zero")
        return tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


_WIDE_MODES = {"I": "int32", "I;16": "int16", "F": "float32"}
