"""Fuzz Intel SGX and TDX quotes and their collateral: only declared errors may escape.

Run: ``python fuzz/fuzz_dcap.py [corpus folder] [libFuzzer options]``, with atheris installed. The first byte
of an input chooses the parser.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cloister.attest import ReferenceValues, verify_evidence
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.quote import parse_quote
from cloister.attest.service import verify_bundle
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import MalformedInput, PolicyDenied, VerificationError

NOW = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
DECLARED = (MalformedInput, VerificationError)

with tempfile.TemporaryDirectory() as _folder:
    PLATFORM = SimulatedPlatform.create(Path(_folder) / "platform", NOW)
ENDORSEMENTS = PLATFORM.endorsements(NOW)
MAPPING = ENDORSEMENTS.to_mapping()
QUOTE = PLATFORM.quote(bytes(64), mr_td=bytes(48), mr_config_id=bytes(48))
FIELDS = sorted(MAPPING)
REFERENCES = ReferenceValues.from_toml('allow_simulated = true\n[tdx]\nmr_td = ["' + "00" * 48 + '"]\n')


def one_input(data: bytes) -> None:
    """Verify the input as a quote, as a changed quote, as a piece of collateral, or as a service's bundle."""
    if not data:
        return
    choice, rest = data[0] % 5, data[1:]
    with contextlib.suppress(*DECLARED):
        if choice == 0:
            parse_quote(rest)
        elif choice == 1:
            scheme = "sgx" if rest[:1] == b"\x03" else "tdx"
            verify_evidence(scheme, rest, ENDORSEMENTS, NOW, roots=[PLATFORM.root])
        elif choice == 2:
            changed = bytearray(QUOTE)
            for at in range(0, len(rest) - 2, 3):
                changed[int.from_bytes(rest[at : at + 2], "big") % len(changed)] ^= rest[at + 2]
            verify_evidence("tdx", bytes(changed), ENDORSEMENTS, NOW, roots=[PLATFORM.root])
        elif choice == 3 and rest:
            name = FIELDS[rest[0] % len(FIELDS)]
            mapping = {**MAPPING, name: rest[1:].decode("utf-8", "replace")}
            endorsements = DcapEndorsements.from_mapping(mapping)
            verify_evidence("tdx", QUOTE, endorsements, NOW, roots=[PLATFORM.root])
        elif choice == 4:
            with contextlib.suppress(PolicyDenied):
                verify_bundle(rest, nonce=bytes(32), reference_values=REFERENCES, now=NOW)
    try:
        document = json.loads(rest)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        with contextlib.suppress(MalformedInput):
            DcapEndorsements.from_mapping(document)


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
