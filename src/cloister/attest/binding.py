"""What Evidence speaks of: a digest of runtime data (keys, nonces) in the 64 bytes of ``report_data``.

``report_data`` = SHA-384 of the runtime data as RFC 8785 canonical JSON, then 16 zero bytes. The same rule
serves key release (Trustee KBS protocol 0.4.0) and service evidence.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import rfc8785

from cloister.attest.model import Claims
from cloister.errors import BindingMismatch, MalformedInput

REPORT_DATA_BYTES = 64


def runtime_data_digest(runtime_data: Mapping[str, Any], algorithm: str = "sha384") -> bytes:
    """SHA-384 (48 bytes) of ``runtime_data`` as canonical JSON.

    Args:
        algorithm: another hash, where a key broker asks for it: ``sha256`` or ``sha512``.
    Raises:
        MalformedInput: the data has no canonical JSON form (a float out of range, a lone surrogate, bytes).
    """
    try:
        canonical = rfc8785.dumps(dict(runtime_data))
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise MalformedInput(f"runtime data has no canonical JSON form: {type(error).__name__}") from error
    return hashlib.new(algorithm, canonical).digest()


def report_data_for(runtime_data: Mapping[str, Any], algorithm: str = "sha384") -> bytes:
    """The 64 bytes that Evidence over ``runtime_data`` must carry."""
    return runtime_data_digest(runtime_data, algorithm).ljust(REPORT_DATA_BYTES, b"\x00")


def check_binding(claims: Claims, runtime_data: Mapping[str, Any], algorithm: str = "sha384") -> None:
    """Establish that verified Evidence speaks of exactly this runtime data.

    Args:
        algorithm: as for ``runtime_data_digest``.
    Raises:
        BindingMismatch: it speaks of something else.
    """
    expected = report_data_for(runtime_data, algorithm)
    # A TPM's quote carries the bare digest; every other evidence has it padded already.
    if not hmac.compare_digest(claims.report_data.ljust(REPORT_DATA_BYTES, b"\x00"), expected):
        raise BindingMismatch(
            f"evidence is bound to other data: report_data is {claims.report_data.hex()[:16]}…,"
            f" this runtime data needs {expected.hex()[:16]}…",
            hint="the evidence was made for another key, nonce or caller",
        )
