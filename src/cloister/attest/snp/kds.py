"""Where AMD's Key Distribution Service has the endorsements of a report. Builds URLs; fetches nothing.

=================================== =====================================================
path                                answer
=================================== =====================================================
``/vcek/v1/<product>/<hwid>?...``   VCEK certificate, DER; the query names the TCB
``/<kind>/v1/<product>/cert_chain`` ASK (or ASVK) and ARK, PEM; kind is ``vcek`` or ``vlek``
``/<kind>/v1/<product>/crl``        the ARK's revocation list, DER
=================================== =====================================================

A report is not verified yet when its endorsements are fetched: what it says here is only a question.

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, chapter 4.
"""

from __future__ import annotations

from cloister.attest.snp.report import Report
from cloister.attest.snp.tcb import decode_tcb, product_of_cpuid
from cloister.errors import MalformedInput

AMD_KDS = "https://kdsintf.amd.com"
_QUERY = {"fmc": "fmcSPL", "bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}
_TURIN_HWID_BYTES = 8


def products_of(report: Report) -> tuple[str, ...]:
    """Product lines that the report may be of: one, or for version 2, which does not say, all that fit."""
    if report.cpuid is not None:
        product = product_of_cpuid(report.cpuid[0], report.cpuid[1])
        if product is None:
            raise MalformedInput(f"SEV-SNP report is of an unknown processor {bytes(report.cpuid).hex()}")
        return (product,)
    return ("Milan", "Genoa") if any(report.chip_id[_TURIN_HWID_BYTES:]) else ("Turin",)


def vcek_url(report: Report, product: str, *, base: str = AMD_KDS) -> str:
    """Address of the VCEK certificate for this report.

    Raises:
        MalformedInput: the report was signed with a VLEK, which only its cloud provider has, or its host
            masks the chip's identity.
    """
    if report.signing_key != "vcek" or not any(report.chip_id):
        raise MalformedInput(
            "AMD's KDS has no certificate for this report: signed with a VLEK, or chip_id is masked",
            hint="the host's certificate table (auxblob) has it",
        )
    hwid = report.chip_id[:_TURIN_HWID_BYTES] if product == "Turin" else report.chip_id
    tcb = decode_tcb(report.reported_tcb, product)
    query = "&".join(f"{name}={tcb[component]:02}" for component, name in _QUERY.items() if component in tcb)
    return f"{base.rstrip('/')}/vcek/v1/{product}/{hwid.hex()}?{query}"


def chain_url(product: str, kind: str, *, base: str = AMD_KDS) -> str:
    """Address of the certificates above a ``vcek`` or ``vlek``."""
    return f"{base.rstrip('/')}/{kind}/v1/{product}/cert_chain"


def crl_url(product: str, kind: str, *, base: str = AMD_KDS) -> str:
    """Address of the revocation list for a ``vcek`` or ``vlek``."""
    return f"{base.rstrip('/')}/{kind}/v1/{product}/crl"
