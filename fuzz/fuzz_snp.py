"""Fuzz everything of SEV-SNP that reads bytes from outside: reports, tables, certificates, CRLs, JSON.

The first byte of an input chooses the parser. Only MalformedInput and VerificationError may come out.

Run: ``python fuzz/fuzz_snp.py -max_total_time=60`` (needs the package ``atheris``).
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

try:
    import atheris
except ImportError:  # one_input works without it, for replaying findings
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["cloister"]):
        from cloister.attest import verify_evidence
        from cloister.attest.snp import SnpEndorsements
        from cloister.attest.snp.certificate import load_certificate
        from cloister.attest.snp.chain import open_crl
        from cloister.attest.snp.extensions import parse_extensions
        from cloister.attest.snp.report import REPORT_BYTES
        from cloister.attest.snp.roots import amd_authority, amd_roots
        from cloister.attest.snp.table import parse_table
        from cloister.attest.snp.trustee import parse_trustee_evidence
        from cloister.errors import MalformedInput, VerificationError
else:
    from cloister.attest import verify_evidence
    from cloister.attest.snp import SnpEndorsements
    from cloister.attest.snp.certificate import load_certificate
    from cloister.attest.snp.chain import open_crl
    from cloister.attest.snp.extensions import parse_extensions
    from cloister.attest.snp.report import REPORT_BYTES
    from cloister.attest.snp.roots import amd_authority, amd_roots
    from cloister.attest.snp.table import parse_table
    from cloister.attest.snp.trustee import parse_trustee_evidence
    from cloister.errors import MalformedInput, VerificationError

NOW = datetime(2026, 10, 1, tzinfo=UTC)


def one_input(data: bytes) -> None:
    """One run; whatever escapes is a finding."""
    if not data:
        return
    choice, rest = data[0] % 6, data[1:]
    try:
        if choice == 0:
            verify_evidence("sev-snp", rest, None, NOW)
        elif choice == 1:
            verify_evidence("sev-snp", rest[:REPORT_BYTES], SnpEndorsements(vcek=rest[REPORT_BYTES:]), NOW)
        elif choice == 2:
            parse_table(rest)
        elif choice == 3:
            parse_extensions(load_certificate(rest, "certificate"))
        elif choice == 4:
            open_crl(rest, amd_roots()[0])
        else:
            _json(rest)
    except (MalformedInput, VerificationError):
        return


def _json(raw: bytes) -> None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return
    try:
        SnpEndorsements.from_mapping(document)
    except (MalformedInput, VerificationError):
        parse_trustee_evidence(document)


def main() -> None:
    """Run until stopped."""
    if atheris is None:
        raise SystemExit("fuzzing needs atheris: pip install atheris")
    amd_authority("Milan", "vcek")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
