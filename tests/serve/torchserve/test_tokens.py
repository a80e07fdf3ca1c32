"""Token authorization of a real server: on by default, three doors, renewal, expiry."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.processes.server import pack
from tests.serve.torchserve.launch import NOOP, TorchServe

FAILED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server with nothing but a model: tokens on, the model API off."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "store").mkdir()
    shutil.move(pack(folder, "noop", NOOP), folder / "store" / "noop.mar")
    properties = {"load_models": "all", "default_workers_per_model": 1, "token_expiration_min": 0.1}
    with TorchServe(folder, properties) as running:
        yield running


def bearer(server: TorchServe, kind: str) -> dict[str, str]:
    """The header for one API."""
    return {"authorization": f"Bearer {server.tokens()[kind]['key']}"}


def test_tokens(server: TorchServe) -> None:
    """No token, another API's or an old one is 400; the API's own renews; a token ends with its time."""
    inference, management = bearer(server, "inference"), bearer(server, "management")
    for path in ("/predictions/noop", "/predictions/noop/1.0", "/explanations/noop", "/ping", "/nothing"):
        refused = server.predict(path, content=b"x")
        assert (refused.status_code, refused.json()["type"]) == (400, "InvalidKeyException"), path
        assert refused.json()["message"] == FAILED
    assert server.predict("/predictions/noop", content=b"x", headers=management).status_code == 400
    assert server.predict("/predictions/noop", content=b"x", headers=inference).text == "OK"
    assert server.ask("inference", "GET", "/ping", headers=inference).status_code == 200
    assert server.ask("inference", "OPTIONS", "/").status_code == 200
    assert server.manage("GET", "/models").status_code == 400
    assert server.manage("GET", "/models", headers=inference).status_code == 400
    assert server.manage("GET", "/models", headers=management).status_code == 200
    assert server.ask("metrics", "GET", "/metrics").status_code == 200

    refused = server.manage("POST", "/models?url=noop.mar", headers=management)
    assert (refused.status_code, refused.json()["type"]) == (405, "MethodNotAllowedException")
    assert server.manage("DELETE", "/models/noop", headers=management).status_code == 405
    assert server.manage("PUT", "/models/noop?min_worker=1", headers=management).status_code == 202

    renewing = bearer(server, "API")
    assert server.manage("GET", "/token?type=inference", headers=management).status_code == 400
    assert server.manage("GET", "/token?type=API", headers=renewing).status_code == 400
    assert server.manage("GET", "/token", headers=renewing).status_code == 400
    renewed = server.manage("GET", "/token?type=inference", headers=renewing)
    assert (renewed.status_code, renewed.text) == (200, "\n")
    assert server.predict("/predictions/noop", content=b"x", headers=inference).status_code == 400
    inference = bearer(server, "inference")
    assert server.predict("/predictions/noop", content=b"x", headers=inference).text == "OK"

    deadline = time.monotonic() + 15
    while server.predict("/predictions/noop", content=b"x", headers=inference).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert server.manage("GET", "/models", headers=management).status_code == 400
    assert server.manage("GET", "/token?type=management", headers=renewing).status_code == 200
    assert server.manage("GET", "/models", headers=bearer(server, "management")).status_code == 200
    for secret in (entry["key"] for entry in server.tokens().values()):
        assert secret not in server.stderr + server.stdout


def test_the_file_goes_with_the_server(tmp_path: object, server: TorchServe) -> None:
    """When the server ends its key file is gone."""
    file = server.folder / "key_file.json"
    assert file.exists()
    server.__exit__()
    assert not file.exists()
