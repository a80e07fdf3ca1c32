"""Protected mode's models: sealed containers, unlocked by attestation to the key broker.

1. The container's signer is checked before anything in it is believed.
2. The key broker is shown evidence and gives the model's key, or says why not; or a key cache does.
3. When the model is placed, its files are decrypted straight into the pages of a folder in memory that its
   workers share. No plaintext ever has a name on a disk, and there is one copy of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from cloister.attest.model import Attester
from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext, ConfigError, MalformedInput, ModelNotFound
from cloister.kbs.source import open_key_source
from cloister.seal.reader import SealedFile, open_sealed
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import SUFFIX, ModelStore, StoreEntry
from cloister.serve.archive import read_description
from cloister.serve.log import log
from cloister.serve.requirements import require_packages
from cloister.serve.sources import ModelSource, Wanted, is_model_name
from cloister.serve.tmpfs import require_memory
from cloister.serve.unpack import protect_folder, unpack_archive
from cloister.settings import ServeSettings

KIND = "mar"
_PLAIN_SUFFIX = re.compile(r"\.(mar|tar\.gz|tgz|sealed)$")


class SealedStore:
    """The containers of ``serve.model_store``, under keys that ``serve.broker`` releases to this machine.

    Raises:
        ConfigError: a setting is missing.
    """

    def __init__(self, settings: ServeSettings, attester: Attester) -> None:
        if not settings.trusted_signers:
            raise ConfigError("serve.trusted_signers is empty: protected mode loads no model without one")
        if not settings.broker:
            raise ConfigError("serve.broker is empty: sealed models need a key broker")
        self._settings = settings
        self._attester = attester
        self._trusted = TrustedSigners.from_file(Path(settings.trusted_signers))
        self._folder = Path(settings.model_store)

    def resolve(self, url: str, *, model_name: str = "", handler: str = "", runtime: str = "") -> ModelSource:
        """The sealed model ``name``, ``name=version``, ``name/version.sealed`` or ``name.mar``, unlocked.

        Its name, handler and runtime are what its owner signed, so a registration cannot say otherwise.
        Blocks on the network; runs in a thread.

        Raises:
            ModelNotFound: it is not in the store. A URL or a path never is.
            ConfigError: another name or handler was asked for.
            VerificationError, KeyUnavailable, TransportError: as for ``wanted``.
        """
        if ".." in url:
            raise ModelNotFound(f"Relative path is not allowed in url: {url[:256]}")
        plain = _PLAIN_SUFFIX.sub("", url)
        name, _, version = plain.replace("/", "=", 1).partition("=")
        if not is_model_name(name) or (version and not is_model_name(version)):
            raise ModelNotFound(f"Model not found at: {url[:256]}")
        if handler or runtime or model_name not in ("", name):
            raise ConfigError("a sealed model keeps the name, handler and runtime that its owner signed")
        try:
            (source,) = self._unlock([self._entry(Wanted(name, version or None))])
        except ModelNotFound as error:
            raise ModelNotFound(f"Model not found at: {url[:256]}") from error
        return source

    def wanted(self, entries: Sequence[Wanted]) -> list[ModelSource]:
        """The wanted sealed models; of every model's newest version if none is named.

        Blocks on the network; runs in a thread.

        Raises:
            ConfigError: a wanted model is not in the store.
            VerificationError: a container is not genuine, not signed by a trusted signer, or older than seen.
            KeyUnavailable: the broker refused a key.
            TransportError: the broker could not be reached.
        """
        if not self._folder.is_dir():
            raise ConfigError(f"serve.model_store: {self._folder} is not a folder")
        names = sorted({path.parent.name for path in self._folder.glob(f"*/*{SUFFIX}")})
        picked: dict[Path, StoreEntry] = {}
        for want in entries or [Wanted(name, None) for name in names]:
            try:
                entry = self._entry(want)
            except ModelNotFound as error:
                there = ", ".join(names) or "no model at all"
                raise ConfigError(error.message, hint=f"there: {there}") from error
            picked[entry.path] = entry
        return self._unlock(list(picked.values()))

    def _entry(self, want: Wanted) -> StoreEntry:
        store = ModelStore(self._folder, self._trusted)
        return store.get(want.name, want.version) if want.version else store.newest(want.name)

    def _unlock(self, entries: Sequence[StoreEntry]) -> list[ModelSource]:
        settings = self._settings
        ca = Path(settings.broker_ca) if settings.broker_ca else None
        sources: list[ModelSource] = []
        with open_key_source(settings.broker, attester=lambda: self._attester, ca=ca) as keys:
            try:
                for entry in entries:
                    uri = f"{entry.header.key}?version={entry.header.key_version}"
                    key = SecretKey(keys.get_resource(uri))
                    sources.append(_open_source(entry, key, self._trusted))
                    log.info("model unlocked", model=entry.header.name, version=entry.header.version)
            except BaseException:
                for source in sources:
                    source.close()
                raise
        return sources


class SealedContent:
    """A verified container with its key, until it is placed."""

    def __init__(self, sealed: SealedFile, where: str, requirements: str) -> None:
        self._sealed = sealed
        self._where = where
        self._requirements = requirements

    @property
    def digest(self) -> str:
        """Of the container; computed while its files are placed, waited for before that."""
        return self._sealed.digest

    def place(self, folder: Path) -> Path:
        """Decrypt into ``folder``, leave it read-only, and forget the key.

        The digest is taken at the same time, on another core, and is there when this returns.

        Raises:
            ConfigError: the folder is not in memory, has no room, or packages are missing.
            BadCiphertext: the container is not genuine.
        """
        require_memory(folder)
        self._sealed.start_digest()
        with _naming(self._where):
            unpack_archive(cast("IO[bytes]", self._sealed), folder, authentic=True)
        if self._requirements:
            require_packages(folder, self._requirements, model=self._sealed.header.name)
        protect_folder(folder)
        _ = self.digest  # nothing is served without it
        self.close()
        return folder

    def close(self) -> None:
        """Forget the key. May be called any number of times."""
        self._sealed.close()


def _open_source(entry: StoreEntry, key: SecretKey, trusted: TrustedSigners) -> ModelSource:
    where = f"container {entry.path.name} of {entry.header.name}"
    with _naming(where):
        sealed = open_sealed(entry.path, key=key, trusted=trusted)
        try:
            return _describe_source(entry, sealed, where)
        except BaseException:
            sealed.close()
            raise


def _describe_source(entry: StoreEntry, sealed: SealedFile, where: str) -> ModelSource:
    header = sealed.header
    if header.kind != KIND:
        raise ConfigError(f"{entry.path.name} holds a {header.kind}, and only a {KIND} can be served")
    manifest, settings = read_description(cast("IO[bytes]", sealed))
    return ModelSource(
        name=header.name,
        version=header.version,
        url=entry.path.name,
        manifest=manifest,
        content=SealedContent(sealed, where, manifest.model.requirements_file),
        settings=settings,
        signer=header.signer,
        sequence=header.sequence,
    )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say which container it was."""
    try:
        yield
    except BadCiphertext as error:
        raise BadCiphertext(f"{where}: {error.message}") from error
    except MalformedInput as error:
        raise MalformedInput(f"{where}: {error.message}") from error
