"""A KEK in Vault's transit engine, against a stand-in on loopback (``tests/fakes/vault.py``), not Vault."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext, CloisterError, ConfigError, KeyUnavailable
from cloister.kbs.kek import WrappedKey, open_envelope, open_kek, seal_envelope
from cloister.kbs.kek.provider import KekProvider
from tests.fakes.vault import FakeVault


@pytest.fixture
def vault() -> Iterator[FakeVault]:
    """A stand-in that runs."""
    fake = FakeVault()
    yield fake
    fake.stop()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """An owner-only token file."""
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("s.token\n")
    return file


def opened(vault: FakeVault, token: Path | None, **more: str) -> KekProvider:
    """The provider for a stand-in."""
    options = {"address": vault.address, **({"token-file": str(token)} if token else {}), **more}
    return open_kek("vault:transit/cloister?" + "&".join(f"{k}={v}" for k, v in options.items()))


def test_round_trip(vault: FakeVault, token: Path) -> None:
    """What was sealed opens; Vault never sees the resource, only its data key."""
    kek = opened(vault, token)
    envelope = seal_envelope(kek, b"CANARY the secret", "a/b/c?version=1")
    assert envelope.kek_id == kek.key_id == "vault:transit/cloister:v1"
    assert open_envelope(kek, envelope, "a/b/c?version=1") == b"CANARY the secret"
    assert not any(b"CANARY" in body or base64.b64encode(b"CANARY") in body for body in vault.seen)


def test_moved_and_changed_records_do_not_open(vault: FakeVault, token: Path) -> None:
    """Another resource, a flipped byte, another version's name: refused."""
    kek = opened(vault, token)
    wrapped = kek.wrap(SecretKey.generate(), "r")
    with pytest.raises(BadCiphertext):
        kek.unwrap(wrapped, "another")
    at = len(b"vault:v1:") + 20
    flipped = wrapped.data[:at] + bytes([wrapped.data[at] ^ 1]) + wrapped.data[at + 1 :]
    for data in (flipped, b"", b"vault:v1:", b"vault:v2:" + wrapped.data[9:]):
        with pytest.raises(BadCiphertext):
            kek.unwrap(WrappedKey(wrapped.kek_id, data), "r")
    with pytest.raises(BadCiphertext):
        kek.unwrap(replace(wrapped, kek_id="vault:transit/cloister:v2"), "r")
    assert not kek.holds("vault:transit/other:v1")


def test_rotation_wraps_under_the_new_version(vault: FakeVault, token: Path) -> None:
    """After a rotation both versions open; after retirement only the new one does."""
    kek = opened(vault, token)
    old = kek.wrap(SecretKey.generate(), "r")
    assert kek.renew() == "vault:transit/cloister:v2"
    new = kek.wrap(kek.unwrap(old, "r"), "r")
    kek.retire()
    assert kek.unwrap(new, "r").raw
    with pytest.raises(BadCiphertext):
        kek.unwrap(old, "r")


def test_vaults_refusals_name_no_secret(vault: FakeVault, token: Path) -> None:
    """A failing, denying or absent Vault is KeyUnavailable, without Vault's own words."""
    kek = opened(vault, token)
    key = SecretKey.generate()
    wrapped = kek.wrap(key, "r")
    vault.fail_with = 500
    with pytest.raises(KeyUnavailable) as caught:
        kek.wrap(key, "r")
    assert "CANARY" not in str(caught.value)
    vault.fail_with = 503
    with pytest.raises(KeyUnavailable):
        kek.unwrap(wrapped, "r")
    vault.fail_with, vault.token = None, "another"
    with pytest.raises(KeyUnavailable, match="Forbidden"):
        kek.unwrap(wrapped, "r")


def test_vault_that_is_down(token: Path) -> None:
    """No answer is KeyUnavailable, at the start and later."""
    fake = FakeVault()
    kek = opened(fake, token)
    fake.stop()
    with pytest.raises(KeyUnavailable, match="cannot be reached"):
        kek.wrap(SecretKey.generate(), "r")
    with pytest.raises(KeyUnavailable):
        opened(fake, token)


def test_agent_needs_no_token() -> None:
    """An agent on loopback brings the token itself."""
    fake = FakeVault(token=None)
    assert opened(fake, None).key_id == "vault:transit/cloister:v1"
    fake.stop()


@pytest.mark.parametrize("facts", [{"type": "rsa-4096"}, {"exportable": True}, {"name": "other"}])
def test_unfit_keys_are_refused(token: Path, facts: dict[str, Any]) -> None:
    """A key of another type, an exportable one, or none at all stops the start."""
    fake = FakeVault(**facts)
    with pytest.raises(ConfigError):
        opened(fake, token)
    fake.stop()


@pytest.mark.parametrize(
    "uri",
    [
        "vault:transit",
        "vault:transit/cloister",
        "vault:transit/cloister?address=http://vault.example:8200",
        "vault:transit/cloister?address=https://v&token=s.secret",
        "vault:transit/../x?address=https://v&address=https://w",
        "vault:transit/cloister?address=https://v&token-file=/nonexistent",
    ],
)
def test_unusable_uris(uri: str) -> None:
    """No address, plain HTTP to elsewhere, a token in the URI: refused, and the token is not repeated."""
    with pytest.raises(CloisterError) as caught:
        open_kek(uri)
    assert "s.secret" not in str(caught.value) + caught.value.hint


def test_readable_token_file_is_refused(vault: FakeVault, token: Path) -> None:
    """A token that others can read stops the start."""
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="token"):
        opened(vault, token)
