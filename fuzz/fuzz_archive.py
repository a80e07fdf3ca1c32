"""Fuzz model archives, their manifests and settings, and forms: only declared errors may escape.

The first byte chooses the parser.

Run: ``python fuzz/fuzz_archive.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

from cloister.errors import ConfigError, MalformedInput
from cloister.serve.archive import read_description
from cloister.serve.forms import parse_fields
from cloister.serve.manifest import parse_manifest, parse_settings
from cloister.serve.unpack import unpack_archive

KINDS = (
    "multipart/form-data; boundary=B",
    "application/x-www-form-urlencoded",
    "application/json",
    "text/plain",
)


def one_input(data: bytes) -> None:
    """Read an archive, unpack one, or read what is in it or in a request."""
    if not data:
        return
    choice, rest = data[0] % 8, data[1:]
    with contextlib.suppress(MalformedInput, ConfigError):
        if choice == 0:
            read_description(io.BytesIO(rest))
        elif choice == 1:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
                unpack_archive(io.BytesIO(rest), Path(folder))
        elif choice == 2:
            parse_manifest(rest)
        elif choice == 3:
            parse_settings(rest)
        else:
            parse_fields(memoryview(rest), content_type=KINDS[choice - 4], query=b"")


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    warnings.simplefilter("ignore")  # zipfile warns of what is refused here
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
