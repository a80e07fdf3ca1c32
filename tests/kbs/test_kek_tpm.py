"""A KEK that a TPM has sealed, against swtpm: given back by this TPM at this state, and by nothing else."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import BadCiphertext, ConfigError, KeyUnavailable, MissingDependencyError
from cloister.kbs.database import Database
from cloister.kbs.kek import FileKek, open_kek, open_ring
from cloister.kbs.kek.envelope import open_envelope, seal_envelope
from cloister.kbs.kek.tpm import TpmKek
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.records import load_version, store_version
from cloister.kbs.rotation import rotate_kek
from cloister.kbs.state import open_state
from cloister.settings import KeysSettings
from tests.fakes.swtpm import require_swtpm, software_tpm

NAME = "a/b/c?version=1"
PATH = ResourcePath("a", "b", "c")


@pytest.fixture(scope="module")
def pytss() -> Any:
    """The TPM's library."""
    return require_swtpm()


@pytest.fixture
def tcti(pytss: Any, tmp_path: Path) -> Iterator[str]:
    """A new TPM."""
    (tmp_path / "tpm").mkdir()
    with software_tpm(tmp_path / "tpm") as found:
        yield found


def extend(pytss: Any, tcti: str, pcr: int) -> None:
    """Have something else measured into a PCR, as another kernel would."""
    value = pytss.TPMU_HA(sha256=b"\x07" * 32)
    with pytss.ESAPI(tcti) as tpm:
        digests = pytss.TPML_DIGEST_VALUES([pytss.TPMT_HA(hashAlg=pytss.TPM2_ALG.SHA256, digest=value)])
        tpm.pcr_extend(getattr(pytss.ESYS_TR, f"PCR{pcr}"), digests)


@pytest.mark.parametrize("pcrs", ["", "&pcrs=4,7"])
def test_given_back_after_a_restart(tcti: str, tmp_path: Path, pcrs: str) -> None:
    """The same TPM gives the same KEK again; the file is the owner's alone and does not hold it."""
    uri = f"tpm:{tmp_path / 'kek.tpm'}?tcti={tcti.replace(',', '%2C')}{pcrs}"
    kek = open_kek(uri)
    sealed = seal_envelope(kek, b"secret", NAME)
    assert open_envelope(open_kek(uri, make=False), sealed, NAME) == b"secret"
    raw = (tmp_path / "kek.tpm").read_bytes()
    assert stat.S_IMODE((tmp_path / "kek.tpm").stat().st_mode) == 0o600
    assert isinstance(kek, TpmKek)
    assert kek.newest().raw not in raw
    assert kek.newest().raw.hex() not in repr(kek)


def test_another_boot(pytss: Any, tcti: str, tmp_path: Path) -> None:
    """With PCRs named, a machine that has started something else does not get the KEK; without, it does."""
    TpmKek(tmp_path / "bound", pcrs=[7, 4], tcti=tcti)
    TpmKek(tmp_path / "free", tcti=tcti)
    extend(pytss, tcti, 9)
    TpmKek(tmp_path / "bound", pcrs=[4, 7], tcti=tcti)
    extend(pytss, tcti, 4)
    with pytest.raises(ConfigError, match="other PCRs 4, 7"):
        TpmKek(tmp_path / "bound", tcti=tcti)
    TpmKek(tmp_path / "free", tcti=tcti)


def test_an_update_of_the_machine(pytss: Any, tcti: str, tmp_path: Path) -> None:
    """Without PCRs before the update, with them after it: a rotation seals anew each time."""
    path = tmp_path / "kek.tpm"
    before = TpmKek(path, pcrs=[4], tcti=tcti)
    sealed = seal_envelope(before, b"secret", NAME)
    TpmKek(path, tcti=tcti).renew()
    extend(pytss, tcti, 4)
    after = TpmKek(path, pcrs=[4], tcti=tcti)
    assert open_envelope(after, sealed, NAME) == b"secret"
    after.renew()
    extend(pytss, tcti, 4)
    with pytest.raises(ConfigError, match="other PCRs 4"):
        TpmKek(path, tcti=tcti)


def test_another_tpm(pytss: Any, tcti: str, tmp_path: Path) -> None:
    """A stolen disk is worth nothing: another TPM does not unseal it."""
    TpmKek(tmp_path / "kek.tpm", tcti=tcti)
    (tmp_path / "other").mkdir()
    with software_tpm(tmp_path / "other") as other, pytest.raises(ConfigError, match="another TPM"):
        TpmKek(tmp_path / "kek.tpm", tcti=other)


def test_rotation(tcti: str, tmp_path: Path) -> None:
    """Every record moves to a new generation, and the file then holds one."""
    kek = TpmKek(tmp_path / "kek.tpm", pcrs=[7], tcti=tcti)
    running = TpmKek(tmp_path / "kek.tpm", pcrs=[7], tcti=tcti)
    database = Database(f"sqlite:///{tmp_path}/kbs.sqlite")
    with database.write() as session:
        store_version(session, kek, PATH, b"secret", created="2026")
    before = kek.key_id
    done = rotate_kek(database, kek, renew=True, retire=True)
    assert (done.rewrapped, done.kek_id != before) == (1, True)
    with database.read() as session:
        assert load_version(session, running, PATH)[0] == b"secret"
    assert not kek.holds(before)
    database.close()


def test_recovery_into_a_file(tcti: str, tmp_path: Path) -> None:
    """When the TPM is gone, the KEK from its shares opens every record as a file does."""
    kek = TpmKek(tmp_path / "kek.tpm", tcti=tcti)
    sealed = seal_envelope(kek, b"secret", NAME)
    (tmp_path / "kek").touch(0o600)
    (tmp_path / "kek").write_bytes(kek.newest().raw)
    assert open_envelope(FileKek(tmp_path / "kek"), sealed, NAME) == b"secret"


def test_a_move_from_a_file(tcti: str, tmp_path: Path) -> None:
    """A broker whose KEK was in a file goes on with one in the TPM."""
    file = FileKek(tmp_path / "kek")
    database = Database(f"sqlite:///{tmp_path}/kbs.sqlite")
    with database.write() as session:
        store_version(session, file, PATH, b"secret", created="2026")
    uri = f"tpm:{tmp_path / 'kek.tpm'}?tcti={tcti.replace(',', '%2C')}"
    ring = open_ring(uri, [f"file:{tmp_path / 'kek'}"])
    assert rotate_kek(database, ring, renew=False, retire=True).rewrapped == 1
    with database.read() as session:
        assert load_version(session, open_kek(uri), PATH)[0] == b"secret"
    with pytest.raises(BadCiphertext), database.read() as session:
        load_version(session, file, PATH)
    database.close()


def test_a_broker_starts_with_it(tcti: str, tmp_path: Path) -> None:
    """The broker's state opens with a TPM's KEK, and no other KEK is made."""
    uri = f"tpm:{tmp_path / 'keys' / 'kek.tpm'}?pcrs=7&tcti={tcti.replace(',', '%2C')}"
    settings = KeysSettings(folder=str(tmp_path / "keys"), kek=uri)
    for _ in range(2):
        state = open_state(settings, datetime.now(UTC))
        state.administration().store(PATH, b"secret")
        with state.database.read() as session:
            assert load_version(session, state.kek, PATH)[0] == b"secret"
        state.close()
    assert not (tmp_path / "keys" / "kek").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"x", b'{"version":2,"generations":[]}', b'{"version":1,"generations":[]}']
)
def test_files_that_are_none(tcti: str, tmp_path: Path, content: bytes) -> None:
    """A damaged file stops the start, and is not overwritten."""
    (tmp_path / "kek.tpm").touch(0o600)
    (tmp_path / "kek.tpm").write_bytes(content)
    with pytest.raises(ConfigError, match=r"kek\.tpm"):
        TpmKek(tmp_path / "kek.tpm", tcti=tcti)
    assert (tmp_path / "kek.tpm").read_bytes() == content


def test_damaged_objects(tcti: str, tmp_path: Path) -> None:
    """A changed byte of what the TPM has sealed is found by the TPM."""
    TpmKek(tmp_path / "kek.tpm", tcti=tcti)
    raw = (tmp_path / "kek.tpm").read_bytes()
    at = raw.index(b'"private":"') + 60
    changed = raw[:at] + (b"A" if raw[at : at + 1] != b"A" else b"B") + raw[at + 1 :]
    (tmp_path / "kek.tpm").write_bytes(changed)
    with pytest.raises((ConfigError, KeyUnavailable)):
        TpmKek(tmp_path / "kek.tpm", tcti=tcti)


@pytest.mark.parametrize("rest", ["", "?pcrs=7", "/x?pcrs=24", "/x?pcrs=a", "/x?pcr=7", "/x?pcrs"])
def test_unusable_uris(pytss: Any, rest: str) -> None:
    """What is not such a URI is a configuration error."""
    with pytest.raises(ConfigError):
        open_kek(f"tpm:{rest}")


def test_no_tpm(pytss: Any, tmp_path: Path) -> None:
    """A TPM that is not there is named, and no file is made."""
    with pytest.raises(KeyUnavailable, match="swtpm:port=1"):
        TpmKek(tmp_path / "kek.tpm", tcti="swtpm:port=1")
    assert not (tmp_path / "kek.tpm").exists()


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without it the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "tpm2_pytss", None)
    with pytest.raises(MissingDependencyError) as caught:
        TpmKek(tmp_path / "kek.tpm")
    assert "cloister[tpm]" in str(caught.value.hint)
