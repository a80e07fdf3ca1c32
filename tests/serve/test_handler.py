"""Handlers load and answer as TorchServe's do, and their failures say where, never what."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ModelFailed
from cloister.serve.archive import Manifest, ManifestModel
from cloister.serve.frames import RequestItem
from cloister.serve.handler import Handler, Outcome, load_handler


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    """Loading a handler changes the import system, as it may in a worker."""
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - modules:
        if name == "ts" or name.startswith(("ts.", "h_", "cloister.serve.torchserve.base")):
            del sys.modules[name]
    sys.modules.pop("service_under_test", None)


def load(folder: Path, source: str, handler: str = "service_under_test.py", **model: Any) -> Handler:
    sys.modules.pop("service_under_test", None)
    (folder / "service_under_test.py").write_text(source)
    manifest = Manifest(model=ManifestModel(handler=handler, **model))
    return load_handler(folder, manifest, name="m", show_text=bool(model.get("config_file")))


def ask(handler: Handler, body: bytes = b"x", content_type: bytes = b"text/plain", count: int = 1) -> Outcome:
    items = [
        RequestItem(i, f"id-{i}", [(b"content-type", content_type)], b"", len(body)) for i in range(count)
    ]
    return handler.answer(items, [memoryview(body)] * count)[0]


def test_function_handler(tmp_path: Path) -> None:
    """A module's ``handle`` function is called once to initialize, then with the data."""
    handler = load(
        tmp_path, "seen = []\ndef handle(data, c):\n  seen.append(data)\n  return data and [str(seen)]"
    )
    assert ask(handler).body == b"[None, [{'body': 'x'}]]"


def test_named_function(tmp_path: Path) -> None:
    """``module:function`` names the function; one that is not there is refused."""
    source = "def mine(data, c):\n  return data and ['mine']"
    assert ask(load(tmp_path, source, "service_under_test:mine")).body == b"mine"
    with pytest.raises(ModelFailed, match="no function"):
        load(tmp_path, source, "service_under_test:other")


def test_class_handler_and_context(tmp_path: Path) -> None:
    """A class is initialized with the context; status, headers and type that it sets reach the answer."""
    source = """
class Service:
    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]
    def handle(self, data, context):
        context.set_response_status(201, "made", 0)
        context.set_response_header(0, "X-A", "b")
        context.set_response_content_type(0, "text/html")
        return [f"{context.get_request_id(0)} {context.get_request_header(0, 'Content-Type')} "
                f"{self.folder == context.system_properties['model_dir']}"]
"""
    outcome = ask(load(tmp_path, source))
    assert outcome == Outcome(201, b"id-0 text/plain True", [(b"x-a", b"b"), (b"content-type", b"text/html")])


@pytest.mark.filterwarnings("ignore")
def test_base_handler_eager_and_scripted(tmp_path: Path) -> None:
    """BaseHandler loads an eager model with its state, and a TorchScript model, and answers alike."""
    torch = pytest.importorskip("torch")
    (tmp_path / "h_net.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n  def __init__(s): super().__init__(2, 1, bias=False)\n"
    )
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    torch.jit.trace(layer, torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    source = """
from ts.torch_handler.base_handler import BaseHandler
class Mine(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([d["body"] for d in data])
"""
    for names in (
        {"model_file": "h_net.py", "serialized_file": "state.pt"},
        {"serialized_file": "script.pt"},
    ):
        (tmp_path / "MAR-INF").mkdir(exist_ok=True)
        document = {
            "model": {"serializedFile": names["serialized_file"], "modelFile": names.get("model_file")}
        }

        (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(document))
        outcome = ask(load(tmp_path, source, **names), b"[1.0, 2.0]", b"application/json")
        assert outcome.body == b"[\n  3.0\n]"


@pytest.mark.filterwarnings("ignore")
def test_pickle_weights_do_not_run_code(tmp_path: Path) -> None:
    """An eager model's weight file that is a program is refused."""
    pytest.importorskip("torch")
    marker = tmp_path / "ran"
    program = type("P", (), {"__reduce__": lambda self: (Path.touch, (marker,))})()
    (tmp_path / "state.pt").write_bytes(pickle.dumps(program))
    (tmp_path / "h_net2.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n  def __init__(self): super().__init__(1, 1)"
    )
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(
        '{"model": {"serializedFile": "state.pt", "modelFile": "h_net2.py"}}'
    )
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load(tmp_path, "from ts.torch_handler.base_handler import BaseHandler\nclass Mine(BaseHandler): pass")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("result", "body", "content_type"),
    [
        ("b'raw'", b"raw", b"application/octet-stream"),
        ("'text'", b"text", b"text/plain; charset=utf-8"),
        ("7", b"7", b"application/json"),
        ("{'a': 1}", b'{\n  "a": 1\n}', b"application/json"),
        ("None", b"null", b"application/json"),
    ],
)
def test_results(tmp_path: Path, result: str, body: bytes, content_type: bytes) -> None:
    """Each kind of result has TorchServe's bytes and a content type."""
    handler = load(tmp_path, f"def handle(data, c):\n  return [{result}]")
    assert ask(handler) == Outcome(200, body, [(b"content-type", content_type)])


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("return {}", 503, "Invalid model predict output"),
        ("return [1, 2]", 503, "number of batch response mismatched"),
        ("return [object()]", 503, "Unsupported model output data type."),
        ("raise ValueError(data)", 503, "Prediction failed"),
        ("raise MemoryError", 507, "Out of resources"),
        ("raise RuntimeError('CUDA out of memory')", 507, "Out of resources"),
    ],
)
def test_failures(tmp_path: Path, source: str, status: int, reason: str) -> None:
    """Each failure has TorchServe's status and words, and no word of the request."""
    outcome = ask(load(tmp_path, f"def handle(data, c):\n  if data is None: return\n  {source}"), b"secret")
    assert outcome.fault is not None
    assert (outcome.status, outcome.fault.reason) == (status, reason)
    assert "secret" not in repr(outcome)


def test_fingerprint_is_of_the_place(tmp_path: Path) -> None:
    """The same defect has the same fingerprint for every request, another one has another."""
    source = """
def handle(data, context):
    if data and data[0]["body"] == "c":
        int("x")
    if data:
        raise ValueError(data)
"""
    handler = load(tmp_path, source)
    prints = [fault.fingerprint for b in (b"a", b"b", b"c") if (fault := ask(handler, b).fault)]
    assert prints[0] == prints[1] != prints[2]


def test_prediction_exception_speaks_to_the_caller(tmp_path: Path) -> None:
    """TorchServe's PredictionException sets status and message."""
    source = """
from ts.utils.util import PredictionException
def handle(data, context):
    if data:
        raise PredictionException("no", 513)
"""
    outcome = ask(load(tmp_path, source))
    assert outcome.status == 513
    assert b'"message": "no"' in outcome.body


def test_ambiguous_and_missing_handlers(tmp_path: Path) -> None:
    """No handler, two handler classes, or an unknown TorchServe module say so."""
    with pytest.raises(ModelFailed, match="2 handler classes"):
        load(tmp_path, "class A:\n  def handle(self): ...\nclass B:\n  def handle(self): ...")
    with pytest.raises(ModelFailed, match="names no handler"):
        load(tmp_path, "", handler="")
    with pytest.raises(ImportError, match=r"ts\.torch_handler\.image_classifier"):
        load(tmp_path, "", handler="image_classifier")


def test_model_config(tmp_path: Path) -> None:
    """The archive's YAML file is the context's ``model_yaml_config``."""
    (tmp_path / "c.yaml").write_text('{"handler": {"k": 5}}')
    source = "def handle(data, c):\n  return [c.model_yaml_config['handler']['k']]"
    assert ask(load(tmp_path, source, config_file="c.yaml")).body == b"5"
