"""What a model needs is named, and installed only where the server is told to."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from cloister.errors import ConfigError, MalformedInput, ModelFailed
from cloister.serve.manifest import PACKAGES_FOLDER
from cloister.serve.pack import pack_archive
from cloister.serve.plain_store import PlainStore
from cloister.serve.requirements import install_requirements, missing_packages, require_packages

NAME = "cloister_test_wheel"


def wheel(folder: Path, version: str = "1.0") -> Path:
    """A wheel of one module, made by hand."""
    info = f"{NAME}-{version}.dist-info"
    files = {
        f"{NAME}.py": b"VALUE = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    path = folder / f"{NAME}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(name, content)
    return path


def test_missing_packages() -> None:
    """A package that is not there, too old, from a URL or behind an option counts as missing."""
    text = """
# a comment
numpy>=1  # another
msgspec
numpy<1
no-such-package==1.0
absent; python_version < "3"
--index-url https://packages.example
thing @ https://packages.example/thing.whl
"""
    missing = missing_packages(text)
    assert missing == [
        "numpy<1",
        "no-such-package==1.0",
        "--index-url https://packages.example",
        "thing @ https://packages.example/thing.whl",
    ]


def test_protected_names_what_is_missing(tmp_path: Path) -> None:
    """A server that installs nothing refuses such a model and names the packages."""
    (tmp_path / "r.txt").write_text("numpy\nno-such-package\n")
    with pytest.raises(ConfigError, match=r"model m needs .* not installed: no-such-package"):
        require_packages(tmp_path, "r.txt", model="m")
    (tmp_path / "r.txt").write_text("numpy\n")
    require_packages(tmp_path, "r.txt", model="m")
    with pytest.raises(MalformedInput, match="requirements"):
        require_packages(tmp_path, "none.txt", model="m")


def test_install_for_one_model(tmp_path: Path) -> None:
    """A model's wheel is installed inside its own folder, and found nowhere else."""
    wheel(tmp_path)
    (tmp_path / "h.py").write_text("def handle(data, context): return data")
    (tmp_path / "r.txt").write_text(f"--no-index\n--find-links {tmp_path}\n{NAME}==1.0\n")
    store, folder = tmp_path / "store", tmp_path / "placed"
    store.mkdir()
    folder.mkdir()
    parts = {"handler": tmp_path / "h.py", "requirements_file": tmp_path / "r.txt"}
    pack_archive(store / "m.mar", name="m", version="1", **parts)  # type: ignore[arg-type]
    source = PlainStore(store, install=True).resolve("m.mar")
    placed = source.place(folder)
    source.close()
    assert (placed / PACKAGES_FOLDER / f"{NAME}.py").is_file()
    assert NAME not in sys.modules
    assert missing_packages(NAME) == [NAME]


def test_not_installed_unless_told(tmp_path: Path) -> None:
    """By default a model is placed without its packages, as with TorchServe."""
    (tmp_path / "h.py").write_text("")
    (tmp_path / "r.txt").write_text(f"{NAME}\n")
    parts = {"handler": tmp_path / "h.py", "requirements_file": tmp_path / "r.txt"}
    pack_archive(tmp_path / "m.mar", name="m", version="1", **parts)  # type: ignore[arg-type]
    folder = tmp_path / "placed"
    folder.mkdir()
    source = PlainStore(tmp_path).resolve("m.mar")
    assert not (source.place(folder) / PACKAGES_FOLDER).exists()
    source.close()


def test_failed_install(tmp_path: Path) -> None:
    """A package that cannot be had fails the model in TorchServe's words."""
    (tmp_path / "r.txt").write_text(f"--no-index\n{NAME}==9\n")
    with pytest.raises(ModelFailed, match="Custom pip package installation failed for model m"):
        install_requirements(tmp_path, "r.txt", model="m")
