"""Where the shared test vectors are: real evidence and standard vectors, never copied into the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "vectors"


def vectors_folder() -> Path:
    """The folder named by ``CLOISTER_VECTORS``, else the one beside the repository."""
    return Path(os.environ.get("CLOISTER_VECTORS", _BESIDE))


def vector(path: str) -> Path:
    """Path of one vector; skips the test where the folder is absent."""
    folder = vectors_folder()
    if not folder.is_dir():
        pytest.skip(f"no test vectors at {folder}; set CLOISTER_VECTORS")
    return folder / path
