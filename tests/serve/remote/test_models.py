"""Tests of ``cloister.serve.remote.models``, ``digests`` and ``slot``, in open mode."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from cloister.errors import ConfigError, MalformedInput, ModelNotFound
from cloister.serve.groups import WorkerGroups
from cloister.serve.model_config import ModelConfig
from cloister.serve.remote.digests import Digests
from cloister.serve.remote.messages import ModelKey
from cloister.serve.remote.models import KEEP_S, HostModels
from cloister.serve.remote.slot import read_config
from cloister.serve.tmpfs import PrivateFolder
from cloister.settings import ServeSettings
from tests.processes.server import pack

SOURCE = "def handle(data, context): return data"


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def host(folder: Path, folders: PrivateFolder, clock: Clock | None = None) -> HostModels:
    """The models of a host in open mode."""
    return HostModels(
        ServeSettings(mode="open", model_store=str(folder)), None, folders, clock=clock or Clock()
    )


def test_found_by_content(tmp_path: Path) -> None:
    """A model is placed under the frontend's name for it, once for all its workers, and kept for a while."""
    archive = pack(tmp_path, "own", SOURCE)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    key = ModelKey("called-otherwise", "1.0", digest)
    clock = Clock()

    async def work() -> None:
        with PrivateFolder(tmp_path) as folders:
            models = host(tmp_path, folders, clock)
            assert await models.look() == {digest}
            async with models.using(key, ModelConfig()) as one, models.using(key, ModelConfig()) as other:
                assert one.model_dir == other.model_dir
                assert (one.name, one.version, one.protected) == (key.name, "1.0", False)
                assert (one.model_dir / "handler.py").read_text() == SOURCE
            assert one.model_dir.exists()
            clock.now = KEEP_S + 1
            models._forget_idle()
            assert not one.model_dir.exists()

    asyncio.run(work())


def test_a_worker_elsewhere_is_as_one_here(tmp_path: Path) -> None:
    """Envelope, metrics and limits of the host's settings reach its workers as a frontend's reach its own."""
    archive = pack(tmp_path, "own", SOURCE)
    key = ModelKey("own", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest())
    metrics = tmp_path / "metrics.yaml"
    metrics.write_text(
        "model_metrics:\n  counter:\n    - name: Seen\n      unit: count\n      dimensions: [model]\n"
    )
    settings = ServeSettings(
        mode="open",
        model_store=str(tmp_path),
        service_envelope="json",
        metrics_config=str(metrics),
        sandbox="best-effort",
        worker_memory_mb=700,
    )
    config = ModelConfig(batch_size=3, idempotent=False)
    groups = WorkerGroups(tmp_path)

    async def work() -> None:
        with PrivateFolder(tmp_path) as folders:
            models = HostModels(settings, None, folders, groups=groups, clock=Clock())
            await models.look()
            async with models.using(key, config) as spec:
                assert (spec.envelope, [item.name for item in spec.metrics]) == ("json", ["Seen"])
                assert (spec.batch_size, spec.idempotent, spec.groups) == (3, False, groups)
                assert (spec.sandbox.level, spec.sandbox.memory_bytes) == ("best-effort", 700 << 20)

    asyncio.run(work())


def test_an_idle_model_goes_whole(tmp_path: Path) -> None:
    """What is forgotten leaves nothing in memory, folders included that may not be written."""
    archive = pack(tmp_path, "own", SOURCE)
    key = ModelKey("own", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest())
    clock = Clock()

    async def work() -> None:
        with PrivateFolder(tmp_path) as folders:
            models = host(tmp_path, folders, clock)
            await models.look()
            async with models.using(key, ModelConfig()) as spec:
                inner = spec.model_dir / "inner"
                inner.mkdir()
                (inner / "file").write_text("x")
                inner.chmod(0o500)
            clock.now = KEEP_S + 1
            models._forget_idle()
            assert list(folders.path.iterdir()) == []

    asyncio.run(work())


def test_what_is_not_there(tmp_path: Path) -> None:
    """Another digest, a changed archive and an impossible name are refused; nothing is written for them."""
    archive = pack(tmp_path, "own", SOURCE)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    async def work() -> None:
        with PrivateFolder(tmp_path) as folders:
            models = host(tmp_path, folders)
            await models.look()
            archive.write_bytes(pack(tmp_path, "own", SOURCE + "\n", version="2.0").read_bytes())
            for key, error in (
                (ModelKey("own", "1.0", "00" * 32), ModelNotFound),
                (ModelKey("own", "1.0", digest), ConfigError),
                (ModelKey("../../etc", "1.0", digest), MalformedInput),
                (ModelKey("own", "1/0", digest), MalformedInput),
            ):
                with pytest.raises(error):
                    async with models.using(key, ModelConfig()):
                        pass
            assert list(folders.path.iterdir()) == []

    asyncio.run(work())


def test_digest_follows_the_content(tmp_path: Path) -> None:
    """A changed file has another digest; a folder has one too; a file that is not there is a ConfigError."""
    digests = Digests()
    file = tmp_path / "a.mar"
    file.write_bytes(b"one")
    first = digests.of(file)
    assert first == digests.of(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"another")
    assert digests.of(file) != first
    assert len(digests.of(tmp_path)) == 96
    with pytest.raises(ConfigError):
        digests.of(tmp_path / "none")


def test_configuration_of_an_assignment() -> None:
    """What the frontend says of a model comes as its ModelConfig, or not at all."""
    assert read_config(b'{"batch_size":4}').batch_size == 4
    for raw in (b"", b"[]", b"\xff", b'{"batch_size":"x"}', b"[" * 100_000):
        with pytest.raises(MalformedInput):
            read_config(raw)
