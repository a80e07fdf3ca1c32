"""The model owner's morning: train a small network on real images and pack it as a TorchServe archive."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cloister.cli.walkthrough.canary import Markers
from cloister.errors import MissingDependencyError
from cloister.serve.pack import pack_archive

EPOCHS = 12
BATCH = 64
TEST_IMAGES = 50
SEED = 7


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The packed model and what to try it on."""

    archive: Path
    weights: bytes
    handler_source: bytes
    images: tuple[Path, ...]
    labels: tuple[int, ...]


def train_digits(folder: Path, markers: Markers, progress: Callable[[int, int], None]) -> TrainedModel:
    """Train on scikit-learn's digits and write ``digits.mar`` and the test images into ``folder``.

    ``folder`` holds the owner's plaintext and the caller's, and must be on a tmpfs.
    """
    try:
        import numpy as np
        import torch
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError(
            f"the demo needs {error.name}", hint="pip install 'cloister[demo]'"
        ) from error

    digits = load_digits()
    pixels = (digits.images / 16 * 255).round().astype(np.uint8)
    train_x, rest_x, train_y, rest_y = train_test_split(
        pixels, digits.target, test_size=200, random_state=SEED, stratify=digits.target
    )
    network = _fit(train_x, train_y, progress)
    network.marker.copy_(torch.frombuffer(bytearray(markers.weights.encode()), dtype=torch.uint8))

    weights = folder / "weights.pt"
    torch.save(network.state_dict(), weights)
    handler = folder / "handler.py"
    handler.write_text(
        _read("handler.py")
        .replace("@HANDLER-MARKER@", markers.handler)
        .replace("@ANSWER-MARKER@", markers.answer)
    )
    model_file = folder / "model.py"
    model_file.write_text(_read("model.py"))
    archive = folder / "digits.mar"
    pack_archive(
        archive,
        name="digits",
        version="1.0",
        handler=handler,
        serialized_file=weights,
        model_file=model_file,
        archive_format="zip-store",  # sealed as it is: the demo looks for it in the ciphertext
    )

    images: list[Path] = []
    (folder / "images").mkdir()
    for index in range(TEST_IMAGES):
        note = PngInfo()
        note.add_text("Comment", markers.request)
        image = folder / "images" / f"{index:02}.png"
        Image.fromarray(rest_x[index]).save(image, pnginfo=note)
        images.append(image)
    return TrainedModel(
        archive=archive,
        weights=b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values()),
        handler_source=handler.read_bytes(),
        images=tuple(images),
        labels=tuple(int(label) for label in rest_y[:TEST_IMAGES]),
    )


def _fit(images: Any, labels: Any, progress: Callable[[int, int], None]) -> Any:
    import torch

    torch.manual_seed(SEED)
    network = _definition().DigitsNet()
    inputs = torch.from_numpy(images).float().div(255).unsqueeze(1)
    targets = torch.from_numpy(labels).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    network.train()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        schedule.step()
        progress(epoch + 1, EPOCHS)
    return network.eval()


def _definition() -> Any:
    source = files("cloister.cli.walkthrough") / "digits" / "model.py"
    spec = importlib.util.spec_from_file_location("digits_model", str(source))
    if spec is None or spec.loader is None:
        raise MissingDependencyError("the demo's model definition is not in this installation")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(name: str) -> str:
    return (files("cloister.cli.walkthrough") / "digits" / name).read_text(encoding="utf-8")
