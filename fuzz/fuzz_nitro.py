"""Fuzz AWS Nitro attestation documents: only declared errors may escape.

Run: ``python fuzz/fuzz_nitro.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime

from cloister.attest import verify_evidence
from cloister.attest.nitro.document import parse_document
from cloister.errors import MalformedInput, VerificationError

NOW = datetime(2025, 12, 25, 13, 16, tzinfo=UTC)


def one_input(data: bytes) -> None:
    """Verify the input as a whole message, and read it as a payload whose signature has been checked."""
    with contextlib.suppress(MalformedInput, VerificationError):
        verify_evidence("nitro", data, None, NOW)
    with contextlib.suppress(MalformedInput):
        parse_document(data)


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
