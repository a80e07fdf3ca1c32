"""Archives: what TorchServe packs loads; none can write outside of its folder or fill the memory."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import MalformedInput
from cloister.serve import archive
from cloister.serve.archive import read_description
from cloister.serve.manifest import MANIFEST_NAME
from cloister.serve.unpack import unpack_archive
from tests.vectors import vector


def make_zip(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as out:
        for name, content in members:
            out.writestr(zipfile.ZipInfo(name), content, compression)
    return target


def make_tar(*members: tuple[str, bytes]) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return target


@pytest.mark.parametrize(
    ("file", "name", "version", "handler"),
    [
        ("echo.mar", "echo", "1.0", "handler.py"),
        ("noop.mar", "noop", "1.11", "service.py"),
        ("noop_v2.mar", "noop", "1.2.1", "service.py"),
        ("noop_handlername.mar", "noop_handlername", "1.0", "handler"),
    ],
)
def test_torchserve_archives(tmp_path: Path, file: str, name: str, version: str, handler: str) -> None:
    """TorchServe's own archives unpack, and their manifests are read."""
    with vector(f"torchserve/dev/{file}").open("rb") as source:
        model = unpack_archive(source, tmp_path).manifest.model
    assert (model.model_name, model.model_version, model.handler) == (name, version, handler)
    assert (tmp_path / "model.pt").is_file()


def test_tgz_with_top_folder(tmp_path: Path) -> None:
    """torch-model-archiver's tgz form, with its top folder, unpacks like the ZIP form."""
    manifest = json.dumps({"model": {"modelName": "m", "handler": "h.py"}}).encode()
    source = make_tar(("m/MAR-INF/MANIFEST.json", manifest), ("m/h.py", b"pass"))
    assert unpack_archive(source, tmp_path).manifest.model.model_name == "m"
    assert (tmp_path / "h.py").read_bytes() == b"pass"


@pytest.mark.parametrize(
    ("names", "unpacked"),
    [
        (("top/handler.py", "top/sub/a.txt"), {"handler.py", "sub/a.txt"}),
        (("handler.py", "sub/a.txt"), {"handler.py", "a.txt"}),
        (("./handler.py",), {"handler.py"}),
        (("MAR-INF/MANIFEST.json", "sub/h.py"), {"MAR-INF/MANIFEST.json", "sub/h.py"}),
    ],
)
def test_tar_names_as_torchserve(tmp_path: Path, names: tuple[str, ...], unpacked: set[str]) -> None:
    """The first part of a TAR's names goes, as in TorchServe, except where the manifest is at the top."""
    unpack_archive(make_tar(*((name, b"{}") for name in names)), tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == unpacked


@pytest.mark.parametrize("name", ["../x", "a/../x", "/x"])
def test_unsafe_tar_names(tmp_path: Path, name: str) -> None:
    """A TAR's name is judged before its first part goes."""
    with pytest.raises(MalformedInput):
        unpack_archive(make_tar(("m/MAR-INF/MANIFEST.json", b"{}"), (name, b"x")), tmp_path)


def test_settings_are_read() -> None:
    """The YAML file that the manifest names comes with it; one that is not there is an error."""
    manifest = (MANIFEST_NAME, b'{"model": {"configFile": "c.yaml"}}')
    assert read_description(make_zip(manifest, ("c.yaml", b"batchSize: 4"))).settings == {"batchSize": 4}
    with pytest.raises(MalformedInput, match="settings file"):
        read_description(make_zip(manifest))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_changed_content(tmp_path: Path, compression: int) -> None:
    """A changed byte of a member is found by its checksum, whichever way it is unpacked."""
    raw = bytearray(make_zip(("a", bytes(range(256)) * 20), compression=compression).getvalue())
    raw[60] ^= 1
    with pytest.raises(MalformedInput):
        unpack_archive(io.BytesIO(bytes(raw)), tmp_path)


def test_no_manifest_guesses_handler() -> None:
    """An archive without manifest has the handler file that is usual."""
    source = make_zip(("service.py", b""), ("other.py", b""))
    assert read_description(source).manifest.model.handler == "service.py"


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a\x01b", "..", "a/../b", "x" * 2000]
)
def test_unsafe_names(tmp_path: Path, name: str) -> None:
    """No member may leave the folder, and nothing is written before all names were checked."""
    with pytest.raises(MalformedInput):
        unpack_archive(make_zip(("first", b"1"), (name, b"x")), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second", ["a", "./a", "a/b"])
def test_duplicate_names(tmp_path: Path, second: str) -> None:
    """Two members of one name, or a file that is also a folder, are refused."""
    with pytest.raises(MalformedInput), pytest.warns() if second == "a" else _nothing():
        unpack_archive(make_zip(("a", b"1"), (second, b"2")), tmp_path)


def test_symlinks(tmp_path: Path) -> None:
    """A symbolic link is refused in both formats."""
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as out:
        out.writestr(link, "/etc/passwd")
    with pytest.raises(MalformedInput, match="link"):
        unpack_archive(target, tmp_path)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(MalformedInput, match="link"):
        unpack_archive(target, tmp_path)


def test_bomb_by_ratio(tmp_path: Path) -> None:
    """A member that inflates beyond the ratio is refused before it is written."""
    source = make_zip(("zeros", bytes(archive.RATIO_FLOOR_BYTES + 1)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(MalformedInput, match="bomb"):
        unpack_archive(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_lying_length(tmp_path: Path) -> None:
    """A member whose directory entry understates its length is refused."""
    raw = bytearray(make_zip(("a", bytes(5000)), compression=zipfile.ZIP_DEFLATED).getvalue())
    directory = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<I", raw, directory + 24, 10)
    with pytest.raises(MalformedInput):
        unpack_archive(io.BytesIO(bytes(raw)), tmp_path)


def test_member_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit to the number of members."""
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    for make in (make_zip, make_tar):
        with pytest.raises(MalformedInput, match="members"):
            read_description(make(*((f"f{i}", b"") for i in range(4))))


def test_changed_tar(tmp_path: Path) -> None:
    """A byte changed anywhere in a gzipped TAR is nobody's fault but the archive's."""
    raw = make_tar(("m/h.py", b"x" * 5000), ("m/a.txt", bytes(range(200)))).getvalue()
    refused = 0
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 0x5A
        folder = tmp_path / str(place)
        folder.mkdir()
        try:
            unpack_archive(io.BytesIO(bytes(changed)), folder)
        except MalformedInput:
            refused += 1
    assert refused > 100


def test_member_without_a_name(tmp_path: Path) -> None:
    """An archive with an empty name in its directory is malformed."""
    raw = bytearray(make_zip(("ab", b"x")).getvalue())
    directory = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<H", raw, directory + 28, 0)
    with pytest.raises(MalformedInput):
        unpack_archive(io.BytesIO(bytes(raw)), tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_only_malformed_input_escapes(noise: bytes, place: int, value: int) -> None:
    """Random bytes, and an archive with a changed byte, give a manifest or MalformedInput, nothing else."""
    changed = bytearray(make_zip(("a.py", b"x" * 50), (MANIFEST_NAME, b'{"model": {}}')).getvalue())
    changed[place % len(changed)] = value
    for raw in (noise, bytes(changed)):
        with contextlib.suppress(MalformedInput):
            read_description(io.BytesIO(raw))


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
