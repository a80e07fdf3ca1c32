"""A protected Cloister with the tiny model: simulated TEE, broker, sealed store, server; sealed load."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers import Running, free_port, pack_tiny, stop

from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.kbs.client import BrokerAdmin
from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model
from cloister.ohttp import bhttp
from cloister.ohttp.capsule import parse_key_configs, seal_request
from cloister.ohttp.replay import render_date
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import ModelStore
from cloister.settings import load_settings, settings_digest

HERE = Path(__file__).resolve().parent
GATEWAY = "/.well-known/ohttp-gateway"
POLICY = "permit (principal, action, resource);\n"
RUN_BROKER = (
    "import json, sys; from cloister.kbs.server import run_broker; "
    "from cloister.settings import load_settings; "
    "run_broker(load_settings(None, {}, json.loads(sys.argv[1])).keys)"
)


@dataclass
class Protected:
    """The server's two ways in."""

    tls: Running
    plain: Running


@contextlib.contextmanager
def start_protected(*, batching: bool, work: Path) -> Iterator[Protected]:
    """Broker and server, from their start to their end."""
    work.mkdir(parents=True, exist_ok=True)
    https_port, http_port, broker_port = free_port(), free_port(), free_port()
    flags: dict[str, Any] = {
        "serve.model_store": str(work / "store"),
        "serve.https_port": https_port,
        "serve.http_port": http_port,
        "serve.broker": f"https://127.0.0.1:{broker_port}",
        "serve.broker_ca": str(work / "keys" / "tls.pem"),
        "serve.trusted_signers": str(work / "signers.txt"),
        "serve.sandbox": "best-effort",
        "serve.access_policy": str(work / "access.cedar"),
        "attest.attester": "simulated-tdx",
        "attest.simulated_platform": str(work / "platform"),
    }
    SimulatedPlatform.create(work / "platform", datetime.now(UTC))
    mr_td = measure_package(installed_package()).hex()
    digest = settings_digest(load_settings(None, {}, flags)).hex()
    reference = f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\nmr_config_id = ["{digest}"]\n'
    (work / "reference.toml").write_text(reference)
    (work / "policy.cedar").write_text(POLICY)
    (work / "access.cedar").write_text("permit (principal, action, resource);")
    keys = {
        "keys.folder": str(work / "keys"),
        "keys.port": broker_port,
        "keys.reference_values": str(work / "reference.toml"),
        "keys.policy": str(work / "policy.cedar"),
        "keys.collateral": str(work / "platform" / "collateral.json"),
        "keys.simulated_root": str(work / "platform" / "root.pem"),
    }
    with contextlib.ExitStack() as stack:
        broker = _spawn([sys.executable, "-c", RUN_BROKER, json.dumps(keys)], work / "broker.log")
        stack.callback(stop, broker)
        _wait(f"{flags['serve.broker']}/healthz", broker, work / "broker.log", work / "keys" / "tls.pem")
        _seal_into(work, flags["serve.broker"], 16 if batching else 1)
        log = work / "protected.log"
        server = _spawn([sys.executable, str(HERE / "cloister_app.py"), json.dumps(flags)], log)
        stack.callback(stop, server)
        _wait(f"http://127.0.0.1:{http_port}/ping", server, log)
        body = "[0.1, 0.2, 0.3, 0.4]"
        tls = Running("TLS", f"https://127.0.0.1:{https_port}/predictions/tiny", server, body, log)
        plain = Running("OHTTP", f"http://127.0.0.1:{http_port}{GATEWAY}", server, body, log)
        yield Protected(tls, plain)


def seal_bodies(server: Running, target: Path, count: int) -> None:
    """Write ``count`` sealed requests, as a load generator may send each of them once."""
    with urllib.request.urlopen(server.url) as answer:
        config = parse_key_configs(answer.read())[0]
    headers = (
        (b"content-type", b"application/json"),
        (b"date", render_date(datetime.now(UTC))),
    )
    request = bhttp.Request(
        b"POST", b"https", b"localhost", b"/predictions/tiny", headers, server.body.encode()
    )
    message = bhttp.render_request(request)
    with target.open("wb") as file:
        for _ in range(count):
            capsule, _ = seal_request(config, message)
            file.write(b"%d\n%b" % (len(capsule), capsule))


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _seal_into(work: Path, broker: str, batch_size: int) -> None:
    archive = work / "tiny.mar"
    pack_tiny(archive, batch_size, work / "model.yaml")
    signer = load_or_create_signer(work / "signer.key")
    (work / "signers.txt").write_text(signer.public + "\n")
    token, certificate = work / "keys" / "admin.token", work / "keys" / "tls.pem"
    with BrokerAdmin(broker, token=token.read_text(), ca=certificate) as admin:
        request = SealRequest(
            source=archive, name="tiny", version="1.0", sequence=1, key_uri="kbs:///models/tiny/1"
        )
        container = seal_model(request, admin=admin, signer=signer, out=work / "tiny.sealed")
    ModelStore(work / "store", TrustedSigners.from_lines([signer.public])).add(container)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, certificate: Path | None = None) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            context = ssl.create_default_context(cafile=str(certificate)) if certificate else None
            with urllib.request.urlopen(url, context=context, timeout=5):
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer: {log.read_text()[-2000:]}")
