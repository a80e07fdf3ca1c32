"""The management API of a protected server: under the attested key, with a token, from the sealed store."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import httpx

from tests.processes.server import Server, free_port, pack
from tests.processes.test_protected import make_world


def test_management(tmp_path: Path) -> None:
    """Without its token nothing is told; a sealed model comes and goes by name, and evidence follows."""
    port, key_file = free_port(), tmp_path / "keys.json"
    extra = {"serve.management_port": port, "serve.model_api": True, "serve.key_file": str(key_file)}
    with make_world(tmp_path, **extra) as world, Server(world.flags) as server:
        server.wait_ready()
        url, service = f"https://127.0.0.1:{port}", f"https://127.0.0.1:{world.https_port}"
        # Whether it is the attested key is the client's business, and tested there.
        with httpx.Client(verify=False, timeout=60) as http:

            def loaded() -> list[str]:
                nonce = base64.urlsafe_b64encode(os.urandom(32)).decode()
                bundle = http.get(f"{service}/.well-known/cloister/evidence", params={"nonce": nonce}).text
                return [item["name"] for item in find(json.loads(bundle), "models")]

            assert loaded() == ["own"]
            assert http.get(f"{url}/models").status_code == 400
            assert http.get(f"{service}/ping").status_code == 200
            tokens = json.loads(key_file.read_text())
            headers = {"authorization": f"Bearer {tokens['management']['key']}"}
            assert http.get(f"{url}/models", headers=headers).json()["models"][0]["modelName"] == "own"
            plain = pack(tmp_path, "plain", "def handle(data, context):\n    return data\n")
            for refused in (
                "https://example.com/own.mar",
                f"file://{plain}",
                str(plain),
                "..%2Fown",
                "nothing",
            ):
                answer = http.post(f"{url}/models?url={refused}", headers=headers)
                assert answer.status_code == 404, refused
            renamed = http.post(f"{url}/models?url=own&model_name=other", headers=headers)
            assert renamed.status_code >= 400
            assert http.delete(f"{url}/models/own", headers=headers).status_code == 200
            assert loaded() == []
            assert http.post(f"{service}/predictions/own", content=b"pid").status_code == 404
            added = http.post(f"{url}/models?url=own&initial_workers=1", headers=headers)
            assert added.json()["status"] == 'Model "own" Version: 1.0 registered with 1 initial workers'
            assert loaded() == ["own"]
            assert http.post(f"{service}/predictions/own", content=b"x").status_code == 200
        assert server.stop() == 0
    assert not key_file.exists()


def find(document: Any, name: str) -> Any:
    """The value of the first member of this name, wherever it is."""
    if isinstance(document, dict):
        if name in document:
            return document[name]
        document = list(document.values())
    if isinstance(document, list):
        for item in document:
            found = find(item, name)
            if found is not None:
                return found
    return None
