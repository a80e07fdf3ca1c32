"""The measurement of a package."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attest.measure import installed_package, measure_package
from cloister.errors import ConfigError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package."""
    folder = tmp_path / "package"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "sub" / "b.py").write_text("b = 2\n")
    return folder


def test_is_stable(package: Path) -> None:
    """The same files have the same measurement, wherever they lie."""
    before = measure_package(package)
    moved = package.rename(package.parent / "elsewhere")
    assert measure_package(moved) == before
    assert len(before) == 48


def test_one_byte_changes_it(package: Path) -> None:
    """One changed byte changes the measurement."""
    before = measure_package(package)
    (package / "a.py").write_text("a = 2\n")
    assert measure_package(package) != before


def test_a_name_changes_it(package: Path) -> None:
    """A renamed file changes the measurement."""
    before = measure_package(package)
    (package / "a.py").rename(package / "c.py")
    assert measure_package(package) != before


def test_an_added_file_changes_it(package: Path) -> None:
    """An added file changes the measurement, an empty one too."""
    before = measure_package(package)
    (package / "sub" / "empty.py").touch()
    assert measure_package(package) != before


def test_content_cannot_move_between_files(package: Path) -> None:
    """Files whose contents are shifted against each other have another measurement."""
    before = measure_package(package)
    (package / "a.py").write_text("a = 1\nb")
    (package / "sub" / "b.py").write_text(" = 2\n")
    assert measure_package(package) != before


def test_byte_code_is_left_out(package: Path) -> None:
    """What the interpreter caches does not count."""
    before = measure_package(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (package / "old.pyc").write_bytes(b"x")
    assert measure_package(package) == before


def test_symbolic_links_are_refused(package: Path) -> None:
    """A link could bring in content from outside."""
    (package / "link.py").symlink_to(package / "a.py")
    with pytest.raises(ConfigError, match="symbolic"):
        measure_package(package)


def test_nothing_to_measure(tmp_path: Path) -> None:
    """An empty or absent folder is an error, not a measurement."""
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError):
            measure_package(folder)


def test_installed_package() -> None:
    """The running package is found and can be measured."""
    assert (installed_package() / "attest" / "measure.py").is_file()
    assert len(measure_package(installed_package())) == 48
