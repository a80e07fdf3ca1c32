"""Archives come from URLs that the operator allowed, and from no other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cloister.errors import ConfigError, ModelNotFound, ServingError, TransportError
from cloister.serve.download import fetch_archive, is_url, require_allowed


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved/").replace("_", "/"))
            self.end_headers()
            return
        content = b"x" * 5000
        self.send_response(200 if self.path.startswith("/ok/") else 500)
        if "short" in self.path:
            self.send_header("Content-Length", "9000")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A web server; the base of its URLs."""
    running = HTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_fetch(server: str, tmp_path: Path) -> None:
    """An allowed URL's file is in the store afterwards, under its own name; a second time is an error."""
    url = f"{server}/ok/m.mar?signature=abc"
    assert fetch_archive(url, tmp_path, [f"{server}/ok/.*"]) == "m.mar"
    assert (tmp_path / "m.mar").stat().st_size == 5000
    with pytest.raises(ServingError, match=r"Model file already exists m\.mar"):
        fetch_archive(url, tmp_path, [".*"])


def test_redirects_must_be_allowed_too(server: str, tmp_path: Path) -> None:
    """An allowed host cannot send the server to one that is not."""
    url = f"{server}/moved/m.mar"
    with pytest.raises((ModelNotFound, TransportError)):
        fetch_archive(f"{server}/moved/http:__127.0.0.1:1_m.mar", tmp_path, [f"{server}/.*"])
    with pytest.raises(TransportError):
        fetch_archive(url, tmp_path, [f"{server}/.*"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/bad/m.mar", "/ok/short.mar"])
def test_failed(server: str, tmp_path: Path, path: str) -> None:
    """A server's error and a file that breaks off leave nothing in the store."""
    with pytest.raises(TransportError, match="Failed to download archive from"):
        fetch_archive(server + path, tmp_path, [".*"])
    assert list(tmp_path.iterdir()) == []


def test_too_long(server: str, tmp_path: Path) -> None:
    """A file over the limit is given up."""
    with pytest.raises(TransportError, match="more than 100 bytes"):
        fetch_archive(f"{server}/ok/m.mar", tmp_path, [".*"], max_bytes=100)
    assert list(tmp_path.iterdir()) == []


def test_file_urls(tmp_path: Path) -> None:
    """A file URL is one like any other: copied where it is allowed."""
    (tmp_path / "a.mar").write_bytes(b"x")
    store = tmp_path / "store"
    store.mkdir()
    url = (tmp_path / "a.mar").as_uri()
    with pytest.raises(ModelNotFound, match="does not match any allowed"):
        fetch_archive(url, store, [])
    assert fetch_archive(url, store, [r"file://.*\.mar"]) == "a.mar"


@pytest.mark.parametrize("name", ["", "%2e%2e", ".hidden.mar", "a%2Fb.mar", "a%00.mar"])
def test_names(tmp_path: Path, name: str) -> None:
    """A URL whose last part is no plain file name is not fetched."""
    with pytest.raises((ModelNotFound, TransportError)):
        fetch_archive(f"http://127.0.0.1:1/x/{name}", tmp_path, [".*"])
    assert list(tmp_path.iterdir()) == []


def test_expressions() -> None:
    """An expression has to match the whole URL, none allows nothing, a broken one is an error."""
    require_allowed("HTTPS://a.example/m.mar", [r"https://a\.example/.*"])
    for allowed in ([], ["https://a"], [r"http://.*"]):
        with pytest.raises(ModelNotFound):
            require_allowed("https://a.example/m.mar", allowed)
    with pytest.raises(ConfigError, match="regular expression"):
        require_allowed("https://a.example/m.mar", ["["])
    assert [is_url(url) for url in ("HTTP://x", "file:///x", "x.mar")] == [True, True, False]
