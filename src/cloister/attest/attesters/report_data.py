"""What every Attester is given."""

from __future__ import annotations

from cloister.attest.binding import REPORT_DATA_BYTES
from cloister.errors import MalformedInput


def check_report_data(report_data: bytes) -> bytes:
    """``report_data``, if it has 64 bytes; MalformedInput if not: padding it is the caller's decision."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise MalformedInput(f"report_data has {REPORT_DATA_BYTES} bytes, found {len(report_data)}")
    return report_data
