"""The outer form of certificates and revocation lists in DER: what no signature protects.

Both are ``SEQUENCE { SEQUENCE tbs, SEQUENCE signatureAlgorithm, BIT STRING signature }``, and the signature
is over the first member only. Whatever could be changed in the other two without breaking it is refused here,
so that no byte of a chain can be changed.

Source: RFC 5280, sections 4.1 and 5.1; ITU-T X.690, 8.6.
"""

from __future__ import annotations

from cloister.errors import MalformedInput

SEQUENCE, INTEGER, BIT_STRING, EXPLICIT_0 = 0x30, 0x02, 0x03, 0xA0


def element(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Begin and end of the content of the element at ``at``.

    Raises:
        ValueError, IndexError: it is another one, or cut off; for callers within this package.
    """
    if der[at] != tag:
        raise ValueError("another element")
    length, begin = der[at + 1], at + 2
    if length >= 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[at + 2 : begin], "big")
    if begin + length > len(der):
        raise ValueError("element is cut off")
    return begin, begin + length


def check_signature_form(der: bytes, what: str) -> None:
    """Establish that nothing outside of what is signed could say anything else.

    The structure ends with its signature, which has whole bytes, and the algorithm that is named outside is
    the one inside (RFC 5280, sections 4.1.1.2 and 5.1.1.2).

    Raises:
        MalformedInput: it could, or it is neither a certificate nor a CRL.
    """
    try:
        inner, end = element(der, 0, SEQUENCE)
        signed_begin, signed_end = element(der, inner, SEQUENCE)
        algorithm_end = element(der, signed_end, SEQUENCE)[1]
        begin, signature_end = element(der, algorithm_end, BIT_STRING)
        exact = signature_end == end == len(der) and der[begin] == 0
        same = _signed_algorithm(der, signed_begin) == der[signed_end:algorithm_end]
    except (IndexError, ValueError) as error:
        raise MalformedInput(f"{what} is not a signed structure in DER") from error
    if not exact:
        raise MalformedInput(f"{what} is followed by other bytes, or its signature has unused bits")
    if not same:
        raise MalformedInput(f"{what} names two signature algorithms")


def _signed_algorithm(der: bytes, at: int) -> bytes:
    """The algorithm inside of what is signed: after versions and serial number."""
    if der[at] == EXPLICIT_0:
        at = element(der, at, EXPLICIT_0)[1]
    while der[at] == INTEGER:
        at = element(der, at, INTEGER)[1]
    return der[at : element(der, at, SEQUENCE)[1]]
