"""Evidence of a TPM: one JSON object, or the Attestation message of Google's TPM tools.

Members of the JSON object; bytes are hexadecimal, base64 (either alphabet) or an array of numbers:

=================== ======================================================================================
member              content
=================== ======================================================================================
``tpm_quote``       object: ``message`` (TPMS_ATTEST), ``signature`` (TPMT_SIGNATURE or bare), ``pcrs``;
                    also called ``quote``
``ak_public``       attestation key: SubjectPublicKeyInfo, TPMT_PUBLIC or TPM2B_PUBLIC; optional where
                    there is a certificate
``ak_certificates`` its certificate and what leads from it to the root: PEM, DER, or a list; optional. Also
                    called ``ak_certificate_pem``; then ``ak_intermediate_certificates_pem`` has the rest
``event_log``       TCG event log of the firmware; optional
``nonce``           what the quote should carry; optional, checked if it is there
=================== ======================================================================================

``pcrs`` is a list in the order of the quote's selection (or of PCR 0 to 23 of its one bank), an object
``{"sha256": {"0": ...}}``, or the serialised form of tpm2-tools. It may be left out: then the claims have no
PCR values, only their digest.

Also taken as they are: Trustee's ``tpm`` evidence (``ak_public`` and ``tpm_quote``), and vaportpm's
(``ak_pubkeys``, ``pcrs``, ``nonce`` and ``attestation`` with ``tpm`` and ``gcp`` or ``nitro``).

Nothing here is verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.eventlog.log import MAX_LOG_BYTES
from cloister.attest.tpm.algorithms import DIGEST_BYTES
from cloister.attest.tpm.encoding import (
    decode_bytes,
    decode_certificates,
    expect_object,
    member,
    parse_object,
)
from cloister.attest.tpm.keys import CURVES as _CURVES
from cloister.attest.tpm.keys import AttestationKey, ecc_key, parse_key
from cloister.attest.tpm.pcrfile import MAX_PCR_FILE_BYTES, parse_pcr_file
from cloister.attest.tpm.quote import PCRS, QuotePart
from cloister.attest.tpm.signature import MAX_SIGNATURE_BYTES
from cloister.errors import MalformedInput

MAX_KEY_TEXT_BYTES = 8192
MAX_DOCUMENT_BYTES = 32 * 1024
_P256 = 0x3


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """The parts of evidence; nothing in it has been verified."""

    quotes: tuple[QuotePart, ...]
    key: AttestationKey | None
    certificates: tuple[bytes, ...] = ()
    """DER, the attestation key's first; each may carry trailing zero bytes."""
    event_log: bytes | None = None
    nonce: bytes | None = None
    nitro_document: bytes | None = None


def parse_json_evidence(raw: bytes) -> TpmEvidence:
    """The parts of evidence in JSON.

    Raises:
        MalformedInput: a member is missing, of the wrong form, or there under two names.
    """
    document = parse_object(raw, "TPM evidence")
    if isinstance(document.get("attestation"), dict):
        return _parse_vaportpm(document)
    quote = member(document, ("tpm_quote", "quote"), "TPM evidence")
    key = member(document, ("ak_public", "ak_pub"), "TPM evidence")
    return TpmEvidence(
        quotes=(read_quote(quote),),
        key=None if key is None else read_key(key),
        certificates=read_certificates(document),
        event_log=read_event_log(document),
        nonce=read_nonce(document),
    )


def read_quote(value: Any) -> QuotePart:
    """The quote in an object with ``message``, ``signature`` and ``pcrs``."""
    quote = expect_object(value, "TPM quote")
    return QuotePart(
        decode_bytes(quote.get("message"), "message of TPM quote", 1024),
        decode_bytes(quote.get("signature"), "signature of TPM quote", MAX_SIGNATURE_BYTES),
        read_pcrs(quote.get("pcrs")),
    )


def read_key(value: Any) -> AttestationKey:
    """An attestation key's public part."""
    if isinstance(value, str) and "-----BEGIN" in value:
        return parse_key(value.encode("utf-8", "replace"))
    return parse_key(decode_bytes(value, "attestation key", MAX_KEY_TEXT_BYTES))


def read_pcrs(value: Any) -> tuple[bytes, ...] | Mapping[str, Mapping[int, bytes]] | None:
    """PCR values in any of the forms."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse_pcr_file(decode_bytes(value, "PCR values", MAX_PCR_FILE_BYTES))
    if isinstance(value, dict):
        return _read_banks(value)
    if not isinstance(value, list) or len(value) > PCRS * len(DIGEST_BYTES):
        raise MalformedInput("PCR values are neither a list nor an object")
    return tuple(decode_bytes(item, "PCR value", 64) for item in value)


def read_certificates(document: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The attestation key's certificate and the others, as they are in the members named above."""
    names = ("ak_certificates", "ak_certificate_pem", "ak_certificate", "ak_cert")
    first = member(document, names, "TPM evidence")
    others = member(document, ("ak_intermediate_certificates_pem",), "TPM evidence")
    parts = () if first is None else decode_certificates(first, "certificate of the attestation key")
    if others:
        parts = (*parts, *decode_certificates(others, "issuers of the attestation key"))
    return parts


def read_event_log(document: Mapping[str, Any]) -> bytes | None:
    """The event log, if there is one that is not empty."""
    value = member(document, ("event_log", "eventlog"), "TPM evidence")
    return (decode_bytes(value, "event log", MAX_LOG_BYTES) or None) if value is not None else None


def read_nonce(document: Mapping[str, Any]) -> bytes | None:
    """The nonce, if there is one."""
    value = document.get("nonce")
    return None if value is None else decode_bytes(value, "nonce", 64)


def _read_banks(value: Mapping[str, Any]) -> Mapping[str, Mapping[int, bytes]]:
    banks: dict[str, dict[int, bytes]] = {}
    for bank, values in value.items():
        if bank not in DIGEST_BYTES:
            raise MalformedInput(f"PCR bank {bank[:20]!r}, known are {', '.join(DIGEST_BYTES)}")
        banks[bank] = {}
        for number, content in expect_object(values, f"PCR bank {bank}").items():
            if not (number.isascii() and number.isdigit()) or len(number) > 2:
                raise MalformedInput(f"PCR number {number[:20]!r}")
            if int(number) in banks[bank]:
                raise MalformedInput(f"PCR {int(number)} occurs twice")
            banks[bank][int(number)] = decode_bytes(content, "PCR value", 64)
    return banks


def _parse_vaportpm(document: Mapping[str, Any]) -> TpmEvidence:
    attestation = expect_object(document["attestation"], "attestation")
    keys = expect_object(document.get("ak_pubkeys"), "ak_pubkeys")
    quotes = expect_object(attestation.get("tpm"), "attestation.tpm")
    if set(keys) != {"ecc_p256"} or set(quotes) != {"ecc_p256"}:
        raise MalformedInput("TPM evidence does not have exactly one key and quote, of ecc_p256")
    point = expect_object(keys["ecc_p256"], "ak_pubkeys.ecc_p256")
    quote = expect_object(quotes["ecc_p256"], "attestation.tpm.ecc_p256")
    google = attestation.get("gcp")
    nitro = attestation.get("nitro")
    chain = None if google is None else expect_object(google, "attestation.gcp").get("ak_cert_chain")
    signed = None if nitro is None else expect_object(nitro, "attestation.nitro").get("document")
    part = QuotePart(
        decode_bytes(quote.get("attest_data"), "message of TPM quote", 1024),
        decode_bytes(quote.get("signature"), "signature of TPM quote", MAX_SIGNATURE_BYTES),
        read_pcrs(document.get("pcrs")),
    )
    return TpmEvidence(
        quotes=(part,),
        key=ecc_key(
            _CURVES[_P256], decode_bytes(point.get("x"), "x", 32), decode_bytes(point.get("y"), "y", 32)
        ),
        certificates=() if chain is None else decode_certificates(chain, "ak_cert_chain"),
        nonce=read_nonce(document),
        nitro_document=(
            None if signed is None else decode_bytes(signed, "Nitro document", MAX_DOCUMENT_BYTES)
        ),
    )
