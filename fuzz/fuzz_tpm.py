"""Fuzz TPM evidence and structures: only declared errors may escape.

The first byte chooses the parser: evidence (JSON or protocol buffer), quote's message, key, signature, PCR
file, certificate, PEM, endorsements.

Run: ``python fuzz/fuzz_tpm.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest import verify_evidence
from cloister.attest.tpm import TpmEndorsements
from cloister.attest.tpm.attest import parse_attest
from cloister.attest.tpm.certificates import load_chain, split_pem
from cloister.attest.tpm.keys import parse_key
from cloister.attest.tpm.pcrfile import parse_pcr_file
from cloister.attest.tpm.protobuf import parse_protobuf_evidence
from cloister.attest.tpm.roots import azure_issuers
from cloister.attest.tpm.signature import parse_signature
from cloister.errors import MalformedInput, VerificationError

NOW = datetime(2026, 6, 1, tzinfo=UTC)
_ECC = ec.derive_private_key(1, ec.SECP256R1()).public_key()
_RSA = azure_issuers()[0].public_key()


def _endorsements(data: bytes) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        mapping = json.loads(data)
        TpmEndorsements.from_mapping(mapping)


_PARSERS: tuple[Callable[[bytes], object], ...] = (
    lambda data: verify_evidence("tpm", data, None, NOW),
    lambda data: verify_evidence("tpm", b'{"tpm_quote":' + data, None, NOW),
    parse_protobuf_evidence,
    parse_attest,
    parse_key,
    lambda data: parse_signature(data, _ECC),
    lambda data: parse_signature(data, _RSA),  # type: ignore[arg-type]
    parse_pcr_file,
    lambda data: load_chain([data]),
    lambda data: load_chain(split_pem(data)),
    _endorsements,
)


def one_input(data: bytes) -> None:
    """Give the input, without its first byte, to the parser that this byte chooses."""
    if data:
        with contextlib.suppress(MalformedInput, VerificationError):
            _PARSERS[data[0] % len(_PARSERS)](data[1:])


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
