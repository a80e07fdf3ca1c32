"""Fuzz ``config.properties``: only declared errors may escape, and what is written is read back the same.

Run: ``python fuzz/fuzz_properties.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import sys

from cloister.errors import MalformedInput
from cloister.serve.torchserve.properties import parse_properties, render_properties


def one_input(data: bytes) -> None:
    """Read a file, write what it says, and read that."""
    try:
        values = parse_properties(data)
    except MalformedInput:
        return
    if parse_properties(render_properties(values).encode()) != values:
        raise AssertionError("not the same when it is read back")


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
