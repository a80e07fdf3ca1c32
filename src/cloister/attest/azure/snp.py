"""Is evidence of an Azure machine on SEV-SNP genuine? The scheme ``az-snp-vtpm``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime

from cryptography import x509

from cloister.attest.azure.claims import AzureSnpClaims
from cloister.attest.azure.evidence import parse_azure_evidence
from cloister.attest.azure.hcl import TYPE_SNP
from cloister.attest.azure.roots import azure_ak_roots
from cloister.attest.azure.vtpm import VTPM_RULES, verify_vtpm
from cloister.attest.model import Endorsements
from cloister.attest.scheme import Scheme
from cloister.attest.snp.claims import SCHEME as SNP_SCHEME
from cloister.attest.snp.claims import verify_snp
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.errors import BindingMismatch, MalformedInput

PARAVISOR_VMPL = 0


def verify_azure_snp(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> AzureSnpClaims:
    """Establish that evidence of an Azure machine on SEV-SNP is genuine, and return its claims.

    1. The links from the runtime data to the PCR values hold (``verify_vtpm``).
    2. The SEV-SNP report in the paravisor's report is genuine, under AMD's pinned keys or ``roots``. Its
       VCEK is the endorsements', or else the one in the evidence.
    3. The paravisor asked for it: VMPL 0. The guest runs at VMPL 2 and can have any runtime data bound there.

    Raises:
        MalformedInput: a part does not have its form.
        VerificationError: a step fails; the subclass says which kind.
    """
    evidence = parse_azure_evidence(raw)
    vtpm = verify_vtpm(evidence, TYPE_SNP, now, roots)
    given = _endorsements(evidence.vcek, endorsements)
    hardware = verify_snp(vtpm.hcl.hardware_report, given, now, roots)
    if hardware.vmpl != PARAVISOR_VMPL:
        raise BindingMismatch(
            f"SEV-SNP report was asked for at VMPL {hardware.vmpl}, the paravisor is at {PARAVISOR_VMPL}"
        )
    return AzureSnpClaims(**{**vtpm.claims(hardware), "scheme": "az-snp-vtpm"})


def _endorsements(vcek: tuple[str, ...], endorsements: Endorsements | None) -> SnpEndorsements:
    if endorsements is not None and not isinstance(endorsements, SnpEndorsements):
        raise MalformedInput(f"SEV-SNP needs SnpEndorsements, found {type(endorsements).__name__}")
    brought = SnpEndorsements.from_mapping({"cert_chain": list(vcek)}) if vcek else SnpEndorsements()
    if endorsements is None:
        return brought
    lacking = {
        item.name: getattr(brought, item.name)
        for item in fields(brought)
        if getattr(endorsements, item.name) is None
    }
    return replace(endorsements, **lacking)


def _vendor_roots() -> tuple[x509.Certificate, ...]:
    return (*SNP_SCHEME.vendor_roots(), *azure_ak_roots())


SCHEME = Scheme(
    name="az-snp-vtpm",
    title="Azure confidential machine on AMD SEV-SNP",
    verify=verify_azure_snp,
    parse_endorsements=SnpEndorsements.from_mapping,
    vendor_roots=_vendor_roots,
    claims=AzureSnpClaims,
    rules=(*SNP_SCHEME.rules, *VTPM_RULES),
    sound_status=SNP_SCHEME.sound_status,
)
