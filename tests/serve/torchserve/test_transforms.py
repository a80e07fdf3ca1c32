"""Pictures become tensors as torchvision makes them."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from cloister.serve.torchserve import transforms  # noqa: E402


def picture(width: int, height: int, mode: str = "RGB") -> Any:
    """A picture whose every value tells where it is."""
    values = numpy.arange(width * height * 3, dtype=numpy.uint32).reshape(height, width, 3) * 7 % 251
    return Image.fromarray(values.astype(numpy.uint8)).convert(mode)


# (width, height) and size to (width, height): what torchvision 0.28 gives.
@pytest.mark.parametrize(
    ("given", "size", "wanted"),
    [
        ((400, 300), 256, (341, 256)),
        ((300, 400), 256, (256, 341)),
        ((100, 100), 256, (256, 256)),
        ((256, 400), 256, (256, 400)),
        ((90, 30), (10, 20), (20, 10)),
    ],
)
def test_resize(given: tuple[int, int], size: Any, wanted: tuple[int, int]) -> None:
    """The shorter side becomes the size, the longer one follows, rounded down."""
    assert transforms.Resize(size)(picture(*given)).size == wanted


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_lines_do_not_become_walls(size: tuple[int, int]) -> None:
    """Two hundred bytes of file, of which the shorter side's size would make four thousand million pixels."""
    with pytest.raises(Image.DecompressionBombError):
        transforms.Resize(256)(Image.new("L", size))


@pytest.mark.parametrize(
    ("given", "corner"), [((301, 250), (38, 13)), ((224, 224), (0, 0)), ((226, 225), (1, 0))]
)
def test_center_crop(given: tuple[int, int], corner: tuple[int, int]) -> None:
    """The middle is cut out; an odd pixel over goes as Python rounds it."""
    image = picture(*given)
    cropped = transforms.CenterCrop(224)(image)
    assert cropped.size == (224, 224)
    assert cropped.getpixel((0, 0)) == image.getpixel(corner)


def test_center_crop_of_a_small_picture() -> None:
    """A smaller picture gets a black border, the larger half of it right and below."""
    cropped = transforms.CenterCrop(5)(Image.new("L", (2, 2), 9))
    assert numpy.array(cropped).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 9, 9, 0, 0],
        [0, 9, 9, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("mode", "shape"), [("RGB", (3, 2, 4)), ("L", (1, 2, 4)), ("RGBA", (4, 2, 4)), ("1", (1, 2, 4))]
)
def test_to_tensor(mode: str, shape: tuple[int, ...]) -> None:
    """Channels first, from 0 to 1."""
    tensor = transforms.ToTensor()(picture(4, 2, mode))
    assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.float32)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    expected = numpy.array(picture(4, 2, mode), dtype=numpy.float32)
    scale = 1 if mode == "1" else 255
    assert torch.equal(tensor[0], torch.from_numpy(expected.reshape(2, 4, -1)[:, :, 0]) / scale)


def test_normalize() -> None:
    """Each channel has its own mean and deviation; bytes and a deviation of zero are refused."""
    tensor = torch.ones(2, 1, 1)
    result = transforms.Normalize((0.5, 1.0), (0.25, 2.0))(tensor)
    assert result.flatten().tolist() == [2.0, 0.0]
    assert tensor.flatten().tolist() == [1.0, 1.0]
    with pytest.raises(TypeError):
        transforms.Normalize((0,), (1,))(tensor.byte())
    with pytest.raises(ValueError, match="zero"):
        transforms.Normalize((0,), (0,))(tensor)


def test_others() -> None:
    """Grayscale, Lambda, PILToTensor and ConvertImageDtype do what they say."""
    pipeline = transforms.Compose(
        [
            transforms.Grayscale(3),
            transforms.Lambda(lambda image: image),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
        ]
    )
    tensor = pipeline(picture(3, 2))
    assert torch.equal(tensor[0], tensor[2])
    assert torch.equal(tensor, transforms.ToTensor()(transforms.Grayscale(3)(picture(3, 2))))
