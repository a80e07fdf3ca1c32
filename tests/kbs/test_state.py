"""The state folder: made on first start, refused when others could read it."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.errors import BadSignature, CloisterError, ConfigError, PolicyDenied, StaleEvidence
from cloister.kbs.admin import check_admin_token, issue_admin_token
from cloister.kbs.reload import ReloadedFile
from cloister.kbs.state import BrokerState, open_state
from cloister.settings import KeysSettings

NOW = datetime(2026, 11, 20, tzinfo=UTC)
PUBLIC = {"tls.pem", "audit.pub"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder after the first start."""
    started(tmp_path / "keys").close()
    return tmp_path / "keys"


def started(folder: Path, now: datetime = NOW) -> BrokerState:
    """Start on a folder."""
    return open_state(KeysSettings(folder=str(folder)), now)


def test_every_secret_is_owner_only(folder: Path) -> None:
    """All files but the certificate and the auditors' key have mode 0600, the folder 0700."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {file.name for file in folder.iterdir()}
    assert {"kek", "kbs.sqlite", "tls.key", "token.key", "admin.key", "admin.token", "audit.key"} <= names
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == (0o644 if file.name in PUBLIC else 0o600), file.name


def test_second_start_changes_nothing(folder: Path) -> None:
    """Keys, certificate and token survive a restart."""
    before = {file.name: file.read_bytes() for file in folder.iterdir() if "sqlite" not in file.name}
    started(folder).close()
    assert before == {file.name: file.read_bytes() for file in folder.iterdir() if "sqlite" not in file.name}


@pytest.mark.parametrize("name", ["kek", "tls.key", "token.key", "admin.key", "audit.key", "admin.token"])
def test_a_readable_secret_stops_the_start(folder: Path, name: str) -> None:
    """A secret that group or others can read is named, and the broker does not start."""
    (folder / name).chmod(0o640)
    with pytest.raises(ConfigError, match=name):
        started(folder)


@pytest.mark.parametrize("name", ["tls.key", "token.key", "admin.key", "audit.key", "tls.pem"])
def test_a_damaged_file_stops_the_start(folder: Path, name: str) -> None:
    """A damaged key or certificate is named, never silently replaced."""
    (folder / name).write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        started(folder)


def test_certificate_names_and_limits(folder: Path) -> None:
    """The certificate is for loopback and no authority."""
    certificate = x509.load_pem_x509_certificate((folder / "tls.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert "127.0.0.1" in [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_names_that_clients_reach_it_by(tmp_path: Path) -> None:
    """The certificate bears them; one that was made without them stops the start instead of every client."""
    settings = KeysSettings(
        folder=str(tmp_path / "keys"), host="0.0.0.0", names=("broker.example", "192.0.2.7")
    )
    open_state(settings, NOW).close()
    open_state(settings, NOW).close()
    certificate = x509.load_pem_x509_certificate((tmp_path / "keys" / "tls.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "broker.example" in names.get_values_for_type(x509.DNSName)
    assert "192.0.2.7" in [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    with pytest.raises(ConfigError, match=r"the name other\.example") as caught:
        open_state(KeysSettings(folder=settings.folder, names=("other.example",)), NOW)
    assert "delete" in caught.value.hint


def test_expired_or_foreign_certificate_stops_the_start(folder: Path) -> None:
    """A certificate that no client would accept is reported at start, with what to do."""
    with pytest.raises(ConfigError, match="valid only until") as caught:
        started(folder, NOW + timedelta(days=4000))
    assert "delete" in caught.value.hint
    (folder / "tls.key").unlink()
    with pytest.raises(ConfigError, match="another key"):
        started(folder)


def test_admin_token_is_renewed_before_it_expires(folder: Path) -> None:
    """A token with less than a month to live is replaced at start."""
    before = (folder / "admin.token").read_text()
    state = started(folder, NOW + timedelta(days=340))
    after = (folder / "admin.token").read_text()
    assert after != before
    check_admin_token(after, state.admin_key.public_key(), NOW + timedelta(days=400))
    state.close()


def test_admin_tokens_are_checked(folder: Path) -> None:
    """Another key, another role, another time or a changed character: each is refused."""
    state = started(folder)
    key, public = state.admin_key, state.admin_key.public_key()
    state.close()
    token = issue_admin_token(key, NOW)
    check_admin_token(token, public, NOW)
    with pytest.raises(StaleEvidence):
        check_admin_token(token, public, NOW + timedelta(days=366))
    with pytest.raises(StaleEvidence):
        check_admin_token(token, public, NOW - timedelta(days=1))
    with pytest.raises(PolicyDenied, match="role"):
        check_admin_token(issue_admin_token(key, NOW, role="auditor"), public, NOW)
    with pytest.raises(BadSignature):
        check_admin_token(issue_admin_token(Ed25519PrivateKey.generate(), NOW), public, NOW)


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 5000, "eyJhbGciOiJub25lIn0.e30.", "....", "é.é.é"])
def test_hostile_admin_tokens(folder: Path, token: str) -> None:
    """Whatever is sent as a token is refused with one of our errors."""
    state = started(folder)
    state.close()
    with pytest.raises(CloisterError):
        check_admin_token(token, state.admin_key.public_key(), NOW)


def test_changed_files_are_read_again_and_broken_ones_are_not_replaced_by_memory(tmp_path: Path) -> None:
    """A change is seen at the next use; after a broken change nothing older is used."""
    file = tmp_path / "number"

    def parse(path: Path) -> int:
        try:
            return int(path.read_text())
        except ValueError as error:
            raise ConfigError("not a number") from error

    source = ReloadedFile(file, parse)
    with pytest.raises(ConfigError, match="cannot read"):
        source.get()
    for content in ("1", "22"):
        file.write_text(content)
        assert source.get() == int(content)
    file.write_text("broken")
    for _ in range(2):
        with pytest.raises(ConfigError, match="not a number"):
            source.get()
    file.write_text("4444")
    assert source.get() == 4444
