"""Signing keys and the list of trusted ones."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import BadSignature, ConfigError, MalformedInput, UntrustedRoot
from cloister.seal.signing import SigningKey, TrustedSigners, parse_public, render_public, verify_signature

KEY = SigningKey.generate()


def test_key_survives_its_file(tmp_path: Path) -> None:
    """A saved key is private to its owner and signs as before."""
    path = tmp_path / "key.pem"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = SigningKey.load(path)
    assert loaded.public == KEY.public
    verify_signature(KEY.public, loaded.sign(b"data"), b"data")


def test_key_is_never_overwritten(tmp_path: Path) -> None:
    """Saving onto an existing file is refused and leaves it as it was."""
    path = tmp_path / "key.pem"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError):
        KEY.save(path)
    assert path.read_bytes() == b"precious"


def test_bad_key_files_are_refused(tmp_path: Path) -> None:
    """A missing file, one that others may read, one that is no key, and a key of another kind."""
    with pytest.raises(ConfigError):
        SigningKey.load(tmp_path / "none")
    path = tmp_path / "open.pem"
    KEY.save(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="other users"):
        SigningKey.load(path)
    x25519 = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"text", x25519):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError):
            SigningKey.load(path)


def test_key_shows_nothing_secret() -> None:
    """Printing shows the public key only, and pickling is refused."""
    assert repr(KEY) == f"SigningKey(public={KEY.public!r})"
    with pytest.raises(TypeError):
        pickle.dumps(KEY)


def test_signature_of_other_data_or_key_is_refused() -> None:
    """A signature holds for its data and its signer only."""
    signature = KEY.sign(b"data")
    for signer, signed, data in (
        (KEY.public, signature, b"date"),
        (KEY.public, signature[:-1], b"data"),
        (SigningKey.generate().public, signature, b"data"),
    ):
        with pytest.raises(BadSignature):
            verify_signature(signer, signed, data)


@given(raw=st.binary(min_size=32, max_size=32))
def test_public_text_round_trips(raw: bytes) -> None:
    """Every 32 bytes have one text, and the text gives them back."""
    assert parse_public(render_public(raw)) == raw


@given(text=st.text() | st.from_regex(r"ed25519:[A-Za-z0-9_=-]{40,46}", fullmatch=True))
def test_public_text_is_strict(text: str) -> None:
    """Any text is either the one form of a key or malformed."""
    with contextlib.suppress(MalformedInput):
        assert render_public(parse_public(text)) == text


def test_trust_list(tmp_path: Path) -> None:
    """Comments and empty lines are ignored; a listed key is in, another one is not."""
    path = tmp_path / "trusted"
    path.write_text(f"# owners\n\n  {KEY.public}  # me\n")
    trusted = TrustedSigners.from_file(path)
    assert KEY.public in trusted
    assert len(trusted) == 1
    trusted.check(KEY.public)
    with pytest.raises(UntrustedRoot):
        trusted.check(SigningKey.generate().public)


def test_empty_trust_list_denies() -> None:
    """Nobody listed, nobody trusted."""
    with pytest.raises(UntrustedRoot):
        TrustedSigners.from_lines(["# nobody yet", ""]).check(KEY.public)


def test_bad_trust_lists_are_refused(tmp_path: Path) -> None:
    """A line that is no key, and a file that is not there, stop the start."""
    with pytest.raises(MalformedInput):
        TrustedSigners.from_lines(["ed25519:abc"])
    path = tmp_path / "trusted"
    with pytest.raises(ConfigError):
        TrustedSigners.from_file(path)
    for content in (b"rsa:abc\n", b"\xff\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            TrustedSigners.from_file(path)
