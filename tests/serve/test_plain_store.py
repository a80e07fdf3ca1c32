"""The model store gives what is in it by name, and nothing else by any name."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ConfigError, MalformedInput, ModelNotFound
from cloister.serve.pack import pack_archive
from cloister.serve.plain_store import PlainStore, resolve_source
from cloister.serve.sources import ModelSource, Wanted


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one archive and one folder, and a secret beside it."""
    (tmp_path / "h.py").write_text("def handle(data, context): return data")
    (tmp_path / "secret.mar").write_bytes(b"secret")
    folder = tmp_path / "store"
    folder.mkdir()
    for name, version, path, archive_format in (
        ("m", "2", folder / "x.mar", "default"),
        ("n", "1.0", folder / "plain", "no-archive"),
    ):
        pack_archive(
            path, name=name, version=version, handler=tmp_path / "h.py", archive_format=archive_format
        )
    return folder


def resolve(store: PlainStore | Path, url: str, **overrides: str) -> ModelSource:
    """What a name resolves to; only looked at, so its file is closed at once."""
    source = (store if isinstance(store, PlainStore) else PlainStore(store)).resolve(url, **overrides)
    source.close()
    return source


def test_wanted(store: Path, tmp_path: Path) -> None:
    """Archives and folders are found by their manifests; two of one name and version are refused."""
    sources = PlainStore(store).wanted([])
    for source in sources:
        source.close()
    assert {(item.name, item.version, item.url) for item in sources} == {
        ("m", "2", "x.mar"),
        ("n", "1.0", "plain"),
    }
    pack_archive(store / "y.mar", name="m", version="2", handler=tmp_path / "h.py")
    with pytest.raises(ConfigError, match="both"):
        PlainStore(store).wanted([Wanted("m", None)])


def test_broken_archive_is_named(store: Path) -> None:
    """An archive that cannot be read is named by its file."""
    (store / "bad.mar").write_bytes(b"no")
    with pytest.raises(MalformedInput, match=r"bad\.mar"):
        PlainStore(store).wanted([])
    with pytest.raises(MalformedInput, match=r"bad\.mar"):
        resolve_source("bad.mar", store)


def test_registration_overrides_the_manifest(store: Path) -> None:
    """Name, handler and runtime of the registration win over the manifest's; without a name, the file's."""
    source = resolve(store, "x.mar", model_name="other", handler="h:f", runtime="python3")
    assert (source.name, source.version, source.handler, source.manifest.runtime) == (
        "other",
        "2",
        "h:f",
        "python3",
    )
    with zipfile.ZipFile(store / "bare.mar", "w") as archive:
        archive.writestr("handler.py", "")
    bare = resolve(store, "bare.mar")
    assert (bare.name, bare.version, bare.handler) == ("bare", "1.0", "handler.py")


def test_default_handler(store: Path) -> None:
    """An archive without any handler has the store's default one."""
    with zipfile.ZipFile(store / "data.mar", "w") as archive:
        archive.writestr("weights.bin", "")
    source = resolve(PlainStore(store, default_handler="image_classifier"), "data.mar")
    assert source.handler == "image_classifier"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "none.mar",
        "../secret.mar",
        "/etc/passwd",
        "/etc",
        "sub/x.mar",
        "./x.mar",
        ".hidden",
        "x.mar\0",
        "..",
        ".",
        "a" * 5000,
        "\\x.mar",
        "https://models.example/x.mar",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://models.example/x.mar",
    ],
)
def test_names_that_reach_nothing(store: Path, url: str) -> None:
    """A path, an absolute name and every URL that is not allowed are not found."""
    with pytest.raises(ModelNotFound):
        resolve_source(url, store)


def test_absolute_name_of_the_store_itself(store: Path) -> None:
    """TorchServe's users write the store's own path before the name; that is the same file."""
    assert resolve(store, str(store / "x.mar")).name == "m"


def test_links_that_leave(store: Path, tmp_path: Path) -> None:
    """A link out of the store is not followed, one within it is: container mounts are made of them."""
    (store / "out.mar").symlink_to(tmp_path / "secret.mar")
    (store / "in.mar").symlink_to(store / "x.mar")
    with pytest.raises(ModelNotFound):
        resolve_source("out.mar", store)
    assert resolve(store, "in.mar").name == "m"


def test_what_is_no_file(store: Path) -> None:
    """A pipe in the store neither loads nor keeps anybody waiting."""
    os.mkfifo(store / "pipe.mar")
    with pytest.raises(MalformedInput, match="regular"):
        resolve_source("pipe.mar", store)


@pytest.mark.parametrize("target", ["/etc/passwd", "../x.mar", "nothing"])
def test_folder_with_a_link_that_leaves(store: Path, target: str) -> None:
    """A no-archive model with a link out of its folder, or to nothing, is refused."""
    (store / "plain" / "link").symlink_to(target)
    with pytest.raises(MalformedInput, match="link"):
        resolve_source("plain", store)


def test_folder_is_used_in_place(store: Path, tmp_path: Path) -> None:
    """A no-archive model is not copied; one that somebody unpacked under one folder is found there."""
    (tmp_path / "new").mkdir()
    assert resolve_source("plain", store).place(tmp_path / "new") == store / "plain"
    (store / "outer").mkdir()
    (store / "plain").rename(store / "outer" / "inner")
    source = resolve_source("outer", store)
    assert (source.name, source.place(tmp_path / "new")) == ("n", store / "outer" / "inner")


def test_store_with_a_relative_path(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is named from the working folder gives the same models, by absolute paths."""
    monkeypatch.chdir(tmp_path)
    source = resolve(Path("store"), "plain")
    assert (source.name, source.handler) == ("n", "h.py")
    assert source.place(tmp_path) == (store / "plain").resolve()


def test_what_was_described_is_placed(store: Path, tmp_path: Path) -> None:
    """An archive that is replaced after it was resolved does not change what is unpacked."""
    source = resolve_source("x.mar", store)
    (store / "x.mar").unlink()
    (store / "x.mar").write_bytes(b"other")
    (tmp_path / "new").mkdir()
    placed = source.place(tmp_path / "new")
    source.close()
    source.close()
    assert json.loads((placed / "MAR-INF" / "MANIFEST.json").read_text())["model"]["modelName"] == "m"


@pytest.mark.parametrize("name", ["../x", "a b", "x" * 200, "-x"])
def test_names_no_model_can_have(store: Path, name: str) -> None:
    """A registration under a name that no model can have is malformed."""
    with pytest.raises(MalformedInput, match="name"):
        PlainStore(store).resolve("x.mar", model_name=name)
    with pytest.raises(MalformedInput, match="runtime"):
        PlainStore(store).resolve("x.mar", runtime="ruby")


def test_hostile_tar(store: Path) -> None:
    """A TAR with a device or a hard link is refused before anything is written."""
    for kind in (tarfile.CHRTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as tar:
            info = tarfile.TarInfo("m/x")
            info.type, info.linkname, info.mode = kind, "m/y", stat.S_IRUSR
            tar.addfile(info)
        (store / "t.tar.gz").write_bytes(target.getvalue())
        with pytest.raises(MalformedInput):
            resolve_source("t.tar.gz", store)


@settings(max_examples=150, deadline=None)
@given(url=st.text(max_size=30) | st.from_regex(r"(\.\./|/|file://|x\.mar|\\|%2e){1,6}", fullmatch=True))
def test_no_name_leaves_the_store(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    """Whatever is asked for, an empty store gives nothing and reads nothing else."""
    folder = tmp_path_factory.getbasetemp() / "empty-store"
    folder.mkdir(exist_ok=True)
    with pytest.raises(ModelNotFound):
        resolve_source(url, folder)
