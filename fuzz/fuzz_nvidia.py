"""Fuzz NVIDIA's formats: only declared errors may escape.

The first byte chooses the parser: evidence, report, manifest, OCSP response, firmware identity, endorsements.

Run: ``python fuzz/fuzz_nvidia.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from cloister.attest import verify_evidence
from cloister.attest.nvidia import NvidiaEndorsements, split_devices
from cloister.attest.nvidia.fwid import _composite_device_id, _dice_tcb_info
from cloister.attest.nvidia.ocsp import check_revocation
from cloister.attest.nvidia.report import parse_report
from cloister.attest.nvidia.rim import open_rim
from cloister.attest.nvidia.roots import device_roots, rim_roots
from cloister.attest.nvidia.xml import canonicalize, parse_xml
from cloister.attest.p384 import Chain
from cloister.errors import MalformedInput, VerificationError

NOW = datetime(2025, 10, 24, 20, tzinfo=UTC)
_CHAIN = Chain((device_roots()[0], device_roots()[0]))


def _evidence(data: bytes) -> None:
    verify_evidence("nvidia", data, NvidiaEndorsements(certificate_chain=(data, data, data)), NOW)


def _report(data: bytes) -> None:
    report = parse_report(data)
    _ = report.vbios_version, report.driver_version, [report.opaque_text(name) for name in report.opaque]


def _manifest(data: bytes) -> None:
    open_rim(data, rim_roots(), "manifest")


def _xml(data: bytes) -> None:
    form = canonicalize(parse_xml(data, "document"))
    if canonicalize(parse_xml(form, "document")) != form:
        raise AssertionError("the canonical form has another canonical form")


def _ocsp(data: bytes) -> None:
    check_revocation([data], _CHAIN, subjects=slice(None), now=NOW)


def _fwid(data: bytes) -> None:
    list(_dice_tcb_info(data))
    _composite_device_id(data)


def _endorsements(data: bytes) -> None:
    try:
        mapping = json.loads(data)
    except (ValueError, RecursionError):
        return
    NvidiaEndorsements.from_mapping(mapping)


def _split(data: bytes) -> None:
    split_devices(data)


_TARGETS: tuple[Callable[[bytes], None], ...] = (
    _evidence,
    _report,
    _manifest,
    _xml,
    _ocsp,
    _fwid,
    _endorsements,
    _split,
)


def one_input(data: bytes) -> None:
    """Give the input to the parser that its first byte names."""
    if not data:
        return
    with contextlib.suppress(MalformedInput, VerificationError):
        _TARGETS[data[0] % len(_TARGETS)](data[1:])


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
