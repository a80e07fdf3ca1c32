"""Fuzz what vendors' services, bundles and caches say: only declared errors may escape.

The first byte chooses: bundle, entry of a cache, answer of Intel's service, of AMD's, evidence that names its
platform.

Run: ``python fuzz/fuzz_collateral.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from cloister.attest.collateral.entry import MAX_ENTRY_BYTES, parse_bundle, parse_entry, parse_json
from cloister.attest.collateral.fetch import Answer
from cloister.attest.collateral.kds import read_certificates
from cloister.attest.collateral.parts import read_parts
from cloister.attest.collateral.pcs import crl_der, issuer_chain, signed_member
from cloister.attest.collateral.platform import detect_scheme, read_wanted
from cloister.errors import MalformedInput, TransportError, VerificationError


def _answer(data: bytes) -> Answer:
    return Answer("fuzz", {"chain": data.decode("latin-1")}, data)


def _bundle(data: bytes) -> None:
    for entry in parse_bundle(data):
        read_parts(entry.endorsements)


_PARSERS: tuple[Callable[[bytes], object], ...] = (
    _bundle,
    lambda data: parse_entry(parse_json(data, MAX_ENTRY_BYTES, "entry")),
    lambda data: signed_member(_answer(data), "tcbInfo"),
    lambda data: crl_der(_answer(data)),
    lambda data: issuer_chain(_answer(data), ("chain",)),
    lambda data: read_certificates({"cert_chain": data, "crl": data}),
    lambda data: read_wanted(detect_scheme(data), data),
    lambda data: read_wanted("sev-snp", data),
    lambda data: read_wanted("az-tdx-vtpm", data),
)


def one_input(data: bytes) -> None:
    """Give the input, without its first byte, to the parser that this byte chooses."""
    if data:
        with contextlib.suppress(MalformedInput, VerificationError, TransportError):
            _PARSERS[data[0] % len(_PARSERS)](data[1:])


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
