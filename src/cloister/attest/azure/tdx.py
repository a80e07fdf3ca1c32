"""Is evidence of an Azure machine on TDX genuine? The scheme ``az-tdx-vtpm``."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from cloister.attest.azure.claims import AzureTdxClaims
from cloister.attest.azure.evidence import parse_azure_evidence
from cloister.attest.azure.hcl import TYPE_TDX, HclReport, td_info
from cloister.attest.azure.roots import azure_ak_roots
from cloister.attest.azure.vtpm import VTPM_RULES, verify_vtpm
from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.dcap.quote import HEADER_BYTES, TD10_BYTES
from cloister.attest.dcap.tdx import SCHEME as TDX_SCHEME
from cloister.attest.dcap.tdx import TdxClaims, verify_tdx
from cloister.attest.model import Endorsements
from cloister.attest.scheme import Scheme
from cloister.errors import BindingMismatch, MalformedInput


def verify_azure_tdx(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> AzureTdxClaims:
    """Establish that evidence of an Azure machine on TDX is genuine, and return its claims.

    1. The links from the runtime data to the PCR values hold (``verify_vtpm``).
    2. The TD quote is genuine, under Intel's pinned key or ``roots``, with the endorsements as collateral.
    3. The quote and the TDREPORT in the paravisor's report are of the same trust domain and bind the same
       runtime data.

    Raises:
        MalformedInput: a part does not have its form, or there is no quote or no collateral.
        VerificationError: a step fails; the subclass says which kind.
    """
    evidence = parse_azure_evidence(raw)
    if evidence.td_quote is None:
        raise MalformedInput("Azure evidence has no td_quote")
    vtpm = verify_vtpm(evidence, TYPE_TDX, now, roots)
    hardware = verify_tdx(cut_quote(evidence.td_quote), endorsements, now, roots)
    _check_same_domain(vtpm.hcl, hardware)
    return AzureTdxClaims(**{**vtpm.claims(hardware), "scheme": "az-tdx-vtpm"})


def cut_quote(raw: bytes) -> bytes:
    """A TD quote without the zero bytes that Azure's host leaves after it.

    Raises:
        MalformedInput: something else than zeros follows it.
    """
    version = int.from_bytes(raw[:2], "little")
    body = int.from_bytes(raw[50:54], "little") + 6 if version == 5 else TD10_BYTES
    length_at = HEADER_BYTES + body
    end = length_at + 4 + int.from_bytes(raw[length_at : length_at + 4], "little")
    if any(raw[end:]):
        raise MalformedInput(f"TD quote: {len(raw) - end} bytes follow its end, and they are not zero")
    return raw[:end]


def _check_same_domain(hcl: HclReport, quote: TdxClaims) -> None:
    if not hmac.compare_digest(hcl.report_data, quote.report_data):
        raise BindingMismatch(
            f"TD quote binds {quote.report_data.hex()}, the paravisor's report {hcl.report_data.hex()}"
        )
    quoted = b"".join(
        (
            quote.td_attributes,
            quote.xfam,
            quote.mr_td,
            quote.mr_config_id,
            quote.mr_owner,
            quote.mr_owner_config,
            *quote.rtmrs,
        )
    )
    if td_info(hcl)[: len(quoted)] != quoted:
        raise BindingMismatch("TD quote is of another trust domain than the paravisor's report")


def _vendor_roots() -> tuple[x509.Certificate, ...]:
    return (*TDX_SCHEME.vendor_roots(), *azure_ak_roots())


SCHEME = Scheme(
    name="az-tdx-vtpm",
    title="Azure confidential machine on Intel TDX",
    verify=verify_azure_tdx,
    parse_endorsements=DcapEndorsements.from_mapping,
    vendor_roots=_vendor_roots,
    claims=AzureTdxClaims,
    rules=(*TDX_SCHEME.rules, *VTPM_RULES),
    sound_status=TDX_SCHEME.sound_status,
)
