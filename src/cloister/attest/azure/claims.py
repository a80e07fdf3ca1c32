"""Claims of an Azure confidential machine: the hardware's, and beside them the virtual TPM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.dcap.tdx import TdxClaims
from cloister.attest.model import Claims
from cloister.attest.snp.claims import SnpClaims
from cloister.attest.tpm.verify import pcrs_to_mapping


@dataclass(frozen=True, kw_only=True)
class VtpmFields:
    """What the virtual TPM of a confidential machine says, beside the claims of its hardware.

    ``report_data`` is the quote's ``extraData``: the caller's nonce. What the hardware report binds is
    ``hardware_report_data``, the hash of the paravisor's runtime data.
    """

    hardware_report_data: bytes
    user_data: bytes
    """64 bytes that the guest has had bound; empty where the paravisor's report has none."""
    vm_configuration: Mapping[str, Any]
    """As the paravisor states it: ``secure-boot``, ``console-enabled`` and so on."""
    vm_unique_id: str
    pcrs: Mapping[str, Mapping[int, bytes]]
    """Quoted values, by bank and number."""
    pcr_digest: bytes
    qualified_signer: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    ak_subject: str
    """Subject of the attestation key's certificate; empty if the evidence has none."""
    ak_root: str
    """Subject of the root that this certificate leads to; empty if the evidence has none."""
    pcr_events: tuple[Mapping[str, Any], ...]
    """Of the firmware's event log, if the evidence has one, as in ``TpmClaims.events``."""


@dataclass(frozen=True, kw_only=True)
class AzureSnpClaims(SnpClaims, VtpmFields):
    """An SEV-SNP machine on Azure."""

    def to_mapping(self) -> dict[str, Any]:
        """Every claim as JSON; PCR numbers become text, as JSON requires."""
        return {**Claims.to_mapping(self), "pcrs": pcrs_to_mapping(self.pcrs)}


@dataclass(frozen=True, kw_only=True)
class AzureTdxClaims(TdxClaims, VtpmFields):
    """A TDX machine on Azure."""

    def to_mapping(self) -> dict[str, Any]:
        """Every claim as JSON; PCR numbers become text, as JSON requires."""
        return {**Claims.to_mapping(self), "pcrs": pcrs_to_mapping(self.pcrs)}
