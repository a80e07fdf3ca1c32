"""Sealed models unlock through a key cache, and are decrypted straight into a folder in memory."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from cloister.attest.model import Evidence
from cloister.crypto.locked import LockedSecret
from cloister.errors import BadCiphertext, ConfigError, ModelNotFound
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.cache.local import LocalServer
from cloister.kbs.owner import SealRequest, seal_model
from cloister.seal.reader import container_digest
from cloister.seal.signing import SigningKey
from cloister.serve import tmpfs
from cloister.serve.model_config import ModelConfig
from cloister.serve.pack import pack_archive
from cloister.serve.registry import Registry
from cloister.serve.tmpfs import PrivateFolder
from cloister.serve.unlock import SealedStore
from cloister.settings import ServeSettings
from tests.serve.sandbox.inside import sandbox_flags

URI = "kbs:///models/digits/1"
WEIGHTS = os.urandom(3_000_001)


class Owner:
    """Keeps the key that sealing registers."""

    key = b""

    def put_version(self, uri: str, data: bytes) -> int:
        self.key = data
        return 1

    def set_minimum(self, uri: str, version: int) -> int:
        return 0


class NoTee:
    """An Attester that must not be asked."""

    scheme = "tdx"

    def get_evidence(self, report_data: bytes) -> Evidence:
        raise AssertionError("evidence was asked for")

    def get_endorsements(self) -> None:
        return None


class Store:
    """A sealed store beside a key cache."""

    def __init__(self, folder: Path, asked: list[str]) -> None:
        self.folder = folder
        self.signer = SigningKey.generate()
        self.asked = asked
        self.owner = Owner()
        (folder / "signers").write_text(self.signer.public)

    def seal(self, archive: Path, name: str = "digits", version: str = "1", sequence: int = 1) -> None:
        request = SealRequest(source=archive, name=name, version=version, sequence=sequence, key_uri=URI)
        arguments: dict[str, Any] = {
            "admin": self.owner,
            "signer": self.signer,
            "store": self.folder / "store",
        }
        seal_model(request, **arguments)

    @contextmanager
    def open(self) -> Iterator[SealedStore]:
        def fetch(uri: str) -> LockedSecret:
            self.asked.append(uri)
            return LockedSecret.of(self.owner.key, required=False)

        keep = KeyKeep([URI], fetch, lambda: 0.0, lease_s=60, grace_s=0)
        with tempfile.TemporaryDirectory() as folder:
            log = structlog.wrap_logger(structlog.testing.CapturingLogger())
            server = LocalServer(Path(folder) / "s", keep, (os.getuid(),), log).start()
            try:
                yield SealedStore(
                    ServeSettings(
                        model_store=str(self.folder / "store"),
                        trusted_signers=str(self.folder / "signers"),
                        broker=f"unix:{folder}/s",
                    ),
                    NoTee(),
                )
            finally:
                server.close()


@pytest.fixture
def sealed(tmp_path: Path) -> Store:
    """A store with one sealed model of a handler and 3 MB of weights."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "handler.py").write_text("def handle(data, context): return data\n")
    (code / "model.pt").write_bytes(WEIGHTS)
    (code / "c.yaml").write_text("batchSize: 4\n")
    pack_archive(
        tmp_path / "a.mar",
        name="digits",
        version="1",
        handler=code / "handler.py",
        serialized_file=code / "model.pt",
        config_file=code / "c.yaml",
    )
    store = Store(tmp_path, [])
    store.seal(tmp_path / "a.mar")
    return store


@pytest.fixture
def memory() -> Iterator[Path]:
    """A new folder in memory."""
    with PrivateFolder(Path("/dev/shm")) as folders:
        yield folders.make("test")


def test_models_unlock_through_a_cache(sealed: Store, memory: Path) -> None:
    """With ``serve.broker = unix:/path`` the key comes from the cache; what is placed is what was sealed."""
    with sealed.open() as store:
        (source,) = store.wanted([])
    assert sealed.asked == [f"{URI}?version=1"]
    assert (source.name, source.version, source.handler) == ("digits", "1", "handler.py")
    assert source.settings == {"batchSize": 4}
    assert source.place(memory) == memory
    assert source.digest == container_digest(sealed.folder / "store" / "digits" / "1.sealed")
    assert (memory / "model.pt").read_bytes() == WEIGHTS
    assert stat.S_IMODE((memory / "model.pt").stat().st_mode) == 0o400
    source.close()


def test_not_onto_a_disk(sealed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not in memory is refused before a byte is decrypted."""
    monkeypatch.setattr(tmpfs, "IN_MEMORY", frozenset())
    folder = tmp_path / "disk"
    folder.mkdir()
    with sealed.open() as store:
        (source,) = store.wanted([])
    with pytest.raises(ConfigError, match="expected tmpfs"):
        source.place(folder)
    source.close()
    assert list(folder.iterdir()) == []


def test_changed_container(sealed: Store, memory: Path) -> None:
    """A byte changed inside a container is found, and the container is named."""
    path = sealed.folder / "store" / "digits" / "1.sealed"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with sealed.open() as store:
        (source,) = store.wanted([])
    with pytest.raises(BadCiphertext, match=r"container 1\.sealed of digits"):
        source.place(memory)
    source.close()


@pytest.mark.parametrize("url", ["digits", "digits=1", "digits/1.sealed", "digits.mar"])
def test_registration_by_name(sealed: Store, url: str) -> None:
    """A sealed model is registered by its name, alone or with its version."""
    with sealed.open() as store:
        source = store.resolve(url, model_name="digits")
        assert (source.name, source.version, source.url) == ("digits", "1", "1.sealed")
        source.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "other",
        "digits=2",
        "../store/digits",
        "/etc/passwd",
        "https://a.example/digits.mar",
        "digits/../digits/1.sealed",
    ],
)
def test_nothing_else_is_found(sealed: Store, url: str) -> None:
    """Paths, URLs, other names and versions reach nothing."""
    with sealed.open() as store, pytest.raises(ModelNotFound):
        store.resolve(url)


@pytest.mark.parametrize("override", [{"handler": "os:system"}, {"runtime": "LSP"}, {"model_name": "other"}])
def test_what_the_owner_signed_stays(sealed: Store, override: dict[str, str]) -> None:
    """A registration cannot give a sealed model another name or handler."""
    with sealed.open() as store, pytest.raises(ConfigError, match="owner signed"):
        store.resolve("digits", **override)


def test_missing_packages_stop_it(sealed: Store, memory: Path, tmp_path: Path) -> None:
    """A sealed model whose packages are not installed is refused, and they are named."""
    (tmp_path / "r.txt").write_text("no-such-package>=2\n")
    code = tmp_path / "code"
    parts: dict[str, Any] = {"handler": code / "handler.py", "requirements_file": tmp_path / "r.txt"}
    pack_archive(tmp_path / "b.mar", name="digits", version="2", **parts)
    sealed.seal(tmp_path / "b.mar", version="2", sequence=2)
    with sealed.open() as store:
        source = store.resolve("digits=2")
    with pytest.raises(ConfigError, match="no-such-package>=2"):
        source.place(memory)
    source.close()


SHARED = """
import os, tempfile
from pathlib import Path
def handle(data, context):
    if data is None: return
    folder = Path(context.system_properties["model_dir"])
    tried = []
    for path in (folder / "model.pt", folder / "new"):
        try:
            path.write_bytes(b"x")
            tried.append("written")
        except OSError as error:
            tried.append(type(error).__name__)
    Path(tempfile.gettempdir(), "own").write_bytes(b"x")
    weights = (folder / "model.pt").stat()
    seen = {"pid": os.getpid(), "inode": weights.st_ino, "size": weights.st_size, "tried": tried}
    return [seen] * len(data)
"""


def test_protected_workers_share_and_cannot_write(sealed: Store, tmp_path: Path) -> None:
    """Two real workers have one decrypted file between them, read-only, and each a folder to write."""
    code = tmp_path / "code"
    (code / "handler.py").write_text(SHARED)
    parts: dict[str, Any] = {"handler": code / "handler.py", "serialized_file": code / "model.pt"}
    pack_archive(tmp_path / "c.mar", name="digits", version="3", **parts)
    sealed.seal(tmp_path / "c.mar", version="3", sequence=3)
    flags = {name.removeprefix("serve."): value for name, value in sandbox_flags().items()}

    async def serve(memory: str) -> list[dict[str, Any]]:
        registry = Registry(ServeSettings(tmpfs=memory, **flags))
        with sealed.open() as store:
            source = store.resolve("digits=3")
        try:
            model = await registry.register(source, ModelConfig(min_workers=2, max_workers=2))
            asking = [model.supervisor.ask([], b"", b"x", alone=True) for _ in range(40)]
            return [json.loads(bytes(answer.body)) for answer in await asyncio.gather(*asking)]
        finally:
            await registry.close(drain_s=1.0)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        answers = asyncio.run(serve(memory))
        assert list(Path(memory).iterdir()) == []
    assert {(item["inode"], item["size"]) for item in answers} == {(answers[0]["inode"], len(WEIGHTS))}
    assert all("written" not in item["tried"] for item in answers)
    assert len({item["pid"] for item in answers}) == 2


def test_peak_memory_is_one_copy(memory: Path, tmp_path: Path) -> None:
    """Decrypting 200 MB of weights grows the process by little more than its slabs, besides the files."""
    code = tmp_path / "big"
    code.mkdir()
    (code / "handler.py").write_text("")
    with (code / "model.pt").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(1 << 20))
    pack_archive(
        tmp_path / "big.mar",
        name="digits",
        version="1",
        handler=code / "handler.py",
        serialized_file=code / "model.pt",
    )
    sealed = Store(tmp_path, [])
    sealed.seal(tmp_path / "big.mar")
    with sealed.open() as store:
        source = store.resolve("digits")
    peak: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak.append(private_bytes())

    before = private_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    source.place(memory)
    done.set()
    watcher.join()
    source.close()
    assert (memory / "model.pt").stat().st_size == 200 << 20
    assert max(peak) - before < 32 << 20


def private_bytes() -> int:
    """Memory of this process that is neither a file's nor shared."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError
