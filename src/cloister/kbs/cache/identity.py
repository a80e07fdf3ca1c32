"""What a cache proves of itself: its settings, and the content of the files that they name.

The operator, whom nobody trusts, writes the cache's settings. So they are measured: whoever adds a user to
``allowed_uids``, or another measurement to the reference values, gets another digest, and the broker's owner
has not listed that one. Each file is read once, and what was measured is what is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import rfc8785
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError
from cloister.policy.release import ReleasePolicy, load_release_policy, parse_release_policy
from cloister.settings import CacheSettings, Settings

MEASURED_FILES = ("broker_ca", "reference_values", "policy", "simulated_root")
"""Collateral is not among them: its vendor has signed it, and it changes every month."""


@dataclass(frozen=True, slots=True)
class MeasuredFiles:
    """The content of the files that [cache] names; empty where it names none."""

    broker_ca: bytes
    reference_values: bytes
    policy: bytes
    simulated_root: bytes

    @classmethod
    def read(cls, cache: CacheSettings) -> MeasuredFiles:
        """Read each of them, once.

        Raises:
            ConfigError: one cannot be read, or is empty.
        """
        return cls(**{name: _read(getattr(cache, name)) for name in MEASURED_FILES})

    def parse_reference_values(self) -> ReferenceValues:
        """Which TEEs may attest to the cache; none if there is no such file."""
        return ReferenceValues.from_toml(_text(self.reference_values, "cache.reference_values") + "\n")

    def parse_policy(self) -> ReleasePolicy:
        """What decides a release: the file, or the policy that ships."""
        if not self.policy:
            return load_release_policy()
        return parse_release_policy(_text(self.policy, "cache.policy"))

    def parse_simulated_root(self) -> x509.Certificate | None:
        """The root of a simulated platform, if one is trusted."""
        if not self.simulated_root:
            return None
        try:
            return x509.load_pem_x509_certificate(self.simulated_root)
        except UNREADABLE as error:
            raise ConfigError("cache.simulated_root does not hold a certificate") from error


def cache_digest(settings: Settings, files: MeasuredFiles) -> bytes:
    """SHA-384 (48 bytes) of the canonical JSON of [cache], [attest] and the digests of the files.

    This is the ``mr_config_id`` of a cache: the owner lists it in the broker's reference values.
    """
    document = {
        "attest": msgspec.to_builtins(settings.attest),
        "cache": msgspec.to_builtins(settings.cache),
        "files": {name: hashlib.sha384(getattr(files, name)).hexdigest() for name in MEASURED_FILES},
    }
    return hashlib.sha384(rfc8785.dumps(document)).digest()


@contextlib.contextmanager
def file_in_memory(content: bytes | memoryview) -> Iterator[Path]:
    """A path for libraries that read from files only, good during the block; nothing is written to a disk."""
    descriptor = os.memfd_create("cloister-cache", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _read(file: str) -> bytes:
    if not file:
        return b""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if not content:
        raise ConfigError(f"{file} is empty")
    return content


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8") from error
