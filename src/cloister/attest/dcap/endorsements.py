"""DCAP collateral as one value: the nine members of ``QuoteCollateralV3``.

================================ =================================================================
member                           content
================================ =================================================================
``pck_crl_issuer_chain``         PEM: PCK CA, root CA
``root_ca_crl``                  CRL of the root CA; DER, hexadecimal in JSON
``pck_crl``                      CRL of the PCK CA; DER, hexadecimal in JSON
``tcb_info_issuer_chain``        PEM: TCB signing certificate, root CA
``tcb_info``                     TCB info, the exact text that was signed
``tcb_info_signature``           r and s (64 bytes), hexadecimal in JSON
``qe_identity_issuer_chain``     PEM: TCB signing certificate, root CA
``qe_identity``                  QE identity, the exact text that was signed
``qe_identity_signature``        r and s (64 bytes), hexadecimal in JSON
================================ =================================================================

Source: Intel SGX/TDX Provisioning Certification Service API, version 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

from cloister.errors import MalformedInput

MAX_MEMBER_BYTES = 512 * 1024
SIGNATURE_BYTES = 64


@dataclass(frozen=True, kw_only=True, repr=False)
class DcapEndorsements:
    """What Intel (or a simulated Intel) says of one kind of platform and its quoting enclave."""

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    def __repr__(self) -> str:
        return f"DcapEndorsements({len(self.tcb_info)} characters of TCB info)"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Endorsements from their JSON form; byte members are hexadecimal text.

        Raises:
            MalformedInput: a member is missing, unknown, of the wrong type or too long.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(mapping, Mapping):
            raise MalformedInput("DCAP collateral is not a JSON object")
        if set(mapping) - names or names - set(mapping):
            missing, unknown = sorted(names - set(mapping)), sorted(map(str, set(mapping) - names))
            raise MalformedInput(
                f"DCAP collateral: missing members {missing}, unknown members {unknown[:5]!r}"
            )
        values: dict[str, Any] = {}
        for name in names:
            text = mapping[name]
            if not isinstance(text, str):
                raise MalformedInput(f"DCAP collateral: {name} is not a string")
            if not text.isascii():
                raise MalformedInput(f"DCAP collateral: {name} is not ASCII")
            if len(text) > MAX_MEMBER_BYTES:
                raise MalformedInput(f"DCAP collateral: {name} is longer than {MAX_MEMBER_BYTES}")
            values[name] = _unhex(text, name) if name in _BINARY else text
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """JSON form, as ``from_mapping`` takes it."""
        return {
            item.name: value.hex() if isinstance(value := getattr(self, item.name), bytes) else value
            for item in fields(self)
        }

    def is_current(self, now: datetime) -> bool:
        """Whether ``now`` lies in the validity of TCB info and QE identity; says nothing of signatures."""
        return all(
            issued <= now <= until
            for issued, until in (
                validity(parse_signed_json(self.tcb_info, "TCB info"), "TCB info"),
                validity(parse_signed_json(self.qe_identity, "QE identity"), "QE identity"),
            )
        )


def parse_signed_json(text: str, what: str) -> dict[str, Any]:
    """The JSON object in a signed text.

    A member that occurs twice is refused: two parsers might believe different ones.

    Raises:
        MalformedInput: not a JSON object.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{what} is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput(f"{what} is not a JSON object")
    return document


def validity(document: Mapping[str, Any], what: str) -> tuple[datetime, datetime]:
    """``issueDate`` and ``nextUpdate`` as aware times.

    Raises:
        MalformedInput: one of them is missing or not RFC 3339 in UTC.
    """
    try:
        issued, until = (
            datetime.strptime(document[name], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            for name in ("issueDate", "nextUpdate")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedInput(f"{what}: issueDate or nextUpdate is missing or not a UTC time") from error
    return issued, until


_BINARY = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}


def _unhex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise MalformedInput(f"DCAP collateral: {name} is not hexadecimal") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a member occurs twice")
    return document
