"""The KEK file and the envelope: what is at rest opens only in its own place."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext, ConfigError
from cloister.kbs.kek import KekProvider, open_envelope, open_kek, seal_envelope


@pytest.fixture
def kek(tmp_path: Path) -> KekProvider:
    """A KEK in a new file."""
    return open_kek(f"file:{tmp_path / 'state' / 'kek'}")


def test_file_is_made_once_and_owner_only(kek: KekProvider, tmp_path: Path) -> None:
    """The first start writes 32 bytes with mode 0600 in a folder 0700; the second one reads them."""
    file = tmp_path / "state" / "kek"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert len(file.read_bytes()) == 32
    assert open_kek(f"file:{file}").key_id == kek.key_id
    assert open_kek(f"file://{file}").key_id == kek.key_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_file_that_others_can_read_is_refused(kek: KekProvider, tmp_path: Path, mode: int) -> None:
    """Any right for group or others stops the broker, and the message says which file."""
    file = tmp_path / "state" / "kek"
    file.chmod(mode)
    with pytest.raises(ConfigError, match="kek") as caught:
        open_kek(f"file:{file}")
    assert "chmod 600" in caught.value.hint


def test_file_of_another_length_or_a_link_is_refused(kek: KekProvider, tmp_path: Path) -> None:
    """A truncated KEK, and a symbolic link in its place, are refused."""
    file = tmp_path / "state" / "kek"
    os.symlink(file, tmp_path / "link")
    with pytest.raises(ConfigError):
        open_kek(f"file:{tmp_path / 'link'}")
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="32 bytes"):
        open_kek(f"file:{file}")


@pytest.mark.parametrize("uri", ["", "file", "file:", "kms:transit/x", "/etc/passwd", "FILE:/x"])
def test_unknown_providers_are_refused(uri: str) -> None:
    """A URI without a known scheme is an error that lists the known ones."""
    with pytest.raises(ConfigError, match="unknown KEK provider"):
        open_kek(uri)


def test_round_trip(kek: KekProvider) -> None:
    """What was sealed for a resource version opens for it, and two seals of it differ."""
    first = seal_envelope(kek, b"the secret", "a/b/c?version=1")
    assert open_envelope(kek, first, "a/b/c?version=1") == b"the secret"
    again = seal_envelope(kek, b"the secret", "a/b/c?version=1")
    assert {first.wrapped_key, first.ciphertext}.isdisjoint({again.wrapped_key, again.ciphertext})


@pytest.mark.parametrize("resource", ["a/b/c?version=2", "a/b/d?version=1", ""])
def test_moved_records_do_not_open(kek: KekProvider, resource: str) -> None:
    """A record under another path or version does not open."""
    envelope = seal_envelope(kek, b"the secret", "a/b/c?version=1")
    with pytest.raises(BadCiphertext):
        open_envelope(kek, envelope, resource)


def test_changed_records_do_not_open(kek: KekProvider) -> None:
    """One bit in any byte of the wrapped key or the ciphertext is noticed; so is a cut."""
    envelope = seal_envelope(kek, b"s", "r")
    for field in ("wrapped_key", "ciphertext"):
        good = getattr(envelope, field)
        for position in range(len(good)):
            bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
            with pytest.raises(BadCiphertext):
                open_envelope(kek, replace(envelope, **{field: bad}), "r")
        for length in (0, 11, len(good) - 1):
            with pytest.raises(BadCiphertext):
                open_envelope(kek, replace(envelope, **{field: good[:length]}), "r")


def test_another_kek_is_named(kek: KekProvider, tmp_path: Path) -> None:
    """A record of another KEK is refused with both names, which are public."""
    other = open_kek(f"file:{tmp_path / 'other'}")
    with pytest.raises(BadCiphertext, match=other.key_id):
        open_envelope(kek, seal_envelope(other, b"s", "r"), "r")


def test_wrapped_key_cannot_pass_for_a_resource(kek: KekProvider) -> None:
    """A wrapped key does not open as a resource under the same KEK: the contexts differ."""
    wrapped = kek.wrap(SecretKey.generate(), "r")
    envelope = replace(seal_envelope(kek, b"s", "r"), ciphertext=wrapped.data)
    with pytest.raises(BadCiphertext):
        open_envelope(kek, envelope, "r")


def test_nothing_secret_in_repr(kek: KekProvider, tmp_path: Path) -> None:
    """The provider's name and repr do not show the KEK."""
    raw = (tmp_path / "state" / "kek").read_bytes()
    assert raw.hex()[:16] not in repr(kek)
