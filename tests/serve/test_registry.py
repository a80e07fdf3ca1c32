"""Models come and go while a server runs, and no request is lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cloister.errors import ConfigError, ModelFailed, ModelNotFound, Overloaded
from cloister.serve.manifest import Manifest, ManifestModel
from cloister.serve.model_config import ModelConfig
from cloister.serve.registry import Conflict, Registry
from cloister.serve.sources import ModelSource
from cloister.settings import ServeSettings
from tests.serve.test_supervisor import runs

HANDLER = """
import time
def handle(data, context):
    if data is None:
        return None
    time.sleep(float(data[0]["body"] or 0))
    return ["{version}"] * len(data)
"""
CONFIG = ModelConfig()


@dataclass
class Files:
    """A model's content that notes what is done with it."""

    digest = ""

    source: str
    placed: list[Path] = field(default_factory=list)
    closed: int = 0

    def place(self, folder: Path) -> Path:
        (folder / "service.py").write_text(self.source)
        self.placed.append(folder)
        return folder

    def close(self) -> None:
        self.closed += 1


def source(version: str, *, name: str = "m", code: str = HANDLER) -> ModelSource:
    """One version of a model that answers with its number."""
    manifest = Manifest(model=ManifestModel(handler="service.py"))
    content = Files(code.replace("{version}", version))
    return ModelSource(name=name, version=version, url=f"{name}.mar", manifest=manifest, content=content)


@asynccontextmanager
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    models = Registry(ServeSettings(mode="open", tmpfs=str(tmp_path)))
    try:
        yield models
    finally:
        await models.close(drain_s=1.0)


async def ask(models: Registry, version: str | None = None, body: bytes = b"0") -> str:
    headers = [(b"content-type", b"text/plain")]
    answer = await models.find("m", version).supervisor.ask(headers, b"", body)
    assert answer.status == 200, answer.fault
    return bytes(answer.body).decode()


@runs
async def test_load_and_close(tmp_path: Path) -> None:
    """At the start the newest version is the default; at the end nothing is left of what was unpacked."""
    sources = [source("1.9"), source("1.10"), source("2", name="other")]
    async with registry(tmp_path) as models:
        await models.load(sources)
        assert models.healthy
        assert models.names() == ["m", "other"]
        assert [model.version for model in models.versions("m")] == ["1.9", "1.10"]
        assert await ask(models) == "1.10"
        assert await ask(models, "1.9") == "1.9"
        content = sources[0].content
        assert isinstance(content, Files)
        (folder,) = content.placed
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
    assert content.closed


@runs
async def test_a_new_version_beside_the_old(tmp_path: Path) -> None:
    """A new version is loaded before it is found; a change of the default loses no request."""
    async with registry(tmp_path) as models:
        await models.register(source("1"), CONFIG)
        wrong = 0
        seen: set[str] = set()

        async def caller() -> None:
            nonlocal wrong
            while "2" not in seen or models.versions("m")[0].version == "1":
                try:
                    seen.add(await ask(models, None, b"0.002"))
                except (AssertionError, Overloaded, ModelNotFound):
                    wrong += 1

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        before = models.generation
        await models.register(source("2"), CONFIG)
        assert models.find("m").version == "1"
        models.set_default("m", "2")
        assert models.generation >= before + 2
        await models.unregister("m", "1", timeout_s=5.0)
        await asyncio.gather(*callers)
        assert (wrong, seen) == (0, {"1", "2"})
        with pytest.raises(ModelNotFound, match="version: 1 "):
            models.find("m", "1")


@runs
async def test_the_same_version_twice(tmp_path: Path) -> None:
    """A version that is there, or on its way, is not registered again."""
    async with registry(tmp_path) as models:
        results = await asyncio.gather(
            models.register(source("1"), CONFIG), models.register(source("1"), CONFIG), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["Conflict", "Model"]
        with pytest.raises(Conflict):
            await models.register(source("1"), CONFIG)


@runs
async def test_a_version_that_does_not_load(tmp_path: Path) -> None:
    """A handler that cannot load leaves no trace, and what was there goes on."""
    async with registry(tmp_path) as models:
        await models.register(source("1"), CONFIG)
        generation = models.generation
        with pytest.raises(ModelFailed):
            await models.register(source("2", code="1/0"), CONFIG)
        assert models.generation == generation
        assert [model.version for model in models] == ["1"]
        assert await ask(models) == "1"
        folders = [path for top in tmp_path.iterdir() for path in top.iterdir()]
        assert len(folders) == 2  # of version 1: its files, and its worker's scratch folder


@runs
async def test_unregister_in_time_or_not_at_all(tmp_path: Path) -> None:
    """Who unregisters waits for the requests at hand; when they take too long the model stays."""
    async with registry(tmp_path) as models:
        await models.register(source("1"), CONFIG)
        slow = asyncio.create_task(ask(models, None, b"0.6"))
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            await models.unregister("m", timeout_s=0.1)
        assert await ask(models) == "1"
        assert await slow == "1"
        slow = asyncio.create_task(ask(models, None, b"0.3"))
        await asyncio.sleep(0.1)
        await models.unregister("m", timeout_s=5.0)
        assert await slow == "1"
        assert models.names() == []
        with pytest.raises(ModelNotFound):
            models.find("m")


@runs
async def test_defaults_after_removal(tmp_path: Path) -> None:
    """When the default version goes, the newest registration of the rest takes its place."""
    async with registry(tmp_path) as models:
        for version in ("1", "2", "3"):
            await models.register(source(version), CONFIG)
        assert models.find("m").version == "1"
        await models.unregister("m", "1", timeout_s=1.0)
        assert models.find("m").version == "3"
        with pytest.raises(ModelNotFound):
            models.set_default("m", "1")


@runs
async def test_a_new_version_while_the_old_one_finishes(tmp_path: Path) -> None:
    """What is registered while the last version finishes its requests answers where no version is named."""
    async with registry(tmp_path) as models:
        await models.register(source("1"), CONFIG)
        slow = asyncio.create_task(ask(models, None, b"2"))
        await asyncio.sleep(0.1)
        leaving = asyncio.create_task(models.unregister("m", timeout_s=10.0))
        await asyncio.sleep(0)
        await models.register(source("2"), CONFIG)
        assert not leaving.done()
        assert await ask(models) == "2"
        assert await slow == "1"
        await leaving
        assert await ask(models) == "2"


@runs
async def test_registered_anew_while_it_finishes(tmp_path: Path) -> None:
    """A version that was registered anew stays, and the old one still answers what it had."""
    async with registry(tmp_path) as models:
        await models.register(source("1"), CONFIG)
        slow = asyncio.create_task(ask(models, None, b"2"))
        await asyncio.sleep(0.1)
        leaving = asyncio.create_task(models.unregister("m", timeout_s=1.0))
        await asyncio.sleep(0)
        fresh = await models.register(source("1", code=HANDLER.replace("{version}", "new")), CONFIG)
        assert await ask(models) == "new"
        assert await slow == "1"
        await leaving
        assert models.find("m") is fresh
        assert await ask(models) == "new"
        folders = [path for top in tmp_path.iterdir() for path in top.iterdir()]
        assert len(folders) == 2  # nothing is left of the old one


@runs
async def test_no_model_without_its_digest(tmp_path: Path) -> None:
    """Where nothing is placed the digest is still waited for, and without one the model is refused."""

    class Unreadable(Files):
        @property
        def digest(self) -> str:
            raise ConfigError("cannot take a container's digest")

    broken = replace(source("1"), content=Unreadable(HANDLER))
    models = Registry(ServeSettings(mode="open", tmpfs=str(tmp_path), remote_only=True))
    with pytest.raises(ConfigError, match="digest"):
        await models.load([broken])
    assert models.names() == []
    await models.close(drain_s=0.0)
