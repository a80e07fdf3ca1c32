"""Where ``cloister.torch`` gets keys and trust from: arguments first, then the environment's settings."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

import msgspec
import rfc8785

from cloister.attest.attester import pick_attester
from cloister.errors import ConfigError
from cloister.kbs.client import BrokerAdmin
from cloister.kbs.owner import load_or_create_signer
from cloister.kbs.owner_files import read_private
from cloister.kbs.source import KeySource, open_key_source
from cloister.seal.signing import SigningKey, TrustedSigners
from cloister.settings import Settings, load_settings

PathLike = str | os.PathLike[str]


class Keys(Protocol):
    """Anything that gives keys."""

    def get_resource(self, uri: str) -> bytes:
        """The secret bytes of ``kbs:///repository/type/tag?version=n``."""
        ...


def settings_of_environment() -> Settings:
    """The settings in variables ``CLOISTER_TORCH_...`` and ``CLOISTER_ATTEST_...``."""
    return load_settings(None, os.environ, None)


def torch_settings_digest(settings: Settings) -> bytes:
    """SHA-384 (48 bytes) of [torch] and [attest]: ``mr_config_id`` of a process that asks a broker itself."""
    document = {
        "attest": msgspec.to_builtins(settings.attest),
        "torch": msgspec.to_builtins(settings.torch),
    }
    return hashlib.sha384(rfc8785.dumps(document)).digest()


def open_keys(settings: Settings) -> KeySource:
    """The cache or broker of ``torch.broker``.

    Raises:
        ConfigError: none is set, or evidence is needed and this machine has none.
    """
    if not settings.torch.broker:
        raise ConfigError(
            "torch.broker is empty: there is nobody to get the key from",
            hint="set CLOISTER_TORCH_BROKER to unix:/path of a key cache or to a broker's URL, or give keys=",
        )
    return open_key_source(
        settings.torch.broker,
        attester=lambda: pick_attester(settings.attest, mr_config_id=torch_settings_digest(settings)),
        ca=_path(settings.torch.broker_ca),
    )


def open_admin(settings: Settings) -> BrokerAdmin:
    """The broker as its owner sees it, to register a new key.

    Raises:
        ConfigError: broker or token is not set, or the token's file is not the owner's alone.
    """
    if not (settings.torch.broker and settings.torch.admin_token):
        raise ConfigError(
            "torch.broker and torch.admin_token say where a new key is registered, and one is empty",
            hint="set CLOISTER_TORCH_BROKER and CLOISTER_TORCH_ADMIN_TOKEN, or give registry= or dek=",
        )
    token = read_private(Path(settings.torch.admin_token)).decode("ascii", "replace").strip()
    return BrokerAdmin(settings.torch.broker.split()[0], token=token, ca=_path(settings.torch.broker_ca))


def pick_signer(signer: SigningKey | PathLike | None, settings: Settings) -> SigningKey:
    """The key to sign with: an object, a file, or the file of ``torch.signer``; made in it on first use."""
    if isinstance(signer, SigningKey):
        return signer
    file = os.fspath(signer) if signer is not None else settings.torch.signer
    if not file:
        raise ConfigError(
            "torch.signer is empty: a container has a signer",
            hint="set CLOISTER_TORCH_SIGNER, or give signer=",
        )
    return load_or_create_signer(Path(file))


def pick_trusted(trusted: TrustedSigners | PathLike | None, settings: Settings) -> TrustedSigners:
    """The signers to believe: an object, a file, or the file of ``torch.trusted_signers``."""
    if isinstance(trusted, TrustedSigners):
        return trusted
    file = os.fspath(trusted) if trusted is not None else settings.torch.trusted_signers
    if not file:
        raise ConfigError(
            "torch.trusted_signers is empty: no container is believed",
            hint="set CLOISTER_TORCH_TRUSTED_SIGNERS to a file of public keys, or give trusted=",
        )
    return TrustedSigners.from_file(Path(file))


def _path(file: str) -> Path | None:
    return Path(file) if file else None
