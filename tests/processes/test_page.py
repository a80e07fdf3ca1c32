"""A page in headless Chromium against a real protected server and a real verifier, across origins."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.client.test_browser import CHROMIUM, browsing, site
from tests.fakes.between import Between
from tests.processes.test_javascript import Guarded, flipped, make_guarded, twice

__all__ = ["site"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
CANARY = "canary-page-2b90"
Site = tuple[Path, str, "queue.Queue[list[object]]"]

PAGE = """<!doctype html><title>page</title><script type="module">
import { CloisterClient, CloisterError } from "./cloister.js";
const { urls, options, canary } = VALUES;
const said = [];
const failing = async (promise) => { try { await promise; return "no error"; } catch (error) {
  return error instanceof CloisterError ? `${error.kind}: ${error.message}` : String(error); } };
async function all(answer) {
  const reader = answer.body.getReader(), parts = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return parts;
    parts.push(new TextDecoder().decode(value));
  }
}
const steps = {
  async whole() {
    const client = new CloisterClient(urls.service, options);
    const heard = await client.predict("talk", "headers", { headers: { "x-mine": canary } });
    return heard["x-mine"];
  },
  async stream() {
    const client = new CloisterClient(urls.service, options);
    const answer = await client.fetch("/predictions/talk", { method: "POST", body: "8", stream: true });
    const parts = await all(answer);
    return parts.length > 2 && parts.join("").endsWith("part7 end");
  },
  simulated: () => failing(new CloisterClient(urls.service, { ...options, allowSimulated: false }).verify()),
  async stranger() {
    const client = new CloisterClient(urls.service, { ...options, token: undefined });
    return failing(client.predict("talk", "1"));
  },
  async verifier() {
    const key = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign"]);
    const verifierKeys = [await crypto.subtle.exportKey("jwk", key.publicKey)];
    return failing(new CloisterClient(urls.service, { ...options, verifierKeys }).verify());
  },
  flipped: () => failing(new CloisterClient(urls.flipped, options).predict("talk", "1")),
  replayed: () => failing(new CloisterClient(urls.twice, options).predict("talk", "1")),
  async cut() {
    const client = new CloisterClient(urls.cut, options);
    return failing(all(await client.fetch("/predictions/talk", { method: "POST", body: "3", stream: true })));
  },
};
for (const step of STEPS) said.push(await steps[step]().catch((error) => `${step}: ${error}`));
await fetch("/said", { method: "POST", body: JSON.stringify(said) });
</script>"""


@pytest.fixture
def guarded(tmp_path: Path, site: Site) -> Iterator[Guarded]:
    """A server and a verifier that let in the pages of this site and of one more."""
    with make_guarded(tmp_path / "world", site[1], "https://console.example") as made:
        yield made


def show(guarded: Guarded, site: Site, profile: Path, urls: dict[str, str], *steps: str) -> list[object]:
    """What a page says that takes these steps."""
    folder, origin, said = site
    trust = {"verifier": guarded.verifier, "verifierKeys": [json.loads(guarded.verifier_key)]}
    options = {**trust, "allowSimulated": True, "token": guarded.key}
    values = json.dumps({"urls": urls, "options": options, "canary": CANARY})
    page = PAGE.replace("VALUES", values).replace("STEPS", json.dumps(steps))
    (folder / "page.html").write_text(page)
    with browsing(f"{origin}/page.html", profile):
        return said.get(timeout=120)


def test_page(guarded: Guarded, site: Site, tmp_path: Path) -> None:
    """A page verifies, predicts and streams across origins; whatever is not as it should be is an error."""
    good, bad, again, short = (Between(guarded.plain) for _ in range(4))
    flipped(bad)
    twice(again)
    short.change_answer = lambda answer: (200, answer.headers["content-type"], answer.content[:-1])
    steps = ("whole", "stream", "simulated", "stranger", "verifier", "flipped", "replayed", "cut")
    with ExitStack() as stack:
        hosts = {"service": good, "flipped": bad, "twice": again, "cut": short}
        urls = {name: stack.enter_context(host.serving()) for name, host in hosts.items()}
        said = show(guarded, site, tmp_path / "profile", urls, *steps)
    whole, stream, simulated, stranger, verifier, changed, replayed, truncated = said
    assert (whole, stream) == (CANARY, True)
    assert simulated == "policy: the verdict is not affirming"
    assert str(stranger).startswith("serving: ")
    assert verifier == "verification: no trusted verifier signed the verdict"
    assert changed == "verification: the answer does not authenticate"
    assert "409" in str(replayed)
    assert truncated == "verification: the answer does not authenticate"
    wire = b"".join(item for host in (good, bad, again, short) for item in host.seen)
    assert b"access-control-request-method" in wire.lower()
    assert not any(word in wire for word in (CANARY.encode(), guarded.key.encode(), b"predictions"))


def test_page_of_another_origin(guarded: Guarded, site: Site, tmp_path: Path) -> None:
    """A page whose origin is not allowed reads nothing, not even the evidence."""
    folder, origin, said = site
    elsewhere = (folder, origin.replace("127.0.0.1", "localhost"), said)
    found = show(guarded, elsewhere, tmp_path / "profile", {"service": guarded.plain}, "whole")
    assert "cannot reach" in str(found[0])
