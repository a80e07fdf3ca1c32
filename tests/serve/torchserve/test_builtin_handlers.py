"""The four built-in handlers answer in TorchServe's forms, without torchvision and torchtext."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.handlers import answer, ask, import_state, load, request, value
from tests.vectors import vector

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 6)
    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3)))
"""
SEGMENTS = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        return {"out": torch.stack([x[:, 0], x[:, 1], x[:, 2]], dim=1)}
"""
OBJECTS = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        return [{"boxes": torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]),
                 "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.75, 0.25])} for _ in x]
"""
TEXTS = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(20, 4)
        self.fc = torch.nn.Linear(4, 3)
    def forward(self, text, offsets):
        return self.fc(self.embedding(text, offsets))
"""


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with import_state():
        yield


def png(size: tuple[int, int] = (300, 280), color: tuple[int, int, int] = (200, 30, 90)) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, color).save(target, "PNG")
    return target.getvalue()


def built_in(folder: Path, handler: str, net: str, labels: Any = None) -> Any:
    """A built-in handler over this network with random weights."""
    name = f"h_net_{handler}"
    (folder / f"{name}.py").write_text(net)
    scope: dict[str, Any] = {}
    exec(net, scope)
    torch.manual_seed(1)
    torch.save(scope["Net"]().state_dict(), folder / "state.pt")
    if labels is not None:
        (folder / "index_to_name.json").write_text(json.dumps(labels))
    return load(folder, "", handler, modelFile=f"{name}.py", serializedFile="state.pt")


def test_image_classifier(tmp_path: Path) -> None:
    """The five most likely labels with their probabilities, the likeliest first, one answer a picture."""
    handler = built_in(
        tmp_path, "image_classifier", IMAGES, {str(i): [f"n{i}", f"label {i}"] for i in range(6)}
    )
    first, second = answer(
        handler, request(png(), "image/png"), request(png(color=(0, 0, 0)), "image/png", number=1)
    )
    labels = value(first)
    assert len(labels) == 5
    assert all(name.startswith("label ") for name in labels)
    assert list(labels.values()) == sorted(labels.values(), reverse=True)
    assert 0.5 < sum(labels.values()) < 1
    assert value(second) != labels


def test_forms_of_pictures(tmp_path: Path) -> None:
    """A file, base64 text, a form's field ``data`` and a list of numbers give the same answer."""
    handler = built_in(tmp_path, "image_classifier", IMAGES)
    expected = value(ask(handler, png(), "image/png"))
    assert value(ask(handler, base64.b64encode(png()), "text/plain")) == expected
    form = (
        b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n' + png() + b"\r\n--b--\r\n"
    )
    assert value(ask(handler, form, "multipart/form-data; boundary=b")) == expected
    module: Any = __import__("cloister.serve.torchserve.handlers.image_classifier", fromlist=["x"])
    tensor = module.ImageClassifier.image_processing(Image.open(io.BytesIO(png())))
    listed = value(ask(handler, json.dumps(tensor.tolist()).encode(), "application/json"))
    assert listed == pytest.approx(expected)


def test_what_is_no_picture(tmp_path: Path) -> None:
    """Bytes that are no picture, and a picture with more pixels than Pillow's limit, are refused."""
    handler = built_in(tmp_path, "image_classifier", IMAGES)
    assert ask(handler, b"no picture", "image/png").status == 400
    huge = png((1, 1)).replace(b"\x00\x00\x00\x01\x00\x00\x00\x01", b"\x00\x01\x00\x00\x00\x01\x00\x00", 1)
    assert ask(handler, huge, "image/png").status in (400, 503)


def test_explanation(tmp_path: Path) -> None:
    """A picture's explanation has its shape, and sums to the difference that the picture makes."""
    handler = built_in(tmp_path, "image_classifier", IMAGES)
    form = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + png() + b"\r\n"
    form += b'--b\r\nContent-Disposition: form-data; name="target"\r\n\r\n2\r\n--b--\r\n'
    explained = torch.tensor(value(ask(handler, form, "multipart/form-data; boundary=b", explain="True")))
    assert tuple(explained.shape) == (3, 224, 224)
    state = torch.load(tmp_path / "state.pt")
    module: Any = __import__("cloister.serve.torchserve.handlers.image_classifier", fromlist=["x"])
    mean = module.ImageClassifier.image_processing(Image.open(io.BytesIO(png()))).mean(dim=(1, 2))
    assert explained.sum().item() == pytest.approx((state["fc.weight"][2] @ mean).item(), abs=1e-3)


def test_image_segmenter(tmp_path: Path) -> None:
    """Each pixel's class and its probability."""
    answered = value(ask(built_in(tmp_path, "image_segmenter", SEGMENTS), png(), "image/png"))
    assert (len(answered), len(answered[0]), len(answered[0][0])) == (224, 224, 2)
    number, probability = answered[100][100]
    assert number == 0.0
    assert 1 / 3 < probability < 1


def test_object_detector(tmp_path: Path) -> None:
    """Each object over the threshold: its label with its box, and its score."""
    handler = built_in(tmp_path, "object_detector", OBJECTS, {"object_type_names": ["none", "cat", "dog"]})
    assert value(ask(handler, png(), "image/png")) == [{"cat": [0.0, 1.0, 2.0, 3.0], "score": 0.75}]


WORDS = ["<unk>", "i", "am", "not", "i am", "happy"]


@pytest.mark.parametrize("kind", ["dictionary", "list", "torchtext"])
def test_text_classifier(tmp_path: Path, kind: str) -> None:
    """A text's classes with their probabilities, by a vocabulary in any of its forms."""
    stoi = {word: number for number, word in enumerate(WORDS)}
    if kind == "torchtext":
        (tmp_path / "source_vocab.pt").write_bytes(_torchtext_vocabulary(stoi))
    else:
        torch.save(stoi if kind == "dictionary" else WORDS, tmp_path / "source_vocab.pt")
    handler = built_in(tmp_path, "text_classifier", TEXTS, {"0": "sad", "1": "glad", "2": "none"})
    answered = value(ask(handler, b"<p>I'm HAPPY!</p>"))
    assert set(answered) == {"sad", "glad", "none"}
    assert sum(answered.values()) == pytest.approx(1)
    numbers = torch.tensor([1, 2, 5, 4, 0])  # i, am, happy, then "i am" and an unknown pair
    scope: dict[str, Any] = {}
    exec(TEXTS, scope)
    net = scope["Net"]()
    net.load_state_dict(torch.load(tmp_path / "state.pt"))
    expected = torch.softmax(net(numbers, torch.tensor([0])), dim=1).tolist()[0]
    assert list(answered.values()) == pytest.approx(expected)
    explained = value(ask(handler, b"I'm happy", explain="True"))
    assert explained["words"] == ["i", "am", "happy"]


def _torchtext_vocabulary(stoi: dict[str, int]) -> bytes:
    """A pickle as torchtext's Vocab has it: a class that is not there, with ``stoi`` in its state."""
    import sys
    import types

    module = types.ModuleType("torchtext.vocab")
    module.Vocab = type("Vocab", (), {"__module__": "torchtext.vocab"})  # type: ignore[attr-defined]
    sys.modules["torchtext"], sys.modules["torchtext.vocab"] = types.ModuleType("torchtext"), module
    try:
        vocabulary = module.Vocab()  # type: ignore[attr-defined]
        vocabulary.stoi = stoi
        return pickle.dumps(vocabulary)
    finally:
        del sys.modules["torchtext"], sys.modules["torchtext.vocab"]


def test_vocabulary_does_not_run_code(tmp_path: Path) -> None:
    """A vocabulary that is a program is refused."""
    marker = tmp_path / "ran"
    program = type("P", (), {"__reduce__": lambda self: (Path.touch, (marker,))})()
    (tmp_path / "source_vocab.pt").write_bytes(pickle.dumps(program))
    with pytest.raises(ValueError, match="not loaded"):
        built_in(tmp_path, "text_classifier", TEXTS)
    assert not marker.exists()


def test_mnist_example(tmp_path: Path) -> None:
    """TorchServe's MNIST example, its own code with random weights, answers a digit for its pictures."""
    names = "examples_image_classifier_mnist_"
    folder = vector(f"torchserve/dev/{names}mnist.py").parent
    shutil.copy(folder / f"{names}mnist.py", tmp_path / "h_mnist.py")
    scope: dict[str, Any] = {"__name__": "h_mnist"}
    exec((tmp_path / "h_mnist.py").read_text(), scope)
    torch.manual_seed(1)
    torch.save(scope["Net"]().state_dict(), tmp_path / "mnist.pt")
    source = (folder / f"{names}mnist_handler.py").read_text()
    handler = load(tmp_path, source, modelFile="h_mnist.py", serializedFile="mnist.pt")
    for digit in (0, 7):
        body = (folder / f"{names}test_data_{digit}.png").read_bytes()
        assert value(ask(handler, body, "image/png")) in range(10)
        explained = value(ask(handler, body, "image/png", explain="True"))
        assert (len(explained), len(explained[0])) == (1, 28)
