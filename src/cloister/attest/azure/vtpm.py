"""The links that SEV-SNP and TDX machines on Azure share: from runtime data to the virtual TPM's quote.

================================ ==================================== ====================================
link                             what it proves                       checked in
================================ ==================================== ====================================
hardware report to runtime data  the paravisor wrote the data         ``check_runtime_binding``
runtime data to quote            the key in it signed the quote       ``verify_vtpm``
quote to PCR values              the values are those of the TPM      ``verify_tpm_quote``
certificate to key               Azure has certified the same key     ``verify_vtpm``, if there is one
event log to PCR values          what was measured                    ``verify_vtpm``, if there is one
================================ ==================================== ====================================

That the hardware report is genuine is for ``cloister.attest.azure.snp`` and ``tdx``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.azure.evidence import AzureEvidence
from cloister.attest.azure.hcl import HclReport, check_runtime_binding, parse_hcl_report
from cloister.attest.azure.roots import azure_ak_roots, is_azure_root
from cloister.attest.azure.runtime import RuntimeData
from cloister.attest.model import Claims
from cloister.attest.rules import OneOf, OneWord, Rule
from cloister.attest.tpm.attest import TpmsAttest
from cloister.attest.tpm.certificates import key_of, load_chain, verify_chain
from cloister.attest.tpm.events import replay_to_pcrs
from cloister.attest.tpm.keys import spki_of
from cloister.attest.tpm.quote import PcrBanks, verify_tpm_quote
from cloister.attest.tpm.roots import azure_issuers
from cloister.attest.tpm.verify import PCR_RULE
from cloister.errors import BindingMismatch, MalformedInput


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedVtpm:
    """A virtual TPM whose every link holds, up to the hardware report."""

    hcl: HclReport
    runtime: RuntimeData
    attest: TpmsAttest
    pcrs: PcrBanks
    ak_subject: str
    ak_root: x509.Certificate | None
    events: tuple[Mapping[str, Any], ...]

    @property
    def simulated(self) -> bool:
        """Whether the attestation key's certificate ends in another root than Azure's."""
        return self.ak_root is not None and not is_azure_root(self.ak_root)

    def claims(self, hardware: Claims) -> dict[str, Any]:
        """Arguments for claims: the hardware's, and the virtual TPM's instead of and beside them."""
        configuration = self.runtime.vm_configuration
        return {
            **{item.name: getattr(hardware, item.name) for item in fields(hardware)},
            "simulated": hardware.simulated or self.simulated,
            "report_data": self.attest.extra_data,
            "hardware_report_data": self.hcl.report_data,
            "user_data": self.runtime.user_data,
            "vm_configuration": configuration,
            "vm_unique_id": str(configuration.get("vmUniqueId", "")),
            "pcrs": self.pcrs,
            "pcr_digest": self.attest.pcr_digest,
            "qualified_signer": self.attest.qualified_signer,
            "clock": self.attest.clock,
            "reset_count": self.attest.reset_count,
            "restart_count": self.attest.restart_count,
            "safe": self.attest.safe,
            "firmware_version": self.attest.firmware_version,
            "ak_subject": self.ak_subject,
            "ak_root": "" if self.ak_root is None else self.ak_root.subject.rfc4514_string(),
            "pcr_events": self.events,
        }


def verify_vtpm(
    evidence: AzureEvidence, report_type: int, now: datetime, roots: Sequence[x509.Certificate] | None
) -> VerifiedVtpm:
    """Establish every link of the table above.

    Raises:
        MalformedInput: a part does not have its form, or the report is of other hardware.
        VerificationError: a link does not hold; the subclass says which kind.
    """
    hcl = parse_hcl_report(evidence.hcl_report)
    if hcl.report_type != report_type:
        raise MalformedInput(f"HCL report is of hardware type {hcl.report_type}, expected {report_type}")
    runtime = check_runtime_binding(hcl)
    quote = verify_tpm_quote(evidence.quote, runtime.attestation_key)
    chain = load_chain(evidence.certificates)
    root = None
    if chain:
        if spki_of(key_of(chain[0])) != spki_of(runtime.attestation_key):
            raise BindingMismatch("attestation key's certificate is of another key than the runtime data")
        trusted = azure_ak_roots() if roots is None else tuple(roots)
        root = verify_chain((*chain, *azure_issuers()), trusted, now)
    events = () if evidence.event_log is None else replay_to_pcrs(evidence.event_log, quote.pcrs)
    return VerifiedVtpm(
        hcl=hcl,
        runtime=runtime,
        attest=quote.attest,
        pcrs=quote.pcrs,
        ak_subject=chain[0].subject.rfc4514_string() if chain else "",
        ak_root=root,
        events=tuple(event.to_mapping() for event in events),
    )


VTPM_RULES: tuple[Rule, ...] = (
    PCR_RULE,
    OneOf("user_data", 64, "data that the guest has had bound", lambda claims: claims.user_data or None),
    OneWord("vm_unique_ids", "machines that may be used", lambda claims: claims.vm_unique_id),
    OneWord(
        "secure_boot",
        "whether the firmware verifies what it starts",
        lambda claims: _word(claims.vm_configuration.get("secure-boot")),
        known=("true", "false"),
    ),
    OneWord(
        "console_enabled",
        "whether the host has a console to the guest",
        lambda claims: _word(claims.vm_configuration.get("console-enabled")),
        known=("true", "false"),
    ),
    OneWord(
        "ak_roots",
        "subjects of the roots that must have certified the attestation key",
        lambda claims: claims.ak_root,
    ),
)
"""Reference values of the virtual TPM, beside those of the hardware."""


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "not stated"
