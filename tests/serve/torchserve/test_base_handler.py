"""``BaseHandler`` loads every kind of model that TorchServe's does, and runs no code from weights."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.handlers import ask, import_state, load, value
from tests.serve.torchserve.onnx import scaling_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

NET = "import torch\nclass Net(torch.nn.Linear):\n  def __init__(s): super().__init__(2, 1, bias=False)\n"
SOURCE = """
from ts.torch_handler.base_handler import BaseHandler
class Mine(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([d["body"] for d in data])
    def describe_handle(self):
        return {"device": str(self.get_device())}
    def get_insights(self, tensor, inputs, target):
        return [[inputs, target]]
"""
JSON = "application/json"


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with import_state():
        yield


@pytest.fixture
def layer(tmp_path: Path) -> Any:
    """A model that adds its two inputs, in every form."""
    (tmp_path / "h_net.py").write_text(NET)
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    torch.save(layer.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.trace(layer, torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    from safetensors.torch import save_file

    save_file(layer.state_dict(), str(tmp_path / "state.safetensors"))
    return layer


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize(
    "model",
    [
        {"modelFile": "h_net.py", "serializedFile": "state.pt"},
        {"modelFile": "h_net.py", "serializedFile": "old.pt"},
        {"modelFile": "h_net.py", "serializedFile": "state.safetensors"},
        {"serializedFile": "script.pt"},
    ],
)
def test_kinds_of_models(tmp_path: Path, model: dict[str, str]) -> None:
    """Eager with its state in any format, and TorchScript, answer alike."""
    outcome = ask(load(tmp_path, SOURCE, **model), b"[1.0, 2.0]", JSON)
    assert outcome.body == b"[\n  3.0\n]"


def test_onnx(tmp_path: Path) -> None:
    """An ONNX model runs by onnxruntime."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(scaling_model(2.0))
    handler = load(tmp_path, SOURCE, serializedFile="model.onnx")
    assert value(ask(handler, b"[1.0, 2.0]", JSON)) == [2.0, 4.0]


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize(
    ("settings", "compiled"),
    [
        ("pt2: eager", {"backend": "eager"}),
        ("pt2: {backend: eager, dynamic: true}", {"backend": "eager", "dynamic": True}),
        ("pt2: {compile: {enable: true, backend: eager}}", {"backend": "eager"}),
        ("pt2: {compile: {enable: false, backend: eager}}", None),
        ("pt2: {export: {aot_compile: false}}", None),
        ("pt2: no_such_backend", None),
    ],
)
def test_compile_options(
    tmp_path: Path, settings: str, compiled: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings' ``pt2`` reaches ``torch.compile`` in each of its forms, or does not where it says so."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: seen.append(options) or model)
    names = {"modelFile": "h_net.py", "serializedFile": "state.pt"}
    handler = load(tmp_path, SOURCE, settings=settings, **names)
    assert seen == ([] if compiled is None else [compiled])
    assert ask(handler, b"[1.0, 2.0]", JSON).status == 200


@pytest.mark.usefixtures("layer")
def test_compiled_model_answers(tmp_path: Path) -> None:
    """A model under the backend that needs no compiler answers as before."""
    names = {"modelFile": "h_net.py", "serializedFile": "state.pt"}
    handler = load(tmp_path, SOURCE, settings="pt2: eager", **names)
    assert value(ask(handler, b"[1.0, 2.0]", JSON)) == [3.0]


@pytest.mark.usefixtures("layer")
def test_explain_and_describe(tmp_path: Path) -> None:
    """The headers that the frontend sets turn a prediction into an explanation or a description."""
    handler = load(tmp_path, SOURCE, serializedFile="script.pt")
    assert value(ask(handler, b"[1.0, 2.0]", JSON, explain="True")) == [[1.0, 2.0], 0]
    assert value(ask(handler, b"[1.0, 2.0]", JSON, describe="True")) == {"device": "cpu"}


@pytest.mark.usefixtures("layer")
def test_profile_metrics(tmp_path: Path) -> None:
    """``handler: {profile: true}`` gives a time for each step; without it there is none."""
    for settings, expected in (("handler: {profile: true}", True), ("", False)):
        handler = load(tmp_path, SOURCE, settings=settings, serializedFile="script.pt")
        ask(handler, b"[1.0, 2.0]", JSON)
        names = {item.name for item in handler.take_metrics()}
        assert "HandlerTime" in names
        assert ("ts_handler_inference" in names) is expected


def test_pickle_weights_do_not_run_code(tmp_path: Path) -> None:
    """An eager model's weight file that is a program is refused."""
    marker = tmp_path / "ran"
    program = type("P", (), {"__reduce__": lambda self: (Path.touch, (marker,))})()
    (tmp_path / "state.pt").write_bytes(pickle.dumps(program))
    (tmp_path / "h_net2.py").write_text(NET)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load(tmp_path, SOURCE, modelFile="h_net2.py", serializedFile="state.pt")
    assert not marker.exists()


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "No model weights"),
        ({"serializedFile": "model.bin"}, "No model weights"),
        ({"serializedFile": "model.so"}, "No model weights"),
        ({"modelFile": "absent.py"}, "Missing the model.py file"),
        ({"modelFile": "h_two.py"}, "only one class"),
    ],
)
def test_what_cannot_be_loaded(tmp_path: Path, model: dict[str, str], message: str) -> None:
    """An archive without a model of a known kind fails with TorchServe's words."""
    (tmp_path / "h_two.py").write_text("class A: ...\nclass B: ...")
    with pytest.raises((RuntimeError, ValueError), match=message):
        load(tmp_path, SOURCE, **model)


def test_gpu_id_without_a_gpu(tmp_path: Path, layer: Any) -> None:
    """A worker that was given a GPU's number where torch sees none runs on the processor, as TorchServe."""
    base: Any = importlib.import_module("cloister.serve.torchserve.base_handler")
    handler = type("H", (base.BaseHandler,), {})()
    handler._choose_device(3)
    expected = "cuda:3" if torch.cuda.is_available() else "cpu"
    assert str(handler.device) == expected
