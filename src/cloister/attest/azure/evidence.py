"""Evidence of a confidential machine on Azure: one JSON object.

Members; bytes are hexadecimal, base64 (either alphabet) or an array of numbers:

==================================== ====================== ================================================
member                               also called            content
==================================== ====================== ================================================
``tpm_quote``                        ``quote``              ``message``, ``signature`` (bare or
                                                            TPMT_SIGNATURE), ``pcrs``
``hcl_report``                       ``report``,            the paravisor's report
                                     ``hcl_report_base64``  (``cloister.attest.azure.hcl``)
``vcek``                                                    SEV-SNP: certificate of the chip's key, PEM or
                                                            DER; not needed where the endorsements have it
``td_quote``                         ``tdx_quote_base64``   TDX: the quote over the same runtime data
``ak_certificate_pem``               ``ak_certificates``    certificate of the attestation key; optional
``ak_intermediate_certificates_pem``                        its issuers; optional
``event_log``                                               TCG event log of the firmware; optional
``version``                                                 a number; not used
==================================== ====================== ================================================

These are Trustee's evidence of versions 0 (arrays, ``quote`` and ``report``), 1 and 2 as they are. In the
document of attested-tls the members of the virtual TPM are in an object ``tpm_attestation``; that is taken
too. ``pcrs`` is a list or an object as in ``cloister.attest.tpm.evidence``.

Nothing here is verified.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.azure.hcl import MAX_HCL_BYTES
from cloister.attest.dcap.quote import MAX_QUOTE_BYTES
from cloister.attest.tpm.encoding import (
    decode_bytes,
    decode_certificates,
    expect_object,
    member,
    parse_object,
)
from cloister.attest.tpm.evidence import read_certificates, read_event_log, read_quote
from cloister.attest.tpm.quote import QuotePart
from cloister.errors import MalformedInput

_WHAT = "Azure evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """The parts of evidence; nothing in it has been verified."""

    quote: QuotePart
    hcl_report: bytes
    vcek: tuple[str, ...]
    """Base64 of DER: the chip's key, and its issuers if they are given."""
    td_quote: bytes | None
    certificates: tuple[bytes, ...]
    """Of the attestation key; DER, each possibly with trailing zero bytes."""
    event_log: bytes | None


def parse_azure_evidence(raw: bytes) -> AzureEvidence:
    """The parts of evidence.

    Raises:
        MalformedInput: a member is missing, of the wrong form, or there under two names.
    """
    document = parse_object(raw, _WHAT)
    nested = document.get("tpm_attestation")
    tpm: Mapping[str, Any] = document if nested is None else expect_object(nested, "tpm_attestation")
    hcl = member(document, ("hcl_report", "report", "hcl_report_base64"), _WHAT)
    td_quote = member(document, ("td_quote", "tdx_quote_base64"), _WHAT)
    vcek = document.get("vcek")
    if hcl is None:
        raise MalformedInput(f"{_WHAT} has no hcl_report")
    return AzureEvidence(
        quote=read_quote(member(tpm, ("tpm_quote", "quote"), _WHAT)),
        hcl_report=decode_bytes(hcl, "HCL report", MAX_HCL_BYTES),
        vcek=() if vcek is None else _texts(vcek),
        td_quote=None if td_quote is None else decode_bytes(td_quote, "TD quote", MAX_QUOTE_BYTES),
        certificates=read_certificates(tpm),
        event_log=read_event_log(tpm),
    )


def _texts(vcek: Any) -> tuple[str, ...]:
    return tuple(b64encode(der).decode("ascii") for der in decode_certificates(vcek, "VCEK"))
