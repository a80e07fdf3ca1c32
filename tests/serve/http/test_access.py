"""Tokens in front of the APIs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.serve.frames import Headers
from cloister.serve.http.access import TokenAccess
from cloister.serve.refusals import InvalidKey
from cloister.serve.torchserve.key_file import KeyFile, TokenKind


def make(folder: Path, *open_to: TokenKind) -> TokenAccess:
    return TokenAccess(KeyFile(folder / "k.json", expiration_min=1), open_to)


def header(folder: Path, kind: TokenKind) -> Headers:
    token = json.loads((folder / "k.json").read_text())[kind.value]["key"]
    return [(b"host", b"x"), (b"authorization", f"Bearer {token}".encode())]


def test_without_a_key_file() -> None:
    """Without tokens everybody may come in."""
    access = TokenAccess(None)
    assert not access.is_on
    access.require(TokenKind.MANAGEMENT, [])


def test_with_one(tmp_path: Path) -> None:
    """Only the right token lets in, and only one header may carry it."""
    access = make(tmp_path)
    right = header(tmp_path, TokenKind.INFERENCE)
    access.require(TokenKind.INFERENCE, right)
    for headers in ([], header(tmp_path, TokenKind.MANAGEMENT), [*right, right[1]]):
        with pytest.raises(InvalidKey):
            access.require(TokenKind.INFERENCE, headers)


def test_an_open_door(tmp_path: Path) -> None:
    """A kind can be left open while the others are not."""
    access = make(tmp_path, TokenKind.INFERENCE)
    access.require(TokenKind.INFERENCE, [])
    with pytest.raises(InvalidKey):
        access.require(TokenKind.MANAGEMENT, [])


def test_renewal_is_noticed(tmp_path: Path) -> None:
    """A renewed token changes the generation, so that nobody keeps an old decision."""
    access = make(tmp_path)
    old = header(tmp_path, TokenKind.INFERENCE)
    before = access.generation
    for headers, wanted in ((old, "inference"), (header(tmp_path, TokenKind.API), "API")):
        with pytest.raises(InvalidKey):
            access.renew(wanted, headers)
    assert access.generation == before
    access.renew("inference", header(tmp_path, TokenKind.API))
    assert access.generation != before
    with pytest.raises(InvalidKey):
        access.require(TokenKind.INFERENCE, old)
