"""What is packed loads again, in TorchServe's own tools as well, and theirs loads here."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.manifest import MANIFEST_NAME
from cloister.serve.pack import SUFFIXES, expand_files, pack_archive
from cloister.serve.plain_store import PlainStore
from cloister.serve.sources import ModelSource

FORMATS = tuple(SUFFIXES)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """The files of a model."""
    folder = tmp_path / "parts"
    (folder / "extra" / "deep").mkdir(parents=True)
    (folder / "extra" / "__pycache__").mkdir()
    (folder / "extra" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / "extra" / "deep" / "labels.json").write_text("{}")
    (folder / "my_handler.py").write_text("def handle(data, context): return data\n" * 50)
    (folder / "model.py").write_text("class Net: ...")
    (folder / "model.pt").write_bytes(os.urandom(5000))
    (folder / "reqs.txt").write_text("numpy\n")
    (folder / "config.yaml").write_text("minWorkers: 2\n")
    return folder


def pack(parts: Path, target: Path, archive_format: str, handler: str = "my_handler.py") -> Path:
    path = target / f"digits{SUFFIXES[archive_format]}"
    pack_archive(
        path,
        name="digits",
        version="2.0",
        handler=str(parts / handler),
        serialized_file=parts / "model.pt",
        model_file=parts / "model.py",
        extra_files=[parts / "extra"],
        requirements_file=parts / "reqs.txt",
        config_file=parts / "config.yaml",
        archive_format=archive_format,
    )
    return path


def place(store: Path, name: str, folder: Path) -> tuple[ModelSource, Path]:
    source = PlainStore(store).resolve(name)
    folder.mkdir()
    placed = source.place(folder)
    source.close()
    return source, placed


@pytest.mark.parametrize("archive_format", FORMATS)
def test_pack_and_place(parts: Path, tmp_path: Path, archive_format: str) -> None:
    """What is packed in any format comes out again, under a manifest with TorchServe's names."""
    path = pack(parts, tmp_path, archive_format)
    source, placed = place(tmp_path, path.name, tmp_path / "out")
    assert (source.name, source.version, source.handler) == ("digits", "2.0", "my_handler.py")
    assert source.settings == {"minWorkers": 2}
    assert (placed / "deep" / "labels.json").read_text() == "{}"
    assert (placed / "model.pt").read_bytes() == (parts / "model.pt").read_bytes()
    assert not list(placed.rglob("*.pyc"))
    document = json.loads((placed / MANIFEST_NAME).read_text())
    assert document["runtime"] == "python"
    assert document["model"] == {
        "modelName": "digits",
        "modelVersion": "2.0",
        "handler": "my_handler.py",
        "serializedFile": "model.pt",
        "modelFile": "model.py",
        "configFile": "config.yaml",
        "requirementsFile": "reqs.txt",
    }
    if archive_format != "no-archive":
        assert stat.S_IMODE((placed / "model.pt").stat().st_mode) == 0o600


def test_weights_are_stored_and_code_deflated(parts: Path, tmp_path: Path) -> None:
    """What does not shrink is stored, so that it can be mapped; zip-store stores all."""
    for archive_format, expected in (("default", zipfile.ZIP_DEFLATED), ("zip-store", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(pack(parts, tmp_path, archive_format)) as archive:
            assert archive.getinfo("model.pt").compress_type == zipfile.ZIP_STORED
            assert archive.getinfo("my_handler.py").compress_type == expected


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("handler", ["my_handler.py", "my_handler", "my_handler:handle", "image_classifier"])
def test_archives_of_torch_model_archiver(
    parts: Path, tmp_path: Path, archive_format: str, handler: str
) -> None:
    """What torch-model-archiver packs loads here, and our manifest says the same as its."""
    pytest.importorskip("model_archiver")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    own = handler if handler == "image_classifier" else str(parts / handler)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "digits"]
    command += ["--version", "2.0", "--handler", own, "--archive-format", archive_format]
    command += ["--serialized-file", str(parts / "model.pt"), "--model-file", str(parts / "model.py")]
    command += ["--extra-files", str(parts / "extra"), "--export-path", str(theirs)]
    command += ["-r", str(parts / "reqs.txt"), "-c", str(parts / "config.yaml")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    source, placed = place(theirs, f"digits{SUFFIXES[archive_format]}", tmp_path / "out")
    assert source.settings == {"minWorkers": 2}
    ours = tmp_path / "ours"
    ours.mkdir()
    if handler == "image_classifier":
        return
    path = pack(parts, ours, archive_format, handler)
    mine, other = place(ours, path.name, tmp_path / "out2")
    assert mine.manifest == source.manifest
    own_files = {p.relative_to(other) for p in other.rglob("*") if p.is_file()}
    assert own_files == {p.relative_to(placed) for p in placed.rglob("*") if p.is_file()}


def test_extra_files(parts: Path) -> None:
    """A comma-separated list with patterns names files; a plain name that is not there is an error."""
    listed = expand_files([f"{parts}/*.txt, {parts}/model.py", f"{parts}/none*"])
    assert [path.name for path in listed] == ["reqs.txt", "model.py"]
    with pytest.raises(ConfigError, match="File does not exist"):
        expand_files([f"{parts}/nothing.txt"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"handler": "none.py"}, "not there"),
        ({"handler": "no_such_builtin"}, "not there"),
        ({"archive_format": "rar"}, "rar"),
        ({"runtime": "ruby"}, "ruby"),
        ({"serialized_file": Path("none.pt")}, "no such file"),
    ],
)
def test_refused(parts: Path, tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    """A file that is not there, or an unknown format or runtime, is a configuration error."""
    values: dict[str, object] = {"handler": str(parts / "my_handler.py"), **arguments}
    with pytest.raises(ConfigError, match=message):
        pack_archive(tmp_path / "a.mar", name="a", version="1", **values)  # type: ignore[arg-type]


def test_two_files_of_one_name(parts: Path, tmp_path: Path) -> None:
    """Two files that would have one name in the archive are an error, not the last one's."""
    (parts / "extra" / "model.pt").write_bytes(b"other")
    with pytest.raises(ConfigError, match="same name"):
        pack(parts, tmp_path, "default")
