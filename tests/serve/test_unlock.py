"""A server beside a key cache unlocks its models through it: no broker, no evidence."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import structlog

from cloister.attest.model import Evidence
from cloister.crypto.locked import LockedSecret
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.cache.local import LocalServer
from cloister.kbs.owner import SealRequest, seal_model
from cloister.seal.signing import SigningKey
from cloister.serve.unlock import unlock_models
from cloister.settings import ServeSettings
from tests.processes.server import pack

URI = "kbs:///models/digits/1"


class Owner:
    """Keeps the key that sealing registers."""

    key = b""

    def put_version(self, uri: str, data: bytes) -> int:
        self.key = data
        return 1

    def set_minimum(self, uri: str, version: int) -> int:
        return 0


class NoTee:
    """An Attester that must not be asked."""

    scheme = "tdx"

    def get_evidence(self, report_data: bytes) -> Evidence:
        raise AssertionError("evidence was asked for")

    def get_endorsements(self) -> None:
        return None


def test_models_unlock_through_a_cache(tmp_path: Path) -> None:
    """With ``serve.broker = unix:/path`` the key comes from the cache, in the version of the header."""
    owner, signer = Owner(), SigningKey.generate()
    archive = pack(tmp_path, "digits", "def handle(data, context): return data\n")
    request = SealRequest(source=archive, name="digits", version="1", sequence=1, key_uri=URI)
    arguments: dict[str, Any] = {"admin": owner, "signer": signer, "store": tmp_path / "store"}
    seal_model(request, **arguments)
    (tmp_path / "signers").write_text(signer.public)
    asked: list[str] = []

    def fetch(uri: str) -> LockedSecret:
        asked.append(uri)
        return LockedSecret.of(owner.key, required=False)

    keep = KeyKeep([URI], fetch, lambda: 0.0, lease_s=60, grace_s=0)
    with tempfile.TemporaryDirectory() as folder:
        log = structlog.wrap_logger(structlog.testing.CapturingLogger())
        server = LocalServer(Path(folder) / "s", keep, (os.getuid(),), log).start()
        try:
            settings = ServeSettings(
                model_store=str(tmp_path / "store"),
                trusted_signers=str(tmp_path / "signers"),
                broker=f"unix:{folder}/s",
            )
            (source,) = unlock_models(settings, [], NoTee())
        finally:
            server.close()
    assert os.read(source.archive_fd, 1 << 20) == archive.read_bytes()
    os.close(source.archive_fd)
    assert asked == [f"{URI}?version=1"]
