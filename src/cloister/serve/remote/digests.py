"""A model by its content: the same digest here and there means the same model, whatever it is called."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from cloister.attest.measure import measure_package
from cloister.errors import CloisterError
from cloister.seal.reader import container_digest
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import ModelStore
from cloister.serve.plain_store import SUFFIXES
from cloister.settings import ServeSettings


class Digests:
    """Digests of archives, containers and folders, each computed once as long as it does not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int, int], str] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """SHA-256 of a file, or the measurement of a folder. Reads all of it the first time.

        Raises:
            ConfigError: it cannot be read.
        """
        if path.is_dir():
            return measure_package(path).hex()
        try:
            facts = path.stat()
        except OSError:
            return container_digest(path)  # says in words what is wrong
        key = (path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        with self._lock:
            if key not in self._known:
                self._known[key] = container_digest(path)
            return self._known[key]


def stored_models(settings: ServeSettings, digests: Digests) -> dict[str, str]:
    """What a store has: by digest, the name by which the store resolves it. Blocks.

    Whatever cannot be read, or is of no trusted signer, is left out: it can still be missed by name.
    """
    folder = Path(settings.model_store)
    entries = _sealed(settings, folder) if settings.mode == "protected" else _plain(folder)
    found: dict[str, str] = {}
    for url, path in entries:
        try:
            found[digests.of(path)] = url
        except CloisterError:
            continue
    return found


def _sealed(settings: ServeSettings, folder: Path) -> Iterator[tuple[str, Path]]:
    trusted = TrustedSigners.from_file(Path(settings.trusted_signers))
    for entry in ModelStore(folder, trusted).list():
        yield f"{entry.header.name}={entry.header.version}", entry.path


def _plain(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        is_model = (path / "MAR-INF").is_dir() if path.is_dir() else path.name.endswith(SUFFIXES)
        if is_model and not path.name.startswith("."):
            yield path.name, path
