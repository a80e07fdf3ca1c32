"""Padding to size classes, so that the length of a sealed message says less of what is in it.

Padmé: a length is rounded up to one whose low bits are zero, as many as keep the overhead below 12 %. What
remains to be told apart are O(log log n) bits of the length instead of log n. Binary HTTP allows any number
of zero bytes behind a message (RFC 9292, section 3.8).

Source: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", 2019,
section 4.
"""

from __future__ import annotations

MIN_BYTES = 256
"""Everything shorter has this length."""


def padded_bytes(length: int) -> int:
    """The size class of a message of ``length`` bytes: at least that, at most 12 % more or ``MIN_BYTES``."""
    if length <= MIN_BYTES:
        return MIN_BYTES
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask


def pad(message: bytes) -> bytes:
    """A Binary HTTP message, filled up to its size class."""
    return message + bytes(padded_bytes(len(message)) - len(message))
