"""One small sealed container and the keys that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.keys import SecretKey
from cloister.seal import SigningKey, TrustedSigners, seal_file

SIGNER = SigningKey.generate()
OTHER_SIGNER = SigningKey.generate()
TRUSTED = TrustedSigners([SIGNER.public])
KEY = SecretKey.generate()
CREATED = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Sealed:
    """A container on disk and what went into it."""

    path: Path
    plaintext: bytes


@pytest.fixture
def seal(tmp_path: Path) -> Callable[..., Sealed]:
    """Seals bytes into a new container; keyword arguments replace the usual header fields."""
    count = iter(range(1000))

    def make(plaintext: bytes = b"weights" * 20, **fields: Any) -> Sealed:
        number = next(count)
        source, target = tmp_path / f"plain-{number}", tmp_path / f"container-{number}.sealed"
        source.write_bytes(plaintext)
        usual: dict[str, Any] = {
            "key": KEY,
            "signer": SIGNER,
            "name": "digits",
            "version": "1.0",
            "sequence": 1,
            "kind": "file",
            "key_uri": "kbs:///models/dek/digits-1",
            "created": CREATED,
        }
        seal_file(source, target, **{**usual, **fields})
        return Sealed(target, plaintext)

    return make
