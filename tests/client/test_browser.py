"""The JavaScript client in a page of headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.client.test_javascript import CLIENT, plain, verifier
from tests.fakes.sealed_service import SealedService

__all__ = ["plain", "verifier"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PAGE = """<!doctype html><title>page</title><pre id="said">nothing</pre><script type="module">
import { CloisterClient } from "./cloister.js";
const said = document.getElementById("said");
try {
  const trust = { verifier: VERIFIER, verifierKeys: [KEY], allowSimulated: true };
  const client = new CloisterClient(SERVICE, trust);
  const whole = await client.predict("echo", { secret: "canary-77" });
  const stream = await client.fetch("/stream", { method: "POST", body: "q", stream: true });
  said.textContent = JSON.stringify([whole.path, (await stream.json()).path]);
} catch (error) { said.textContent = JSON.stringify([String(error)]); }
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A web site on loopback: its folder and address."""
    shutil.copy(CLIENT, tmp_path / "cloister.js")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def browse(url: str, profile: Path) -> list[str]:
    """What the page says once it is done."""
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", url],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    said: list[str] = json.loads(unescape(found[1]))
    return said


def test_page(
    plain: SealedService, verifier: tuple[str, str], site: tuple[Path, str], tmp_path: Path
) -> None:
    """A page verifies, predicts and streams; nothing of it is outside."""
    folder, origin = site
    values = {
        "SERVICE": json.dumps(plain.url),
        "VERIFIER": json.dumps(verifier[0]),
        "KEY": verifier[1].strip(),
    }
    page = PAGE
    for name, value in values.items():
        page = page.replace(name, value)
    (folder / "page.html").write_text(page)
    assert browse(f"{origin}/page.html", tmp_path / "profile") == ["/predictions/echo", "/stream"]
    assert not any("canary-77" in line for line in plain.outer)
