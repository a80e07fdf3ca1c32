"""The model owner's acts: seal a model under a new data key, and seal it anew under another one.

The key exists in this process only between the two calls. It is registered first: a container whose key is
nowhere would be lost, a key without a container is harmless. Once the container is there, the broker is told
to release no older version of its key: that is what ends the life of the containers that came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError
from cloister.seal.reader import SealedFile, open_sealed
from cloister.seal.signing import SigningKey, TrustedSigners
from cloister.seal.store import ModelStore
from cloister.seal.writer import seal_file, seal_parts

Kind = Literal["mar", "safetensors", "file"]
SLAB_BYTES = 1 << 20
KINDS: dict[str, Kind] = {".mar": "mar", ".safetensors": "safetensors"}


class KeyRegistry(Protocol):
    """Where a new data key is registered: ``BrokerAdmin``."""

    def put_version(self, uri: str, data: bytes) -> int:
        """Store one secret under ``kbs:///repository/type/tag``; returns its version number."""
        ...


class KeyKeeper(KeyRegistry, Protocol):
    """Where older versions of a key are ended, too: ``BrokerAdmin``."""

    def set_minimum(self, uri: str, version: int) -> int:
        """Have versions below ``version`` released to nobody; returns the minimum before."""
        ...


@dataclass(frozen=True, slots=True)
class SealRequest:
    """What to seal, and under which names."""

    source: Path
    name: str
    version: str
    sequence: int
    key_uri: str
    keep_old: bool = False
    """Whether containers under older versions of the key go on to be opened."""


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
    admin: KeyKeeper,
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
    placed = _placed(target, store, signer)
    if not request.keep_old:
        admin.set_minimum(request.key_uri, key_version)
    return placed


def reseal_model(
    container: Path,
    *,
    key: SecretKey,
    admin: KeyKeeper,
    signer: SigningKey,
    trusted: TrustedSigners,
    store: Path | None = None,
    out: Path | None = None,
    keep_old: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Seal the model in a container under a new data key, with the next sequence number.

    The plaintext goes through memory a slab at a time, and never to a disk.

    Args:
        key: the container's present data key.
        trusted: who may have signed the container.
        keep_old: whether the container that was goes on to be opened.
    Returns:
        The new container's path.
    Raises:
        VerificationError: the container is not genuine, or ``key`` is another one's.
        ConfigError, KeyUnavailable, TransportError, RollbackRefused: as ``seal_model``.
    """
    with open_sealed(container, key=key, trusted=trusted) as plain:
        old = plain.header
        request = SealRequest(container, old.name, old.version, old.sequence + 1, old.key, keep_old)
        target = out if out is not None else _staging(store, request)
        fresh = SecretKey.generate()
        key_version = admin.put_version(old.key, fresh.raw)
        seal_parts(
            _slabs(plain),
            old.plaintext_bytes,
            target,
            key=fresh,
            name=old.name,
            version=old.version,
            sequence=request.sequence,
            kind=old.kind,
            key_uri=old.key,
            key_version=key_version,
            signer=signer,
            progress=progress,
        )
    placed = _placed(target, store, signer)
    if not keep_old:
        admin.set_minimum(old.key, key_version)
    return placed


def _slabs(plain: SealedFile) -> Iterator[memoryview]:
    slab = memoryview(bytearray(SLAB_BYTES))
    while count := plain.readinto(slab):
        yield slab[:count]


def _placed(target: Path, store: Path | None, signer: SigningKey) -> Path:
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
