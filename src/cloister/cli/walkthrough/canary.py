"""Canaries: random markers planted in every secret, and the search for them where they must not be."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Markers:
    """One marker of 32 ASCII characters for each kind of secret."""

    weights: str
    handler: str
    request: str
    answer: str

    @classmethod
    def generate(cls) -> Markers:
        """Fresh random markers."""
        return cls(*(f"canary-{kind}-{secrets.token_hex(16)}"[:32] for kind in ("w", "h", "r", "a")))

    @classmethod
    def from_seed(cls, seed: str) -> Markers:
        """Markers that somebody outside of this process knows too: a test that searches on its own."""
        return cls(*(f"canary-{kind}-{seed}".ljust(32, "x")[:32] for kind in ("w", "h", "r", "a")))

    def named(self) -> dict[str, str]:
        """The markers by what they were planted in."""
        return {
            "weights": self.weights,
            "handler source": self.handler,
            "request": self.request,
            "answer": self.answer,
        }


def encodings(marker: str) -> tuple[bytes, ...]:
    """The forms in which a marker might leak: as it is, hexadecimal, base64 at each alignment."""
    raw = marker.encode()
    shifted = (base64.b64encode(b"\0" * pad + raw)[4:-4] for pad in range(3))
    return (raw, raw.hex().encode(), *shifted)


def search(folders: list[Path], markers: Markers) -> Iterator[tuple[Path, str]]:
    """Every regular file below ``folders`` that holds a marker in any encoding, with its kind."""
    needles = {kind: encodings(marker) for kind, marker in markers.named().items()}
    for path in all_files(folders):
        content = path.read_bytes()
        for kind, forms in needles.items():
            if any(form in content for form in forms):
                yield path, kind


def all_files(folders: list[Path]) -> list[Path]:
    """Every regular file below ``folders``."""
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
