"""The model owner's act: make a data key, hand it to the broker, seal the model under it.

The key exists in this process only between the two calls. It is registered first: a container whose key is
nowhere would be lost, a key without a container is harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError
from cloister.seal.signing import SigningKey, TrustedSigners
from cloister.seal.store import ModelStore
from cloister.seal.writer import seal_file

Kind = Literal["mar", "safetensors", "file"]
KINDS: dict[str, Kind] = {".mar": "mar", ".safetensors": "safetensors"}


class KeyRegistry(Protocol):
    """Where a new data key is registered: ``BrokerAdmin``."""

    def put_version(self, uri: str, data: bytes) -> int:
        """Store one secret under ``kbs:///repository/type/tag``; returns its version number."""
        ...


@dataclass(frozen=True, slots=True)
class SealRequest:
    """What to seal, and under which names."""

    source: Path
    name: str
    version: str
    sequence: int
    key_uri: str


def load_or_create_signer(path: Path) -> SigningKey:
    """The Ed25519 key in ``path``; made there, readable by its owner only, if there is none."""
    if path.exists():
        return SigningKey.load(path)
    key = SigningKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    key.save(path)
    return key


def seal_model(
    request: SealRequest,
    *,
    admin: KeyRegistry,
    signer: SigningKey,
    store: Path | None = None,
    out: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Register a new data key and write the container; returns the container's path.

    Args:
        store: folder of a model store that takes the container, or None to write ``out``.
        progress: called with the plaintext bytes sealed so far.
    Raises:
        ConfigError: the source is missing, or neither a store nor an output was given.
        KeyUnavailable, TransportError: the broker did not take the key.
        RollbackRefused: the store already holds a higher sequence of this model.
    """
    if not request.source.is_file():
        raise ConfigError(f"no such file: {request.source}")
    target = out if out is not None else _staging(store, request)
    key = SecretKey.generate()
    key_version = admin.put_version(request.key_uri, key.raw)
    seal_file(
        request.source,
        target,
        key=key,
        name=request.name,
        version=request.version,
        sequence=request.sequence,
        kind=KINDS.get(request.source.suffix, "file"),
        key_uri=request.key_uri,
        key_version=key_version,
        signer=signer,
        progress=progress,
    )
    if store is None:
        return target
    try:
        return ModelStore(store, TrustedSigners([signer.public])).add(target).path
    finally:
        target.unlink(missing_ok=True)


def _staging(store: Path | None, request: SealRequest) -> Path:
    if store is None:
        raise ConfigError("sealing needs a store or an output file")
    store.mkdir(parents=True, exist_ok=True)
    return store / f".{request.name}-{request.version}-{request.sequence}.incoming"
