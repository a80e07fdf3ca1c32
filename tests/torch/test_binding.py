"""What a sealed checkpoint is bound to: model id, names, shapes, types, key and signer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import cloister.torch
from cloister.crypto.keys import SecretKey
from cloister.errors import (
    BadCiphertext,
    BadSignature,
    CloisterError,
    ConfigError,
    KeyUnavailable,
    MalformedInput,
    UntrustedRoot,
    WrongModel,
)
from cloister.seal.signing import SigningKey, TrustedSigners
from cloister.seal.writer import seal_parts
from cloister.settings import Settings, TorchSettings
from cloister.torch.keys import torch_settings_digest
from cloister.torch.writing import METADATA
from tests.torch.conftest import SIGNER, TRUSTED, URI, MemoryBroker

NET = {"w": torch.arange(40_000.0), "b": torch.ones(3)}


@pytest.fixture
def sealed(tmp_path: Path, keys: MemoryBroker) -> Path:
    """A small model in a container."""
    path = tmp_path / "net.sealed"
    cloister.torch.save(NET, path, URI, signer=SIGNER, registry=keys)
    return path


def load(path: Path, keys: MemoryBroker, **changes: Any) -> Any:
    return cloister.torch.load(path, **{"model_id": "net", "keys": keys, "trusted": TRUSTED, **changes})


def test_model_id(sealed: Path, keys: MemoryBroker) -> None:
    """Another model id is refused before any key is asked for; a renamed file is what its header says."""
    shutil.copy(sealed, sealed.with_name("other.sealed"))
    with pytest.raises(WrongModel, match="'net', and 'other' was asked for"):
        load(sealed.with_name("other.sealed"), keys, model_id="other")
    assert keys.asked == []
    assert torch.equal(load(sealed, keys, model_id=None)["b"], NET["b"])


def test_every_kind_of_damage(sealed: Path, keys: MemoryBroker) -> None:
    """A flipped bit anywhere, also under names, shapes and types, is refused."""
    raw = sealed.read_bytes()
    positions = [*range(0, 1200, 37), *range(1200, len(raw), 4999), len(raw) - 1]
    for position in positions:
        damaged = bytearray(raw)
        damaged[position] ^= 1
        sealed.write_bytes(damaged)
        with pytest.raises((BadCiphertext, BadSignature, MalformedInput, UntrustedRoot)):
            load(sealed, keys)


@pytest.mark.parametrize("cut", [1, 17, 16_400])
def test_truncation_and_extension(sealed: Path, keys: MemoryBroker, cut: int) -> None:
    """A container that is shorter or longer than it says is refused."""
    raw = sealed.read_bytes()
    for changed in (raw[:-cut], raw + bytes(cut)):
        sealed.write_bytes(changed)
        with pytest.raises(BadCiphertext):
            load(sealed, keys)


def test_another_key(sealed: Path, keys: MemoryBroker) -> None:
    """A broker that gives another key, or something that is none, gets no tensors out of it."""
    for other, error in ((SecretKey.generate().raw, BadCiphertext), (b"short", MalformedInput)):
        keys.held = dict.fromkeys(keys.held, other)
        with pytest.raises(error):
            load(sealed, keys)


def test_exactly_the_version_of_the_header_is_asked_for(sealed: Path, keys: MemoryBroker) -> None:
    """A second save has a key of its own, and the first container still opens."""
    second = sealed.with_name("second.sealed")
    header = cloister.torch.save(NET, second, URI, model_id="net", signer=SIGNER, registry=keys)
    assert header.key_version == 2
    load(sealed, keys)
    load(second, keys)
    assert keys.asked == [f"{URI}?version=1", f"{URI}?version=2"]
    assert len(set(keys.held.values())) == 2


def test_a_release_that_replaces_the_older_ones(sealed: Path, keys: MemoryBroker) -> None:
    """With keep_old=False the broker releases no earlier key: nobody rolls back to an earlier container."""
    second = sealed.with_name("second.sealed")
    options: dict[str, Any] = {"model_id": "net", "signer": SIGNER, "registry": keys, "keep_old": False}
    cloister.torch.save(NET, second, URI, **options)
    load(second, keys)
    with pytest.raises(KeyUnavailable):
        load(sealed, keys)


def test_signers(sealed: Path, keys: MemoryBroker, tmp_path: Path) -> None:
    """A container of a signer who is not trusted is refused, and an empty list trusts nobody."""
    for trusted in (TrustedSigners([SigningKey.generate().public]), TrustedSigners([])):
        with pytest.raises(UntrustedRoot):
            load(sealed, keys, trusted=trusted)
    (tmp_path / "signers").write_text(SIGNER.public + "\n")
    assert load(sealed, keys, trusted=tmp_path / "signers")["b"].tolist() == [1, 1, 1]


def test_own_data_key(tmp_path: Path) -> None:
    """With dek= nothing is registered; the header names the version that the caller gave."""
    key = SecretKey.generate()
    keys = MemoryBroker()
    keys.held[f"{URI}?version=5"] = key.raw
    path = tmp_path / "net.sealed"
    cloister.torch.save(NET, path, URI, signer=SIGNER, dek=key, key_version=5)
    assert load(path, keys)["b"].tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="either dek= or registry="):
        cloister.torch.save(NET, path, URI, signer=SIGNER, dek=key, registry=keys)


def test_a_key_that_was_not_registered_writes_nothing(tmp_path: Path) -> None:
    """When the broker refuses the new key there is no container either."""

    class Refusing:
        def put_version(self, uri: str, data: bytes) -> int:
            raise KeyUnavailable("no")

    with pytest.raises(KeyUnavailable):
        cloister.torch.save(NET, tmp_path / "net", URI, signer=SIGNER, registry=Refusing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "torch.signer is empty"),
        ({"signer": SIGNER}, "torch.admin_token"),
        ({"signer": SIGNER, "dek": SecretKey.generate(), "model_id": "../x"}, "name: expected"),
    ],
)
def test_missing_settings_of_save(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """What is missing is named, with the variable that would set it."""
    with pytest.raises(CloisterError, match=message):
        cloister.torch.save(NET, tmp_path / "net", URI, settings=Settings(), **options)


def test_missing_settings_of_load(sealed: Path) -> None:
    """Without signers, or without anybody to ask, loading says so; neither is guessed."""
    with pytest.raises(ConfigError, match=r"torch\.trusted_signers is empty"):
        cloister.torch.load(sealed, settings=Settings())
    with pytest.raises(ConfigError, match=r"torch\.broker is empty"):
        cloister.torch.load(sealed, trusted=TRUSTED, settings=Settings())
    with pytest.raises(ConfigError, match="cannot read container"):
        cloister.torch.load(sealed.with_name("absent"), trusted=TRUSTED, settings=Settings())


def test_settings_are_what_a_process_proves() -> None:
    """Another broker, or another list of signers, is another digest."""
    changed = Settings(torch=TorchSettings(trusted_signers="mine"))
    assert torch_settings_digest(changed) != torch_settings_digest(Settings())
    assert len(torch_settings_digest(changed)) == 48


def test_other_kinds_are_not_tensors(tmp_path: Path, keys: MemoryBroker) -> None:
    """An archive in a container is not loaded as tensors."""
    path = plain(tmp_path, keys, b"x", kind="mar")
    with pytest.raises(MalformedInput, match="holds a mar"):
        load(path, keys)


def plain(tmp_path: Path, keys: MemoryBroker, payload: bytes, kind: Any = "safetensors") -> Path:
    """A container with any payload."""
    key = SecretKey.generate()
    version = keys.put_version(URI, key.raw)
    path = tmp_path / "made.sealed"
    seal_parts(
        [payload],
        len(payload),
        path,
        key=key,
        signer=SIGNER,
        name="net",
        version="1",
        sequence=1,
        kind=kind,
        key_uri=URI,
        key_version=version,
    )
    return path


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("nothing", "not JSON"),
        ('{"version":2,"structure":{"tensor":"t"},"views":{}}', "version: expected 1"),
        ('{"version":1,"structure":{"tensor":"t"}}', "missing required field"),
        ('{"version":1,"structure":{"tensor":"u"},"views":{}}', "no such tensor"),
        ('{"version":1,"structure":[],"views":{}}', "does not name tensor 't'"),
        ('{"version":1,"structure":{"tensor":"t"},"views":{"t":"complex64"}}', "cannot be of type"),
        ('{"version":1,"structure":{"tensor":"t"},"views":{"t":"qint8"}}', "cannot be of type"),
        ('{"version":1,"structure":{"tensor":"t","more":1},"views":{}}', "unknown fields"),
        ('{"version":1,"structure":{"code":"t"},"views":{}}', "unknown 'code'"),
    ],
)
def test_a_signer_who_writes_nonsense(
    tmp_path: Path, keys: MemoryBroker, metadata: str, message: str
) -> None:
    """Even authenticated content is checked: a wrong structure is MalformedInput."""
    header = msgspec.json.encode(
        {
            "__metadata__": {METADATA: metadata},
            "t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }
    )
    path = plain(tmp_path, keys, len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(MalformedInput, match=message):
        load(path, keys)


def test_pytorch_is_imported_late_and_missed_with_its_extra() -> None:
    """Importing cloister.torch does not import torch; without it the error names the extra."""
    program = (
        "import sys\n"
        "import cloister.torch\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try:\n"
        "    cloister.torch.load('x')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError")
    assert "cloister[torch]" in done.stdout
