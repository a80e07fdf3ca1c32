"""The JavaScript client in Node against a real protected server and a real verifier."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.serve.access.api_keys import make_api_key
from tests.client.test_javascript import CLIENT, CLIENT_OF, node
from tests.fakes.between import Between
from tests.processes.owner import seal_handler
from tests.processes.server import Server
from tests.processes.test_protected import World, make_world
from tests.processes.test_sealed_access import POLICY, STREAMER
from tests.test_docs import FENCE, ROOT

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
CANARY = "canary-js-5c71"


@dataclass
class Guarded:
    """A protected server that streams and asks who calls, a verifier, and what a page has to know."""

    world: World
    server: Server
    verifier: str
    verifier_key: str
    key: str

    @property
    def plain(self) -> str:
        """The port without TLS, which a proxy with a public certificate would stand in front of."""
        return f"http://127.0.0.1:{self.world.http_port}"

    def talk(self, script: str, url: str = "") -> Any:
        """Run a script in Node with ``url``, ``options``, ``tell`` and ``failing`` at hand."""
        head = f"{CLIENT_OF}\noptions.token = {json.dumps(self.key)};\n"
        return node(head + script, url or self.plain, self.verifier, self.verifier_key)


@contextmanager
def run_verifier(world: World, *origins: str) -> Iterator[tuple[str, str]]:
    """A verifier process that accepts this world's server: its address and its public key."""
    folder = world.folder / "verifier"
    folder.mkdir()
    (folder / "values.toml").write_text(world.reference_values(world.flags))
    command = [str(Path(sys.executable).parent / "cloister"), "verifier", "--listen", "127.0.0.1:0"]
    command += ["--key", str(folder / "key.pem"), "-r", str(folder / "values.toml")]
    command += ["--simulated-root", str(world.folder / "platform" / "root.pem")]
    for origin in origins:
        command += ["--allow-origin", origin]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def make_guarded(folder: Path, *origins: str) -> Iterator[Guarded]:
    """Everything, for pages of these origins."""
    folder.mkdir(exist_ok=True)
    extra = {
        "serve.access_policy": str(folder / "requests.cedar"),
        "serve.api_keys": str(folder / "api-keys.jsonl"),
        "serve.cors_origin": ",".join(origins),
    }
    (folder / "requests.cedar").write_text(POLICY)
    key = make_api_key(folder / "api-keys.jsonl", "clinic-1", now=datetime.now(UTC), groups=("clinic",))
    with make_world(folder, **extra) as world:
        seal_handler(world, "talk", STREAMER)
        with run_verifier(world, *origins) as (verifier, verifier_key), Server(world.flags) as server:
            server.wait_ready()
            yield Guarded(world, server, verifier, verifier_key, key)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Without pages."""
    with make_guarded(tmp_path_factory.mktemp("javascript")) as made:
        yield made


@pytest.fixture
def between(guarded: Guarded) -> Iterator[tuple[Between, str]]:
    """Somebody between the client and the server, and his address."""
    host = Between(guarded.plain)
    with host.serving() as url:
        yield host, url


def metric(guarded: Guarded, words: str) -> float:
    """A number that the server's metrics show, 0 if they do not."""
    script = "tell(await (await new CloisterClient(url, options).fetch('/metrics')).text());"
    lines = [line for line in guarded.talk(script).splitlines() if line.startswith(words)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_predict_and_stream(guarded: Guarded, between: tuple[Between, str]) -> None:
    """A verified prediction and a stream that comes in parts; neither content nor key can be seen between."""
    host, url = between
    said = guarded.talk(
        f"const c = new CloisterClient(url, options), said = ['{CANARY}'];"
        "const { models } = await c.verify(); said.push(models.map((m) => m.name).sort());"
        "said.push(new TextDecoder().decode(await c.predict('talk', '1')).split(' ')[1]);"
        "said.push((await c.predict('talk', 'headers', {headers: {'X-Mine': said[0]}}))['x-mine']);"
        "const a = await c.fetch('/predictions/talk', {method: 'POST', body: '6', stream: true});"
        "let text = ''; for await (const part of a.body) text += new TextDecoder().decode(part);"
        "tell([...said.slice(1), a.status, text.split(' ').slice(1)]);",
        url,
    )
    assert said == [
        ["own", "talk"],
        "end",
        CANARY,
        200,
        ["part1", "part2", "part3", "part4", "part5", "end"],
    ]
    wire = b"".join(host.seen)
    assert not any(word in wire for word in (CANARY.encode(), guarded.key.encode(), b"predictions", b"part1"))


def test_parts_come_as_they_are_made(guarded: Guarded) -> None:
    """The first part of a stream is there long before its last."""
    script = (
        "const c = new CloisterClient(url, options); const times = [];"
        "const a = await c.fetch('/predictions/talk', {method: 'POST', body: '20', stream: true});"
        "for await (const part of a.body) times.push(Date.now());"
        "tell([times.length, times.at(-1) - times[0]]);"
    )
    count, took_ms = guarded.talk(script)
    assert count > 5
    assert took_ms > 500


def test_credentials(guarded: Guarded) -> None:
    """Without a key, with a wrong one or for another model the server's own refusal arrives, sealed."""
    script = (
        "const told = async (o, m) => {"
        "  try { await new CloisterClient(url, {...options, ...o}).predict(m, '1'); }"
        "  catch (error) { return [error.kind, error.status]; } };"
        "tell([await told({token: undefined}, 'talk'), await told({token: 'clk_x'}, 'talk'),"
        " await told({}, 'own')]);"
    )
    assert guarded.talk(script) == [["serving", 403], ["serving", 401], ["serving", 403]]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ("options.allowSimulated = false;", "policy", "not affirming"),
        ("options.acceptModels = (models) => models.length > 2;", "policy", "models"),
        ("options.verifierKeys = [{kty: 'EC', crv: 'P-256', x: 'AA', y: 'AA'}];", "policy", "not a public"),
        ("const now = Date.now; Date.now = () => now() + 3600e3;", "verification", "not valid now"),
        ("const now = Date.now; Date.now = () => now() - 3600e3;", "verification", "not valid now"),
        (
            "const k = await crypto.subtle.generateKey({name: 'ECDSA', namedCurve: 'P-256'}, true, ['sign']);"
            "options.verifierKeys = [await crypto.subtle.exportKey('jwk', k.publicKey)];",
            "verification",
            "no trusted verifier",
        ),
    ],
    ids=("simulated", "models", "no key", "expired", "from the future", "other verifier"),
)
def test_verdicts_that_do_not_count(
    guarded: Guarded, between: tuple[Between, str], change: str, kind: str, words: str
) -> None:
    """Where the verdict is not the page's verifier's, not for now or not good enough, nothing is sent."""
    host, url = between
    script = f"{change} tell(await failing(new CloisterClient(url, options).predict('talk', '{CANARY}')));"
    found, message = guarded.talk(script, url)
    assert (found, words in message) == (kind, True), message
    assert not any(b"ohttp-gateway" in item for item in host.seen)


def old_evidence(host: Between) -> None:
    """Evidence that was made for another nonce."""
    nonce = base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")
    kept = httpx.get(f"{host.upstream}/.well-known/cloister/evidence?nonce={nonce}").content
    host.change_evidence = lambda _: kept


def own_key(host: Between) -> None:
    """Evidence that names his own OHTTP key."""

    def change(bundle: bytes) -> bytes:
        document = json.loads(bundle)
        data = document["runtime-data"]
        config = bytearray(base64.b64decode(data["ohttp-key-config"]))
        config[3:35] = bytes(range(1, 33))
        data["ohttp-key-config"] = base64.b64encode(config).decode()
        return json.dumps(document).encode()

    host.change_evidence = change


def flipped(host: Between) -> None:
    """An answer with one bit changed."""

    def change(answer: httpx.Response) -> tuple[int, str, bytes]:
        content = bytearray(answer.content)
        content[-1] ^= 1
        return answer.status_code, answer.headers["content-type"], bytes(content)

    host.change_answer = change


def swapped(host: Between) -> None:
    """The answer to another request, which was genuine there."""
    kept: list[bytes] = []

    def change(answer: httpx.Response) -> tuple[int, str, bytes]:
        kept.append(answer.content)
        return answer.status_code, answer.headers["content-type"], kept[0]

    host.change_answer = change


def in_the_clear(host: Between) -> None:
    """An answer that is not sealed at all."""
    host.change_answer = lambda _: (200, "application/json", b'{"digit": 7}')


def other_suite(host: Between) -> None:
    """A request whose header names a suite that nobody knows."""
    host.change_request = lambda capsule: capsule[:5] + b"\x7f\xff" + capsule[7:]


def twice(host: Between) -> None:
    """Each request is sent twice, and the second answer passed on."""
    host.times = 2


@pytest.mark.parametrize(
    ("attack", "kind", "words"),
    [
        (old_evidence, "verification", "nonce"),
        (own_key, "verification", "runtime data"),
        (flipped, "verification", "does not authenticate"),
        (swapped, "verification", "does not authenticate"),
        (in_the_clear, "transport", "without sealing"),
        (other_suite, "verification", "does not know the key"),
        (twice, "transport", "seen this sealed request before: HTTP status 409"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_somebody_between(
    guarded: Guarded,
    between: tuple[Between, str],
    attack: Callable[[Between], None],
    kind: str,
    words: str,
) -> None:
    """Whatever the host changes is an error that says what is wrong, and no answer is believed."""
    host, url = between
    attack(host)
    script = (
        "const c = new CloisterClient(url, options); await c.fetch('/ping').catch(() => 0);"
        f"tell(await failing(c.predict('talk', '1', {{headers: {{'x-mine': '{CANARY}'}}}})));"
    )
    found, message = guarded.talk(script, url)
    assert (found, words in message) == (kind, True), message
    assert CANARY.encode() not in b"".join(host.seen)


def test_replays_are_counted(guarded: Guarded, between: tuple[Between, str]) -> None:
    """A request that comes again is refused, and the metrics say so."""
    host, url = between
    before = metric(guarded, 'cloister_sealed_refusals_total{reason="replayed"')
    twice(host)
    guarded.talk("tell(await failing(new CloisterClient(url, options).predict('talk', '1')));", url)
    assert metric(guarded, 'cloister_sealed_refusals_total{reason="replayed"') > before


@pytest.mark.parametrize("keep", [0, 20, 60, -1])
def test_cut_stream(guarded: Guarded, between: tuple[Between, str], keep: int) -> None:
    """A stream that was cut anywhere is an error, never a short answer."""
    host, url = between
    host.change_answer = lambda answer: (200, answer.headers["content-type"], answer.content[:keep])
    script = (
        "const c = new CloisterClient(url, options);"
        "const all = async () => {"
        "  const a = await c.fetch('/predictions/talk', {method: 'POST', body: '3', stream: true});"
        "  return a.text(); };"
        "tell(await failing(all()));"
    )
    kind, message = guarded.talk(script, url)
    assert (kind, message) in (
        ("verification", "the answer was cut"),
        ("verification", "the answer does not authenticate"),
    )


@pytest.mark.parametrize("page", ["clients/js/README.md", "docs/calling.md"])
def test_documented_example(guarded: Guarded, page: str, tmp_path: Path) -> None:
    """The example of each page runs as it is written, but for addresses, keys and names of models."""
    (example,) = [text for language, text in FENCE.findall((ROOT / page).read_text()) if language == "js"]
    key = json.loads(guarded.verifier_key)
    for old, new in (
        ("https://models.example:8443", guarded.plain),
        ("https://verifier.example:8700", guarded.verifier),
        ('x: "…", y: "…"', f'x: "{key["x"]}", y: "{key["y"]}"'),
        ("clk_…", guarded.key),
        ("  token:", "  allowSimulated: true,\n  token:"),
        ("predictions/story", "predictions/talk"),
        ('body: "Once"', 'body: "3"'),
        ('body: "…"', 'body: "3"'),
        ('"digits", imageBytes', '"talk", "1"'),
        ('"digits", { image: [0, 1, 2] }', '"talk", "1"'),
        ("@cloister/client", str(CLIENT)),
        ("./cloister.js", str(CLIENT)),
        ('model.sandbox !== "none"', 'model.sandbox !== ""'),
    ):
        example = example.replace(old, new)
    assert "example:" not in example
    shown = "const all = await (typeof story === 'object' ? story : stream).text().catch(() => 'read');"
    (tmp_path / "example.mjs").write_text(f"{example}\n{shown}\nconsole.log('END', all.slice(-3));\n")
    done = subprocess.run(
        ["node", "--no-warnings", "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "END end" in done.stdout or "part2" in done.stdout


def test_many_at_once_verify_once(guarded: Guarded, between: tuple[Between, str]) -> None:
    """Requests that begin together share one verification."""
    host, url = between
    script = (
        "const c = new CloisterClient(url, options);"
        "const all = await Promise.all([...Array(8)].map(() => c.predict('talk', '1')));"
        "tell(all.length);"
    )
    assert guarded.talk(script, url) == 8
    assert sum(b"/cloister/evidence" in item for item in host.seen if item.startswith(b"GET")) == 1
