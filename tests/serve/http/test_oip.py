"""Open Inference Protocol v2 over HTTP, with the public client, and TorchServe's use of the same routes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from cloister.serve.http.api import Api
from cloister.serve.http.messages import Request
from cloister.serve.http.oip import speaks_protocol
from cloister.serve.http.ways import Way
from cloister.serve.oip.datatypes import DATATYPES
from cloister.serve.oip.marks import is_marked
from cloister.serve.pack import pack_archive
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings
from tests.processes.server import Server, free_port, pack
from tests.serve.torchserve.launch import TorchServe

HANDLER = """
import time

def handle(data, context):
    if data is None:
        return None
    return [answer(index, row, context) for index, row in enumerate(data)]

def answer(index, row, context):
    request = row.get("body")
    if not hasattr(request, "arrays"):
        return {"plain": {name: str(value) for name, value in row.items()}}
    if "status" in request.parameters:
        context.set_response_status(request.parameters["status"], "", index)
        context.set_response_header(index, "content-type", "text/plain")
        context.set_response_header(index, "x-mine", "1")
        return [1]
    if "fail" in request.parameters:
        raise ValueError("not like this")
    if "break" in request.parameters:
        raise RuntimeError("of the model")
    if "protocol" in request.parameters:
        return {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.1]}]}
    if "explain" in request.parameters:
        return {"explained": [context.get_request_header(index, "explain")]}
    if "headers" in request.parameters:
        return {"headers": sorted(context.get_all_request_header(index))}
    return dict(request.arrays)
"""
SETTINGS = """
batchSize: 4
openInference:
  platform: pytorch_torchscript
  inputs:
    - {name: x, datatype: FP32, shape: [-1, 4]}
    - {name: broken}
  outputs:
    - {name: y, datatype: INT64, shape: [-1]}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An open server with the model ``m`` and TorchServe's ``noop``."""
    folder = tmp_path_factory.mktemp("oip")
    store = folder / "store"
    store.mkdir()
    code = folder / "code"
    code.mkdir()
    (code / "settings.yaml").write_text(SETTINGS)
    (code / "handler.py").write_text(HANDLER)
    pack_archive(
        store / "m.mar",
        name="m",
        version="1.0",
        handler=code / "handler.py",
        config_file=code / "settings.yaml",
    )
    noop = "def handle(data, context):\n    return ['OK' for _ in data or []]\n"
    pack(folder, "noop", noop).rename(store / "noop.mar")
    flags = {"serve.mode": "open", "serve.model_store": str(store), "serve.http_port": free_port()}
    with Server(flags) as server:
        server.wait_ready()
        yield server.url
        assert server.stop() == 0


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    """The public client."""
    with triton.InferenceServerClient(url.removeprefix("http://")) as made:
        yield made


def tensor(name: str, datatype: str, array: Any, *, binary: bool = True) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def infer(url: str, path: str = "/v2/models/m/infer", **members: Any) -> httpx.Response:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]
    return httpx.post(url + path, json={"inputs": inputs, **members}, timeout=30)


def test_health_and_metadata(url: str, client: triton.InferenceServerClient) -> None:
    """Server and model say that they live, are ready, and what they are."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1.0")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("m") == {
        "name": "m",
        "versions": ["1.0"],
        "platform": "pytorch_torchscript",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    }
    assert client.get_model_metadata("noop")["inputs"] == []
    assert httpx.get(f"{url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{url}/v2/models/m/ready").json() == {"name": "m", "ready": True}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BF16", "BYTES"}))
def test_every_datatype(client: triton.InferenceServerClient, datatype: str, *, binary: bool) -> None:
    """The public client sends each datatype, in JSON and in binary, and gets the same back."""
    if datatype == "FP16" and not binary:
        pytest.skip("tritonclient sends FP16 in binary only")
    array = np.array([[0, 1], [1, 0]]).astype(DATATYPES[datatype])
    result = client.infer(
        "m",
        [tensor("x", datatype, array, binary=binary)],
        outputs=[triton.InferRequestedOutput("x", binary_data=binary)],
        request_id="7",
    )
    assert result.get_response()["id"] == "7"
    found = result.as_numpy("x")
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_binary_and_json_in_one_request(client: triton.InferenceServerClient) -> None:
    """Inputs and outputs of both forms go together."""
    words = np.array([b"one", b"\xff\x00"], dtype=object)
    numbers = np.array([1.5, 2.5])
    inputs = [tensor("words", "BYTES", words), tensor("n", "FP64", numbers, binary=False)]
    result = client.infer("m", inputs)
    assert result.as_numpy("words").tolist() == [b"one", b"\xff\x00"]
    assert result.as_numpy("n").tolist() == [1.5, 2.5]


def test_json_answer(url: str) -> None:
    """Plain JSON in, plain JSON out."""
    answer = infer(url, id="9")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": "m",
        "model_version": "1.0",
        "id": "9",
        "outputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}],
    }
    assert infer(url, "/v2/models/m/versions/1.0/infer").status_code == 200


def test_a_handler_that_speaks_the_protocol(url: str) -> None:
    """A handler's own outputs are passed on as they are."""
    found = infer(url, parameters={"protocol": True}).json()["outputs"]
    assert found == [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.1]}]


def test_status_and_headers_of_a_handler(url: str) -> None:
    """A handler chooses status and headers, but not what the protocol says of its body."""
    answer = infer(url, parameters={"status": 201})
    assert (answer.status_code, answer.headers["x-mine"]) == (201, "1")
    assert answer.headers["content-type"] == "application/json"


def test_explain(url: str) -> None:
    """TorchServe's explanations have the same form; the handler is told by its usual header."""
    wanted = {"explain": True}
    for path, told in (("explain", "True"), ("infer", "False")):
        answer = infer(url, f"/v2/models/m/{path}", parameters=wanted)
        assert answer.json()["outputs"][0]["data"] == [told]


def test_marks_do_not_reach_the_handler(url: str) -> None:
    """What the frontend tells the worker of the protocol is not among the request's headers."""
    seen = infer(url, parameters={"headers": True}).json()["outputs"][0]["data"]
    assert "content-type" in seen
    assert not [name for name in seen if name.startswith(":")]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v2/models/nothing/infer", 404, "Model not found: nothing"),
        ("/v2/models/m/versions/9/infer", 404, "version"),
        ("/v2/nothing", 404, "not found"),
        ("/v2/models", 404, "not found"),
        ("/v2/health/live", 405, "not allowed"),
        ("/v2/models/m/ready", 405, "not allowed"),
    ],
)
def test_errors_of_routes(url: str, path: str, status: int, words: str) -> None:
    """Errors have the protocol's one member."""
    answer = infer(url, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("members", "status", "words"),
    [
        ({"inputs": []}, 400, "inputs is not"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1]}]}, 400, "does not go with"),
        ({"inputs": [{"name": "x", "datatype": "X", "shape": [1], "data": [1]}]}, 400, "unknown datatype"),
        ({"outputs": [{"name": "none"}]}, 400, "no output 'none'"),
        ({"parameters": {"fail": True}}, 400, "not like this"),
        ({"parameters": {"break": True}}, 503, "Prediction failed"),
    ],
)
def test_errors_of_requests(url: str, members: dict[str, Any], status: int, words: str) -> None:
    """What a request does wrong is said; it stays the caller's own failure in a batch."""
    answer = infer(url, **members)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    assert words in answer.json()["error"]


def test_the_public_client_sees_reasons(client: triton.InferenceServerClient) -> None:
    """The reason reaches the public client's exception."""
    with pytest.raises(InferenceServerException, match="Model not found"):
        client.infer("nothing", [tensor("x", "INT8", np.zeros(1, np.int8))])
    bad = [tensor("x", "INT8", np.zeros(1, np.int8))]
    with pytest.raises(InferenceServerException, match="no output 'y'"):
        client.infer("m", bad, outputs=[triton.InferRequestedOutput("y")])


@pytest.mark.parametrize("length", ["0", "-1", "x", "99999"])
def test_header_lengths(url: str, length: str) -> None:
    """A wrong length of the JSON part is refused with the reason."""
    body = json.dumps({"inputs": []}).encode()
    headers = {"inference-header-content-length": length}
    answer = httpx.post(f"{url}/v2/models/m/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_compressed_bodies(client: triton.InferenceServerClient) -> None:
    """A compressed request is refused for what it is, not as broken JSON."""
    numbers = [tensor("x", "INT8", np.zeros(1, np.int8))]
    with pytest.raises(InferenceServerException, match="compressed body"):
        client.infer("m", numbers, request_compression_algorithm="gzip")


def test_torchserves_use_of_the_route(url: str) -> None:
    """Forms and media go to the handler as at /predictions, and its answer comes as it is."""
    for path in ("infer", "explain"):
        assert httpx.post(f"{url}/v2/models/noop/{path}", data={"data": "test"}).text == "OK"
    answer = httpx.post(f"{url}/v2/models/m/infer", files={"data": b"\x89PNG"})
    assert "PNG" in answer.json()["plain"]["data"]
    answer = httpx.post(f"{url}/v2/models/m/infer", content=b"x", headers={"content-type": "image/png"})
    assert answer.json() == {"plain": {"body": "bytearray(b'x')"}}


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("application/json", b"x", True),
        ("application/json; charset=utf-8", b"", True),
        ("", b'  {"inputs"', True),
        ("application/octet-stream", b"{", True),
        ("application/octet-stream", b"\x89PNG", False),
        ("", b"\xff", False),
        ("application/x-www-form-urlencoded", b"{", False),
        ("multipart/form-data; boundary=x", b"{", False),
        ("image/jpeg", b"{", False),
        ("text/plain", b"{", False),
    ],
)
def test_what_is_a_request_of_the_protocol(kind: str, content: bytes, *, expected: bool) -> None:
    """JSON is, and what says nothing of itself but looks like it; forms and media are TorchServe's."""
    headers = [(b"content-type", kind.encode())] if kind else []
    assert speaks_protocol(Request("POST", "/", b"", headers, content)) is expected
    headers.append((b"inference-header-content-length", b"2"))
    assert speaks_protocol(Request("POST", "/", b"", headers, content))


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("POST", "/v2/models/m/infer", {b"content-type": b"application/json"}, True),
        ("POST", "/v2/models/m/versions/1.0/infer", {b"inference-header-content-length": b"2"}, True),
        ("POST", "/v2/models/m/infer", {}, False),
        ("POST", "/v2/models/m/infer", {b"content-type": b"image/png"}, False),
        (
            "POST",
            "/v2/models/m/infer",
            {b"content-type": b"application/json", b"content-encoding": b"gzip"},
            False,
        ),
        ("PUT", "/v2/models/m/infer", {b"content-type": b"application/json"}, False),
        ("POST", "/v2/models/m/explain", {b"content-type": b"application/json"}, False),
        ("GET", "/v2/models/m", {}, False),
    ],
)
def test_what_takes_the_quick_path(
    method: str, path: str, headers: dict[bytes, bytes], *, expected: bool
) -> None:
    """Inference whose head says all that there is to decide goes straight to its model, marked."""
    settings = ServeSettings(mode="open")
    registry = Registry(settings)
    model: Any = SimpleNamespace(name="m", version="1.0", supervisor=object())
    registry.find = lambda *_: model  # type: ignore[method-assign]
    supervisor, given = Api(registry, settings).hot(Way.OPEN, method, path, list(headers.items()))
    assert (supervisor is model.supervisor) is expected
    assert is_marked(given) is expected


def test_torchserves_envelope(tmp_path: Path) -> None:
    """With ``service_envelope=kservev2`` handlers get and give what they do under TorchServe."""
    handler = (
        "def handle(data, context):\n"
        "    if data is None:\n"
        "        return None\n"
        "    return [[type(row['data']).__name__] for row in data]\n"
    )
    (tmp_path / "store").mkdir()
    shutil.move(pack(tmp_path, "m", handler), tmp_path / "store" / "m.mar")
    properties = {
        "load_models": "m.mar",
        "default_workers_per_model": 1,
        "service_envelope": "kservev2",
        "disable_token_authorization": "true",
    }
    with TorchServe(tmp_path, properties) as server:
        answer = server.predict(
            "/v2/models/m/infer",
            json={
                "id": "d3b15cad",
                "inputs": [
                    {"name": "input-0", "shape": [1, 2], "datatype": "FP32", "data": [[0.0, 1.0]]},
                    {"name": "text", "shape": -1, "datatype": "BYTES", "data": ["aGk="]},
                ],
            },
        )
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "id": "d3b15cad",
        "model_name": "m",
        "model_version": "1.0",
        "outputs": [
            {"name": "input-0", "datatype": "BYTES", "data": ["list"], "shape": [1]},
            {"name": "text", "datatype": "BYTES", "data": ["str"], "shape": [1]},
        ],
    }
