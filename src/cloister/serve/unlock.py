"""Protected start: from sealed containers to archives in memory, through attestation to the key broker.

1. The container's signer is checked before anything in it is believed.
2. The key broker is shown evidence and gives the model's key, or says why not; or a key cache does.
3. The payload is decrypted chunk by chunk into a memfd; no plaintext ever has a name on a disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cloister.attest.model import Attester
from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext, ConfigError, ModelNotFound
from cloister.kbs.source import open_key_source
from cloister.seal.reader import open_sealed
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import SUFFIX, ModelStore, StoreEntry
from cloister.serve.log import log
from cloister.serve.memfd import fill_memfd
from cloister.serve.sources import ModelSource, Wanted
from cloister.settings import ServeSettings

KIND = "mar"


def unlock_models(settings: ServeSettings, wanted: Sequence[Wanted], attester: Attester) -> list[ModelSource]:
    """Sources of the wanted sealed models; of every model's newest version if none is named.

    Blocks on the network and on decryption; runs in a thread.

    Raises:
        ConfigError: a setting is missing, or a wanted model is not in the store.
        VerificationError: a container is not genuine, not signed by a trusted signer, or older than one seen.
        KeyUnavailable: the broker refused a key.
        TransportError: the broker could not be reached.
    """
    if not settings.trusted_signers:
        raise ConfigError("serve.trusted_signers is empty: protected mode loads no model without one")
    if not settings.broker:
        raise ConfigError("serve.broker is empty: sealed models need a key broker")
    trusted = TrustedSigners.from_file(Path(settings.trusted_signers))
    entries = _pick_entries(settings, wanted, trusted)
    ca = Path(settings.broker_ca) if settings.broker_ca else None
    sources: list[ModelSource] = []
    with open_key_source(settings.broker, attester=lambda: attester, ca=ca) as keys:
        try:
            for entry in entries:
                uri = f"{entry.header.key}?version={entry.header.key_version}"
                key = SecretKey(keys.get_resource(uri))
                sources.append(_decrypt(entry, key, trusted))
                log.info("model unlocked", model=entry.header.name, version=entry.header.version)
        except BaseException:
            for source in sources:
                os.close(source.archive_fd)
            raise
    return sources


def _pick_entries(
    settings: ServeSettings, wanted: Sequence[Wanted], trusted: TrustedSigners
) -> list[StoreEntry]:
    """Verified entries. A container that does not verify stops the start, with its own reason."""
    folder = Path(settings.model_store)
    if not folder.is_dir():
        raise ConfigError(f"serve.model_store: {folder} is not a folder")
    store = ModelStore(folder, trusted)
    names = sorted({path.parent.name for path in folder.glob(f"*/*{SUFFIX}")})
    picked: dict[Path, StoreEntry] = {}
    for want in wanted or [Wanted(name, None) for name in names]:
        try:
            entry = store.get(want.name, want.version) if want.version else store.newest(want.name)
        except ModelNotFound as error:
            there = ", ".join(names) or "no model at all"
            raise ConfigError(error.message, hint=f"there: {there}") from error
        picked[entry.path] = entry
    return list(picked.values())


def _decrypt(entry: StoreEntry, key: SecretKey, trusted: TrustedSigners) -> ModelSource:
    try:
        return _fill(entry, key, trusted)
    except BadCiphertext as error:
        raise BadCiphertext(f"container {entry.path.name} of {entry.header.name}: {error.message}") from error


def _fill(entry: StoreEntry, key: SecretKey, trusted: TrustedSigners) -> ModelSource:
    with open_sealed(entry.path, key=key, trusted=trusted) as sealed:
        header = sealed.header
        if header.kind != KIND:
            raise ConfigError(f"{entry.path.name} holds a {header.kind}, and only a {KIND} can be served")
        descriptor = fill_memfd(f"cloister-{header.name}", sealed, header.plaintext_bytes)
        return ModelSource(
            name=header.name,
            version=header.version,
            url=entry.path.name,
            digest=sealed.digest,
            signer=header.signer,
            archive_fd=descriptor,
            sequence=header.sequence,
        )
