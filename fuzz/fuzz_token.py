"""Fuzz attestation result tokens, their anchors, evidence files and services' bundles: only declared errors.

The first byte chooses the parser.

Run: ``python fuzz/fuzz_token.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.dcap.roots import intel_roots
from cloister.attest.evidence_file import parse_document, parse_evidence_file
from cloister.attest.service import verify_bundle
from cloister.attest.token import verify_ear
from cloister.attest.token_keys import EarTrust, parse_jwk_set, verify_x5c
from cloister.errors import MalformedInput, PolicyDenied, VerificationError

NOW = datetime(2026, 10, 1, tzinfo=UTC)
_TRUST = EarTrust(roots=intel_roots())
_REFERENCES = ReferenceValues.from_toml('allow_simulated = true\n[tdx]\nmr_td = ["' + "00" * 48 + '"]\n')


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


_PARSERS: tuple[Callable[[bytes], object], ...] = (
    lambda data: verify_ear(data.decode("latin-1"), _TRUST, NOW),
    lambda data: parse_jwk_set(_json(data)),
    lambda data: verify_x5c(_json(data), _TRUST.roots, NOW),
    lambda data: parse_evidence_file(parse_document(data)),
    lambda data: verify_bundle(data, nonce=bytes(32), reference_values=_REFERENCES, now=NOW),
)


def one_input(data: bytes) -> None:
    """Give the input, without its first byte, to the parser that this byte chooses."""
    if data:
        with contextlib.suppress(MalformedInput, VerificationError, PolicyDenied):
            _PARSERS[data[0] % len(_PARSERS)](data[1:])


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
