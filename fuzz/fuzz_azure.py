"""Fuzz evidence of machines on Azure: only declared errors may escape.

The first byte chooses: evidence for SEV-SNP or TDX, paravisor's report, runtime data, end of a TD quote.

Run: ``python fuzz/fuzz_azure.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from cloister.attest import verify_evidence
from cloister.attest.azure import check_runtime_binding, parse_hcl_report
from cloister.attest.azure.evidence import parse_azure_evidence
from cloister.attest.azure.runtime import parse_runtime_data
from cloister.attest.azure.tdx import cut_quote
from cloister.errors import MalformedInput, VerificationError

NOW = datetime(2025, 6, 1, tzinfo=UTC)
_PARSERS: tuple[Callable[[bytes], object], ...] = (
    lambda data: verify_evidence("az-snp-vtpm", data, None, NOW),
    lambda data: verify_evidence("az-tdx-vtpm", data, None, NOW),
    parse_azure_evidence,
    lambda data: check_runtime_binding(parse_hcl_report(data)),
    parse_runtime_data,
    cut_quote,
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
