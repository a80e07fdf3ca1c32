"""Pictures as arrays, against the built-in handler's transforms, which are checked against torchvision's."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.engines.spec import ImageSpec, InputSpec
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError
from cloister.serve.direct import inputs
from cloister.serve.direct.pictures import PictureReader, is_picture
from cloister.serve.incoming import Head, Incoming

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
FLOATS = TensorSpec("x", "FP32", (-1, 3, 224, 224))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width: int, height: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (256, 256), (224, 224), (101, 2000)])
def test_as_torchvision_does(size: tuple[int, int]) -> None:
    """Resize, crop and normalize as the built-in image classifier, to one step of 255."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from cloister.serve.torchserve.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    content = picture(*size)
    steps = Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize(mean=MEAN, std=STD)])
    expected = steps(Image.open(io.BytesIO(content))).numpy()
    found = PictureReader(ImageSpec(resize=256, crop=224, mean=MEAN, std=STD), FLOATS).read(content)
    assert found.shape == (1, 3, 224, 224)
    assert found.flags.c_contiguous
    difference = np.abs(found[0] - expected)
    assert difference.max() < 1.01 / 255 / min(STD)
    assert difference.mean() < 0.3 / 255 / min(STD)  # of noise, which is the worst case


@pytest.mark.parametrize(
    ("spec", "tensor", "shape", "dtype"),
    [
        (ImageSpec(layout="nhwc"), TensorSpec("x", "UINT8", (1, 20, 30, 3)), (1, 20, 30, 3), "uint8"),
        (ImageSpec(color="gray"), TensorSpec("x", "FP32", (-1, 1, 20, 30)), (1, 1, 20, 30), "float32"),
        (ImageSpec(resize=(8, 6)), TensorSpec("x", "FP16", (-1, 3, 8, 6)), (1, 3, 8, 6), "float16"),
        (ImageSpec(crop=40), TensorSpec("x", "FP32", (-1, 3, 40, 40)), (1, 3, 40, 40), "float32"),
    ],
)
def test_layouts_and_types(spec: ImageSpec, tensor: TensorSpec, shape: tuple[int, ...], dtype: str) -> None:
    """Channels first or last, gray, of the input's own type; a crop that is too large has a black edge."""
    row = PictureReader(spec, tensor).read(picture(30, 20))
    assert (row.shape, row.dtype.name) == (shape, dtype)


def test_bgr_is_rgb_backwards() -> None:
    """The order of channels is the model's."""
    tensor = TensorSpec("x", "UINT8", (1, 3, 20, 30))
    rgb = PictureReader(ImageSpec(), tensor).read(picture(30, 20))
    bgr = PictureReader(ImageSpec(color="bgr"), tensor).read(picture(30, 20))
    np.testing.assert_array_equal(rgb[:, ::-1], bgr)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_is_taken(mode: str) -> None:
    """Gray, palettes, transparency and print colours become what the model takes."""
    content = picture(30, 20, mode, "TIFF")
    assert is_picture(content)
    assert PictureReader(ImageSpec(), TensorSpec("x", "FP32", (1, 3, 20, 30))).read(content).any()


@pytest.mark.parametrize(
    ("spec", "tensor"),
    [
        (ImageSpec(), TensorSpec("x", "FP32", (-1, 8))),
        (ImageSpec(), TensorSpec("x", "INT64", (-1, 3, 8, 8))),
        (ImageSpec(mean=(0.5, 0.5)), FLOATS),
        (ImageSpec(mean=(0.5,)), TensorSpec("x", "UINT8", (1, 3, 8, 8))),
    ],
)
def test_inputs_that_are_not_for_pictures(spec: ImageSpec, tensor: TensorSpec) -> None:
    """Other shapes and types, and numbers that do not go with the channels, are errors at the start."""
    with pytest.raises(ConfigError, match=r"input\.image"):
        PictureReader(spec, tensor)


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_broken_pictures_are_refused(noise: bytes, cut: int) -> None:
    """Noise, cut-off files and files with a changed middle end in one error."""
    reader = PictureReader(ImageSpec(), TensorSpec("x", "FP32", (1, 3, 20, 30)))
    whole = picture(30, 20, kind="JPEG")
    for content in (noise, whole[:cut], whole[:cut] + noise + whole[cut + len(noise) :]):
        with contextlib.suppress(MalformedInput):
            assert reader.read(content).shape[:2] == (1, 3)


def test_huge_pictures_are_not_decoded() -> None:
    """The size that a file claims is looked at first."""
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    import zlib

    header += zlib.crc32(header[12:]).to_bytes(4) + b"\x00\x00\x00\x00IDAT\x35\xaf\x06\x1e"
    with pytest.raises(MalformedInput, match="picture"):
        PictureReader(ImageSpec(), FLOATS).read(header)


@pytest.mark.parametrize("spec", [ImageSpec(resize=256), ImageSpec(resize=256, crop=300)])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_lines_do_not_become_walls(spec: ImageSpec, size: tuple[int, int]) -> None:
    """Two hundred bytes, of which ``resize`` would make four thousand million pixels."""
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    with pytest.raises(MalformedInput, match="pixels"):
        PictureReader(spec, FLOATS).read(buffer.getvalue())


def test_many_pictures_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is of a size that is taken, and their number is not the caller's to choose."""
    monkeypatch.setattr(inputs, "MAX_PICTURES", 3 * 4 * 20 * 30)
    schema = ModelSchema((TensorSpec("x", "FP32", (-1, 3, -1, -1)),), ())
    reader = inputs.InputReader(schema, InputSpec(image=ImageSpec()))
    text = base64.b64encode(picture(30, 20)).decode()
    for count in (4, 5):
        body = json.dumps({"instances": [{"b64": text}] * count}).encode()
        item = Incoming(1, "1", Head({}, "application/json", True, None), b"", body)
        item.prepare()
        if count == 4:
            assert reader.read(item).rows == 4
        else:
            with pytest.raises(MalformedInput, match="together"):
                reader.read(item)


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_in_instances_are_predictions(count: int) -> None:
    """However many there are: a client reads the same form for one as for two."""
    reader = inputs.InputReader(
        ModelSchema((TensorSpec("x", "FP32", (-1, 3, -1, -1)),), ()), InputSpec(image=ImageSpec())
    )
    text = base64.b64encode(picture(30, 20)).decode()
    for document, form in (({"instances": [{"b64": text}] * count}, "instances"), (text, "picture")):
        item = Incoming(1, "1", Head({}, "application/json", True, None), b"", json.dumps(document).encode())
        item.prepare()
        given = reader.read(item)
        assert (given.form, given.single) == (form, form == "picture")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_values_of_16_bits_keep_their_shades(kind: str) -> None:
    """A scan of 65,536 shades is not made white: each is the nearest of 256 below."""
    shades = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, kind)
    tensor = TensorSpec("x", "UINT8", (-1, 1, -1, -1))
    found = PictureReader(ImageSpec(color="gray"), tensor).read(buffer.getvalue())
    np.testing.assert_array_equal(found[0, 0], shades >> 8)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_known_white_are_refused(kind: type) -> None:
    """Nobody can say what of a TIFF of fractions is white: an answer to it would be a guess."""
    buffer = io.BytesIO()
    Image.fromarray(np.ones((8, 8), kind)).save(buffer, "TIFF")
    with pytest.raises(MalformedInput, match="no known white"):
        PictureReader(ImageSpec(), FLOATS).read(buffer.getvalue())


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the package is told what brings it."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError) as refused:
        PictureReader(ImageSpec(), FLOATS)
    assert "cloister[images]" in refused.value.hint
