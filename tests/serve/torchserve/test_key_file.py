"""TorchServe's tokens and the file that holds them."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigError
from cloister.serve.torchserve.key_file import KeyFile, TokenKind


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def test_the_file(tmp_path: Path) -> None:
    """The file has TorchServe's form, is its owner's only, and goes with the server."""
    path = tmp_path / "key_file.json"
    keys = KeyFile(path, expiration_min=60, now=lambda: datetime(2026, 1, 2, 3, 4, 5, 6, UTC))
    document = read(path)
    assert list(document) == ["management", "inference", "API"]
    assert document["management"]["expiration time"] == "2026-01-02T04:04:05.000006Z"
    assert list(document["API"]) == ["key"]
    assert len({entry["key"] for entry in document.values()}) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys.remove()
    assert not path.exists()
    keys.remove()


def test_each_token_opens_its_own_door(tmp_path: Path) -> None:
    """A token lets in to its own API, in the one form of the header, and nowhere else."""
    path = tmp_path / "key_file.json"
    keys = KeyFile(path, expiration_min=60)
    document = read(path)
    for kind in TokenKind:
        for other in TokenKind:
            assert keys.admits(kind, bearer(document[other.value]["key"])) is (kind is other)
    token = document["inference"]["key"].encode()
    wrong = (b"", b"Bearer", b"Bearer ", token, b"bearer " + token, b"Basic " + token, b"Bearer \xff",
             b"Bearer " + token + b"x", b"Bearer " + token[:-1], b"Bearer " + token + b" ")  # fmt: skip
    assert not any(keys.admits(TokenKind.INFERENCE, header) for header in wrong)
    assert keys.admits(TokenKind.INFERENCE, b"Bearer  " + token)


def test_expiry_and_renewal(tmp_path: Path) -> None:
    """A token ends with its time, the API's does not; a new one replaces it here and in the file."""
    path = tmp_path / "key_file.json"
    clock = [100.0]
    keys = KeyFile(path, expiration_min=1, clock=lambda: clock[0])
    before = read(path)
    header = bearer(before["management"]["key"])
    clock[0] += 59.9
    assert keys.admits(TokenKind.MANAGEMENT, header)
    assert keys.valid_until(TokenKind.MANAGEMENT) == pytest.approx(160.0)
    clock[0] += 0.2
    assert not keys.admits(TokenKind.MANAGEMENT, header)
    assert keys.admits(TokenKind.API, bearer(before["API"]["key"]))
    keys.rotate(TokenKind.MANAGEMENT)
    after = read(path)
    assert not keys.admits(TokenKind.MANAGEMENT, header)
    assert keys.admits(TokenKind.MANAGEMENT, bearer(after["management"]["key"]))
    assert after["inference"] == before["inference"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link of the file's name is replaced, not written through."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    path = tmp_path / "key_file.json"
    path.symlink_to(elsewhere)
    KeyFile(path, expiration_min=60)
    assert elsewhere.read_text() == "mine"
    assert not path.is_symlink()


def test_what_cannot_be(tmp_path: Path) -> None:
    """A time that is none, and a folder that is not there, are configuration errors."""
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError):
            KeyFile(tmp_path / "k", expiration_min=minutes)
    with pytest.raises(ConfigError, match="cannot write"):
        KeyFile(tmp_path / "none" / "k", expiration_min=1)
