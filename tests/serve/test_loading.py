"""Every form of handler that TorchServe loads loads here, and what cannot says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import ModelFailed
from cloister.serve.handler import Outcome
from cloister.serve.loading import load_handler
from cloister.serve.manifest import PACKAGES_FOLDER
from cloister.serve.plain_store import PlainStore
from tests.serve.handlers import answer, ask, import_state, load, request, value
from tests.vectors import vector


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with import_state():
        yield


def test_function_handler(tmp_path: Path) -> None:
    """A module's ``handle`` function is called once to initialize, then with the data."""
    source = "seen = []\ndef handle(data, c):\n  seen.append(data)\n  return data and [str(seen)]"
    assert ask(load(tmp_path, source)).body == b"[None, [{'body': 'x'}]]"


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


def test_class_without_initialize(tmp_path: Path) -> None:
    """A class that only handles is enough."""
    assert ask(load(tmp_path, "class A:\n  def handle(self, data, c): return [1]")).body == b"1"


def test_ambiguous_and_missing_handlers(tmp_path: Path) -> None:
    """No handler, two handler classes, or one that is nowhere say so."""
    with pytest.raises(ModelFailed, match="2 handler classes"):
        load(tmp_path, "class A:\n  def handle(self): ...\nclass B:\n  def handle(self): ...")
    with pytest.raises(ModelFailed, match="names no handler"):
        load(tmp_path, "", handler="")
    with pytest.raises(ModelFailed, match="no handler 'invalidHandler'"):
        load(tmp_path, "", handler="invalidHandler")


def test_broken_import_is_not_a_missing_handler(tmp_path: Path) -> None:
    """A handler that imports something that is not there fails with that name."""
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load(tmp_path, "import no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"ts\.torch_handler\.vllm_handler of TorchServe is not"):
        load(tmp_path, "from ts.torch_handler.vllm_handler import VLLMHandler")


def test_settings(tmp_path: Path) -> None:
    """The archive's YAML file is the context's ``model_yaml_config``."""
    source = "def handle(data, c):\n  return [c.model_yaml_config['handler']['k']]"
    assert ask(load(tmp_path, source, settings="handler:\n  k: 5\n")).body == b"5"
    with pytest.raises(ModelFailed, match="settings file"):
        load(tmp_path, source, settings="!!python/object/apply:os.system [id]")
    with pytest.raises(ModelFailed, match="settings file"):
        load(tmp_path, source, configFile="../c.yaml")


def test_without_manifest(tmp_path: Path) -> None:
    """An archive without manifest gives its handler one with what is known."""
    (tmp_path / "h_bare.py").write_text("def handle(data, c):\n  return [c.manifest['model']]")
    handler = load_handler(tmp_path, "h_bare.py", name="m", version="3")
    assert value(ask(handler)) == {"modelName": "m", "modelVersion": "3", "handler": "h_bare.py"}


def test_packages_of_the_model(tmp_path: Path) -> None:
    """Packages that were installed for the model are on its handler's import path."""
    (tmp_path / PACKAGES_FOLDER).mkdir()
    (tmp_path / PACKAGES_FOLDER / "h_package.py").write_text("VALUE = 42")
    assert ask(load(tmp_path, "import h_package\ndef handle(d, c): return [h_package.VALUE]")).body == b"42"


def test_envelopes(tmp_path: Path) -> None:
    """``service_envelope`` takes requests out of their form, and puts answers into it."""
    echo = "def handle(data, c):\n  return data"
    json_type = "application/json"
    handler = load(tmp_path, echo, envelope="json")
    outcomes = answer(
        handler,
        request(b'{"instances": [1, {"b64": "aGk="}]}', json_type),
        request(b'{"instances": [3]}', json_type, number=1),
    )
    assert outcomes[1].body == b'{"predictions": [3]}'
    assert ask(load(tmp_path, echo, envelope="body"), b"hi").body == b"hi"
    served = value(ask(load(tmp_path, echo, envelope="kserve"), b'{"instances": [[1, 2]]}', json_type))
    assert served == {"predictions": [[1, 2]]}
    tensor = {"name": "x", "shape": [2], "datatype": "INT64", "data": [4, 5]}
    source = "def handle(data, c):\n  return data and [item['data'] for item in data]"
    second = load(tmp_path, source, envelope="kservev2")
    answered = value(ask(second, json.dumps({"id": "q", "inputs": [tensor]}).encode(), json_type))
    assert answered["outputs"] == [tensor]
    assert (answered["id"], answered["model_name"], answered["model_version"]) == ("q", "m", "1.0")
    with pytest.raises(ModelFailed, match="envelope"):
        load(tmp_path, echo, envelope="soap")


@pytest.mark.parametrize(
    ("file", "body", "expected"),
    [
        ("noop.mar", b"x", b"OK"),
        ("noop_v2.mar", b"x", b"OK"),
        ("noop_handlername.mar", b"x", b"OK"),
    ],
)
def test_torchserve_archives_answer(tmp_path: Path, file: str, body: bytes, expected: bytes) -> None:
    """TorchServe's own archives answer."""
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(vector(f"torchserve/dev/{file}"), store)
    folder = tmp_path / "placed"
    folder.mkdir()
    source = PlainStore(store).resolve(file)
    handler = load_handler(source.place(folder), source.handler, name=source.name, show_text=True)
    source.close()
    assert ask(handler, body).body == expected
    for name in ("handler", "service"):
        __import__("sys").modules.pop(name, None)
