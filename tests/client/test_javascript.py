"""The JavaScript client in Node: published vectors, and a conversation with a real service and verifier."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.ohttp import bhttp
from cloister.ohttp.gateway import Gateway
from tests.fakes.sealed_service import MR_TD, SealedService, TlsKey
from tests.vectors import vector

CLIENT = Path(__file__).parents[2] / "clients" / "js" / "cloister.js"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def node(script: str, *arguments: str) -> Any:
    """Run a module that prints one JSON document."""
    names = "CloisterClient, CloisterError, forTests, parseKeyConfig"
    head = f"import {{ {names} }} from {json.dumps(str(CLIENT))};\n"
    done = subprocess.run(
        ["node", "--no-warnings", "--input-type=module", "-", *arguments],
        input=head + script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


VECTOR = """
import { readFileSync } from "node:fs";
const v = JSON.parse(readFileSync(process.argv[2]));
const hex = (text) => Uint8Array.from(Buffer.from(text, "hex"));
const pkcs8 = forTests.concat(hex("302e020100300506032b656e04220420"), hex(v.client_ephemeral_sk));
const privateKey = await crypto.subtle.importKey("pkcs8", pkcs8, { name: "X25519" }, true, ["deriveBits"]);
const jwk = await crypto.subtle.exportKey("jwk", privateKey);
const raw = forTests.fromBase64(jwk.x);
const publicKey = await crypto.subtle.importKey("raw", raw, { name: "X25519" }, true, []);
const config = parseKeyConfig(hex(v.key_config));
const stream = process.argv[3] === "stream";
const sealed = await forTests.sealRequest(config, hex(v.bhttp_request), stream, { privateKey, publicKey });
const answer = await sealed.open(new Response(hex(v.encapsulated_response)));
console.log(JSON.stringify({
  sealed: Buffer.from(sealed.bytes).toString("hex"), status: answer.status, body: await answer.text(),
}));
"""


def test_rfc9458_vector() -> None:
    """RFC 9458, appendix A: the same request byte for byte, and its response opens."""
    path = vector("ohttp/dev/rfc9458_appendix_a.json")
    said = node(VECTOR, str(path), "whole")
    assert said["sealed"] == json.loads(path.read_text())["encapsulated_request"]
    assert (said["status"], said["body"]) == (200, "")


def test_chunked_vector() -> None:
    """The draft's chunked response opens; its request begins with the same header and key."""
    path = vector("ohttp/dev/chunked_ohttp_draft_example.json")
    said = node(VECTOR, str(path), "stream")
    assert said["sealed"][:78] == json.loads(path.read_text())["encapsulated_request"][:78]
    assert said["status"] == 200


@pytest.fixture(scope="module")
def verifier(
    platform: SimulatedPlatform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A verifier process: its address and public key."""
    folder = tmp_path_factory.mktemp("verifier")
    (folder / "values.toml").write_text(f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
    (folder / "root.pem").write_bytes(platform.root.public_bytes(Encoding.PEM))
    command = [str(Path(sys.executable).parent / "cloister"), "verifier", "--listen", "127.0.0.1:0"]
    command += ["--allow-origin", "*"]
    command += ["--key", str(folder / "key.pem"), "-r", str(folder / "values.toml")]
    process = subprocess.Popen(
        [*command, "--simulated-root", str(folder / "root.pem")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    yield url, process.stdout.readline()
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture
def plain(platform: SimulatedPlatform, tls: TlsKey) -> Iterator[SealedService]:
    """A service without TLS: Node takes no self-signed certificate, and sealing does not need one."""
    service = SealedService(platform, tls)
    with service.serving(plain=True):
        yield service


CLIENT_OF = """
const [url, verifier, key] = process.argv.slice(2);
const options = { verifier, verifierKeys: [JSON.parse(key)], allowSimulated: true };
const tell = (value) => console.log(JSON.stringify(value));
const failing = async (promise) => { try { await promise; return null; } catch (error) {
  if (!(error instanceof CloisterError)) throw error; return [error.kind, error.message]; } };
"""


def talk(script: str, service: SealedService, verifier: tuple[str, str]) -> Any:
    """Run a script with ``url``, ``options``, ``tell`` and ``failing`` at hand."""
    return node(CLIENT_OF + script, service.url, *verifier)


def test_predict(plain: SealedService, verifier: tuple[str, str]) -> None:
    """A verified, sealed prediction; nothing of it is outside."""
    said = talk(
        "const c = new CloisterClient(url, options);"
        "tell([await c.predict('echo', {secret: 'canary-91'}), (await c.verify()).models[0].name]);",
        plain,
        verifier,
    )
    assert said[0]["path"] == "/predictions/echo"
    assert said[0]["type"] == "application/json"
    assert said[1] == "echo"
    assert not any("predictions" in line or "canary-91" in line for line in plain.outer)


def test_stream(plain: SealedService, verifier: tuple[str, str]) -> None:
    """A streamed answer is read whole; one that is cut is an error."""
    plain.answer = lambda request: bhttp.Response(201, ((b"x-a", b"b"),), b"abcdefgh")
    script = (
        "const c = new CloisterClient(url, options);"
        "const a = await c.fetch('/x', {method: 'POST', body: 'q'.repeat(40000), stream: true});"
        "tell([a.status, a.headers.get('x-a'), await a.text()]);"
    )
    assert talk(script, plain, verifier) == [201, "b", "abcdefgh"]
    assert len(plain.requests[0].content) == 40_000
    plain.change_stream = lambda parts: islice(parts, 3)
    said = talk(
        "const c = new CloisterClient(url, options);"
        "const a = await c.fetch('/x', {stream: true}); tell(await failing(a.text()));",
        plain,
        verifier,
    )
    assert said == ["verification", "the answer was cut"]


def test_new_keys(plain: SealedService, verifier: tuple[str, str]) -> None:
    """A service with new keys is verified again by itself."""
    plain.answer = lambda request: (setattr(plain, "gateway", Gateway.generate()), bhttp.Response(200))[1]
    said = talk(
        "const c = new CloisterClient(url, options);"
        "tell([(await c.fetch('/a')).status, (await c.fetch('/b')).status]);",
        plain,
        verifier,
    )
    assert said == [200, 200]
    assert plain.evidence_given == 2


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("options.allowSimulated = false", "policy"),
        ("options.verifierKeys[0].x = options.verifierKeys[0].y", "verification"),
        ("options.acceptModels = (models) => models.length > 1", "policy"),
        ("options.verifier = 'http://127.0.0.1:9'", "transport"),
    ],
)
def test_refusals(plain: SealedService, verifier: tuple[str, str], change: str, kind: str) -> None:
    """No trusted verdict: an error of its kind, and nothing is sent to the service."""
    script = f"{change}; tell(await failing(new CloisterClient(url, options).predict('echo', 'x')));"
    if "verifierKeys" in change:  # a point that is not on the curve cannot even be imported
        other = (
            "const k = await crypto.subtle.generateKey({name: 'ECDSA', namedCurve: 'P-256'}, true, ['sign']);"
        )
        change = other + "options.verifierKeys = [await crypto.subtle.exportKey('jwk', k.publicKey)]"
        script = f"{change}; tell(await failing(new CloisterClient(url, options).predict('echo', 'x')));"
    assert talk(script, plain, verifier)[0] == kind
    assert plain.capsules == []


def test_another_services_evidence(plain: SealedService, verifier: tuple[str, str]) -> None:
    """Evidence over another nonce gets no verdict."""
    honest = plain.bundle
    plain.make_bundle = lambda nonce: honest(bytes(32))
    said = talk("tell(await failing(new CloisterClient(url, options).verify()));", plain, verifier)
    assert said[0] == "verification"


def test_changed_answer(plain: SealedService, verifier: tuple[str, str]) -> None:
    """A flipped byte in an answer is refused."""
    plain.change_answer = lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1])
    said = talk("tell(await failing(new CloisterClient(url, options).fetch('/x')));", plain, verifier)
    assert said == ["verification", "the answer does not authenticate"]


def test_answers_that_break_off(plain: SealedService, verifier: tuple[str, str]) -> None:
    """A body that ends early and one that is no JSON, as it says it is, are errors of this client's kinds."""
    cut = (
        "const real = fetch;"
        "options.fetch = async (at, init) => { const a = await real(at, init);"
        " if (!at.includes('ohttp')) return a;"
        " const body = new ReadableStream({ start: (c) => c.error(new TypeError('terminated')) });"
        " return new Response(body, { status: a.status, headers: a.headers }); };"
    )
    ask = "tell(await failing(new CloisterClient(url, options).predict('echo', 'x')));"
    assert talk(cut + ask, plain, verifier) == ["transport", "the answer broke off"]
    plain.answer = lambda request: bhttp.Response(200, ((b"content-type", b"application/json"),), b"{")
    assert talk(ask, plain, verifier) == ["malformed", "the answer is not JSON"]


def test_an_age_that_is_no_number(plain: SealedService, verifier: tuple[str, str]) -> None:
    """Nothing is older than NaN: such a client verifies each time."""
    script = (
        "const c = new CloisterClient(url, { ...options, maxAgeMs: NaN });"
        "await c.fetch('/a'); await c.fetch('/b'); tell(true);"
    )
    assert talk(script, plain, verifier) is True
    assert plain.evidence_given == 2
