"""A sealed file is a file: for zip readers, for numpy, for nobody without the key."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import BadCiphertext, ConfigError, UntrustedRoot
from cloister.seal import container_digest, open_sealed, unseal_file
from tests.seal.conftest import KEY, OTHER_SIGNER, TRUSTED


def test_zip_archive_reads_in_place(seal: Any) -> None:
    """zipfile lists and extracts members of a sealed archive."""
    archive, weights = io.BytesIO(), os.urandom(300_000)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("MAR-INF/MANIFEST.json", "{}")
        zipped.writestr("weights.bin", weights)
    sealed = seal(archive.getvalue(), kind="mar")
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file, zipfile.ZipFile(file) as zipped:
        assert zipped.namelist() == ["MAR-INF/MANIFEST.json", "weights.bin"]
        assert zipped.read("weights.bin") == weights
        assert zipped.testzip() is None


def test_damage_inside_a_zip_is_refused(seal: Any) -> None:
    """A flipped bit in a member is our error, before zip's own checksum has a say."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("weights.bin", os.urandom(300_000))
    sealed = seal(archive.getvalue())
    raw = bytearray(sealed.path.read_bytes())
    raw[len(raw) // 2] ^= 1
    sealed.path.write_bytes(raw)
    file = open_sealed(sealed.path, key=KEY, trusted=TRUSTED)
    with file, zipfile.ZipFile(file) as zipped, pytest.raises(BadCiphertext):
        zipped.read("weights.bin")


def test_close_closes_the_container(seal: Any) -> None:
    """Leaving the block closes the container's descriptor as well, and twice does no harm."""
    with open_sealed(seal().path, key=KEY, trusted=TRUSTED) as file:
        container = file._container
    file.close()
    assert container.closed


def test_refused_container_leaves_nothing_open(seal: Any) -> None:
    """An error while opening closes the file; the suite turns a leak into a failure."""
    with pytest.raises(UntrustedRoot):
        open_sealed(seal(signer=OTHER_SIGNER).path, key=KEY, trusted=TRUSTED)
    with pytest.raises(ConfigError):
        open_sealed(Path("/nonexistent/container"), key=KEY, trusted=TRUSTED)


def test_digest_is_that_of_the_file(seal: Any) -> None:
    """The digest names the container's exact bytes, from its path and from the open file."""
    sealed = seal()
    expected = hashlib.sha256(sealed.path.read_bytes()).hexdigest()
    assert container_digest(sealed.path) == expected
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file:
        assert file.digest == expected
        assert file.read() == sealed.plaintext
    assert container_digest(seal().path) != expected


def test_digest_beside_reading(seal: Any) -> None:
    """The digest is taken on another thread while the payload is read, and outlives the file."""
    sealed = seal(os.urandom(5_000_000))
    with open_sealed(sealed.path, key=KEY, trusted=TRUSTED) as file:
        file.start_digest()
        file.start_digest()
        assert file.read() == sealed.plaintext
        assert file.digest == container_digest(sealed.path)
    assert file.digest == container_digest(sealed.path)


def test_close_gives_up_the_digest(seal: Any) -> None:
    """A file that is closed before its digest was asked for, or done, has none, and no thread goes on."""
    sealed = seal(os.urandom(5_000_000))
    unasked = open_sealed(sealed.path, key=KEY, trusted=TRUSTED)
    unasked.close()
    with pytest.raises(ConfigError, match="closed before"):
        _ = unasked.digest
    file = open_sealed(sealed.path, key=KEY, trusted=TRUSTED)
    file.start_digest()
    file.close()
    assert "cloister-digest" not in [thread.name for thread in threading.enumerate()]


def test_unseal_writes_a_private_file(seal: Any, tmp_path: Path) -> None:
    """The plaintext comes back whole, in a file that only its owner can read."""
    sealed, target = seal(os.urandom(1_500_000)), tmp_path / "plain"
    header = unseal_file(sealed.path, target, key=KEY, trusted=TRUSTED)
    assert target.read_bytes() == sealed.plaintext
    assert header.plaintext_bytes == 1_500_000
    assert target.stat().st_mode & 0o777 == 0o600


def test_failed_unseal_leaves_no_plaintext(seal: Any, tmp_path: Path) -> None:
    """A payload that is damaged late leaves no partial plaintext behind."""
    sealed = seal(os.urandom(1_500_000))
    raw = bytearray(sealed.path.read_bytes())
    raw[-20_000] ^= 1
    sealed.path.write_bytes(raw)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadCiphertext):
        unseal_file(sealed.path, tmp_path / "out" / "plain", key=KEY, trusted=TRUSTED)
    assert os.listdir(tmp_path / "out") == []


_GROWTH = """
import sys
from pathlib import Path
from cloister.crypto.keys import SecretKey
from cloister.seal import SigningKey, TrustedSigners, seal_file, unseal_file
folder, key, signer = Path(sys.argv[1]), SecretKey(bytes(32)), SigningKey.generate()
def peak():
    # ru_maxrss would count the process that started this one too.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
before = peak()
seal_file(folder / "plain", folder / "sealed", key=key, signer=signer, name="m", version="1", sequence=1,
          kind="file", key_uri="kbs:///a/b/c")
unseal_file(folder / "sealed", folder / "back", key=key, trusted=TrustedSigners([signer.public]))
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Sealing and unsealing 96 MiB takes less than 32 MiB more memory than doing nothing."""
    with (tmp_path / "plain").open("wb") as file:
        file.truncate(96 << 20)
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 32 << 10
    assert (tmp_path / "back").stat().st_size == 96 << 20
