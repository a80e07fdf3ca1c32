"""Models from URLs: only listed ones, only without detours, and gone with their model."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.server import free_port, pack
from tests.serve.torchserve.launch import NOOP, TorchServe


class _Files(http.server.SimpleHTTPRequestHandler):
    """A folder of archives, and redirects to wherever the path says."""

    def do_GET(self) -> None:
        if self.path.startswith("/redirect/"):
            self.send_response(302)
            self.send_header("location", self.path.removeprefix("/redirect/"))
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Base URL of a site with one archive."""
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.move(pack(tmp_path, "noop", NOOP), folder / "far.mar")

    def make(*arguments: object) -> _Files:
        return _Files(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_listed_urls(tmp_path: Path, site: str) -> None:
    """A listed URL is fetched into the store and shown; what it redirects to has to be listed as well."""
    folder = tmp_path / "server"
    folder.mkdir()
    other = f"http://localhost:{site.rpartition(':')[2]}"
    dead = f"http://127.0.0.1:{free_port()}"
    properties = {"allowed_urls": f"{site}/.*,{dead}/.*"}
    with TorchServe(folder, properties, ("--disable-token-auth", "--enable-model-api")) as server:
        url = f"{site}/far.mar"
        added = server.manage("POST", f"/models?url={url}&model_name=far&initial_workers=1")
        assert added.status_code == 200, added.text
        assert (server.store / "far.mar").exists()
        assert server.manage("GET", "/models").json()["models"] == [{"modelName": "far", "modelUrl": url}]
        assert server.predict("/predictions/far", content=b"x").text == "OK"
        again = server.manage("POST", f"/models?url={url}&model_name=again")
        assert (again.status_code, again.json()["message"]) == (500, "Model file already exists far.mar")
        assert server.manage("DELETE", "/models/far").status_code == 200
        assert not (server.store / "far.mar").exists()
        for refused, status in (
            (f"{other}/far.mar", 404),
            (f"{site}.evil.example/far.mar", 404),
            (f"{site}/redirect/{other}/far.mar", 404),
            (f"{site}/absent.mar", 400),
            (f"{dead}/far.mar", 400),
            (f"file://{tmp_path}/site/far.mar", 404),
        ):
            answer = server.manage("POST", f"/models?url={refused}&model_name=refused")
            assert answer.status_code == status, (refused, answer.text)
        redirected = server.manage(
            "POST", f"/models?url={site}/redirect/{url}&model_name=round&initial_workers=1"
        )
        assert redirected.status_code == 200, redirected.text
        assert [path.name for path in server.store.iterdir()] == ["far.mar"]
