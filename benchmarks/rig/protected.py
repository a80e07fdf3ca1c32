"""A protected Cloister: simulated TEE, broker, sealed store, server; and requests that are sealed ahead."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.attest.measure import installed_package, measure_package
from cloister.attest.simulated import SimulatedPlatform
from cloister.kbs.client import BrokerAdmin
from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model
from cloister.ohttp import bhttp
from cloister.ohttp.capsule import ResponseOpener, parse_key_configs, seal_request
from cloister.ohttp.replay import render_date
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import ModelStore
from cloister.settings import load_settings, settings_digest
from rig.callers import write_bodies
from rig.servers import Running, free_port, on_cores, processor_s, spawn, stop
from rig.tiny_servers import BODY, pack_tiny

HERE = Path(__file__).resolve().parent
GATEWAY = "/.well-known/ohttp-gateway"
SEALED_TYPE = "message/ohttp-req"
POLICY = "permit (principal, action, resource);\n"
START_S = 300.0
RUN_BROKER = (
    "import json, sys; from cloister.kbs.server import run_broker; "
    "from cloister.settings import load_settings; "
    "run_broker(load_settings(None, {}, json.loads(sys.argv[1])).keys)"
)


@dataclass
class Protected:
    """The server's two ways in, and where the broker and its keys are."""

    process: subprocess.Popen[bytes]
    https_port: int
    http_port: int
    work: Path
    log: Path

    def processor_s(self) -> float:
        """Processor time that the server and its workers have used so far."""
        return processor_s(self.process.pid)

    def over_tls(self, name: str, body: str | bytes, content_type: str = "application/json") -> Running:
        """A model over attested TLS."""
        url = f"https://127.0.0.1:{self.https_port}/predictions/{name}"
        return Running("TLS", url, self.process, body, self.log, {"content-type": content_type})

    def over_ohttp(self, name: str, body: str | bytes, content_type: str = "application/json") -> Running:
        """The gateway; which model is meant is inside the sealed request."""
        url = f"http://127.0.0.1:{self.http_port}{GATEWAY}"
        return Running("OHTTP", url, self.process, body, self.log, {"content-type": SEALED_TYPE})


class Stage:
    """Platform, broker, owner and sealed store in one folder; servers may come and go."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.broker_port = work, free_port()
        self._https, self._http = free_port(), free_port()
        self.flags: dict[str, Any] = {
            "serve.model_store": str(work / "store"),
            "serve.https_port": self._https,
            "serve.http_port": self._http,
            "serve.broker": f"https://127.0.0.1:{self.broker_port}",
            "serve.broker_ca": str(work / "keys" / "tls.pem"),
            "serve.trusted_signers": str(work / "signers.txt"),
            "serve.sandbox": "best-effort",
            "serve.access_policy": str(work / "access.cedar"),
            "serve.startup_timeout_s": START_S,
            "attest.attester": "simulated-tdx",
            "attest.simulated_platform": str(work / "platform"),
        }
        self.platform = SimulatedPlatform.create(work / "platform", datetime.now(UTC))

    @contextlib.contextmanager
    def broker(self, archives: Sequence[Path]) -> Iterator[None]:
        """The broker with the keys of the sealed archives, from its start to its end."""
        work = self.work
        mr_td = measure_package(installed_package()).hex()
        digest = settings_digest(load_settings(None, {}, self.flags)).hex()
        reference = f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\nmr_config_id = ["{digest}"]\n'
        (work / "reference.toml").write_text(reference)
        (work / "policy.cedar").write_text(POLICY)
        (work / "access.cedar").write_text(POLICY)
        keys = {
            "keys.folder": str(work / "keys"),
            "keys.port": self.broker_port,
            "keys.reference_values": str(work / "reference.toml"),
            "keys.policy": str(work / "policy.cedar"),
            "keys.collateral": str(work / "platform" / "collateral.json"),
            "keys.simulated_root": str(work / "platform" / "root.pem"),
        }
        process = spawn([sys.executable, "-c", RUN_BROKER, json.dumps(keys)], work / "broker.log")
        try:
            url = f"{self.flags['serve.broker']}/healthz"
            wait_answer(url, process, work / "broker.log", work / "keys" / "tls.pem")
            for archive in archives:
                self._seal(archive)
            yield
        finally:
            stop(process)

    def command(self, *, cores: str = "") -> tuple[list[str], int]:
        """How to start the server, and its port of attested TLS."""
        command = [sys.executable, str(HERE / "cloister_app.py"), json.dumps(self.flags)]
        return on_cores(command, cores), self._https

    @contextlib.contextmanager
    def server(self, *, cores: str = "") -> Iterator[Protected]:
        """The server with all models of the store, from its start to its end."""
        log = self.work / "protected.log"
        process = spawn(self.command(cores=cores)[0], log)
        try:
            wait_answer(f"http://127.0.0.1:{self._http}/ping", process, log)
            yield Protected(process, self._https, self._http, self.work, log)
        finally:
            stop(process)

    def _seal(self, archive: Path) -> None:
        name = archive.stem
        signer = load_or_create_signer(self.work / "signer.key")
        (self.work / "signers.txt").write_text(signer.public + "\n")
        token, certificate = self.work / "keys" / "admin.token", self.work / "keys" / "tls.pem"
        with BrokerAdmin(self.flags["serve.broker"], token=token.read_text(), ca=certificate) as admin:
            request = SealRequest(
                source=archive, name=name, version="1.0", sequence=1, key_uri=f"kbs:///models/{name}/1"
            )
            container = seal_model(request, admin=admin, signer=signer, out=self.work / f"{name}.sealed")
        ModelStore(self.work / "store", TrustedSigners.from_lines([signer.public])).add(container)
        container.unlink()


@contextlib.contextmanager
def start_protected(archives: Sequence[Path], work: Path) -> Iterator[Protected]:
    """Broker and server with these models, from their start to their end."""
    stage = Stage(work)
    with stage.broker(archives), stage.server() as server:
        yield server


@contextlib.contextmanager
def start_protected_tiny(*, batching: bool, work: Path) -> Iterator[Protected]:
    """Broker and server with the tiny model."""
    work.mkdir(parents=True, exist_ok=True)
    pack_tiny(work / "tiny.mar", 16 if batching else 1, work / "model.yaml")
    with start_protected([work / "tiny.mar"], work) as server:
        yield server


def seal_bodies(
    server: Protected,
    target: Path,
    count: int,
    *,
    name: str = "tiny",
    body: str | bytes = BODY,
    content_type: str = "application/json",
    keep: int = 0,
) -> list[ResponseOpener]:
    """Write ``count`` sealed requests, as a load generator may send each of them once.

    Returns:
        What opens the answers to the first ``keep`` of them.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{GATEWAY}") as answer:
        config = parse_key_configs(answer.read())[0]
    content = body.encode() if isinstance(body, str) else body
    headers = ((b"content-type", content_type.encode()), (b"date", render_date(datetime.now(UTC))))
    request = bhttp.Request(
        b"POST", b"https", b"localhost", f"/predictions/{name}".encode(), headers, content
    )
    message = bhttp.render_request(request)
    openers: list[ResponseOpener] = []

    def sealed() -> Iterator[bytes]:
        for number in range(count):
            capsule, opener = seal_request(config, message)
            if number < keep:
                openers.append(opener)
            yield capsule

    write_bodies(target, sealed())
    return openers


def wait_answer(
    url: str, process: subprocess.Popen[bytes], log: Path, certificate: Path | None = None
) -> None:
    """Wait until an URL answers 200."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            context = ssl.create_default_context(cafile=str(certificate)) if certificate else None
            with urllib.request.urlopen(url, context=context, timeout=5):
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer: {log.read_text()[-3000:]}")
