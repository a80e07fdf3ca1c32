"""Sealing and loading with keys from memory: what is under test here is the container, not the broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cloister.torch
from cloister.errors import KeyUnavailable
from cloister.seal.signing import SigningKey, TrustedSigners

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

SIGNER = SigningKey.generate()
TRUSTED = TrustedSigners([SIGNER.public])
URI = "kbs:///models/dek/net"


class MemoryBroker:
    """Both sides of a broker: keys are put, and asked for by version."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.asked: list[str] = []

    def put_version(self, uri: str, data: bytes) -> int:
        version = 1 + sum(name.startswith(f"{uri}?") for name in self.held)
        self.held[f"{uri}?version={version}"] = data
        return version

    def set_minimum(self, uri: str, version: int) -> int:
        for number in range(1, version):
            self.held.pop(f"{uri}?version={number}", None)
        return 0

    def get_resource(self, uri: str) -> bytes:
        self.asked.append(uri)
        if uri not in self.held:
            raise KeyUnavailable(f"no {uri}")
        return self.held[uri]


@pytest.fixture
def keys() -> MemoryBroker:
    """A broker in memory."""
    return MemoryBroker()


@pytest.fixture
def through(tmp_path: Path, keys: MemoryBroker) -> Callable[[Any], Any]:
    """Save a checkpoint and load it again."""

    def go(checkpoint: Any) -> Any:
        path = tmp_path / "net.sealed"
        cloister.torch.save(checkpoint, path, URI, signer=SIGNER, registry=keys)
        return cloister.torch.load(path, model_id="net", keys=keys, trusted=TRUSTED)

    return go
