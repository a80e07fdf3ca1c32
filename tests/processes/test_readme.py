"""The README's examples run as they are written, in its order, on a simulated platform; other pages' too."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.settings import load_settings, settings_digest
from tests.processes.server import free_port
from tests.processes.test_protected import ACCESS
from tests.serve.sandbox.inside import sandbox_flags
from tests.test_docs import FENCE, ROOT

HANDLER = """
def handle(data, context):
    return data and [{"digit": 7, "bytes": len(item["body"])} for item in data]
"""
RELEASE = 'permit (principal, action == Action::"release", resource);'


def examples(page: str, language: str) -> list[str]:
    """The blocks of one language in a page, in their order."""
    return [text for found, text in FENCE.findall((ROOT / page).read_text()) if found == language]


@dataclass
class Walk:
    """A folder in which a reader types what the page says."""

    folder: Path
    ports: dict[str, int]
    environment: dict[str, str]

    def here(self, text: str) -> str:
        """An example with this machine's addresses in place of the page's."""
        for name, port in self.ports.items():
            text = re.sub(rf"(https?)://{re.escape(name)}", rf"\1://127.0.0.1:{port}", text)
        return text

    def commands(self, text: str) -> list[list[str]]:
        """The command lines of a block."""
        lines = self.here(text).replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def spell(self, words: list[str]) -> list[str]:
        """A command as this machine runs it; callers have to be told of the simulated root."""
        if words[0] != "cloister":
            return words
        more = ["--simulated-root", "platform/root.pem"] if words[1] in ("verify", "predict", "proxy") else []
        return [sys.executable, "-m", *words, *more]

    def run(self, words: list[str]) -> str:
        """Run one to its end; it has to succeed."""
        done = subprocess.run(
            self.spell(words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    @contextmanager
    def running(self, words: list[str], ready: str) -> Iterator[None]:
        """Keep one running; ``ready`` answers when it is up."""
        log = self.folder / f"{words[1]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.spell(words), cwd=self.folder, env=self.environment, stdout=out, stderr=out
            )
        try:
            deadline = time.monotonic() + 60
            while not self._answers(ready):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(40)

    def _answers(self, url: str) -> bool:
        with suppress(httpx.HTTPError, OSError):
            return httpx.get(url, verify=False).status_code == 200
        return False


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    """What a reader has before the first line: a handler with its files, an image, policies, a platform."""
    ports = {"broker.example:8600": free_port(), "models.example:8443": free_port()}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")},
        "CLOISTER_KEYS_PORT": str(ports["broker.example:8600"]),
        "CLOISTER_KEYS_COLLATERAL": "platform/collateral.json",
        "CLOISTER_KEYS_SIMULATED_ROOT": "platform/root.pem",
        "CLOISTER_SERVE_HTTPS_PORT": str(ports["models.example:8443"]),
        "CLOISTER_ATTEST_ATTESTER": "simulated-tdx",
        "CLOISTER_ATTEST_SIMULATED_PLATFORM": "platform",
        **{f"CLOISTER_{name.upper().replace('.', '_')}": str(v) for name, v in sandbox_flags().items()},
    }
    SimulatedPlatform.create(tmp_path / "platform", datetime.now(UTC))
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "model.py").write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    (tmp_path / "weights.pt").write_bytes(b"weights")
    (tmp_path / "digit.png").write_bytes(b"seven")
    (tmp_path / "release.cedar").write_text(RELEASE)
    (tmp_path / "requests.cedar").write_text(ACCESS)
    return Walk(tmp_path, ports, environment)


def write_references(walk: Walk) -> None:
    """The measurement and the settings of a server that is started with `server.toml`."""
    digest = settings_digest(load_settings(walk.folder / "server.toml", walk.environment)).hex()
    mr_td = measure_package(installed_package()).hex()
    text = f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\nmr_config_id = ["{digest}"]\n'
    (walk.folder / "reference.toml").write_text(text)


def test_readme(walk: Walk) -> None:
    """Owner, operator, caller and auditor, each as the README has it; the answer is the model's."""
    _, owner, operator, caller, auditor = examples("README.md", "bash")[:5]
    (python,) = examples("README.md", "python")
    broker, archive, seal = walk.commands(owner)
    (serve,) = walk.commands(operator)
    (walk.folder / "server.toml").write_text(walk.here(examples("README.md", "toml")[1]))
    write_references(walk)
    with ExitStack() as stack:
        port = walk.ports["broker.example:8600"]
        stack.enter_context(walk.running(broker, f"https://127.0.0.1:{port}/healthz"))
        walk.run(archive)
        said = walk.run(seal)
        found = re.search(r"ed25519:\S+", said)
        assert found is not None, said
        (walk.folder / "signers.txt").write_text(found[0] + "\n")
        (walk.folder / "broker.pem").write_bytes((walk.folder / "keys" / "tls.pem").read_bytes())
        url = f"https://127.0.0.1:{walk.ports['models.example:8443']}"
        stack.enter_context(walk.running(serve, f"{url}/ping"))
        verify, predict = walk.commands(caller)
        assert "accepted" in walk.run(verify)
        assert "7" in walk.run(predict)
        root = "roots=[x509.load_pem_x509_certificate(Path('platform/root.pem').read_bytes())]"
        program = walk.here(python).replace(
            "reference_values=references", f"reference_values=references, {root}"
        )
        program = f"from cryptography import x509\n{program}\nprint(ask(Path('digit.png')))\n"
        (walk.folder / "ask.py").write_text(program)
        assert "'digit': 7" in walk.run([sys.executable, "ask.py"])
        try_proxy_and_curl(walk)
        show, check = walk.commands(auditor)
        assert "release" in walk.run(show)
        walk.run(check)


def try_proxy_and_curl(walk: Walk) -> None:
    """docs/calling.md: the local proxy with curl, and curl with the key that the evidence speaks for."""
    if shutil.which("curl") is None:
        return
    blocks = examples("docs/calling.md", "bash")
    (proxied,) = [block for block in blocks if "cloister proxy" in block]
    (pinned,) = [block for block in blocks if "--pinnedpubkey" in block]
    walk.ports["127.0.0.1:8090"] = port = free_port()
    proxy, curl = walk.commands(proxied)
    health = f"http://127.0.0.1:{port}/.well-known/cloister/proxy"
    with walk.running([*proxy, "--listen", f"127.0.0.1:{port}"], health):
        assert '"digit": 7' in walk.run(curl)
    verify, curl = walk.commands(pinned)
    pin = json.loads(walk.run(verify))["identity"]["tls-key-sha256"]
    assert '"digit": 7' in walk.run([word.replace("<identity.tls-key-sha256>", pin) for word in curl])


def test_open_mode(walk: Walk) -> None:
    """The README's line for an ordinary server, and the one for TorchServe's users."""
    readme = (ROOT / "README.md").read_text()
    plain, torchserve = re.findall(r"`(cloister (?:serve --open|torchserve)[^`]*)`", readme)
    archive = walk.commands(examples("README.md", "bash")[1])[1]
    (walk.folder / "archives").mkdir()
    walk.run([*archive[:-1], "archives/digits.mar"])
    port = free_port()
    walk.environment |= {"CLOISTER_SERVE_HTTP_PORT": str(port), "CLOISTER_ATTEST_ATTESTER": "auto"}
    ask = ["curl", "-sS", "-T", "digit.png", f"http://127.0.0.1:{port}/predictions/digits"]
    with walk.running(shlex.split(plain), f"http://127.0.0.1:{port}/ping"):
        assert '"digit": 7' in walk.run(ask)
    (walk.folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:{free_port()}\n"
        f"metrics_address=http://127.0.0.1:{free_port()}\ndisable_token_authorization=true\n"
        "default_workers_per_model=1\n"
    )
    walk.run(shlex.split(torchserve))
    try:
        assert '"digit": 7' in walk.run(ask)
    finally:
        walk.run(["cloister", "torchserve", "--stop"])


def test_access_page(walk: Walk) -> None:
    """docs/access.md: keys are made, listed and taken back; its policy answers as the page says."""
    page = (ROOT / "docs" / "access.md").read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
    (policy,) = [text for language, text in fences if language in ("", "cedar") and "permit" in text]
    (walk.folder / "requests.cedar").write_text(policy)
    keys, tests = (block for block in examples("docs/access.md", "bash")[:2])
    add, show, remove = walk.commands(keys)[:3]
    assert "clk_" in walk.run(add)
    assert "clinic-1" in walk.run(show)
    walk.run(remove)
    permitted, refused = walk.commands(tests)
    walk.run(permitted)
    done = subprocess.run(walk.spell(refused), cwd=walk.folder, env=walk.environment, capture_output=True)
    assert done.returncode == 3
