"""A real broker on loopback HTTPS, and a simulated TEE that talks to it, for the tests of this folder."""

from __future__ import annotations

import base64
import ssl
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import structlog
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.binding import report_data_for
from cloister.attest.model import Endorsements, Evidence
from cloister.attest.simulated import SimulatedPlatform
from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.kbs.client import BrokerAdmin, BrokerClient
from cloister.kbs.server import bind, create_app, uvicorn_config
from cloister.policy.cedar import UNSAFE_SIMULATED_POLICY, shipped
from cloister.settings import KeysSettings

MR_TD = bytes.fromhex("11" * 48)
MR_CONFIG_ID = bytes.fromhex("22" * 48)
REFERENCE = f"""allow_simulated = true

[tdx]
mr_td = ["{MR_TD.hex()}"]
mr_config_id = ["{MR_CONFIG_ID.hex()}"]
"""


@dataclass
class Tee:
    """A simulated trust domain; ``quote`` changes what it shows."""

    platform: SimulatedPlatform
    quote: dict[str, Any] = field(default_factory=dict)
    scheme: str = "tdx"

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote, changed as asked."""
        shown = {"mr_td": MR_TD, "mr_config_id": MR_CONFIG_ID, "report_data": report_data, **self.quote}
        return Evidence("tdx", self.platform.quote(**shown))

    def get_endorsements(self) -> Endorsements | None:
        """None: the broker has its own."""
        return None


class RunningBroker:
    """A broker in a thread of this process, with files that a test may change while it runs."""

    def __init__(self, folder: Path, platform: SimulatedPlatform, /, **changes: Any) -> None:
        self.folder = folder
        self.platform = platform
        folder.mkdir(parents=True, exist_ok=True)
        self.reference = folder / "reference.toml"
        self.reference.write_text(REFERENCE)
        self.policy = folder / "release.cedar"
        self.policy.write_text(shipped(UNSAFE_SIMULATED_POLICY))
        collateral = folder / "collateral.json"
        collateral.write_bytes(msgspec.json.encode(platform.endorsements(datetime.now(UTC)).to_mapping()))
        root = folder / "root.pem"
        root.write_bytes(platform.root.public_bytes(Encoding.PEM))
        defaults: dict[str, Any] = {
            "folder": str(folder / "keys"),
            "reference_values": str(self.reference),
            "policy": str(self.policy),
            "collateral": str(collateral),
            "simulated_root": str(root),
        }
        self.settings = KeysSettings(**{**defaults, **changes})
        self.state = Path(self.settings.folder)
        self.logs: list[dict[str, Any]] = []
        self.app = create_app(self.settings, log=self._logger())
        self._listener = bind("127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn_config(self.app, self.settings))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop, as SIGTERM does."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    @property
    def ca(self) -> Path:
        """What clients trust."""
        return self.state / "tls.pem"

    def client(self, **quote: Any) -> BrokerClient:
        """A client in a TEE whose quotes are changed as given."""
        return BrokerClient(self.url, attester=Tee(self.platform, quote), ca=self.ca)

    def admin(self, token: str | None = None) -> BrokerAdmin:
        """The owner, or somebody with another token."""
        shown = (self.state / "admin.token").read_text() if token is None else token
        return BrokerAdmin(self.url, token=shown, ca=self.ca)

    def put(self, uri: str, data: bytes) -> None:
        """Store a resource as the owner."""
        with self.admin() as admin:
            admin.put_resource(uri, data)

    def http(self) -> httpx.Client:
        """Plain HTTPS, for requests that no honest client makes."""
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(base_url=self.url, verify=context, trust_env=False)

    def _logger(self) -> Any:
        def keep(_logger: Any, level: str, event: dict[str, Any]) -> dict[str, Any]:
            self.logs.append({"level": level, **event})
            raise structlog.DropEvent

        return structlog.wrap_logger(structlog.PrintLogger(), processors=[keep])


@dataclass
class Run:
    """One hand-made run of the protocol; each field can be spoiled before the step that sends it."""

    broker: RunningBroker
    http: httpx.Client
    key: TeePrivateKey = field(default_factory=TeePrivateKey.generate)
    nonce: str = ""

    def auth(self, **change: Any) -> httpx.Response:
        """Step 1."""
        request = {"version": "0.4.0", "tee": "tdx", "extra-params": "", **change}
        response = self.http.post("/kbs/v0/auth", json=request)
        if response.status_code == 200:
            self.nonce = response.json()["nonce"]
        return response

    def body(self, **quote: Any) -> dict[str, Any]:
        """The honest message of step 2."""
        public = TeePublicKey.from_jwk(self.key.public_jwk)
        runtime = {"additional-evidence": "", "nonce": self.nonce, "tee-pubkey": dict(public.jwk)}
        raw = Tee(self.broker.platform, quote).get_evidence(report_data_for(runtime)).raw
        return {
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": dict(public.jwk)},
            "tee-evidence": {
                "primary_evidence": {"cc_eventlog": None, "quote": base64.b64encode(raw).decode()},
                "additional_evidence": "",
            },
        }

    def attest(self, body: Any) -> httpx.Response:
        """Step 2."""
        return self.http.post("/kbs/v0/attest", json=body)

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        """Step 3."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.http.get(f"/kbs/v0/resource/{path}", headers=headers)
