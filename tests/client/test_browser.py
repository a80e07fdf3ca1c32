"""The JavaScript client in a page of headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.client.test_javascript import CLIENT, plain, verifier
from tests.fakes.sealed_service import SealedService

__all__ = ["plain", "verifier"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PAGE = """<!doctype html><title>page</title><script type="module">
import { CloisterClient } from "./cloister.js";
const tell = (said) => fetch("/said", { method: "POST", body: JSON.stringify(said) });
try {
  const trust = { verifier: VERIFIER, verifierKeys: [KEY], allowSimulated: true };
  const client = new CloisterClient(SERVICE, trust);
  const whole = await client.predict("echo", { secret: "canary-77" });
  const stream = await client.fetch("/stream", { method: "POST", body: "q", stream: true });
  await tell([whole.path, (await stream.json()).path]);
} catch (error) { await tell([String(error)]); }
</script>"""


class Site(SimpleHTTPRequestHandler):
    """A file server that takes what its page has to say."""

    def __init__(self, *args: Any, said: queue.Queue[list[str]], **options: Any) -> None:
        self.said = said
        super().__init__(*args, **options)

    def do_POST(self) -> None:
        self.said.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str, queue.Queue[list[str]]]]:
    """A web site on loopback: its folder, its address, and what its page says."""
    shutil.copy(CLIENT, tmp_path / "cloister.js")
    said: queue.Queue[list[str]] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, said=said, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}", said
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def browsing(url: str, profile: Path) -> Iterator[None]:
    """A browser with this page open."""
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    process = subprocess.Popen(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_page(
    plain: SealedService,
    verifier: tuple[str, str],
    site: tuple[Path, str, queue.Queue[list[str]]],
    tmp_path: Path,
) -> None:
    """A page verifies, predicts and streams; nothing of it is outside."""
    folder, origin, said = site
    values = {
        "SERVICE": json.dumps(plain.url),
        "VERIFIER": json.dumps(verifier[0]),
        "KEY": verifier[1].strip(),
    }
    page = PAGE
    for name, value in values.items():
        page = page.replace(name, value)
    (folder / "page.html").write_text(page)
    with browsing(f"{origin}/page.html", tmp_path / "profile"):
        assert said.get(timeout=90) == ["/predictions/echo", "/stream"]
    assert not any("canary-77" in line for line in plain.outer)
